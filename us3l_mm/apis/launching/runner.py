# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Building a Runner, and checking what it was built of."""
import os.path as osp

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.fileio import check_fit
from us3l_mm.models.backbones.weights import adapt_weights


class EmptyDatasetError(ValueError):
    """A training set without a single batch."""


def build_runner(cfg: Config) -> Runner:
    """The Runner of ``cfg``, of the type that it may name."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def check_batches(runner: Runner) -> None:
    """Refuse a training set that is smaller than a batch.

    Raises:
        EmptyDatasetError: With the number of images.
    """
    try:
        loader = runner.train_dataloader
    except ValueError as error:  # MMEngine joins the annotations of no image
        if 'need at least one array to concatenate' not in str(error):
            raise
        raise EmptyDatasetError(
            'No image is left in the training set: its annotation file lists '
            'none, or dataset.filter_cfg of the config removes all (images '
            'without instances, or smaller than min_size).') from None
    if len(loader) == 0:
        raise EmptyDatasetError(
            f'The training set has {len(loader.dataset)} images, '
            f'{len(loader.sampler)} for each process, which is less than a '
            'batch: lower train_dataloader.batch_size, now '
            f'{loader.batch_size}, or give more images.')


def check_all_loaded(runner: Runner, path: str) -> None:
    """Refuse a checkpoint that would leave some layers random.

    MMEngine only logs the parameters that a checkpoint lacks.

    Raises:
        ValueError: As :func:`~us3l_mm.fileio.check_fit`.
    """
    model = get_ori_model(runner.model)
    weights = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    check_fit(dict(model.named_parameters()),
              adapt_weights(model, weights.get('state_dict', weights)),
              type(model).__name__,
              'Test what tools/train.py wrote for this config.', path)


def dump_predictions(runner: Runner, path: str) -> None:
    """Let a test write its predictions, to one file for each sub-network."""
    loop = runner.test_loop
    if not hasattr(loop, 'evaluators'):
        loop.evaluator.metrics.append(DumpResults(path))
        return
    stem, ending = osp.splitext(path)
    for subnet, evaluator in loop.evaluators.items():
        evaluator.metrics.append(DumpResults(f'{stem}_{subnet}{ending}'))
