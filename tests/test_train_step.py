# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""``train_step`` against US3L written out by hand, in float64."""
import math

import naive
import pytest
import torch
from algorithms import RESNET, small_algorithm, student_parameters, train_step

from us3l_mm.engine import MultiPassOptimWrapper
from us3l_mm.models import Pass, Plan, Subnet

BASE_METHODS = sorted(naive.METHODS)
WIDTHS = [[1.0, 0.6, 0.25], [1.0, 0.83, 0.5, 0.4]]


class RecordingSGD(torch.optim.SGD):
    """Remembers the gradients of every step."""

    def __init__(self, named, **kwargs):
        super().__init__(list(named.values()), **kwargs)
        self.named, self.steps = named, []

    def step(self, closure=None):
        self.steps.append({
            name: p.grad.clone() for name, p in self.named.items()
            if p.grad is not None})
        return super().step(closure)


def both(base_method, share_head=False, distill_from='default',
         update_mode='sequential', features=None, keep=0.9, **losses):
    """The package's algorithm with its optimizer, and the naive trainer."""
    algorithm = small_algorithm(
        base_method, teacher=dict(momentum=1 - keep),
        share_predictor=share_head, distill_from=distill_from,
        update_mode=update_mode, feature_distiller=dict(
            outputs=features) if features else None, **losses)
    if base_method == 'moco_v3':  # half a cosine to 1

        def keep(progress, start=keep):
            return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2

    named = student_parameters(algorithm)
    trainer = naive.NaiveTrainer(named, base_method, share_head=share_head,
                                 distill_from=distill_from,
                                 update_mode=update_mode, features=features,
                                 keep=keep, lr=0.05, **losses)
    return algorithm, RecordingSGD(named, lr=0.05, momentum=0.9), trainer


def close(actual, expected, what):
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7,
                               msg=lambda text: f'{what}: {text}')


def check_log(log, passes):
    """The logged losses are those of the passes, and add up."""
    parts = {
        name: float(v) for name, v in log.items() if name.startswith('loss_')}
    assert float(log['loss']) == pytest.approx(sum(parts.values()), abs=1e-9)
    names = ['max', *(f'rand{i}' for i in range(len(passes) - 2)), 'min']
    if len(passes) == 3:
        names[1] = 'rand'
    if len(passes) == 1:
        names = ['max']
    expected = {}
    for name, (width, losses, _) in zip(names, passes):
        assert log[f'width_{name}'] == width
        for kind, value in losses.items():
            key = f'loss_{kind}' if name == 'max' or kind == 'reg' else (
                f'loss_{kind}_{name}')
            expected[key] = expected.get(key, 0) + value
    assert parts == pytest.approx(expected, abs=1e-8)


def check_iterations(algorithm, optimizer, trainer, plans=WIDTHS,
                     still=frozenset()):
    """Two whole iterations: losses, gradients, parameters, teacher.

    Parameters named in ``still`` have gradients that are zero by right.
    """
    initial = dict(trainer.params)
    wrapper = MultiPassOptimWrapper(optimizer=optimizer)
    for seed, widths in enumerate(plans):
        data, views = naive.batch(seed)
        progress = seed / len(plans)
        passes = trainer.step(views, widths, progress)
        optimizer.steps.clear()
        log = train_step(algorithm, data, wrapper, widths, progress=progress)
        check_log(log, passes)
        grads = [p[-1] for p in passes]
        if trainer.accumulates:
            grads = [{
                k: sum(g[k] for g in grads if k in g)
                for k in set().union(*grads)}]
        assert len(optimizer.steps) == len(grads)
        for step, expected in zip(optimizer.steps, grads):
            assert step.keys() == expected.keys()
            for name, value in expected.items():
                close(step[name], value, f'gradient of {name}')
        assert all(p.grad is None for p in optimizer.named.values())
        for name, value in trainer.params.items():
            close(optimizer.named[name].data, value, name)
        if algorithm.teacher is not None:
            for name, value in trainer.teacher.items():
                close(
                    algorithm.teacher.get_parameter(name).data, value,
                    f'teacher.{name}')
    moved = {
        k for k, v in initial.items()
        if (trainer.params[k] - v).abs().max() > 1e-4}
    assert moved == set(trainer.buffers) - still and len(moved) > 40


# All pairs of values; BYOL in all four combinations.
@pytest.mark.parametrize('base_method, share_head, update_mode', [
    (method, share, mode) for method in BASE_METHODS
    for share, mode in ((False, 'sequential'), (True, 'accumulate'),
                        (True, 'sequential'), (False, 'accumulate'))
    if method == 'byol' or share == (mode == 'accumulate')])
def test_two_iterations_equal_the_definition(base_method, share_head,
                                             update_mode):
    check_iterations(
        *both(base_method, share_head=share_head, update_mode=update_mode))


@pytest.mark.parametrize('options', [
    dict(base_method='byol', base_loss='mse', distill_loss='mse'),
    dict(base_method='byol', base_loss='info_nce', distill_loss='info_nce',
         update_mode='accumulate'),
    dict(base_method='simsiam_momentum', base_loss='mse',
         distill_loss='info_nce'),
    dict(base_method='simclr_momentum', base_loss='cosine', distill_loss='mse',
         share_head=True), ], ids=str)
def test_any_loss_can_be_base_and_distillation_loss(options):
    check_iterations(*both(**options))


def test_a_predictor_can_be_added_and_left_out():
    for base_method, predicts in (('simclr_momentum', True), ('byol', False)):
        algorithm, optimizer, trainer = both(base_method)
        algorithm = small_algorithm(base_method, teacher=dict(momentum=0.1),
                                    predicts=predicts)
        named = student_parameters(algorithm)
        optimizer = RecordingSGD(named, lr=0.05, momentum=0.9)
        trainer.params = {k: v.detach().clone() for k, v in named.items()}
        trainer.predicts = not trainer.predicts
        check_iterations(algorithm, optimizer, trainer)


@pytest.mark.parametrize('options', [
    dict(base_method='byol', distill_from='online'),
    dict(base_method='byol', distill_from=None, update_mode='accumulate'),
    dict(base_method='simclr_momentum', distill_from=None),
    dict(base_method='simsiam', distill_from='teacher'),
    dict(base_method='simsiam', distill_from=None, update_mode='accumulate'),
], ids=str)
def test_other_sources_of_targets(options):
    algorithm, optimizer, trainer = both(**options)
    if options['distill_from'] is None:  # every width has its own targets
        trainer.share_head = True
        assert algorithm.distill_head is None
    check_iterations(algorithm, optimizer, trainer)


@pytest.mark.parametrize('options', [
    dict(base_method='simclr_momentum', features=(0, 1, 2)),
    dict(base_method='byol', features=(0, 2), update_mode='accumulate'),
    dict(base_method='byol', features=(2, ), distill_from='online'), ],
                         ids=str)
def test_feature_distillation(options):
    check_iterations(*both(**options))


@pytest.mark.parametrize('keep', [0.99, 0.5])
def test_the_teacher_keeps_what_it_should(keep):
    check_iterations(*both('byol', keep=keep))


@pytest.mark.parametrize('widths', [[0.5], [0.75, 0.4]], ids=str)
def test_networks_that_never_run_at_full_width(widths):
    """One trained on its own; the widest has a teacher of its width."""
    algorithm, _, trainer = both('byol')
    algorithm = small_algorithm(
        'byol', backbone=dict(RESNET, width_range=(0.25, 0.75)),
        teacher=dict(momentum=0.1))
    named = student_parameters(algorithm)
    check_iterations(algorithm, RecordingSGD(named, lr=0.05, momentum=0.9),
                     trainer, plans=[widths, widths])


@pytest.mark.parametrize('base_method', ['byol', 'moco_v3', 'simsiam'])
def test_batches_add_up_to_one_update(base_method):
    """Five batches in twos: the last update has one batch alone."""
    algorithm, optimizer, trainer = both(base_method, update_mode='accumulate')
    wrapper = MultiPassOptimWrapper(optimizer=optimizer, accumulative_counts=2)
    wrapper.initialize_count_status(torch.nn.Identity(), 0, 5)
    widths = [1.0, 0.6, 0.25]
    for update in ((0, 1), (2, 3), (4, )):
        data, views = zip(*map(naive.batch, update))
        found = trainer.update(views, widths, update[0] / 5)
        for one, passes in zip(data, found):
            check_log(
                train_step(algorithm, one, wrapper, widths,
                           progress=update[0] / 5), passes)
    assert len(optimizer.steps) == 3
    for name, value in trainer.params.items():
        close(optimizer.named[name].data, value, name)
    for name, value in trainer.teacher.items() if algorithm.teacher else ():
        close(algorithm.teacher.get_parameter(name).data, value, name)


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
def test_the_weight_of_a_pass_multiplies_its_losses(update_mode):
    """The logged parts are those without weights."""
    logs, steps = [], []
    for weights in ((1.0, 1.0, 1.0), (2.0, 0.5, 0.0)):
        algorithm, optimizer, _ = both('byol', update_mode=update_mode)
        optimizer.param_groups[0]['lr'] = 0.0
        passes = [
            Pass(Subnet(width), name, role, weight)
            for width, name, role, weight in zip((1.0, 0.6, 0.25), (
                'max', 'rand', 'min'), ('base', 'distil', 'distil'), weights)]
        logs.append(
            algorithm.train_step(
                dict(naive.batch()[0], plan=Plan(tuple(passes))),
                MultiPassOptimWrapper(optimizer=optimizer)))
        steps.append(optimizer.steps)
    plain, weighted = logs
    parts = ('loss_base', 'loss_distill_rand', 'loss_distill_min')
    for name in parts:
        close(weighted[name], plain[name], name)
    close(weighted['loss'], 2 * plain[parts[0]] + plain[parts[1]] / 2,
          'the total')
    if update_mode == 'sequential':
        for one, other, weight in zip(*steps, weights):
            for name, value in one.items():
                close(other[name], weight * value, name)
    else:  # the heads tell the passes apart
        (one, ), (other, ) = steps
        for name, value in one.items():
            if name.startswith('head.'):
                close(other[name], 2 * value, name)


def test_one_pass_that_is_listed_twice_is_run_twice():
    """An update per batch waits for the second one."""
    algorithm, optimizer, _ = both('byol', update_mode='accumulate')
    full = Pass(Subnet(1.0), 'max')
    narrow = Pass(Subnet(0.5), 'w0.50', 'distil')
    log = algorithm.train_step(
        dict(naive.batch()[0], plan=Plan((full, narrow, narrow))),
        MultiPassOptimWrapper(optimizer=optimizer))
    assert len(optimizer.steps) == 1
    once = both('byol', update_mode='accumulate')
    single = once[0].train_step(
        dict(naive.batch()[0], plan=Plan((full, narrow))),
        MultiPassOptimWrapper(optimizer=once[1]))
    close(log['loss_distill_w0.50'], 2 * single['loss_distill_w0.50'], 'loss')
    for name, value in once[1].steps[0].items():
        if name.startswith('distill_head'):
            close(optimizer.steps[0][name], 2 * value, name)
