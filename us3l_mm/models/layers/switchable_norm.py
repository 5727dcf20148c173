# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Sequence

from torch import Tensor, nn

from us3l_mm.registry import MODELS
from .width import (FULL_WIDTH, SlimmableLayer, active_channels, check_width)


class SwitchableBatchNorm(SlimmableLayer, nn.Module):
    """One private batch norm per width of a fixed list.

    Affine parameters and running statistics are private, so every width keeps
    ordinary running statistics and needs no calibration; the price is that no
    other width can run. Source: slimmable networks, arXiv 1812.08928; also
    SlimCLR, 2209.15525.

    Args:
        num_features (int): Channels at full width.
        widths (Sequence[float]): The widths that can run. The full width is
            the one that a new layer starts at; it need not be listed.
        divisor (int): Channels are rounded to multiples of it. Defaults to 8.
        ratio (int): Expand ratio to round by. Defaults to 1.
        slice_channels (bool): Whether the channels narrow with the width.
            Defaults to True.
        **kwargs: Those of the plain batch norm (``eps``, ``momentum``, ...).

    Shapes: (N, c, ...) to the same.
    """

    plain_type = None
    active_norm = None

    def __init__(self, num_features: int, widths: Sequence[float],
                 divisor: int = 8, ratio: int = 1, slice_channels: bool = True,
                 **kwargs):
        super().__init__()
        if not widths:
            raise ValueError('A switchable batch norm needs a list of widths.')
        self.num_features = num_features
        self.widths = sorted({check_width(w) for w in widths}, reverse=True)
        self.norms = nn.ModuleList(
            self.plain_type(
                active_channels(num_features, w, divisor, ratio)
                if slice_channels else num_features, **kwargs)
            for w in self.widths)

    def on_width(self) -> None:
        # Every layer starts at full width; only to run there needs a norm.
        self.active_norm = (None if self.width == FULL_WIDTH else self._index(
            self.width))

    def _index(self, width: float) -> int:
        for index, known in enumerate(self.widths):
            if abs(known - width) < 1e-6:
                return index
        raise ValueError(
            f'Width {width:g} has no batch norm of its own: this network was '
            f'built for the widths {self.widths}. Use one of them, list it in '
            'norm_cfg.widths, or use SlimmableBatchNorm, which runs at any.')

    def forward(self, x: Tensor) -> Tensor:
        if self.active_norm is None:
            self.active_norm = self._index(self.width)
        return self.norms[self.active_norm](x)

    def plain(self, width: float) -> nn.Module:
        """A copy of the batch norm of ``width``."""
        chosen = self.norms[self._index(width)]
        norm = type(chosen)(chosen.num_features, chosen.eps, chosen.momentum,
                            chosen.affine)
        norm.to(next(iter(chosen.state_dict().values())))
        norm.load_state_dict(chosen.state_dict())
        return norm.train(self.training)


@MODELS.register_module()
class SwitchableBatchNorm1d(SwitchableBatchNorm):
    """:class:`SwitchableBatchNorm` of inputs (N, c) or (N, c, L)."""

    plain_type = nn.BatchNorm1d


@MODELS.register_module()
class SwitchableBatchNorm2d(SwitchableBatchNorm):
    """:class:`SwitchableBatchNorm` of inputs (N, c, H, W)."""

    plain_type = nn.BatchNorm2d
