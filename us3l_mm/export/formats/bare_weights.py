# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A state dict for a class of another library."""
from typing import Callable, Dict

from torch import Tensor, nn

from us3l_mm.fileio import to_bytes
from .artifact import Artifact, SlicedNetwork, read_back


def bare_weights(network: SlicedNetwork, weights: Dict[str, Tensor],
                 build: Callable[[], nn.Module], usage: str) -> Artifact:
    """A file of ``weights``, which gives features.

    Args:
        network (SlicedNetwork): What they are of.
        weights (dict): Under the keys of the other library. They share the
            memory of ``network.plain``, whose statistics may be loaded later.
        build (callable): Makes its network, whose output is the features.
        usage (str): Python that does the same and calls it ``network``.
    """

    def write():
        return to_bytes(dict(state_dict=weights, meta=network.meta))

    def run(content, images):
        loaded = build()
        loaded.load_state_dict(read_back(content)['state_dict'], strict=True)
        return [loaded.eval()(images)]

    return Artifact(
        write, run, f"""\
import torch
{usage}\
network.load_state_dict(
    torch.load({network.out!r}, weights_only=True)['state_dict'])
features = network.eval()(images)  # (N, {network.map_channels[-1]})
""")


def cannot_hold(library: str, reason: str,
                formats: str = 'mmpretrain, mmdet or onnx') -> ValueError:
    """The error for a network that no class of ``library`` can express."""
    return ValueError(f'{library} cannot hold this network: {reason}. Use '
                      f'--format {formats}.')
