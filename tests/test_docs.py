# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The pages of docs/ are built, and their commands are understood."""
import ast
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from lives import finish, start

from us3l_mm import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*(ROOT / 'docs').glob('*.md'), *(ROOT / 'configs').rglob('README.md')]
# What is shown beside the commands of this project.
SHELL = ('pip', 'for', 'mkdir', 'ln', 'done', 'source', '--cfg-options')


def blocks(page, language):
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(),
                      re.S | re.M)


def commands(page):
    """Each command of a page as words, also those within a sentence."""
    lines = '\n'.join(blocks(page, 'shell')).replace('\\\n', ' ').split('\n')
    lines += re.findall(r'`((?:us3l|make|python tools/[^\s`]+) [^`]+)`',
                        page.read_text())
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.match(r'[A-Z_]+=', words[0]):
            del words[0]  # variables of the environment
        if words and words[0] not in SHELL:
            yield words


def tool_and_arguments(words):
    """The file of tools/ that a command runs, and its arguments."""
    if words[0] == 'us3l':
        return f'tools/{cli.VERBS[words[1]][0]}.py', words[2:]
    launcher = re.fullmatch(r'tools/(dist|slurm)_(train|test)\.sh', words[0])
    if launcher is None:
        [tool, *_] = [word for word in words if word.startswith('tools/')]
        return tool, words[words.index(tool) + 1:]
    tool, arguments = f'tools/{launcher[2]}.py', words[1:]
    if launcher[1] == 'slurm':
        del arguments[:2]  # partition and job
    if words[0] != 'tools/slurm_test.sh':
        # The number of processes, or the folder of the run.
        del arguments[1 if launcher[2] == 'train' else 2]
    return tool, arguments


def parse(tool, arguments, monkeypatch):
    path = ROOT / tool
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(f'parsed_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parse_args(arguments)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_are_understood(page, monkeypatch):
    makefile = (ROOT / 'Makefile').read_text()
    for words in commands(page):
        if words[0] == 'make':
            assert re.search(rf'^{words[1]}:', makefile, re.M), words
            continue
        tool, arguments = tool_and_arguments(words)
        if not arguments and words[0] == 'us3l':
            continue  # a verb that a sentence names
        try:
            parse(tool, arguments, monkeypatch)
        except SystemExit:
            pytest.fail(f'{tool} does not understand {shlex.join(words)}')
        for word in arguments:
            if word.startswith('configs/'):
                assert (ROOT / word).is_file(), word


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_is_valid_and_imports_what_there_is(page):
    for code in blocks(page, 'python'):
        for node in ast.parse(code).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                exec(ast.unparse(node), {})


def test_a_wrong_command_is_found(tmp_path, monkeypatch):
    """The test of the commands can fail."""
    page = tmp_path / 'page.md'
    page.write_text('```shell\nNNODES=2 tools/dist_train.sh CONFIG 8 \\\n'
                    '    --work-dir x  # a\n```\n`us3l flops CONFIG --nope`\n')
    first, second = map(tool_and_arguments, commands(page))
    assert first == ('tools/train.py', ['CONFIG', '--work-dir', 'x'])
    assert parse(*first, monkeypatch).work_dir == 'x'
    with pytest.raises(SystemExit):
        parse(*second, monkeypatch)


def build(folder):
    from sphinx.cmd.build import main
    sys.exit(
        main([
            '-q', '-W', '--keep-going', '-d', f'{folder}/doctrees',
            str(ROOT / 'docs'), f'{folder}/html']))


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The folder of the built pages."""
    for name in ('sphinx', 'furo', 'myst_parser'):
        pytest.importorskip(name, reason='the pages are not built')
    folder = tmp_path_factory.mktemp('site')
    log = folder / 'log'
    assert finish(start(log, build, str(folder))) == [0], log.read_text()
    return folder / 'html'


def test_every_link_between_pages_leads_somewhere(site):
    pages = {
        path: path.read_text() for path in site.rglob('*.html')
        if path.name != '404.html'}
    assert len(pages) > len(PAGES)
    count = 0
    for path, text in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            file, _, anchor = unquote(link).partition('#')
            if re.match(r'\w+:', link):
                continue
            target = (path.parent /
                      file.partition('?')[0] if file else path).resolve()
            assert target.exists(), f'{path.name}: {link}'
            if anchor and target in pages:
                assert f'id="{anchor}"' in pages[target], f'{path}: {link}'
            count += 1
    assert count > 1000


def test_pages_show_the_docstrings_and_the_recipes(site):
    api = (site / 'api/selfsup.html').read_text()
    assert 'id="us3l_mm.models.selfsup.US3LAlgorithm"' in api
    recipe = (site / 'recipes/us3l.html').read_text()
    assert 'href="us3l_detection.html"' in recipe
    assert 'href="../fidelity.html"' in recipe
    assert 'us3l_resnet50_8xb60-coslr-100e_in1k.py' in os.listdir(
        site / '_downloads') or re.search(
            r'_downloads/\w+/us3l_resnet50_8xb60', recipe)


def test_nothing_is_loaded_from_elsewhere_but_the_formulas(site):
    for path in site.rglob('*.html'):
        sources = re.findall(r'<(?:script|link|img)[^>]+"(https?://[^"]+)',
                             path.read_text())
        assert all('mathjax' in source for source in sources), path
