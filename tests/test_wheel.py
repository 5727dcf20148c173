# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The wheel, installed elsewhere, does what the clone does."""
import os
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from test_own_images import TINY, write_images

ROOT = Path(__file__).resolve().parents[1]
# Prints which package is used, then runs the command twice.
COMMAND = """
import sys, us3l_mm
print(us3l_mm.__file__)
from us3l_mm.cli import main
main(['list', 'mobilenet', 'cifar10'])
main(sys.argv[1:])
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from a copy, as a build writes into the folder of the source."""
    source = tmp_path_factory.mktemp('source')
    names = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir',
        str(source / 'wheels'), str(source))
    return next((source / 'wheels').glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """An environment variable that puts the installed wheel first."""
    folder = tmp_path_factory.mktemp('site')
    pip('install', '--no-deps', '--target', str(folder), str(wheel))
    return dict(os.environ, PYTHONPATH=str(folder), OMP_NUM_THREADS='1')


def pip(*arguments):
    subprocess.run([
        sys.executable, '-m', 'pip', '--no-input', '--quiet', *arguments],
                   check=True)


def run(installed, folder, *arguments):
    """What ``us3l list`` and the given command print in ``folder``."""
    done = subprocess.run([sys.executable, '-c', COMMAND, *arguments],
                          cwd=folder, env=installed, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert installed['PYTHONPATH'] in done.stdout.split('\n')[0]
    return done.stdout


def test_metadata_describes_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name, = (n for n in archive.namelist() if n.endswith('/METADATA'))
        metadata = message_from_string(archive.read(name).decode())
        entry, = (n for n in archive.namelist() if 'entry_points' in n)
        assert 'us3l = us3l_mm.cli:main' in archive.read(entry).decode()
    text = metadata.get_payload()
    assert text.startswith('# us3l_mm') and '](' in text
    assert all(
        link.startswith('http') for part in text.split('](')[1:]
        for link in [part.split(')')[0]])
    assert 'mm' in metadata.get_all('Provides-Extra')
    assert any('arxiv.org' in url for url in metadata.get_all('Project-URL'))


def test_recipes_are_found_and_two_epochs_run(installed, tmp_path):
    """In another folder."""
    photos = write_images(tmp_path / 'photos', 16)
    options = [
        f'{key}={value}' for key, value in {
            **TINY, 'model.distill_head.predictor.hid_channels': 16}.items()]
    text = run(installed, tmp_path, 'pretrain', photos, '--out', 'run',
               '--image-size', '32', '--epochs', '2', '--batch-size', '8',
               '--cfg-options', *options)
    assert 'us3l_mobilenet-v2_4xb128' in text
    assert '16 images' in text
    assert (tmp_path / 'run/epoch_2.pth').is_file()


def test_configs_of_the_wheel_are_complete(installed):
    # Where OpenMMLab's mim looks.
    mim = Path(installed['PYTHONPATH'], 'us3l_mm', '.mim')
    index = yaml.safe_load((mim / 'model-index.yml').read_text())
    for metafile in index['Import']:
        for model in yaml.safe_load((mim / metafile).read_text())['Models']:
            assert (mim / model['Config']).is_file()
