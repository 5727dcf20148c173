# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The slimmable vision transformer through slicing, formats and evaluation."""
import importlib.util
import json
from pathlib import Path

import naive_vit
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.models import VisionTransformer
from naive_vit import ARCH
from small_run import small_cfg
from test_evaluate_widths import labelled
from test_evaluate_widths import tool as evaluate_widths
from test_slice_tool import written

from us3l_mm.apis import load_backbone, slice_checkpoint
from us3l_mm.evaluation import count_complexity
from us3l_mm.export import plain_arguments, slice_network
from us3l_mm.export.formats.timm_vit import zero_filled
from us3l_mm.models import SlimmableViT, at_width
from us3l_mm.models.layers import FULL, Subnet
from us3l_mm.registry import MODELS

ROOT = Path(__file__).parents[1]
SLICES = ['input', 'embed']
WIDTHS = [1.0, 0.77, 0.5, 0.25]
SIZES = dict(img_size=32, patch_size=4)
BACKBONE = dict(arch=ARCH, divisor=4, **SIZES)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))


def network(**kwargs):
    net = SlimmableViT(**{**BACKBONE, **kwargs})
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data.copy_(0.3 *
                             torch.randn(parameter.shape, generator=generator))
    return net.eval()


def features_at(net, width):
    with torch.no_grad(), at_width(net, width):
        return net(IMAGES)[-1]


@pytest.fixture(scope='module', params=SLICES)
def saved(request, tmp_path_factory):
    """A network and its checkpoint."""
    net = network(slicing=request.param)
    return net, written(
        tmp_path_factory.mktemp(request.param) / 'full.pth', net, **BACKBONE,
        slicing=request.param)


# Sizes -----------------------------------------------------------------------


@pytest.mark.parametrize('slicing', SLICES)
@pytest.mark.parametrize('arch, sizes', [('tiny', SIZES), (ARCH, SIZES),
                                         ('small', dict(img_size=64))],
                         ids=str)
def test_sizes_equal_a_formula(slicing, arch, sizes):
    """The products of the attention, which runs fused, included."""
    net = SlimmableViT(arch, slicing=slicing, **sizes)
    pixels = sizes.get('patch_size', 16)
    tokens = 1 + (sizes['img_size'] // pixels)**2
    counted = count_complexity(net, WIDTHS, (sizes['img_size'], ) * 2)
    for subnet, size in counted.items():
        width = subnet.width

        def expected(dead, width=width):
            return naive_vit.count(net.arch_settings, width, slicing, tokens,
                                   3 * pixels**2, dead)

        assert (size.params, size.macs) == expected(dead=False)
        if slicing == 'embed':
            assert size.reference is None
        else:
            reference = size.reference
            assert (reference.params, reference.macs) == expected(dead=True)
            assert reference.macs > size.macs or width == 1.0


def test_what_the_reference_computes_in_vain():
    """ViT-S at 224 pixels, whose MACs at full width are known as 4.6 G."""
    size = count_complexity(SlimmableViT('small'), [1.0, 0.25], (224, 224))
    assert size[FULL].macs / 1e9 == pytest.approx(4.6, abs=0.05)
    quarter = size[Subnet(0.25)]
    saved = 1 - quarter.macs / quarter.reference.macs
    assert 0.45 < saved < 0.55


def test_counting_leaves_the_network_as_it_was():
    net = network()
    count_complexity(net, [0.5], (32, 32))
    assert net.skip_dead and net.pos_embed.device.type == 'cpu'


# Formats ---------------------------------------------------------------------


@pytest.mark.parametrize('file_format',
                         ['mmpretrain', 'mmdet', 'timm', 'onnx'])
def test_every_format_computes_what_the_width_does(saved, file_format,
                                                   tmp_path):
    """Each is read back, run, and compared before it is written."""
    needed = dict(timm=['timm'], onnx=['onnx', 'onnxruntime'])
    for module in needed.get(file_format, []):
        pytest.importorskip(module,
                            reason=f'--format {file_format} needs {module}')
    net, checkpoint = saved
    sizes = []
    for width in WIDTHS:
        report = slice_checkpoint(checkpoint, str(tmp_path / f'{width}'),
                                  width, file_format)
        assert report.gap < 1e-5
        assert report.meta['feature_channels'] == list(
            net.feature_channels(width))
        sizes.append((tmp_path / f'{width}').stat().st_size)
    if file_format == 'mmdet':
        assert ("type='us3l_mm.SimpleFPN',\n    in_channels=["
                f'{net.feature_channels(0.25)[0]}]') in report.usage
        assert "out_type='featmap'" in report.usage
    if file_format == 'timm' and net.slicing == 'input':
        assert 'zeros for what is not read' in report.usage
        assert len(set(sizes)) == 1
    else:
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[3] < 0.5 * sizes[0]


def test_onnx_takes_any_number_of_images(saved, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime',
                                      reason='--format onnx needs it')
    net, checkpoint = saved
    path = str(tmp_path / 'half.onnx')
    slice_checkpoint(checkpoint, path, 0.5, 'onnx')
    session = onnxruntime.InferenceSession(path)
    for images in (IMAGES[:1], torch.cat([IMAGES] * 3)):
        features, = session.run(['features'], {'images': images.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(features)[:1],
            features_at(net, 0.5)[:1], rtol=0, atol=1e-5)


def test_an_input_slice_fits_the_stock_class_with_zeros():
    net = network(slicing='input')
    for width in WIDTHS:
        stock = VisionTransformer(ARCH, **SIZES)
        stock.load_state_dict(zero_filled(net, width), strict=True)
        stock.eval()
        with torch.no_grad():
            torch.testing.assert_close(
                stock(IMAGES)[-1], features_at(net, width), rtol=0, atol=1e-6)
        assert (plain_arguments(net, width) is None) == (width < 1)


def test_dead_rows_are_gone_from_a_slice():
    """Widths of 12 of 32 features: one head and a half of four."""
    net = network(slicing='input')
    state = slice_network(net, 0.375).layers[0].state_dict()
    assert {
        name: tuple(value.shape) for name, value in state.items()
        if value.ndim == 2} == {
            'attn.qkv.weight': (16 + 16 + 12, 12),
            'attn.proj.weight': (32, 12),
            'ffn.layers.0.0.weight': (36, 12),
            'ffn.layers.1.weight': (32, 36)}


def test_what_a_library_cannot_hold_is_refused(saved, tmp_path):
    _, checkpoint = saved
    with pytest.raises(ValueError,
                       match='--format torchvision supports no ViT'):
        slice_checkpoint(checkpoint, str(tmp_path / 'x'), 0.5, 'torchvision')
    pytest.importorskip('timm', reason='--format timm needs timm')
    with pytest.raises(
            ValueError, match='are for 32 x 32 pixels.*Leave out '
            '--input-size'):
        slice_checkpoint(checkpoint, str(tmp_path / 'x'), 0.5, 'timm',
                         input_size=48)


# Tools -----------------------------------------------------------------------


def test_the_slice_tool_says_what_was_left_out(saved, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(
        'slice_checkpoint', ROOT / 'tools' / 'slice_checkpoint.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    net, checkpoint = saved
    tool.main([checkpoint, str(tmp_path / 'small.pth'), '--flops', '1.5M'])
    said = capsys.readouterr().out
    assert ('less than the' in said) == (net.slicing == 'input')
    assert 'statistics from nowhere, as there are no batch norms' in said
    width = torch.load(tmp_path / 'small.pth',
                       weights_only=True)['meta']['width']
    sizes = count_complexity(net, [width, width + 1 / 32], (32, 32))
    macs = [sizes[Subnet(w)].macs for w in (width, width + 1 / 32)]
    assert macs[0] <= 1.5e6 < macs[1]


@pytest.mark.parametrize('slicing', SLICES)
def test_widths_are_evaluated_without_calibration(slicing, tmp_path, capsys):
    cfg = small_cfg('unused')
    cfg.model.backbone = dict(type='us3l_mm.SlimmableViT', slicing=slicing,
                              arch=ARCH, img_size=16, patch_size=4)
    cfg.model.neck.in_channels = ARCH['embed_dims']
    cfg.knn_bank_dataloader = labelled('train', 48)
    cfg.knn_query_dataloader = labelled('test', 24)
    cfg.dump(tmp_path / 'tiny.py')
    init_default_scope('mmpretrain')
    algorithm = MODELS.build(cfg.model)
    torch.save(dict(state_dict=algorithm.state_dict(), meta={}),
               tmp_path / 'tiny.pth')
    evaluate_widths.main([
        str(tmp_path / 'tiny.py'),
        str(tmp_path / 'tiny.pth'), '--out',
        str(tmp_path), '--device', 'cpu', '--knn', '--linear', '--latency',
        '--k', '3', '--widths', '1.0', '0.5'])
    said = capsys.readouterr().out
    assert 'There are no batch norms to calibrate.' in said
    assert ('reference' in said) == (slicing == 'input')
    rows = json.loads((tmp_path / 'widths.json').read_text())['rows']
    assert [row['channels']
            for row in rows] == [32, 32 if slicing == 'input' else 16]
    for row in rows:
        assert row['knn'] >= 0 and row['linear'] >= 0
        assert row['reference_gmacs'] >= row['gmacs']
    # The class token and the positions are not left behind.
    loaded = load_backbone(str(tmp_path / 'tiny.pth'),
                           str(tmp_path / 'tiny.py'))
    assert torch.equal(loaded.pos_embed, algorithm.backbone.pos_embed)
    assert torch.equal(loaded.cls_token, algorithm.backbone.cls_token)


@pytest.mark.parametrize('width', [0.5, 1.0])
def test_a_linear_classifier_reads_the_token_of_its_width(
        saved, width, tmp_path):
    net, checkpoint = saved
    cfg = Config.fromfile(ROOT / 'configs/us3l/benchmarks/'
                          'linear_vit-tiny_4xb256-coslr-90e_cifar10.py')
    cfg.model.backbone.update(**BACKBONE, slicing=net.slicing, width=width,
                              frozen_stages=4)
    cfg.model.backbone.init_cfg.checkpoint = checkpoint
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    model.init_weights()
    assert model.head.in_channels == net.feature_channels(width)[-1]
    assert {n for n, p in model.named_parameters()
            if p.requires_grad} == {'head.fc.weight', 'head.fc.bias'}
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES),
                                   model.head.fc(features_at(net, width)))
