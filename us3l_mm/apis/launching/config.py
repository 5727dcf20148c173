# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Reading a config file, and the changes of a command line to it."""
import inspect
import os.path as osp
import traceback
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

# What a mistake in a config file, or a key that does not fit it, raises.
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError,
          NameError, OSError, RuntimeError, TypeError, ValueError)
DICTS = ('auto_scale_lr', 'default_hooks', 'env_cfg', 'model', 'optim_wrapper',
         'randomness', 'test_cfg', 'test_dataloader', 'train_cfg',
         'train_dataloader', 'val_cfg', 'val_dataloader', 'visualizer')
SECTIONS = {
    'custom_hooks': (list, tuple),
    'param_scheduler': (list, tuple, dict),
    **dict.fromkeys(DICTS, (dict, )), }


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
    elif 'data_root' in options:
        raise ValueError(
            f'--cfg-options data_root: {path} has no data_root for all data '
            'sets. Set that of each, such as '
            'train_dataloader.dataset.data_root.')
    if 'runner_type' not in cfg:
        check_keys(cfg, path, options, read)
    for option in options:
        if '' in option.split('.'):
            raise ValueError(f'--cfg-options {option}: a key is made of names '
                             'and single dots, such as train_cfg.max_epochs.')
    try:
        cfg.merge_from_dict(options)
    except FAULTS as error:
        raise ValueError(f'--cfg-options {" ".join(options)}: '
                         f'{error}') from error
    for key, kind in SECTIONS.items():
        check_section(cfg, key, kind)
    return cfg


def _read(path: str) -> Config:
    """The config file at ``path``; errors in it name file and line."""
    try:
        cfg = Config.fromfile(path)
    except ModuleNotFoundError as error:
        if 'mmdet' in str(error):
            check_detection()
        raise ImportError(f'{_place(path, error)}: {error}') from error
    except ImportError as error:  # the search path comes first in its text
        raise ImportError(f'{path}: {error.__cause__ or error}') from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{_place(path, error)}: this file, which a _base_ of {path} '
            'names, is not there.') from error
    except SyntaxError as error:
        file = _place(path, error).split(', line')[0]
        raise ValueError(f'{file}, line {error.lineno}: {error.msg}: '
                         f'{(error.text or "").strip()}') from error
    except FAULTS as error:
        raise ValueError(f'{_place(path, error)}: {type(error).__name__}: '
                         f'{error}') from error
    if is_detection(cfg):
        check_detection()
    return cfg


def _place(path: str, error: Exception) -> str:
    """The config file, of ``path`` and its bases, and line of ``error``."""
    place = path
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_locals.get('filename')
        if isinstance(file, str) and osp.basename(
                frame.f_code.co_filename) == 'config.py':
            place = file  # MMEngine reads it
        elif frame.f_code.co_filename == osp.abspath(place):
            place = f'{file or place}, line {line}'
    return place


def check_section(cfg: Config, key: str, kind: tuple) -> None:
    """Refuse a section of ``cfg`` that is a single value, such as a number."""
    value = cfg.get(key)
    if value is not None and not isinstance(value, kind):
        names = ' or a '.join(each.__name__ for each in kind)
        raise ValueError(f'{key}={value!r} has to be a {names}. Set the keys '
                         f'in it, such as --cfg-options {key}.NAME=VALUE.')


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
        if key in read and key not in ('custom_imports', 'launcher'):
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
