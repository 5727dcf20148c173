# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Refusing files that a run cannot use, before anything is built."""
import os.path as osp
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from mmengine.config import Config
from mmengine.model import PretrainedInit

from us3l_mm.fileio import check_resumable, load_weights
from .config import is_detection

PRETRAINED = ('Pretrained', 'PretrainedInit', PretrainedInit)


def check_checkpoint(cfg: Config) -> None:
    """Read the files of weights that ``cfg`` names, and resumes from.

    A run would read them after minutes of preparation. AtomicCheckpointHook
    reads the file that ``--resume`` finds.

    Raises:
        ValueError: If a file is damaged, holds code, or has no position to go
            on from.
    """
    path = cfg.get('load_from')
    if path is not None and osp.isfile(path):
        content = load_weights(path)
        if cfg.get('resume'):
            check_resumable(path, content)
    for path in dict.fromkeys(_weight_files(cfg.get('model'))):
        if osp.isfile(path):
            load_weights(path)


def _weight_files(value: Any) -> Iterator[str]:
    """The files of all ``init_cfg`` in a nested config."""
    if isinstance(value, dict):
        kind, path = value.get('type'), value.get('checkpoint')
        if kind in PRETRAINED and isinstance(path, str):
            yield path
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for child in value:
        yield from _weight_files(child)


def is_pretrained(cfg: Config) -> bool:
    """Whether the backbone of ``cfg`` asks for weights of a file."""
    backbone = (cfg.get('model') or {}).get('backbone')
    init_cfg = isinstance(backbone, dict) and backbone.get('init_cfg')
    return isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained'


def check_pretrained_file(cfg: Config) -> None:
    """Refuse a missing file of weights.

    Raises:
        ValueError, FileNotFoundError: With the option to set.
    """
    if not is_pretrained(cfg):
        return
    path = cfg.model.backbone.init_cfg.get('checkpoint') or ''
    if '://' in path or osp.isfile(path):
        return
    repair = (
        'Set --cfg-options model.backbone.init_cfg.checkpoint=FILE; FILE comes'
        ' from tools/slice_checkpoint.py CKPT FILE --width W' +
        ' --format mmdet' * is_detection(cfg) +
        ', or for a SlimmableResNet tools/evaluate_widths.py CONFIG CKPT '
        '--save-checkpoint FILE. To train from random weights: --cfg-options '
        'model.backbone.init_cfg=None')
    if not path:
        raise ValueError('The config does not say where the weights of the '
                         f'backbone are. {repair}')
    raise FileNotFoundError(f'There is no file {path} with the weights of the '
                            f'backbone. {repair}')


def check_annotation_files(
    cfg: Config, stages: Sequence[str] = ('train', 'val')) -> None:
    """Refuse missing annotation files of a detection config.

    Raises:
        FileNotFoundError: With all of them, and the options to set.
    """
    if not is_detection(cfg):
        return
    missing: Dict[str, List[str]] = {}
    for stage in stages:
        for key in (f'{stage}_dataloader', f'{stage}_evaluator'):
            for option, path in _annotation_files(cfg.get(key), key):
                if '://' not in path and not osp.isfile(path):
                    missing.setdefault(path, []).append(option)
    if missing:
        lines = '\n'.join(f'  {path}, of {" and ".join(options)}'
                          for path, options in missing.items())
        raise FileNotFoundError(
            f'These annotation files are not there:\n{lines}\n'
            'Set them by --cfg-options, such as '
            'train_dataloader.dataset.data_root=FOLDER '
            'train_dataloader.dataset.ann_file=NAME (and likewise '
            'val_dataloader, val_evaluator.ann_file).')


def _annotation_files(value: Any, option: str) -> Iterator[Tuple[str, str]]:
    """Keys and paths of all ``ann_file`` in a nested config."""
    if isinstance(value, dict):
        name = value.get('ann_file')
        if isinstance(name, str) and name:
            yield (f'{option}.ann_file',
                   osp.join(value.get('data_root') or '', name))
        for key, child in value.items():
            yield from _annotation_files(child, f'{option}.{key}')
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from _annotation_files(child, option)
