# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""MMPretrain's MobileNetV2 over slimmable layers."""
from typing import Sequence, Tuple

from mmcv.cnn import ConvModule, build_norm_layer
from mmpretrain.models import MobileNetV2
from mmpretrain.models.backbones.mobilenet_v2 import InvertedResidual

from us3l_mm.models.layers import Subnet
from us3l_mm.registry import MODELS
from .slimmable_cnn import SlimmableCNN

# conv1 is stage 0, layer1 to layer7 follow, and conv2 is the last.
LAST_STAGE = 8


@MODELS.register_module()
class SlimmableMobileNetV2(SlimmableCNN, MobileNetV2):
    """A MobileNetV2 that runs at any width on one copy of weights.

    MMPretrain's :class:`~mmpretrain.models.MobileNetV2` over slimmable layers:
    same arguments, same state-dict keys, same initial weights, equal at full
    width. Hidden channels of a block are its ratio (6) times its active input
    channels at every width, so that a width w has the channels of
    ``MobileNetV2(widen_factor=w)``, with the leading ones of the weights. It
    is that network, too, for w above 0.28; below, stem and first stage have
    8 channels each, and the stock class adds a shortcut. The last 1x1
    convolution narrows at its input only: its 1280 output channels are there
    at every width. What is in them differs all the same, so that its norm has
    statistics per width as all others; the reference's plain norm averages
    over widths. Sources: US3L, arXiv 2303.06870; US-Nets, 1903.05134;
    MobileNetV2, 1801.04381.

    Args:
        widen_factor (float): Of the full network. Defaults to 1.0.
        out_indices (sequence[int]): From 0 to 6 for the seven stages of
            blocks, 7 for the last convolution. Defaults to (7, ).
        frozen_stages (int): From -1 (none) over 0 (the stem) and 1 to 7 (the
            stages of blocks up to it) to 8 (everything), which MMPretrain's
            does not have. Norms of frozen stages, the stem's among them, are
            in evaluation mode. Defaults to -1.
        width_range (tuple[float, float]), divisor (int), norm_cfg (dict,
            optional), width (float, optional), missing_statistics (str): As of
            :class:`SlimmableResNet`.
        **kwargs: Those of MMPretrain's MobileNetV2 (``act_cfg``,
            ``norm_eval``, ``with_cp``, ...).

    Shapes: (N, 3, H, W) to a tuple of maps; the last is (N, 1280, H / 32,
    W / 32).

    Example:
        >>> from us3l_mm.models import SlimmableMobileNetV2, at_width
        >>> net = SlimmableMobileNetV2(out_indices=(4, 7)).train()
        >>> with at_width(net, 0.5):
        ...     print([list(m.shape) for m in net(torch.rand(2, 3, 64, 64))])
        [[2, 48, 4, 4], [2, 1280, 2, 2]]
    """

    def __init__(self, widen_factor: float = 1.0,
                 out_indices: Sequence[int] = (7, ), frozen_stages: int = -1,
                 **kwargs):
        if frozen_stages not in range(-1, LAST_STAGE + 1):
            raise ValueError(
                f'frozen_stages is from -1 (none) to {LAST_STAGE} '
                f'(everything), got {frozen_stages!r}.')
        self._freeze_up_to = frozen_stages
        super().__init__(widen_factor=widen_factor,
                         out_indices=out_indices, frozen_stages=min(
                             frozen_stages, LAST_STAGE - 1), **kwargs)
        self._freeze_stages()

    def adapt_layers(self) -> None:
        self.frozen_stages = self._freeze_up_to
        for block in self.modules():
            if isinstance(block, InvertedResidual):
                *expand, depthwise, project = block.conv
                ratio = (depthwise.out_channels //
                         expand[0].in_channels if expand else 1)
                for module in expand:
                    self._round(module, (1, ratio))
                self._round(depthwise, (ratio, ratio))
                self._round(project, (ratio, 1))
        self.conv2.conv.slice_out = False
        self.conv2.conv.on_subnet()
        self._set_norm(self.conv2, slice_channels=False)

    def _round(self, module: ConvModule, ratio: Tuple[int, int]) -> None:
        module.conv.ratio = ratio
        module.conv.on_subnet()
        self._set_norm(module, ratio=ratio[1])

    def _set_norm(self, module: ConvModule, **kwargs) -> None:
        _, norm = build_norm_layer({
            **self.norm_cfg,
            **kwargs}, module.norm.num_features)
        setattr(module, module.norm_name, norm)

    def on_slice(self, subnet: Subnet) -> None:
        for module in self.modules():
            if isinstance(module, ConvModule):
                for name in ('in_channels', 'out_channels', 'groups'):
                    setattr(module, name, getattr(module.conv, name))
        self.in_channels = self.conv2.in_channels
        super().on_slice(subnet)

    def output_channels(self) -> Tuple[int, ...]:
        last = [getattr(self, name)[-1].conv[-1] for name in self.layers[:-1]]
        return tuple((*last, self.conv2)[i].conv.out_channels
                     for i in self.out_indices)

    @property
    def feature_rounding(self) -> Tuple[dict, ...]:
        return tuple(
            dict(divisor=self.divisor) if i < len(self.layers) -
            1 else dict(slice_in=False) for i in self.out_indices)

    def _freeze_stages(self) -> None:
        stages = [self.conv1, *(getattr(self, name) for name in self.layers)]
        for stage in stages[:self.frozen_stages + 1]:
            stage.eval().requires_grad_(False)


@MODELS.register_module()
class SlimmableMobileNetV2_CIFAR(SlimmableMobileNetV2):
    """:class:`SlimmableMobileNetV2` for small images.

    The strides of the stem and of the second stage of blocks are 1 instead of
    2, as in the reference (arXiv 2303.06870): maps of the last convolution
    are (N, 1280, H / 8, W / 8), 4 x 4 for images of 32 pixels. MMPretrain has
    no such network; its weights are those of a MobileNetV2.
    """

    arch_settings = [[*setting[:3], 1] if i == 1 else setting
                     for i, setting in enumerate(MobileNetV2.arch_settings)]

    def adapt_layers(self) -> None:
        super().adapt_layers()
        self.conv1.conv.stride = self.conv1.stride = (1, 1)
