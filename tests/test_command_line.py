# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the command lines of all tools share."""
from argparse import ArgumentParser

import pytest

from us3l_mm.apis import command_line
from us3l_mm.apis.command_line import OptionsAction, errors_as_sentences
from us3l_mm.engine import NonFiniteHook


def options_of(*words):
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction)
    return parser.parse_args(['--cfg-options', *words]).cfg_options


@pytest.mark.parametrize('word, value', [
    ('data/my images', 'data/my images'),
    ('a  b', 'a  b'),
    (' a b ', 'a b'),
    ("'a b'", 'a b'),
    ('"a, b"', 'a, b'),
    ('[1, 2 ,3]', [1, 2, 3]),
    ('[my images, b c]', ['my images', 'b c']),
    ('( 1 , [2, a b] )', (1, [2, 'a b'])),
    ('1, 2', [1, 2]),
    ('a b=c', 'a b=c'),
    ('None', None),
    ('true', True),
    ('0.5', 0.5), ])
def test_blanks_in_values_stay(word, value):
    assert options_of(f'key={word}', 'other=1') == dict(key=value, other=1)


@pytest.mark.parametrize('word, says', [
    ('key', "takes KEY=VALUE, got 'key'"),
    ('=3', "takes KEY=VALUE, got '=3'"),
    ('key=[1', 'brackets do not match'), ])
def test_what_is_no_option_ends_the_program(word, says, capsys):
    with pytest.raises(SystemExit) as end:
        options_of(word)
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def leave(error, **options):
    """How a program ends in which ``error`` is raised."""
    with errors_as_sentences('tool.py', **options):
        raise error


def test_a_mistake_ends_with_its_sentence():
    for error in (ValueError('what it is'), KeyError('what it is')):
        with pytest.raises(SystemExit) as end:
            leave(error)
        assert end.value.code == 'tool.py: what it is'
        with pytest.raises(type(error)):
            leave(error, debug=True)


def test_what_nobody_foresees_keeps_its_traceback(capsys):
    with pytest.raises(LookupError) as error:
        with errors_as_sentences('tool.py'):
            [][0]
    notes = getattr(error.value, '__notes__', [capsys.readouterr().out])
    assert 'To report it' in notes[0]
    # In training, mistakes are what this package refuses.
    with pytest.raises(ValueError):
        leave(ValueError('of another library'), is_training=lambda: True)
    with pytest.raises(SystemExit, match='at least 1 step'):
        with errors_as_sentences('tool.py', is_training=lambda: True):
            NonFiniteHook(max_consecutive=0)
    with pytest.raises(SystemExit, match='No space left'):
        leave(OSError('No space left'), is_training=lambda: True)


def test_the_other_processes_wait_before_they_repeat_it(monkeypatch):
    waits = []
    monkeypatch.setattr(command_line, 'sleep', waits.append)
    monkeypatch.setenv('RANK', '2')
    with pytest.raises(SystemExit, match='tool.py, process 2: text'):
        leave(ValueError('text'))
    assert waits == [command_line.PATIENCE]
