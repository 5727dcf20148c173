# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import os

import pytest
import torch

# Tests run side by side, and many start processes: a thread for each.
os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))


@pytest.fixture(autouse=True)
def _no_leftovers_of_a_runner():
    """MMEngine keeps its current scope, logger and message hub globally; a
    tool may trust all files for its process."""
    yield
    from us3l_mm.fileio import trust_pickle
    trust_pickle(False)
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer
    for manager in (MessageHub, MMLogger, DefaultScope, Visualizer,
                    *Visualizer.__subclasses__()):
        manager._instance_dict.clear()


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)
