# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A data set in one .npz file becomes a folder, whole or not at all."""
import errno
import io
import runpy
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mmpretrain.datasets import CustomDataset
from PIL import Image

ROOT = Path(__file__).parents[1]
TOOL = ROOT / 'tools/dataset_converters/npz_to_folder.py'
npz_to_folder = runpy.run_path(str(TOOL))['npz_to_folder']


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, format='JPEG')
    return file.getvalue()


def encoded(count: int, split: str) -> dict:
    files = [jpeg(seed) for seed in range(count)]
    return {
        f'blob_{split}': np.frombuffer(b''.join(files), np.uint8),
        f'off_{split}': np.cumsum([0, *map(len, files)]),
        f'y_{split}': np.arange(count) % 2,
        'class_names': np.array(['ant', 'bee'])}


def pixels(**changes) -> dict:
    x = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    return {**dict(x_train=x, y_train=np.array([1, 0, 11])), **changes}


def saved(folder: Path, arrays: dict) -> Path:
    np.savez(folder / 'data.npz', **arrays)
    return folder / 'data.npz'


def test_encoded_images_are_written_byte_for_byte(tmp_path):
    source = saved(tmp_path, {**encoded(11, 'train'), **encoded(2, 'test')})
    assert npz_to_folder(source, tmp_path / 'out') == dict(train=11, test=2)
    for index in range(11):
        path = tmp_path / 'out/train' / ('ant', 'bee')[index % 2]
        assert (path / f'{index:02d}.jpg').read_bytes() == jpeg(index)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['data.npz', 'out']


@pytest.mark.parametrize('shape', [(3, 4, 5, 3), (3, 4, 5)])
def test_pixels_are_written_without_loss(tmp_path, shape):
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    npz_to_folder(saved(tmp_path, pixels(x_train=x)), tmp_path / 'out')
    for index, name in enumerate(['01', '00', '11']):
        image = Image.open(tmp_path / f'out/train/{name}/{index}.png')
        np.testing.assert_array_equal(np.array(image), x[index])


def test_mmpretrain_reads_the_folder_with_the_same_labels(tmp_path):
    npz_to_folder(saved(tmp_path, pixels()), tmp_path / 'out')
    data = CustomDataset(data_root=str(tmp_path / 'out/train'))
    labels = {Path(s['img_path']).stem: s['gt_label'] for s in data}
    assert labels == {'0': 1, '1': 0, '2': 11}


NOT_THERE = 'absent'


@pytest.mark.parametrize('changes, says', [
    (dict(x_train=np.zeros((3, 4, 5, 3))), r'x_train is .* uint8.*float64'),
    (dict(x_train=np.zeros((3, 4, 5, 4), np.uint8)), r'\(3, 4, 5, 4\)'),
    (dict(y_train=np.array([0, 1])), r'y_train is .*\(3,\) integers.*\(2,\)'),
    (dict(y_train=np.array([0, -1, 2])), 'integers from 0'),
    (dict(y_train=NOT_THERE), r"no y_train; it has \['x_train'\]"),
    (dict(x_train=NOT_THERE), r"neither blob_train.*it has \['y_train'\]"),
    (dict(class_names=np.array(['a', 'b'])), 'up to 11, and 2 class_names'),
    (dict(class_names=np.array(['../x', *'bcdefghijklm'])),
     r"become folders.*got '../x'\."),
    (dict(class_names=np.array([*'aAcdefghijklm'])), 'different names'),
    (dict(class_names=np.array([object()])),
     'or is damaged: class_names.npy holds Python objects'),
    (dict(class_names=np.array(['é' * 128, *'bcdefghijklm'])),
     r'at most 255 bytes; é{20}... has 256'),
    (dict(y_train=np.array([1, 0, 25000])), '25,001 classes .*up to 25,000.*at'
     ' most 25,000 .*--max-classes'), ])
def test_bad_arrays_are_refused_and_leave_nothing(tmp_path, changes, says):
    arrays = {
        key: value for key, value in pixels(**changes).items()
        if value is not NOT_THERE}
    source = saved(tmp_path, arrays)
    with pytest.raises(ValueError, match=says):
        npz_to_folder(source, tmp_path / 'out')
    assert [p.name for p in tmp_path.iterdir()] == ['data.npz']


@pytest.mark.parametrize('changes, says', [
    (dict(off_train=np.array([0, 5, 3, 9])), 'rising integers within the'),
    (dict(off_train=np.array([0, 10**6])), 'rising integers within the'),
    (dict(blob_train=np.frombuffer(b'GIF89a..', np.uint8), off_train=np.array([
        0, 8])), 'train 0 is neither a JPEG nor a PNG'), ])
def test_bad_encoded_images_are_refused(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        npz_to_folder(saved(tmp_path, {
            **encoded(3, 'train'),
            **changes}), tmp_path / 'out')


def test_images_that_do_not_decode_are_refused(tmp_path):
    arrays = encoded(3, 'train')
    blob, off = arrays['blob_train'].copy(), arrays['off_train']
    blob[off[1] + 4:off[2]] = 7
    with pytest.raises(ValueError, match='image train 1 cannot be decoded'):
        npz_to_folder(saved(tmp_path, {
            **arrays, 'blob_train': blob}), tmp_path / 'new/out')
    assert [p.name for p in tmp_path.iterdir()] == ['data.npz']


def test_a_file_is_judged_by_its_size_before_it_is_read(tmp_path, monkeypatch):
    source = saved(tmp_path, {**pixels(), 'other': np.zeros(10**6)})
    monkeypatch.setattr(np, 'load', None)
    with pytest.raises(ValueError, match='0.0 GiB of memory; at most .*'
                       '--max-gib'):
        npz_to_folder(source, tmp_path / 'out', max_bytes=200)
    monkeypatch.undo()
    # 180 bytes of pixels and three labels; the other array is not needed.
    assert npz_to_folder(source, tmp_path / 'out',
                         max_bytes=204) == dict(train=3)


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, dict(descr='|u1', fortran_order=False, shape=(10**12, 2, 2, 3)))
    with zipfile.ZipFile(tmp_path / 'data.npz', 'w') as archive:
        archive.writestr('x_train.npy', file.getvalue() + bytes(12))
    with pytest.raises(
            ValueError, match='x_train.npy has 12 bytes of data, '
            r'and its header says uint8 of shape \(1000000000000'):
        npz_to_folder(tmp_path / 'data.npz', tmp_path / 'out')


def test_a_damaged_file_is_refused(tmp_path):
    source = saved(tmp_path, pixels())
    content = bytearray(source.read_bytes())
    content[200] ^= 255
    source.write_bytes(content)
    with pytest.raises(ValueError, match=r'or is damaged: Bad CRC-32'):
        npz_to_folder(source, tmp_path / 'out')


def test_a_disk_that_is_too_small_is_noticed(tmp_path, monkeypatch):
    source = saved(tmp_path, encoded(3, 'train'))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage',
                        lambda _: usage._replace(free=10))
    with pytest.raises(OSError, match='GiB left: make room'):
        npz_to_folder(source, tmp_path / 'new/out')
    monkeypatch.undo()

    def write(path, data):
        raise OSError(errno.ENOSPC, 'No space left on device', str(path))

    monkeypatch.setattr(Path, 'write_bytes', write)
    with pytest.raises(OSError, match='No space left'):
        npz_to_folder(source, tmp_path / 'new/out')
    assert [p.name for p in tmp_path.iterdir()] == ['data.npz']


def test_what_is_no_npz_file_is_refused(tmp_path):
    (tmp_path / 'text.npz').write_text('no')
    np.save(tmp_path / 'one.npy', np.zeros(3))
    for name in ('text.npz', 'one.npy'):
        with pytest.raises(ValueError, match=r'is not an \.npz file'):
            npz_to_folder(tmp_path / name, tmp_path / 'out')
    with pytest.raises(FileNotFoundError, match=r'no file .*gone.npz'):
        npz_to_folder(tmp_path / 'gone.npz', tmp_path / 'out')


def test_a_broken_off_run_leaves_nothing(tmp_path):

    def breaks_off(indices, description):
        yield indices[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        npz_to_folder(saved(tmp_path, pixels()), tmp_path / 'out', breaks_off)
    assert [p.name for p in tmp_path.iterdir()] == ['data.npz']


def test_the_tool_converts_once_and_refuses_to_overwrite(
        tmp_path, monkeypatch, capsys):
    tool = ROOT / 'tools/dataset_converters/npz_to_folder.py'
    monkeypatch.setattr('sys.argv', [
        str(tool),
        str(saved(tmp_path, pixels())),
        str(tmp_path / 'out')])
    runpy.run_path(str(tool), run_name='__main__')
    assert '3 train images' in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r'exists already\. Name a new'):
        runpy.run_path(str(tool), run_name='__main__')
