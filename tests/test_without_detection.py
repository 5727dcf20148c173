# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Without MMDetection: what works, and what is said."""
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from us3l_mm import stack
from us3l_mm.apis import launching

ROOT = Path(__file__).parents[1]
DETECTOR = ROOT / 'configs/us3l/detection/mask-rcnn_r50_fpn_ms-1x_coco.py'
DEMO = ROOT / 'configs/us3l/us3l_resnet18_demo_digits.py'
# A None in sys.modules is how Python marks what cannot be imported.
BLOCKED = """
import runpy, sys
sys.modules['mmdet'] = None
sys.path.insert(0, 'tools')
for sys.argv in {commands!r}:
    runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_pre_training_and_evaluation_do_not_need_it(tmp_path):
    train = [
        'tools/train.py', DEMO, '--work-dir', tmp_path, '--no-validate',
        '--cfg-options', 'train_cfg.max_epochs=1',
        'default_hooks.checkpoint.interval=1',
        'train_dataloader.dataset.num_images=128', 'log_level=WARNING']
    evaluate = [
        'tools/evaluate_widths.py', DEMO, tmp_path / 'epoch_1.pth', '--knn',
        '--widths', '1.0', '0.25', '--out', tmp_path / 'report',
        '--cfg-options', 'knn_bank_dataloader.dataset.num_images=64',
        'knn_query_dataloader.dataset.num_images=32']
    code = BLOCKED.format(commands=[[*map(str, words)]
                                    for words in (train, evaluate)])
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT,
                          capture_output=True, text=True, env={
                              **os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'report/widths.json').is_file()


@pytest.mark.parametrize('tool, argv', [
    ('train', [DETECTOR]), ('test', [DETECTOR, __file__]),
    ('get_flops', [DETECTOR]),
    ('detect_image', [DETECTOR, __file__, ROOT / 'docs/images/demo_curve.png'
                      ])])
def test_asking_for_detection_says_what_to_install(monkeypatch, tool, argv):
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    module = importlib.import_module(tool)
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    monkeypatch.setattr('sys.argv', [tool, *map(str, argv)])
    with pytest.raises(
            SystemExit, match=r'MMDetection \(mmdet\), which is '
            r"not installed.*pip install -e '.\[detection\]'"):
        module.main()


@pytest.mark.parametrize('module, error, says', [
    ('mmdet', AssertionError('MMCV==2.2.0 is used but incompatible.'),
     r'refuses.*incompatible.*\.\[detection\]'),
    ('mmcv._ext', ImportError('undefined symbol: _ZN3c10'),
     r'compiled ops of mmcv do not load: undefined symbol.*pip install '
     r'--no-cache-dir --no-deps --force-reinstall onedl-mmcv'), ])
def test_what_does_not_fit_is_named(monkeypatch, module, error, says):

    def refuse(name):
        if name == module:
            raise error

    monkeypatch.setattr(stack, 'find_spec', lambda name: 'found')
    monkeypatch.setattr(stack, 'import_module', refuse)
    with pytest.raises(ImportError, match=says):
        stack.check_detection()


def test_another_missing_module_keeps_its_own_name(tmp_path):
    config = tmp_path / 'a.py'
    config.write_text("custom_imports = dict(imports=['no_such_module'])")
    with pytest.raises(ImportError, match='no_such_module'):
        launching.load_config(str(config))
