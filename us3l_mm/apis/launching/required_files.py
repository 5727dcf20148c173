# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Refusing files that a run cannot use, before anything is built."""
import os
import os.path as osp
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from mmengine.config import Config

from us3l_mm.fileio import CodeInFileError, load_weights
from .config import is_detection


def check_checkpoint(cfg: Config) -> None:
    """Refuse to begin from a file that holds more than weights.

    MMEngine warns of such a file and then executes the code in it. The
    environment variable TORCH_FORCE_WEIGHTS_ONLY_LOAD=0 says that the file is
    to be trusted. AtomicCheckpointHook checks the file that ``--resume``
    finds.

    Raises:
        ValueError: If the file is damaged, or holds code.
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
