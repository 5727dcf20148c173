# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""MobileNetV2 written out from its paper, on dictionaries of tensors.

As ``naive.py``, whose trainer it is put into; strides are those for CIFAR.
"""
import torch.nn.functional as F
from naive import channels, norm

# Expand ratio, channels, blocks, first stride (arXiv 1801.04381, table 2)
STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
          (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def relu6(x):
    return x.clamp(0, 6)


def mobilenet_v2(x, params, width, prefix='backbone.'):
    """The map of the last convolution, as the only output."""

    def conv(x, name, c_out, stride=1, groups=1):
        weight = params[f'{prefix}{name}.conv.weight']
        weight = weight[:c_out, :1 if groups > 1 else x.shape[1]]
        x = F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, groups)
        return norm(x, params, f'{prefix}{name}.bn')

    x = relu6(conv(x, 'conv1', channels(32, width)))
    for stage, (expand, full, blocks, stride) in enumerate(STAGES):
        for block in range(blocks):
            name = f'layer{stage + 1}.{block}.conv.'
            y, hidden, index = x, expand * x.shape[1], 0
            if expand > 1:
                y, index = relu6(conv(y, f'{name}0', hidden)), 1
            # For images of 32 pixels the second stage keeps the size.
            step = stride if block == 0 and stage != 1 else 1
            y = relu6(conv(y, f'{name}{index}', hidden, step, hidden))
            y = conv(y, f'{name}{index + 1}', channels(full, width))
            x = x + y if block > 0 else y
    return [relu6(conv(x, 'conv2', 1280))]


def size(width, pixels=224):
    """(parameters, multiply-accumulates) without a classifier, by hand."""

    def layer(c_in, c_out, kernel, side, groups=1):
        weights = kernel * kernel * c_in // groups * c_out
        return weights + 2 * c_out, weights * side * side

    c_in, side = channels(32, width), pixels // 2
    layers = [layer(3, c_in, 3, side)]
    for expand, full, blocks, stride in STAGES:
        for block in range(blocks):
            hidden, c_out = expand * c_in, channels(full, width)
            if expand > 1:
                layers.append(layer(c_in, hidden, 1, side))
            side //= stride if block == 0 else 1
            layers.append(layer(hidden, hidden, 3, side, hidden))
            layers.append(layer(hidden, c_out, 1, side))
            c_in = c_out
    layers.append(layer(c_in, 1280, 1, side))
    return tuple(map(sum, zip(*layers)))
