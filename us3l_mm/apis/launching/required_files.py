# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Refusing files that a run needs and cannot use, before anything is built.
"""
import os
import os.path as osp
from typing import Dict, Iterator, List, Tuple

from mmengine.config import Config

from us3l_mm.fileio import CodeInFileError, load_weights
from .config import is_detection


def check_checkpoint(cfg: Config) -> None:
    """Refuse to begin from a file that holds more than weights.

    MMEngine warns of such a file and then executes the code in it. The
    environment variable TORCH_FORCE_WEIGHTS_ONLY_LOAD=0 says that a file is to
    be trusted. AtomicCheckpointHook checks the file that ``--resume`` finds.

    Raises:
        ValueError: if the file is damaged, or holds code.
    """
    if os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1') == '0':
        return
    path = cfg.get('load_from')
    if path is not None and osp.isfile(path):
        try:
            load_weights(path)
        except CodeInFileError as error:
            raise ValueError(f'{error} In this tool: '
                             'TORCH_FORCE_WEIGHTS_ONLY_LOAD=0.') from None


def is_pretrained(cfg: Config) -> bool:
    """Whether the backbone of ``cfg`` asks for weights of a file."""
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    init_cfg = backbone.get('init_cfg')
    return (isinstance(init_cfg, dict)
            and init_cfg.get('type') == 'Pretrained')


def check_pretrained_file(cfg: Config) -> None:
    """Refuse a missing file of weights before data are read.

    Raises:
        ValueError, FileNotFoundError: with the option to set.
    """
    if not is_pretrained(cfg):
        return
    path = cfg.model.backbone.init_cfg.get('checkpoint') or ''
    if '://' in path or osp.isfile(path):
        return
    source = (
        'tools/slice_checkpoint.py CKPT FILE --width W --format mmdet'
        if is_detection(cfg) else 'tools/slice_checkpoint.py CKPT FILE '
        '--width W') + (
            ', or for a SlimmableResNet tools/evaluate_widths.py CONFIG CKPT '
            '--save-checkpoint FILE')
    repair = ('Set --cfg-options model.backbone.init_cfg.checkpoint=FILE; '
              f'FILE comes from {source}. To train from random weights: '
              '--cfg-options model.backbone.init_cfg=None')
    if not path:
        raise ValueError('The config does not say where the weights of the '
                         f'backbone are. {repair}')
    raise FileNotFoundError(f'There is no file {path} with the weights of the '
                            f'backbone. {repair}')


def check_annotation_files(cfg: Config, stages=('train', 'val')) -> None:
    """Refuse missing annotation files before anything is built.

    Raises:
        FileNotFoundError: with all of them, and the options to set.
    """
    if not is_detection(cfg):
        return
    missing: Dict[str, List[str]] = {}
    for option, path in _annotation_files(cfg, stages):
        if '://' not in path and not osp.isfile(path):
            missing.setdefault(path, []).append(option)
    if missing:
        lines = [
            f'  {path}, of {" and ".join(options)}'
            for path, options in missing.items()
        ]
        raise FileNotFoundError(
            'These annotation files are not there:\n' + '\n'.join(lines) +
            '\nSet them by --cfg-options, such as '
            'train_dataloader.dataset.data_root=FOLDER '
            'train_dataloader.dataset.ann_file=NAME (and likewise '
            'val_dataloader, val_evaluator.ann_file).')


def _annotation_files(cfg: Config, stages) -> Iterator[Tuple[str, str]]:
    for stage in stages:
        loader = cfg.get(f'{stage}_dataloader')
        if loader:
            yield from _of_dataset(loader.get('dataset'),
                                   f'{stage}_dataloader.dataset')
        evaluator = cfg.get(f'{stage}_evaluator')
        metrics = evaluator if isinstance(evaluator, list) else [evaluator]
        for metric in metrics:
            if isinstance(metric, dict) and metric.get('ann_file'):
                yield f'{stage}_evaluator.ann_file', metric['ann_file']


def _of_dataset(dataset, option: str) -> Iterator[Tuple[str, str]]:
    if not isinstance(dataset, dict):
        return
    inner = dataset.get('datasets') or [dataset.get('dataset')]
    for each in inner:
        yield from _of_dataset(each, f'{option}.dataset')
    name = dataset.get('ann_file')
    if isinstance(name, str) and name:
        yield (f'{option}.ann_file',
               osp.join(dataset.get('data_root') or '', name))
