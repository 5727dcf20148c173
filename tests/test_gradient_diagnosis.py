# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Gradients of the widths of a step, against autograd and stock networks."""
import json
import os

import pytest
import torch
from algorithms import model_cfg, randomise, sgd
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.models import ResNet_CIFAR
from processes import run_processes
from slimclr_networks import small_slimclr
from small_run import small_cfg
from test_toy_algorithm import MODEL as TOY

from us3l_mm.engine import (GradientDiagnosisHook,
                            MultiPassDistributedDataParallel)
from us3l_mm.engine.hooks.gradient_diagnosis_hook import Entries, _Step
from us3l_mm.models import Plan, SlimmableViT, at
from us3l_mm.models.selfsup import Batch
from us3l_mm.registry import MODELS

WIDTHS = [1.0, 0.75, 0.5]
RESNET = dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=18, base_channels=32,
              stem_channels=32)
SWITCHABLE = dict(RESNET, norm_cfg=dict(type='SwitchableBN', subnets=WIDTHS))
PLANS = dict(sampled=Plan.sampled, fixed=Plan.fixed)


def us3l(update_mode, backbone=RESNET):
    algorithm = MODELS.build(
        model_cfg('byol', backbone, hid=16, out=8, predictor_hid=8,
                  distill_hid=8, update_mode=update_mode))
    algorithm = randomise(algorithm.double().train())
    algorithm.views = lambda data: data['views']
    return algorithm


def views(images=6):
    generator = torch.Generator().manual_seed(3)
    return [
        torch.rand(images, 3, 8, 8, generator=generator, dtype=torch.float64)
        for _ in range(2)]


def measure(algorithm, plan, model=None, **data):
    wrapper = sgd(algorithm, lr=0.2)
    step = _Step(algorithm, plan, wrapper, Entries(algorithm))
    (model or algorithm).train_step(dict(views=views(), plan=plan, **data),
                                    wrapper)
    return step.finish()


def gradients_of_passes(algorithm, plan, inputs):
    """Of each pass by name; None for a parameter that it does not use."""
    named = dict(algorithm.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), 0.2, 0.9)
    batch, found = Batch(inputs, plan), {}
    algorithm.begin(batch)
    for pass_ in plan.passes:
        with at(algorithm, pass_.subnet):
            output = algorithm(batch, mode='loss', pass_=pass_)
        batch.carried.update(output.get('carried', {}))
        total = pass_.weight * sum(output['losses'].values())
        grads = torch.autograd.grad(total, trained.values(), allow_unused=True)
        found[pass_.name] = dict(zip(trained, grads))
        if algorithm.update_mode == 'sequential':
            for p, grad in zip(trained.values(), grads):
                p.grad = grad
            optimizer.step()
    return found


def regions(names, width):
    """What a width uses of each parameter: the leading entries of a stock
    network with its channels, and of the linear layers of the heads."""
    stock = dict(
        ResNet_CIFAR(18, base_channels=int(32 * width),
                     stem_channels=int(32 * width)).named_parameters())
    slimclr = 'backbone.layer3.0.conv1.weight' not in names
    found = {}
    for name in names:
        shape = (..., )
        if name.startswith('backbone.') and name[9:] in stock:
            shape = tuple(slice(s) for s in stock[name[9:]].shape)
        elif slimclr:  # hidden layers narrow, of 64 channels as the features
            c = slice(int(64 * width))
            shape = (c, c) if name == 'neck.fc0.weight' else {
                'fc0.weight': (c, ),
                'fc0.bias': (c, ),
                'fc1.weight':
                (slice(None), c)}.get('.'.join(name.split('.')[-2:]), shape)
        elif name == 'neck.fc0.weight':
            shape = (slice(None), slice(int(256 * width)))
        found[name] = shape
    return found


def expected(found, widths=WIDTHS):
    """The figures of the hook, from all gradients of all passes."""
    passes = list(found)
    common = [
        name for name in found[passes[0]]
        if all(found[pass_][name] is not None for pass_ in passes)]
    smallest = regions(common, widths[-1])

    def flat(pass_, names, region):
        return torch.cat([
            found[pass_][name][region[name]].flatten() for name in names])

    norms = {pass_: flat(pass_, common, smallest).norm() for pass_ in passes}
    rows = {}
    for pass_, width in zip(passes, widths):
        rows[pass_] = dict(norm=norms[pass_],
                           share=norms[pass_] / sum(norms.values()))
        if pass_ != passes[0]:
            both = [
                name for name in found[pass_] if found[pass_][name] is not None
                and found[passes[0]][name] is not None]
            own = [
                flat(p, both, regions(both, width))
                for p in (passes[0], pass_)]
            rows[pass_]['cosine'] = torch.cosine_similarity(*own, dim=0)
    return rows


def check(actual, wanted):
    assert list(actual) == list(wanted)
    for name, row in wanted.items():
        assert actual[name] == pytest.approx(
            {
                key: float(value) for key, value in row.items()}, rel=1e-9)


# All pairs of values.
@pytest.mark.parametrize('kind, norms, update_mode',
                         [('sampled', 'shared', 'sequential'),
                          ('sampled', 'private', 'accumulate'),
                          ('fixed', 'shared', 'accumulate'),
                          ('fixed', 'private', 'sequential')])
def test_figures_are_those_of_autograd(kind, norms, update_mode):
    backbone = RESNET if norms == 'shared' else SWITCHABLE
    plan = PLANS[kind](WIDTHS)
    found = gradients_of_passes(us3l(update_mode, backbone), plan, views())
    actual = measure(us3l(update_mode, backbone), plan)
    check(actual, expected(found))
    assert sum(row['share'] for row in actual.values()) == pytest.approx(1)
    assert all(-1 < row['cosine'] < 0.999 for row in list(actual.values())[1:])
    # US3L's heads are those of one kind of pass, and so are private norms.
    first, *_, last = found.values()
    assert first['head.predictor.fc0.weight'] is not None
    assert last['head.predictor.fc0.weight'] is None
    private = 'backbone.bn1.w0500000.weight'
    assert (private in first) == (backbone is SWITCHABLE)


def test_figures_of_a_toy_method_with_weights_of_passes():
    """What another method puts in; a weight scales the gradient."""

    def build():
        algorithm = randomise(
            MODELS.build(dict(TOY, update_mode='accumulate')).double())
        algorithm.views = lambda data: data['views']
        return algorithm.train()

    plan = Plan.fixed([1.0, 0.5])
    heavy = Plan((plan.passes[0],
                  type(plan.passes[1])(**{
                      **vars(plan.passes[1]), 'weight': 3.0})))
    algorithm = build()
    queue = algorithm.queue = torch.nn.functional.normalize(algorithm.queue)
    light = measure(algorithm, plan)
    algorithm = build()
    algorithm.queue = queue
    actual = measure(algorithm, heavy)
    assert actual['w0.50']['norm'] == pytest.approx(3 * light['w0.50']['norm'])
    assert actual['w0.50']['cosine'] == pytest.approx(light['w0.50']['cosine'])
    assert actual['w1.00']['norm'] == pytest.approx(light['w1.00']['norm'])


@pytest.mark.parametrize('method', ['moco_v2', 'moco_v3', 'simclr'])
def test_figures_of_slimclr_are_those_of_autograd(method):
    """With private norms, and heads whose hidden layers narrow."""
    widths = [1.0, 0.5, 0.25]
    plan, found = Plan.fixed(widths), {}

    def build():
        algorithm = small_slimclr(method)
        algorithm.views = lambda data: data['views']
        return algorithm

    inputs = [v[:4] for v in views()]  # the queue is a multiple of four
    found = gradients_of_passes(build(), plan, inputs)
    algorithm = build()
    algorithm.views = lambda data: inputs
    check(measure(algorithm, plan), expected(found, widths))


def test_the_loss_scale_is_taken_out():
    """Norms are those without mixed precision; the scale is on a step."""
    plain = measure(us3l('accumulate'), Plan.fixed(WIDTHS))
    algorithm = us3l('accumulate')
    wrapper, plan = sgd(algorithm), Plan.fixed(WIDTHS)
    wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    backward = wrapper.backward
    wrapper.backward = lambda loss: backward(wrapper.loss_scaler.scale(loss))
    step = _Step(algorithm, plan, wrapper, Entries(algorithm))
    algorithm.train_step(dict(views=views(), plan=plan), wrapper)
    for name, row in step.finish().items():
        assert row == pytest.approx(plain[name], rel=1e-9)


def test_entries_of_an_attention_are_those_of_its_blocks():
    vit = SlimmableViT('tiny', img_size=32, patch_size=16, slicing='embed')
    entries = Entries(torch.nn.ModuleDict(dict(net=vit)))
    name = 'net.layers.0.attn.qkv.weight'
    value = torch.arange(576.).unsqueeze(1).expand(576, 192)
    kept = entries.cut(name, value, Plan.fixed([1 / 3]).base.subnet)
    rows = [*range(64), *range(192, 256), *range(384, 448)]
    assert kept.shape == (192, 64) and kept[:, 0].tolist() == rows
    tokens = entries.cut('net.pos_embed', vit.pos_embed,
                         Plan.fixed([1 / 3]).base.subnet)
    assert tokens.shape == (1, 5, 64)


# In a run --------------------------------------------------------------------


def run(folder, **changes):
    cfg = small_cfg(folder, **{'train_cfg.max_epochs': 3, **changes})
    runner = Runner.from_cfg(Config(dict(cfg)))
    runner.train()
    scalars, = folder.glob('*/vis_data/scalars.json')
    return runner, [json.loads(x) for x in scalars.read_text().splitlines()]


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
def test_training_is_the_same_with_and_without(tmp_path, update_mode):
    options = {'model.update_mode': update_mode}
    plain, _ = run(tmp_path / 'plain', **options)
    hooked, lines = run(
        tmp_path / 'hooked', **options, **{
            'default_hooks.diagnosis.type': 'us3l_mm.GradientDiagnosisHook',
            'default_hooks.diagnosis.interval': 2})
    for name, value in plain.model.state_dict().items():
        assert torch.equal(hooked.model.state_dict()[name], value), name
    assert not any(p._backward_hooks for p in hooked.model.parameters())
    found = [line for line in lines if 'gradient/norm_max' in line]
    # Three iterations an epoch; the full width alone in the first two.
    assert [line['step'] for line in found] == [4, 6, 8]
    for line in found:
        assert set(line) == {'step'} | {
            f'gradient/{what}_{name}' for name in ('max', 'rand', 'min')
            for what in ('norm', 'share', 'cosine')} - {'gradient/cosine_max'}
        assert all(value == value for value in line.values())  # no NaN
    history = hooked.message_hub.get_scalar('gradient/cosine_min')
    assert history.current() == found[-1]['gradient/cosine_min']


def test_other_wrappers_are_refused():
    hook = GradientDiagnosisHook()
    runner = type('', (), {})()
    parameter = torch.nn.Parameter(torch.ones(1))
    runner.optim_wrapper = OptimWrapper(torch.optim.SGD([parameter], 0.1))
    with pytest.raises(
            TypeError, match='OptimWrapper does not count them. '
            'Set optim_wrapper.type'):
        hook.before_train(runner)


@pytest.mark.parametrize('interval', [0, -1, 1.5, '10'])
def test_intervals_that_are_none_are_refused(interval):
    with pytest.raises(ValueError, match=f'at least 1, got {interval!r}'):
        GradientDiagnosisHook(interval)


def worker(rank, folder):
    algorithm = us3l('accumulate')
    model = MultiPassDistributedDataParallel(algorithm)
    algorithm.views = lambda data: [v.chunk(2)[rank] for v in data['views']]
    rows = measure(algorithm, Plan.fixed(WIDTHS), model)
    torch.save(rows, os.path.join(folder, f'{rank}.pth'))


@pytest.mark.ddp
def test_a_process_measures_its_own_gradients(tmp_path):
    run_processes(worker, 2, tmp_path)
    for rank in range(2):
        own = [v.chunk(2)[rank] for v in views()]
        found = gradients_of_passes(us3l('accumulate'), Plan.fixed(WIDTHS),
                                    own)
        check(torch.load(tmp_path / f'{rank}.pth'), expected(found))
