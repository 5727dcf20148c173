# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Every config says what its name says, builds, and is what it claims."""
import re
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.fileio import load
from mmengine.registry import init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.datasets.seeded_augmentation import SampleIndex
from us3l_mm.engine import hooks
from us3l_mm.registry import HOOKS, MODELS

ROOT = Path(__file__).parents[1]
# The others train classifiers and detectors: test_linear_evaluation.py,
# test_detection_configs.py
CONFIGS = sorted(p for p in (ROOT / 'configs/us3l').rglob('*.py')
                 if p.parent.name not in ('benchmarks', 'detection'))
FOLDERS = ('gated', 'slimclr', 'us3l')
BASELINES = sorted((ROOT / 'configs/us3l/baselines').glob('*.py'))
DATA = [
    *sorted((ROOT / 'configs/_base_/datasets').glob('*_two-views*.py')),
    ROOT / 'configs/us3l/us3l_resnet18_4xb128-coslr-400e_cifar10-folder.py']
ASYMMETRIC = [path for path in DATA if path.stem.endswith('_byol')]
RECIPE = (ROOT / 'configs/us3l/us3l_resnet18_4xb128-coslr-400e_cifar10.py')


def name_of(path: Path) -> str:
    return path.stem


def config_of(path: Path) -> Config:
    init_default_scope('mmpretrain')
    return Config.fromfile(path)


def recipes_of(name: str) -> list:
    """The recipes of an algorithm, without demos and short names."""
    return [
        path for path in sorted((ROOT / 'configs' / name).glob('*.py'))
        if 'demo' not in path.stem and path.stem.count('_') >= 3]


def leaves(value, prefix='') -> dict:
    """All values by dotted key."""
    if isinstance(value, (dict, Config)):
        return {
            key: leaf for name, child in value.items() for key, leaf in leaves(
                child, f'{prefix}.{name}'.strip('.')).items()}
    return {prefix: value}


# Our hooks, and the names that they have in default_hooks.
HOOK_NAMES = {
    'augmentation': 'BatchAugmentationHook',
    'preflight': 'PreflightHook',
    'sampler': 'DynamicSamplerHook',
    'group_reg': 'GroupRegHook',
    'knn': 'WidthKNNHook',
    'non_finite': 'NonFiniteHook',
    'collapse': 'CollapseMonitorHook',
    'compile': 'CompileHook',
    'exact_resume': 'ExactResumeHook',
    'checkpoint': 'AtomicCheckpointHook',
    'calibration': 'CalibrationHook',
    'check_pretrained': 'CheckPretrainedHook',
    'check_annotations': 'CheckAnnotationsHook',
    'images': 'UnreadableImagesHook',
    'logger': 'ProgressHook',  # by which tools/train.py replaces MMEngine's
    'diagnosis': 'GradientDiagnosisHook',
    'frozen': 'CheckFrozenHook', }
EVERY = sorted((ROOT / 'configs').rglob('*.py'))


@pytest.mark.parametrize('path', EVERY, ids=name_of)
def test_hooks_of_ours_have_names(path):
    assert not re.search(r'hook\.type\b', path.read_text())
    try:
        cfg = config_of(path)
    except ModuleNotFoundError:
        pytest.skip('MMDetection, from which it inherits, is not installed.')
    assert 'custom_hooks' not in cfg
    found = {
        name: hook.type.removeprefix('us3l_mm.')
        for name, hook in cfg.get('default_hooks', {}).items()
        if hook is not None and hook.type.startswith('us3l_mm.')}
    assert found == {name: HOOK_NAMES[name] for name in found}


def test_every_hook_of_ours_has_a_name():
    assert set(hooks.__all__) == set(HOOK_NAMES.values())


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_config_builds(path):
    cfg = config_of(path)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    algorithm = MODELS.build(cfg.model)
    for hook in cfg.default_hooks.values():
        if hook.type.startswith('us3l_mm.'):
            HOOKS.build(hook)
    assert {'preflight', 'sampler', 'group_reg', 'non_finite'} <= {
        *cfg.default_hooks}
    assert (cfg.model_wrapper_cfg.type ==
            'us3l_mm.MultiPassDistributedDataParallel')
    assert cfg.optim_wrapper.type in ('us3l_mm.MultiPassOptimWrapper',
                                      'us3l_mm.MultiPassAmpOptimWrapper')
    assert cfg.train_dataloader.sampler.type == 'us3l_mm.SeededSampler'
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert pipeline[0].type == 'us3l_mm.SeedAugmentation'
    for name in ('knn_bank_dataloader', 'knn_query_dataloader'):
        assert not cfg[name].sampler.get('shuffle')
    batched = 'augmentation' in cfg.default_hooks
    assert batched == bool(
        re.search('(resnet|mobilenet).*cifar10+$|demo', path.stem))
    assert not batched or [t.type for t in pipeline[-2:]] == [
        'MultiView', 'PackInputs']
    # Weight decay and group regularisation exclude each other.
    decays = cfg.optim_wrapper.optimizer.get('weight_decay', 0.0) > 0
    assert decays != (cfg.default_hooks.group_reg.lam > 0)
    assert algorithm.update_mode == (
        'accumulate' if path.stem.startswith('accumulate') else 'sequential')


def test_one_option_changes_a_hook():
    cfg = config_of(RECIPE)
    cfg.merge_from_dict({'default_hooks.sampler.num_samples': 4})
    sampler = HOOKS.build(cfg.default_hooks.sampler)
    assert len(sampler.plan(900, 1000, (0.25, 1.0)).passes) == 4


# Source: US3L, arXiv 2303.06870; SimSiam, 2011.10566; MoCo v3, 2104.02057.
# Projector, predictor of the base pass, predictor of distillation: sizes; 'b'
# for a bias; 'n' for a last norm, which has no affine parameters.
SIZES = {
    'us3l_resnet18': '512-2048b-2048b-256b none 256-2048-256b',
    'us3l-byol_resnet18':
    '512-2048b-2048-2048b 2048-2048-2048b 2048-2048-2048b',
    'us3l-simsiam_resnet18':
    '512-2048b-2048-2048-n 2048-2048-2048b 2048-2048-2048b',
    'us3l-simsiam-momentum_resnet18':
    '512-2048b-2048-2048b 2048-2048-2048b 2048-2048-2048b',
    'us3l_vit-tiny': '192-2048-2048-256-n 256-2048-256-n 256-2048-256-n', }


def outline(module) -> str:
    """What ``SIZES`` says about the layers of ``module``."""
    if module is None:
        return 'none'
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    *hidden, last = linear
    assert [(m.num_features, m.affine)
            for m in norms] == [(m.out_features, True) for m in hidden] + [
                (last.out_features, False)] * (len(norms) - len(hidden))
    sizes = [f'{m.out_features}{"b" * (m.bias is not None)}' for m in linear]
    return '-'.join([str(linear[0].in_features), *sizes] + ['n'] *
                    (len(norms) - len(hidden)))


@pytest.mark.parametrize('name', SIZES)
def test_sizes_of_neck_and_heads(name):
    [path] = [p for p in CONFIGS if re.match(f'{name}_.*_cifar10$', p.stem)]
    algorithm = MODELS.build(config_of(path).model)
    parts = (algorithm.neck, algorithm.head.predictor,
             algorithm.distill_head.predictor)
    assert ' '.join(map(outline, parts)) == SIZES[name]


@pytest.mark.parametrize('path', [
    path
    for path in CONFIGS if re.search(r'_\d+xb\d+', path.stem)], ids=name_of)
def test_config_is_what_its_name_says(path):
    cfg = config_of(path)
    gpus, per_gpu = map(int, re.search(r'_(\d+)xb(\d+)', path.stem).groups())
    assert cfg.train_dataloader.batch_size == per_gpu
    assert cfg.auto_scale_lr.base_batch_size == gpus * per_gpu
    assert cfg.auto_scale_lr.enable is False
    depth = re.search(r'(?:resnet|r)(\d+)_', path.stem)
    if depth is not None:
        assert cfg.model.backbone.depth == int(depth.group(1))
    arch = re.search(r'_vit-([a-z]+)_', path.stem)
    if arch is not None:
        assert cfg.model.backbone.type == 'us3l_mm.SlimmableViT'
        assert cfg.model.backbone.arch == arch.group(1)
    if path.stem.count('_') >= 3:  # not a short name
        _, recipe, data = path.stem.rsplit('_', 2)
        epochs = int(re.search(r'-(\d+)e$', recipe).group(1))
        assert cfg.train_cfg.max_epochs == epochs
        assert cfg.train_dataloader.dataset.type == dict(
            cifar10='CIFAR10',
            cifar100='CIFAR100',
            in1k='ImageNet',
        ).get(data, 'us3l_mm.ImageFolder')


def test_short_name_is_the_canonical_config():
    short = config_of(ROOT / 'configs/us3l/r50_8xb256.py')
    long = config_of(ROOT /
                     'configs/us3l/us3l_resnet50_8xb256-coslr-100e_in1k.py')
    assert short.to_dict() == long.to_dict()
    assert short.optim_wrapper.optimizer.lr == pytest.approx(
        0.05 * 2048 / 480, abs=1e-4)


ABSENT = 'absent'
WEIGHT_DECAY = {
    'optim_wrapper.optimizer.weight_decay': 1e-4,
    'default_hooks.group_reg.lam': 0.0}
PREDICTOR = ('type', 'in_channels', 'hid_channels', 'out_channels',
             'num_layers', 'with_last_bn', 'with_last_bias')
NO_PREDICTOR = {
    f'model.distill_head.predictor.{key}': ABSENT for key in PREDICTOR}
NO_DISTILLATION = {
    'model.distill_from': None,
    'model.distill_head': None,
    'model.distill_head.type': ABSENT,
    'model.distill_head.loss.type': ABSENT,
    **NO_PREDICTOR}
WHOLE_RANGE = {'default_hooks.sampler.num_stages': 1}
FOUR = [1.0, 0.75, 0.5, 0.25]
DIFFERENCES = {
    'individual': {
        'default_hooks.sampler.widths': [0.5],
        'default_hooks.knn.widths': [0.5],
        **WEIGHT_DECAY},
    'us-net': {
        **NO_DISTILLATION,
        **WHOLE_RANGE,
        **WEIGHT_DECAY},
    's-net': {
        **NO_DISTILLATION, 'default_hooks.sampler.widths': FOUR,
        'model.backbone.norm_cfg.type': 'SwitchableBN',
        'model.backbone.norm_cfg.widths': FOUR,
        **WEIGHT_DECAY},
    'sandwich': WHOLE_RANGE,
    'distill-online': {
        'model.distill_from': 'online'},
    'cosine-no-momentum': {
        'model.base_from': 'online',
        'model.distill_from': 'online',
        'model.teacher': None,
        'model.teacher.momentum': ABSENT,
        'model.head.loss.type': 'CosineSimilarityLoss',
        'model.head.loss.temperature': ABSENT,
        'model.head.loss.gather': ABSENT},
    'shared-head': {
        'model.share_predictor': True,
        **NO_PREDICTOR},
    'no-group-reg': WEIGHT_DECAY,
    'accumulate': {
        'model.update_mode': 'accumulate'}, }


@pytest.mark.parametrize('path', BASELINES, ids=name_of)
def test_baseline_differs_from_the_recipe_in_what_it_is_about(path):
    recipe, baseline = leaves(config_of(RECIPE)), leaves(config_of(path))
    found = {
        key: baseline.get(key, ABSENT)
        for key in recipe.keys() | baseline.keys()
        if recipe.get(key, ABSENT) != baseline.get(key, ABSENT)}
    assert found == DIFFERENCES[path.stem.split('_')[0]]


def test_the_collapsing_baseline_has_the_layers_of_the_recipe():
    [path] = [p for p in BASELINES if p.stem.startswith('cosine')]
    shapes = []
    for each in (RECIPE, path):
        algorithm = MODELS.build(config_of(each).model)
        shapes.append({
            name: p.shape for name, p in algorithm.named_parameters()
            if 'teacher' not in name})
    assert shapes[0] == shapes[1]


def test_every_baseline_is_there():
    assert {p.stem.split('_')[0] for p in BASELINES} == DIFFERENCES.keys()


def sample(path: Path, cfg: ConfigDict, rgb: tuple, seed: int = 0) -> dict:
    """What a data set would hand to the pipelines: an even image."""
    image = np.full((48, 40, 3), rgb, np.uint8)
    results = dict(sample_idx=SampleIndex(0, seed), gt_label=1)
    if cfg.train_dataloader.dataset.type.startswith('CIFAR'):
        return dict(results, img=image)  # RGB, as MMPretrain's CIFAR
    mmcv.imwrite(image[..., ::-1], str(path / 'image.png'))
    return dict(results, img_path=str(path / 'image.png'))


def augmented(tmp_path, cfg, rgb, count) -> torch.Tensor:
    """(2 * count, 3) RGB colours of the views of an even image."""
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    first = sample(tmp_path, cfg, rgb)
    views = [
        view for seed in range(count) for view in pipeline(
            dict(first, sample_idx=SampleIndex(0, seed)))['inputs']]
    size = max(
        t.get('scale', 0)
        for t in cfg.get('view_pipeline1', cfg.get('view_pipeline')))
    assert {view.shape for view in views} == {(3, size, size)}
    assert {view.dtype for view in views} == {torch.uint8}
    colours = torch.stack([view.flatten(1).float().mean(1) for view in views])
    return colours.flip(1) if cfg.data_preprocessor.to_rgb else colours


@pytest.mark.parametrize('path', [
    path for path in DATA if path not in ASYMMETRIC], ids=name_of)
def test_augmentation_has_the_shares_of_the_paper(path, tmp_path):
    cfg = config_of(path)
    in1k = cfg.train_dataloader.dataset.type == 'ImageNet'
    count = 150 if in1k else 600
    colours = augmented(tmp_path, cfg, (200, 90, 40), count)
    grey = (colours.max(1).values - colours.min(1).values) < 1
    same = ((colours - torch.tensor([200., 90., 40.])).abs() < 1).all(1)
    # Four standard deviations of a share around 0.2 over so many views
    margin = 4 * (0.16 / len(colours))**0.5
    assert grey.float().mean() == pytest.approx(0.2, abs=margin)
    assert same.float().mean() == pytest.approx(0.2 * 0.8, abs=margin)
    # Grey without jitter is the luminance of red, green and blue, in this
    # order: a swap of channels would give 88 instead of 117.
    luminance = 0.2989 * 200 + 0.587 * 90 + 0.114 * 40
    assert (colours[grey][:, 0] - luminance).abs().min() <= 1
    blurs = [t.prob for t in cfg.view_pipeline if t.type == 'GaussianBlur']
    assert blurs == ([0.5] if in1k else [])


@pytest.mark.parametrize('path', ASYMMETRIC, ids=name_of)
def test_views_of_transformers_are_the_asymmetric_pair(path, tmp_path):
    """BYOL's: the first view is always blurred, the second solarised."""
    cfg = config_of(path)
    pipelines = cfg.view_pipeline1, cfg.view_pipeline2
    for kind, probabilities in (('GaussianBlur', (1.0, 0.1)), ('Solarize',
                                                               (0.2, ))):
        assert tuple(t.prob for pipeline in pipelines for t in pipeline
                     if t.type == kind) == probabilities
    colours = augmented(tmp_path, cfg, (200, 90, 40), 300)
    # Solarising takes a light channel to the dark: 200 to 55.
    solarised = ((colours - torch.tensor([55., 90., 40.])).abs() < 2).all(1)
    assert not solarised[::2].any()
    expected = 0.2 * 0.2 * 0.8  # neither jittered nor grey
    assert solarised[1::2].float().mean() == pytest.approx(expected, abs=0.04)
    grey = (colours.max(1).values - colours.min(1).values) < 1
    assert grey.float().mean() == pytest.approx(0.2, abs=0.065)
    luminance = 0.2989 * 200 + 0.587 * 90 + 0.114 * 40
    assert (colours[::2][grey[::2]][:, 0] - luminance).abs().min() <= 1


@pytest.mark.parametrize('path', DATA, ids=name_of)
def test_evaluation_sees_the_plain_image(path, tmp_path):
    cfg = config_of(path)
    assert cfg.knn_bank_dataloader.dataset.pipeline == cfg.test_pipeline
    pipeline = Compose(cfg.knn_query_dataloader.dataset.pipeline)
    packed = pipeline(sample(tmp_path, cfg, (200, 90, 40)))
    colour = packed['inputs'].flatten(1).float().mean(1)
    if cfg.data_preprocessor.to_rgb:
        colour = colour.flip(0)
    assert colour.tolist() == [200, 90, 40]
    assert int(packed['data_samples'].gt_label) == 1


@pytest.mark.parametrize('name', FOLDERS)
def test_metafile_lists_the_recipes_and_invents_nothing(name):
    index = load(ROOT / 'model-index.yml')
    assert index['Import'] == [f'configs/{n}/metafile.yml' for n in FOLDERS]
    models = load(ROOT / f'configs/{name}/metafile.yml')['Models']
    assert [m['Name'] for m in models] == [p.stem for p in recipes_of(name)]
    for model, path in zip(models, recipes_of(name)):
        cfg = config_of(path)
        assert model['Config'] == f'configs/{name}/{path.name}'
        assert model['Metadata']['Epochs'] == cfg.train_cfg.max_epochs
        assert (model['Metadata']['Batch Size'] ==
                cfg.auto_scale_lr.base_batch_size)
        assert model['Results'] is None and 'Weights' not in model


@pytest.mark.parametrize('name', FOLDERS)
def test_readme_lists_every_config(name):
    folder = ROOT / 'configs' / name
    text = (folder / 'README.md').read_text()
    links = re.findall(r'\]\((?!http)(.+?)(?:#.*?)?\)', text)
    linked = {folder / link for link in links}
    assert all(path.exists() for path in linked)
    assert {*recipes_of(name)} <= linked
    assert all(f'`{path.stem.split("_")[0]}`' in text
               for sub in ('baselines', 'ablations')
               for path in (folder / sub).glob('*.py'))
