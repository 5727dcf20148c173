# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Building a Runner, and checking what it was built of."""
import os.path as osp
import re
import shutil
from contextlib import contextmanager
from logging import FileHandler, LogRecord
from pathlib import Path
from typing import Iterator

from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner
from mmpretrain.models import ImageClassifier
from mmpretrain.utils import get_ori_model

from us3l_mm.fileio import check_fit
from us3l_mm.models.backbones.weights import adapt_weights
from .mistakes import check_config
from .processes import get_rank, join_processes
from .required_files import (check_annotation_files, check_checkpoint,
                             check_pretrained_file)
from .settings import describe_precision


class EmptyDatasetError(ValueError):
    """A training set without a single batch."""


class QuietRunner(Runner):
    """A Runner that shows the lines of its log, and no listings.

    The config, the environment, the hooks and the options of each parameter,
    some hundred lines, go to the file alone.
    """

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """The logger, whose screen leaves out what MMEngine lists."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, FileHandler):
                handler.addFilter(_is_no_listing)
        return logger


def _is_no_listing(record: LogRecord) -> bool:
    text = record.getMessage()
    return not (text.startswith('paramwise_options') or
                (record.module == 'runner' and '\n' in text))


def build_runner(cfg: Config) -> Runner:
    """The Runner of ``cfg``, of the type that it may name."""
    return (RUNNERS.build(cfg)
            if 'runner_type' in cfg else QuietRunner.from_cfg(cfg))


class Begun(Hook):
    """Remembers that the first iteration is over."""

    begun = False

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        """Set ``begun``."""
        self.begun = True

    after_test_iter = after_train_iter


@contextmanager
def nothing_left_behind(cfg: Config) -> Iterator[Begun]:
    """Remove what a run has written if a mistake ends it before it begins.

    Yields:
        Begun: A hook to register in the Runner.
    """
    folder, begun = Path(cfg.work_dir).absolute(), Begun()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    before = {*folder.glob('*')}
    try:
        yield begun
    except (Exception, SystemExit):
        if not begun.begun and get_rank() == 0:
            config = f'{Path(cfg.filename or "config").stem}.py'
            for path in {*folder.glob('*')} - before:
                if re.fullmatch(r'\d{8}_\d{6}', path.name):
                    shutil.rmtree(path)
                elif path.name == config:
                    path.unlink()
            for path in made:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
        raise


def check_training(cfg: Config) -> None:
    """Raise the errors of a config, and of the files that it names."""
    check_config(cfg, ('train', 'val'))
    check_pretrained_file(cfg)
    check_checkpoint(cfg)
    check_annotation_files(cfg)


def train(cfg: Config, begun: Begun) -> Runner:
    """Train by ``cfg``, which has been checked."""
    join_processes(cfg)
    runner = build_runner(cfg)
    runner.register_hook(begun)
    check_batches(runner)
    check_classes(runner)
    precision = describe_precision(cfg)
    if precision is not None:
        runner.logger.info(precision)
    runner.train()
    return runner


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


def check_classes(runner: Runner) -> None:
    """Refuse a classifier whose outputs are not the classes of its images.

    Raises:
        ValueError: With both numbers.
    """
    model = get_ori_model(runner.model)
    outputs = getattr(getattr(model, 'head', None), 'num_classes', None)
    # A data set that is not MMEngine's may name no classes.
    metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', {})
    classes = metainfo.get('classes')
    if isinstance(model, ImageClassifier) and classes and outputs not in (
            None, len(classes)):
        raise ValueError(
            f'The training set has {len(classes)} classes, such as '
            f'{", ".join(map(str, classes[:3]))}, and model.head.num_classes='
            f'{outputs}. Set --cfg-options model.head.num_classes='
            f'{len(classes)}, and {len(classes)} in other places of the '
            'config that name the number.')


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
