# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of tools/detect_image.py."""
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from .files import DAMAGED, fill
from .harness import ROOT, check, main_of, run

MASK_RCNN = ROOT / 'configs/us3l/detection/mask-rcnn_demo_digit-scenes.py'
GOOD = [MASK_RCNN, '<good.pth>', 'image.png']
CASES = [
    *([[MASK_RCNN, f'<{name}>', 'image.png'], name, says]
      for name, says in DAMAGED.items()),
    [GOOD, 'good.pth does not name the classes', 'tools/train.py'],
    [['none.py', *GOOD[1:]], 'There is no config file none.py'],
    [[*GOOD, '--score-thr', '2'], 'between 0 and 1', '2.0'],
    [[*GOOD, '--score-thr', '-1'], '--score-thr'],
    [[*GOOD, '--score-thr', 'nan'], 'between 0 and 1', 'nan'],
    [[*GOOD, '--score-thr', 'high'], "'high'", 'float'],
    [[*GOOD, '--width', '0'], 'got 0.0', 'in (0, 1]'],
    [[*GOOD, '--width', 'wide'], "'wide'", 'such as 0.5'],
    [[*GOOD, '--device', 'gpu'], "'gpu'", 'not available'],
    [[*GOOD, '--cfg-options', 'word'], "'word'", 'KEY=VALUE'],
    [[*GOOD, '--out-dir', 'image.png'], 'image.png', 'may write to'],
    [[*GOOD[:2], 'none.png'], 'There is no image none.png'],
    [[*GOOD[:2], '.'], 'There is no image .'],
    [[*GOOD[:2], 'text.jpg'], 'text.jpg cannot be read', 'such as .jpg'],
    [[*GOOD[:2], 'empty.jpg'], 'empty.jpg cannot be read', 'such as .jpg'],
    [[*GOOD[:2], 'image.png', 'empty.jpg'], 'empty.jpg cannot be read'],
    [GOOD[:2], 'image', 'required'], ]


@pytest.fixture(scope='module')
def main():
    return main_of('detect_image')


@pytest.mark.skipif(not find_spec('mmdet'),
                    reason='MMDetection is not installed')
@pytest.mark.parametrize('argv, needles', [(c[0], c[1:]) for c in CASES])
def test_bad_input(main, files, tmp_path, capsys, argv, needles):
    cv2.imwrite(str(tmp_path / 'image.png'), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / 'text.jpg').write_text('no image')
    (tmp_path / 'empty.jpg').write_bytes(b'')
    check(run(main, fill(argv, files), tmp_path, capsys), *needles)
