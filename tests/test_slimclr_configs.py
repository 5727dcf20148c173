# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The configs of SlimCLR are what their names say, and train."""
import logging
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.models.backbones.resnet import BasicBlock, Bottleneck
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.datasets.seeded_augmentation import SampleIndex
from us3l_mm.models import Subnet
from us3l_mm.models.layers import SwitchableBatchNorm
from us3l_mm.models.losses.similarities import queue_cosines
from us3l_mm.registry import HOOKS, MODELS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs/slimclr'
ABLATIONS = sorted((FOLDER / 'ablations').glob('*.py'))
RECIPES = sorted(FOLDER.glob('slimclr-*.py'))
SUPERVISED = sorted(FOLDER.glob('supervised*.py'))
CONFIGS = [*RECIPES, *ABLATIONS]
FOUR = [1.0, 0.75, 0.5, 0.25]


def recipe(start: str) -> Path:
    [path] = [path for path in RECIPES if path.stem.startswith(start)]
    return path


V2 = recipe('slimclr-mocov2_resnet50_4xb256-coslr-200e')
V3, SIMCLR = recipe('slimclr-mocov3'), recipe('slimclr-simclr')
CIFAR = recipe('slimclr-mocov2_resnet18')
TOY = recipe('slimclr-mocov2-joint')
HEADS = dict(mocov2='MoCoV2Contrast', mocov3='MoCoV3Contrast',
             simclr='SimCLRContrast')


def name_of(path) -> str:
    return path.stem if isinstance(path, Path) else str(path)


def config_of(path: Path) -> Config:
    init_default_scope('mmpretrain')
    return Config.fromfile(path)


def leaves(value, prefix='') -> dict:
    """All values by dotted key."""
    if isinstance(value, (dict, Config)):
        return {
            key: leaf for name, child in value.items() for key, leaf in leaves(
                child, f'{prefix}.{name}'.strip('.')).items()}
    return {prefix: value}


def sampler_of(cfg: Config):
    return HOOKS.build(cfg.default_hooks.sampler)


# What they are ---------------------------------------------------------------


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_config_builds(path):
    cfg = config_of(path)
    algorithm = MODELS.build({
        **cfg.model, 'data_preprocessor':
        cfg.data_preprocessor})
    algorithm.check_batch(cfg.auto_scale_lr.base_batch_size)
    for hook in cfg.default_hooks.values():
        if hook.type.startswith('us3l_mm.'):
            HOOKS.build(hook)
    assert {'preflight', 'sampler', 'non_finite', 'exact_resume'} <= {
        *cfg.default_hooks}
    assert 'group_reg' not in cfg.default_hooks
    assert (cfg.model_wrapper_cfg.type ==
            'us3l_mm.MultiPassDistributedDataParallel')
    assert cfg.optim_wrapper.type == 'us3l_mm.MultiPassAmpOptimWrapper'
    loader = cfg.train_dataloader
    assert loader.sampler.type == 'us3l_mm.SeededSampler'
    assert loader.dataset.pipeline[0].type == 'us3l_mm.SeedAugmentation'
    assert loader.drop_last is True
    # All widths that are trained or evaluated have norms.
    subnets = [
        norm.subnets for norm in algorithm.modules()
        if isinstance(norm, SwitchableBatchNorm)
        and norm.subnets != [Subnet(1.0)]]
    assert all(found == sampler_of(cfg).widths for found in subnets)
    if 'knn' in cfg.default_hooks:
        assert [*cfg.default_hooks.knn.widths
                ] == cfg.model.backbone.norm_cfg.subnets


@pytest.mark.parametrize('path', [*CONFIGS, *SUPERVISED], ids=name_of)
def test_config_is_what_its_name_says(path):
    cfg = config_of(path)
    gpus, per_gpu = map(int, re.search(r'_(\d+)xb(\d+)', path.stem).groups())
    assert cfg.train_dataloader.batch_size == per_gpu
    assert cfg.auto_scale_lr.base_batch_size == gpus * per_gpu
    assert cfg.auto_scale_lr.enable is False
    depth, times = re.search(r'_resnet(\d+)(?:x(\d))?_', path.stem).groups()
    backbone = cfg.model.backbone
    assert backbone.depth == int(depth)
    if times is not None:
        assert backbone.base_channels == backbone.stem_channels == 16 * int(
            times)
    _, schedule, data = path.stem.rsplit('_', 2)
    epochs = int(re.search(r'-(\d+)e$', schedule).group(1))
    assert cfg.train_cfg.max_epochs == epochs
    cifar = data == 'cifar10'
    assert cfg.train_dataloader.dataset.type == ('CIFAR10'
                                                 if cifar else 'ImageNet')
    assert backbone.type.endswith('_CIFAR') is cifar
    if path in SUPERVISED:
        assert cfg.model.type == 'us3l_mm.SlimmableClassifier'
        return
    method = re.match('slimclr-([a-z0-9]+)', path.stem)
    assert cfg.model.head.type == (
        f'us3l_mm.{HEADS[method[1] if method else "mocov2"]}')


@pytest.mark.parametrize('path', [V2, V3, SIMCLR], ids=name_of)
def test_the_full_network_trains_alone_in_the_first_half(path):
    cfg = config_of(path)
    sampler = sampler_of(cfg)
    epochs, n = cfg.train_cfg.max_epochs, 1251
    boundary = epochs // 2 * n  # reference: after 100, 150 and 50 epochs
    plans = [
        sampler.plan(i, epochs * n, (0.25, 1.0))
        for i in (0, boundary - 1, boundary, epochs * n - 1)]
    assert [[(p.subnet.width, p.weight) for p in plan.passes]
            for plan in plans] == [[
                (1.0, 1.0)]] * 2 + [list(zip(FOUR, (2.5, 1.0, 1.0, 1.0)))] * 2


# Sizes of the spec: width, inputs and outputs of linear layers; 'b' for a
# bias, 'n' for a norm, 'a' if it has affine parameters.
LAYERS = {
    V2: ('2048-2048b-128b', None),
    V3: ('2048-4096na-256n', '256-4096na-256'),
    SIMCLR: ('2048-2048bna-128na', None)}


def outline(module) -> str:
    if module is None:
        return None
    parts = []
    for i, layer in enumerate(m for m in module.children()
                              if isinstance(m, nn.Linear)):
        norm = getattr(module, f'bn{i}', None)
        text = f'{layer.out_features}{"b" * (layer.bias is not None)}'
        if isinstance(norm, _BatchNorm):
            assert norm.num_features == layer.out_features
            text += 'n' + 'a' * norm.affine
        parts.append(text)
        last = layer
    # Embeddings have the full size at every width, hidden layers have not.
    assert module.fc0.active(0.25)[1] == module.fc0.out_features // 4
    assert last.active(0.25) == (last.in_features // 4, last.out_features)
    return '-'.join([str(module.fc0.in_features), *parts])


@pytest.mark.parametrize('path', LAYERS, ids=name_of)
def test_layers_and_initial_weights(path):
    model = MODELS.build(config_of(path).model)
    predictor = model.head.predictor
    assert (outline(model.neck), outline(predictor)) == LAYERS[path]
    # Section 2.2 of the spec, by hand: convolutions and all norms.
    assert sum(p.numel()
               for p in model.backbone.parameters()) == (23_454_912 + 132_800)
    model.init_weights()
    for layer in (model.neck.fc0, model.neck.fc1):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert layer.bias is None or not layer.bias.any()
    if predictor is not None:  # PyTorch's own
        bound = predictor.fc0.in_features**-0.5
        assert predictor.fc0.weight.abs().max() <= bound
        assert predictor.fc0.weight.std().item() == pytest.approx(
            bound / 3**0.5, rel=0.02)
    for block in model.backbone.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            for width in FOUR:
                assert not block.norm3.of(Subnet.of(width)).weight.any()
                assert block.norm2.of(Subnet.of(width)).weight.all()
    sync = {
        m.sync for m in model.modules() if isinstance(m, SwitchableBatchNorm)}
    assert sync == {path is not V2}


def test_the_toy_has_the_network_of_the_paper():
    model = MODELS.build(config_of(TOY).model)
    # ResNet-20 with 64, 128 and 256 channels: 3 stages of 3 blocks.
    c = 64
    blocks = 3 * 2 * 9 * c**2 * (1 + 4 + 16) - 9 * c**2 * (2 + 8)
    shortcuts = c * 2 * c + 2 * c * 4 * c
    assert sum(m.weight.numel() for m in model.backbone.modules()
               if isinstance(m, nn.Conv2d)) == 27 * c + blocks + shortcuts
    assert model.update_mode == 'sequential' and model.distill is None
    plan = sampler_of(config_of(TOY)).plan(0, 10, (0.5, 1.0))
    assert [(p.subnet.width, p.weight) for p in plan.passes] == [(1.0, 1.0),
                                                                 (0.5, 1.0)]


SHARE, WEIGHTS, START, DISTILL = ('model.distill_weight',
                                  'default_hooks.sampler.weights',
                                  'default_hooks.sampler.slow_start',
                                  'model.distill')
ABSENT = 'absent'
NO_DISTILLATION = {
    DISTILL: None,
    **{
        f'{DISTILL}.{key}': ABSENT for key in ('type', 'kind', 'temperature')}}
DIFFERENCES = {
    'no-slow-start': {
        START: 0.0},
    'no-distillation': NO_DISTILLATION,
    'no-reweighting': {
        WEIGHTS: 'equal'},
    'vanilla': {
        **NO_DISTILLATION, WEIGHTS: 'equal',
        START: 0.0},
    'slow-start-only': {
        **NO_DISTILLATION, WEIGHTS: 'equal'},
    'distillation-only': {
        WEIGHTS: 'equal',
        START: 0.0},
    'reweighting-only': {
        **NO_DISTILLATION, START: 0.0},
    'half-contrast': {
        **NO_DISTILLATION, WEIGHTS: [2.5, 0.5, 0.5, 0.5]},
    'distill-sharp': {
        f'{DISTILL}.temperature': 0.2,
        f'{DISTILL}.teacher_temperature': 0.05},
    'distill-larger': {
        'model.distill_from': 'larger'},
    'distill-mse-logits': {
        f'{DISTILL}.kind': 'mse'},
    'distill-mse-embeddings': {
        f'{DISTILL}.kind': 'mse',
        f'{DISTILL}.on': 'embeddings'},
    'distill-kl-embeddings': {
        f'{DISTILL}.on': 'embeddings'},
    'distill-normalised': {
        f'{DISTILL}.normalise': True,
        f'{DISTILL}.temperature': 4.0},
    'distill-decoupled': {
        f'{DISTILL}.kind': 'decoupled',
        f'{DISTILL}.temperature': 1.0}, }


@pytest.mark.parametrize('path', ABLATIONS, ids=name_of)
def test_ablation_differs_from_the_recipe_in_what_it_is_about(path):
    whole, ablation = leaves(config_of(CIFAR)), leaves(config_of(path))
    found = {
        key: ablation.get(key, ABSENT)
        for key in whole.keys() | ablation.keys()
        if whole.get(key, ABSENT) != ablation.get(key, ABSENT)}
    assert found == DIFFERENCES[path.stem.split('_')[0]]


def test_every_ablation_is_there():
    assert {p.stem.split('_')[0] for p in ABLATIONS} == DIFFERENCES.keys()


# Schedules -------------------------------------------------------------------


class OneParameter(BaseModel):

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, *args, **kwargs):
        return dict(loss=0 * self.weight.sum())


class Rates(Hook):

    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, *args, **kwargs):
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])


def rates_of(path: Path, work_dir, n: int) -> list:
    """The learning rates of all iterations, ``n`` in an epoch."""
    cfg, seen = config_of(path), Rates()
    lr = cfg.optim_wrapper.optimizer.lr
    runner = Runner(
        OneParameter(), str(work_dir), log_level=logging.ERROR,
        train_dataloader=torch.utils.data.DataLoader(
            [dict(x=0.0)] * n), train_cfg=cfg.train_cfg,
        param_scheduler=cfg.param_scheduler, optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=lr)), default_hooks=dict(
                logger=None, checkpoint=None,
                timer=None), custom_hooks=[seen], default_scope='mmpretrain')
    runner.train()
    return seen.rates


@pytest.mark.parametrize('path, base, late', [(V2, 0.2, 0.2), (V3, 1.2, 3.2),
                                              (SIMCLR, 2.4, 2.4)], ids=name_of)
def test_rates_follow_the_formula(path, base, late, tmp_path):
    n, warm_up = 4, 10
    epochs = config_of(path).train_cfg.max_epochs
    rates = rates_of(path, tmp_path, n)
    assert len(rates) == n * epochs
    chosen = {0, 10, epochs // 2 - 1, epochs // 2, epochs - 1}
    for epoch in sorted(chosen | {1, 5, 9, 11, epochs // 4}):
        for i in range(n):
            e = epoch + i / n
            rate = late if e >= epochs / 2 else base
            if e < warm_up:
                # MMEngine's line ends one iteration earlier.
                expected = rate * e * n / (warm_up * n - 1)
            else:
                expected = rate * 0.5 * (1 + math.cos(math.pi * (e - warm_up) /
                                                      (epochs - warm_up)))
            assert rates[epoch * n + i] == pytest.approx(
                expected, rel=1e-6, abs=1e-8), (epoch, i)


def test_the_supervised_control_warms_up_in_five_epochs(tmp_path):
    [path] = [p for p in SUPERVISED if p.stem.endswith('in1k')]
    rates = rates_of(path, tmp_path, 4)
    assert len(rates) == 400 and rates[20] == pytest.approx(0.2)
    assert rates[10] == pytest.approx(0.2 * 10 / 19)
    for e in (30, 60, 99):
        assert rates[4 * e] == pytest.approx(
            0.1 * (1 + math.cos(math.pi * (e - 5) / 95)))


def test_more_epochs_have_the_same_warm_up(tmp_path):
    rates = rates_of(recipe('slimclr-mocov2_resnet50_4xb256-coslr-800e'),
                     tmp_path, 2)
    assert rates[20] == pytest.approx(0.2) and len(rates) == 1600
    assert rates[810] == pytest.approx(0.2 * 0.5)  # half of the cosine


@pytest.mark.parametrize('path', [V3, SIMCLR], ids=name_of)
def test_norms_and_biases_have_neither_decay_nor_adaptation(path):
    cfg = config_of(path)
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(
        model, dict(cfg.optim_wrapper,
                    type='us3l_mm.MultiPassOptimWrapper')).optimizer
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p, old in zip(trained, before):
        step, decay = cfg.optim_wrapper.optimizer.lr, 0.0
        if p.ndim > 1:
            decay = 1e-6 * old
            if old.any():
                size, slope = old.norm(), p.grad.norm()
                step *= 1e-3 * size / (slope + 1e-6 * size + 1e-8)
        torch.testing.assert_close(p.data, old - step * (p.grad + decay))


# Images ----------------------------------------------------------------------


def test_views_of_moco_v3_have_larger_crops_than_those_of_transformers():
    cfg = config_of(V3)
    base = config_of(ROOT / 'configs/_base_/datasets/'
                     'imagenet_two-views_byol.py')
    multi_view = cfg.train_dataloader.dataset.pipeline[2]
    for name, ours in zip(('view_pipeline1', 'view_pipeline2'),
                          multi_view.transforms):
        assert ours[1:] == base[name][1:]
        assert ours[0] == dict(base[name][0], crop_ratio_range=(0.2, 1.0))
    assert multi_view.num_views == [1, 1]
    pair = [{
        t.type: t.prob for t in view if t.type in ('GaussianBlur', 'Solarize')}
            for view in multi_view.transforms]
    assert pair == [
        dict(GaussianBlur=1.0),
        dict(GaussianBlur=0.1, Solarize=0.2)]


def test_views_of_simclr_have_stronger_colours():
    cfg = config_of(SIMCLR)
    view, = cfg.train_dataloader.dataset.pipeline[2].transforms
    assert view[0].crop_ratio_range == (0.08, 1.0)
    jitter, = view[1].transforms
    assert view[1].prob == 0.8
    assert [
        jitter[k]
        for k in ('brightness', 'contrast', 'saturation', 'hue')] == [
            0.8, 0.8, 0.8, 0.2]
    assert [(t.type, t.prob) for t in view[2:]] == [('RandomGrayscale', 0.2),
                                                    ('GaussianBlur', 0.5),
                                                    ('RandomFlip', 0.5)]


@pytest.mark.parametrize('path', [V2, V3, SIMCLR, CIFAR], ids=name_of)
def test_the_pipeline_gives_two_views(path):
    cfg = config_of(path)
    pipeline = [
        t for t in cfg.train_dataloader.dataset.pipeline
        if t.type != 'LoadImageFromFile']
    image = np.random.RandomState(0).randint(0, 256, (80, 64, 3), np.uint8)
    packed = Compose(pipeline)(dict(img=image, sample_idx=SampleIndex(0, 0),
                                    gt_label=1))
    side = 32 if path is CIFAR else 224
    one, two = packed['inputs']
    assert one.shape == two.shape == (3, side, side)
    assert not torch.equal(one, two)


# They train ------------------------------------------------------------------


def reduced(cfg: Config) -> Config:
    """The same recipe with a small network; half of the channels at most."""
    base = 16 if cfg.model.backbone.norm_cfg.subnets[-1] == 0.5 else 32
    factor = {18: 8, 20: 4, 50: 32}[cfg.model.backbone.depth]
    cfg.merge_from_dict({
        'model.backbone.base_channels': base,
        'model.backbone.stem_channels': base,
        'model.neck.in_channels': base * factor,
        'model.neck.hid_channels': 64})
    if 'queue_length' in cfg.model.head:
        cfg.model.head.queue_length = 8
    if 'predictor' in cfg.model.head:
        cfg.model.head.predictor.hid_channels = 64
    cfg.optim_wrapper.type = 'us3l_mm.MultiPassOptimWrapper'
    return cfg


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_a_small_copy_trains_all_its_widths(path):
    cfg = reduced(config_of(path))
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).train()
    model.init_weights()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    plan = sampler_of(cfg).plan(99, 100, (0.25, 1.0))
    size = 64 if cfg.model.backbone.depth == 50 else 16
    views = torch.randint(0, 256, (2, 4, 3, size, size), dtype=torch.uint8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    log = model.train_step(dict(inputs=[*views], data_samples=None, plan=plan),
                           wrapper)
    assert math.isfinite(log['loss'])
    passes = [str(pass_.subnet) for pass_ in plan.passes]
    assert [f'loss_contrast_{name}' in log for name in passes
            ] == [True] * len(cfg.model.backbone.norm_cfg.subnets)
    # The full network distils into all others, if anything does.
    distils = [f'loss_distill_{name}' in log for name in passes]
    assert distils == [False
                       ] + [cfg.model.distill is not None] * (len(passes) - 1)
    moved = [
        name for name, p in model.named_parameters()
        if not torch.equal(p, before[name])]
    full_only = 'full-only' in path.stem
    for subnet in map(Subnet.of, cfg.model.backbone.norm_cfg.subnets):
        norm = model.backbone.bn1.of(subnet)
        assert norm.running_mean.any()  # it follows the weights
        key = f'.{subnet.key}' if subnet.key else ''
        # The last norms of all blocks begin at 0 and are reached first.
        last = f'backbone.layer3.1.bn{3 if size == 64 else 2}{key}.bias'
        assert (last in moved) is not (full_only and not subnet.is_full)
    if model.teacher is not None and model.head.num_queries == 1:
        assert int(model.head.queue_ptr) == 4


@pytest.mark.parametrize('path', SUPERVISED, ids=name_of)
def test_a_small_supervised_copy_trains_what_it_says(path):
    cfg = config_of(path)
    widths = cfg.model.backbone.norm_cfg.subnets
    assert widths == cfg.model.head.widths == cfg.default_hooks.sampler.widths
    deep = cfg.model.backbone.depth == 50
    base, size = (32, 64) if deep else (16, 16)
    cfg.model.backbone.update(base_channels=base, stem_channels=base)
    cfg.optim_wrapper.type = 'us3l_mm.MultiPassOptimWrapper'
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    plan = sampler_of(cfg).plan(0, 100, (0.25, 1.0))  # no slow start
    log = model.train_step(
        dict(inputs=[*images], data_samples=samples, plan=plan), wrapper)
    assert {f'loss_{Subnet.of(width)}' for width in widths} <= log.keys()
    moved = [
        name for name, p in model.named_parameters()
        if not torch.equal(p, before[name])]
    for subnet in map(Subnet.of, widths):
        assert model.backbone.bn1.of(subnet).running_mean.any()
        key = f'.{subnet.key}' if subnet.key else ''
        last = f'backbone.layer3.1.bn{3 if deep else 2}{key}.bias'
        assert (last in moved) is not ('full-only' in path.stem
                                       and not subnet.is_full)
    assert model.head.owners == [Subnet.of(1.0)]  # one shared classifier
    assert model.update_mode == ('sequential'
                                 if 'joint' in path.stem else 'accumulate')


def test_sharp_distillation_has_a_larger_gradient():
    """For random keys, and queries nearer to their own key than to others."""
    generator = torch.Generator().manual_seed(0)

    def unit(rows):
        rows = torch.randn(rows, 128, generator=generator)
        return nn.functional.normalize(rows)

    queue, keys = unit(4096), unit(64)
    teacher, student = (nn.functional.normalize(keys + noise * unit(64))
                        for noise in (0.5, 1.0))
    student.requires_grad_()

    def share(path):
        """Of the contrastive gradient, with respect to the queries."""
        cfg = config_of(path).model
        (s, own), (t, _) = (queue_cosines(q, keys, queue)
                            for q in (student, teacher))
        head = MODELS.build(cfg.head)
        distill = MODELS.build(cfg.distill)
        losses = (distill(s, distill.target(t), own), head.loss([(s, own)]))
        gradients = [
            torch.autograd.grad(loss, student, retain_graph=True)[0].norm()
            for loss in losses]
        return float(gradients[0] / gradients[1])

    [sharp] = [p for p in ABLATIONS if p.stem.startswith('distill-sharp')]
    assert 0.001 < share(CIFAR) < 0.002 and 0.03 < share(sharp) < 0.05
