# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from contextlib import contextmanager
from typing import Iterator, List, Optional, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.models.layers import SlimmableConv2d, at_least_single
from us3l_mm.registry import MODELS


@MODELS.register_module()
class FeatureDistiller(nn.Module):
    """Match intermediate maps of a narrow student to the teacher's.

    A 1x1 convolution with a slimmable input and a full output lifts each map
    of the student to the teacher's channels; the loss is the mean squared
    error, averaged over maps and crosswise over views. Source: US3L,
    arXiv 2303.06870 (feature distillation, optional).

    Args:
        channels (sequence[int]): Full-width channels of all maps.
        outputs (sequence[int]): Which of the maps to match. Defaults to all
            of them.
        with_bias (bool): Whether the convolutions have biases. Defaults to
            False.
        loss_weight (float): Multiplies the loss. Defaults to 1.0.
        divisor (int): Channels are rounded to multiples of it. Defaults to 8.
        rounding (sequence[dict], optional): Instead, how each map narrows,
            see ``feature_rounding`` of the backbones. Defaults to None.
    """

    def __init__(self, channels: Sequence[int],
                 outputs: Optional[Sequence[int]] = None,
                 with_bias: bool = False, loss_weight: float = 1.0,
                 divisor: int = 8, rounding: Optional[Sequence[dict]] = None):
        super().__init__()
        self.outputs = tuple(
            range(len(channels)) if outputs is None else outputs)
        if not self.outputs or not set(self.outputs) <= set(
                range(len(channels))):
            raise ValueError(
                'feature_distiller.outputs names outputs of the backbone, '
                f'which has {len(channels)} (backbone.out_indices), got '
                f'{list(self.outputs)}.')
        self.loss_weight = loss_weight
        rounding = rounding or [dict(divisor=divisor)] * len(channels)
        self.projections = nn.ModuleList(
            SlimmableConv2d(channels[i], channels[i], 1, slice_out=False,
                            bias=with_bias, **rounding[i])
            for i in self.outputs)

    @classmethod
    def of(cls, backbone: nn.Module, modules: Sequence[str] = (),
           **kwargs) -> 'FeatureDistiller':
        """A distiller of the maps that :func:`encode` returns.

        Args:
            backbone (nn.Module): The student's; the teacher's is to be a copy
                of it.
            modules (sequence[str]): Modules of the backbone whose outputs are
                the maps, such as 'layer2.3.bn2', in the order in which they
                run. Defaults to none: the outputs of the backbone.
            **kwargs: Other arguments of the class.
        """
        backbone.map_modules = tuple(modules)
        if not modules:
            return cls(backbone.feature_channels(),
                       rounding=backbone.feature_rounding, **kwargs)
        layers = [backbone.get_submodule(name) for name in modules]
        return cls([
            getattr(layer, 'num_features', None) or layer.out_channels
            for layer in layers], divisor=backbone.divisor, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if self.projections[0].bias is None and any(
                key.startswith(prefix) and key.endswith('.bias')
                for key in state_dict):
            raise ValueError(
                f'The projections of the file ({prefix}projections) have '
                'biases, as ours had at first. Set model.feature_distiller.'
                'with_bias=True to load it or to go on with it.')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def loss(self, maps: Sequence[Tensor],
             targets: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar, of one view's maps against another's targets.

        Args:
            maps (sequence[Tensor]): The student's, each (N, c, H, W), or
                features (N, c).
            targets (sequence[Tensor]): The teacher's, each (N, C, H, W), or
                (N, C).
        """
        losses = [
            F.mse_loss(at_least_single(project(_as_map(maps[i]))),
                       at_least_single(_as_map(targets[i].detach())))
            for i, project in zip(self.outputs, self.projections)]
        return self.loss_weight * sum(losses) / len(losses)


@contextmanager
def inner_maps(backbone: nn.Module) -> Iterator[List[Tensor]]:
    """A list of the outputs of ``backbone.map_modules``, if it has any.

    A ReLU in place that follows a module changes its output too, in the
    reference's code as here: what is matched are rectified maps.
    """
    maps: List[Tensor] = []
    handles = [
        backbone.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: maps.append(output))
        for name in getattr(backbone, 'map_modules', ())]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _as_map(x: Tensor) -> Tensor:
    """``x`` itself, or features (N, c) as a map of one pixel."""
    return x[..., None, None] if x.ndim == 2 else x
