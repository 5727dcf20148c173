# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""``SlimCLR`` against its definition, MMPretrain, and itself."""
import os

import naive
import pytest
import torch
from algorithms import student_parameters
from mmpretrain.registry import MODELS as MMPRETRAIN
from naive_slimclr import METHODS, WEIGHTS, NaiveSlimCLR
from processes import run_processes
from saved_bytes import SavedBytes
from slimclr_networks import (HIDDEN, OUT, QUEUE, WIDTHS, model_cfg,
                              small_slimclr)

from us3l_mm.engine import (MultiPassDistributedDataParallel,
                            MultiPassOptimWrapper)
from us3l_mm.models import Plan, Subnet, at_width
from us3l_mm.registry import MODELS

SGD = dict(lr=0.05, momentum=0.9, weight_decay=1e-3)


def wrapper_of(algorithm, **kwargs):
    optimizer = torch.optim.SGD(
        student_parameters(algorithm).values(), **{
            **SGD,
            **kwargs})
    return MultiPassOptimWrapper(optimizer=optimizer)


def close(actual, expected, what, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance,
                               atol=tolerance,
                               msg=lambda text: f'{what}: {text}')


def check(method, plans, weights, **kwargs):
    """Whole iterations: losses, parameters, queue, momentum encoder."""
    algorithm = small_slimclr(method, **kwargs)
    trainer = NaiveSlimCLR(student_parameters(algorithm), method,
                           decay=SGD['weight_decay'], queue=getattr(
                               algorithm.head, 'queue',
                               None), beta=algorithm.distill_weight,
                           larger=algorithm.distill_from == 'larger')
    wrapper = wrapper_of(algorithm)
    for iteration, plan in enumerate(plans):
        data, views = naive.batch(iteration, images=4)
        widths = [pass_.subnet.width for pass_ in plan.passes]
        parts, total, _ = trainer.step(views, widths,
                                       weights if len(widths) > 1 else [1.0],
                                       first=iteration == 0)
        log = algorithm.train_step(dict(data, plan=plan), wrapper)
        assert float(log['loss']) == pytest.approx(total, abs=1e-9)
        for pass_, (contrast, distill) in zip(plan.passes, parts):
            share = algorithm.distill_weight if distill else 0.0
            assert float(log[f'loss_contrast_{pass_.name}']) == pytest.approx(
                (1 - share) * contrast, abs=1e-9)
            assert float(log.get(f'loss_distill_{pass_.name}',
                                 0)) == pytest.approx(share * distill,
                                                      abs=1e-9)
        for name, p in student_parameters(algorithm).items():
            close(p.data, trainer.params[name], name)
        if algorithm.teacher is not None:
            for name, p in algorithm.teacher.named_parameters():
                close(p.data, trainer.teacher[name], f'teacher.{name}')
        if method == 'moco_v2':
            close(algorithm.head.queue, trainer.queue, 'queue')
            assert int(algorithm.head.queue_ptr) == trainer.pointer
    return algorithm


@pytest.mark.parametrize('method', METHODS)
def test_two_iterations_equal_the_definition(method):
    plan = Plan.fixed(WIDTHS, weights='full plus all')
    check(method, [plan, plan], WEIGHTS['full plus all'])


@pytest.mark.parametrize('method', METHODS)
def test_so_do_those_around_the_end_of_slow_start(method):
    plans = [
        Plan.fixed([1.0]),
        Plan.fixed([1.0]),
        Plan.fixed(WIDTHS, weights='full plus all'),
        Plan.fixed(WIDTHS, weights='full plus all')]
    check(method, plans, WEIGHTS['full plus all'])


@pytest.mark.parametrize('name', WEIGHTS)
def test_the_weights_of_the_widths(name):
    plan = Plan.fixed(WIDTHS, weights=name)
    check('moco_v2', [plan], WEIGHTS[name])
    listed = Plan.fixed(WIDTHS, weights=[3, 2.5, 0.125])
    assert [pass_.weight for pass_ in listed.passes] == [3, 2.5, 0.125]


def test_the_weights_of_four_widths_are_those_of_the_paper():
    expected = {
        'equal': [1, 1, 1, 1],
        'share of widths': [.4, .3, .2, .1],
        'width': [1, .75, .5, .25],
        'width, mean 1': [1.6, 1.2, .8, .4],
        'full plus all': [2.5, 1, 1, 1],
        'narrower sum, mean 1': [1.538, 1.077, .769, .615],
        'full plus widest': [1.75, 1, 1, 1], }
    for name, weights in expected.items():
        plan = Plan.fixed([1.0, 0.75, 0.5, 0.25], weights=name)
        assert [p.weight
                for p in plan.passes] == pytest.approx(weights, abs=5e-4)


@pytest.mark.parametrize('kwargs', [
    dict(distill=False),
    dict(distill_weight=0.25),
    dict(distill_from='larger')], ids=str)
def test_without_distillation_and_from_all_larger_widths(kwargs):
    plan = Plan.fixed(WIDTHS)
    check('moco_v2', [plan, plan], [1, 1, 1], **kwargs)


@pytest.mark.parametrize('kwargs', [
    dict(kind='mse'),
    dict(kind='mse', on='embeddings'),
    dict(kind='kl', on='embeddings'),
    dict(kind='decoupled', temperature=1.0),
    dict(normalise=True, temperature=4.0),
    dict(temperature=0.2, teacher_temperature=0.05)], ids=str)
@pytest.mark.parametrize('method', METHODS)
def test_other_distillations_train_and_vanish_for_equal_networks(
        method, kwargs):
    distill = dict(type='us3l_mm.SimilarityDistillation', **kwargs)
    algorithm = small_slimclr(method, distill=distill)
    data, _ = naive.batch(0, images=4)
    log = algorithm.train_step(dict(data, plan=Plan.fixed(WIDTHS)),
                               wrapper_of(algorithm))
    assert float(log['loss_distill_w0.50']) > 0
    if 'teacher_temperature' in kwargs:
        return
    x = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    own = torch.arange(5)
    distill = MODELS.build(distill)
    loss = distill(x, distill.target(x), own)
    gradient, = torch.autograd.grad(loss, x)
    assert abs(float(loss)) < 1e-12 and gradient.abs().max() < 1e-12


def softmax(x):
    return x.exp() / x.exp().sum(1, keepdim=True)


def divergence(s, t):
    return (t * (t / s).log()).sum() / len(t)


def decoupled(s, t, own, b=0.5):
    """Own class against the rest, and the rest among themselves."""
    total = 0
    for p, q, i in zip(softmax(s), softmax(t), own):
        rest = [j for j in range(len(p)) if j != i]
        total = total + q[i] * (q[i] / p[i]).log() + (1 - q[i]) * (
            (1 - q[i]) / (1 - p[i])).log()
        p, q = p[rest] / (1 - p[i]), q[rest] / (1 - q[i])
        total = total + b * (q * (q / p).log()).sum()
    return total / len(s)


def doubled(x):
    mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    return 2 * (x - mean) / (var + 1e-5).sqrt()


FORMULAS = {
    'kl, two temperatures':
    (dict(temperature=0.2, teacher_temperature=0.05),
     lambda s, t, own: 0.04 * divergence(softmax(s / 0.2), softmax(t / 0.05))),
    'mse': (dict(kind='mse'), lambda s, t, own: ((s - t)**2).mean()),
    'decoupled': (dict(kind='decoupled', temperature=1.0), decoupled),
    'normalised': (dict(
        normalise=True, temperature=4.0), lambda s, t, own: 16 * divergence(
            softmax(doubled(s) / 4), softmax(doubled(t) / 4))), }


@pytest.mark.parametrize('name', FORMULAS)
def test_each_distillation_is_its_formula(name):
    kwargs, formula = FORMULAS[name]
    s, t = torch.randn(2, 5, 9, dtype=torch.float64)
    own = torch.tensor([3, 0, 8, 3, 1])
    distill = MODELS.build(
        dict(type='us3l_mm.SimilarityDistillation', **kwargs))
    loss = distill(s, distill.target(t), own)
    assert float(loss) == pytest.approx(float(formula(s, t, own)), rel=1e-9)


def plain_model(method):
    """MMPretrain's algorithm with the same layers."""
    backbone = dict(type='ResNet_CIFAR', depth=18, base_channels=32,
                    stem_channels=32, num_stages=2, strides=(1, 2),
                    dilations=(1, 1), out_indices=(1, ))
    neck = dict(type='NonLinearNeck', in_channels=64, hid_channels=HIDDEN,
                out_channels=OUT, num_layers=2, norm_cfg=dict(type='BN1d'))
    entropy = dict(type='CrossEntropyLoss')
    if method == 'moco_v2':
        return dict(
            type='MoCo', queue_len=QUEUE, feat_dim=OUT,
            momentum=0.01, backbone=backbone, neck=dict(
                type='MoCoV2Neck', in_channels=64,
                hid_channels=HIDDEN, out_channels=OUT), head=dict(
                    type='ContrastiveHead', loss=entropy, temperature=0.2))
    if method == 'simclr':
        return dict(
            type='SimCLR', backbone=backbone, neck=dict(neck, with_bias=True),
            head=dict(type='ContrastiveHead', loss=entropy, temperature=0.1))
    predictor = dict(neck, in_channels=OUT, with_avg_pool=False,
                     with_last_bn=False)
    return dict(
        type='MoCoV3', backbone=backbone,
        neck=dict(neck, with_last_bn_affine=False), head=dict(
            type='MoCoV3Head', predictor=predictor, temperature=1.0, loss=dict(
                entropy, loss_weight=2.0)))


@pytest.mark.parametrize('method', METHODS)
def test_at_one_width_it_is_the_algorithm_of_mmpretrain(method):
    algorithm = small_slimclr(method, widths=[1.0])
    plain = MMPRETRAIN.build(plain_model(method)).double().train()
    rename = {'neck.fc0': 'neck.mlp.0', 'neck.fc1': 'neck.mlp.2'}
    state = {}
    for name, value in algorithm.state_dict().items():
        owner, _, leaf = name.rpartition('.')
        if method == 'moco_v2':
            owner = rename.get(owner, owner)
        state[f'{owner}.{leaf}'] = value
    if method == 'moco_v2':
        state['queue'] = algorithm.head.queue.T.clone()
        state['queue_ptr'] = torch.zeros(1, dtype=torch.long)
    missing, _ = plain.load_state_dict(state, strict=False)
    assert all('encoder' in name for name in missing), missing
    if method == 'moco_v2':
        plain.encoder_k.module.load_state_dict(
            torch.nn.Sequential(plain.backbone, plain.neck).state_dict())
    elif method == 'moco_v3':
        plain.momentum_encoder.module.load_state_dict(
            torch.nn.Sequential(plain.backbone, plain.neck).state_dict())
        # It asks the current run how much of it is over.
        plain.momentum_encoder.avg_func = lambda *args: None
    data, views = naive.batch(0, images=4)
    log = algorithm.train_step(dict(data, plan=Plan.fixed([1.0])),
                               wrapper_of(algorithm, lr=0.0))
    theirs = plain.loss([view.clone() for view in views], [])
    assert float(log['loss']) == pytest.approx(float(sum(theirs.values())),
                                               abs=1e-9)


def test_private_parameters_rest_during_slow_start():
    """Weight decay and momentum do not move them either."""
    algorithm = small_slimclr('moco_v3')
    wrapper = wrapper_of(algorithm, weight_decay=0.1)
    data, _ = naive.batch(0, images=4)
    before = {k: v.clone() for k, v in algorithm.state_dict().items()}
    for _ in range(2):
        algorithm.train_step(dict(data, plan=Plan.fixed([1.0])), wrapper)
    names = [k for k in before if '.w0' in k]
    assert names and not any('teacher' in name for name in names)
    for name, value in algorithm.state_dict().items():
        if name in student_parameters(algorithm) or name in names:
            assert torch.equal(value, before[name]) == (name in names), name
    algorithm.train_step(dict(data, plan=Plan.fixed(WIDTHS)), wrapper)
    for name in names:
        if name in student_parameters(algorithm):
            assert not torch.equal(algorithm.state_dict()[name], before[name])


def test_sub_networks_leave_the_weights_that_they_do_not_have_alone():
    algorithm = small_slimclr('moco_v2')
    data, _ = naive.batch(0, images=4)
    outside, gradients = {}, {}
    for widths in ([1.0], WIDTHS):
        twin = small_slimclr('moco_v2')
        wrapper = MultiPassOptimWrapper(
            optimizer=torch.optim.SGD(twin.parameters(), lr=1.0))
        twin.train_step(dict(data, plan=Plan.fixed(widths)), wrapper)
        weight, old = (net.backbone.layer2[1].conv1.weight
                       for net in (twin, algorithm))
        gradients[len(widths)] = old - weight
        outside[len(widths)] = (old - weight)[32:, :]
    close(outside[1], outside[3], 'rows of the full width alone', 1e-12)
    assert not torch.allclose(gradients[1][:32, :32], gradients[3][:32, :32])


def test_a_step_needs_the_memory_of_moco_at_full_width():
    data, views = naive.batch(0, images=4)
    algorithm, plain = small_slimclr('moco_v2'), MMPRETRAIN.build(
        plain_model('moco_v2')).double()
    wrapper, peaks = wrapper_of(algorithm), []
    steps = (lambda: algorithm.train_step(dict(data, plan=Plan.fixed(
        WIDTHS)), wrapper), lambda: plain.loss(views, [])['loss'].backward())
    for model, step in zip((algorithm, plain), steps):
        counter = SavedBytes(model)
        with torch.autograd.graph.saved_tensors_hooks(
                counter.pack, lambda holder: holder.tensor):
            step()
        assert counter.alive == 0
        peaks.append(counter.peak)
    assert views[0].nbytes < peaks[0] <= 1.1 * peaks[1]


def test_a_full_network_is_a_plain_one():
    algorithm = small_slimclr('moco_v3')
    plain = MMPRETRAIN.build(plain_model('moco_v3')).double()
    for part in ('backbone', 'neck'):
        state = getattr(algorithm.teacher, part).state_dict()
        getattr(plain, part).load_state_dict(state, strict=True)
    state = {
        name: value for name, value in algorithm.backbone.state_dict().items()
        if '.w0' not in name}
    plain.backbone.load_state_dict(state, strict=True)


def test_gradients_of_both_parts_are_logged_on_demand():
    algorithm = small_slimclr('moco_v2')
    data, views = naive.batch(0, images=4)
    plan = Plan(Plan.fixed(WIDTHS).passes, diagnose=True)
    log = algorithm.train_step(dict(data, plan=plan), wrapper_of(algorithm))
    twin = small_slimclr('moco_v2')
    with torch.no_grad():
        keys = [twin.neck(twin.backbone(views[1]))[0]]
        full = twin.head.similarities(twin.queries(views), keys)[0][0]
    with at_width(twin, 0.5):
        query, = twin.queries(views)
        query = query.detach().requires_grad_()
        (cosines, own), = twin.head.similarities([query], keys)
    for name, loss in (('contrast', twin.head.loss([
        (cosines, own)])), ('distill',
                            twin.distill(cosines, twin.distill.target(full),
                                         own))):
        gradient, = torch.autograd.grad(0.5 * loss, query, retain_graph=True)
        assert float(log[f'grad_{name}_w0.50']) == pytest.approx(
            float(gradient.norm()), rel=1e-9), name
    assert 'grad_distill_w1.00' not in log


# Several processes -----------------------------------------------------------

CASES = {
    'moco_v2': dict(key_norms='as the queries'),
    'moco_v2, shuffled': dict(key_norms='shuffled'),
    'moco_v3': {},
    'simclr': {}, }


def train(case, rank=0, world_size=1, batches=2):
    method, _, _ = case.partition(',')
    algorithm = small_slimclr(method, sync_norms=world_size > 1, **CASES[case])
    model = algorithm
    if world_size > 1:
        model = MultiPassDistributedDataParallel(algorithm)
    wrapper = wrapper_of(algorithm)
    algorithm.views = lambda data: data['inputs']
    plans = [Plan.fixed([1.0]), Plan.fixed(WIDTHS, weights='full plus all')]
    for iteration in range(batches):
        _, views = naive.batch(iteration, images=4)
        views = [view.chunk(world_size)[rank] for view in views]
        model.train_step(dict(inputs=views, plan=plans[iteration]), wrapper)
    return algorithm.state_dict()


def worker(rank, folder, world_size, cases):
    for case in cases:
        torch.manual_seed(rank)
        torch.save(train(case, rank, world_size),
                   os.path.join(folder, f'{case}-{rank}.pth'))


@pytest.mark.ddp
@pytest.mark.parametrize('world_size, cases', [(2, [*CASES]),
                                               (4, ['moco_v2'])])
def test_several_processes_equal_one(tmp_path, world_size, cases):
    run_processes(worker, world_size, tmp_path, world_size, cases)
    for case in cases:
        expected = train(case)
        states = [
            torch.load(tmp_path / f'{case}-{rank}.pth')
            for rank in range(world_size)]
        for name, value in expected.items():
            if case.endswith('shuffled') and 'teacher' in name and (
                    'running' in name or 'tracked' in name):
                continue
            close(states[0][name], value, f'{case}: {name}')
            assert all(
                torch.equal(states[0][name], state[name]) for state in states)


# Mistakes --------------------------------------------------------------------


@pytest.mark.parametrize('changes, message', [
    (dict(distill_from='teacher'), "distill_from is one of .*'teacher'"),
    (dict(distill_weight=1.5), r'in \[0, 1\], got 1.5'),
    (dict(key_norms='mine'), 'key_norms is one of .*mine'),
    (dict(widths=[1.0, 0.3]), r'At w0.30 a layer of 32 channels would have '
     '9.6 and is rounded to 16'),
    (dict(distill=dict(type='us3l_mm.SimilarityDistillation', kind='both')),
     "kind of SimilarityDistillation is one of .*'both'"),
    (dict(distill=dict(type='us3l_mm.SimilarityDistillation', kind='decoupled',
                       on='embeddings')), "on='logits'"),
    (dict(distill=dict(type='us3l_mm.SimilarityDistillation', temperature=0)),
     'is above 0, got 0'), ], ids=str)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(model_cfg('moco_v2', **changes))


def test_a_method_without_keys_has_no_teacher():
    with pytest.raises(ValueError, match='no momentum encoder'):
        MODELS.build(model_cfg('simclr', teacher=dict(momentum=0.1)))


def test_weights_that_do_not_fit_are_refused():
    for weights, message in (([1, 2], 'number of at least 0 for each of the 3'
                              r".*\['w1.00', 'w0.50', 'w0.25'\].*\[1, 2\]"), ([
                                  1, float('nan'), 1], 'at least 0'),
                             ('five', "one of .*'full plus all'.*'five'")):
        with pytest.raises(ValueError, match=message):
            Plan.fixed(WIDTHS, weights=weights)


def test_a_queue_that_batches_do_not_divide_is_refused():
    algorithm = small_slimclr('moco_v2')
    algorithm.check_batch(4)
    with pytest.raises(
            ValueError, match='queue of 20 keys is not a multiple '
            'of the 8 images.*such as 16'):
        algorithm.check_batch(8)
    assert Subnet(0.5) in algorithm.backbone.bn1.subnets
