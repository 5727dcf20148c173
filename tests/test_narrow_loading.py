# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A checkpoint of the full network in a network of one width."""
import pytest
import torch
from algorithms import model_cfg
from mmengine.runner import load_checkpoint
from torch import nn

from us3l_mm.evaluation import calibrate
from us3l_mm.export import slice_backbone
from us3l_mm.models import SlimmableResNet, at_width
from us3l_mm.models.layers import SlimmableLayer, Subnet
from us3l_mm.registry import MODELS

SMALL = dict(base_channels=16, stem_channels=16, divisor=2)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))
MEASURED = [0.3, 0.5, 1.0]


@pytest.fixture(scope='module')
def full():
    torch.manual_seed(0)
    network = SlimmableResNet(18, **SMALL)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    calibrate(network, [torch.randn(4, 3, 32, 32)], MEASURED)
    return network.eval()


def save(path, network, prefix='backbone.', **changes):
    weights = {prefix + k: v for k, v in network.state_dict().items()}
    weights.update(changes)
    torch.save(
        dict(state_dict={
            k: v for k, v in weights.items()
            if v is not None}, meta=dict()), path)
    return str(path)


def pretrained(file, prefix='backbone.', depth=18, **kwargs):
    """As a config says it; the stock initialiser does the rest."""
    network = SlimmableResNet(
        depth, **{
            **SMALL,
            **kwargs}, init_cfg=dict(type='Pretrained', checkpoint=file,
                                     prefix=prefix))
    network.init_weights()
    return network


def features(network):
    with torch.no_grad():
        return network.eval()(IMAGES)[0]


@pytest.mark.parametrize('width', MEASURED)
def test_a_full_checkpoint_is_cut_on_load(full, tmp_path, width):
    narrow = pretrained(save(tmp_path / 'full.pth', full), width=width)
    with at_width(full, width):
        torch.testing.assert_close(features(narrow), features(full), rtol=0,
                                   atol=1e-5)
    assert not any(isinstance(m, SlimmableLayer) for m in narrow.modules())
    assert narrow.out_channels == full.feature_channels(width)
    # Pre-trained weights are not overwritten by zero_init_residual.
    assert narrow.layer1[0].bn2.weight.min() >= 0.5


def test_a_sliced_checkpoint_loads_as_it_is(full, tmp_path):
    narrow = SlimmableResNet(18, width=0.3, **SMALL)
    narrow.load_state_dict(slice_backbone(full, 0.3))
    again = pretrained(save(tmp_path / 'narrow.pth', narrow), width=0.3)
    assert torch.equal(features(again), features(narrow))


def test_it_is_cut_inside_a_larger_model_and_without_init_cfg(full, tmp_path):
    model = nn.ModuleDict(
        dict(backbone=SlimmableResNet(18, width=0.5, **SMALL)))
    load_checkpoint(model, save(tmp_path / 'full.pth', full), strict=True)
    with at_width(full, 0.5):
        assert torch.equal(features(model.backbone), features(full))


def test_a_whole_pretraining_is_cut(tmp_path):
    backbone = dict(type='us3l_mm.SlimmableResNet', depth=18, **SMALL)
    algorithm = MODELS.build(
        model_cfg(backbone=backbone, hid=16, out=8, predictor_hid=8,
                  distill_hid=8))
    calibrate(algorithm.backbone, [torch.randn(4, 3, 32, 32)], [0.5])
    file = save(tmp_path / 'run.pth', algorithm, prefix='')
    narrow = pretrained(file, width=0.5)
    with at_width(algorithm.backbone, 0.5):
        torch.testing.assert_close(features(narrow),
                                   features(algorithm.backbone))


def test_the_narrow_network_trains_as_an_ordinary_one(full, tmp_path):
    narrow = pretrained(save(tmp_path / 'full.pth', full), width=0.5,
                        frozen_stages=1, with_cp=True).train()
    frozen = {
        name for name, p in narrow.named_parameters() if not p.requires_grad}
    assert frozen and all(
        name.startswith(('conv1', 'bn1', 'layer1')) for name in frozen)
    norm, still = narrow.layer4[1].bn2, narrow.layer1[0].bn1
    before = norm.running_mean.clone()
    still_before = still.running_mean.clone()
    narrow(torch.randn(4, 3, 32, 32))[0].sum().backward()
    assert norm.training and not torch.equal(norm.running_mean, before)
    assert torch.equal(still.running_mean, still_before)
    assert all(p.grad is not None for p in narrow.layer4.parameters())
    # What it saves loads again as an ordinary narrow checkpoint.
    again = pretrained(save(tmp_path / 'tuned.pth', narrow), width=0.5)
    assert torch.equal(again.layer4[1].bn2.running_mean, norm.running_mean)


def test_norm_eval_keeps_the_statistics_of_the_width(full, tmp_path):
    narrow = pretrained(save(tmp_path / 'full.pth', full), width=0.5,
                        norm_eval=True).train()
    assert not narrow.layer4[1].bn2.training
    assert torch.equal(narrow.layer4[1].bn2.running_mean,
                       full.layer4[1].bn2.statistics(0.5)[0])


def test_switchable_norms_give_their_private_one(tmp_path):
    norm_cfg = dict(type='SwitchableBN', widths=[0.25, 0.5, 1.0])
    full = SlimmableResNet(18, norm_cfg=norm_cfg, **SMALL)
    for value in full.state_dict().values():
        if value.ndim == 1:
            nn.init.uniform_(value, 0.5, 1.5)
    narrow = pretrained(save(tmp_path / 'full.pth', full), width=0.5,
                        norm_cfg=norm_cfg)
    with at_width(full, 0.5):
        assert torch.equal(features(narrow), features(full.eval()))


@pytest.mark.parametrize('width', [0.4, 1.0])
def test_absent_statistics_are_an_error(full, tmp_path, width):
    uncalibrated = SlimmableResNet(18, **SMALL)
    file = save(tmp_path / 'full.pth', uncalibrated)
    with pytest.raises(
            ValueError, match=(
                f'no batch-norm statistics for {Subnet(width)}; measured are: '
                f'none.*evaluate_widths.py CONFIG CKPT --widths {width} '
                '--save-checkpoint.*slice_checkpoint.py.*missing_statistics')):
        pretrained(file, width=width)
    # Those of another width, the full one above all, are no substitute.
    with pytest.raises(
            ValueError, match='no batch-norm statistics for w0.40; '
            'measured are: .*w0.30'):
        pretrained(save(tmp_path / 'other.pth', full), width=0.4)


def test_norms_that_train_may_begin_anew(full, tmp_path):
    file = save(tmp_path / 'full.pth', full)
    narrow = pretrained(file, width=0.4, missing_statistics='reset')
    assert torch.equal(narrow.conv1.weight, full.conv1.weight[:6])
    assert narrow.bn1.running_mean.eq(0).all()
    assert narrow.bn1.num_batches_tracked == 0
    measured = pretrained(file, width=0.5, missing_statistics='reset')
    assert torch.equal(measured.bn1.running_mean, full.bn1.statistics(0.5)[0])
    for frozen in (dict(norm_eval=True), dict(frozen_stages=0)):
        with pytest.raises(ValueError, match='needs norms that train'):
            SlimmableResNet(18, width=0.4, missing_statistics='reset', **SMALL,
                            **frozen)


def test_trained_statistics_are_never_reset(full, tmp_path):
    tuned = SlimmableResNet(18, width=0.5, **SMALL).train()
    tuned(torch.randn(4, 3, 32, 32))
    again = pretrained(save(tmp_path / 'tuned.pth', tuned), width=0.5,
                       missing_statistics='reset')
    assert torch.equal(again.bn1.running_mean, tuned.bn1.running_mean)


def test_weights_of_another_network_are_an_error(full, tmp_path):
    file = save(tmp_path / 'full.pth', full)
    missing = save(tmp_path / 'missing.pth', full, **{
        'backbone.layer2.0.conv1.weight': None})
    with pytest.raises(ValueError, match=r'missing: layer2\.0\.conv1\.weight'):
        pretrained(missing, width=0.5)
    narrower = save(tmp_path / 'narrower.pth',
                    SlimmableResNet(18, width=0.3, **SMALL))
    with pytest.raises(
            ValueError, match=(
                r'width=0.5[\s\S]*\n.*shape: bn1.bias is \(6,\) in the file, '
                r'\(8,\) in the model')):
        pretrained(narrower, width=0.5)
    with pytest.raises(ValueError, match='48 are not in the file'):
        pretrained(file, depth=34, width=0.5)
    with pytest.raises(ValueError, match='another shape'):
        pretrained(file, width=0.5, base_channels=32)
    with pytest.raises(ValueError, match='another shape'):
        pretrained(narrower)  # a slimmable network needs the full weights


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r'outside the range \[0.25, 1\]'):
        SlimmableResNet(18, width=0.2)
    with pytest.raises(ValueError, match="one of .'error', 'reset'"):
        SlimmableResNet(18, width=0.5, missing_statistics='ignore')
    with pytest.raises(ValueError, match='network of a single width'):
        SlimmableResNet(18, missing_statistics='reset')
    narrow = SlimmableResNet(18, width=0.5, **SMALL)
    with at_width(narrow, 0.5):
        pass
    with pytest.raises(ValueError, match='outside the range'):
        with at_width(narrow, 0.25):
            pass
    with pytest.raises(ValueError, match='outside the range'):
        narrow.feature_channels(1.0)
