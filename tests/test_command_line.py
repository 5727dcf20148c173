# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the command lines of all tools share."""
from argparse import ArgumentParser

import pytest

from us3l_mm.apis.command_line import OptionsAction


def options_of(*words):
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction)
    return parser.parse_args(['--cfg-options', *words]).cfg_options


@pytest.mark.parametrize('word, value', [
    ('data/my images', 'data/my images'),
    ('a  b', 'a  b'),
    (' a b ', 'a b'),
    ("'a b'", 'a b'),
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
