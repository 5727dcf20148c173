# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Refusing a config that cannot be trained, before anything is built."""
import inspect
import math
import os
import os.path as osp
import re
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import (Any, Callable, Collection, FrozenSet, Iterator, List,
                    NamedTuple, Optional, Tuple, Union, get_args, get_origin)

import torch
from mmengine import registry as roots
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import (EpochBasedTrainLoop, IterBasedTrainLoop, Runner,
                             TestLoop, ValLoop)
from mmpretrain.registry import BATCH_AUGMENTS
from torch import nn
from torch.utils.data import DataLoader

from us3l_mm.models.backbones.slimmable_cnn import NORMS
from .config import READ

# What is built from a dict with a ``type``, by where it is in a config. The
# first pattern that is found in the dotted key counts.
PLACES = [
    (r'^(default|custom)_hooks\.\w+$', roots.HOOKS),
    (r'collate_fn$', roots.FUNCTIONS),
    (r'dataloader\.(batch_)?sampler$', roots.DATA_SAMPLERS),
    (r'\.(pipeline|transforms)(\.\d+)+$', roots.TRANSFORMS),
    (r'dataloader\.dataset(\.datasets?(\.\d+)?)*$', roots.DATASETS),
    (r'^optim_wrapper$', roots.OPTIM_WRAPPERS),
    (r'^optim_wrapper\.(\w+\.)*optimizer$', roots.OPTIMIZERS),
    (r'^param_scheduler(\.\w+)*$', roots.PARAM_SCHEDULERS),
    (r'^(train|val|test)_cfg$', roots.LOOPS),
    (r'^(val|test)_evaluator(\.metrics)?(\.\d+)?$', roots.METRICS),
    (r'vis_backends\.\d+$', roots.VISBACKENDS),
    (r'^visualizer$', roots.VISUALIZERS),
    (r'^model_wrapper_cfg$', roots.MODEL_WRAPPERS),
    (r'^log_processor$', roots.LOG_PROCESSORS),
    (r'^model\b.*init_cfg(\.\d+|\.override)*$', roots.WEIGHT_INITIALIZERS),
    (r'^model\.train_cfg\.augments(\.\d+)?$', BATCH_AUGMENTS),
    (r'^(model|data_preprocessor)\b', roots.MODELS), ]
# Some are registered elsewhere, or are not registered at all.
ELSEWHERE = (roots.MODELS, roots.TASK_UTILS, roots.DATASETS, roots.TRANSFORMS,
             roots.FUNCTIONS, roots.OPTIM_WRAPPERS, roots.DATA_SAMPLERS)
# Arguments that are taken out before something is built.
TAKEN_OUT = {
    roots.HOOKS: {'priority'},
    roots.OPTIM_WRAPPERS: {
        'constructor', 'paramwise_cfg', 'optimizer', 'dtype', 'loss_scale'},
    roots.PARAM_SCHEDULERS: {
        'begin', 'end', 'by_epoch', 'convert_to_iter_based', 'epoch_length'},
    roots.WEIGHT_INITIALIZERS: {'override', 'name'},
    roots.LOOPS: {'by_epoch'},
    roots.MODELS: {'requires_grad'}, }
# Dicts whose types are not registered, or whose keys something takes out.
UNCHECKED = re.compile(r'\.(dcn|nms|policies|roi_layer|targets)\b')
# Annotations that are compared with the type of a value
PLAIN = (bool, dict, float, int, str, type(None), nn.Module)
LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')
LOADER = {*inspect.signature(DataLoader).parameters, 'num_batch_per_epoch'}

# Sections from which nothing is built, and the keys that a Runner reads.
SECTIONS = dict(
    auto_scale_lr={'base_batch_size', 'enable'}, env_cfg={
        'cudnn_benchmark', 'dist_cfg', 'mp_cfg', 'resource_limit'},
    randomness={'deterministic', 'diff_rank_seed', 'seed'})
SWITCHES = re.compile(r'^(auto_scale_lr\.enable|env_cfg\.cudnn_benchmark|'
                      r'randomness\.(deterministic|diff_rank_seed))$')


class Limits(NamedTuple):
    """The numbers that the keys matching a pattern may have."""

    pattern: str
    least: float
    most: float
    what: str
    kind: type = int


LIMITS = [
    Limits(r'dataloader\.batch_size$', 1, 1 << 20, 'a number of images'),
    Limits(r'dataloader\.num_workers$', 0, 1024, 'a number of processes'),
    Limits(r'dataloader\.prefetch_factor$', 1, 1 << 16, 'a number of batches'),
    Limits(r'dataloader\.timeout$', 0, 1e9, 'a number of seconds', float),
    Limits(r'^train_cfg\.(max_epochs|max_iters|val_interval)$', 1, 1e12,
           'a number of epochs or iterations'),
    Limits(r'^train_cfg\.val_begin$', 0, 1e12, 'an epoch or iteration'),
    Limits(r'^(default|custom)_hooks\.\w+\.(interval|num_images|k)$', 1, 1e12,
           'a count'),
    Limits(r'optimizer\.lr$', 0, 1e6, 'a learning rate', float),
    Limits(r'optimizer\.weight_decay$', 0, 1e6, 'a weight decay', float),
    Limits(r'optim_wrapper\.accumulative_counts$', 1, 1e9,
           'a number of batches'),
    Limits(r'clip_grad\.max_norm$', 0, 1e12, 'a norm', float),
    Limits(r'auto_scale_lr\.base_batch_size$', 1, 1e9, 'a number of images'),
    Limits(r'^param_scheduler\b.*\.T_max$', 1, 1e12,
           'a number of epochs or iterations'),
    Limits(r'^log_processor\.window_size$', 1, 1e9, 'a number of iterations'),
    Limits(r'^randomness\.seed$', 0, 2**32 - 1, 'a seed'),
    Limits(
        r'^model\..*\b((in|out|hid|base|stem|feat)_channels|embed_dims|num_layers|'
        r'num_classes|patch_size|img_size)$', 1, 1 << 20, 'a count'),
    Limits(r'^model\..*backbone\.(depth|num_stages)$', 1, 1e4, 'a count'),
    Limits(r'\.(pipeline|transforms)\b.*\.(scale|crop_size)$', 1, 1 << 16,
           'a number of pixels'), ]


class Item(NamedTuple):
    """A dict with a ``type`` in a config.

    Attributes:
        key (str): Its dotted key.
        cfg (dict): The dict.
        kind (callable): The class or function that its type names.
        registry (Registry): Where that is registered.
    """

    key: str
    cfg: dict
    kind: Callable
    registry: Registry


def check_config(cfg: Config, stages: Collection[str]) -> None:
    """Refuse types, arguments, numbers and folders that cannot be used.

    Args:
        cfg (Config): The config, as it would be trained or tested.
        stages (collection[str]): Whose data is used: 'train', 'val', 'test'.

    Raises:
        ValueError, OSError: With the key, what is allowed, and similar names.
    """
    content = {key: cfg[key] for key in cfg if key in READ}
    for key, value in leaves(content):
        check_number(key, value)
        if SWITCHES.search(key) and not isinstance(value, bool):
            raise ValueError(f'{key}={value!r}: expected True or False.')
    for section, names in SECTIONS.items():
        check_names(section, content.get(section) or (), names, names, 'a run')
    if cfg.get('work_dir') is not None:
        check_work_dir(cfg.work_dir)
    items = [*find_items(content, cfg.get('default_scope') or 'mmengine')]
    for item in items:
        check_arguments(item)
        if item.kind.__module__.split('.')[0] in ('us3l_mm', 'mmengine'):
            check_kinds(item.key, item.kind, item.cfg)
    check_kinds('', Runner, content)
    check_randomness(content)
    check_loaders(content)
    for item in items:
        unused = re.match('(train|val|test)_dataloader', item.key)
        if unused is None or unused[1] in stages:
            check_folder(item)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for item in items:
            check_constructor(item)


def leaves(value: Any, key: str = '') -> Iterator[Tuple[str, Any]]:
    """Dotted keys and values of a nested config."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from leaves(child, f'{key}.{name}' if key else str(name))
        return
    yield key, value
    if isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from leaves(child, f'{key}.{index}')


def check_number(key: str, value: Any) -> None:
    """Refuse a number that is not finite, or outside its limits."""
    if isinstance(value, float) and not math.isfinite(value):
        if not key.endswith(('magnitude_std', 'norm_type')):
            raise ValueError(f'{key}={value} is not a finite number. Give one '
                             'in the config or by --cfg-options.')
    if key.endswith('by_epoch') and value not in (True, False):
        raise ValueError(f'{key}={value!r} has to be True or False.')
    for limits in LIMITS:
        if re.search(limits.pattern, key):
            break
    else:
        return
    if value is None or isinstance(value, (list, tuple)):
        return
    least, most, kind = limits.least, limits.most, limits.kind
    is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    if is_number and least <= value <= most:
        return
    if value == -1 and key.endswith('.interval'):
        return  # never
    name = 'an integer' if kind is int else 'a number'
    raise ValueError(f'{key}={value!r}: expected {limits.what}, {name} from '
                     f'{least:.12g} to {most:.12g}.')


def find_items(value: Any, scope: str, key: str = '') -> Iterator[Item]:
    """All dicts of a nested config that something is built from.

    Raises:
        ValueError: If nothing has the name that a ``type`` gives.
    """
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return
    scope = value.get('_scope_', scope)
    kind = value.get('type') or _default_type(key, value)
    if kind is not None and key and not UNCHECKED.search(key):
        yield from _resolve(key, value, kind, scope)
    for name, child in value.items():
        yield from find_items(child, scope,
                              f'{key}.{name}' if key else str(name))


def _default_type(key: str, cfg: dict) -> Optional[Callable]:
    """What MMEngine builds from a dict without a type."""
    if key == 'train_cfg':
        return EpochBasedTrainLoop if cfg.get(
            'by_epoch') else IterBasedTrainLoop
    return dict(val_cfg=ValLoop, test_cfg=TestLoop,
                optim_wrapper=OptimWrapper).get(key)


def _resolve(key: str, cfg: dict, kind: Any, scope: str) -> Iterator[Item]:
    """The item of ``cfg``, none if its type is not the name of a class."""
    place = next((each for pattern, each in PLACES if re.search(pattern, key)),
                 None)
    if not isinstance(kind, str):
        if callable(kind) and place is not None:
            yield Item(key, cfg, kind, place)
        return
    is_part = place in (None, roots.MODELS) and key != 'model'
    for root in ELSEWHERE if is_part else (place, ):
        found = look_up(root, scope, kind)
        if found is not None:
            yield Item(key, cfg, found, root)
            return
    if place is None or kind in NORMS or look_up(roots.EVALUATOR, scope, kind):
        return
    names = known_names(place, scope)
    close = get_close_matches(
        kind, names, cutoff=0.85 if is_part else 0.6) or [
            name
            for name in names if name.lower().endswith(f'.{kind.lower()}')]
    if is_part and not close:
        return  # perhaps a plain argument; if not, building it fails
    hint = (f'Did you mean {close[0]!r}?'
            if close else 'Names of this package begin with us3l_mm.')
    raise ValueError(f'{key}.type={kind!r}: there is no {place.name} of this '
                     f'name. {hint}')


def look_up(root: Registry, scope: str, name: str) -> Optional[Callable]:
    """The class or function that ``name`` means in ``scope``."""
    with suppress(ImportError):
        import_module(f'{scope}.registry')
    try:
        return root.children.get(scope, root).get(name)
    except RuntimeError:  # a name with a dot that leads nowhere
        return None


def known_names(root: Registry, scope: str) -> List[str]:
    """The names that :func:`look_up` finds in ``scope`` and this package."""
    names = {*root.module_dict}
    for child, prefix in ((scope, ''), ('us3l_mm', 'us3l_mm.')):
        node = root.children.get(child)
        if node is not None:
            node.import_from_location()
            names |= {prefix + name for name in node.module_dict}
    return sorted(names)


@lru_cache(maxsize=None)
def arguments(kind: Callable) -> Tuple[FrozenSet[str], bool]:
    """The keyword arguments of a class or function, and if these are all.

    ``**kwargs`` of a constructor are those of the base class, if that has any.
    """
    names: set = set()
    for owner in getattr(kind, '__mro__', (kind, )):
        if owner in (nn.Module, object):
            break
        function = (vars(owner).get('__init__')
                    if inspect.isclass(kind) else owner)
        if function is None:
            continue
        parameters = inspect.signature(function).parameters.values()
        names |= {
            p.name for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        rest = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
        if not rest:
            return frozenset(names - {'self'}), True
        if not re.search(rf'super\(.*\)\.__init__\([^)]*\*\*{rest[0]}',
                         inspect.getsource(function)):
            break
    return frozenset(names - {'self'}), False


def check_arguments(item: Item) -> None:
    """Refuse keys that the class of ``item`` does not take."""
    names, are_all = arguments(item.kind)
    taken = TAKEN_OUT.get(item.registry, set()) | {'type', '_scope_'}
    if item.kind.__module__.split('.')[0] in ('mmcv', 'mmdet'):
        are_all = False  # heads and layers there take each other's arguments
    given = [
        name for name in item.cfg
        if are_all or get_close_matches(str(name), names, 1, 0.85)]
    check_names(item.key, given, names | taken, names,
                getattr(item.kind, '__name__', str(item.kind)))


def check_kinds(key: str, kind: Callable, cfg: dict) -> None:
    """Refuse values of other types than the annotations of arguments."""
    owners = [
        vars(owner)['__init__'] for owner in getattr(kind, '__mro__', ())
        if '__init__' in vars(owner) and owner not in (nn.Module, object)]
    parameters: dict = {}
    for owner in owners or [kind]:
        parameters = {**inspect.signature(owner).parameters, **parameters}
    for name, parameter in parameters.items():
        note = parameter.annotation
        allowed = [*get_args(note)] if get_origin(note) is Union else [note]
        value = cfg.get(name)
        if value is None or not all(each in PLAIN for each in allowed):
            continue
        if float in allowed:
            allowed.append(int)
        is_flag = isinstance(value, bool) and bool not in allowed
        if is_flag or not isinstance(value, tuple(allowed)):
            hint = (' A comma makes a list: put a text with commas into '
                    'quotation marks of its own.') * isinstance(value, list)
            names = ' or '.join(each.__name__ for each in allowed
                                if each not in (type(None), nn.Module))
            raise ValueError(
                f'{key}.{name}={value!r} has to be {names}.{hint}'.lstrip('.'))


def check_names(key: str, given: Collection[str], allowed: Collection[str],
                shown: Collection[str], owner: str) -> None:
    """Refuse names that are not allowed, with similar ones."""
    for name in given:
        if name not in allowed:
            close = get_close_matches(str(name), allowed)
            hint = (f'Did you mean {close[0]}?'
                    if close else f'There are {sorted(shown)}.')
            raise ValueError(f'{key}.{name}: {owner} has no such argument. '
                             f'{hint}')


def check_randomness(content: dict) -> None:
    """Refuse what MMEngine does not read of ``randomness``, or cannot log."""
    names = {*inspect.signature(Runner.set_randomness).parameters} - {'self'}
    check_names('randomness',
                content.get('randomness') or {}, names, names,
                'the seed of a run')
    level = content.get('log_level') or 'INFO'
    if level not in LEVELS:
        raise ValueError(f'log_level={level!r} has to be one of {LEVELS}.')


def check_loaders(content: dict) -> None:
    """Refuse what PyTorch's loader does not take, and too small batches."""
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = content.get(key)
        if isinstance(loader, dict):
            check_names(key, loader, LOADER, LOADER, 'a data loader')
    wrapper = content.get('optim_wrapper') or {}
    if not isinstance(wrapper.get('optimizer', {}), dict):
        raise ValueError(
            f'optim_wrapper.optimizer={wrapper["optimizer"]!r} has to be a '
            "dict, such as dict(type='SGD', lr=0.1).")
    kind = str(wrapper.get('type'))
    is_ssl = kind.startswith('us3l_mm.MultiPass') and content.get(
        'default_scope') != 'mmdet'
    if is_ssl and content['train_dataloader'].get('batch_size') == 1:
        raise ValueError(
            'train_dataloader.batch_size=1: the batch norms of the projector '
            'need at least 2 images. Set train_dataloader.batch_size=2 or '
            'more.')


def check_folder(item: Item) -> None:
    """Refuse a ``data_root`` that is not there, unless it will be made."""
    root = item.cfg.get('data_root')
    if item.registry is not roots.DATASETS or not root or '://' in str(root):
        return
    if not isinstance(root, (str, os.PathLike)):
        raise ValueError(f'{item.key}.data_root={root!r} has to be a path; a '
                         'path with a comma needs quotation marks of its own.')
    names = arguments(item.kind)[0]
    if osp.isdir(root) or names & {'scenes', 'rendering'}:  # made if missing
        return
    if 'download' in names and item.cfg.get('download', True):
        return
    what = 'is a file' if osp.exists(root) else 'is not there'
    parent = next(p for p in Path(root).absolute().parents if p.is_dir())
    raise FileNotFoundError(
        f'{item.key}.data_root={str(root)!r}: this folder {what} ({parent} '
        f'is). Set --cfg-options {item.key}.data_root=FOLDER.')


def check_work_dir(folder: str) -> None:
    """Refuse a work dir that cannot be made or written to."""
    if not isinstance(folder, str) or not folder or '\0' in folder:
        raise ValueError(f'--work-dir {folder!r} has to be a path.')
    path = Path(folder).absolute()
    while not osp.lexists(path):
        path = path.parent
    if not path.is_dir():
        raise NotADirectoryError(f'--work-dir {folder}: {path} is a file. '
                                 'Choose another folder.')
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f'--work-dir {folder}: {path} cannot be written '
                              'to. Choose another folder.')


def check_constructor(item: Item) -> None:
    """Refuse arguments that an optimizer, hook or transform would refuse.

    These are cheap to construct; others are when the run is built.
    """
    cfg = {
        name: value for name, value in item.cfg.items()
        if name not in ('type', '_scope_', 'priority')}
    if item.registry is roots.OPTIMIZERS:
        cfg['params'] = [nn.Parameter(torch.zeros(1))]
    elif item.registry is roots.HOOKS:
        # Those of other packages may look for the parts of a run.
        if item.kind.__module__.split('.')[0] not in ('us3l_mm', 'mmengine'):
            return
    elif item.registry is not roots.TRANSFORMS:
        return
    try:
        item.kind(**cfg)
    except (ArithmeticError, AssertionError, LookupError, TypeError,
            ValueError) as error:
        text = str(error) or f'{item.kind.__name__} refuses {cfg}'
        raise ValueError(f'{item.key}: {text}') from error
