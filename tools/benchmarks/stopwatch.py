# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Times of named calls."""
import time

import torch


class Stopwatch:
    """Milliseconds of named calls, a list per name, an entry per round."""

    def __init__(self, device):
        self.wait = (torch.cuda.synchronize
                     if 'cuda' in device else lambda: None)
        self.times = {}

    def __call__(self, name, call):
        self.wait()
        start = time.perf_counter()
        result = call()
        self.wait()
        self.times.setdefault(name,
                              []).append(1000 * (time.perf_counter() - start))
        return result

    def ms(self, *names):
        """Per round, the sum of the calls of ``names``."""
        return [sum(values) for values in zip(*map(self.times.get, names))]
