# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""``train_step`` against US3L written out by hand, in float64."""
import math

import naive
import pytest
import torch
from mmengine.optim import OptimWrapper

from us3l_mm.models import Plan

BASE_METHODS = sorted(naive.METHODS)
WIDTHS = [[1.0, 0.6, 0.25], [1.0, 0.83, 0.5, 0.4]]


class RecordingSGD(torch.optim.SGD):
    """Remembers the gradients of every step."""

    def __init__(self, named, **kwargs):
        super().__init__(list(named.values()), **kwargs)
        self.named, self.steps = named, []

    def step(self, closure=None):
        self.steps.append({
            name: p.grad.clone()
            for name, p in self.named.items() if p.grad is not None
        })
        return super().step(closure)


def both(base_method, share_head=False, distill_from='default',
         update_mode='sequential', features=None, keep=0.9, **losses):
    """The package's algorithm with its optimizer, and the naive trainer."""
    kwargs = dict(losses, share_head=share_head, update_mode=update_mode)
    if distill_from != 'default':
        kwargs['distill_from'] = distill_from
    algorithm = naive.small_algorithm(
        base_method, teacher_momentum=1 - keep,
        feature_distill=dict(outputs=features) if features else None, **kwargs)
    if base_method == 'moco_v3':  # half a cosine to 1

        def keep(progress, start=keep):
            return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2

    named = naive.student_parameters(algorithm)
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
        name: float(v)
        for name, v in log.items() if name.startswith('loss_')
    }
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
    wrapper = OptimWrapper(optimizer)
    for seed, widths in enumerate(plans):
        data, views = naive.batch(seed)
        progress = seed / len(plans)
        passes = trainer.step(views, widths, progress)
        algorithm.plan = Plan.of(widths, progress=progress)
        optimizer.steps.clear()
        log = algorithm.train_step(data, wrapper)
        check_log(log, passes)
        grads = [p[-1] for p in passes]
        if trainer.accumulates:
            grads = [{
                k: sum(g[k] for g in grads if k in g)
                for k in set().union(*grads)
            }]
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
        k
        for k, v in initial.items()
        if (trainer.params[k] - v).abs().max() > 1e-4
    }
    assert moved == set(trainer.buffers) - still and len(moved) > 60


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
@pytest.mark.parametrize('share_head', [False, True], ids=['own', 'shared'])
@pytest.mark.parametrize('base_method', BASE_METHODS)
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
         share_head=True),
], ids=str)
def test_any_loss_can_be_base_and_distillation_loss(options):
    check_iterations(*both(**options))


def test_a_predictor_can_be_added_and_left_out():
    for base_method, predictor in (('simclr_momentum', dict(hid_channels=20)),
                                   ('byol', dict(type='us3l_mm.Identity'))):
        algorithm, optimizer, trainer = both(base_method)
        algorithm = naive.small_algorithm(base_method, teacher_momentum=0.1,
                                          predictor=predictor)
        named = naive.student_parameters(algorithm)
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
    dict(base_method='simclr_momentum', features=(0, 1, 2, 3)),
    dict(base_method='byol', features=(1, 3), update_mode='accumulate'),
    dict(base_method='byol', features=(2, ), distill_from='online'),
], ids=str)
def test_feature_distillation(options):
    check_iterations(*both(**options))


@pytest.mark.parametrize('keep', [0.99, 0.5])
def test_the_teacher_keeps_what_it_should(keep):
    check_iterations(*both('byol', keep=keep))


@pytest.mark.parametrize('widths', [[0.5], [0.75, 0.4]], ids=str)
def test_networks_that_never_run_at_full_width(widths):
    """One trained on its own; the widest has a teacher of its width."""
    algorithm, _, trainer = both('byol')
    backbone = dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=18,
                    base_channels=16, stem_channels=16,
                    width_range=(0.25, 0.75))
    algorithm = naive.small_algorithm('byol', backbone=backbone,
                                      teacher_momentum=0.1)
    named = naive.student_parameters(algorithm)
    check_iterations(algorithm, RecordingSGD(named, lr=0.05, momentum=0.9),
                     trainer, plans=[widths, widths])
