# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Checkpoints and slices of earlier code load and give the same numbers.

``data/make_old_files.py`` made the files and the numbers, with the code at
commit 9e1d820 and in double precision, so that rounding on another machine is
far below the tolerance.
"""
import copy
import importlib.util
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from us3l_mm.apis import load_backbone, slice_network
from us3l_mm.export.architecture import stored_model
from us3l_mm.fileio import load_weights
from us3l_mm.models import Plan, at_width
from us3l_mm.registry import HOOKS, MODELS, OPTIM_WRAPPERS

DATA = Path(__file__).parent / 'data'
EXPECTED = json.loads((DATA / 'old_files/expected.json').read_text())


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


OLD = module(DATA / 'make_old_files.py')
TOOL = module(DATA.parents[1] / 'tools/slice_checkpoint.py')
# Where each network has its statistics or running statistics.
FILES = dict(resnet='resnet-calibrated', switchable='switchable', vit='vit',
             mobilenet='mobilenet', **{'vit-input': 'vit-input'})
# Weights are read in single precision and computed with in double.
EXACT = dict(rel=1e-9, abs=1e-9)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('old_files')
    with tarfile.open(DATA / 'old_files/files.tar.xz') as archive:
        for member in archive:
            (folder / member.name).write_bytes(
                archive.extractfile(member).read())
    return folder


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')


def check(actual, expected, where='', tolerance=EXACT):
    """Compare nested numbers; of dicts, the keys that are expected."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in actual, f'{where}.{key}'
            # The spread of embeddings is computed in single precision.
            check(
                actual[key], value, f'{where}.{key}',
                dict(rel=1e-5, abs=1e-6)
                if key.startswith('spread') else tolerance)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for i, pair in enumerate(zip(actual, expected)):
            check(*pair, f'{where}[{i}]', tolerance)
    else:
        assert actual == pytest.approx(expected, **tolerance), where


# --- current arguments -------------------------------------------------------

LAST_NORM = dict(with_last_bn=True, with_last_bn_affine=False)
SGD_REG = dict(type='us3l_mm.GroupRegHook', lam=1e-3, alpha=0.05)
LOSSES = dict(cosine=dict(type='CosineSimilarityLoss'), mse=dict(
    type='PixelReconstructionLoss', criterion='L2'), info_nce=dict(
        type='us3l_mm.InfoNCELoss', temperature=0.5), moco_v3=dict(
            type='us3l_mm.MoCoV3Loss', temperature=0.2))


def neck(in_channels=8, with_last_bn=False, **kwargs):
    return dict(type='us3l_mm.SlimmableProjector', in_channels=in_channels,
                hid_channels=8, out_channels=4, num_layers=3,
                with_last_bn=with_last_bn, **kwargs)


def head(loss='cosine', with_last_bn=False, **kwargs):
    """A head with a predictor."""
    predictor = dict(type='us3l_mm.Predictor', in_channels=4, out_channels=4,
                     hid_channels=8, num_layers=2, with_last_bn=with_last_bn,
                     **kwargs)
    return dict(type='us3l_mm.PredictionHead', predictor=predictor,
                loss=LOSSES[loss])


def bare_head(loss):
    """A head without one."""
    return dict(type='us3l_mm.PredictionHead', loss=LOSSES[loss])


SIMCLR = dict(neck=neck(), head=bare_head('info_nce'), distill_head=head())
BYOL = dict(neck=neck(), head=head(), distill_head=head())
SIMSIAM = dict(neck=neck(**LAST_NORM), head=head(with_last_bias=True),
               distill_head=head(with_last_bias=True))
MOCO_V3 = dict(neck=neck(**LAST_NORM), head=head('moco_v3', **LAST_NORM),
               distill_head=head('moco_v3', **LAST_NORM), teacher=dict(
                   momentum=0.01, final_momentum=0.0))
CURRENT = {
    'simclr_momentum':
    SIMCLR,
    'byol':
    BYOL,
    'simsiam':
    dict(SIMSIAM, base_from='online', distill_from='online'),
    'simsiam_momentum':
    SIMSIAM,
    'moco_v3':
    MOCO_V3,
    'byol, shared predictor':
    dict(BYOL, distill_head=bare_head('cosine'), share_predictor=True),
    'byol, mse, from online':
    dict(neck=neck(), head=head('mse'), distill_head=head('mse'),
         distill_from='online'),
    'simclr_momentum, no distillation':
    dict(neck=neck(), head=bare_head('info_nce'), distill_from=None),
    'byol, accumulate':
    dict(BYOL, update_mode='accumulate'),
    'byol, features':
    dict(
        BYOL, feature_distiller=dict(outputs=[0, 1], with_bias=True,
                                     loss_weight=0.5)),
    'simclr_momentum, momentum 0.1, temperature 0.2':
    dict(
        SIMCLR, teacher=dict(momentum=0.1, final_momentum=0.02), head=dict(
            type='us3l_mm.PredictionHead', loss=dict(
                type='us3l_mm.InfoNCELoss', temperature=0.2))), }


def algorithm_cfg(backbone=OLD.RESNET, **parts):
    # The numbers were rounded in the layout of then.
    return dict(type='us3l_mm.US3LAlgorithm', backbone=backbone,
                data_preprocessor=OLD.NORMALISE, channels_last=False, **parts)


def stored_backbone(path):
    """The config of the backbone in a file, with current arguments."""
    backbone = stored_model(load_weights(str(path)))['backbone']
    return renamed(backbone)


def renamed(arguments):
    return {
        'slicing' if name == 'slice' else name: value
        for name, value in arguments.items()}


def pretraining(name, folder):
    """The model, optimizer and regularisation of a pre-training.

    The backbone is that of the config in the file.
    """
    backbone = stored_backbone(folder / f'{name}.pt')
    parts = dict(resnet=SIMCLR, switchable=BYOL, vit=dict(
        MOCO_V3, neck=neck(16, **LAST_NORM)))[name]
    if name == 'vit':
        return (algorithm_cfg(backbone, **parts), OLD.ADAMW,
                dict(SGD_REG, lam=0.05, group_dims={2: 1}, decoupled=True))
    return algorithm_cfg(backbone, **parts), OLD.SGD, SGD_REG


def step(model, optimizer, hook, plans=1, checkpoint=None):
    """What ``make_old_files.step`` does, with the current code."""
    model = OLD.without_drop_path(model.double().train())
    wrapper = OPTIM_WRAPPERS.build(
        dict(
            type='us3l_mm.MultiPassOptimWrapper', optimizer=getattr(
                torch.optim, optimizer['type'])(model.parameters(), **{
                    k: v for k, v in optimizer.items() if k != 'type'})))
    if checkpoint is not None:
        model.load_state_dict(checkpoint['state_dict'], strict=True)
        wrapper.load_state_dict(checkpoint['optimizer'])
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0,
                             max_iters=4, train_dataloader=range(1))
    hook = HOOKS.build(hook)
    hook.before_train(runner)
    logs = []
    for runner.iter in range(1, 1 + plans):
        batch = OLD.batch()
        hook.before_train_iter(runner, 0, batch)
        batch['plan'] = Plan.sampled(OLD.WIDTHS, progress=runner.iter / 4)
        logs.append(OLD.numbers(model.train_step(batch, wrapper)))
    return dict(logs=logs, after=OLD.state(model, wrapper.optimizer))


@torch.no_grad()
def features(network, width=None):
    if width is None:
        return [OLD.summary(x) for x in network(OLD.normalised(1))]
    with at_width(network, float(width)):
        return [OLD.summary(x) for x in network(OLD.normalised(1))]


# --- the algorithm ----------------------------------------------------------


@pytest.mark.parametrize('name', EXPECTED['methods'])
def test_two_training_steps_of_every_method(name):
    expected = copy.deepcopy(EXPECTED['methods'][name])
    torch.manual_seed(0)
    model = MODELS.build(algorithm_cfg(**CURRENT[name]))
    model.init_weights()
    assert OLD.initial_weights(model) == pytest.approx(expected['initial'],
                                                       rel=1e-6)
    assert [
        parameter
        for parameter, _ in OLD.fill(model.double()).named_parameters()
        if not parameter.startswith(('backbone.', 'teacher.'))
    ] == expected['names']
    actual = step(model, OLD.SGD, SGD_REG, plans=2)
    check(actual['logs'][0], expected['logs'][0])
    for log in (actual['logs'][1], expected['logs'][1]):
        # Logged from norms of the iteration before, which changes no weight.
        log['loss'] -= log.pop('loss_reg')
    check(actual['logs'][1], expected['logs'][1])
    check(actual['after'], expected['after'])


@pytest.mark.parametrize('name', ['resnet', 'switchable', 'vit'])
def test_pretraining_goes_on_from_an_old_checkpoint(files, name):
    expected = EXPECTED[name]
    cfg, optimizer, hook = pretraining(name, files)
    checkpoint = load_weights(str(files / f'{name}.pt'))
    model = OLD.without_drop_path(MODELS.build(cfg).double().train())
    model.load_state_dict(dict(checkpoint['state_dict']), strict=True)
    with torch.no_grad():
        for owner, part in ((model, 'embeddings'), (model.teacher, 'teacher')):
            for width, z in expected[part].items():
                with at_width([owner.backbone, owner.neck], float(width)):
                    maps = owner.backbone(OLD.normalised(1))
                    check(OLD.summary(owner.neck(maps[-1:])[0]), z, part)
    check(step(MODELS.build(cfg), optimizer, hook, checkpoint=checkpoint),
          expected['step'])


def test_a_run_resumes_an_old_checkpoint_within_its_epoch(files, tmp_path):
    expected = EXPECTED['resnet']['resumed']
    cfg, optimizer, group_reg = pretraining('resnet', files)
    before = OLD.runs()['resnet']
    cfg = Config(
        dict(
            default_scope='mmpretrain', custom_imports=before.custom_imports,
            model=cfg, train_dataloader=before.train_dataloader,
            train_cfg=before.train_cfg, optim_wrapper=dict(
                type='us3l_mm.MultiPassOptimWrapper', optimizer=optimizer),
            param_scheduler=before.param_scheduler, default_hooks=dict(
                **before.default_hooks,
                preflight=dict(type='us3l_mm.PreflightHook'), sampler=dict(
                    type='us3l_mm.DynamicSamplerHook',
                    num_stages=2), group_reg=group_reg), randomness=dict(
                        seed=0), log_level='ERROR', work_dir=str(tmp_path),
            resume=True, load_from=str(files / 'resnet.pt')))
    runner, iterations = Runner.from_cfg(cfg), []
    runner.model.double()
    runner.register_hook(OLD.note(iterations))
    runner.train()
    assert [i['images'] for i in iterations] == [
        i['images'] for i in expected['iterations']]
    check(iterations, expected['iterations'])
    check(OLD.state(runner.model, runner.optim_wrapper.optimizer),
          expected['after'])


# --- networks ---------------------------------------------------------------


@pytest.mark.parametrize('name', FILES)
def test_every_width_has_the_same_features(files, name):
    network = load_backbone(str(files / f'{FILES[name]}.pt')).double()
    for width, expected in EXPECTED[name]['features'].items():
        check(features(network, width), expected, width)


@pytest.mark.parametrize('name', ['resnet', 'switchable', 'vit'])
def test_evaluation_loads_the_checkpoint_with_a_current_config(files, name):
    model, _, _ = pretraining(name, files)
    network = load_backbone(str(files / f'{FILES[name]}.pt'),
                            Config(dict(model=model)))
    for width, expected in EXPECTED[name]['features'].items():
        check(features(network.double(), width), expected, width)


@pytest.mark.parametrize('name', FILES)
def test_a_network_of_one_width_takes_over_the_full_one(files, name):
    path = files / f'{FILES[name]}.pt'
    backbone = stored_backbone(path)
    for width, expected in EXPECTED[name]['features'].items():
        network = MODELS.build(
            dict(
                backbone, width=float(width), init_cfg=dict(
                    type='Pretrained', checkpoint=str(path),
                    prefix='backbone.')))
        network.init_weights()
        check(features(network.double().eval()), expected, width)


@pytest.mark.parametrize('name', FILES)
def test_slicing_writes_the_same_weights(files, tmp_path, name):
    source, old = files / f'{FILES[name]}.pt', files / f'{name}-w050.pt'
    weights = load_weights(str(old))['state_dict']
    narrow = slice_network(load_backbone(str(source)), 0.5)
    assert {f'backbone.{k}' for k in narrow.state_dict()} == set(weights)
    out = tmp_path / 'w050.pth'
    TOOL.main([
        str(source),
        str(out), '--width', '0.5', '--input-size', '16', '--device', 'cpu'])
    content = load_weights(str(out))
    assert list(content['state_dict']) == list(weights)
    for key, value in weights.items():
        assert torch.equal(content['state_dict'][key], value), key
        assert torch.equal(narrow.state_dict()[key[len('backbone.'):]],
                           value), key
    before, now = (file['meta'] for file in (load_weights(str(old)), content))
    assert now['architecture'] == renamed(before['architecture'])
    for key in ('feature_channels', 'data_preprocessor'):
        assert now[key] == before[key], key


@pytest.mark.parametrize('name', FILES)
def test_an_old_slice_loads(files, name):
    backbone = stored_backbone(files / f'{FILES[name]}.pt')
    network = MODELS.build(
        dict(
            backbone, width=0.5, init_cfg=dict(
                type='Pretrained', prefix='backbone.',
                checkpoint=str(files / f'{name}-w050.pt'))))
    network.init_weights()
    check(features(network.double().eval()), EXPECTED[name]['features']['0.5'])


def test_switchable_norms_of_another_list_are_refused(files):
    backbone = dict(stored_backbone(files / 'switchable.pt'), norm_cfg=dict(
        type='SwitchableBN', widths=[1.0, 0.5]))
    network = MODELS.build(algorithm_cfg(backbone, **BYOL))
    with pytest.raises(ValueError, match=r'3 batch norms .* has 2, .*w0.50'):
        network.load_state_dict(
            load_weights(str(files / 'switchable.pt'))['state_dict'])


def test_classifiers_of_all_widths_have_the_same_scores(files):
    backbone = stored_backbone(files / 'resnet.pt')
    del backbone['drop_path_rate']
    network = MODELS.build(
        dict(
            type='us3l_mm.AllWidthsClassifier', backbone=backbone,
            neck=dict(type='GlobalAveragePooling'), head=dict(
                type='us3l_mm.SwitchableLinearHead', num_classes=10, widths=[
                    1.0, 0.5]))).double().eval()
    network.load_state_dict(
        load_weights(str(files / 'classifier.pt'))['state_dict'], strict=True)
    for width, expected in EXPECTED['classifier']['scores'].items():
        with torch.no_grad(), at_width(network, float(width)):
            check(OLD.summary(network(OLD.normalised(1))), expected, width)
