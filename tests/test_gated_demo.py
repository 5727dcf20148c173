# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""`make demo DEMO=gated`, with three iterations of training."""
import importlib
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parent.parent
CONFIG = 'configs/gated/gated_resnet18_demo_digits.py'
needs_make = pytest.mark.skipif(
    shutil.which('make') is None, reason='make is not installed')
SMALL = [
    'train_cfg.max_epochs=3', 'default_hooks.checkpoint.interval=3',
    'train_dataloader.dataset.num_images=128',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False']
IMAGES = [
    'knn_bank_dataloader.dataset.num_images=100',
    'knn_query_dataloader.dataset.num_images=100']


def commands_of_make():
    """The arguments of the two tools, by their names."""
    done = subprocess.run([
        'make', '--no-print-directory', '--dry-run', 'demo', 'DEMO=gated'],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace('\\\n', ' ').splitlines()
    found = {}
    for line in lines:
        words = shlex.split(line)
        if len(words) > 1 and words[1].startswith('tools/'):
            found[Path(words[1]).stem] = words[2:]
    return found


@needs_make
def test_the_demo_compares_dense_gated_and_two_budgets(tmp_path, monkeypatch,
                                                       capsys):
    commands = commands_of_make()
    assert [*commands][-2:] == ['train', 'evaluate_widths']
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    for tool, more in (('train', SMALL), ('evaluate_widths', IMAGES)):
        arguments = [
            word.replace('work_dirs/demo-gated', str(tmp_path)).replace(
                f'$(cat {tmp_path}/last_checkpoint)',
                str(tmp_path / 'epoch_3.pth')) for word in commands[tool]]
        importlib.import_module(tool).main([
            *arguments, '--cfg-options', *more])
    report = json.loads((tmp_path / 'report/widths.json').read_text())
    rows = report['rows']
    assert [(row['subnet'], row.get('budget'))
            for row in rows] == [('w1.00', None), ('gated', None),
                                 ('gated', 0.7), ('gated', 0.45)]
    assert all(row['knn'] > 0 for row in rows)
    assert report['raw_pixels'] > 0 and rows[0]['untrained_knn'] > 0
    for row in rows[2:]:
        # Loose, as there are so few images.
        assert row['ratio'] == pytest.approx(row['budget'], rel=0.1)
    names = {path.name for path in (tmp_path / 'report').iterdir()}
    assert {'widths_knn.png', 'widths_gates.png'} <= names
    assert 'gated 0.45' in capsys.readouterr().out


def test_the_demo_is_the_published_recipe_on_a_small_network():
    """What makes it dense + gated SSL is as published."""
    model = Config.fromfile(ROOT / CONFIG).model
    assert model.type == 'us3l_mm.DenseGatedSSL'
    assert model.head.loss == dict(type='us3l_mm.VICRegLoss', invariance=25.0,
                                   variance=25.0, covariance=1.0)
    assert model.backbone.norm_cfg.type == 'SwitchableBN'
