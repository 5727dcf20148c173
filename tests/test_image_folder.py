# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Folders with files that are not images, or turn out to be damaged."""
import os
import zlib
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from lives import finish, start
from mmengine.dataset import default_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from small_run import small_cfg
from torch.utils.data import DataLoader

from us3l_mm.datasets import (ImageFolder, LoadImage, UnreadableImageError,
                              image_scan)
from us3l_mm.datasets.image_scan import find_defect, find_defects
from us3l_mm.engine import UnreadableImagesHook
from us3l_mm.evaluation.data import labelled_batches
from us3l_mm.registry import MODELS

FORMATS = ['jpg', 'png', 'webp', 'gif', 'avif', 'tif', 'bmp', 'ppm', 'jp2']
PIPELINE = [
    dict(type='us3l_mm.LoadImage'),
    dict(type='Resize', scale=(16, 16)),
    dict(type='PackInputs')]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    init_default_scope('mmpretrain')


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def damage(path: Path) -> None:
    """Spoil the pixels of a PNG file, so that only decoding it shows that."""
    content = bytearray(path.read_bytes())
    start = content.index(b'IDAT')
    end = start + 4 + int.from_bytes(content[start - 4:start], 'big')
    content[start + 4:end] = bytes(end - start - 4)
    content[end:end + 4] = zlib.crc32(content[start:end]).to_bytes(4, 'big')
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """Ten images in two classes, and six files that are none."""
    root = tmp_path / 'images'
    for index in range(10):
        write_image(root / f'{"ab"[index % 2]}/{index}.png', index)
    (root / 'a/empty.jpg').touch()
    (root / 'a/text.jpg').write_text('no image')
    (root / 'b/notes.txt').write_text('no image')
    short = write_image(root / 'b/short.png').read_bytes()
    (root / 'b/short.png').write_bytes(short[:len(short) // 2])
    (root / 'b/photo.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(90))
    write_image(root / 'stray.png')
    return root


def dataset(root, **changes):
    return ImageFolder(**{
        'data_root': str(root),
        'pipeline': PIPELINE,
        **changes})


def names(data):
    return [
        os.path.relpath(data.get_data_info(i)['img_path'], data.img_prefix)
        for i in range(len(data))]


@pytest.mark.parametrize('suffix', FORMATS)
def test_every_format_of_opencv_is_used(tmp_path, suffix):
    path = write_image(tmp_path / f'x.{suffix}')
    assert find_defect(str(path)) is None
    assert LoadImage()(dict(img_path=str(path)))['img'].shape == (24, 20, 3)
    content = path.read_bytes()
    path.write_bytes(content[:len(content) * 2 // 3])
    assert find_defect(str(path)) == 'damaged or cut off'


def test_names_do_not_matter(tmp_path):
    path = write_image(tmp_path / 'x.png')
    for name in ('no-suffix', 'X.JPG', os.fsdecode(b'\xff\xfe.png')):
        path = path.rename(tmp_path / name)
        assert find_defect(str(path)) is None


def test_a_complete_file_is_not_decoded(tmp_path, monkeypatch):
    paths = [write_image(tmp_path / f'x.{s}') for s in ('jpg', 'png', 'webp')]
    with open(paths[0], 'ab') as file:
        file.write(bytes(7))  # some cameras pad their files
    monkeypatch.setattr(cv2, 'imdecode', None)
    assert [find_defect(str(path)) for path in paths] == [None] * 3


def test_a_bad_header_is_found(tmp_path):
    path = tmp_path / 'x.jpg'
    path.write_bytes(b'\xff\xd8\xff' + bytes(100) + b'\xff\xd9')
    assert find_defect(str(path)) == 'damaged or cut off'


def test_what_is_no_image_is_skipped_and_counted(folder, capsys):
    data = dataset(folder)
    assert names(data) == [
        f'{c}/{i}.png' for c in 'ab' for i in range(10) if 'ab'[i % 2] == c]
    assert data.skipped == {
        'a/empty.jpg': 'empty',
        'a/text.jpg': 'of no format that OpenCV reads (.jpg)',
        'b/notes.txt': 'of no format that OpenCV reads (.txt)',
        'b/photo.heic': 'of no format that OpenCV reads (.heic)',
        'b/short.png': 'damaged or cut off',
        'stray.png': 'outside of the folders of the classes'}
    [line] = capsys.readouterr().out.splitlines()
    assert '/images: 10 images used; skipped: 6 (1 empty, ' in line
    assert '(.heic)' in line
    unlabelled = dataset(folder, with_label=False)
    assert len(unlabelled) == 11 and len(unlabelled.skipped) == 5


def test_a_file_is_read_again_only_if_it_has_changed(folder, monkeypatch):
    seen = []

    def watched(path):
        seen.append(Path(path).name)
        return find_defect(path)

    monkeypatch.setattr(image_scan, 'find_defect', watched)
    dataset(folder)
    assert len(seen) == 15
    seen.clear()
    dataset(folder)
    assert not seen
    write_image(folder / 'a/empty.jpg')
    write_image(folder / 'b/new.png')
    assert len(dataset(folder)) == 12 and len(seen) == 2
    for cache in Path(os.environ['XDG_CACHE_HOME']).rglob('*.json'):
        cache.write_text('{')  # such as after a crash of the file system
    dataset(folder)
    assert len(seen) == 2 + 16


def test_a_cache_that_cannot_be_written_is_not_needed(folder, tmp_path,
                                                      monkeypatch, capsys):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert len(dataset(folder)) == 10
    assert 'Set XDG_CACHE_HOME to a folder' in capsys.readouterr().out


def test_many_files_are_read_in_processes(tmp_path, monkeypatch):
    paths = [write_image(tmp_path / f'{i}.png') for i in range(12)]
    paths[3].write_bytes(b'')
    monkeypatch.setattr(image_scan, 'FEW', 12)
    assert find_defects(str(tmp_path), [p.name for p in paths]) == {
        '3.png': 'empty'}


def test_a_file_that_is_gone_is_a_defect(tmp_path):
    assert find_defects(str(tmp_path), ['x.png']) == {
        'x.png': 'cannot be opened (No such file or directory)'}


@pytest.mark.parametrize('arguments, error, says', [
    (dict(split='test'), ValueError, "'train', 'val'.*got 'test'"),
    (dict(val_share=0), ValueError, 'between 0 and 1, got 0'),
    (dict(val_share='1'), ValueError, "between 0 and 1, got '1'"),
    (dict(val_share=1.5), ValueError, 'between 0 and 1, got 1.5'),
    (dict(data_root='gone'), FileNotFoundError, "'gone'. Set data_root"),
    (dict(data_root=__file__), NotADirectoryError, 'no folder of images'),
    (dict(data_root='empty'), ValueError, 'empty has no image.*one folder per '
     'class'), ])
def test_bad_arguments_are_refused(tmp_path, monkeypatch, arguments, error,
                                   says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(error, match=says):
        dataset(**{'root': tmp_path, **arguments})


def test_a_folder_without_a_single_image_says_what_there_is(tmp_path):
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x/notes.txt').write_text('no image')
    with pytest.raises(
            ValueError, match=r'skipped: 1 \(1 of no .*txt'
            r'.*Set data_root to a folder of images\.$'):
        dataset(tmp_path / 'x', with_label=False)


def test_checksums_of_a_png_are_compared(tmp_path):
    path = write_image(tmp_path / 'x.png')
    damage(path)
    assert find_defect(str(path)) is None
    content = path.read_bytes()
    path.write_bytes(content[:300] + b'?' + content[301:])
    assert find_defect(str(path)) == 'damaged or cut off'


def test_an_evaluation_goes_on_without_a_damaged_image(folder, capsys):
    loader = DataLoader(dataset(folder), batch_size=10,
                        collate_fn=default_collate)
    damage(folder / 'a/0.png')
    preprocessor = MODELS.build(dict(type='SelfSupDataPreprocessor'))
    [(images, labels, identities)] = labelled_batches(loader, preprocessor)
    assert '1 images could not be read; others' in capsys.readouterr().out
    [same] = [
        i for i in range(1, 10) if (identities[i] == identities[0]).all()]
    assert labels[same] == labels[0] and torch.equal(images[same], images[0])


def test_splits_share_no_image_and_stay_as_images_are_added(tmp_path):
    for index in range(20):
        write_image(tmp_path / f'{"aaab"[index % 4]}/{index}.png', index)
    write_image(tmp_path / 'c/alone.png')

    def split(**arguments):
        return tuple(
            set(names(dataset(tmp_path, split=part, **arguments)))
            for part in ('train', 'val'))

    train, val = split()
    assert not train & val and train | val == set(names(dataset(tmp_path)))
    assert sorted(name[0] for name in val) == ['a'] * 3 + ['b']
    assert split() == (train, val) != split(split_seed=1)
    assert len(split(val_share=0.5)[1]) == 10
    for index in range(20, 24):
        write_image(tmp_path / f'a/{index}.png')
    assert len(split()[1] ^ val) <= 2


def test_an_unlabelled_folder_is_split_as_a_whole(tmp_path):
    for index in range(10):
        write_image(tmp_path / f'{index}.png')
    assert [
        len(dataset(tmp_path, with_label=False, split=split))
        for split in ('train', 'val')] == [8, 2]


def test_a_damaged_image_is_replaced_by_the_same_one_every_time(folder):
    data = dataset(folder)
    damage(folder / 'a/0.png')
    first, again = data[0], data[0]
    assert '0.png cannot be read' in first['data_samples'].unreadable
    assert Path(first['data_samples'].img_path).name != '0.png'
    assert torch.equal(first['inputs'], again['inputs'])
    assert 'unreadable' not in data[1]['data_samples']
    with pytest.raises(UnreadableImageError, match='Replace or remove it'):
        dataset(folder, test_mode=True)[0]
    for path in folder.rglob('*.png'):
        path.write_bytes(b'')
    with pytest.raises(UnreadableImageError, match='10 images in a row'):
        data[1]


def train(root, work_dir, max_share, damaged=(), **changes):
    cfg = small_cfg(
        work_dir, **{
            'train_dataloader.batch_size':
            5,
            'train_cfg.max_epochs':
            2,
            'default_hooks.images':
            dict(type='us3l_mm.UnreadableImagesHook', max_share=max_share),
            **changes})
    cfg.train_dataloader.dataset = dict(
        type='us3l_mm.ImageFolder', data_root=str(root), pipeline=[
            cfg.train_dataloader.dataset.pipeline[0],
            dict(type='us3l_mm.LoadImage'),
            *cfg.train_dataloader.dataset.pipeline[1:]])
    runner = Runner.from_cfg(cfg)
    runner.train_loop  # builds the data set  # noqa: B018
    for name in damaged:
        damage(root / name)
    runner.train()
    return runner


def log_of(work_dir):
    [log] = work_dir.glob('*/*.log')
    return log.read_text()


def test_training_goes_on_without_a_damaged_image(folder, tmp_path):
    train(folder, tmp_path / 'out', 0.2, ['a/0.png'])
    text = log_of(tmp_path / 'out')
    assert text.count('were replaced by others: 1. ') == 2
    listed = (tmp_path / 'out/skipped_files.txt').read_text().splitlines()
    assert listed[0] == 'a/empty.jpg: empty' and len(listed) == 6


@pytest.mark.parametrize('max_share, damaged, says', [
    (0.1, ['a/0.png', 'b/1.png'],
     '2 of the 10 images.*more than max_share=0.1 .*raise default_hooks'),
    (0, ['a/0.png'], '1 of the 10 images.*max_share=0'), ])
def test_too_many_damaged_images_stop_the_training(folder, tmp_path, max_share,
                                                   damaged, says):
    with pytest.raises(UnreadableImageError, match=says):
        train(folder, tmp_path / 'out', max_share, damaged)
    assert not [*tmp_path.rglob('*.pth')]


def test_a_resumed_run_replaces_the_same_images(folder, tmp_path):
    whole = train(folder, tmp_path / 'whole', 1, ['a/0.png', 'b/3.png'])
    again = train(
        folder, tmp_path / 'again', 1, **{
            'resume': True,
            'load_from': str(tmp_path / 'whole/epoch_1.pth')})
    weights = again.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(weights[name], value), name


def build_in_a_process(folder, rank):
    """The data set of one of two processes, and what it would report."""
    torch.distributed.init_process_group('gloo', f'file://{folder}/store',
                                         rank=rank, world_size=2)
    init_default_scope('mmpretrain')
    if rank:
        image_scan.find_defect = None  # the first process scans
    data = dataset(f'{folder}/images')
    hook, runner = UnreadableImagesHook(0.5), mock.Mock()
    runner.train_dataloader.dataset = data
    hook.reasons = [f'of process {rank}'] * 3
    try:
        hook._check(runner)
    except UnreadableImageError as error:
        torch.save((names(data), data.skipped, str(error)),
                   f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.ddp
def test_one_process_scans_and_all_count_together(folder, tmp_path):
    logs = [tmp_path / f'{rank}.log' for rank in range(2)]
    assert finish(*(start(log, build_in_a_process, str(tmp_path), rank)
                    for rank, log in enumerate(logs))) == [0, 0], ([
                        log.read_text() for log in logs])
    first, second = (torch.load(log.with_suffix('.pth')) for log in logs)
    assert first == second and len(first[0]) == 10 and len(first[1]) == 6
    assert '6 of the 10 images' in first[2]


@pytest.mark.parametrize('max_share', [-0.1, 1.5, None])
def test_a_share_is_from_zero_to_one(max_share):
    with pytest.raises(ValueError, match=f'from 0 to 1, got {max_share}'):
        UnreadableImagesHook(max_share)
