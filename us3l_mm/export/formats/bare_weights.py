# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""State dicts for the classes of other libraries."""
from importlib import import_module
from typing import Callable, Dict, Optional

from torch import Tensor, nn

from us3l_mm.fileio import to_bytes
from .artifact import Artifact, SlicedNetwork, read_back


def bare_weights(network: SlicedNetwork, weights: Dict[str, Tensor],
                 build: Callable[[], nn.Module], usage: str,
                 adapt: str = '') -> Artifact:
    """A file of ``weights`` for a network that returns features (N, c).

    Args:
        network (SlicedNetwork): The network that the weights are from.
        weights (dict): The weights, with the keys of the other library. They
            share memory with ``network.plain``, whose statistics may be loaded
            later.
        build (callable): A function that builds the network of that library.
        usage (str): Python code that builds it and names it ``network``.
        adapt (str): Python code that changes it, given the ``weights`` of the
            file, before they are loaded. Defaults to ''.
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
weights = torch.load({network.out!r}, weights_only=True)['state_dict']
{adapt}\
network.load_state_dict(weights)
features = network.eval()(images)  # (N, {network.map_channels[-1]})
""")


def weights_for(network: SlicedNetwork, weights: Dict[str, Tensor],
                module: str, name: str, arguments: dict,
                head: Optional[str] = None, remark: str = '') -> Artifact:
    """:func:`bare_weights` for the network ``module.name(**arguments)``.

    Args:
        network, weights: The arguments of :func:`bare_weights`.
        module (str): The module to import.
        name (str): The name of a class or function in it.
        arguments (dict): Its keyword arguments, of plain values.
        head (str, optional): The attribute that is the classifier, which is
            removed. Defaults to None: there is no classifier.
        remark (str): A comment above the usage. Defaults to ''.
    """

    def build():
        loaded = getattr(import_module(module), name)(**arguments)
        if head is not None:
            setattr(loaded, head, nn.Identity())
        return loaded

    listed = ''.join(f'\n    {key}={value!r},'
                     for key, value in arguments.items())
    usage = f'{remark}from {module} import {name}\n\n'
    usage += f'network = {name}({listed})\n'
    if head is not None:
        usage += f'network.{head} = torch.nn.Identity()\n'
    return bare_weights(network, weights, build, usage)


def cannot_hold(library: str, reason: str,
                formats: str = 'mmpretrain, mmdet or onnx') -> ValueError:
    """The error for a network that ``library`` has no class for."""
    return ValueError(f'{library} cannot hold this network: {reason}. Use '
                      f'--format {formats}.')
