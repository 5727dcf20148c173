# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The interface of a family of backbones."""
import inspect
from abc import ABC, abstractmethod
from typing import Dict, Optional, Tuple

from torch import nn

from us3l_mm.models.layers import SlimmableLayer

# The defaults of our classes
DIVISOR, WIDTH_RANGE = 8, (0.25, 1.0)


class Family(ABC):
    """A family of slimmable backbones, and the stock classes of its slices.

    Attributes:
        name (str): The name in messages.
        slimmable (tuple[type, ...]): The slimmable classes.
        mmdet_names (tuple[str, ...]): Stock classes that MMDetection has with
            the same name, layers and keys.
    """

    name: str
    slimmable: Tuple[type, ...]
    mmdet_names: Tuple[str, ...] = ()

    @abstractmethod
    def stock_class(self, backbone: nn.Module) -> type:
        """MMPretrain's class that ``backbone`` extends."""

    @abstractmethod
    def arguments(self, backbone: nn.Module) -> dict:
        """The constructor arguments of ``backbone`` that are not defaults."""

    @abstractmethod
    def plain_arguments(self, backbone: nn.Module,
                        width: float) -> Optional[dict]:
        """The arguments of the stock class for ``backbone`` at ``width``.

        None if that class cannot have these channels.
        """

    def own_arguments(self, backbone: nn.Module, width: float) -> dict:
        """The config of our class for ``backbone`` at ``width``."""
        arguments = self.arguments(backbone)
        if backbone.divisor != DIVISOR:
            arguments['divisor'] = backbone.divisor
        if not WIDTH_RANGE[0] <= width <= WIDTH_RANGE[1]:
            arguments['width_range'] = backbone.width_range
        return dict(type=f'us3l_mm.{type(backbone).__name__}', **arguments,
                    width=width)

    def architecture(self, backbone: nn.Module) -> dict:
        """The full network in the description of a file."""
        return dict(type=self.stock_class(backbone).__name__,
                    **self.arguments(backbone))

    @abstractmethod
    def map_channels(self, plain: nn.Module) -> Tuple[int, ...]:
        """The channels of the feature maps for a detector, finest first."""

    @abstractmethod
    def map_indices(self, plain: nn.Module) -> Tuple[int, ...]:
        """The ``out_indices`` of these feature maps."""

    def detector_arguments(self, plain: nn.Module) -> dict:
        """The arguments with which a backbone returns these feature maps."""
        return dict(out_indices=self.map_indices(plain))

    def detector_neck(self, plain: nn.Module) -> dict:
        """The arguments of a neck that reads these feature maps."""
        return dict(in_channels=list(self.map_channels(plain)))

    def input_size(self, backbone: nn.Module) -> int:
        """The side, in pixels, of the square images it is meant for."""
        return 32 if 'CIFAR' in type(backbone).__name__ else 224


def non_default(arguments: dict, cls: type) -> dict:
    """The ``arguments`` that differ from the defaults of ``cls``."""
    defaults = inspect.signature(cls).parameters
    shaping = {}
    for name, value in arguments.items():
        default = defaults[name].default
        if isinstance(default, tuple):
            value = tuple(value)
        if value != default:
            shaping[name] = value
    return shaping


def same_channels(backbone: nn.Module, width: float, stock: nn.Module) -> bool:
    """Whether ``backbone`` at ``width`` has the channels of ``stock``."""
    there = layer_channels(stock)
    return all(
        there.get(name) == layer.active(width)
        for name, layer in backbone.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
        and isinstance(layer, SlimmableLayer))


def layer_channels(network: nn.Module) -> Dict[str, Tuple[int, int]]:
    """(input, output) channels of convolutions and linear layers, by name."""
    return {
        name: ((layer.in_channels,
                layer.out_channels) if isinstance(layer, nn.Conv2d) else
               (layer.in_features, layer.out_features))
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))}


def output_channels(network: nn.Module) -> Dict[str, int]:
    """Output channels of every convolution and linear layer, by name."""
    return {name: size[1] for name, size in layer_channels(network).items()}
