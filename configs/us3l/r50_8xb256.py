# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
_base_ = './us3l_resnet50_8xb256-coslr-100e_in1k.py'
