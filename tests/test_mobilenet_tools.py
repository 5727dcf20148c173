# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A MobileNetV2 through its recipe, the tools and all formats."""
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from test_evaluate_widths import labelled
from test_evaluate_widths import tool as evaluate_tool
from test_slice_tool import run_usage, written
from torch import nn

from us3l_mm.apis import Budget, calibrate, load_backbone, slice_checkpoint
from us3l_mm.models import SlimmableMobileNetV2, at_width

RECIPE = (Path(__file__).parents[1] / 'configs/us3l' /
          'us3l_mobilenet-v2_4xb128-coslr-400e_cifar10.py')
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
SMALLER = {
    'model.neck.hid_channels': 32,
    'model.neck.out_channels': 16,
    'model.distill_head.predictor.in_channels': 16,
    'model.distill_head.predictor.hid_channels': 32,
    'model.distill_head.predictor.out_channels': 16}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Two iterations of the recipe, on digits in place of CIFAR-10."""
    folder = tmp_path_factory.mktemp('run')
    cfg = Config.fromfile(RECIPE)
    cfg.merge_from_dict({
        'work_dir': str(folder),
        'log_level': 'WARNING',
        'train_cfg.max_epochs': 1,
        'default_hooks.logger.interval': 1,
        **SMALLER, 'train_dataloader.batch_size': 6,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False})
    cfg.train_dataloader.dataset = dict(
        type='us3l_mm.RenderedDigits', split='train', num_images=12,
        pipeline=cfg.train_dataloader.dataset.pipeline)
    cfg.knn_bank_dataloader = labelled('train', 24)
    cfg.knn_query_dataloader = labelled('test', 12)
    cfg.default_hooks.knn.update(bank_dataloader=cfg.knn_bank_dataloader,
                                 interval=1, k=3,
                                 query_dataloader=cfg.knn_query_dataloader)
    runner = Runner.from_cfg(cfg)
    before = {
        name: p.detach().clone()
        for name, p in runner.model.backbone.named_parameters()}
    runner.train()
    cfg.dump(folder / 'run.py')
    return folder, runner, before


def test_two_iterations_of_the_recipe(trained):
    folder, runner, before = trained
    [path] = folder.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [row for row in rows if 'loss' in row]
    assert len(steps) == runner.iter == 2
    for row in steps:
        assert torch.isfinite(torch.tensor(row['loss']))
        # The sandwich over the whole range, from the start
        assert row['width_max'] == 1.0 and row['width_min'] == 0.25
        assert 0.25 < row['width_rand'] < 1.0
        assert row['loss_reg'] > 0
    [knn] = [row for row in rows if any('knn' in key for key in row)]
    assert len([key for key in knn if 'knn' in key]) >= 4
    now = dict(runner.model.backbone.named_parameters())
    assert all(not torch.equal(now[name], p) for name, p in before.items()
               if p.ndim == 4)


def test_the_evaluation_tool(trained, tmp_path):
    folder, _, _ = trained
    saved = tmp_path / 'measured.pth'
    evaluate_tool.main([
        str(folder / 'run.py'),
        str(folder / 'epoch_1.pth'), '--out',
        str(tmp_path), '--device', 'cpu', '--widths', '1.0', '0.5', '0.3',
        '--knn', '--linear', '--k', '3', '--save-checkpoint',
        str(saved)])
    rows = json.loads((tmp_path / 'widths.json').read_text())['rows']
    assert [row['width'] for row in rows] == [1.0, 0.5, 0.3]
    assert {row['channels'] for row in rows} == {1280}
    assert rows[0]['params'] > rows[1]['params'] > rows[2]['params']
    assert all(0 <= row['knn'] <= 100 and 0 <= row['linear'] <= 100
               for row in rows)
    full = load_backbone(str(saved)).eval()
    for file_format, name in (('mmpretrain', 'w.pth'), ('onnx', 'w.onnx')):
        if file_format == 'onnx':
            pytest.importorskip('onnxruntime')
        report = slice_checkpoint(str(saved), str(tmp_path / name), 0.3,
                                  input_size=32, file_format=file_format)
        assert report.meta['feature_channels'] == [1280]
        if file_format == 'mmpretrain':
            config = run_usage(report)['backbone']
            assert config['type'] == 'us3l_mm.SlimmableMobileNetV2_CIFAR'
            assert run_usage(report)['head'] == dict(in_channels=1280)
            compare(config, full, 0.3)
    with pytest.raises(
            ValueError, match='torchvision cannot hold this '
            'network: it has the strides'):
        slice_checkpoint(str(saved), str(tmp_path / 'no.pth'), 0.5,
                         input_size=32, file_format='torchvision')


def compare(config, full, width, scope='mmpretrain', last=True):
    """A consumer's backbone computes what ``full`` does at ``width``."""
    with DefaultScope.overwrite_default_scope(scope):
        network = ROOT_MODELS.build(config)
    network.init_weights()
    network.eval()
    with torch.no_grad(), at_width(full, width):
        expected = full(IMAGES)[-1]
        found = network(IMAGES)
    torch.testing.assert_close(found[-1], expected, rtol=0, atol=0)
    return found


WIDTHS = [k / 32 for k in range(8, 33)]


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    torch.manual_seed(0)
    network = SlimmableMobileNetV2()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    calibrate(network, [torch.randn(4, 3, 32, 32)], WIDTHS)
    return network.eval(), written(
        tmp_path_factory.mktemp('real') / 'full.pth', network,
        widen_factor=1.0)


@pytest.mark.parametrize('width', [1.0, 0.34375])
@pytest.mark.parametrize('file_format', ['torchvision', 'timm'])
def test_other_libraries_load_it_as_printed(real, tmp_path, file_format,
                                            width):
    pytest.importorskip(file_format)
    network, checkpoint = real
    report = slice_checkpoint(checkpoint, str(tmp_path / 'w.pth'), width,
                              input_size=32, file_format=file_format)
    names = run_usage(report, images=IMAGES)
    with torch.no_grad(), at_width(network, width):
        expected = network(IMAGES)[-1].mean(dim=(2, 3))
    torch.testing.assert_close(names['features'], expected, rtol=0, atol=1e-5)
    assert 'mobile' in str(type(names['network'])).lower() or (type(
        names['network']).__name__ == 'EfficientNet')


def test_a_budget_gives_a_stock_network(real, tmp_path):
    network, checkpoint = real
    report = slice_checkpoint(checkpoint, str(tmp_path / 'w.pth'),
                              Budget('params', 1e6), input_size=32)
    found = run_usage(report)['backbone']
    assert found['type'] == 'MobileNetV2'
    width = report.meta['width']
    assert found['widen_factor'] == width
    compare(found, network, width)
    params = sum(p.numel()
                 for p in SlimmableMobileNetV2(width=width).parameters())
    wider = sum(p.numel() for p in SlimmableMobileNetV2(width=width +
                                                        1 / 32).parameters())
    assert params <= 1e6 < wider


def test_mmdetection_loads_it_as_printed(real, tmp_path):
    pytest.importorskip('mmdet.models', exc_type=ImportError,
                        reason='MMDetection is not installed')
    network, checkpoint = real
    report = slice_checkpoint(checkpoint, str(tmp_path / 'w.pth'), 0.5,
                              input_size=32, file_format='mmdet')
    config = run_usage(report)
    assert config['backbone']['type'] == 'mmpretrain.MobileNetV2'
    maps = compare(config['backbone'], network, 0.5, 'mmdet')
    assert config['neck']['in_channels'] == [m.shape[1] for m in maps]
    assert [m.shape[2] for m in maps] == [8, 4, 2, 1]


def test_what_other_libraries_cannot_hold(real, tmp_path):
    network, checkpoint = real
    report = slice_checkpoint(checkpoint, str(tmp_path / 'w.pth'), 0.25,
                              input_size=32)
    config = run_usage(report)['backbone']
    assert config['type'] == 'us3l_mm.SlimmableMobileNetV2'
    compare(config, network, 0.25)
    (tmp_path / 'w.pth').unlink()
    with pytest.raises(ValueError, match='channels and shortcuts of width '
                       '0.25'):
        slice_checkpoint(checkpoint, str(tmp_path / 'w.pth'), 0.25,
                         input_size=32, file_format='timm')
    network = SlimmableMobileNetV2(0.75, norm_cfg=dict(type='BN', eps=1e-3))
    calibrate(network, [torch.randn(4, 3, 32, 32)], [0.5, 1.0])
    checkpoint = written(tmp_path / 'full.pth', network, widen_factor=0.75,
                         norm_cfg=dict(type='BN', eps=1e-3))
    with pytest.raises(
            ValueError, match='torchvision cannot hold this '
            'network: its MobileNetV2 has no argument norm_cfg'):
        slice_checkpoint(checkpoint, str(tmp_path / 'w.pth'), 1.0,
                         input_size=32, file_format='torchvision')
    assert [p.name for p in tmp_path.iterdir()] == ['full.pth']
