# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the tools do to a config before a Runner is made of it."""
import os.path as osp
from typing import Iterator, Tuple

from mmengine.config import Config

from us3l_mm.stack import check_detection

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')
CHECK_PRETRAINED = 'us3l_mm.CheckPretrainedHook'
CHECK_ANNOTATIONS = 'us3l_mm.CheckAnnotationsHook'


def is_detection(cfg: Config) -> bool:
    """Whether the types of ``cfg`` are MMDetection's."""
    return cfg.get('default_scope') == 'mmdet'


def load(path: str) -> Config:
    """The config file at ``path``; what it inherits may be MMDetection's.

    Raises:
        ImportError: where MMDetection is needed and cannot be used.
    """
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        if 'mmdet' in str(error):
            check_detection()
        raise
    if is_detection(cfg):
        check_detection()
    return cfg


def move_data_root(cfg: Config, folder: str) -> None:
    """Let the data sets and metrics of ``cfg`` read ``folder``.

    Instead of the ``data_root`` that its file sets, or of a path below that.
    """
    old, new = cfg.data_root.rstrip('/'), str(folder).rstrip('/')

    def moved(value):
        if isinstance(value, dict):
            for key, child in value.items():
                value[key] = moved(child)
        elif isinstance(value, (list, tuple)):
            return type(value)(map(moved, value))
        elif isinstance(value, str) and f'{value}/'.startswith(f'{old}/'):
            return new + value[len(old):]
        return value

    for key in cfg.keys():
        if key.endswith(('_dataloader', '_evaluator')):
            moved(cfg[key])
    cfg.data_root = new


def is_pretrained(cfg: Config) -> bool:
    """Whether the backbone of ``cfg`` asks for weights of a file."""
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    init_cfg = backbone.get('init_cfg')
    return (isinstance(init_cfg, dict)
            and init_cfg.get('type') == 'Pretrained')


def add_checks(cfg: Config) -> None:
    """Let a run check its weights and annotations; see the two hooks."""
    wanted = ([CHECK_PRETRAINED] if is_pretrained(cfg) else
              []) + ([CHECK_ANNOTATIONS] if is_detection(cfg) else [])
    hooks = cfg.get('custom_hooks') or []
    given = {hook.get('type') for hook in hooks}
    cfg.custom_hooks = [
        *hooks, *(dict(type=name) for name in wanted if name not in given)
    ]


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


def check_annotation_files(cfg: Config, kinds=('train', 'val')) -> None:
    """Refuse missing annotation files before anything is built.

    Raises:
        FileNotFoundError: with all of them, and the options to set.
    """
    if not is_detection(cfg):
        return
    missing = {}
    for option, path in _annotation_files(cfg, kinds):
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


def _annotation_files(cfg: Config, kinds) -> Iterator[Tuple[str, str]]:
    for kind in kinds:
        loader = cfg.get(f'{kind}_dataloader')
        if loader:
            yield from _of_dataset(loader.get('dataset'),
                                   f'{kind}_dataloader.dataset')
        evaluator = cfg.get(f'{kind}_evaluator')
        metrics = evaluator if isinstance(evaluator, list) else [evaluator]
        for metric in metrics:
            if isinstance(metric, dict) and metric.get('ann_file'):
                yield f'{kind}_evaluator.ann_file', metric['ann_file']


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


def for_processes_on_cpus(cfg: Config) -> None:
    """Let the processes of a run talk through gloo, without GPUs.

    PyTorch synchronises batch norms on GPUs only; each process takes the
    statistics of its own images instead.
    """
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    cfg.model_wrapper_cfg = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel', broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    if cfg.model_wrapper_cfg.type == 'MMDistributedDataParallel':
        # MMEngine would name the GPU of this process.
        cfg.model_wrapper_cfg.setdefault('device_ids', None)
    cfg.model = without_sync_norms(cfg.model)


def without_sync_norms(value):
    """``value``, nested dicts and lists, with BN for every SyncBN."""
    if isinstance(value, dict):
        for key, child in value.items():
            value[key] = without_sync_norms(child)
        if value.get('type') == 'SyncBN':
            value['type'] = 'BN'
    elif isinstance(value, (list, tuple)):
        return type(value)(map(without_sync_norms, value))
    return value
