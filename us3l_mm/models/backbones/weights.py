# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Which weights a backbone takes, and what it makes of those of a file."""
from typing import Dict, Optional

from mmpretrain.models import VisionTransformer
from torch import Tensor, nn

from us3l_mm.fileio import check_fit
from us3l_mm.models.layers import SlimmableLayer
from .slicing_record import SlicingRecord

State = Dict[str, Tensor]


class ChecksItsWeights:
    """Mix-in of a backbone that refuses weights of another network.

    MMEngine loads with ``strict=False`` and only logs what does not fit, so
    a checkpoint of another depth would leave a network half random. Here a
    missing parameter or one of another shape raises ValueError.

    Attributes:
        weights_required (bool): Whether a state dict must have the weights;
            False for the copy of a backbone inside a teacher.
        slicing_record (SlicingRecord, optional): What a network of a single
            width knows of the full one, to slice its weights on loading.
    """

    weights_required = True
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
        if isinstance(module, (ChecksItsWeights, VisionTransformer)):
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
