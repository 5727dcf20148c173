# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Whether all processes of a run train the same network."""
import hashlib
import re
import socket
from typing import Any, Dict, Iterator, Tuple

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.runner import Runner


def check_agreement(runner: Runner) -> None:
    """Compare config, data and weights of all processes.

    Distributed training averages the gradients of whatever networks there
    are: processes with other widths, data orders or weights would train on
    without an error.

    Raises:
        ValueError: With what differs, and on which rank.
    """
    if get_world_size() == 1:
        return
    everyone = all_gather_object((socket.gethostname(), _facts(runner)))
    _, first = everyone[0]
    for rank, (host, facts) in enumerate(everyone):
        for name in sorted({*first, *facts}):
            if first.get(name) != facts.get(name):
                raise ValueError(
                    f'The processes would not train the same network: {name} '
                    f'is {facts.get(name)!r} on rank {rank} ({host}) and '
                    f'{first.get(name)!r} on rank 0. Start all of them with '
                    'the same command, code and data.')


def _facts(runner: Runner) -> Dict[str, Any]:
    """What has to be equal on all processes, by name."""
    loader = runner.train_dataloader
    facts: Dict[str, Any] = {
        f'the config key {key}': value
        for key, value in _leaves(runner.cfg.to_dict())}
    facts['the number of images'] = len(loader.dataset)
    facts['the number of iterations'] = runner.max_iters
    facts['the iteration to start at'] = runner.iter
    facts['the seed of the data order'] = getattr(loader.sampler, 'seed', None)
    facts['the checksum of the weights'] = _checksum(runner.model)
    return facts


def _checksum(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().view(-1).view(
            torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _leaves(value: Any, prefix: str = '') -> Iterator[Tuple[str, str]]:
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, child in items:
            yield from _leaves(child, f'{prefix}.{name}'.strip('.'))
    else:
        # The address of a function, which differs, is left out.
        yield prefix, re.sub(r' at 0x[0-9a-f]+', '', str(value))
