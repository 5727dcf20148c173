# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of tools/model_converters/."""
import pytest

from .files import DAMAGED, fill
from .harness import check, main_of, run

OURS = ['<good.pth>', 'out.pth']
PLAIN = [
    *([[f'<{name}>', 'out.pth'], name, says]
      for name, says in DAMAGED.items()),
    [['<headless.pth>', 'out.pth'], 'no ResNet', 'head.fc.weight'],
    [['<missing.pth>', 'out.pth'], 'No ResNet has [2] blocks', '18, 34'],
    [[*OURS, '--prefix', 'encoder.'], 'no ResNet under encoder.', 'backbone.'],
    [[*OURS, '--style', 'tensorflow'], "'tensorflow'", 'caffe'],
    [['<good.pth>', '<good.pth>'], 'is the checkpoint that is read',
     'another file'],
    [['<good.pth>', '<folder.pth>'], 'not an ordinary file', 'name a file'],
    [['<good.pth>', '<empty.pth>/x.pth'], 'cannot be written', 'may write to'],
    [['<good.pth>'], 'out', 'required'],
    [[*OURS, '--depth', '50'], '--depth 50'], ]
US3L = [
    *([[f'<{name}>', 'out.pth'], name, says]
      for name, says in DAMAGED.items()),
    *([[*OURS, '--statistics', f'0.5=<{name}>'], name, says]
      for name, says in DAMAGED.items()),
    [OURS, 'no student', 'plain_to_ours.py'],
    [['<headless.pth>', 'out.pth'], 'no student', 'plain_to_ours.py'],
    [[*OURS, '--method', 'dino'], "'dino'", 'byol'],
    [[*OURS, '--stem', 'big'], "'big'", 'cifar'],
    [[*OURS, '--statistics', '0.5'], "'0.5'", 'WIDTH=FILE'],
    [[*OURS, '--statistics', 'half=<good.pth>'], "'half=", 'WIDTH=FILE'],
    [[*OURS, '--statistics', '0.5='], "'0.5='", 'WIDTH=FILE'],
    [[*OURS, '--statistics', '7=<good.pth>'], "'7=", 'in (0, 1]'],
    [[*OURS, '--statistics', 'nan=<good.pth>'], "'nan=", 'WIDTH=FILE'],
    [['<good.pth>', '<good.pth>'], 'is the checkpoint that is read',
     'another file'], ]

SLIMCLR = [
    *([[f'<{name}>', 'out.pth'], name, says]
      for name, says in DAMAGED.items()),
    [['<good.pth>', '<good.pth>'], 'is the checkpoint that is read',
     'another file'],
    [['<headless.pth>', 'out.pth'], 'plain_to_ours.py'], ]


@pytest.mark.parametrize('tool, argv, needles', [
    *(('plain_to_ours', c[0], c[1:])
      for c in PLAIN), *(('us3l_to_ours', c[0], c[1:])
                         for c in US3L), *(('slimclr_to_ours', c[0], c[1:])
                                           for c in SLIMCLR)])
def test_bad_input(files, tmp_path, capsys, tool, argv, needles):
    main = main_of(f'model_converters/{tool}')
    check(run(main, fill(argv, files), tmp_path, capsys), *needles)
