# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Distillation at low temperatures, at which its gradient is larger.
_base_ = '../slimclr-mocov2_resnet18_4xb128-coslr-400e_cifar10.py'

model = dict(distill=dict(
    temperature=0.2,  # ours
    teacher_temperature=0.05))  # ours
