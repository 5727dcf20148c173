# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""One detector for many widths through the tools, as users run it."""
import importlib
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detection_stack import need_detection
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from us3l_mm.apis import slice_network
from us3l_mm.engine import CalibrationHook
from us3l_mm.fileio import load_weights
from us3l_mm.models.layers import SlimmableBatchNorm, Subnet
from us3l_mm.models.layers.norm import statistics_suffix
from us3l_mm.registry import HOOKS, MODELS

need_detection()
from mmdet.visualization import DetLocalVisualizer  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402
from small_detectors import (  # noqa: E402
    CHANNELS, DEMO, DIVISOR, FOLDER, stock_detector)

from us3l_mm.apis.inference import detect, load_detector  # noqa: E402

ROOT = Path(__file__).parents[1]
WIDTHS = [1.0, 0.75, 0.5, 0.25]


def options(folder) -> list:
    scenes = [
        f'{kind}_dataloader.dataset.{key}' for kind in ('train', 'val', 'test')
        for key in (f'data_root={folder}/scenes', 'scenes.num_train=4',
                    'scenes.num_val=3')]
    return [
        *scenes, 'train_dataloader.batch_size=2', 'log_level=ERROR',
        f'model.backbone.base_channels={CHANNELS}',
        f'model.backbone.stem_channels={CHANNELS}',
        f'model.backbone.divisor={DIVISOR}',
        'model.roi_head.bbox_head.fc_out_channels=32',
        'model.backbone.init_cfg=None', 'model.test_cfg.rcnn.score_thr=0',
        'train_cfg.max_iters=3', 'default_hooks.logger.interval=1']


def call(monkeypatch, tool, *argv):
    """``main()`` of a tool, in this process."""
    DetLocalVisualizer._instance_dict.clear()  # those of the run before
    module = importlib.import_module(tool)
    monkeypatch.setattr('sys.argv', [f'{tool}.py', *map(str, argv)])
    module.main()


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """After three iterations and a validation of four widths."""
    folder = tmp_path_factory.mktemp('all_widths')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LOCAL_RANK', '0')
        patch.syspath_prepend(str(ROOT / 'tools'))
        call(patch, 'train', DEMO, '--work-dir', folder / 'work',
             '--cfg-options', *options(folder))
    return folder


def scalars(work_dir) -> list:
    [path] = work_dir.glob('*/vis_data/scalars.json')
    return list(map(json.loads, path.read_text().splitlines()))


def test_log_and_checkpoint_of_a_training(folder):
    *steps, metrics = scalars(folder / 'work')
    assert len(steps) == 3
    for step in steps:
        parts = [step[f'loss_w{width:.2f}'] for width in WIDTHS]
        assert step['loss'] == pytest.approx(sum(parts), rel=1e-5)
        assert np.isfinite(parts).all()
    assert {
        f'coco/{kind}_mAP_w{w:.2f}' for kind in ('bbox', 'segm')
        for w in WIDTHS} <= metrics.keys()
    state = load_weights(str(folder / 'work/iter_3.pth'))['state_dict']
    norms = [
        key.removesuffix('running_mean') for key in state
        if key.endswith('running_mean')]
    assert {name.split('.')[0]
            for name in norms} == {'backbone', 'neck', 'roi_head'}
    for name in norms:
        for subnet in map(Subnet, WIDTHS):
            assert f'{name}running_var{statistics_suffix(subnet)}' in state


def ap_by_hand(predictions, folder) -> float:
    """Of boxes, by pycocotools alone."""
    found = [
        dict(image_id=p['img_id'], category_id=int(label), score=float(score),
             bbox=[box[0], box[1], box[2] - box[0], box[3] - box[1]])
        for p in predictions
        for box, score, label in zip(*(p['pred_instances'][key].tolist()
                                       for key in ('bboxes', 'scores',
                                                   'labels')))]
    [path] = (folder / 'scenes').rglob('*val*.json')
    truth = COCO(str(path))
    categories = truth.getCatIds()
    for each in found:
        each['category_id'] = categories[each['category_id']]
    evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:2]


def test_a_test_prints_the_ap_of_every_width(folder, monkeypatch, capsys):
    out = folder / 'out.pkl'
    call(monkeypatch, 'test', DEMO, folder / 'work/iter_3.pth', '--work-dir',
         folder / 'test', '--out', out, '--cfg-options', *options(folder))
    table = [
        line.split('│')[1:-1] for line in capsys.readouterr().out.splitlines()
        if line.startswith('│')]
    [tested] = [
        json.loads(path.read_text())
        for path in (folder / 'test').glob('*/*.json')]
    validated = scalars(folder / 'work')[-1]
    assert [row[0].strip() for row in table] == [f'w{w:.2f}' for w in WIDTHS]
    config = Config.fromfile(next((folder / 'work').glob('*.py')))
    detector = load_detector(config, str(folder / 'work/iter_3.pth'))
    ap50 = []
    for row, width in zip(table, WIDTHS):
        name = f'w{width:.2f}'
        columns = [
            f'coco/{kind}_mAP{overlap}_{name}' for kind in ('bbox', 'segm')
            for overlap in ('', '_50', '_75')]
        assert [float(cell) for cell in row[1:]] == pytest.approx([
            100 * tested[column] for column in columns], abs=0.051)
        # The checkpoint has the statistics that the validation ran on.
        assert all(tested[c] == validated[c] for c in columns)
        predictions = pickle.loads((folder / f'out_{name}.pkl').read_bytes())
        expected = ap_by_hand(predictions, folder)
        assert [tested[c] for c in columns[:2]] == pytest.approx(
            expected, abs=6e-4)  # the metric rounds to three digits
        ap50.append(expected[1])
        # A stock detector with the slice finds the same.
        stock = stock_detector(width).eval()
        stock.load_state_dict(slice_network(detector, width).state_dict())
        stock.cfg, stock.dataset_meta = detector.cfg, detector.dataset_meta
        path = predictions[0]['img_path']
        for [sample] in (detect(detector, [path], width), detect(
                stock, [path])):
            for key in ('bboxes', 'scores', 'labels'):
                torch.testing.assert_close(
                    sample.pred_instances[key],
                    predictions[0]['pred_instances'][key])
    assert len(set(ap50)) > 1  # widths are different networks


def test_a_width_that_was_not_trained_is_calibrated_first(
        folder, monkeypatch, capsys):
    call(monkeypatch, 'test', DEMO, folder / 'work/iter_3.pth', '--work-dir',
         folder / 'other', '--out',
         folder / 'other.json', '--out-item', 'metrics', '--cfg-options',
         *options(folder), 'log_level=INFO', 'test_cfg.widths=[1.0,0.4]')
    assert ('statistics of w0.40 measured on 4 images'
            in capsys.readouterr().out)
    metrics = json.loads((folder / 'other.json').read_text())
    validated = scalars(folder / 'work')[-1]
    assert 'coco/bbox_mAP_w0.40' in metrics
    assert (metrics['coco/bbox_mAP_50_w1.00'] ==
            validated['coco/bbox_mAP_50_w1.00'])


def test_calibration_does_not_touch_the_training(folder, monkeypatch):
    call(monkeypatch, 'train', DEMO,
         '--work-dir', folder / 'often', '--no-validate', '--cfg-options',
         *options(folder), 'default_hooks.calibration.interval=1')
    ours, theirs = (load_weights(str(folder / name /
                                     'iter_3.pth'))['state_dict']
                    for name in ('work', 'often'))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


def test_training_without_calibration_is_refused(folder):
    init_default_scope('mmdet')
    cfg = Config.fromfile(next((folder / 'work').glob('*.py')))
    del cfg.default_hooks.calibration
    cfg.work_dir = str(folder / 'without')
    with pytest.raises(ValueError, match='us3l_mm.CalibrationHook'):
        Runner.from_cfg(cfg).train()


def test_calibration_needs_a_detector_of_many_widths():
    hook = CalibrationHook()
    with pytest.raises(ValueError, match='AllWidthsDetector, got a Linear'):
        hook.before_run(SimpleNamespace(model=torch.nn.Linear(1, 1)))
    loader = torch.utils.data.DataLoader([1, 2], batch_sampler=[[0], [1]])
    with pytest.raises(ValueError, match='AspectRatioBatchSampler'):
        hook.before_train(SimpleNamespace(train_dataloader=loader))
    for wrong in (dict(interval=0), dict(num_images=1), dict(widths=[2.0])):
        with pytest.raises(ValueError):
            CalibrationHook(**wrong)


COCO_CONFIG = FOLDER / 'mask-rcnn_r50-all-widths_fpn_1x_coco.py'


def test_the_coco_config_is_the_protocol_of_slimclr():
    """Spec of SlimCLR, section 5, COCO transfer."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(COCO_CONFIG)
    optimizer, per_process = cfg.optim_wrapper, cfg.train_dataloader.batch_size
    assert optimizer.optimizer.to_dict() == dict(
        type='SGD', lr=0.02 * 4, momentum=0.9, weight_decay=1e-4)
    assert optimizer.clip_grad.max_norm == 35
    assert cfg.auto_scale_lr.base_batch_size == 8 * per_process == 64
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.end, warm_up.by_epoch) == (500, False)
    assert steps.milestones == [8, 11] and cfg.train_cfg.max_epochs == 12
    model = MODELS.build(cfg.model)
    assert model.subnets == [*map(Subnet, WIDTHS)]
    assert all(p.requires_grad for p in model.parameters())
    model.train()
    norms = {
        name.split('.')[0]: module.training
        for name, module in model.named_modules()
        if isinstance(module, SlimmableBatchNorm)}
    assert norms == {'backbone': True}  # nothing to measure in the heads
    assert not any('bn' in name for name, _ in model.neck.named_modules())
    for hook in cfg.default_hooks.values():
        if hook.type.startswith('us3l_mm.'):
            HOOKS.build(hook)
