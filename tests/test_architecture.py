# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""An import between rooms only ever points down; see docs/architecture.md."""
import ast
import re
from pathlib import Path

import mmengine
import pytest

ROOT = Path(__file__).parent.parent / 'us3l_mm'
# From the bottom up; rooms of one line do not know each other.
FLOORS = [
    ['registry', 'version', 'stack', 'shipped', 'mmcv_ops', 'fileio'],
    ['models/layers'],
    ['models/necks', 'models/losses', 'models/backbones'],
    ['models/heads'],
    ['models/selfsup'],
    # Some train by the loop of selfsup.
    ['models/classifiers', 'models/detectors'],
    ['models'],
    ['datasets'],
    ['export'],
    ['evaluation'],
    ['visualization'],
    ['engine'],
    ['apis'],
    ['cli'], ]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def room_of(parts):
    """The room of a dotted path inside us3l_mm, such as models.layers.conv."""
    two = '/'.join(parts[:2])
    return two if two in FLOOR else parts[0]


def imports(path):
    inside = path.relative_to(ROOT).with_suffix('').parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ['us3l_mm', *inside[:len(inside) - node.level]]
            names = [
                '.'.join((package if node.level else []) + [node.module or ''])
            ]
        else:
            continue
        yield from (name.split('.')[1:] for name in names
                    if name.startswith('us3l_mm.'))


FILES = sorted(p for p in ROOT.rglob('*.py')
               if p.parent != ROOT or p.stem != '__init__')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    inside = path.relative_to(ROOT).with_suffix('').parts
    own = room_of([part for part in inside if part != '__init__'])
    for parts in imports(path):
        other = room_of([part for part in parts if part])
        assert other == own or FLOOR[other] < FLOOR[own], (
            f'{own} must not know {other}')


def test_every_room_has_a_floor():
    rooms = {room_of(p.relative_to(ROOT).with_suffix('').parts) for p in FILES}
    assert rooms <= FLOOR.keys()


MMENGINE = Path(mmengine.__file__).parent
# Private attributes of the Runner, its loops, hooks and optimizer wrappers.
PRIVATE = {
    name for folder in ('runner', 'hooks', 'optim')
    for path in (MMENGINE / folder).rglob('*.py')
    for name in re.findall(r'self\.(_[a-z]\w*)', path.read_text())}


def private_names(path):
    """Where ``PRIVATE`` attributes of others than ``self`` are used."""
    for node in ast.walk(ast.parse(path.read_text())):
        name = ''
        if isinstance(node, ast.Attribute):
            owner = getattr(node.value, 'id', None)
            name = '' if owner in ('self', 'cls') else node.attr
        elif isinstance(node, ast.Call) and ast.unparse(
                node.func) in ('getattr', 'setattr', 'hasattr'):
            # The name may be a formatted one, such as f'_{stage}_loop'.
            name = re.sub(r'\{.*?\}', r'\\w+',
                          ast.unparse(node.args[1]).strip('f\'"'))
        if name.startswith('_') and any(
                re.fullmatch(name, each) for each in PRIVATE):
            yield f'{path.name}:{node.lineno} {ast.unparse(node)}'


def test_private_attributes_of_mmengine_are_used_in_one_file():
    assert {'_train_loop', '_resume', '_inner_count'} <= PRIVATE
    internals = ROOT / 'engine/mmengine_internals.py'
    assert len([*private_names(internals)]) >= 5
    tools = (ROOT.parent / 'tools').rglob('*.py')
    found = [
        line for path in [*FILES, *tools] if path != internals
        for line in private_names(path)]
    assert not found, found
