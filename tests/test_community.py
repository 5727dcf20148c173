# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The files for people who cite, report, contribute, or run a public CI."""
import re
from pathlib import Path

import pytest
import yaml

from us3l_mm import __version__, cli

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = sorted((ROOT / '.github/ISSUE_TEMPLATE').glob('*.yml'))


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


def test_the_citation_is_of_this_version_and_of_all_papers():
    citation = read('CITATION.cff')
    assert citation['version'] == __version__
    assert citation['license'] == 'Apache-2.0'
    papers = {paper['url']: paper for paper in citation['references']}
    methods = [
        path for path in (ROOT / 'configs').glob('*/README.md')
        if path.parent.name != '_base_']
    assert len(papers) == len(methods) == 3
    for path in methods:
        title, url = re.search(r'^> \[(.*)\]\((.*)\)$', path.read_text(),
                               re.M).groups()
        assert papers[url]['title'] == title
        names = re.search(r'author=\{(.*)\}', path.read_text())[1]
        assert [name.split(',')[0] for name in names.split(' and ')] == [
            author['family-names'] for author in papers[url]['authors']]


@pytest.mark.parametrize('path', [p for p in TEMPLATES if p.stem != 'config'],
                         ids=lambda p: p.stem)
def test_a_template_asks_for_what_is_needed(path):
    template = read(path)
    fields = [
        field for field in template['body'] if field['type'] != 'markdown']
    required = [
        field for field in fields
        if field.get('validations', {}).get('required')]
    assert template['name'] and template['description'] and required
    assert len({field['id'] for field in fields}) == len(fields)
    for verb in re.findall('`us3l ([a-z]+)', path.read_text()):
        assert verb in cli.VERBS


def test_the_workflow_calls_verbs_of_the_makefile_on_both_ends_of_python():
    workflow = read('.github/workflows/test.yml')
    job = workflow['jobs']['test']
    assert job['strategy']['matrix']['python'] == ['3.10', '3.12']
    runs = [step['run'] for step in job['steps'] if 'run' in step]
    makefile = (ROOT / 'Makefile').read_text()
    verbs = [line.split()[1] for line in runs]
    assert verbs == ['lint', 'test']
    assert all(re.search(rf'^{verb}:', makefile, re.M) for verb in verbs)
    assert all('@v' in step['uses'] for step in job['steps'] if 'uses' in step)
    assert 'secrets.' not in (ROOT / '.github/workflows/test.yml').read_text()
