# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Detectors train and are tested by the real tools, or say why not."""
import importlib
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detection_stack import need_detection
from lives import launch
from mmengine.registry import init_default_scope
from mmpretrain.models import ResNet
from tiny_coco import NARROW, SMALL, SMALL_MASKS, coco_options, write_coco

from us3l_mm.datasets.coco_checks import (check_detection_data,
                                          read_categories)
from us3l_mm.fileio import load_weights
from us3l_mm.registry import DATASETS, MODELS

need_detection()
from mmdet.models import ResNet as DetResNet  # noqa: E402
from mmdet.visualization import DetLocalVisualizer  # noqa: E402

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs/us3l/detection'
MASK, ANY = 'mask-rcnn_r50', 'mask-rcnn_r50-any-width'
FASTER = 'faster-rcnn_r50'
NO_VALIDATION = ['val_dataloader=None', 'val_cfg=None', 'val_evaluator=None']


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('coco'))


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict:
    """A backbone at width 0.25, and a full one, as their files."""
    folder, paths = tmp_path_factory.mktemp('weights'), {}
    for width in (0.25, 1.0):
        torch.manual_seed(0)
        channels = int(64 * width)
        network = ResNet(50, base_channels=channels, stem_channels=channels)
        paths[width] = folder / f'{width}.pth'
        torch.save(
            dict(
                state_dict={
                    f'backbone.{key}': value
                    for key, value in network.state_dict().items()},
                meta=dict(width=width)), paths[width])
    return paths


def options(name, coco, file) -> list:
    masks = 'mask' in name
    return [
        *coco_options(coco, masks), *SMALL, *(SMALL_MASKS * masks),
        *(NARROW * (name != ANY)), 'log_level=ERROR',
        f'model.backbone.init_cfg.checkpoint={file}']


def call(monkeypatch, tool, *argv):
    """``main()`` of a tool, in this process."""
    DetLocalVisualizer._instance_dict.clear()  # those of the run before
    module = importlib.import_module(tool)
    monkeypatch.setattr('sys.argv', [f'{tool}.py', *map(str, argv)])
    module.main()


def train(monkeypatch, name, coco, file, work_dir, *changes, flags=()):
    call(monkeypatch, 'train', FOLDER / f'{name}_fpn_ms-1x_coco.py',
         '--work-dir', work_dir, *flags, '--cfg-options',
         *options(name, coco, file), *changes)


def scalars(work_dir) -> list:
    return [
        json.loads(line)
        for path in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def trained(coco, files, tmp_path_factory):
    """The work dir of a Mask R-CNN after two iterations and a validation."""
    work_dir = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LOCAL_RANK', '0')
        patch.syspath_prepend(str(ROOT / 'tools'))
        train(patch, MASK, coco, files[0.25], work_dir, flags=[
            '--auto-scale-lr'])
    return work_dir


def test_two_iterations_and_an_evaluation(trained, files):
    *steps, metrics = scalars(trained)
    assert len(steps) == 2 and np.isfinite([s['loss'] for s in steps]).all()
    assert {'loss_rpn_cls', 'loss_cls', 'loss_bbox', 'loss_mask'} <= {
        *steps[0]}
    # Two images a batch instead of 16: an eighth, at the end of the warm-up
    # of 500 iterations; the second iteration is at 1/499 of the way.
    assert steps[1]['lr'] == pytest.approx(0.02 / 8 * (0.001 + 0.999 / 499),
                                           rel=1e-3)
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    assert 0 <= metrics['coco/segm_mAP'] <= 1
    # All layers of the backbone have learned, norms too.
    before = load_weights(str(files[0.25]))['state_dict']
    after = load_weights(str(trained / 'epoch_1.pth'))['state_dict']
    for name in ('conv1.weight', 'bn1.weight', 'layer1.0.conv1.weight',
                 'layer4.2.bn3.bias', 'layer4.2.bn3.running_mean'):
        name = f'backbone.{name}'
        assert not torch.equal(before[name], after[name]), name


def test_the_checkpoint_gives_the_same_figures_again(trained, coco, files,
                                                     tmp_path, monkeypatch):
    call(monkeypatch, 'test', FOLDER / f'{MASK}_fpn_ms-1x_coco.py', trained /
         'epoch_1.pth', '--work-dir', tmp_path / 'work', '--out', tmp_path /
         'out.pkl', '--show-dir', tmp_path / 'pictures', '--cfg-options',
         *options(MASK, coco, ''))
    validated = scalars(trained)[-1]
    [tested] = [
        json.loads(path.read_text())
        for path in (tmp_path / 'work').glob('*/*.json')]
    for name in ('coco/bbox_mAP', 'coco/segm_mAP', 'coco/bbox_mAP_50'):
        assert tested[name] == validated[name]
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert [p['img_id'] for p in predictions] == [1, 2, 3, 4]
    assert predictions[0]['pred_instances']['bboxes'].shape[1] == 4
    assert len(predictions[0]['pred_instances']['masks'])
    pictures = sorted((tmp_path / 'pictures').iterdir())
    assert [path.name for path in pictures] == [f'{i}.png' for i in range(4)]
    # Annotations on the left, predictions on the right
    assert cv2.imread(str(pictures[0])).shape == (48, 2 * 64, 3)


def test_a_resumed_run_needs_no_file_and_goes_on(trained, coco, files,
                                                 tmp_path, monkeypatch):
    # Its weights are no longer those of the file, which is fine.
    work_dir = tmp_path / 'more'
    train(monkeypatch, MASK, coco, files[0.25], work_dir,
          'train_cfg.max_epochs=2', *NO_VALIDATION, flags=[
              '--resume', trained / 'epoch_1.pth'])
    assert [step['step'] for step in scalars(work_dir)] == [3, 4]


@pytest.mark.parametrize('name, changes', [
    (FASTER, ()),
    (ANY,
     ('model.backbone.width=0.3', 'model.backbone.missing_statistics=reset'))])
def test_the_other_kinds_train_and_are_evaluated(coco, files, tmp_path,
                                                 monkeypatch, name, changes):
    train(monkeypatch, name, coco, files[1.0 if name == ANY else 0.25],
          tmp_path, *changes)
    *steps, metrics = scalars(tmp_path)
    assert len(steps) == 2 and np.isfinite([s['loss'] for s in steps]).all()
    assert ('loss_mask' in steps[0]) is (name == ANY)
    assert ('coco/segm_mAP' in metrics) is (name == ANY)


def test_images_without_instances_train(coco, files, tmp_path, monkeypatch):
    some = write_coco(tmp_path / 'some', empty=(0, 1, 2))
    train(monkeypatch, MASK, some, files[0.25], tmp_path / 'out',
          'train_dataloader.dataset.filter_cfg.filter_empty_gt=False',
          'train_dataloader.batch_size=1', 'log_processor.window_size=1',
          *NO_VALIDATION)
    steps = scalars(tmp_path / 'out')
    assert len(steps) == 4
    assert np.isfinite([step['loss'] for step in steps]).all()
    without = [step for step in steps if step['loss_mask'] == 0]
    assert len(without) == 3
    assert all(step['loss_bbox'] == 0 and step['loss_rpn_bbox'] == 0
               and step['loss_cls'] > 0 for step in without)


@pytest.mark.ddp
@pytest.mark.skipif(torch.cuda.is_available(),
                    reason='says what happens without a GPU')
def test_two_processes_one_of_them_without_instances(files, tmp_path):
    # Each process sees one image at a time; of four, three are empty.
    some = write_coco(tmp_path / 'some', 4, empty=(1, 2, 3))
    launch(tmp_path, ROOT / 'tools/train.py',
           FOLDER / f'{MASK}_fpn_ms-1x_coco.py',
           '--work-dir', tmp_path / 'out', '--cfg-options',
           *options(MASK, some, files[0.25]), 'train_dataloader.batch_size=1',
           'train_dataloader.dataset.filter_cfg.filter_empty_gt=False')
    *steps, metrics = scalars(tmp_path / 'out')
    assert len(steps) == 2 and np.isfinite([s['loss'] for s in steps]).all()
    assert 0 <= metrics['coco/segm_mAP'] <= 1


def edit(coco, target, change) -> Path:
    """A copy of the annotations, changed; the images are those of coco."""
    content = json.loads((coco / 'annotations.json').read_text())
    change(content)
    target.mkdir()
    (target / 'annotations.json').write_text(json.dumps(content))
    (target / 'images').symlink_to(coco / 'images')
    return target


def rename(content):
    content['categories'][1]['name'] = 'stick'


def reverse(content):
    content['categories'].reverse()


def no_instances(content):
    for annotation in content['annotations']:
        annotation['category_id'] = 77


def no_masks(content):
    for annotation in content['annotations']:
        del annotation['segmentation']


def no_file(content):
    content['images'][2]['file_name'] = 'gone.png'


@pytest.fixture
def built(monkeypatch):
    """A function that builds data set and detector as train.py would."""

    def build(folder, *changes):
        tool = importlib.import_module('train')
        args = tool.parse_args([
            str(FOLDER / f'{MASK}_fpn_ms-1x_coco.py'), '--cfg-options',
            *options(MASK, folder, ''), *changes])
        cfg = tool.config_of(args)
        init_default_scope('mmdet')
        return (DATASETS.build(cfg.train_dataloader.dataset),
                MODELS.build(cfg.model))

    return build


@pytest.mark.parametrize('change, changes, says', [
    (rename, [], r"1 of train_dataloader\S+classes.*not among them: "
     r"\('bar',\).*metainfo.classes=\('square', 'stick', 'disc'\)"),
    (reverse, [], r'in another order.*wrong names.*classes='
     r"\('disc', 'bar', 'square'\)"),
    (None, ['model.roi_head.mask_head.num_classes=80'],
     r'data set has 3 classes.*mask_head.num_classes=80.*Set model.roi_head'
     '.mask_head.num_classes=3'),
    (None, ['train_dataloader.dataset.metainfo.classes=square'
            ], r"single class write \('square',\)"),
    (no_instances, ['train_dataloader.dataset.filter_cfg=None'
                    ], 'No image of .* has an instance'),
    (no_masks, [], 'None of the 8 instances.*segmentation.*Faster R-CNN'),
    (no_file, [], '1 do not exist, such as .*gone.png'), ])
def test_useless_annotations_are_refused(coco, tmp_path, built, change,
                                         changes, says):
    folder = edit(coco, tmp_path / 'data', change) if change else coco
    dataset, detector = built(folder, *changes)
    with pytest.raises(ValueError, match=f'(?s){says}'):
        check_detection_data(dataset, detector, 'train_dataloader.dataset')


def test_some_of_the_classes_may_be_learned(coco, built):
    dataset, detector = built(
        coco, "train_dataloader.dataset.metainfo.classes=['square','disc']",
        'model.roi_head.bbox_head.num_classes=2',
        'model.roi_head.mask_head.num_classes=2')
    twice = DATASETS.build(dict(type='RepeatDataset', dataset=dataset,
                                times=2))
    check_detection_data(twice, detector, 'train_dataloader.dataset')
    detector.roi_head.mask_head.num_classes = 3
    with pytest.raises(ValueError, match='2 classes.*mask_head.num_classes=3'):
        check_detection_data(twice, detector, 'train_dataloader.dataset')


@pytest.mark.parametrize('text', [
    '{"categories": [{"id": 1, "name": "a"}], "images": []}',
    '{"images": [], "categories" :\n [{"name": "a", "id": 1}]}',
    '{"categories": [{"id": 1, "name": "a"}], "info": "\\"categories\\""}',
    '{"categories": [{"id": 1, "name": "a"}], "note": {"categories": 3}}', ])
def test_categories_are_found_anywhere_in_the_file(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    assert read_categories(str(tmp_path /
                               'a.json')) == json.loads(text)['categories']


def test_an_empty_training_set_and_classes_are_refused_by_the_tool(
        coco, files, tmp_path, monkeypatch):
    folder = edit(coco, tmp_path / 'none', no_instances)
    with pytest.raises(SystemExit, match='No image is left in the training'):
        train(monkeypatch, MASK, folder, files[0.25], tmp_path / 'a')
    folder = edit(coco, tmp_path / 'other', rename)
    with pytest.raises(SystemExit, match=r"not among them: \('bar',\)"):
        train(monkeypatch, MASK, folder, files[0.25], tmp_path / 'b')
    assert not [*tmp_path.rglob('scalars.json')]


def test_images_of_zero_size_are_refused_before_training(
        files, tmp_path, monkeypatch):
    folder = write_coco(tmp_path / 'data')
    (folder / 'images/1.png').write_bytes(b'')
    with pytest.raises(SystemExit, match=r'1 are empty.*1\.png'):
        train(monkeypatch, MASK, folder, files[0.25], tmp_path / 'out')

    def flat(content):
        content['images'][0].update(width=0, height=0)

    # Declared without pixels, as a mistake of a converter: left out.
    (tmp_path / 'data/images/1.png').unlink()
    folder = write_coco(tmp_path / 'data')
    flat_set = edit(folder, tmp_path / 'flat', flat)
    train(monkeypatch, MASK, flat_set, files[0.25], tmp_path / 'flat_out',
          'train_dataloader.batch_size=1', *NO_VALIDATION)
    assert len(scalars(tmp_path / 'flat_out')) == 3


def test_missing_files_are_named_before_anything_is_read(
        coco, files, tmp_path, monkeypatch):
    gone = tmp_path / 'gone'
    with pytest.raises(SystemExit, match="gone': this folder is not there"):
        train(monkeypatch, MASK, gone, files[0.25], tmp_path)
    gone.mkdir()
    with pytest.raises(
            SystemExit, match=r'(?s)not there:.*gone/annotations'
            r'.json, of train_dataloader.*val_evaluator'):
        train(monkeypatch, MASK, gone, files[0.25], tmp_path)
    with pytest.raises(
            SystemExit, match='(?s)does not say where .*'
            'init_cfg.checkpoint=FILE.*slice_checkpoint.py'):
        train(monkeypatch, MASK, coco, '', tmp_path)
    with pytest.raises(SystemExit, match=f'no file {tmp_path}/no.pth with'):
        train(monkeypatch, MASK, coco, tmp_path / 'no.pth', tmp_path)


def test_a_full_file_in_a_narrow_network_never_begins(coco, files, tmp_path,
                                                      monkeypatch):
    with pytest.raises(SystemExit, match='159 have another shape there'):
        train(monkeypatch, MASK, coco, files[1.0], tmp_path / 'a')
    with pytest.raises(
            SystemExit, match=r'neck.in_channels=\[64, 128, 256, '
            r'1024\], but .*gives \[64, 128, 256, 512\] channels'):
        train(monkeypatch, MASK, coco, files[0.25], tmp_path / 'b',
              'model.neck.in_channels=[64,128,256,1024]')
    assert not scalars(tmp_path / 'a') and not scalars(tmp_path / 'b')


def test_weights_drawn_anew_after_loading_never_begin(coco, files, tmp_path,
                                                      monkeypatch):
    original = DetResNet.init_weights

    def forgets(self):
        original(self)
        torch.nn.init.normal_(self.layer2[0].conv2.weight)

    monkeypatch.setattr(DetResNet, 'init_weights', forgets)
    with pytest.raises(
            SystemExit, match='1 of the 318 tensors.*'
            'layer2.0.conv2.weight.*overwritten'):
        train(monkeypatch, MASK, coco, files[0.25], tmp_path)
    assert not scalars(tmp_path)


def test_a_stock_config_of_a_user_is_protected(coco, files, tmp_path,
                                               monkeypatch):
    # Nothing of this project in it; the tool adds the check.
    stock = tmp_path / 'stock.py'
    stock.write_text(
        "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n"
        'model = dict(backbone=dict(base_channels=16, stem_channels=16, '
        f"init_cfg=dict(checkpoint={str(files[1.0])!r}, prefix='backbone.')), "
        'neck=dict(in_channels=[64, 128, 256, 512]))\n')
    with pytest.raises(
            SystemExit, match=r'64, 3, 7, 7\) in the file, '
            r'\(16, 3, 7, 7\) in the model'):
        call(monkeypatch, 'train', stock,
             '--work-dir', tmp_path / 'out', '--cfg-options',
             *coco_options(coco, masks=False), 'log_level=ERROR')
