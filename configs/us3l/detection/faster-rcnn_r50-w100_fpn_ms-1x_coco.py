# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# Faster R-CNN on a slice of width 1: MMDetection's own ResNet, and the file that
# tools/slice_checkpoint.py CKPT FILE --width 1.0 --format mmdet writes.
_base_ = '../../_base_/detection/faster-rcnn_r50_fpn_ms-1x_coco.py'
