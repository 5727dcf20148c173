# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What slimmable backbones share, and what they make of a file's weights."""
from typing import Dict, Optional, Tuple

from mmpretrain.models import VisionTransformer
from torch import Tensor, nn

from us3l_mm.fileio import check_fit
from us3l_mm.models.layers import (SlimmableLayer, Subnet, SubnetLike,
                                   active_channels, active_steps)
from .slicing import slice_layers
from .slicing_record import SlicingRecord

State = Dict[str, Tensor]


class SlimmableBackbone(nn.Module):
    """Mix-in in front of a backbone of MMPretrain, over slimmable layers.

    A subclass defines :meth:`output_channels` and :attr:`feature_rounding`.

    It refuses the weights of another network. MMEngine loads with
    ``strict=False`` and only logs what does not fit, so a checkpoint of
    another depth would leave a network half random. Here a missing parameter
    or one of another shape raises ValueError.

    Attributes:
        width (float, optional): The width of an ordinary network; None for a
            network that runs at any width.
        width_range (tuple[float, float]): Lowest and highest width that may
            be set.
        weights_required (bool): Whether a state dict must have the weights;
            False for the copy of a backbone inside a teacher.
        prefers_channels_last (bool): Whether training is faster in the
            channels-last memory format.
        slicing_record (SlicingRecord, optional): What a network of a single
            width knows of the full one, to slice its weights on loading.
    """

    width: Optional[float] = None
    width_range: Tuple[float, float]
    weights_required = True
    prefers_channels_last = True
    slicing_record: Optional[SlicingRecord] = None

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        adapt_backbone(self, state_dict, prefix)
        given = {
            key[len(prefix):]: value for key, value in state_dict.items()
            if key.startswith(prefix)}
        own = dict(self.named_parameters())
        found = any(name in given for name in own)
        if found or self.weights_required:
            check_fit(
                own, given, describe(self),
                'Use the checkpoint of a network of the same depth and '
                'channels, or build this one like the checkpoint '
                '(backbone.depth).', prefix=prefix, parts=self._modules,
                keys=list(state_dict))
        if found and self.slicing_record is not None:
            self.slicing_record.pick_statistics(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def slice_to(self, width: float, on_missing: str = 'error') -> None:
        """Become an ordinary network of ``width``; see SlicingRecord."""
        subnet = Subnet.of(width).check(self.width_range)
        self.slicing_record = SlicingRecord(self, subnet, on_missing)
        slice_layers(self, subnet)

    def on_slice(self, subnet: Subnet) -> None:
        """Update what depends on channels, now that all layers are plain."""
        self.width = subnet.width
        self.width_range = (subnet.width, subnet.width)

    def output_channels(self) -> Tuple[int, ...]:
        """The channels of each output (``out_indices``) at full width."""
        raise NotImplementedError(
            f'{type(self).__name__} does not define output_channels().')

    @property
    def feature_rounding(self) -> Tuple[dict, ...]:
        """The arguments of a slimmable layer that reads each output."""
        return (dict(divisor=self.divisor), ) * len(self.out_indices)

    def feature_channels(
            self, width: Optional[SubnetLike] = None) -> Tuple[int, ...]:
        """The channels of each output (``out_indices``) at ``width``.

        Args:
            width (Subnet, float or str, optional): Defaults to the width that
                the network was built for, and else to the full width.
        """
        channels = self.output_channels()
        if width is not None:
            width = Subnet.of(width).check(self.width_range).width
        if width is None or self.width is not None:
            return channels
        return tuple(
            active_channels(c, width, rounding['divisor']) if 'divisor' in
            rounding else active_steps(c, width, rounding['steps'])
            if 'steps' in rounding else c  # slice_in=False
            for c, rounding in zip(channels, self.feature_rounding))

    @property
    def out_channels(self) -> Tuple[int, ...]:
        """:meth:`feature_channels` as built, for the neck."""
        return self.feature_channels()

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        return self  # MMPretrain's backbones return None


def adapt_backbone(backbone: nn.Module, state_dict: State,
                   prefix: str = '') -> None:
    """Give the weights of a file the names and shapes of ``backbone``.

    Works in place: positions of another image size are resized, weights of
    the full network are sliced for a network of a single width, and keys of
    older files are renamed. What does not fit stays as it is.

    Args:
        backbone (nn.Module): Ours, or a plain one.
        state_dict (dict): The weights of the file.
        prefix (str): Of the keys of the backbone in it. Defaults to ''.
    """
    positions = state_dict.get(f'{prefix}pos_embed')
    if (isinstance(backbone, VisionTransformer) and positions is not None
            and positions.shape[1] != backbone.pos_embed.shape[1]):
        backbone._prepare_pos_embed(state_dict, prefix)
    record = getattr(backbone, 'slicing_record', None)
    if record is not None:
        record.slice_parameters(backbone, state_dict, prefix)
    for name, layer in backbone.named_modules(prefix=prefix.removesuffix('.')):
        if isinstance(layer, SlimmableLayer):
            layer.adapt_file(state_dict, f'{name}.')


def adapt_weights(model: nn.Module, weights: State) -> State:
    """A copy of ``weights`` as all backbones within ``model`` load them."""
    weights = dict(weights)
    for name, module in model.named_modules():
        if isinstance(module, (SlimmableBackbone, VisionTransformer)):
            adapt_backbone(module, weights, f'{name}.' if name else '')
    return weights


def describe(backbone: nn.Module) -> str:
    """For instance 'SlimmableResNet(depth=18, width=0.5)'."""
    shown = ('depth', 'widen_factor', 'embed_dims', 'num_heads', 'slicing',
             'width')
    said = [(name, getattr(backbone, name, None)) for name in shown]
    listed = ', '.join(f'{name}={value:g}'
                       if isinstance(value, float) else f'{name}={value!r}'
                       for name, value in said if value is not None)
    return f'{type(backbone).__name__}({listed})'
