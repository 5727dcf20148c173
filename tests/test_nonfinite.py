# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Steps that are not finite are left out, on all processes or on none."""
import json
import re
from pathlib import Path

import naive
import pytest
import torch
from algorithms import train_step
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from processes import run_processes
from small_run import small_cfg
from test_precision import WIDTHS, algorithm_of

from us3l_mm.engine import MultiPassOptimWrapper
from us3l_mm.engine.hooks import non_finite_hook
from us3l_mm.engine.wrappers import multi_pass_optim_wrapper
from us3l_mm.engine.wrappers.multi_pass_optim_wrapper import skips_on_device
from us3l_mm.models import GroupDecay
from us3l_mm.models.selfsup.passes import UPDATE_MODES

NAN, INF = float('nan'), float('inf')


def guarded(update_mode='sequential', fused=False):
    algorithm, named = algorithm_of(update_mode)
    # PyTorch's fused SGD wants a gradient of everything in its first step.
    optimizer = (torch.optim.AdamW(named.values(), fused=True) if fused else
                 torch.optim.SGD(named.values(), lr=.05, momentum=.9))
    wrapper = MultiPassOptimWrapper(optimizer=optimizer)
    if not fused:
        wrapper.regularise(GroupDecay(named.items()))
    return algorithm, named, wrapper


def broken(data):
    """One pixel of one view is not a number."""
    data['inputs'][0] = data['inputs'][0].double()
    data['inputs'][0][0, 0, 0, 0] = NAN
    return data


def state_of(wrapper):
    """Weights and what the optimizer remembers."""
    optimizer = wrapper.optimizer
    tensors = [
        *optimizer.param_groups[0]['params'],
        *(t for s in optimizer.state.values() for t in s.values())]
    return [t.detach().clone() for t in tensors]


def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize('fused', [False, True], ids=['host', 'fused'])
@pytest.mark.parametrize('update_mode', UPDATE_MODES)
def test_a_broken_image_costs_its_steps_and_nothing_else(update_mode, fused):
    algorithm, _, wrapper = guarded(update_mode, fused)
    assert skips_on_device(wrapper.optimizer) is fused
    train_step(algorithm, naive.batch(0)[0], wrapper, WIDTHS)
    before = state_of(wrapper)
    log = train_step(algorithm, broken(naive.batch(1)[0]), wrapper, WIDTHS)
    steps = 3 if update_mode == 'sequential' else 1
    assert same(state_of(wrapper), before)
    assert (int(log['skipped']), int(wrapper.consecutive)) == (steps, steps)
    log = train_step(algorithm, naive.batch(2)[0], wrapper, WIDTHS)
    assert not same(state_of(wrapper), before)
    assert (int(log['skipped']), int(wrapper.consecutive)) == (steps, 0)
    # What the next epochs are taught by has not seen it.
    assert all(torch.isfinite(t).all() for t in state_of(wrapper))
    assert all(torch.isfinite(p).all() for p in algorithm.teacher.parameters())


@pytest.mark.parametrize('kind', ['loss', 'gradient'])
def test_a_loss_or_a_gradient_alone_is_enough(kind, monkeypatch):
    algorithm, named, wrapper = guarded()
    before = state_of(wrapper)
    if kind == 'loss':  # its gradient is finite
        algorithm.head.loss_module.register_forward_hook(
            lambda _, __, loss: loss + INF)
    else:
        p = next(iter(named.values()))
        p.register_hook(lambda grad: grad.index_fill(0, torch.tensor(3), INF))
    train_step(algorithm, naive.batch(0)[0], wrapper)
    assert same(state_of(wrapper), before) and int(wrapper.skipped) == 1
    assert wrapper.last_skipped['left_out']
    loss = wrapper.last_skipped['losses']['loss_base']
    assert torch.isfinite(loss) != (kind == 'loss')
    # And where nothing looks at the gradients they move.
    monkeypatch.setattr(multi_pass_optim_wrapper, 'not_finite',
                        lambda grads: torch.tensor(False))
    train_step(algorithm, naive.batch(0)[0], wrapper)
    assert not same(state_of(wrapper), before)


def test_without_trouble_the_check_changes_nothing(monkeypatch):
    states = []
    for checks in (True, False):
        if not checks:
            monkeypatch.setattr(multi_pass_optim_wrapper, 'not_finite',
                                lambda grads: torch.tensor(False))
            monkeypatch.setattr(MultiPassOptimWrapper, 'backward',
                                OptimWrapper.backward)
        algorithm, _, wrapper = guarded()
        for seed in range(2):
            train_step(algorithm, naive.batch(seed)[0], wrapper, WIDTHS)
        states.append(state_of(wrapper))
    assert same(*states)


def test_the_number_of_skipped_steps_is_saved_with_the_optimizer():
    algorithm, _, wrapper = guarded()
    train_step(algorithm, broken(naive.batch(0)[0]), wrapper, WIDTHS)
    state = wrapper.state_dict()
    assert state['skipped'] == 3
    _, _, resumed = guarded()
    resumed.load_state_dict(state)
    assert (int(resumed.skipped), int(resumed.consecutive)) == (3, 0)
    del state['skipped']  # a file of an earlier version
    resumed.load_state_dict(state)
    assert int(resumed.skipped) == 0


def test_a_step_left_out_on_the_device_decays_nothing():
    p = torch.nn.Parameter(torch.ones(8))
    optimizer = torch.optim.AdamW([p], lr=.1, weight_decay=0., fused=True)
    wrapper = MultiPassOptimWrapper(optimizer=optimizer)
    wrapper.regularise(GroupDecay([('p', p)], lam=.5, decoupled=True))
    for value, moves in ((NAN, False), (1.0, True)):
        p.grad = torch.full((8, ), value)
        wrapper.step()
        assert torch.equal(p, torch.ones(8)) is not moves


def broken_from(runner, first, last=10**9, also=True):
    """Give ``runner`` broken images in iterations ``first`` to ``last``."""
    algorithm = getattr(runner.model, 'module', runner.model)
    views = algorithm.views

    def replaced(data):
        good = views(data)
        if also and first <= runner.iter <= last:
            good[0][0, 0, 0, 0] = NAN
        return good

    algorithm.views = replaced


def cfg_of(folder, **changes):
    cfg = small_cfg(folder, **changes)
    cfg.default_hooks.non_finite = dict(type='us3l_mm.NonFiniteHook',
                                        max_consecutive=4)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1,
                                        max_keep_ckpts=1)
    cfg.default_hooks.sampler.widths = WIDTHS
    return cfg


def test_training_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    runner = Runner.from_cfg(cfg_of(tmp_path))
    broken_from(runner, 4)  # three iterations are an epoch
    with pytest.raises(FloatingPointError) as error:
        runner.train()
    text = str(error.value)
    # Iteration 5 is the first broken one, with three steps; 6 the second.
    assert 'stopped in iteration 6' in text
    assert 'last 6 optimizer steps' in text and 'max_consecutive=4' in text
    assert re.search(
        r'w0.25 \(width 0.25\), not finite: loss_distill_w0.25=nan', text)
    assert f'last good checkpoint is {tmp_path}/epoch_1.pth' in text
    file = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    assert all(torch.isfinite(v).all() for v in file['state_dict'].values())
    assert not (tmp_path / 'epoch_2.pth').exists()


def test_the_log_counts_and_a_resumed_run_goes_on_counting(tmp_path):
    cfg = cfg_of(tmp_path, **{'train_cfg.max_epochs': 2})
    runner = Runner.from_cfg(cfg)
    broken_from(runner, 1, 1)
    runner.train()
    log, = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line['skipped'] for line in lines] == [0, 3, 3, 3, 3, 3]
    cfg.merge_from_dict({
        'train_cfg.max_epochs': 3,
        'resume': True,
        'default_hooks.non_finite.max_total': 5})
    runner = Runner.from_cfg(cfg)
    broken_from(runner, 7, 7)
    with pytest.raises(
            FloatingPointError, match='iteration 8. 6 optimizer '
            r'steps so far .*max_total=5.*epoch_2.pth'):
        runner.train()


def test_weights_that_overflow_are_not_saved(tmp_path, monkeypatch):
    # The first three iterations would stop it.
    monkeypatch.setattr(non_finite_hook, 'BEGINNING', 0)
    cfg = cfg_of(
        tmp_path, **{
            'optim_wrapper.optimizer.lr': 1e38,
            'default_hooks.non_finite.max_consecutive': 99})
    cfg.default_hooks.non_finite.max_consecutive = 99
    runner = Runner.from_cfg(cfg)
    runner.model.backbone.conv1.weight.register_hook(lambda grad: 1e5 * grad)
    with pytest.raises(
            FloatingPointError, match='are not finite, such as '
            'backbone.conv1.weight.*a step overflowed.*There is no '
            'checkpoint yet'):
        runner.train()
    assert not [*tmp_path.glob('*.pth')]


@pytest.mark.parametrize('changes, says', [
    ({
        'model.data_preprocessor.std': [64., 0., 64.]
    }, r'iteration 3.*images are the cause: their largest value is inf '
     r'.*std=\[64.0, 0.0, 64.0\].*data_preprocessor'),
    ({
        'optim_wrapper.optimizer.lr': 1e30
    }, r'learning rate is the likely cause, now .*29: lower optim_wrap'), ])
def test_a_loss_that_never_was_finite_names_its_cause(tmp_path, changes, says):
    cfg = cfg_of(tmp_path, **changes)
    cfg.default_hooks.non_finite.max_consecutive = 99
    with pytest.raises(FloatingPointError, match=says):
        Runner.from_cfg(cfg).train()
    assert not [*tmp_path.glob('*.pth')]


def test_weights_are_checked_before_the_first_iteration(tmp_path):
    runner = Runner.from_cfg(cfg_of(tmp_path))
    runner.load_or_resume = lambda: runner.model.backbone.conv1.weight.data[
        0].fill_(NAN)
    with pytest.raises(
            FloatingPointError, match='1 parameters are not finite '
            'before .* backbone.conv1.weight.*load_from'):
        runner.train()


def test_initial_weights_that_are_too_large_are_named(tmp_path):
    cfg = cfg_of(tmp_path)
    cfg.default_hooks.non_finite.max_consecutive = 99
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume = lambda: runner.model.neck.state_dict(
        keep_vars=True).popitem()[1].data.fill_(3e38)
    with pytest.raises(
            FloatingPointError, match='not even the first loss was'
            '.*the largest is 3e.38, in .*neck'):
        runner.train()


@pytest.mark.parametrize('name', ['max_consecutive', 'max_total'])
def test_a_limit_of_no_steps_is_refused(name):
    from us3l_mm.engine import NonFiniteHook
    with pytest.raises(ValueError, match=f'got .*{name}=0'):
        NonFiniteHook(**{name: 0})


STOCK = dict(type='MMDistributedDataParallel', device_ids=None)


def worker(rank, folder):
    """Images of process 1 alone are broken; then, a stock wrapper."""
    folder = Path(folder)
    cfg = cfg_of(
        folder / 'run', launcher='pytorch', model_wrapper_cfg=dict(
            type='us3l_mm.MultiPassDistributedDataParallel'))
    cfg.train_dataloader.batch_size = 4
    runner = Runner.from_cfg(cfg)
    broken_from(runner, 2, also=rank == 1)
    report = dict(first=attempt(runner.train), iterations=runner.iter)
    report['finite'] = all(
        bool(torch.isfinite(p).all()) for p in runner.model.parameters())
    runner = Runner.from_cfg(
        cfg_of(folder / 'stock', launcher='pytorch', model_wrapper_cfg=STOCK,
               experiment_name='stock'))
    report['stock'] = attempt(runner.train)
    (folder / f'{rank}.json').write_text(json.dumps(report))


def attempt(call):
    try:
        call()
    except (FloatingPointError, ValueError) as error:
        return f'{type(error).__name__}: {error}'
    return None


@pytest.mark.ddp
def test_processes_agree_on_what_to_leave_out(tmp_path):
    run_processes(worker, 2, tmp_path)
    first, second = (json.loads((tmp_path / f'{rank}.json').read_text())
                     for rank in range(2))
    assert first == second
    assert first['iterations'] == 3 and first['finite']
    assert 'process 0: in the passes' in first['first']
    assert re.search(
        'process 1: in the passes .*not finite: loss_distill_w0.25',
        first['first'])
    # Only one of them had the broken images.
    assert re.search('process 0: [^;]* the losses were: loss_distill_w0.25=-',
                     first['first'])
    assert first['stock'].startswith(
        'ValueError: MMDistributedDataParallel does not run the passes')
