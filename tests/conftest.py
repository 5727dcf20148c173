# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import gc
import os

import pytest
import torch
import brief  # noqa: F401

# Tests run side by side, and many start processes: a thread for each.
os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))

# Files that take a dozen seconds and more, the longest first.
LONG = [
    f'test_{name}.py'
    for name in ('faults', 'distributed', 'us3l_checkpoints', 'pruned_export',
                 'benchmarks', 'configs', 'readme', 'width_knn_hook',
                 'exact_resume', 'slice_tool', 'vit_export', 'gate_evaluation',
                 'mobilenet_tools', 'detection_configs', 'detection_run',
                 'slimclr_checkpoints', 'gated_configs', 'slimclr_configs',
                 'train_step', 'gradient_diagnosis', 'evaluate_widths')]


def pytest_collection_modifyitems(items):
    """Begin with the long files, so that no worker ends long after others."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


def pytest_collection_finish():
    """Leave what is imported out of collections.

    A data set of MMEngine calls the garbage collector when it is built, and
    that would visit every object of every library.
    """
    gc.freeze()


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
