# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of tools/get_flops.py."""
import pytest

from .harness import ROOT, check, main_of, run

DIGITS = ROOT / 'configs/us3l/us3l_resnet18_demo_digits.py'
CASES = [
    [['none.py'], 'There is no config file none.py'],
    [[str(DIGITS).replace('demo', 'dmo')], 'Did you mean', DIGITS.name],
    [['config.py'], 'config.py', 'has no model'],
    [['broken.py'], 'broken.py', 'line 1'],
    [['unknown.py'], 'us3l_mm.SlimmableResNt'],
    [['.'], 'There is no config file .'],
    [[DIGITS, '--input-size', '0'], '--input-size', 'got [0]'],
    [[DIGITS, '--input-size', '32', '32', '3'], 'one or two sizes',
     '[32, 32, 3]'],
    [[DIGITS, '--input-size', '-32'], '--input-size', '-32'],
    [[DIGITS, '--input-size', 'big'], "'big'", 'int'],
    [[DIGITS, '--input-size', '2.5'], "'2.5'", 'int'],
    [[DIGITS, '--widths', '0'], 'got 0.0', 'in (0, 1]'],
    [[DIGITS, '--widths', '3'], 'got 3.0', 'in (0, 1]'],
    [[DIGITS, '--widths', 'nan'], "'nan'", 'such as 0.5'],
    [[DIGITS, '--widths', 'half'], "'half'", 'such as 0.5'],
    [[DIGITS, '--widths', '0.1'], 'Width 0.1', '[0.25, 1]'],
    [[DIGITS, '--widths', 'gated'], 'no gates', 'Use a width'],
    [[DIGITS, '--cfg-options', 'modle.x=1'], 'modle', 'Did you mean model'],
    [[DIGITS, '--cfg-options', 'word'], "'word'", 'KEY=VALUE'],
    [[DIGITS, '--cfg-options', 'model.backbone.depth=19'], '19'],
    [[DIGITS, '--cfg-options', 'model.backbone.colour=3'], 'colour'],
    [[DIGITS, '--cfg-options', 'model.backbone.base_channels=-4'], '-4'],
    [[], 'config', 'required'], ]


@pytest.fixture(scope='module')
def main():
    return main_of('get_flops')


@pytest.mark.parametrize('argv, needles', [(c[0], c[1:]) for c in CASES])
def test_bad_input(main, tmp_path, capsys, argv, needles):
    (tmp_path / 'config.py').write_text('train_cfg = dict(max_epochs=3)')
    (tmp_path / 'broken.py').write_text('model = dict(')
    (tmp_path / 'unknown.py').write_text(
        f'_base_ = {str(DIGITS)!r}\n'
        "model = dict(backbone=dict(type='us3l_mm.SlimmableResNt'))")
    check(run(main, argv, tmp_path, capsys), *needles)
