# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The configs of dense + gated SSL are what their names say, and train."""
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import DictAction
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from test_configs import config_of, leaves, name_of, sample
from test_slimclr_configs import rates_of, sampler_of
from torch import nn

from us3l_mm.models.backbones.pretrained import check_weights
from us3l_mm.models.layers import Subnet, at
from us3l_mm.registry import DATASETS, HOOKS, MODELS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs/gated'
RECIPES = sorted(FOLDER.glob('gated_*xb*.py'))
BASELINES = sorted((FOLDER / 'baselines').glob('*.py'))
LINEAR = sorted((FOLDER / 'benchmarks').glob('*.py'))
CONFIGS = [*RECIPES, *BASELINES]
DATA = ('cifar10', 'cifar100', 'stl10', 'imagenet100')
[CIFAR, CIFAR100, STL, IN100] = [
    path for data in DATA for path in RECIPES
    if path.stem.endswith(f'_{data}')]


def baseline(name):
    [path] = [p for p in BASELINES if p.stem.startswith(f'{name}_')]
    return path


SIMSIAM = baseline('gated-only-simsiam')


def built(path):
    cfg = config_of(path)
    return cfg, MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor))


# What they are ---------------------------------------------------------------


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_config_is_what_its_name_says(path):
    cfg, algorithm = built(path)
    what, network, recipe, data = path.stem.split('_')
    gpus, per_gpu, epochs = map(
        int,
        re.fullmatch(r'(\d+)xb(\d+)-coslr-(\d+)e', recipe).groups())
    assert cfg.train_dataloader.batch_size == per_gpu
    assert cfg.auto_scale_lr == dict(enable=False,
                                     base_batch_size=gpus * per_gpu)
    assert cfg.train_cfg.max_epochs == epochs == 500
    assert network == f'resnet{cfg.model.backbone.depth}'
    assert what == 'gated' or path in BASELINES
    assert cfg.train_dataloader.dataset.type == dict(
        cifar10='CIFAR10', cifar100='CIFAR100', stl10='us3l_mm.ImageFolder',
        imagenet100='CustomDataset')[data]
    for hook in cfg.default_hooks.values():
        if hook.type.startswith('us3l_mm.'):
            HOOKS.build(hook)
    assert {'preflight', 'sampler', 'non_finite', 'collapse',
            'exact_resume'} <= {*cfg.default_hooks}
    assert 'group_reg' not in cfg.default_hooks
    wrapper = cfg.model_wrapper_cfg
    assert wrapper == dict(type='us3l_mm.MultiPassDistributedDataParallel')
    assert cfg.optim_wrapper.type == 'us3l_mm.MultiPassAmpOptimWrapper'
    loader = cfg.train_dataloader
    assert loader.sampler.type == 'us3l_mm.SeededSampler' and loader.drop_last
    assert loader.dataset.pipeline[0].type == 'us3l_mm.SeedAugmentation'
    [pass_] = sampler_of(cfg).plan(0, 10, (1.0, 1.0)).passes
    assert pass_.subnet.is_full
    trained = {*cfg.model.modes} if not cfg.model.get('separate') else {
        'gated'}
    assert {*cfg.default_hooks.knn.widths} == trained
    size = dict(cifar10=32, cifar100=32, stl10=96, imagenet100=224)[data]
    algorithm.check_image_size((size, size))
    algorithm.check_batch(per_gpu)


def test_sizes_of_the_networks():
    """Section 2 and 3 of the specification."""
    macs = {
        CIFAR: 703_560_448,
        CIFAR100: 703_560_448,
        STL: 333_103_104,
        IN100: 1_813_561_344}
    for path, total in macs.items():
        cfg, algorithm = built(path)
        size = dict(CIFAR10=32, CIFAR100=32, CustomDataset=224).get(
            cfg.train_dataloader.dataset.type, 96)
        compute = algorithm.backbone.compute((size, size))
        assert compute.total == total
        for target in (0.1, 0.2, 0.3, 0.4, 0.5):  # the published ones
            assert compute.check_target(target) == target
        gates = [
            p.numel() for name, p in algorithm.named_parameters()
            if '.gate' in name and '.gated' not in name]
        assert sum(gates) == 241_376
        layers = [(m.in_features, m.out_features, m.bias is not None)
                  for m in algorithm.neck.modules()
                  if isinstance(m, nn.Linear)]
        assert layers == [(512, 2048, True), (2048, 2048, True),
                          (2048, 2048, True)]
        loss, budget = algorithm.head.loss_module, algorithm.budget
        assert (loss.invariance, loss.variance, loss.covariance,
                loss.gather) == (25, 25, 1, False)
        assert (budget.target, budget.weight, budget.bound_weight,
                budget.bound, budget.expected) == (0.3, 5, 1, 'sqrt', False)
        # alpha = 0.02 per epoch.
        assert budget.anneal == pytest.approx(0.02 * 500)
        gate = algorithm.backbone.layer1[0].gate1
        assert (gate.reduction, gate.temperature) == (4, 2 / 3)
        assert algorithm.modes == ('gated', 'dense')
        assert not algorithm.leaves_unused


ABSENT = 'absent'
LOSS = 'model.head.loss'
OPTIMIZER = 'optim_wrapper.optimizer'
GATED_ONLY = {
    'model.modes': ('gated', 'gated'),
    'default_hooks.knn.widths': ('gated', )}
BUDGET = ('target', 'weight', 'expected', 'bound', 'bound_weight', 'anneal')
NO_BUDGET = {
    'model.budget': None,
    **{
        f'model.budget.{key}': ABSENT for key in BUDGET}}
WEIGHTS = ('invariance', 'variance', 'covariance')
NO_VICREG = {f'{LOSS}.{key}': ABSENT for key in WEIGHTS}
DIFFERENCES = {
    'vicreg': {
        'model.modes': ('dense', 'dense'),
        'default_hooks.knn.widths': ('dense', ),
        **NO_BUDGET},
    'gated-only': GATED_ONLY,
    'gated-only-simsiam': {
        **GATED_ONLY,
        **NO_VICREG, f'{LOSS}.gather': ABSENT,
        f'{LOSS}.type': 'CosineSimilarityLoss',
        'model.neck.with_bias': False,
        'model.neck.with_last_bias': False,
        'model.neck.with_last_bn': True,
        'model.neck.with_last_bn_affine': False,
        'model.head.predictor.type': 'us3l_mm.Predictor',
        'model.head.predictor.in_channels': 2048,
        'model.head.predictor.hid_channels': 512,
        'model.head.predictor.out_channels': 2048,
        'model.head.predictor.num_layers': 2,
        'model.head.predictor.with_last_bn': False,
        'model.head.predictor.with_last_bias': True,
        f'{OPTIMIZER}.type': 'SGD',
        f'{OPTIMIZER}.lr': 0.5,
        f'{OPTIMIZER}.weight_decay': 1e-5,
        f'{OPTIMIZER}.eta': ABSENT,
        f'{OPTIMIZER}.clip': ABSENT,
        f'{OPTIMIZER}.exclude_flat': ABSENT,
        'optim_wrapper.paramwise_cfg.custom_keys.predictor.fix_lr': True,
        'auto_scale_lr.base_batch_size': 256,
        'default_hooks.predictor_lr.type': 'SimSiamHook',
        'default_hooks.predictor_lr.fix_pred_lr': True,
        'default_hooks.predictor_lr.lr': 0.5},
    'two-networks': {
        'model.separate': True,
        'default_hooks.knn.widths': ('gated', )},
    'no-invariance': {
        f'{LOSS}.invariance': 0.0},
    'rotation': {
        'model.rotation.hid_channels': 2048,
        'model.rotation.weight': 0.2,
        'optim_wrapper.paramwise_cfg.custom_keys.rotation.lr_mult': 1 / 6},
    'barlow-twins': {
        **NO_VICREG, f'{LOSS}.type': 'us3l_mm.BarlowTwinsLoss',
        f'{LOSS}.off_diagonal': 0.0051,
        f'{LOSS}.scale': 0.024},
    'common-norms': {
        'model.backbone.norm_cfg.type': 'BN'},
    'gate-warmup': {
        'model.gate_warmup': 0.02},
    'linear-bound': {
        'model.budget.bound': 'linear'},
    'swapped-views': {
        'model.swap_views': True},
    'expected-compute': {
        'model.budget.expected': True},
    'gathered': {
        f'{LOSS}.gather': True}, }


@pytest.mark.parametrize('path', BASELINES, ids=name_of)
def test_baseline_differs_from_the_recipe_in_what_it_is_about(path):
    recipe, baseline = leaves(config_of(CIFAR)), leaves(config_of(path))
    found = {
        key: baseline.get(key, ABSENT)
        for key in recipe.keys() | baseline.keys()
        if recipe.get(key, ABSENT) != baseline.get(key, ABSENT)}
    assert found == DIFFERENCES[path.stem.split('_')[0]]


def test_every_baseline_is_there():
    assert {p.stem.split('_')[0] for p in BASELINES} == DIFFERENCES.keys()


def test_options_of_the_readme_make_the_baselines():
    """Each row of the table of baselines, applied to the recipe."""
    rows = re.findall(r'^\| `([\w-]+)` \|.*\| `([^|]+)` \|$',
                      (FOLDER / 'README.md').read_text(), re.M)
    assert {name for name, _ in rows
            } == DIFFERENCES.keys() - {'gated-only-simsiam'}
    for name, options in rows:
        cfg = config_of(CIFAR)
        cfg.merge_from_dict({
            key: DictAction._parse_iterable(value)
            for key, value in (option.split('=', 1)
                               for option in shlex.split(options))})
        found, wanted = (leaves(c) for c in (cfg, config_of(baseline(name))))
        for key, default in (('off_diagonal', 0.0051), ('scale', 0.024)):
            if name == 'barlow-twins':  # the defaults of the class
                found[f'{LOSS}.{key}'] = default
        for key, value in wanted.items():
            same = [*found[key]] if isinstance(value, tuple) else found[key]
            value = [*value] if isinstance(value, tuple) else value
            assert same == pytest.approx(value, rel=1e-4) if isinstance(
                value, float) else same == value, (name, key)
        assert found.keys() == wanted.keys()


# Schedule and optimizer ------------------------------------------------------


@pytest.mark.parametrize('path, base', [(CIFAR, 0.6), (SIMSIAM, 0.5)], ids=[
    'lars', 'simsiam'])
def test_rates_follow_the_formula(path, base, tmp_path):
    """A step per epoch: a line from 0.003, then half a cosine to 0."""
    rates = rates_of(path, tmp_path, 2)
    assert len(rates) == 1000 and rates[::2] == rates[1::2]
    for epoch in (0, 1, 5, 9, 10, 11, 100, 255, 400, 499):
        if epoch < 10:
            expected = base * (0.005 + 0.995 * epoch / 9)
        else:
            expected = base / 2 * (1 + math.cos(math.pi * (epoch - 10) / 490))
        assert rates[2 * epoch] == pytest.approx(expected), epoch
    assert base != 0.6 or rates[0] == pytest.approx(0.003)


def optimizer_of(cfg, model):
    return build_optim_wrapper(
        model, dict(cfg.optim_wrapper,
                    type='us3l_mm.MultiPassOptimWrapper')).optimizer


def test_decay_and_rates_of_parameters():
    cfg, model = built(baseline('rotation'))
    optimizer = optimizer_of(cfg, model)
    groups = {
        id(p): group for group in optimizer.param_groups
        for p in group['params']}
    kinds = set()
    for name, p in model.named_parameters():
        group = groups[id(p)]
        rotation, gate = name.startswith('rotation.'), '.gate1.' in name
        assert group['lr'] == pytest.approx(0.1 if rotation else 0.6), name
        if p.ndim > 1:
            assert group['weight_decay'] == (0.0 if gate else 1e-4), name
        assert (group['eta'], group['clip'], group['exclude_flat'],
                group['momentum']) == (0.02, True, True, 0.9)
        kinds.add((rotation, gate, p.ndim > 1))
    assert len(kinds) == 6


def test_the_predictor_of_simsiam_keeps_its_rate():
    cfg, model = built(SIMSIAM)
    optimizer = optimizer_of(cfg, model)
    for group in optimizer.param_groups:
        group['lr'] = 0.01
    runner = type('Runner', (), dict(optim_wrapper=type('', (), {})))
    runner.optim_wrapper.optimizer = optimizer
    HOOKS.build(cfg.default_hooks.predictor_lr).before_train_epoch(runner)
    predictor = {id(p) for p in model.head.predictor.parameters()}
    assert len(predictor) == 5
    for group in optimizer.param_groups:
        [p] = group['params']
        assert group['lr'] == (0.5 if id(p) in predictor else 0.01)
        assert group['weight_decay'] == (0.0 if p in {*gate_weights(model)}
                                         else 1e-5)


def gate_weights(model):
    return [p for name, p in model.named_parameters() if '.gate' in name]


# Images ----------------------------------------------------------------------


@pytest.mark.parametrize('path', RECIPES, ids=name_of)
def test_augmentation_has_the_shares_of_the_authors(path, tmp_path):
    cfg = config_of(path)
    count = 150 if path in (STL, IN100) else 500
    size = {STL: 96, IN100: 224}.get(path, 32)
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    first = sample(tmp_path, cfg, (200, 90, 40))
    views = [
        view for seed in range(count) for view in pipeline(
            dict(first, sample_idx=type(first['sample_idx'])(0, seed)))
        ['inputs']]
    assert {v.shape for v in views} == {(3, size, size)}
    # Packed images are BGR, and the preprocessor makes them RGB.
    assert cfg.data_preprocessor.to_rgb
    colours = torch.stack([v.flatten(1).float().mean(1)
                           for v in views]).flip(1)
    grey = (colours.max(1).values - colours.min(1).values) < 1
    assert grey.float().mean() == pytest.approx(
        0.2, abs=4 * (0.16 / len(views))**0.5)
    # Solarising takes a light channel to the dark: 200 to 55.
    solarised = ((colours - torch.tensor([55., 90., 40.])).abs() < 2).all(1)
    plain = ((colours - torch.tensor([200., 90., 40.])).abs() < 2).all(1)
    for found, share in ((solarised, 0.1), (plain, 0.9)):
        expected = 0.2 * 0.8 * share  # neither jittered nor grey
        assert found.float().mean() == pytest.approx(
            expected, abs=4 * (expected / len(views))**0.5)
    crop = cfg.view_pipeline[0]
    assert (crop.crop_ratio_range, crop.interpolation) == ((0.2, 1.0),
                                                           'bicubic')
    [jitter] = cfg.view_pipeline[1].transforms
    assert [
        jitter[key]
        for key in ('brightness', 'contrast', 'saturation', 'hue')] == [
            0.4, 0.4, 0.2, 0.1]


def test_only_the_second_view_of_cifar100_is_blurred():
    for path in RECIPES:
        [multi] = [
            t for t in config_of(path).train_dataloader.dataset.pipeline
            if t.type == 'MultiView']
        blurs = [[t.prob for t in view if t.type == 'GaussianBlur']
                 for view in multi.transforms]
        assert blurs == ([[], [0.2]] if path is CIFAR100 else [[]])
        assert sum(multi.num_views) == 2


@pytest.mark.parametrize('path', [*RECIPES, *LINEAR], ids=name_of)
def test_evaluation_sees_the_plain_image(path, tmp_path):
    cfg = config_of(path)
    loader = cfg.get('knn_query_dataloader') or cfg.test_dataloader
    packed = Compose(loader.dataset.pipeline)(sample(tmp_path, cfg,
                                                     (200, 90, 40)))
    colour = packed['inputs'].flatten(1).float().mean(1).flip(0)
    assert colour.tolist() == [200, 90, 40]
    data = path.stem.split('_')[-1]
    mean, std = dict(stl10=([.4914, .4823, .4466], [.247, .243, .261]),
                     imagenet100=([.485, .456, .406], [.228, .224, .225])).get(
                         data, ([.4914, .4822, .4465], [.247, .243, .261]))
    assert cfg.data_preprocessor.mean == pytest.approx([255 * v for v in mean])
    assert cfg.data_preprocessor.std == pytest.approx([255 * v for v in std])


# They train ------------------------------------------------------------------


def reduced(cfg):
    """The same recipe with a small network."""
    cfg.merge_from_dict({
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.neck.in_channels': 64,
        'model.neck.hid_channels': 32,
        'model.neck.out_channels': 16})
    if cfg.model.budget is not None:  # gates cost more in a narrow network
        cfg.model.budget.target = 0.5
    if cfg.model.get('rotation'):
        cfg.model.rotation.hid_channels = 16
    if cfg.model.head.get('predictor'):
        cfg.model.head.predictor.update(in_channels=16, hid_channels=8,
                                        out_channels=16)
    return cfg


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_a_small_copy_trains_what_it_says(path):
    cfg = reduced(config_of(path))
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).train()
    model.init_weights()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    size = 32 if model.backbone.conv1.kernel_size == (7, 7) else 16
    views = torch.randint(0, 256, (2, 6, 3, size, size), dtype=torch.uint8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    plan = sampler_of(cfg).plan(50, 100, (1.0, 1.0))
    log = model.train_step(dict(inputs=[*views], data_samples=None, plan=plan),
                           wrapper)
    assert math.isfinite(log['loss']) and int(log['skipped']) == 0
    still = {
        name for name, p in model.named_parameters()
        if torch.equal(p, before[name])}
    gates = {name for name in before if '.gate1.' in name}
    private = {name for name in before if '.gated.' in name}
    dense = {name.replace('.gated', '') for name in private}
    common = 'common-norms' in path.stem
    assert gates and bool(private) is not common
    expected = set()
    if 'gated' not in model.modes:
        expected = gates | private
    elif 'dense' not in model.modes or model.dense_network is not None:
        expected = dense
    assert still == expected
    assert ('ratio' in log) is ('gated' in model.modes)
    assert ('loss_rotation' in log) is path.stem.startswith('rotation')


# Linear evaluation -----------------------------------------------------------


@pytest.mark.parametrize('path', LINEAR, ids=name_of)
def test_linear_config_is_what_its_name_says(path):
    cfg, model = built(path)
    what, network, recipe, data = path.stem.split('_')
    assert (what, network, recipe) == ('linear-both-modes', 'resnet18',
                                       '1xb256-steplr-100e')
    assert cfg.train_dataloader.batch_size == 256
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=256)
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.param_scheduler[0].milestones == [60, 80]
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer == dict(type='SGD',
                             lr=0.3 if data == 'imagenet100' else 0.1,
                             momentum=0.9, weight_decay=0.0)
    assert model.head.num_classes == (100 if '100' in data else 10)
    assert model.head.subnets == [Subnet(1.0), Subnet(gated=True)]
    assert not any(p.requires_grad for p in model.backbone.parameters())
    [pretraining] = [p for p in RECIPES if p.stem.endswith(f'_{data}')]
    ours, theirs = config_of(pretraining).model.backbone, cfg.model.backbone
    assert ours.type == theirs.type
    network = MODELS.build(ours)
    model.backbone.load_state_dict(network.state_dict())
    for loader in ('train', 'val', 'test'):
        kind = cfg[f'{loader}_dataloader'].dataset.type
        assert kind == dict(cifar10='CIFAR10', cifar100='CIFAR100',
                            stl10='us3l_mm.ImageFolder',
                            imagenet100='CustomDataset')[data]
    crop = cfg.train_pipeline[1]
    assert crop.crop_ratio_range == (0.08, 1.0)
    with pytest.raises(ValueError, match='init_cfg.checkpoint=FILE'):
        model.init_weights()


SMALL = dict(base_channels=8, stem_channels=8)


def test_both_classifiers_learn_and_the_network_does_not(tmp_path):
    [path] = [p for p in LINEAR if p.stem.endswith('_cifar10')]
    cfg = config_of(path)
    torch.manual_seed(0)
    network = MODELS.build(
        dict(type=cfg.model.backbone.type, depth=18, **SMALL))
    file = tmp_path / 'pretrained.pth'
    torch.save(
        dict(
            state_dict={
                f'backbone.{name}': value
                for name, value in network.state_dict().items()}), file)
    digits = dict(type='us3l_mm.RenderedDigits', num_images=32, pipeline=[
        dict(type='PackInputs')], rendering=dict(image_size=16,
                                                 digit_size=(8, 15)))
    for name, split in (('train', 'train'), ('val', 'test'), ('test', 'test')):
        cfg[f'{name}_dataloader'].update(batch_size=8, num_workers=0,
                                         dataset=dict(split=split, **digits))
    cfg.model.backbone.update(SMALL)
    cfg.merge_from_dict({
        'model.backbone.init_cfg.checkpoint':
        str(file),
        'default_hooks.check_pretrained':
        dict(type='us3l_mm.CheckPretrainedHook'),
        'train_cfg':
        dict(max_epochs=1, val_interval=1),
        'log_level':
        'WARNING',
        'work_dir':
        str(tmp_path / 'run')})
    runner = Runner.from_cfg(cfg)
    runner.train()  # CheckFrozenHook and CheckPretrainedHook compare tensors
    metrics = runner.message_hub.log_scalars
    for name in ('w1.00', 'gated'):
        assert 0 <= metrics[f'val/accuracy/top1_{name}'].current() <= 100
        assert metrics[f'train/loss_{name}'].current() > 0
        assert runner.model.head.linear('gated' if name ==
                                        'gated' else 1.0).bias.any()
    model = runner.model.eval()
    image = torch.randn(2, 3, 16, 16)
    scores = []
    for mode in ('dense', 'gated'):
        with torch.no_grad(), at(model, mode):
            scores.append(model(image))
    assert not torch.equal(*scores)
    check_weights(runner.model.backbone, str(file), 'backbone.')
    for options, advice in ((dict(base_channels=16,
                                  stem_channels=16), 'backbone.base_channels'),
                            (dict(reduction=2), 'backbone.reduction')):
        other = MODELS.build(
            dict(type=cfg.model.backbone.type, depth=18, **{
                **SMALL,
                **options}))
        with pytest.raises(ValueError, match=advice):
            check_weights(other, str(file), 'backbone.')
    with torch.no_grad():
        runner.model.backbone.layer1[0].gate1.conv1.weight[0] = 0
    with pytest.raises(ValueError, match='1 of the .* are not those of'):
        check_weights(runner.model.backbone, str(file), 'backbone.')
    # A file of another network is refused.
    with pytest.raises(ValueError, match='have another shape there'):
        MODELS.build(
            dict(
                cfg.model, backbone=dict(cfg.model.backbone, base_channels=16,
                                         stem_channels=16))).init_weights()


def test_folders_of_stl_are_written_by_the_code_of_the_readme(
        tmp_path, monkeypatch):
    import torchvision.datasets

    class Fake:
        classes = ['airplane', 'bird']

        def __init__(self, root, split, download):
            assert root == 'data' and download
            number = dict(unlabeled=3, train=4, test=2)[split]
            rows = np.arange(number, dtype=np.uint8)
            self.data = np.broadcast_to(rows[:, None, None, None],
                                        (number, 3, 96, 96))
            self.labels = np.full(number,
                                  -1) if split == 'unlabeled' else (rows % 2)

    monkeypatch.setattr(torchvision.datasets, 'STL10', Fake)
    monkeypatch.chdir(tmp_path)
    text = (FOLDER / 'README.md').read_text()
    [code] = re.findall(r'```python\n(.*?)```', text, re.S)
    exec(code, {})
    names = {
        str(p.relative_to(tmp_path / 'data/stl10'))
        for p in tmp_path.rglob('*.png')}
    assert names == {
        *(f'unlabeled/{i}.png' for i in range(3)),
        *(f'train/{("airplane", "bird")[i % 2]}/{i}.png'
          for i in range(4)), *(f'test/{("airplane", "bird")[i % 2]}/{i}.png'
                                for i in range(2))}
    cfg = config_of(STL)
    for loader, number, labels in (('train', 3, None), ('knn_bank', 4, (0, 1)),
                                   ('knn_query', 2, (0, 1))):
        data = DATASETS.build(cfg[f'{loader}_dataloader'].dataset)
        assert len(data) == number
        if labels is not None:
            assert {
                data[i]['data_samples'].gt_label.item()
                for i in range(number)} == {*labels}
