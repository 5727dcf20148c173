# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A slice of a vision transformer in Mask R-CNN."""
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detection_stack import need_detection
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.models import VisionTransformer
from naive_vit import ARCH
from tiny_coco import SMALL, SMALL_MASKS, coco_options, write_coco

from us3l_mm.fileio import load_weights
from us3l_mm.models import SlimmableViT, at_width
from us3l_mm.models.backbones.pretrained import check_weights
from us3l_mm.models.necks import SimpleFPN
from us3l_mm.registry import MODELS

ROOT = Path(__file__).parents[1]
CONFIG = (ROOT / 'configs/us3l/detection' /
          'mask-rcnn_vit-small-any-width_simple-fpn_ms-1x_coco.py')


def test_a_pyramid_of_one_map():
    torch.manual_seed(0)
    neck = SimpleFPN([24], 8, num_outs=6).double()
    x = torch.randn(2, 24, 6, 4, dtype=torch.float64)
    levels = neck((x, ))
    assert [tuple(level.shape) for level in levels] == [(2, 8, 24, 16),
                                                        (2, 8, 12, 8),
                                                        (2, 8, 6, 4),
                                                        (2, 8, 3, 2),
                                                        (2, 8, 2, 1),
                                                        (2, 8, 1, 1)]

    def norm(y):  # over channels, fresh scales
        y = y - y.mean(1, keepdim=True)
        return y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt()

    def smooth(y, level):
        for conv in neck.convs[level]:
            y = norm(
                F.conv2d(y, conv.conv.weight,
                         padding=conv.conv.weight.shape[-1] // 2))
        return y

    first, second = neck.scales[0]
    finer = norm(F.conv_transpose2d(x, first.conv.weight, stride=2))
    finer = second(F.gelu(finer))
    for level, expected in enumerate([
            finer, neck.scales[1](x), x,
            x.unflatten(2, (3, 2)).unflatten(4, (2, 2)).amax((3, 5))]):
        torch.testing.assert_close(levels[level], smooth(expected, level))
    assert torch.equal(levels[4], levels[3][..., ::2, ::2])


@pytest.mark.parametrize('in_channels', [[16, 32], 18, [30]])
def test_a_pyramid_needs_one_map(in_channels):
    with pytest.raises(ValueError, match='takes one map.*featmap'):
        SimpleFPN(in_channels)


@pytest.fixture(scope='module', params=['input', 'embed'])
def full(request, tmp_path_factory):
    """A whole network of small images, and its checkpoint."""
    torch.manual_seed(0)
    net = SlimmableViT(ARCH, slicing=request.param, img_size=32, patch_size=16)
    net.init_weights()
    path = tmp_path_factory.mktemp('vit') / 'full.pth'
    torch.save(
        dict(
            state_dict={
                f'backbone.{key}': value
                for key, value in net.state_dict().items()}, meta={}), path)
    return net, str(path)


def backbone_options(net, path) -> list:
    arch = 'model.backbone.arch'
    return [f'{arch}.{key}={value}' for key, value in ARCH.items()] + [
        f'model.backbone.slicing={net.slicing}', 'model.backbone.img_size=32',
        'model.backbone.width=0.5', 'model.backbone.positions=learned',
        f'model.backbone.init_cfg.checkpoint={path}']


def test_the_config_builds_at_any_width():
    need_detection()
    init_default_scope('mmdet')
    for slicing, channels in (('input', 384), ('embed', 96)):
        cfg = Config.fromfile(CONFIG)
        cfg.merge_from_dict({
            'model.backbone.slicing': slicing,
            'model.backbone.width': 0.25,
            'model.backbone.init_cfg': None})
        model = MODELS.build(cfg.model)
        assert model.neck.in_channels == [channels]
        model.eval()
        with torch.no_grad():
            levels = model.extract_feat(torch.zeros(1, 3, 96, 64))
        assert [tuple(level.shape[1:]) for level in levels] == [(256, 24, 16),
                                                                (256, 12, 8),
                                                                (256, 6, 4),
                                                                (256, 3, 2),
                                                                (256, 2, 1)]


def test_two_iterations_and_an_evaluation(full, tmp_path, monkeypatch):
    need_detection()
    from mmdet.visualization import DetLocalVisualizer
    DetLocalVisualizer._instance_dict.clear()  # those of the run before
    net, path = full
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.arch = dict(ARCH)  # a name cannot take single sizes
    cfg.dump(tmp_path / 'config.py')
    coco = write_coco(tmp_path / 'coco')
    monkeypatch.setattr('sys.argv', [
        'train.py',
        str(tmp_path / 'config.py'), '--work-dir',
        str(tmp_path), '--cfg-options', *coco_options(coco), *SMALL,
        *SMALL_MASKS, *backbone_options(net, path), 'log_level=ERROR'])
    importlib.import_module('train').main()
    *steps, metrics = [
        json.loads(line) for file in tmp_path.glob('*/vis_data/scalars.json')
        for line in file.read_text().splitlines()]
    assert len(steps) == 2 and np.isfinite([s['loss'] for s in steps]).all()
    assert {'loss_rpn_cls', 'loss_cls', 'loss_bbox', 'loss_mask'} <= {
        *steps[0]}
    assert 0 <= metrics['coco/segm_mAP'] <= 1
    after = load_weights(str(tmp_path / 'epoch_1.pth'))['state_dict']
    narrow = SlimmableViT(ARCH, slicing=net.slicing, img_size=32, width=0.5)
    narrow.load_state_dict(net.state_dict())
    for name, before in narrow.state_dict().items():
        # Two steps of AdamW at 1e-3 of the learning rate: close, not equal.
        moved = (after[f'backbone.{name}'] - before).abs().max()
        assert moved < 1e-4, name
        assert moved > 0 or name in ('cls_token', 'ln1.bias'), name


@pytest.mark.parametrize('img_size', [32, 48])
def test_weights_are_compared_before_training(full, img_size):
    """Also in the stock class, which loads what it can and says nothing."""
    net, path = full
    file, sizes = (path, 'backbone.'), dict(patch_size=16)
    narrow = SlimmableViT(ARCH, slicing=net.slicing, width=0.5,
                          img_size=img_size, **sizes)
    narrow.load_state_dict(net.state_dict())
    check_weights(narrow, *file)
    stock = VisionTransformer(ARCH, img_size=img_size, **sizes)
    stock.load_state_dict(net.state_dict())
    check_weights(stock, *file)
    stock.layers[0].ln1.bias.data += 1
    with pytest.raises(ValueError, match='not those of.*layers.0.ln1.bias'):
        check_weights(stock, *file)
    half = dict(ARCH, embed_dims=16, num_heads=2, feedforward_channels=48)
    with pytest.raises(
            ValueError, match='does not fit this Vis.* 54 have another shape'
            '(.|\n)*SlimmableViT.width=W'):
        check_weights(VisionTransformer(half, img_size=img_size, **sizes),
                      *file)


def test_the_detector_sees_what_its_slice_computes(full):
    need_detection()
    net, path = full
    init_default_scope('mmdet')
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.arch = dict(ARCH)
    cfg.model.backbone.update(slicing=net.slicing, img_size=32, width=0.5)
    cfg.model.backbone.init_cfg.checkpoint = path
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.eval()
    images = torch.randn(1, 3, 64, 48)  # positions are interpolated
    net.out_type = 'featmap'
    with torch.no_grad(), at_width(net.eval(), 0.5):
        torch.testing.assert_close(
            model.backbone(images)[-1],
            net(images)[-1], rtol=0, atol=1e-5)
    net.out_type = 'cls_token'
