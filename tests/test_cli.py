# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The command us3l and its verbs."""
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from us3l_mm import __version__, cli
from us3l_mm.apis.recipes import recipes
from us3l_mm.shipped import shipped

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _arguments_of_the_process_stay(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['us3l'])
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))


@pytest.mark.parametrize('arguments', [[], ['--help']])
def test_help_names_every_verb(arguments, capsys):
    cli.main(arguments)
    text = capsys.readouterr().out
    assert all(f'\n  {verb} ' in text for verb in cli.VERBS)


@pytest.mark.parametrize('verb', cli.VERBS)
def test_every_verb_has_a_help_that_names_it(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, '--help'])
    assert not end.value.code
    assert f'usage: us3l {verb} ' in capsys.readouterr().out


def test_flags_mean_the_same_everywhere(capsys):
    flags = {}
    for verb in cli.VERBS:
        with pytest.raises(SystemExit):
            cli.main([verb, '--help'])
        flags[verb] = {*re.findall(r'--[a-z-]+', capsys.readouterr().out)}
    assert all('--out' in flags[v] for v in ('pretrain', 'evaluate', 'detect'))
    assert all('--input-size' in flags[v] for v in ('slice', 'flops'))
    assert all('--widths' in flags[v] for v in ('evaluate', 'flops'))
    assert all('--debug' in flags[v] for v in cli.VERBS)


def test_version(capsys):
    cli.main(['--version'])
    assert capsys.readouterr().out.strip() == __version__


def test_an_unknown_verb_shows_those_that_there_are():
    with pytest.raises(SystemExit, match="(?s)no verb 'trian'.*pretrain"):
        cli.main(['trian'])


def test_list_shows_every_recipe_and_what_it_is_for(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '300')
    importlib.import_module('list_recipes').main(['cifar10', 'mobilenet'])
    text = capsys.readouterr().out
    assert 'us3l_mobilenet-v2_4xb128-coslr-400e_cifar10' in text
    assert 'recipe for MobileNetV2' in text
    for recipe in recipes():
        assert recipe.path.is_file(), recipe.name
        assert importlib.import_module('list_recipes').purpose(recipe.path)


def test_list_refuses_words_that_no_recipe_has():
    with pytest.raises(SystemExit, match='nothing-like-this'):
        importlib.import_module('list_recipes').main(['nothing-like-this'])


def test_doctor_names_what_is_missing_and_the_line_that_mends_it(
        capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    importlib.import_module('doctor').main([])
    text = capsys.readouterr().out
    assert "onnx, for ONNX files:\n  pip install 'us3l_mm[export]'" in text
    assert 'torch' in text and 'tensorboard:' not in text
    ops = next(line for line in text.splitlines() if 'ops of mmcv' in line)
    assert ('compiled' in ops) != ('those of torchvision' in ops)


@pytest.mark.parametrize('load, policy, advises', [(0.1, None, False),
                                                   (1.6, None, True),
                                                   (1.6, 'PASSIVE', False)])
def test_doctor_advises_beside_busy_programs(capsys, monkeypatch, load, policy,
                                             advises):
    monkeypatch.setenv('COLUMNS', '400')
    monkeypatch.setattr('os.getloadavg', lambda: (load, 0.0, 0.0))
    monkeypatch.delenv('OMP_WAIT_POLICY', raising=False)
    if policy:
        monkeypatch.setenv('OMP_WAIT_POLICY', policy)
    importlib.import_module('doctor').main([])
    text = capsys.readouterr().out
    assert f'{load} of them busy' in text
    assert ('OMP_WAIT_POLICY=PASSIVE' in text) == advises


# A None in sys.modules is how Python marks what cannot be imported.
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({hidden}))
sys.argv = ['/usr/bin/us3l']
from us3l_mm.cli import main
for words in (['--version'], ['doctor'], ['train', 'config.py']):
    try:
        print(words, main(words))
    except SystemExit as end:
        print(words, end.code)
sys.argv = ['train.py']
del sys.modules['us3l_mm']
import us3l_mm
"""


@pytest.mark.parametrize('hidden',
                         [['mmengine', 'mmcv', 'mmpretrain'], ['mmcv']])
def test_doctor_runs_without_the_openmmlab_stack(hidden):
    done = subprocess.run([
        sys.executable, '-c',
        WITHOUT.format(hidden=hidden)],
                          capture_output=True, text=True, env=dict(
                              os.environ, PYTHONPATH=str(ROOT), COLUMNS='200'))
    install = 'pip install onedl-mmengine onedl-mmcv onedl-mmpretrain'
    says = (f"us3l_mm needs {', '.join(hidden)}, which cannot be imported. "
            f'Install the stack with: {install}')
    text = done.stdout
    assert f'{__version__}\n' in text and "['--version'] None" in text
    for name in hidden:
        assert re.search(rf'{name} +│ missing', text), text
    # MMPretrain is there without mmcv, and cannot be imported.
    names = [*hidden] + ['mmpretrain'] * (hidden == ['mmcv'])
    assert f'{"; ".join(names)}:\n  {install}' in text
    assert "['doctor'] 1\n" in text
    assert f"['train', 'config.py'] us3l train: {says}\n" in text
    # Every other program ends where it imports the package.
    assert done.returncode == 1
    assert done.stderr.endswith(f'ImportError: {says}\n'), done.stderr


def test_shipped_files_are_those_of_the_clone():
    assert shipped('configs') == ROOT / 'configs'
