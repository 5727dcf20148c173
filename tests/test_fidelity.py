# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Recipes have the authors' values, or docs/fidelity.md says why not."""
import ast
import io
import re
import tarfile
import tokenize
from pathlib import Path

import naive
import numpy as np
import pytest
import torch
from algorithms import model_cfg, randomise
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.transforms import functional as TF

from us3l_mm.datasets import SeededSampler
from us3l_mm.fileio import load_weights
from us3l_mm.models import InfoNCELoss, Plan, SlimmableProjector, at_width
from us3l_mm.models.selfsup.multi_pass import encode
from us3l_mm.models.selfsup.passes import Batch
from us3l_mm.registry import MODELS, TRANSFORMS

ROOT = Path(__file__).parents[1]
US3L = ROOT / 'configs/us3l'
SLIMCLR = ROOT / 'configs/slimclr'
GATED = ROOT / 'configs/gated'
BASE = ROOT / 'configs/_base_'
PRETRAINING = sorted([
    BASE / 'us3l_runtime.py', *(BASE / 'models').glob('*.py'),
    *(BASE / 'schedules').glob('*.py'),
    *(BASE / 'datasets').glob('*_two-views*.py'), *US3L.glob('*.py'),
    *(US3L / 'baselines').glob('*.py'), BASE / 'slimclr_runtime.py',
    *SLIMCLR.glob('*.py'), *(SLIMCLR / 'ablations').glob('*.py'),
    *GATED.glob('*.py'), *(GATED / 'baselines').glob('*.py'),
    *(BASE / 'datasets').glob('*vicreg*views.py')])
CIFAR = US3L / 'us3l_resnet18_4xb128-coslr-400e_cifar10.py'
R50 = US3L / 'us3l_resnet50_8xb64-coslr-400e_cifar10.py'
BYOL = US3L / 'us3l_resnet50_8xb60-coslr-100e_in1k.py'
MOBILENET = US3L / 'us3l_mobilenet-v2_4xb128-coslr-400e_cifar10.py'
VIT = US3L / 'us3l_vit-tiny_8xb64-coslr-300e_cifar10.py'
LINEAR = US3L / 'benchmarks/linear_resnet18_4xb128-steplr-100e_cifar10.py'


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')


def model_of(path) -> nn.Module:
    return MODELS.build(Config.fromfile(path).model)


def value_of(path: str, key: str):
    value = Config.fromfile(ROOT / path)
    for part in key.split('.'):
        value = value[int(part)] if part.isdigit() else value[part]
    return value


# The table -------------------------------------------------------------------


def rows() -> list:
    """(file, key or None, all cells) of the rows that name a config."""
    found = []
    for line in (ROOT / 'docs/fidelity.md').read_text().splitlines():
        cells = [cell.strip() for cell in line.strip('| ').split(' | ')]
        named = re.search(r'`(configs/[\w./-]+\.py)`(?: `([\w.]+)`)?',
                          cells[0])
        if line.startswith('|') and named:
            found.append((named[1], named[2], cells))
    return found


ROWS = rows()
VALUES = [row for row in ROWS if row[1]]


def values_by_line(node, path=()):
    """(first line, last line, dotted key, is a leaf) of all values."""
    if isinstance(node, ast.Call):
        items = [(k.arg, k.value, k.lineno) for k in node.keywords if k.arg]
    elif isinstance(node, (ast.List, ast.Tuple)):
        items = [(str(i), v, v.lineno) for i, v in enumerate(node.elts)]
    else:
        return
    for name, value, first in items:
        elements = value.elts if isinstance(value, ast.List) else []
        leaf = not any(isinstance(v, ast.Call) for v in (value, *elements))
        yield first, value.end_lineno, '.'.join([*path, name]), leaf
        yield from values_by_line(value, (*path, name))


def marked_ours(path: Path) -> set:
    """The dotted keys that are marked *ours*; None for the whole file."""
    source = path.read_text()
    tree = ast.parse(source)
    values = [
        value for statement in tree.body if isinstance(statement, ast.Assign)
        for value in values_by_line(statement.value, (
            statement.targets[0].id, ))]
    code = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE,
                              tokenize.INDENT, tokenize.DEDENT,
                              tokenize.ENDMARKER)}
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type != tokenize.COMMENT or not re.search(
                r'\bours\b', token.string):
            continue
        if line in code:  # of the last value that ends there
            found.add([v[2] for v in values if v[3] and v[1] == line][-1])
        elif line < min(code):
            found.add(None)
        else:  # of the first value that begins below
            below = min(i for i in code if i > line)
            keys = [v[2] for v in values if v[3] and v[0] == below]
            found.add(keys[-1])
    return found


@pytest.mark.parametrize('path', PRETRAINING, ids=lambda path: path.stem)
def test_every_value_of_ours_is_a_row_of_the_table(path):
    name = str(path.relative_to(ROOT))
    listed = {key for file, key, _ in ROWS if file == name}
    marked = marked_ours(path)
    # Of a recipe of ours, the table need not list each value.
    assert None in marked & listed or marked <= listed


def test_marks_are_read():
    assert marked_ours(BASE / 'us3l_runtime.py') == {
        'default_hooks.sampler.grid', 'env_cfg.cudnn_benchmark'}
    assert marked_ours(US3L / 'us3l_vit-base_16xb256-coslr-300e_in1k.py') == {
        None}
    assert {key for _, key, _ in VALUES} >= {
        'model.head.loss.gather', 'train_dataloader.drop_last',
        'param_scheduler.0.by_epoch', 'default_hooks.group_reg.decoupled'}
    for path in PRETRAINING:  # every value has a source
        assert path.stem.startswith('us3l-simsiam') or any(
            mark in path.read_text()
            for mark in ('reference', 'paper', 'ours', '_base_'))


@pytest.mark.parametrize('file, key, cells', VALUES, ids=[
    f'{Path(f).stem}-{k}' for f, k, _ in VALUES])
def test_the_table_has_the_values_of_the_configs(file, key, cells):
    ours = eval(re.match('`([^`]+)`', cells[2])[1])
    assert value_of(file, key) == ours
    for option in re.findall(r'`([\w.]+=[^`]+)`', cells[4]):
        name, _, text = option.partition('=')
        cfg = Config.fromfile(ROOT / file)
        assert name == key and value_of(file, name) is not None
        cfg.merge_from_dict({name: DictAction._parse_iterable(text)})
        assert cfg.to_dict() != Config.fromfile(ROOT / file).to_dict()


def test_recipes_of_ours_are_listed_once():
    listed = [file for file, key, _ in ROWS if key is None]
    assert sorted(listed) == sorted(
        str(path.relative_to(ROOT)) for path in PRETRAINING
        if None in marked_ours(path))


# Layers and initial weights --------------------------------------------------


@pytest.mark.parametrize('path, count', [(CIFAR, 18_001_472),
                                         (BYOL, 52_892_736)])
def test_as_many_parameters_are_trained_as_by_the_reference(path, count):
    assert sum(p.numel() for p in model_of(path).parameters()
               if p.requires_grad) == count


def test_hidden_biases_are_chosen_per_layer():
    neck = SlimmableProjector(8, 16, 4, num_layers=3, with_bias=(True, False),
                              with_last_bias=True)
    assert [name for name in neck.state_dict() if 'fc' in name] == [
        'fc0.weight', 'fc0.bias', 'fc1.weight', 'fc2.weight', 'fc2.bias']
    with pytest.raises(ValueError, match='one bool or 2'):
        SlimmableProjector(8, 16, 4, num_layers=3, with_bias=(True, ))


def test_cifar_resnets_begin_with_pytorchs_weights():
    backbone = model_of(CIFAR).backbone
    backbone.init_weights()
    for name, layer in backbone.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        plain = nn.Conv2d(layer.in_channels, layer.out_channels,
                          layer.kernel_size, bias=False)
        bound = plain.weight[0].numel()**-0.5  # uniform in [-bound, bound]
        assert layer.weight.abs().max() <= bound
        assert plain.weight.abs().max() <= bound
        rms = layer.weight.square().mean().sqrt().item()
        assert rms == pytest.approx(bound / 3**0.5, rel=0.03), name
        assert rms == pytest.approx(plain.weight.square().mean().sqrt().item(),
                                    rel=0.05), name


def test_the_first_projector_layer_of_mobilenet_is_small():
    neck = model_of(MOBILENET).neck
    before = neck.fc1.weight.clone()
    neck.init_weights()
    rms = neck.fc0.weight.square().mean().sqrt().item()
    assert rms == pytest.approx(0.01, rel=0.01)
    assert not neck.fc0.bias.any() and neck.fc2.bias.any()
    assert torch.equal(neck.fc1.weight, before)
    assert all((norm.weight == 1).all() for norm in (neck.bn0, neck.bn1))


def test_heads_of_transformers_start_equal_and_learn_apart():
    model = model_of(VIT)
    model.init_weights()
    base = dict(model.head.predictor.named_parameters())
    distil = dict(model.distill_head.predictor.named_parameters())
    assert base.keys() == distil.keys()
    for name, p in base.items():
        assert torch.equal(p, distil[name]) and p is not distil[name]
    names = [name for name, _ in model.named_parameters()]
    assert 'distill_head.predictor.fc0.weight' in names
    assert not any('bias' in name for name in names
                   if name.startswith(('neck.fc', 'head.predictor.fc')))


def test_simsiam_has_one_predictor():
    [path] = US3L.glob('us3l-simsiam_*.py')
    model = model_of(path)
    assert model.distill_head.predictor is model.head.predictor
    assert model.neck.bn2.affine is False and model.teacher is None


@pytest.mark.parametrize('depth', [18, 50])
def test_simsiam_with_a_teacher_distils_by_info_nce(depth):
    [path] = US3L.glob(f'us3l-simsiam-momentum_resnet{depth}_*_in1k.py')
    cfg = Config.fromfile(path)
    assert cfg.model.distill_head.loss.type == 'us3l_mm.InfoNCELoss'
    assert cfg.model.head.loss.type == 'CosineSimilarityLoss'
    assert cfg.default_hooks.group_reg.lam == 0
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-4
    model = MODELS.build(cfg.model)
    assert model.distill_head.predictor is not model.head.predictor
    assert not hasattr(model.neck, 'bn2')


# Losses ----------------------------------------------------------------------


def test_moco_v3_adds_the_two_directions():
    cfg = Config.fromfile(VIT).model
    assert cfg.head.weight == cfg.distill_head.weight == 1.0
    small = model_cfg('moco_v3')
    for head in (small['head'], small['distill_head']):
        head['weight'] = cfg.head.weight
    model = randomise(MODELS.build(small).double().train())
    generator = torch.Generator().manual_seed(0)
    views = [
        torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
        for _ in range(2)]
    plan = Plan.sampled([1.0, 0.5])
    batch = Batch(views, plan)
    model.begin(batch)
    (_, t1), (_, t2) = batch.targets['teacher']
    for pass_ in plan.passes:
        with at_width(model, pass_.subnet.width):
            losses = model.loss(batch, pass_)['losses']
            z1, z2 = (z for _, z in encode(model.backbone, model.neck, views))
            head = model.head if pass_.role == 'base' else model.distill_head
            q1, q2 = (head.predictor((z, ))[0] for z in (z1, z2))
        expected = naive.moco_v3(q1, t2, 0.2) + naive.moco_v3(q2, t1, 0.2)
        [loss] = losses.values()
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)


def test_maps_of_features_are_those_behind_the_second_norm():
    recipe = model_of(R50).feature_distiller
    assert [(p.weight.shape[0], p.bias)
            for p in recipe.projections] == [(128, None), (256, None),
                                             (512, None)]
    cfg = model_cfg(
        backbone=dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=50,
                      base_channels=16, stem_channels=16))
    cfg['feature_distiller'] = Config.fromfile(R50).model.feature_distiller
    model = randomise(MODELS.build(cfg).double().train())
    view = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for width, owner in ((1.0, model), (0.5, model), (1.0, model.teacher)):
        backbone, inputs = owner.backbone, {}
        names = ('layer2.3', 'layer3.5', 'layer4.2')
        hooks = [
            backbone.get_submodule(name).register_forward_pre_hook(
                lambda _, x, name=name, inputs=inputs: inputs.update(
                    {name: x[0].clone()})) for name in names]
        with torch.no_grad(), at_width([backbone, owner.neck], width):
            [(maps, _)] = encode(backbone, owner.neck, [view])
            for hook in hooks:
                hook.remove()
            for name, found in zip(names, maps):
                block = backbone.get_submodule(name)
                x = block.bn1(block.conv1(inputs[name])).clamp(min=0)
                expected = block.bn2(block.conv2(x)).clamp(min=0)
                torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(maps) == 3
    assert not any(m._forward_hooks for m in model.modules())


def test_an_incomplete_batch_has_the_loss_of_its_images():
    sizes = {}
    for world in (1, 2, 3):
        for rank in range(world):
            sampler = SeededSampler(range(41), shuffle=True, seed=0)
            sampler.rank, sampler.world_size = rank, world
            sampler.num_samples = -(-41 // world)
            sampler.total_size = sampler.num_samples * world
            batches = torch.utils.data.BatchSampler(sampler, 8, False)
            sizes.setdefault(world, set()).add(tuple(map(len, batches)))
    # Gathering needs as many images of each process.
    assert sizes == {1: {(8, ) * 5 + (1, )}, 2: {(8, 8, 5)}, 3: {(8, 6)}}
    pred, target = torch.randn(2, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(
        InfoNCELoss(0.5)(pred, target), naive.info_nce(pred, target, 0.5),
        rtol=0, atol=1e-12)


@pytest.mark.parametrize('name, drops', [
    ('us3l_resnet18_4xb128-coslr-400e_cifar10', False),
    ('us3l_resnet50_8xb60-coslr-100e_in1k', False),
    ('us3l-byol_resnet18_4xb128-coslr-400e_cifar10', True),
    ('us3l-simsiam_resnet18_4xb128-coslr-400e_cifar10', True),
    ('us3l_vit-tiny_8xb64-coslr-300e_cifar10', True)])
def test_the_last_batch(name, drops):
    cfg = Config.fromfile(US3L / f'{name}.py')
    assert cfg.train_dataloader.drop_last is drops


# Images ----------------------------------------------------------------------


def photo(size=32, seed=0) -> np.ndarray:
    """An RGB image of smooth colours, as Pillow enlarges random ones."""
    noise = np.random.RandomState(seed).randint(0, 256, (8, 8, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.BICUBIC))


OPERATIONS = dict(brightness=(TF.adjust_brightness, (0.6, 1.4), 1, 0.5),
                  contrast=(TF.adjust_contrast, (0.6, 1.4), 1, 0.5),
                  saturation=(TF.adjust_saturation, (0.6, 1.4), 1,
                              0.6), hue=(TF.adjust_hue, (-0.1, 0.07), 16, 1.2))


@pytest.mark.parametrize('name', OPERATIONS)
@pytest.mark.parametrize('size', [32, 224])
def test_colour_operations_are_torchvisions(name, size):
    """Rounding apart; OpenCV's hue has eight bits."""
    operation, factors, most, mean = OPERATIONS[name]
    swap = TRANSFORMS.build(dict(type='us3l_mm.SwapRedBlue'))
    rgb = photo(size)
    for factor in factors:
        expected = np.asarray(operation(Image.fromarray(rgb), factor))
        for backend in ('cv2', 'pillow'):
            jitter = TRANSFORMS.build(
                dict(type='ColorJitter', backend=backend, **{
                    name: (factor, factor)}))
            ours = jitter(swap(dict(img=rgb)))['img'][..., ::-1]
            off = np.abs(ours.astype(int) - expected.astype(int))
            if backend == 'pillow':
                assert not off.any()
            assert off.max() <= most and off.mean() <= mean


def test_grey_is_torchvisions():
    cfg = Config.fromfile(CIFAR)
    [grey] = [t for t in cfg.view_pipeline if t.type == 'RandomGrayscale']
    pipeline = Compose([dict(type='us3l_mm.SwapRedBlue'), dict(grey, prob=1)])
    ours = pipeline(dict(img=photo()))['img'].astype(int)
    expected = np.asarray(TF.rgb_to_grayscale(Image.fromarray(photo()), 3))
    assert np.abs(ours - expected.astype(int)).max() <= 1


@pytest.mark.parametrize('path', [LINEAR, *sorted(US3L.glob('*_cifar10*.py'))],
                         ids=lambda path: path.stem)
def test_pipelines_of_cifar_swap_colours_once(path):
    cfg = Config.fromfile(path)
    for name in ('train_dataloader', 'knn_bank_dataloader',
                 'knn_query_dataloader', 'val_dataloader'):
        if cfg.get(name) is not None:
            types = [t.type for t in cfg[name].dataset.pipeline]
            reads = ('us3l_mm.LoadImage'
                     if 'folder' in path.stem else 'us3l_mm.SwapRedBlue')
            assert types.index(reads) == (
                types[0] == 'us3l_mm.SeedAugmentation')
            assert types.count('us3l_mm.SwapRedBlue') == (
                reads == 'us3l_mm.SwapRedBlue')
    assert cfg.data_preprocessor.to_rgb
    assert cfg.data_preprocessor.mean == [125.307, 122.961, 113.8575]
    assert cfg.data_preprocessor.std == pytest.approx([
        255 * s for s in (0.2023, 0.1994, 0.2010)])


@pytest.mark.parametrize('path',
                         sorted((US3L / 'benchmarks').glob('*cifar*.py')),
                         ids=lambda path: path.stem)
def test_linear_evaluation_sees_the_images_of_the_reference(path):
    cfg = Config.fromfile(path)
    assert cfg.data_preprocessor.mean == [125.307, 122.961, 113.8575]
    image = photo()
    test = Compose(cfg.val_dataloader.dataset.pipeline)
    ours = test(dict(img=image))['inputs'].flip(0).permute(1, 2, 0).numpy()
    vit = 'vit' in path.stem
    expected = transforms.Compose([
        transforms.Resize(
            256 if vit else 36, transforms.InterpolationMode.BILINEAR
            if vit else transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224 if vit else 32)])(Image.fromarray(image))
    assert np.array_equal(ours, np.asarray(expected))
    if not vit:
        swap, crop, *_ = cfg.train_dataloader.dataset.pipeline
        assert crop.crop_ratio_range == (0.8, 1.0)
        crop = Compose([
            swap,
            dict(crop, crop_ratio_range=(1, 1), aspect_ratio_range=(1, 1))])
        whole = crop(dict(img=photo(24)))['img'][..., ::-1]
        expected = Image.fromarray(photo(24)).resize((32, 32), Image.BICUBIC)
        assert np.array_equal(whole, np.asarray(expected))


# Schedules -------------------------------------------------------------------


def test_transformers_have_the_schedule_of_the_reference():
    cfg = Config.fromfile(VIT)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr,
            optimizer.weight_decay) == ('AdamW', 3e-4, 0.1)
    assert cfg.optim_wrapper.type == 'us3l_mm.MultiPassAmpOptimWrapper'
    assert cfg.default_hooks.group_reg.lam == 0
    assert cfg.default_hooks.group_reg.warmup_epochs == 100
    for pipeline in (cfg.view_pipeline1, cfg.view_pipeline2):
        assert pipeline[0].crop_ratio_range == (0.08, 1.0)
    n, parameter = 97, nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=optimizer.lr)
    warm_up = dict(cfg.param_scheduler[0], epoch_length=n)
    scheduler = PARAM_SCHEDULERS.build(warm_up,
                                       default_args=dict(optimizer=sgd))
    for i in range(40 * n):
        theirs = optimizer.lr * i / (40 * n)
        assert sgd.param_groups[0]['lr'] == pytest.approx(
            theirs, rel=3e-4, abs=1e-12)
        sgd.step()
        scheduler.step()


# Files of earlier versions ---------------------------------------------------


def test_a_file_without_biases_says_what_to_set(tmp_path):
    with tarfile.open(ROOT / 'tests/data/old_files/files.tar.xz') as archive:
        path = tmp_path / 'resnet.pt'
        path.write_bytes(archive.extractfile('resnet.pt').read())
    weights = load_weights(str(path))['state_dict']

    def neck(**kwargs):
        shape = weights['neck.fc0.weight'].shape
        parent = nn.Module()
        parent.neck = SlimmableProjector(shape[1], shape[0],
                                         len(weights['neck.fc2.weight']), 3,
                                         with_last_bn=False, **kwargs)
        return parent

    of_now = neck(with_bias=True, with_last_bias=True)
    for strict in (False, True):
        with pytest.raises(
                ValueError, match='no neck.fc0.bias.*model.neck.with_bias='
                'False model.neck.with_last_bias=False'):
            load_state_dict(of_now, weights, strict=strict)
    as_it_was = neck()
    load_state_dict(as_it_was, weights, strict=False)
    assert torch.equal(as_it_was.neck.fc2.weight, weights['neck.fc2.weight'])


def test_projections_with_biases_say_what_to_set():
    options = dict(backbone=dict(type='us3l_mm.SlimmableResNet_CIFAR',
                                 depth=18, base_channels=16, stem_channels=16))
    before = MODELS.build(
        model_cfg(**options, feature_distiller=dict(with_bias=True)))
    now = MODELS.build(model_cfg(**options, feature_distiller=dict()))
    with pytest.raises(ValueError, match='feature_distiller.with_bias=True'):
        load_state_dict(now, before.state_dict(), strict=False)
