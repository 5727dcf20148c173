# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the convolutional backbones share."""
from typing import Optional, Tuple

from torch import nn

from us3l_mm.models.layers import SlimmableConv2d, Subnet, check_width_range
from .weights import SlimmableBackbone

NORMS = {
    'BN': 'us3l_mm.SlimmableBatchNorm2d',
    'BN2d': 'us3l_mm.SlimmableBatchNorm2d',
    'SwitchableBN': 'us3l_mm.SwitchableBatchNorm2d', }


class SlimmableCNN(SlimmableBackbone):
    """Mix-in in front of a convolutional backbone of MMPretrain.

    The backbone takes ``conv_cfg``, ``norm_cfg``, ``frozen_stages`` and
    ``norm_eval``. This mix-in builds it over slimmable layers, and slices it
    if a ``width`` is given. A subclass adapts its layers in
    :meth:`adapt_layers` and :meth:`on_slice`.
    """

    def __init__(self, *args, width_range: Tuple[float, float] = (0.25, 1.0),
                 divisor: int = 8, conv_cfg: Optional[dict] = None,
                 norm_cfg: Optional[dict] = None,
                 width: Optional[float] = None,
                 missing_statistics: str = 'error', **kwargs):
        if conv_cfg is not None:
            raise ValueError(
                f'{type(self).__name__} brings its own convolutions, got '
                f'conv_cfg={conv_cfg!r}; leave it out.')
        norm_cfg = dict(norm_cfg or dict(type='BN'))
        sync = norm_cfg['type'] == 'SyncBN'
        if sync:
            if width is None:  # statistics would mix several widths
                raise ValueError(
                    "norm_cfg.type='SyncBN' is for a network of a single "
                    'width: set width=0.5, say. Pre-training synchronises its '
                    'norms by model.sync_norms=True.')
            norm_cfg['type'] = 'BN'
        if norm_cfg['type'] not in {*NORMS, *NORMS.values()}:
            raise ValueError(f'norm_cfg.type is one of {sorted(NORMS)}, got '
                             f'{norm_cfg["type"]!r}.')
        norm_cfg['type'] = NORMS.get(norm_cfg['type'], norm_cfg['type'])
        norm_cfg['divisor'] = divisor
        if 'widths' in norm_cfg:  # a list without modes
            norm_cfg['subnets'] = norm_cfg.pop('widths')
        super().__init__(
            *args, norm_cfg=norm_cfg, conv_cfg=dict(
                type='us3l_mm.SlimmableConv2d', divisor=divisor), **kwargs)
        self.width_range = check_width_range(width_range)
        self.divisor = divisor
        # The stem sees the whole image at every width.
        stem = next(m for m in self.modules()
                    if isinstance(m, SlimmableConv2d))
        stem.slice_in = False
        stem.on_subnet()
        self.adapt_layers()
        if width is not None:
            if missing_statistics == 'reset' and (self.norm_eval
                                                  or self.frozen_stages >= 0):
                raise ValueError(
                    "missing_statistics='reset' needs norms that train, got "
                    f'norm_eval={self.norm_eval}, '
                    f'frozen_stages={self.frozen_stages}: frozen norms would '
                    'normalise by the statistics of a new layer for ever.')
            self.slice_to(width, missing_statistics)
            if sync:
                nn.SyncBatchNorm.convert_sync_batchnorm(self)
        elif missing_statistics != 'error':
            raise ValueError('missing_statistics is for a network of a single '
                             'width, got it without a width.')

    def adapt_layers(self) -> None:
        """Change the layers that narrow in another way than the others."""

    def on_slice(self, subnet: Subnet) -> None:
        super().on_slice(subnet)
        self._freeze_stages()
