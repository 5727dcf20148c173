# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of tools/dataset_converters/npz_to_folder.py."""
import io
import os
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from .harness import check, main_of, run

PIXELS = np.zeros((3, 4, 5, 3), np.uint8)
LABELS = np.array([1, 0, 11])


def png(size=(8, 8)):
    file = io.BytesIO()
    Image.new('RGB', size).save(file, format='PNG')
    return file.getvalue()


def encoded(*files):
    return dict(blob_train=np.frombuffer(b''.join(files), np.uint8),
                off_train=np.cumsum([0, *map(len, files)]), y_train=np.zeros(
                    len(files), int))


def huge_png():
    """A header of 60,000 x 60,000 pixels."""
    content = bytearray(png())
    content[16:24] = (60000).to_bytes(4, 'big') * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, 'big')
    return bytes(content)


ABSENT = 'absent'
# Changes to the arrays of a good file.
ARRAYS = [
    (dict(x_train=PIXELS.astype(float)), 'x_train', 'uint8', 'float64'),
    (dict(x_train=PIXELS[..., :2]), 'x_train', '(3, 4, 5, 2)'),
    (dict(x_train=PIXELS[0, 0]), 'x_train', '(5, 3)'),
    (dict(x_train=PIXELS[:0]), 'x_train', '(0, 4, 5, 3)'),
    (dict(x_train=ABSENT), 'x_train', "['y_train']"),
    (dict(y_train=ABSENT), 'no y_train', "['x_train']"),
    (dict(y_train=LABELS[:2]), 'y_train', '(3,)', '(2,)'),
    (dict(y_train=LABELS - 1), 'y_train', 'from 0'),
    (dict(y_train=LABELS * 1.0), 'y_train', 'integers', 'float64'),
    (dict(y_train=LABELS[:, None]), 'y_train', '(3, 1)'),
    (dict(y_train=np.array(['a', 'b', 'c'])), 'y_train', 'integers'),
    (dict(y_train=np.array([0, 1, 10**9])), '1,000,000,001 classes',
     '--max-classes'),
    (dict(y_train=np.array([0, 1, 2**63], np.uint64)), 'classes',
     '--max-classes'),
    (dict(class_names=np.array(['a', 'b'])), '2 class_names', 'up to 11'),
    (dict(class_names=np.arange(12)), 'class_names', 'int64'),
    (dict(class_names=np.array([['a'] * 12])), 'class_names', '(1, 12)'),
    (dict(class_names=np.array([*'abcdefghijk', 'a/b'])), "'a/b'", 'folders'),
    (dict(class_names=np.array([*'abcdefghijk', '..'])), "'..'", 'folders'),
    (dict(class_names=np.array([*'abcdefghijk', ''])), "''", 'folders'),
    (dict(class_names=np.array([*'abcdefghijk', 'a\nb'])), r"'a\nb'",
     'folders'),
    (dict(class_names=np.array([*'abcdefghijk', '/etc'])), "'/etc'",
     'folders'),
    (dict(class_names=np.array([*'abcdefghijk', 'A'])), 'different names',
     "'a'"),
    (dict(class_names=np.array([*'abcdefghijk', 'l' * 256])), '255 bytes',
     '256'),
    (dict(class_names=np.array(['x' * 5] * 30000)), '30,000 classes',
     '--max-classes'),
    (dict(class_names=np.array([object()])), 'class_names', 'Python objects'),
]
# Changes to the arrays of a good file of encoded images.
ENCODED = [
    (dict(off_train=ABSENT), 'no off_train', 'blob_train'),
    (dict(off_train=np.array([0, 9, 3])), 'off_train', 'rising'),
    (dict(off_train=np.array([0, 10**6])), 'off_train', '1000000'),
    (dict(off_train=np.array([-5, 10])), 'off_train', '-5'),
    (dict(off_train=np.array([0])), 'off_train', '(N + 1,)'),
    (dict(off_train=np.array([0.0, 9.0])), 'off_train', 'float64'),
    (dict(blob_train=np.zeros(9)), 'blob_train', 'float64'),
    (dict(blob_train=np.zeros((3, 3), np.uint8)), 'blob_train', '(3, 3)'),
    (encoded(b'GIF89a..'), 'train 0', 'JPEG nor a PNG'),
    (encoded(png(),
             png()[:40]), 'image train 1', 'Replace it'),
    (encoded(png(), b'\xff\xd8\xff' + bytes(50)), 'image train 1',
     'cannot be decoded'),
    (encoded(huge_png()), 'image train 0', 'pixels'), ]
# Files and arguments.
COMMANDS = [
    ([], 'SRC.npz', 'required'),
    (['good.npz'], 'DST', 'required'),
    (['absent.npz', 'out'], 'no file absent.npz'),
    (['.', 'out'], 'no file .'),
    (['text.npz', 'out'], 'text.npz', 'not an .npz file'),
    (['empty.npz', 'out'], 'empty.npz', 'not an .npz file'),
    (['one.npy', 'out'], 'one.npy', 'not an .npz file'),
    (['short.npz', 'out'], 'short.npz', 'not an .npz file'),
    (['flipped.npz', 'out'], 'flipped.npz', 'damaged'),
    (['other.npz', 'out'], 'other.npz', 'is damaged'),
    (['lying.npz', 'out'], 'lying.npz', '(1000000000000,)'),
    (['nothing.npz', 'out'], 'neither blob_train', '[]'),
    (['good.npz', '.'], 'exists already', 'Name a new folder'),
    (['good.npz', 'text.npz'], 'text.npz exists already'),
    (['good.npz', 'text.npz/out'], 'text.npz', 'is not a folder'),
    (['good.npz', 'x' * 300], 'name too long'),
    (['good.npz', 'out', '--max-gib', '0'], '--max-gib', 'above 0'),
    (['good.npz', 'out', '--max-gib', 'nan'], '--max-gib', 'nan'),
    (['good.npz', 'out', '--max-gib', 'all'], "'all'", 'float'),
    (['good.npz', 'out', '--max-gib', '1e-8'], 'GiB', 'raise --max-gib'),
    (['good.npz', 'out', '--max-classes',
      '5'], '12 classes', 'raise --max-classes'),
    (['good.npz', 'out', '--max-classes', '-1'], '--max-classes', '-1'),
    (['good.npz', 'out', 'more'], 'more', 'unrecognized'), ]


@pytest.fixture(scope='module')
def main():
    return main_of('dataset_converters/npz_to_folder')


def save(path, arrays):
    np.savez(
        path, **{
            key: value for key, value in arrays.items()
            if value is not ABSENT})


def write_files(folder):
    save(folder / 'good.npz', dict(x_train=PIXELS, y_train=LABELS))
    save(folder / 'nothing.npz', {})
    np.save(folder / 'one.npy', PIXELS)
    (folder / 'text.npz').write_text('no')
    (folder / 'empty.npz').touch()
    whole = (folder / 'good.npz').read_bytes()
    (folder / 'short.npz').write_bytes(whole[:len(whole) // 2])
    flipped = bytearray(whole)
    flipped[200] ^= 255
    (folder / 'flipped.npz').write_bytes(flipped)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, dict(descr='|u1', fortran_order=False, shape=(10**12, )))
    for name, content in (('other', b'no array'), ('lying',
                                                   header.getvalue())):
        with zipfile.ZipFile(folder / f'{name}.npz', 'w') as archive:
            archive.writestr('x_train.npy', content)


@pytest.mark.parametrize(
    'arrays, needles', [
        *((dict(x_train=PIXELS, y_train=LABELS) | changes, needles)
          for changes, *needles in ARRAYS),
        *((encoded(png()) | changes, needles)
          for changes, *needles in ENCODED)], ids=lambda value: str(value[0])
    if isinstance(value, list) else '')
def test_bad_arrays(main, tmp_path, capsys, arrays, needles):
    save(tmp_path / 'data.npz', arrays)
    check(run(main, ['data.npz', 'new/out'], tmp_path, capsys), *needles)


@pytest.mark.parametrize('argv, needles', [(c[0], c[1:]) for c in COMMANDS],
                         ids=lambda value: ' '.join(value)[:60])
def test_bad_input(main, tmp_path, capsys, argv, needles):
    write_files(tmp_path)
    check(run(main, argv, tmp_path, capsys), *needles)


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_folder_that_may_not_be_written(main, tmp_path, capsys):
    write_files(tmp_path)
    (tmp_path / 'locked').mkdir(mode=0o500)
    check(run(main, ['good.npz', 'locked/out'], tmp_path, capsys), 'locked',
          'you may write to')
