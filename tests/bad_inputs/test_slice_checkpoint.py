# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of tools/slice_checkpoint.py."""
import pytest

from .files import DAMAGED, fill
from .harness import ROOT, check, main_of, run

DIGITS = ROOT / 'configs/us3l/us3l_resnet18_demo_digits.py'
HALF = ['<good.pth>', 'out.pth', '--width', '0.5']
CASES = [
    # the checkpoint
    *([[f'<{name}>', *HALF[1:]], name, says]
      for name, says in DAMAGED.items()),
    [['<shape.pth>', *HALF[1:]], 'layer1.0.conv1.weight', 'same depth and'],
    [['<missing.pth>', *HALF[1:]], 'missing: ', 'same depth and channels'],
    [['<headless.pth>', *HALF[1:]], "such as ['head.fc.weight']",
     'checkpoint of its training'],
    [['<no_config.pth>', *HALF[1:]], "no meta['cfg']", '--config'],
    [['<config_with_code.pth>', *HALF[1:]], "calls 'exec'", '--config'],
    [['<plain_config.pth>', *HALF[1:]], 'holds a ResNet', 'plain_to_ours.py'],
    [['<sliced.pth>', *HALF[1:]], 'width 0.5 already', 'nothing to slice'],
    # the width and the budget
    *([[*HALF[:3], width], says, 'in (0, 1]']
      for width, says in (('0', 'got 0.0'), ('2', 'got 2.0'))),
    [[*HALF[:3], '-1'], '-1'],
    [[*HALF[:3], '0.1'], 'Width 0.1', 'range [0.25, 1]'],
    [[*HALF[:3], 'nan'], "'nan'", 'such as 0.5'],
    [[*HALF[:3], 'half'], "'half'", 'such as 0.5'],
    [[*HALF[:3], ''], "''", 'such as 0.5'],
    [[*HALF[:3], '0,5'], "'0,5'", 'such as 0.5'],
    [[*HALF[:3], 'gated'], 'no gates', 'Use a width'],
    [[*HALF, '--target', '0.3'], '--target is for --width gated'],
    [[*HALF[:3], 'gated', '--max-gap', 'none'], "'none'", 'float'],
    [[*HALF[:3], 'gated', '--target', '3'], 'target', '(0, 1], got 3'],
    [[*HALF[:3], 'gated', '--min-share', '0'], 'min_share', 'got 0'],
    [HALF[:2], '--width', 'required'],
    [[*HALF, '--flops', '1G'], '--flops', 'not allowed with'],
    *([[*HALF[:2], f'--{kind}', amount],
       repr(amount), 'positive number']
      for kind, amount in (('flops', '1X'), ('flops', '-3'), ('flops', '0'),
                           ('flops', 'nan'), ('params', 'few'),
                           ('params', '1e999'), ('latency', '5'),
                           ('latency', '0ms'))),
    [[*HALF[:2], '--params', '10'], 'budget of 10 parameters',
     'the smallest, w0.25, takes'],
    # other arguments
    [[*HALF, '--num-images', '0'], 'num_images', 'at least 1, got 0'],
    [[*HALF, '--num-images', 'all'], "'all'", 'int'],
    [[*HALF, '--input-size', '-4'], 'input_size', 'at least 1, got -4'],
    [[*HALF, '--input-size', '2.5'], "'2.5'", 'int'],
    [[*HALF, '--device', 'gpu'], "'gpu'", 'not available'],
    [[*HALF, '--device', 'cuda:99'], "'cuda:99'", 'not available'],
    [[*HALF, '--format', 'caffe'], "'caffe'", 'mmpretrain'],
    [[*HALF, '--widths', '1'], 'unrecognized arguments: --widths'],
    # the file to write
    [['<good.pth>', '<good.pth>', *HALF[2:]], 'is the checkpoint that is read',
     'name another file'],
    [['<good.pth>', '<folder.pth>', *HALF[2:]], 'is not an ordinary file',
     'name a file'],
    [['<good.pth>', '<good.pth>/out.pth', *HALF[2:]], 'cannot be written',
     'folder that you may write to'],
    [['<good.pth>', '/dev/null', *HALF[2:]], '/dev/null is not an ordinary'],
    # the config
    [HALF, 'no batch-norm statistics for w0.50', '--config'],
    [[*HALF, '--config', 'none.py'], 'none.py', 'no config file'],
    [[*HALF, '--config', str(DIGITS).replace('demo', 'dem')], 'Did you mean',
     DIGITS.name],
    [[*HALF, '--config', DIGITS], 'does not fit', DIGITS.name],
    [[*HALF, '--cfg-options', 'a=1'], "by ['a']", 'Give --config'],
    [[*HALF, '--config', DIGITS, '--cfg-options', 'modle.x=1'], 'modle',
     'Did you mean model'],
    [[*HALF, '--config', DIGITS, '--cfg-options', 'word'], "'word'",
     'KEY=VALUE'], ]


@pytest.fixture(scope='module')
def main():
    return main_of('slice_checkpoint')


@pytest.mark.parametrize('argv, needles', [(c[0], c[1:]) for c in CASES])
def test_bad_input(main, files, tmp_path, capsys, argv, needles):
    check(run(main, fill(argv, files), tmp_path, capsys), *needles)
