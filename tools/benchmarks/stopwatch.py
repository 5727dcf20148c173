# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Times of named calls."""
import time

import torch


class Stopwatch:
    """Milliseconds of named calls, a list per name, an entry per round.

    Args:
        device (str): Where the calls run.
        clock (callable): The time in seconds. Defaults to the time that
            passes.
    """

    def __init__(self, device, clock=time.perf_counter):
        self.clock = clock
        self.wait = (torch.cuda.synchronize
                     if 'cuda' in device else lambda: None)
        self.times = {}

    def __call__(self, name, call):
        self.wait()
        start = self.clock()
        result = call()
        self.wait()
        self.times.setdefault(name, []).append(1000 * (self.clock() - start))
        return result

    def ms(self, *names):
        """Per round, the sum of the calls of ``names``."""
        return [sum(values) for values in zip(*map(self.times.get, names))]
