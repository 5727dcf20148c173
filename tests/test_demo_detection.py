# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""`make demo-detection`, and detectors on data sets of one's own."""
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console

from us3l_mm import stack
from us3l_mm.apis import launching
from us3l_mm.datasets import (SceneSettings, coco_folder, digit_scenes,
                              write_digit_scenes)
from us3l_mm.datasets.digit_scenes import render_scenes
from us3l_mm.models.layers import Subnet
from us3l_mm.registry import DATASETS, MODELS
from us3l_mm.visualization import Instances, draw_instances

ROOT = Path(__file__).parents[1]
OWN = ROOT / 'configs/us3l/detection/mask-rcnn_r18-any-width_fpn_own-coco.py'
needs_mmdet = pytest.mark.skipif(
    importlib.util.find_spec('mmdet') is None,
    reason='MMDetection is not installed')


@pytest.fixture(scope='module')
def tools():
    """tools/ as the scripts in it see it."""
    sys.path.insert(0, str(ROOT / 'tools'))
    import demo_detection
    yield SimpleNamespace(demo=demo_detection)
    sys.path.remove(str(ROOT / 'tools'))


@pytest.fixture
def checkpoint(tmp_path, tools):
    """Of the demo's network, untrained."""
    init_default_scope('mmpretrain')
    algorithm = MODELS.build(Config.fromfile(tools.demo.PRETRAIN).model)
    path = tmp_path / 'epoch_60.pth'
    torch.save(dict(state_dict=algorithm.state_dict(), meta={}), path)
    return path


@needs_mmdet
def test_two_iterations_from_end_to_end(tmp_path, tools, checkpoint, capsys,
                                        monkeypatch):
    command = [
        '--checkpoint',
        str(checkpoint), '--work-dir',
        str(tmp_path / 'out'), '--widths', '0.5', '0.25', '--iterations', '2',
        '--scenes', '8', '--pictures', '2', '--cfg-options',
        'train_dataloader.dataset.scenes.num_val=3']
    monkeypatch.setattr(tools.demo, 'DRAWN', -1.0)  # untrained, unsure
    tools.demo.main(command)
    first = capsys.readouterr().out
    assert 'after 2 iterations on 8 scenes, on 3 scenes' in ' '.join(
        first.split())
    report = json.loads((tmp_path / 'out/report.json').read_text())
    assert [(run['subnet'], run['width'], run['start'])
            for run in report['runs']] == [('w0.50', 0.5, 'pre-trained'),
                                           ('w0.50', 0.5, 'random'),
                                           ('w0.25', 0.25, 'pre-trained'),
                                           ('w0.25', 0.25, 'random')]
    assert all(0 <= run[f'{kind}_mAP'] <= run[f'{kind}_mAP_50'] <= 1
               for run in report['runs'] for kind in ('bbox', 'segm'))
    for name, channels in (('w0.50', 16), ('w0.25', 8)):
        weights = torch.load(tmp_path / f'out/{name}-random/iter_2.pth',
                             weights_only=False)['state_dict']
        assert weights['backbone.conv1.weight'].shape == (channels, 3, 7, 7)
        assert weights['neck.lateral_convs.2.conv.weight'].shape[1] == (
            4 * channels)
        for picture in ('000001.png', '000002.png'):
            path = tmp_path / f'out/{name}-pre-trained/pictures/{picture}'
            assert cv2.imread(str(path)).shape == (384, 384, 3)
    assert cv2.imread(str(tmp_path / 'out/overview.png')) is not None
    # Only what is not there is done again.
    monkeypatch.setattr(tools.demo.Runner, 'from_cfg', None)
    (tmp_path / 'out/overview.png').unlink()
    tools.demo.main(command)
    assert capsys.readouterr().out.count('finished before') == 4
    assert (tmp_path / 'out/overview.png').exists()


@needs_mmdet
def test_the_two_starts_differ_in_the_backbone_only(tmp_path, tools,
                                                    checkpoint):
    init_default_scope('mmpretrain')
    sliced = tools.demo.sliced(str(checkpoint), Subnet(0.5), str(tmp_path))
    init_default_scope('mmdet')
    args = tools.demo.parse_args(['--work-dir', str(tmp_path)])
    states = {}
    for start in tools.demo.STARTS:
        cfg = tools.demo.detector_config(args, sliced, start, start)
        torch.manual_seed(0)
        detector = MODELS.build(cfg.model)
        detector.init_weights()
        states[start] = detector.state_dict()
    weights = torch.load(sliced, weights_only=False)['state_dict']
    own = [key for key in states['random'] if key.startswith('backbone.')]
    assert sorted(own) == sorted(weights)
    assert all(
        torch.equal(states['pre-trained'][key], weights[key]) for key in own)
    assert not torch.equal(states['random']['backbone.conv1.weight'],
                           weights['backbone.conv1.weight'])


@needs_mmdet
def test_the_truth_as_prediction_has_an_ap_of_one(tmp_path, tools, capsys):
    from mmdet.evaluation import CocoMetric
    init_default_scope('mmdet')
    cfg = Config.fromfile(tools.demo.DETECTOR)
    settings = dict(num_train=1, num_val=6)
    cfg.val_dataloader.dataset.update(data_root=str(tmp_path / 'scenes'),
                                      scenes=settings)
    data = DATASETS.build(cfg.val_dataloader.dataset)
    scenes = render_scenes('val', SceneSettings(**settings))
    # Once with the truth of the samples, once with that of the COCO file
    for source in (None, f'{tmp_path}/scenes/annotations/instances_val.json'):
        metric = CocoMetric(ann_file=source, metric=['bbox', 'segm'])
        metric.dataset_meta = data.metainfo
        for i, scene in enumerate(scenes):
            sample = data[i]['data_samples']
            masks = torch.from_numpy(scene.masks)
            boxes = [[
                *np.argwhere(mask).min(0)[::-1],
                *np.argwhere(mask).max(0)[::-1] + 1] for mask in scene.masks]
            metric.process({}, [
                dict(
                    sample.to_dict(), pred_instances=dict(
                        bboxes=torch.tensor(np.array(boxes),
                                            dtype=torch.float32),
                        labels=torch.tensor(scene.labels), masks=masks,
                        scores=torch.ones(len(masks))))])
        found = metric.evaluate(len(scenes))
        assert found['coco/bbox_mAP'] == found['coco/segm_mAP'] == 1.0


def test_the_network_is_pre_trained_where_there_is_none(
        tmp_path, tools, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        tools.demo.subprocess, 'run', lambda command, **kw:
        (calls.append(command), SimpleNamespace(returncode=len(calls) - 1))[1])
    args = tools.demo.parse_args(['--pretrain-dir', str(tmp_path)])
    found = tools.demo.find_checkpoint(args, Console(file=sys.stdout))
    assert found == str(tmp_path / 'epoch_60.pth')
    assert 'pre-training' in capsys.readouterr().out
    assert calls[0][1].endswith('tools/train.py')
    assert calls[0][2].endswith('us3l_resnet18_demo_digits.py')
    assert calls[0][3:] == ['--work-dir', str(tmp_path), '--resume']
    with pytest.raises(RuntimeError, match='exit status 1'):
        tools.demo.find_checkpoint(args, Console(quiet=True))
    (tmp_path / 'epoch_60.pth').touch()
    assert tools.demo.find_checkpoint(args, Console(quiet=True)) == found
    assert len(calls) == 2


def test_errors_of_the_demo(tmp_path, tools, capsys, monkeypatch):
    with pytest.raises(SystemExit, match='nowhere.pth: there is no such file'):
        tools.demo.main(['--checkpoint', 'nowhere.pth'])
    with pytest.raises(SystemExit):
        tools.demo.main(['--iterations', '0'])
    assert '--iterations is at least 1, got 0' in capsys.readouterr().err
    monkeypatch.setattr(stack, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match='mmdet.*is not installed'):
        tools.demo.main([])
    with pytest.raises(ImportError, match='mmdet.*is not installed'):
        digit_scenes('train', data_root=str(tmp_path / 'scenes'))
    assert not (tmp_path / 'scenes').exists()


@needs_mmdet
def test_a_folder_of_ones_own_by_one_option(tmp_path, tools):
    """Ten classes, where the config has one: the run says what to set."""
    folder = write_digit_scenes(str(tmp_path / 'own'),
                                SceneSettings(num_train=4, num_val=2))
    options = {
        'data_root': folder,
        'model.backbone.init_cfg': None,
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'train_dataloader.num_workers': 0,
        'val_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.persistent_workers': False,
        'train_dataloader.dataset.pipeline.2.scale': (96, 96),
        'val_dataloader.dataset.pipeline.1.scale': (96, 96),
        'work_dir': str(tmp_path / 'work'),
        'log_level': 'ERROR'}
    cfg = launching.load_config(str(OWN), options)
    launching.add_checks(cfg)
    assert cfg.val_evaluator.ann_file == (
        f'{folder}/annotations/instances_val.json')
    with pytest.raises(
            ValueError, match=(
                'has 10 classes.*Set model.roi_head.bbox_head.num_classes=10 '
                'model.roi_head.mask_head.num_classes=10')):
        launching.build_runner(cfg.copy()).train()
    cfg.merge_from_dict({
        'model.roi_head.bbox_head.num_classes': 10,
        'model.roi_head.mask_head.num_classes': 10,
        'experiment_name': 'second'})
    launching.build_runner(cfg).train()
    assert (tmp_path / 'work/epoch_1.pth').exists()


@needs_mmdet
def test_categories_of_training_and_evaluation_are_compared(tmp_path):
    folder = Path(
        write_digit_scenes(str(tmp_path / 'own'),
                           SceneSettings(num_train=1, num_val=1)))
    path = folder / 'annotations/instances_val.json'
    content = json.loads(path.read_text())
    content['categories'].reverse()
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='in categories or in their order'):
        coco_folder('annotations/instances_val.json', str(folder),
                    same_classes_as='annotations/instances_train.json')


def test_data_root_moves_every_path_of_the_pre_training(tools):
    config = ROOT / 'configs/us3l/us3l_resnet18_1xb64-coslr-400e_own-images.py'
    cfg = launching.load_config(str(config), {'data_root': 'my/images/'})
    for name in ('train', 'knn_bank', 'knn_query'):
        assert cfg[f'{name}_dataloader'].dataset.data_root == 'my/images'
    assert Config.fromfile(config).train_dataloader.dataset.data_root == (
        'data/own_images')


def test_a_picture_shows_masks_where_they_are():
    image = np.zeros((20, 30, 3), np.uint8)
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 8:14, 3:9] = True
    masks[1, 10:18, 20:26] = True
    drawn = draw_instances(
        image,
        Instances(masks, np.array([0, 1]), ('a', 'b'), np.array([0.9, 0.8])),
        scale=4)
    assert drawn.shape == (80, 120, 3)
    inside = drawn[40:50, 20:30].reshape(-1, 3)
    other = drawn[50:60, 88:96].reshape(-1, 3)
    assert (inside == inside[0]).all() and (other == other[0]).all()
    assert inside[0].any() and not (inside[0] == other[0]).all()
    assert not drawn[70:, :60].any()  # nothing where nothing is
    assert not image.any()  # the image is left as it is
