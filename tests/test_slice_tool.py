# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""tools/slice_checkpoint.py: what it writes, and what it refuses."""
import errno
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner import Runner
from small_run import small_cfg
from torch import nn

from us3l_mm.apis import (Budget, at_width, calibrate, load_backbone,
                          slice_checkpoint, slice_network)
from us3l_mm.apis.budget import (parse_amount, parse_seconds, selectable,
                                 widest_within)
from us3l_mm.evaluation import count_complexity
from us3l_mm.export.formats import artifact
from us3l_mm.fileio import load_weights, writing
from us3l_mm.models import SlimmableResNet
from us3l_mm.models.layers import FULL, Subnet

TOOL = Path(__file__).parent.parent / 'tools' / 'slice_checkpoint.py'
# Channels of a quarter of the real ones, on the same k/8 grid.
SMALL = dict(base_channels=16, stem_channels=16, divisor=2)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
WIDTHS = [k / 32 for k in range(8, 33)]


def written(path, network, **backbone):
    """A checkpoint like MMEngine's, with the config as a text in it."""
    arguments = ', '.join(f'{k}={v!r}' for k, v in backbone.items())
    torch.save(
        dict(
            state_dict={
                f'backbone.{k}': v for k, v in network.state_dict().items()},
            meta=dict(
                cfg="default_scope = 'mmpretrain'\nmodel = dict(\n"
                "    type='us3l_mm.US3LAlgorithm',\n    backbone=dict("
                f"type='us3l_mm.{type(network).__name__}', {arguments}),\n"
                '    data_preprocessor=dict(mean=[1.0, 2.0, 3.0]))\n')), path)
    return str(path)


def prepared(depth=18, widths=WIDTHS, **kwargs):
    torch.manual_seed(0)
    network = SlimmableResNet(depth, **kwargs)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    calibrate(network, [torch.randn(4, 3, 32, 32)], widths)
    return network.eval()


@pytest.fixture(scope='module')
def small():
    return prepared(**SMALL)


@pytest.fixture(scope='module')
def checkpoint(small, tmp_path_factory):
    return written(
        tmp_path_factory.mktemp('small') / 'full.pth', small, depth=18,
        **SMALL)


@pytest.fixture(scope='module')
def real_size(tmp_path_factory):
    """ResNet-18 as published, whose full width other libraries have."""
    network = prepared(widths=[0.3, 0.5, 1.0])
    return network, written(
        tmp_path_factory.mktemp('real') / 'full.pth', network, depth=18)


def maps_at(network, width):
    with torch.no_grad(), at_width(network, width):
        return network(IMAGES)


def features_at(network, width):
    return maps_at(network, width)[-1].mean(dim=(2, 3))


def slices(checkpoint, out, width, **kwargs):
    return slice_checkpoint(checkpoint, str(out), width, input_size=32,
                            **kwargs)


def run_usage(report, **names):
    exec(report.usage, names)
    return names


@pytest.mark.parametrize('width, kind', [(0.5, 'ResNet'),
                                         (0.3125, 'us3l_mm.SlimmableResNet')])
def test_mmpretrain_loads_it_as_printed(checkpoint, small, tmp_path, width,
                                        kind):
    report = slices(checkpoint, tmp_path / 'w.pth', width)
    config = run_usage(report)
    assert config['backbone']['type'] == kind
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = ROOT_MODELS.build(config['backbone'])
    network.init_weights()
    network.eval()
    expected = maps_at(small, width)[0]
    torch.testing.assert_close(
        network(IMAGES)[0], expected, rtol=0,
        atol=0 if kind == 'ResNet' else 1e-5)
    assert config['head']['in_channels'] == expected.shape[1]
    # And strictly, without a config.
    weights = torch.load(report.out, weights_only=True)['state_dict']
    network.load_state_dict(
        {
            key.removeprefix('backbone.'): value
            for key, value in weights.items()}, strict=True)


@pytest.mark.parametrize('width', [0.5, 0.3])
def test_mmdetection_loads_it_as_printed(real_size, tmp_path, width):
    pytest.importorskip('mmdet.models', exc_type=ImportError,
                        reason='MMDetection is not installed')
    network, checkpoint = real_size
    report = slices(checkpoint, tmp_path / 'w.pth', width, file_format='mmdet')
    config = run_usage(report)
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = ROOT_MODELS.build(config['backbone'])
    assert ('mmdet'
            if width == 0.5 else 'us3l_mm') in type(backbone).__module__
    backbone.init_weights()
    backbone.eval()
    with torch.no_grad():
        maps = backbone(IMAGES)
    torch.testing.assert_close(maps[-1],
                               maps_at(network, width)[0], rtol=0,
                               atol=0 if width == 0.5 else 1e-5)
    assert config['neck']['in_channels'] == [m.shape[1] for m in maps]


def test_torchvision_loads_the_full_width_as_printed(real_size, tmp_path):
    network, checkpoint = real_size
    report = slices(checkpoint, tmp_path / 'w.pth', 1.0,
                    file_format='torchvision')
    names = run_usage(report, images=IMAGES)
    torch.testing.assert_close(names['features'], features_at(network, 1.0),
                               rtol=0, atol=1e-5)
    with pytest.raises(
            ValueError, match='always has 64 channels after its '
            r'stem.*width 0.5 has 32 and \[32, 64, 128, 256\]'):
        slices(checkpoint, tmp_path / 'no.pth', 0.5, file_format='torchvision')
    assert os.listdir(tmp_path) == ['w.pth']


@pytest.mark.parametrize('depth, width, kind', [(18, 1.0, 'ResNet'),
                                                (18, 0.3, 'ByobNet'),
                                                (50, 0.3125, 'ByobNet')])
def test_timm_loads_it_as_printed(real_size, tmp_path, depth, width, kind):
    pytest.importorskip('timm')
    network, checkpoint = real_size
    if depth == 50:
        network = prepared(50, [width])
        checkpoint = written(tmp_path / 'full.pth', network, depth=50)
    report = slices(checkpoint, tmp_path / 'w.pth', width, file_format='timm')
    names = run_usage(report, images=IMAGES)
    assert type(names['network']).__name__ == kind
    torch.testing.assert_close(names['features'], features_at(network, width),
                               rtol=0, atol=1e-4)


def test_timm_says_what_it_cannot_hold(checkpoint, tmp_path):
    pytest.importorskip('timm')
    with pytest.raises(
            ValueError, match='rounds the middle channels .* to '
            'multiples of 8.* has 4'):
        slices(checkpoint, tmp_path / 'w.pth', 0.25, file_format='timm')


def test_onnx_computes_the_same_and_is_smaller(real_size, tmp_path):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    network, checkpoint = real_size
    sizes = {}
    for width in (0.3, 1.0):
        report = slices(checkpoint, tmp_path / f'{width}.onnx', width,
                        file_format='onnx')
        sizes[width] = os.path.getsize(report.out)
        names = run_usage(report)
        assert names['features'].shape == (1,
                                           report.meta['feature_channels'][-1])
        for count in (1, 2):  # any number of images
            maps, features = names['session'].run(
                None, dict(images=IMAGES[:count].numpy()))
            expected = maps_at(network, width)[0][:count]
            scale = expected.abs().max()
            torch.testing.assert_close(
                torch.from_numpy(maps) / scale, expected / scale, rtol=0,
                atol=1e-4)
            torch.testing.assert_close(
                torch.from_numpy(features) / scale,
                expected.mean(dim=(2, 3)) / scale, rtol=0, atol=1e-4)
        params = sum(p.numel()
                     for p in slice_network(network, width).parameters())
        assert sizes[width] == pytest.approx(4 * params, rel=0.03)
        stored = {p.key: p.value for p in onnx.load(report.out).metadata_props}
        assert stored['width'] == str(width)
    assert sizes[0.3] < 0.15 * sizes[1.0]


def test_the_file_says_what_it_is(checkpoint, tmp_path):
    report = slices(checkpoint, tmp_path / 'w.pth', 0.3125)
    meta = torch.load(report.out, weights_only=True)['meta']
    assert meta['width'] == 0.3125 and meta['subnet'] == 'w0.3125'
    assert meta['channels']['conv1'] == 6
    assert meta['channels']['layer4.1.conv2'] == 40 == meta[
        'feature_channels'][0]
    assert meta['statistics'] == 'the checkpoint'
    assert meta['source'] == dict(file='full.pth',
                                  sha256=writing.sha256(checkpoint))
    assert meta['data_preprocessor'] == dict(mean=[1.0, 2.0, 3.0])
    assert meta['architecture'] == dict(type='ResNet', depth=18,
                                        stem_channels=16, base_channels=16)


@pytest.mark.parametrize('kind', ['flops', 'params'])
def test_the_widest_inside_the_budget_is_taken(checkpoint, small, tmp_path,
                                               kind):
    answers = (0.25, 0.40625)
    sizes = count_complexity(small, [
        w + step for w in answers for step in (0, 1 / 32)], (32, 32))
    costs = {
        s.width: size.macs if kind == 'flops' else size.params
        for s, size in sizes.items()}
    for width in answers:
        # The largest budget that this width is the answer to.
        limit = costs[width + 1 / 32] - 1
        report = slices(checkpoint, tmp_path / 'w.pth', Budget(kind, limit))
        assert report.subnet == Subnet(width)
        assert report.choice.next_subnet == Subnet(width + 1 / 32)
        assert report.choice.cost == costs[width] <= limit
        assert report.choice.next_cost == costs[width + 1 / 32] > limit
        plain = torch.load(report.out, weights_only=True)['state_dict']
        if kind == 'params':
            assert costs[width] == sum(value.numel()
                                       for key, value in plain.items()
                                       if key.endswith(('.weight', '.bias')))
    report = slices(checkpoint, tmp_path / 'w.pth', Budget(kind, 1e15))
    assert report.subnet == FULL and report.choice.next_subnet is None


def test_a_latency_is_measured(checkpoint, tmp_path):
    report = slices(checkpoint, tmp_path / 'w.pth', Budget('latency', 60.0))
    assert report.subnet == FULL and 0 < report.choice.cost < 60
    with pytest.raises(
            ValueError, match='No width is inside the budget of '
            '1us: the smallest, w0.25, takes .*s'):
        slices(checkpoint, tmp_path / 'no.pth', Budget('latency', 1e-6))


def test_a_choice_asks_for_each_cost_once():
    asked = []

    def cost(subnet):
        asked.append(subnet)
        return 10 * subnet.width

    subnets = [Subnet(width) for width in WIDTHS]
    choice = widest_within(subnets, cost, 6.0)
    assert choice.subnet == Subnet(0.59375)
    assert choice.next_subnet == Subnet(0.625)
    assert len(asked) == len(set(asked)) <= 7
    with pytest.raises(ValueError, match='the smallest, w0.25, takes 2.5'):
        widest_within(subnets, cost, 2.0)


def test_sub_networks_to_choose_from():
    assert selectable(SlimmableResNet(18, **SMALL)) == [
        Subnet(width) for width in WIDTHS]
    narrow = SlimmableResNet(18, width_range=(0.3, 0.4), **SMALL)
    assert selectable(narrow) == [
        Subnet(0.3125), Subnet(0.34375),
        Subnet(0.375)]
    switchable = SlimmableResNet(
        18, **SMALL, norm_cfg=dict(type='SwitchableBN', widths=[1.0, 0.5]))
    assert selectable(switchable) == [Subnet(0.5), FULL]


@pytest.mark.parametrize('text, value', [('1G', 1e9), ('250M', 250e6),
                                         ('5.5e6', 5.5e6), ('12', 12),
                                         ('2k', 2e3)])
def test_amounts_are_parsed(text, value):
    assert parse_amount(text) == value


def test_durations_are_parsed():
    assert parse_seconds('10ms') == pytest.approx(0.01)
    assert parse_seconds('0.5s') == 0.5
    for parse, text in ((parse_seconds, '10'), (parse_amount, '1X'),
                        (parse_amount, '-1G'), (parse_amount, '0'),
                        (parse_amount, ''), (parse_seconds, 'soon')):
        with pytest.raises(ValueError, match='A budget is a positive number'):
            parse(text)


def test_statistics_are_measured_where_there_is_a_config(tmp_path):
    cfg = small_cfg(tmp_path, **{'train_cfg.max_epochs': 1})
    Runner.from_cfg(cfg).train()
    file = str(tmp_path / 'epoch_1.pth')
    saved = 'measured on 16 images of train_dataloader in '
    report = slices(file, tmp_path / 'w.pth', 0.5, num_images=16)
    assert report.meta['statistics'] == f'{saved}epoch_1.pth'
    # Without the config that is stored in the file, the one beside it.
    content = load_weights(file)
    del content['meta']['cfg']
    for folder in ('run', 'elsewhere'):
        (tmp_path / folder).mkdir()
        torch.save(content, tmp_path / folder / 'epoch_1.pth')
    file = str(tmp_path / 'run/epoch_1.pth')
    beside = tmp_path / 'run/config.py'
    beside.write_text(cfg.pretty_text)
    report = slices(file, tmp_path / 'w.pth', 0.5, num_images=16, cfg_options={
        'train_dataloader.batch_size': 8})
    assert report.meta['statistics'] == f'{saved}config.py'
    beside.write_text(f"import os\nos.mkdir('{tmp_path}/trace')\n"
                      f'{cfg.pretty_text}')
    with pytest.raises(ValueError, match="is not plain data .*'import os'"):
        slices(file, tmp_path / 'w.pth', 0.5, cfg_options=dict(seed=1))
    assert not (tmp_path / 'trace').exists()
    with pytest.raises(ValueError, match='no config to change by .*--config'):
        slices(str(tmp_path / 'elsewhere/epoch_1.pth'), tmp_path / 'w.pth',
               0.5, cfg_options=dict(seed=1))
    config = str(tmp_path / 'config.py')
    cfg.dump(config)
    report = slices(file, tmp_path / 'w.pth', 0.5, num_images=16,
                    config=config)
    assert report.meta['statistics'] == f'{saved}config.py'
    weights = torch.load(report.out, weights_only=True)['state_dict']
    assert weights['backbone.bn1.running_mean'].abs().max() > 0
    assert weights['backbone.bn1.num_batches_tracked'] == 1


def test_a_file_that_differs_is_not_written(checkpoint, tmp_path, monkeypatch):

    def other_images(content):
        read = torch.load(artifact.io.BytesIO(content), weights_only=True)
        read['state_dict']['backbone.layer1.0.conv1.weight'][0] += 1e-3
        return read

    monkeypatch.setattr('us3l_mm.export.formats.openmmlab.read_back',
                        other_images)
    with pytest.raises(
            ValueError, match='differs from the slimmable one at '
            'width 0.5 by .*nothing was written'):
        slices(checkpoint, tmp_path / 'w.pth', 0.5)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(checkpoint, tmp_path, monkeypatch):

    def full(fd):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(writing.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        slices(checkpoint, tmp_path / 'w.pth', 0.5)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_done_is_refused_and_nothing_is_written(
        checkpoint, small, tmp_path):
    out = tmp_path / 'w.pth'
    with pytest.raises(ValueError, match=r'outside the range \[0.25, 1\]'):
        slices(checkpoint, out, 0.2)
    with pytest.raises(
            ValueError, match='No width is inside the budget of 1k '
            'parameters: the smallest, w0.25, takes '):
        slices(checkpoint, out, Budget.parse('params', '1k'))
    with pytest.raises(ValueError, match='A format is one of'):
        slices(checkpoint, out, 0.5, file_format='caffe')
    with pytest.raises(ValueError, match='is the checkpoint that is read'):
        slices(checkpoint, checkpoint, 0.5)
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        slices(str(tmp_path / 'none.pth'), out, 0.5)
    other = written(tmp_path / 'other.pth', small, depth=34, **SMALL)
    with pytest.raises(ValueError,
                       match=r'SlimmableResNet\(depth=34\): .*48 are not in '):
        slices(other, out, 0.5)
    assert os.listdir(tmp_path) == ['other.pth']


@pytest.mark.parametrize('cfg, message', [
    (None, 'does not say which network it holds .*--config'),
    ('model = dict(', 'is not plain data'),
    ("model = dict(backbone=os.mkdir('trace'))",
     'is not plain data .*os.mkdir'),
    ("import os\nos.mkdir('trace')", "is not plain data .*'import os'"),
    ("work_dir = 'here'", 'has no model'),
    ("model = dict(backbone=dict(type='ResNet', depth=18))",
     'holds a ResNet, not a slimmable backbone.*plain_to_ours'),
    ("model = dict(backbone=dict(type='os.mkdir', path='trace'))",
     'holds a os.mkdir, not a slimmable'),
    ("model = dict(backbone=dict(type='us3l_mm.SlimmableResNet', depth=18, "
     "norm_cfg=dict(type='os.mkdir', path='trace')))", "builds 'os.mkdir'"),
    ("model = dict(backbone=dict(type='us3l_mm.SlimmableResNet', depth=18, "
     'width=0.5))', 'ordinary network of width 0.5 already'),
    ("model = dict(backbone=dict(type='us3l_mm.SlimmableResNet', depth=18, "
     'colour=3))', 'colour.*Give the training --config'), ])
def test_the_config_in_a_checkpoint_is_not_executed(small, tmp_path, cfg,
                                                    message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=small.state_dict(), meta=dict(cfg=cfg)),
               'full.pth')
    with pytest.raises(ValueError, match=message):
        load_backbone('full.pth')
    assert os.listdir(tmp_path) == ['full.pth']


def test_the_python_api_as_documented(checkpoint, small):
    network = load_backbone(checkpoint)
    calibrate(network, [IMAGES], [0.3, 0.5])
    with at_width(network, 0.5), torch.no_grad():
        features = network(IMAGES)[-1].mean(dim=(2, 3))
    narrow = slice_network(network, 0.5)
    with torch.no_grad():
        assert torch.equal(narrow(IMAGES)[-1].mean(dim=(2, 3)), features)
    assert features.shape == (2, 64)


@pytest.mark.parametrize('call, error, message', [
    (lambda n, c: Budget('colour', 1.0), ValueError, "flops.*got 'colour'"),
    (lambda n, c: Budget('flops', float('nan')), ValueError, 'got nan'),
    (lambda n, c: Budget('flops', -1), ValueError, 'positive number, got -1'),
    (lambda n, c: Budget('flops', float('inf')), ValueError, 'got inf'),
    (lambda n, c: Budget('flops', '1G'), ValueError, 'Budget.parse'),
    (lambda n, c: Budget('params', True), ValueError, 'got True'),
    (lambda n, c: Budget.parse('flops', 1e9), TypeError, 'is a text .*1000'),
    (lambda n, c: Budget.parse('latency', '5'), ValueError, 'its unit'),
    (lambda n, c: Budget('flops', 1e9).choose(n, 0), ValueError, 'got 0'),
    (lambda n, c: Budget('flops', 1e9).choose(n, 2.5), ValueError, '2.5'),
    (lambda n, c: slice_network(n, float('nan')), ValueError, 'got nan'),
    (lambda n, c: slice_network(n, None), TypeError, 'got None'),
    (lambda n, c: slice_network(n, 2), ValueError, 'got 2'),
    (lambda n, c: slice_network(n, True), TypeError, 'got True'),
    (lambda n, c: slice_network('n', 0.5), TypeError, "Module, got 'n'"),
    (lambda n, c: slice_network(torch.nn.ReLU(), 0.5), ValueError, 'ordinary'),
    (lambda n, c: at_width(n, float('inf')), ValueError, 'got inf'),
    (lambda n, c: at_width(n, [0.5]), TypeError, r'got \[0.5\]'),
    (lambda n, c: at_width(n, 0.1).__enter__(), ValueError, 'outside the ra'),
    (lambda n, c: at_width('n', 0.5).__enter__(), TypeError, "list.*got 'n'"),
    (lambda n, c: load_backbone(None), TypeError, 'path of a file .*NoneType'),
    (lambda n, c: load_backbone({'a': 1}), ValueError, r"the keys \['a'\]"),
    (lambda n, c: load_backbone('none.pth'), FileNotFoundError, 'none.pth'),
    (lambda n, c: load_backbone('.'), FileNotFoundError, 'is a folder'),
    (lambda n, c: load_backbone(c, 3), TypeError, 'got a int'),
    (lambda n, c: slices(c, 'o.pth', 0.5, num_images=0), ValueError, 'got 0'),
    (lambda n, c: slice_checkpoint(c, 'o.pth', 0.5, input_size=0), ValueError,
     'got 0'),
    (lambda n, c: slices(c, 'o.pth', 0.5, device='x'), ValueError, "'x'"),
    (lambda n, c: slices(c, 'o.pth', None), TypeError, 'got None')])
def test_the_python_api_checks_its_arguments(checkpoint, small, call, error,
                                             message):
    with pytest.raises(error, match=message):
        call(small, checkpoint)


def test_the_command(checkpoint, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location('tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    out = str(tmp_path / 'w.pth')
    tool.main([checkpoint, out, '--params', '0.2M', '--input-size', '32'])
    printed = capsys.readouterr().out
    assert 'takes 1' in printed and 'parameters; w0.' in printed
    assert 'init_cfg=dict(' in printed and out in printed
    for arguments, message in [
        (['--width', '2'], 'slice_checkpoint: A width is a multiplier'),
        (['--width',
          'nan'], 'slice_checkpoint: A sub-network is a width such'),
        (['--width', 'gated'], 'slice_checkpoint: .* no gates'),
        (['--flops', '1 apple'], 'slice_checkpoint: A budget is')]:
        with pytest.raises(SystemExit, match=message):
            tool.main([checkpoint, str(tmp_path / 'no.pth'), *arguments])
    assert os.listdir(tmp_path) == ['w.pth']
