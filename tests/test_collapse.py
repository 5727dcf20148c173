# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""US3L's first guideline, seen on the demo's data: minutes, so not by default.
"""
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Long enough for every stage; a third of the demo.
EPOCHS = 24


def train_and_evaluate(config, folder):
    """The last line of the log, and kNN accuracy by width."""
    config = f'configs/us3l/{config}.py'
    subprocess.run([
        sys.executable, 'tools/train.py', config, '--work-dir', folder,
        '--cfg-options', f'train_cfg.max_epochs={EPOCHS}',
        f'default_hooks.checkpoint.interval={EPOCHS}'], cwd=ROOT, check=True)
    subprocess.run([
        sys.executable, 'tools/evaluate_widths.py', config,
        folder / f'epoch_{EPOCHS}.pth', '--widths', '1.0', '0.5', '0.25',
        '--baselines', '--out', folder / 'report'], cwd=ROOT, check=True)
    log, = folder.glob('*/vis_data/scalars.json')
    last = json.loads(log.read_text().splitlines()[-1])
    report = json.loads((folder / 'report/widths.json').read_text())
    return last, {row['width']: row for row in report['rows']}


@pytest.mark.slow
def test_cosine_against_its_own_output_collapses_and_us3l_does_not(tmp_path):
    us3l, sound = train_and_evaluate('us3l_resnet18_demo_digits',
                                     tmp_path / 'us3l')
    cosine, collapsed = train_and_evaluate(
        'us3l_resnet18_demo-collapse_digits', tmp_path / 'collapse')
    for log, rows in ((us3l, sound), (cosine, collapsed)):
        print(
            {
                key: round(value, 3) for key, value in log.items()
                if key.startswith(('spread', 'loss'))}, {
                    width: (row['knn'], row['untrained_knn'])
                    for width, row in rows.items()})
    assert us3l['spread_max'] > 0.6 and us3l['spread_min'] > 0.6
    assert cosine['spread_max'] < 0.1
    for width, row in sound.items():
        assert row['knn'] > row['untrained_knn'] + 15
        # Collapsed features tell digits apart no better than random ones.
        assert collapsed[width]['knn'] < row['untrained_knn'] + 10
