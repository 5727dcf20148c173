# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of tools/train.py."""
import pytest

from .harness import ROOT, check, main_of, run

DIGITS = ROOT / 'configs/us3l/us3l_resnet18_demo_digits.py'
CASES = [
    ([ROOT / 'configs/us3l/r50_8xb265.py'], 'r50_8xb265.py', 'Did you mean'),
    ([DIGITS, '--resume', 'none.pth'], '--resume none.pth', 'work dir'),
    ([DIGITS, '--cfg-options',
      'train_cgf.max_epochs=1'], 'train_cgf', 'Did you mean train_cfg'), ]


@pytest.fixture(scope='module')
def main():
    return main_of('train')


@pytest.mark.parametrize('argv, needles', [(c[0], c[1:]) for c in CASES])
def test_bad_input(main, tmp_path, capsys, argv, needles):
    check(run(main, argv, tmp_path, capsys), *needles)
