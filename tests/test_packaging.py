# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What setup.py, the pins, the Makefile and the stack check promise."""
import ast
import re
import runpy
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

import us3l_mm
from us3l_mm import stack

ROOT = Path(__file__).resolve().parents[1]
CODE = [
    path for folder in ('us3l_mm', 'tools')
    for path in sorted((ROOT / folder).rglob('*.py'))]
# Where the name to import is not the name to install.
DISTRIBUTIONS = {
    'cv2': 'onedl-mmcv',  # comes with mmcv, which asks for OpenCV itself
    'mmcv': 'onedl-mmcv',
    'mmdet': 'onedl-mmdetection',
    'mmengine': 'onedl-mmengine',
    'mmpretrain': 'onedl-mmpretrain',
    'PIL': 'pillow',
    'sklearn': 'scikit-learn',
    'yaml': 'pyyaml', }
# A tool may use the one beside it.
TOOLS = {path.stem for path in (ROOT / 'tools').rglob('*.py')}
needs_make = pytest.mark.skipif(
    shutil.which('make') is None, reason='make is not installed')


@pytest.fixture
def setup_arguments(monkeypatch):
    """What setup.py hands to setuptools."""
    arguments = {}
    monkeypatch.setattr(setuptools, 'setup', arguments.update)
    runpy.run_path(str(ROOT / 'setup.py'))
    return arguments


def requirement_names(requirements):
    return {Requirement(text).name for text in requirements}


def read_pins():
    lines = (ROOT / 'requirements/constraints.txt').read_text().splitlines()
    return dict(line.split('==') for line in lines if '==' in line)


def imported_distributions(nodes):
    """Third-party distributions that the import statements need."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split('.')[0])
    names -= {*sys.stdlib_module_names, 'us3l_mm', *TOOLS}
    return {DISTRIBUTIONS.get(name, name) for name in names}


def test_every_third_party_import_is_declared(setup_arguments):
    extras = setup_arguments['extras_require']
    core = requirement_names(setup_arguments['install_requires'] +
                             extras['mm'])
    known = core.union(*map(requirement_names, extras.values()))
    for path in CODE:
        tree = ast.parse(path.read_text())
        assert imported_distributions(ast.walk(tree)) <= known, path
        # What is an extra may be absent: it is imported where it is used.
        if path.is_relative_to(ROOT / 'us3l_mm'):
            assert imported_distributions(tree.body) <= core, path


def test_version_is_that_of_the_package(setup_arguments):
    assert setup_arguments['version'] == us3l_mm.__version__


def test_installing_never_puts_one_stack_beside_the_other(setup_arguments):
    of_a_stack = {name for pair in stack.STACK.values() for name in pair}
    required = requirement_names(setup_arguments['install_requires'])
    assert not required & of_a_stack
    for extra, requirements in setup_arguments['extras_require'].items():
        if extra != 'mm':
            assert not requirement_names(requirements) & of_a_stack, extra


def test_every_requirement_is_pinned_inside_its_range(setup_arguments):
    pins = read_pins()
    # Make installs neither of these.
    extras = dict(setup_arguments['extras_require'], dev=[], benchmark=[])
    for text in chain(setup_arguments['install_requires'], *extras.values()):
        requirement = Requirement(text)
        assert requirement.name in pins
        assert requirement.specifier.contains(pins[requirement.name]), text


@pytest.mark.parametrize('tool', ['mypy', 'ruff', 'yapf'])
def test_pre_commit_runs_the_pinned_tools(tool):
    hooks = (ROOT / '.pre-commit-config.yaml').read_text()
    assert f"'{tool}=={read_pins()[tool]}'" in hooks


def test_missing_stack_says_what_to_install(monkeypatch):
    monkeypatch.setattr(stack, 'find_spec', lambda name: None
                        if name == 'mmcv' else 'found')
    with pytest.raises(
            ImportError, match='needs mmcv, which cannot be '
            'imported.*pip install onedl-mmengine onedl-mmcv'):
        stack.check_stack()


def test_mixed_stack_says_what_to_remove(monkeypatch):
    installed = {
        'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain', 'mmengine'}
    monkeypatch.setattr(stack, 'is_installed', installed.__contains__)
    with pytest.raises(
            ImportError, match='onedl-mmengine and mmengine.*pip '
            'uninstall -y mmengine onedl-mmengine && pip install'):
        stack.check_stack()


@pytest.mark.parametrize('line', [0, 1])
def test_either_stack_alone_is_accepted(line, monkeypatch):
    installed = {pair[line] for pair in stack.STACK.values()}
    monkeypatch.setattr(stack, 'is_installed', installed.__contains__)
    stack.check_stack()


@pytest.mark.parametrize('version, modules, message', [
    ((3, 9, 2), ['venv', 'ensurepip'], r'Python 3\.9\.2; us3l_mm runs on'),
    ((3, 13, 0), ['venv', 'ensurepip'], 'make demo PYTHON=python3.11'),
    ((3, 12, 1), ['venv'], 'apt install python3.12-venv'), ])
def test_unusable_python_is_refused(version, modules, message):
    tool = runpy.run_path(str(ROOT / 'tools/setup/check_python.py'))
    problem = tool['find_problem'](version, modules.__contains__)
    assert re.search(message, problem)


@pytest.mark.parametrize('minor', [10, 11, 12])
def test_supported_python_is_accepted(minor):
    tool = runpy.run_path(str(ROOT / 'tools/setup/check_python.py'))
    assert tool['find_problem']((3, minor, 0), lambda name: True) is None


def run_make(*arguments):
    done = subprocess.run(['make', '--no-print-directory', *arguments],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_make
def test_make_alone_lists_every_verb():
    verbs = re.search(r'^\.PHONY: (.*)', (ROOT / 'Makefile').read_text(),
                      re.M)[1].split()
    listed = set(re.findall(r'^make (\S+)', run_make(), re.M))
    assert listed == set(verbs) - {'help'}


@needs_make
@pytest.mark.parametrize('verb, stamps', [
    ('demo', ['.installed']),
    ('demo-detection', ['.installed', '.installed-detection']),
    ('test', ['.installed', '.installed-detection', '.installed-tests']), ])
def test_second_run_installs_nothing(verb, stamps, tmp_path):
    (tmp_path / 'bin').mkdir()
    for name in ['bin/python', *stamps]:
        (tmp_path / name).touch()
    dry = [verb, '--dry-run', f'VENV={tmp_path}']
    assert 'pip' not in run_make(*dry)
    # ... until what is to be installed has changed.
    assert 'pip --no-input install' in run_make(
        *dry, '--what-if=requirements/constraints.txt')


@needs_make
@pytest.mark.parametrize('demo, config, folder', [
    ('resnet18', 'us3l/us3l_resnet18_demo_digits.py', 'work_dirs/demo '),
    ('vit', 'us3l/us3l_vit_demo_digits.py', 'work_dirs/demo-vit '),
    ('slimclr', 'slimclr/slimclr_resnet18_demo_digits.py',
     'work_dirs/demo-slimclr '),
    ('gated', 'gated/gated_resnet18_demo_digits.py', 'work_dirs/demo-gated '),
    ('us3l_resnet18_demo-collapse_digits',
     'us3l/us3l_resnet18_demo-collapse_digits.py',
     'work_dirs/demo-us3l_resnet18_demo-collapse_digits ')])
def test_each_demo_has_a_folder_of_its_own(demo, config, folder):
    commands = run_make('demo', '--dry-run', f'DEMO={demo}')
    assert (f'tools/train.py configs/{config} --work-dir {folder}' in commands)
