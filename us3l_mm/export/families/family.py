# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the export knows of a kind of backbone."""
import inspect
from abc import ABC, abstractmethod
from typing import Dict, Optional, Tuple

from torch import nn

from us3l_mm.models.layers import SlimmableLayer


class Family(ABC):
    """A kind of slimmable backbone, and what it is sliced to.

    Attributes:
        name (str): To be read.
        slimmable (tuple[type, ...]): The classes of ours.
        mmdet_names (tuple[str, ...]): Stock classes that MMDetection has under
            the same name, with the same layers and keys.
    """

    name: str
    slimmable: Tuple[type, ...]
    mmdet_names: Tuple[str, ...] = ()

    @abstractmethod
    def stock_class(self, backbone: nn.Module) -> type:
        """MMPretrain's class that ``backbone`` extends."""

    @abstractmethod
    def arguments(self, backbone: nn.Module) -> dict:
        """The arguments that shape ``backbone``, defaults left out."""

    @abstractmethod
    def plain_arguments(self, backbone: nn.Module,
                        width: float) -> Optional[dict]:
        """Arguments of the stock class that ``backbone`` is at ``width``.

        None where that class cannot have these channels.
        """

    @abstractmethod
    def map_channels(self, plain: nn.Module) -> Tuple[int, ...]:
        """Channels of all maps for a detector, those of the features last.
        """

    @abstractmethod
    def map_indices(self, plain: nn.Module) -> Tuple[int, ...]:
        """The ``out_indices`` of these maps."""

    def detector_arguments(self, plain: nn.Module) -> dict:
        """Those of the backbone with which it gives these maps."""
        return dict(out_indices=self.map_indices(plain))

    def detector_neck(self, plain: nn.Module) -> dict:
        """What says to the neck which maps these are."""
        return dict(in_channels=list(self.map_channels(plain)))

    def input_size(self, backbone: nn.Module) -> int:
        """Side in pixels of the square images that it is meant for."""
        return 32 if 'CIFAR' in type(backbone).__name__ else 224


def non_default(arguments: dict, cls: type) -> dict:
    """Those of ``arguments`` that differ from the defaults of ``cls``."""
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
    """Whether ``backbone`` at ``width`` has the layer sizes of ``stock``."""
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
