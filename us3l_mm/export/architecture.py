# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Building the network of a checkpoint from the config stored in it."""
import ast
import re
from typing import Any, Iterator, Optional, Tuple

from torch import nn

from us3l_mm.models.backbones.weights import SlimmableBackbone
from us3l_mm.registry import MODELS

# A registered class; MMEngine's registries would import any other path, and
# call functions such as mmengine.dump.
REGISTERED = re.compile(r'((us3l_mm|mmpretrain|mmengine|mmdet)\.(?=[A-Z]))?'
                        r'(torchvision/)?\w+')


def stored_model(checkpoint: dict) -> dict:
    """The ``model`` of the config that MMEngine stores in its checkpoints.

    The config is a Python file of unknown origin, so it is parsed and not
    executed: only dicts, lists, numbers and strings are allowed.

    Raises:
        ValueError: If there is no config, or it contains anything else.
    """
    text = (checkpoint.get('meta') or {}).get('cfg')
    if not isinstance(text, str):
        raise ValueError(
            'The checkpoint does not say which network it holds (no '
            "meta['cfg'], which MMEngine's Runner writes): give the training "
            '--config.')
    for name, value in _assignments(text):
        if name == 'model':
            return _read(value)
    raise ValueError("The config in the checkpoint's meta['cfg'] has no "
                     'model: give the training --config.')


def read_as_data(text: str) -> dict:
    """The values of a config that MMEngine has saved, without executing it.

    Args:
        text (str): Python code of assignments of dicts, lists, numbers and
            strings, as ``Config.pretty_text``.

    Raises:
        ValueError: If it contains anything else, or names a type that is no
            registered class.
    """
    values = {name: _read(value) for name, value in _assignments(text)}
    _check_types(values)
    return values


def _assignments(text: str) -> Iterator[Tuple[str, ast.expr]]:
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise _not_data(error) from None
    for statement in statements:
        target = getattr(statement, 'targets', [None])[0]
        if not (isinstance(statement, ast.Assign)
                and isinstance(target, ast.Name)):
            raise _not_data(f'it has {ast.unparse(statement)[:40]!r}')
        yield target.id, statement.value


def _read(node: ast.expr) -> Any:
    try:
        return _literal(node)
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_data(error) from None


def _not_data(error: object) -> ValueError:
    return ValueError('The config that the run has saved is not plain data '
                      f'({error}): give the training --config.')


def _literal(node: Optional[ast.AST]) -> Any:
    """The value of an expression of literals and ``dict(...)`` calls."""
    if isinstance(node, ast.Call):
        if (getattr(node.func, 'id', None) != 'dict'
                or any(keyword.arg is None for keyword in node.keywords)):
            raise ValueError(f'it calls {ast.unparse(node.func)[:40]!r}')
        # A dict is an argument where its keys are no identifiers.
        return dict(*map(_literal, node.args), **{
            str(k.arg): _literal(k.value) for k in node.keywords})
    if isinstance(node, ast.Dict):
        return {
            _literal(key): _literal(value)
            for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_literal(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    return ast.literal_eval(node)  # type: ignore[arg-type] # it refuses None


def build_stored_backbone(model: dict) -> nn.Module:
    """Build the slimmable backbone of a config from :func:`stored_model`.

    Raises:
        ValueError: If there is none, or if it cannot be sliced.
    """
    arguments = dict(model.get('backbone') or {})
    name = str(arguments.pop('type', None))
    cls = MODELS.module_dict.get(name.removeprefix('us3l_mm.'))
    if not (isinstance(cls, type) and issubclass(cls, SlimmableBackbone)):
        raise ValueError(
            f'The checkpoint holds a {name}, not a slimmable backbone of '
            'us3l_mm. Ordinary ResNets become one by '
            'tools/model_converters/plain_to_ours.py.')
    if arguments.get('width') is not None:
        raise ValueError(
            f'The checkpoint holds an ordinary network of width '
            f'{arguments["width"]:g} already: there is nothing to slice.')
    arguments.pop('init_cfg', None)
    if 'slice' in arguments:  # the name in configs of older files
        arguments['slicing'] = arguments.pop('slice')
    _check_types(arguments)
    try:
        return cls(**arguments).eval()
    except TypeError as error:
        raise ValueError(f'The checkpoint says how to build its {name}, but '
                         f'not in a way that this version knows: {error}. '
                         'Give the training --config.') from None


def _check_types(value: Any) -> None:
    """Refuse a ``type`` that names anything but a registered class."""
    if isinstance(value, dict):
        if not REGISTERED.fullmatch(str(value.get('type', 'none'))):
            raise ValueError(
                f'The config in the checkpoint builds {value["type"]!r}, '
                'which is no registered class: give the training --config.')
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_types(item)
