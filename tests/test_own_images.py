# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From a folder of images to a run: what is chosen, written and refused."""
import importlib
import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import us3l_mm
from us3l_mm.apis.own_images import (ARCHS, Choice, Images, choose, look_at,
                                     own_config)
from us3l_mm.apis.launching.runner import check_classes
from us3l_mm.evaluation.loading import build_algorithm
from us3l_mm.fileio import load_weights
from us3l_mm.models import SlimmableResNet
from us3l_mm.models.layers import Subnet

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    'model.backbone.base_channels': 16,
    'model.backbone.stem_channels': 16,
    'model.neck.in_channels': 128,
    'model.neck.hid_channels': 16,
    'train_dataloader.num_workers': 0,
    'knn_bank_dataloader.num_workers': 0,
    'knn_query_dataloader.num_workers': 0,
    'default_hooks.checkpoint.interval': 1}

# Two widths of a list, at which 16 channels have a whole number of them.
PAIR = {
    'model.backbone.norm_cfg.subnets': [1.0, 0.5],
    'default_hooks.sampler.widths': [1.0, 0.5],
    'model.head.queue_length': 8}


def write_images(folder, count, size=(40, 48), classes=2):
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f'Klasse ä{i % classes}' / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(256, size=(*size, 3), dtype=np.uint8)
        path.write_bytes(cv2.imencode('.png', image)[1].tobytes())
    return str(folder)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('my photos'), 24)


def images(count=320, side=500):
    return Images('photos', count, {}, side)


def test_a_folder_is_looked_at(photos):
    found = look_at(photos)
    assert (found.count, found.side, found.skipped) == (24, 40, {})
    assert found.longest == 48


def test_views_of_small_images_of_one_size_are_made_in_batches(tmp_path):
    write_images(tmp_path, 16, (40, 48))

    def hooks(longest, **choice):
        found = Images('photos', 320, {}, 40, longest)
        return own_config(found, choose(found, **choice)).default_hooks

    for method in ('us3l', 'slimclr', 'gated'):  # recipes with and without it
        assert hooks(48, method=method).augmentation.type == (
            'us3l_mm.BatchAugmentationHook')
        assert 'augmentation' not in hooks(None, method=method)
        assert 'augmentation' not in hooks(500, method=method)
    cv2.imwrite(str(tmp_path / 'other.png'), np.zeros((40, 47, 3), np.uint8))
    assert look_at(str(tmp_path)).longest is None


@pytest.mark.parametrize('count, side, expected', [
    (300, 500, Choice('us3l', 'resnet18', 224, 64, 400)),
    (20_000, 500, Choice('us3l', 'resnet18', 224, 64, 200)),
    (20_000, 33, Choice('us3l', 'resnet18', 32, 128, 200)),
    (1_300_000, 300, Choice('us3l', 'resnet50', 224, 64, 100)),
    (16, 20, Choice('us3l', 'resnet18', 32, 4, 400))])
def test_settings_follow_number_and_size(count, side, expected):
    assert choose(images(count, side)) == expected


def test_what_is_given_is_kept():
    assert choose(images(), 'slimclr', 'resnet50', 96, 7, 10) == Choice(
        'slimclr', 'resnet50', 96, 10, 7)


@pytest.mark.parametrize('arguments, message', [
    (dict(method='byol'), "'byol'"), (dict(arch='resnet19'), "'resnet19'"),
    (dict(method='gated', arch='vit_tiny'), "gated trains .*'vit_tiny'"),
    (dict(image_size=100), 'multiple of 32 pixels.*100'),
    (dict(epochs=0), 'at least 1, got 0'),
    (dict(batch_size=1), 'from 2 to .* 320, got 1'),
    (dict(batch_size=321), 'got 321')])
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose(images(), **arguments)


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('image_size', [32, 224])
@pytest.mark.parametrize('method', ['us3l', 'slimclr', 'gated'])
def test_every_choice_is_a_config_that_builds(method, arch, image_size):
    if method != 'us3l' and not arch.startswith('resnet'):
        pytest.skip('This method trains ResNets.')
    config = own_config(images(), choose(images(), method, arch, image_size))
    algorithm = build_algorithm(config)
    assert algorithm.backbone.feature_channels()[-1] == ARCHS[arch][1]
    loader = config.train_dataloader
    assert loader.batch_size == config.auto_scale_lr.base_batch_size
    assert f"'scale': {image_size}" in str(loader.dataset.pipeline)


@pytest.mark.parametrize('method', ['us3l', 'slimclr', 'gated'])
def test_the_learning_rate_follows_the_batch(method):
    small, large = (own_config(images(),
                               choose(images(), method, batch_size=size))
                    for size in (16, 64))
    rates = [c.optim_wrapper.optimizer.lr for c in (small, large)]
    assert rates[1] == pytest.approx(4 * rates[0])


@pytest.mark.parametrize('method', ['us3l', 'slimclr', 'gated'])
def test_five_lines_of_python(method, photos, tmp_path, capsys):
    options = dict(TINY)
    if method == 'us3l':
        options['model.distill_head.predictor.hid_channels'] = 16
    elif method == 'slimclr':
        options.update(PAIR)
    out = str(tmp_path / 'run')
    checkpoint = us3l_mm.pretrain(photos, out, method, image_size=32, epochs=1,
                                  batch_size=8, cfg_options=options)
    assert load_weights(checkpoint)['meta']['epoch'] == 1
    assert '24 images' in capsys.readouterr().out
    assert Config.fromfile(f'{out}/pretrain.py').train_cfg.max_epochs == 1
    subnets = ['dense'] if method == 'gated' else [0.5]
    report = us3l_mm.evaluate(out, photos, subnets, k=1)
    assert [row.subnet for row in report.rows] == [*map(Subnet.of, subnets)]
    assert all(row.knn is not None for row in report.rows)
    sliced = us3l_mm.slice(out, str(tmp_path / 'slice.pth'), subnets[-1],
                           input_size=32)
    assert sliced.gap < 1e-5
    with pytest.raises(
            FileExistsError, match='holds a run already, up to '
            'epoch_1.pth. Resume'):
        us3l_mm.pretrain(photos, out, method)
    us3l_mm.pretrain(photos, out, method, image_size=32, epochs=2,
                     batch_size=8, resume=True, cfg_options=options)
    assert load_weights(f'{out}/epoch_2.pth')['meta']['epoch'] == 2


@pytest.mark.parametrize('count, message', [(0, 'no image that can be read'),
                                            (1, 'has 1 image that can'),
                                            (15, 'At least 16')])
def test_too_few_images_are_refused_at_once(count, message, tmp_path):
    (tmp_path / 'photos').mkdir()
    folder = write_images(tmp_path / 'photos', count)
    with pytest.raises(ValueError, match=message):
        us3l_mm.pretrain(folder, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


def test_a_disk_without_room_is_refused_before_training(
        photos, tmp_path, monkeypatch):
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(10**4))
    with pytest.raises(OSError, match='A checkpoint takes about .* MB'):
        us3l_mm.pretrain(photos, str(tmp_path / 'run'), image_size=32,
                         epochs=1, batch_size=8, cfg_options=dict(TINY))
    assert not [*tmp_path.rglob('*.pth')]


def test_the_tools_take_the_folder_of_a_run(photos, tmp_path, monkeypatch,
                                            capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    out = str(tmp_path / 'run')
    us3l_mm.pretrain(photos, out, 'slimclr', image_size=32, epochs=1,
                     batch_size=8, cfg_options=dict(TINY, **PAIR))
    evaluate = importlib.import_module('evaluate_widths').main
    report = tmp_path / 'run/epoch_1_widths/widths.json'
    evaluate([out, '--widths', '0.5', '--device', 'cpu'])
    assert 'There are no labels' in capsys.readouterr().out
    assert json.loads(report.read_text())['rows'][0]['latency_ms'] > 0
    evaluate([
        out, '--widths', '0.5', '--labelled', photos, '--knn', '--k', '1',
        '--device', 'cpu'])
    assert json.loads(report.read_text())['rows'][0]['knn'] is not None
    importlib.import_module('slice_checkpoint').main([
        out, f'{out}/half.pth', '--width', '0.5', '--input-size', '32',
        '--device', 'cpu'])
    assert (tmp_path / 'run/half.pth').is_file()
    with pytest.raises(SystemExit, match='photos.* has no checkpoint'):
        evaluate([photos, '--device', 'cpu'])


FINE_TUNING = (
    'configs/us3l/benchmarks/finetune_resnet18_1xb64-coslr-60e_own-images.py')


def test_a_classifier_is_fine_tuned_on_labelled_images(photos, tmp_path,
                                                       monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    tool = importlib.import_module('train')
    small = dict(base_channels=16, stem_channels=16)
    network = SlimmableResNet(18, **small)
    start = tmp_path / 'start.pth'
    torch.save(
        dict(
            state_dict={
                f'backbone.{key}': value
                for key, value in network.state_dict().items()}), start)
    options = dict(
        data_root=photos, **{
            'model.backbone.width': 0.5,
            'model.backbone.base_channels': 16,
            'model.backbone.stem_channels': 16,
            'model.backbone.init_cfg.checkpoint': start,
            'train_dataloader.batch_size': 8,
            'train_dataloader.num_workers': 0,
            'val_dataloader.num_workers': 0,
            'optim_wrapper.optimizer.lr': 0.0,
            'train_cfg.max_epochs': 1,
            'train_cfg.val_interval': 1})

    def train(out, **changes):
        tool.main([
            str(ROOT / FINE_TUNING), '--work-dir',
            str(out), '--cfg-options', *(f'{key}={value}' for key, value in {
                **options,
                **changes}.items())])

    train(tmp_path / 'run')
    trained = load_weights(tmp_path / 'run/epoch_1.pth')['state_dict']
    assert trained['head.fc.weight'].shape == (2, 64)
    assert torch.equal(trained['backbone.conv1.weight'],
                       network.conv1.weight[:8])
    assert 'accuracy/top1' in next(
        (tmp_path / 'run').glob('*/vis_data/scalars.json')).read_text()
    with pytest.raises(
            SystemExit, match='has 2 classes, such as Klasse ä0, Klasse ä1, '
            'and model.head.num_classes=5'):
        train(tmp_path / 'wrong', **{'model.head.num_classes': 5})
    assert not (tmp_path / 'wrong').exists()


def test_a_data_set_that_names_no_classes_is_left_alone():
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.zeros(4)))
    check_classes(
        SimpleNamespace(model=torch.nn.Identity(), train_dataloader=loader))
