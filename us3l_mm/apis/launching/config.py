# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Reading a config file, and the changes of a command line to it."""
import inspect
import os.path as osp
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Callable, Collection, Optional

from mmengine.config import Config
from mmengine.runner import Runner

from us3l_mm.stack import check_detection

# The keys that a Runner reads: its arguments, and some of its config.
READ = {
    *inspect.signature(Runner).parameters, 'activation_checkpointing',
    'compile', 'custom_imports', 'efficient_conv_bn_eval',
    'find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'sync_bn'}


def is_detection(cfg: Config) -> bool:
    """Whether the types of ``cfg`` are MMDetection's."""
    return cfg.get('default_scope') == 'mmdet'


def load_config(path: str, options: Optional[dict] = None,
                read: Collection[str] = READ) -> Config:
    """The config file at ``path``, changed by ``options``.

    Args:
        path (str): A config file; it may inherit MMDetection's.
        options (dict, optional): Values by dotted keys, as ``--cfg-options``
            gives them. ``data_root`` moves every path below the ``data_root``
            of the config file. Defaults to None.
        read (collection[str]): The keys that may be changed. Defaults to
            those that a Runner reads.

    Raises:
        FileNotFoundError: If there is no such file, with similar names.
        ImportError: If MMDetection is needed and cannot be used.
        ValueError: If nothing would read an option or a key.
    """
    if not osp.isfile(path):
        folder = Path(path).parent
        names = [p.name for p in folder.glob('*.py')]
        close = get_close_matches(Path(path).name, names)
        hint = (f'Did you mean {folder / close[0]}?'
                if close else f'{folder}/ has the configs {sorted(names)}.'
                if names else 'Configs are in configs/us3l/.')
        raise FileNotFoundError(f'There is no config file {path}. {hint}')
    return change_config(_read(path), path, options, read)


def change_config(cfg: Config, path: str, options: Optional[dict],
                  read: Collection[str] = READ) -> Config:
    """Change ``cfg`` by ``options``, in place; see :func:`load_config`."""
    options = dict(options or {})
    if 'data_root' in options and cfg.get('data_root'):
        move_data_root(cfg, options.pop('data_root'))
    if 'runner_type' not in cfg:
        check_keys(cfg, path, options, read)
    cfg.merge_from_dict(options)
    return cfg


def _read(path: str) -> Config:
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        if 'mmdet' in str(error):
            check_detection()
        raise
    if is_detection(cfg):
        check_detection()
    return cfg


def check_keys(cfg: Config, path: str, options: dict,
               read: Collection[str] = READ) -> None:
    """Refuse a key that looks like one of the Runner's and is not read.

    Raises:
        ValueError: With the key, and similar ones.
    """
    for key in cfg.keys() - READ:
        # A config file may have variables of its own.
        close = get_close_matches(key, READ, cutoff=0.9)
        if close:
            raise ValueError(f'{path}: nothing reads the key {key}. Did you '
                             f'mean {close[0]}?')
    for option in options:
        key = option.split('.')[0]
        if key in read:
            continue
        if key in cfg and key not in READ:
            raise ValueError(
                f'--cfg-options {option}: {key} is a variable of the config '
                'file, whose value has been used already. Set keys that are '
                'read, such as model.backbone.depth, '
                'train_dataloader.dataset.data_root or '
                'default_hooks.sampler.num_stages.')
        close = get_close_matches(key, read)
        hint = (f'Did you mean {close[0]}?'
                if close else f'It may be one of {sorted({*read} & {*cfg})}.')
        raise ValueError(f'--cfg-options {option}: nothing reads the key {key}'
                         f' here. {hint}')


def move_data_root(cfg: Config, folder: str) -> None:
    """Let data sets and metrics read ``folder`` for the config's data_root.

    Paths below the ``data_root`` that the file sets are moved as well.
    """
    old, new = cfg.data_root.rstrip('/'), str(folder).rstrip('/')

    def moved(text: str) -> str:
        return new + text[len(old):] if f'{text}/'.startswith(
            f'{old}/') else text

    for key in cfg.keys():
        if key.endswith(('_dataloader', '_evaluator')):
            cfg[key] = map_texts(cfg[key], moved)
    cfg.data_root = new


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """``value``, nested dicts and lists, with all texts changed.

    Dicts are changed in place.
    """
    if isinstance(value, dict):
        for key, child in value.items():
            value[key] = map_texts(child, change)
    elif isinstance(value, (list, tuple)):
        return type(value)(map_texts(child, change) for child in value)
    return change(value) if isinstance(value, str) else value
