# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Small networks that SlimCLR trains, by the name of their method."""
import torch
import torch.nn.functional as F
from algorithms import randomise

from us3l_mm.registry import MODELS

WIDTHS = [1.0, 0.5, 0.25]
HIDDEN, OUT = 64, 12
QUEUE = 20


def norm_cfg(dims, widths):
    return dict(type=f'us3l_mm.SwitchableBatchNorm{dims}d', subnets=widths)


def model_cfg(method, widths=WIDTHS, distill=True, **changes):
    """The config of an algorithm whose backbone ends in 64 channels."""
    backbone = dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=18,
                    base_channels=32, stem_channels=32, num_stages=2,
                    strides=(1, 2), dilations=(1, 1), out_indices=(1, ),
                    norm_cfg=norm_cfg(2, widths))
    neck = dict(type='us3l_mm.SlimmableProjector', in_channels=64,
                hid_channels=HIDDEN, out_channels=OUT, num_layers=2,
                slice_hidden=True, norm_cfg=norm_cfg(1, widths))
    cfg = dict(type='us3l_mm.SlimCLR', backbone=backbone, neck=neck,
               data_preprocessor=dict(mean=[120.] * 3, std=[60.] * 3))
    temperature = 5.0
    if method == 'moco_v2':
        neck.update(norm_cfg=None, with_bias=True, with_last_bias=True,
                    with_last_bn=False)
        cfg.update(
            head=dict(type='us3l_mm.MoCoV2Contrast', channels=OUT,
                      queue_length=QUEUE), teacher=dict(momentum=0.01))
    elif method == 'moco_v3':
        neck.update(with_last_bn_affine=False)
        predictor = dict(type='us3l_mm.Predictor', in_channels=OUT,
                         hid_channels=HIDDEN, out_channels=OUT, num_layers=2,
                         slice_hidden=True, with_last_bn=False,
                         norm_cfg=norm_cfg(1, widths))
        cfg.update(
            head=dict(type='us3l_mm.MoCoV3Contrast', predictor=predictor),
            teacher=dict(momentum=0.01))
        temperature = 1.0
    else:
        neck.update(with_bias=True)
        cfg.update(head=dict(type='us3l_mm.SimCLRContrast'))
    if distill is True:
        distill = dict(type='us3l_mm.SimilarityDistillation',
                       temperature=temperature)
    if distill:
        cfg['distill'] = distill
    return {**cfg, **changes}


def small_slimclr(method, **kwargs):
    """In float64, with random parameters and a queue of random keys."""
    algorithm = MODELS.build(model_cfg(method, **kwargs))
    randomise(algorithm.double().train())
    if method == 'moco_v2':
        generator = torch.Generator().manual_seed(2)
        algorithm.head.queue.copy_(
            F.normalize(torch.randn(QUEUE, OUT, generator=generator)))
    return algorithm
