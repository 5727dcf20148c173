# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The random states of a process, as numbers and tensors."""
import random
from contextlib import contextmanager
from typing import Iterator

import numpy as np
import torch


def random_states() -> dict:
    """The states of Python, NumPy, PyTorch and the current GPU."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = dict(
        python=(version, torch.tensor(words, dtype=torch.int64), gauss),
        numpy=(kind, torch.from_numpy(keys.astype(np.int64)), int(position),
               int(has_gauss), float(cached)), torch=torch.get_rng_state())
    if torch.cuda.is_available():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict) -> None:
    """Restore the result of :func:`random_states`."""
    version, words, gauss = states['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, *rest = states['numpy']
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    # A resumed checkpoint is on the device of the model; states are not.
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


def seed_all(*words: int) -> None:
    """Seed all generators with a hash of ``words``."""
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Run a block seeded by :func:`seed_all`, and restore the states."""
    states = random_states()
    seed_all(*words)
    try:
        yield
    finally:
        set_random_states(states)
