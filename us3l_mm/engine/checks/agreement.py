# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Do all processes of a run train the same thing?"""
import hashlib
import json
import re
import socket
from typing import Any, Dict

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.runner import Runner


def check_agreement(runner: Runner) -> None:
    """Compare what has to be equal on all processes.

    Distributed training averages gradients, of whatever networks: processes
    with other widths, data orders or weights would train on without an error.
    Clocks may differ.

    Raises:
        ValueError: names what differs, and on which ranks.
    """
    if get_world_size() == 1:
        return
    facts = _facts(runner)
    digests = all_gather_object(_digest(facts))
    if len(set(digests)) == 1:
        return
    everyone = all_gather_object((socket.gethostname(), facts))
    first = everyone[0][1]
    for rank, (host, theirs) in enumerate(everyone):
        for name in sorted({*first, *theirs}):
            ours, other = first.get(name), theirs.get(name)
            if ours != other:
                raise ValueError(
                    f'The processes would not train the same network: {name} '
                    f'is {other!r} on rank {rank} ({host}) and {ours!r} on '
                    'rank 0. Start all of them with the same command, code '
                    'and data.')


def _facts(runner: Runner) -> Dict[str, Any]:
    """By name, what has to be equal; plain values."""
    loader = runner.train_dataloader
    facts = {
        f'the config key {key}': value
        for key, value in _leaves(runner.cfg.to_dict()).items()
    }
    facts['the number of images'] = len(loader.dataset)
    facts['the number of iterations'] = runner.max_iters
    facts['the iteration to start at'] = runner.iter
    facts['the seed of the data order'] = getattr(loader.sampler, 'seed', None)
    facts['the checksum of the weights'] = weights_checksum(runner.model)
    return facts


def weights_checksum(model: torch.nn.Module) -> str:
    """Equal for equal weights, to the bit."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.removeprefix('module.').encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(
            torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _leaves(value: Any, prefix: str = '') -> Dict[str, str]:
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        # A function is printed with its address, which differs.
        return {prefix: re.sub(r' at 0x[0-9a-f]+', '', str(value))}
    return {
        key: leaf
        for name, child in items
        for key, leaf in _leaves(child, f'{prefix}.{name}'.strip('.')).items()
    }


def _digest(facts: Dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts,
                                     sort_keys=True).encode()).hexdigest()
