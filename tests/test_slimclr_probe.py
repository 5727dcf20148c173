# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Linear classifiers on a frozen network of switchable norms."""
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.models.heads import LinearClsHead
from test_linear_evaluation import SMALL, built, labelled, save, small

from us3l_mm.engine import CheckFrozenHook
from us3l_mm.export import slice_network
from us3l_mm.models import (SlimmableResNet_CIFAR, SwitchableLinearHead,
                            at_width)
from us3l_mm.models.layers import Subnet

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs/slimclr/benchmarks').glob('*.py'))
CIFAR, SHARED = (ROOT / f'configs/slimclr/benchmarks/linear-{name}'
                 '_resnet18_4xb128-steplr-100e_cifar10.py'
                 for name in ('all-widths', 'shared'))
WIDTHS = [1.0, 0.75, 0.5, 0.25]
NORMS = dict(type='SwitchableBN', subnets=WIDTHS)
# Specification, section 5: learning rate, weight decay, batch, epochs.
RECIPES = dict(mocov2=(60.0, 0.0, 1024, 100), mocov3=(0.4, 0.0, 1024, 90),
               simclr=(0.4, 1e-6, 1024, 90))


@pytest.fixture(scope='module')
def network():
    """A network as a pre-training leaves it, with running statistics."""
    torch.manual_seed(0)
    network = SlimmableResNet_CIFAR(18, norm_cfg=NORMS, **SMALL)
    with torch.no_grad():
        for width in WIDTHS:
            with at_width(network.train(), width):
                for _ in range(3):
                    network(torch.randn(8, 3, 16, 16))
    return network.eval()


@pytest.fixture(scope='module')
def checkpoint(network, tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp('slimclr') / 'pretrained.pth', network)


# The recipes -----------------------------------------------------------------


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_is_what_its_name_says(path):
    cfg = Config.fromfile(path)
    what, network, recipe, data = path.stem.split('_')
    gpus, per_gpu, schedule, epochs = re.fullmatch(
        r'(\d+)xb(\d+)-(\w+)-(\d+)e', recipe).groups()
    assert cfg.train_dataloader.batch_size == int(per_gpu)
    assert cfg.auto_scale_lr.base_batch_size == int(gpus) * int(per_gpu)
    assert cfg.train_cfg.max_epochs == int(epochs)
    assert [s.type for s in cfg.param_scheduler] == [
        dict(steplr='MultiStepLR', coslr='CosineAnnealingLR')[schedule]]
    model = built(cfg)
    assert network.startswith(f'resnet{cfg.model.backbone.depth}')
    assert model.head.num_classes == dict(cifar10=10, in1k=1000)[data]
    assert (len(model.head.linears) == 1) == ('shared' in what)
    widths = [1.0, 0.5] if network == 'resnet20x4' else WIDTHS
    assert model.head.subnets == model.backbone.bn1.subnets == list(
        map(Subnet, widths))
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert cfg.default_hooks.frozen.type == 'us3l_mm.CheckFrozenHook'
    with pytest.raises(ValueError, match='init_cfg.checkpoint=FILE'):
        model.init_weights()


@pytest.mark.parametrize('framework', RECIPES)
def test_recipes_are_those_of_the_specification(framework):
    [path] = [p for p in CONFIGS if f'all-widths-{framework}' in p.stem]
    cfg = Config.fromfile(path)
    lr, decay, batch, epochs = RECIPES[framework]
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=lr, momentum=0.9,
                                               weight_decay=decay)
    assert cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.model.head.distill_weight == 0.5
    if framework == 'mocov2':
        assert cfg.param_scheduler[0].milestones == [60, 80]
    crop, flip = cfg.train_dataloader.dataset.pipeline[1:3]
    assert (crop.type, crop.scale, flip.prob) == ('RandomResizedCrop', 224,
                                                  0.5)
    # Its default, 0.08 to 1 of the area, is that of the recipe.
    assert 'crop_ratio_range' not in crop


# The slimmable probe ---------------------------------------------------------


def test_a_shared_classifier_is_the_leading_columns_of_one_layer():
    torch.manual_seed(0)
    head = SwitchableLinearHead(5, [0.5, 1.0], [4, 8], shared=True,
                                distill_weight=0.5)
    head.init_weights()
    assert [tuple(p.shape) for p in head.parameters()] == [(5, 8), (5, )]
    feats = {Subnet(w): (torch.randn(6, int(8 * w)), ) for w in (0.5, 1.0)}
    labels = torch.arange(6) % 5
    losses = head.loss_of_subnets(feats, labelled(labels))
    sum(losses.values()).backward()
    weight = torch.nn.Parameter(head.linear(1.0).weight.detach().clone())
    bias = torch.zeros(5, requires_grad=True)
    wide = F.linear(feats[Subnet(1.0)][0], weight, bias)
    narrow = feats[Subnet(0.5)][0] @ weight[:, :4].T + bias
    expected = dict(w1=F.cross_entropy(wide, labels))
    soft = wide.detach().softmax(1)
    expected['w0.5'] = 0.5 * F.cross_entropy(
        narrow, labels) - 0.5 * (soft * narrow.log_softmax(1)).sum(1).mean()
    sum(expected.values()).backward()
    torch.testing.assert_close(list(losses.values()), list(expected.values()))
    torch.testing.assert_close(head.linear(0.5).weight.grad, weight.grad)
    torch.testing.assert_close(head.linear(0.5).bias.grad, bias.grad)
    for width in (1.0, 0.5):
        plain = head.plain(width)
        assert isinstance(plain, LinearClsHead)
        with at_width(head, width):
            torch.testing.assert_close(plain(feats[Subnet(width)]),
                                       head(feats[Subnet(width)]))
    switchable = SwitchableLinearHead(5, [0.5, 1.0], [4, 8])
    with pytest.raises(ValueError, match=r"no linear layers.*\['w0.50'\]"):
        switchable.load_state_dict(head.state_dict())
    with pytest.raises(ValueError, match='no linear layer for w0.75'):
        head.linear(0.75)


# Runs ------------------------------------------------------------------------


@pytest.mark.parametrize('path', [CIFAR, SHARED], ids=['switchable', 'shared'])
def test_a_checkpoint_is_used_without_calibration(path, network, checkpoint,
                                                  tmp_path):
    """Metrics are those of plain networks with their classifiers."""
    runner = Runner.from_cfg(small(path, tmp_path, checkpoint))
    runner.train()
    model = runner.model
    for key, value in network.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    metrics = runner.val_loop.run()
    for width in WIDTHS:
        plain, head = slice_network(network, width), model.head.plain(width)
        hits = []
        for batch in runner.val_dataloader:
            images = model.data_preprocessor(batch)['inputs']
            with torch.no_grad():
                scores = head((plain.eval()(images)[-1].mean((2, 3)), ))
            labels = torch.cat([s.gt_label for s in batch['data_samples']])
            hits.append(scores.argmax(1) == labels)
        assert metrics[f'accuracy/top1_{Subnet(width)}'] == pytest.approx(
            100 * torch.cat(hits).float().mean().item())


def test_a_width_that_was_not_trained_is_refused(checkpoint, tmp_path):
    with pytest.raises(
            ValueError, match=r'no batch norm of its own for w0.30.*'
            r'\[w1.00, w0.75, w0.50, w0.25\]'):
        built(
            small(CIFAR, tmp_path, checkpoint, **{
                'model.head.widths': [1.0, 0.3]}))
    with pytest.raises(ValueError, match='Build it for the list of the file'):
        built(
            small(
                CIFAR, tmp_path, checkpoint, **{
                    'model.head.widths': [1.0, 0.5],
                    'model.backbone.norm_cfg.subnets': [1.0,
                                                        0.5]})).init_weights()


class Meddle(Hook):
    """Changes one statistic of a frozen norm in an iteration."""

    def after_train_iter(self, runner, *args, **kwargs):
        runner.model.backbone.layer4[1].bn2.w0500000.running_var[3] += 1e-6


def test_a_frozen_tensor_that_changes_stops_the_run(checkpoint, tmp_path):
    runner = Runner.from_cfg(small(CIFAR, tmp_path, checkpoint))
    runner.register_hook(Meddle())
    with pytest.raises(
            ValueError, match=r'1 of \d+ frozen tensors changed in the first '
            r'epoch, such as backbone.layer4.1.bn2.w0500000.running_var'):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))


def test_a_model_without_frozen_parts_is_refused():
    model = torch.nn.ModuleDict(dict(backbone=torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match='no frozen part in this ModuleDict'):
        CheckFrozenHook().before_train(SimpleNamespace(model=model))
