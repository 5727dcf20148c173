# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Mask R-CNN on the pruned network of a gated checkpoint: the file that
# tools/slice_checkpoint.py CKPT FILE --width gated --format mmdet writes. It
# prints the inner channels of the blocks, which are those of the file:
# --cfg-options model.backbone.init_cfg.checkpoint=FILE
# model.backbone.mid_channels="[[40,52],[99,96],[200,80],[300,120]]"
_base_ = 'mask-rcnn_r18_fpn_ms-1x_coco.py'

model = dict(backbone=dict(type='us3l_mm.PrunedResNet', mid_channels=None))
