# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What runs of all algorithms have, in a run of dense and gated."""
import re
from pathlib import Path

import naive
import pytest
import torch
from fake_device import DEVICE, transfers
from gated_networks import HEADS, model_cfg, small_gated
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model
from processes import run_processes
from tensorboard.backend.event_processing.event_accumulator import \
    EventAccumulator
from test_dense_gated_run import config, run

from us3l_mm.engine import MultiPassDistributedDataParallel
from us3l_mm.models import MultiPassSSL, Plan
from us3l_mm.models.layers import GatedCompute, gate
from us3l_mm.models.selfsup import Batch
from us3l_mm.registry import MODELS

LARS = dict(type='us3l_mm.LARS', lr=0.1, momentum=0.9, weight_decay=1e-4,
            eta=0.02, clip=True, exclude_flat=True)
RECIPE = {
    'optim_wrapper': {
        '_delete_': True,
        'type': 'us3l_mm.MultiPassAmpOptimWrapper',
        'optimizer': LARS,
        'paramwise_cfg': dict(custom_keys={'.gate': dict(decay_mult=0.0)})}}

# Hooks and optimizers --------------------------------------------------------


def test_the_recipe_is_resumed_to_the_bit_in_mixed_precision(tmp_path):
    """With gates that begin in the second half, and the rotation task."""
    options = {
        **RECIPE, 'model.gate_warmup': 0.5,
        'model.rotation': dict(hid_channels=8)}
    seen = []
    whole, _ = run(tmp_path / 'whole', watch=lambda z: seen.append(z.dtype),
                   **options)
    again, _ = run(tmp_path / 'again', tmp_path / 'whole/epoch_1.pth',
                   **options)
    assert {*seen} == {torch.bfloat16}  # embeddings
    assert {p.dtype for p in whole.model.parameters()} == {torch.float32}
    states = [r.optim_wrapper.optimizer.state_dict() for r in (whole, again)]
    for key, state in states[0]['state'].items():
        other = states[1]['state'][key]['momentum_buffer']
        assert torch.equal(state['momentum_buffer'], other)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    assert int(whole.optim_wrapper.skipped) == 0


def test_tensorboard_has_ratio_target_densities_and_bounds(tmp_path):
    run(
        tmp_path, **{
            'visualizer':
            dict(type='UniversalVisualizer', vis_backends=[
                dict(type='TensorboardVisBackend')])})
    [events] = tmp_path.rglob('events.*')
    found = EventAccumulator(str(events)).Reload()
    gates = [f'layer{i}.{j}.gate1' for i in (1, 2) for j in (0, 1)]
    names = {
        'ratio', 'target', 'bound_low', 'bound_high', 'loss_ssl',
        'loss_budget', 'loss_bound', 'spread_dense', 'spread_gated', 'skipped',
        *(f'density_{name}' for name in gates)}
    assert names <= {*found.Tags()['scalars']}
    for name in names:
        values = found.Scalars(name)
        assert len(values) == 6
        # The log shows means over a window of iterations.
        if name == 'target':
            assert {v.value for v in values} == {0.5}
    low = [v.value for v in found.Scalars('bound_low')]
    assert low == sorted(low, reverse=True) and low[0] > low[-1]


@pytest.mark.parametrize('view', ['dense', 'gated'])
def test_a_collapse_of_either_mode_is_noticed(tmp_path, view):
    with pytest.raises(RuntimeError, match=f'spread_{view} is 0.*VICRegLoss'):
        run(
            tmp_path, **{
                'model.modes': [view, view],
                'model.budget':
                dict(target=0.5) if view == 'gated' else None,
                'model.swap_views':
                False,
                'model.neck.type':
                'us3l_mm.CollapsedNeck',
                'default_hooks.collapse':
                dict(type='us3l_mm.CollapseMonitorHook', begin=1, interval=1,
                     patience=2, action='stop')})


@MODELS.register_module()
class CollapsedNeck(torch.nn.Module):
    """All images have one embedding."""

    def __init__(self, in_channels, out_channels, **kwargs):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(out_channels))

    def forward(self, maps):
        return (self.weight.expand(len(maps[0]), -1), )


def test_steps_that_are_not_finite_are_left_out_and_end_training(tmp_path):
    """The first loss may be finite; later, one view has a broken pixel."""

    class Break(Hook):

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter in (1, 3, 4):
                view = data_batch['inputs'][0] = data_batch['inputs'][0].float(
                )
                view[0, 0, 0, 0] = float('nan')
            self.weights = {
                k: v.clone() for k, v in runner.model.named_parameters()}

        def after_train_iter(self, runner, batch_idx, data_batch=None,
                             outputs=None):
            moved = [
                not torch.equal(v, self.weights[k])
                for k, v in runner.model.named_parameters()]
            assert all(moved) or not any(moved)
            steps.append(all(moved))

    steps = []
    with pytest.raises(FloatingPointError,
                       match='in iteration 5.*in the passes w1.00.*loss_ssl'):
        run(
            tmp_path, hooks=[Break()], **{
                **RECIPE, 'default_hooks.non_finite':
                dict(type='us3l_mm.NonFiniteHook', max_consecutive=2)})
    assert steps == [True, False, True, False]  # the last one is not counted


def test_gradients_of_one_pass_are_not_compared(tmp_path):
    with pytest.raises(ValueError, match='DenseGatedSSL has one.*diagnosis=N'):
        run(
            tmp_path, **{
                'default_hooks.diagnosis':
                dict(type='us3l_mm.GradientDiagnosisHook', interval=1)})


# The device ------------------------------------------------------------------


@pytest.mark.parametrize(
    'options', [{},
                dict(separate=True, rotation={}),
                dict(budget=dict(target=0.5, expected=True))], ids=str)
@pytest.mark.parametrize('head', HEADS)
def test_a_step_moves_nothing_between_host_and_device(head, options):
    step, algorithm = step_on_device(head, **options)
    assert transfers(step) == []
    gradient = algorithm.backbone.layer1[0].gate1.conv2.weight.grad
    assert gradient.device.type == DEVICE


def step_on_device(head, **options):
    """Forward and backward of a step, and the model."""
    algorithm = MODELS.build(model_cfg(head, **options)).train().to(DEVICE)
    # It is counted once for each size of images, when that is met first.
    algorithm.backbone.compute((12, 12))
    batch = Batch([torch.empty(4, 3, 12, 12, device=DEVICE) for _ in range(2)],
                  Plan.fixed([1.0], 0.3))

    def step():
        output = algorithm.loss(batch, batch.plan.base)
        sum(output['losses'].values()).backward()
        assert 'ratio' in output['log']

    return step, algorithm


@pytest.mark.parametrize('mistake, operation', [
    (lambda counts: float(counts.sum()), '_local_scalar_dense'),
    (lambda counts: torch.ones(4).to(counts), '_to_copy'),
    (lambda counts: torch.tensor([4.0], device=counts.device), 'tensor'),
    (lambda counts: counts.new_tensor([4.0]), 'new_tensor'),
    (lambda counts: counts.cpu(), '_to_copy')], ids=[
        'read', 'sent', 'constant', 'new', 'fetched'])
def test_a_transfer_would_be_seen(monkeypatch, mistake, operation):
    """For instance a budget of tensors on the host."""
    ratio = GatedCompute.ratio

    def wrong(self, counts):
        mistake(counts)
        return ratio(self, counts)

    step, _ = step_on_device('vicreg')
    monkeypatch.setattr(GatedCompute, 'ratio', wrong)
    assert any(operation in found for found in transfers(step))


# Several processes -----------------------------------------------------------


@pytest.mark.parametrize('options, unused',
                         [({}, False), (dict(swap_views=True), False),
                          (dict(rotation=dict(hid_channels=8)), False),
                          (dict(gate_warmup=0.1), True),
                          (dict(separate=True), True),
                          (dict(modes=('gated', 'gated')), True),
                          (dict(modes=('dense', 'dense'), budget=None), True)],
                         ids=str)
@pytest.mark.parametrize('head', ['vicreg', 'simsiam'])
def test_parameters_are_searched_for_only_where_some_are_unused(
        head, options, unused):
    algorithm = small_gated(head, **options)
    data, _ = naive.batch(0, images=4)
    output = algorithm.loss(
        Batch(algorithm.views(data), Plan.fixed([1.0], 0.0)),
        Plan.fixed([1.0]).base)
    sum(output['losses'].values()).backward()
    missing = [n for n, p in algorithm.named_parameters() if p.grad is None]
    assert algorithm.leaves_unused is bool(missing) is unused


def process(rank, folder, world_size):
    """A run by a recipe, in double precision.

    The noise of gates, which has no order, is left out.
    """
    options = {
        'model.sync_norms': True,
        'train_dataloader.batch_size': 8 // world_size,
        'optim_wrapper.optimizer': dict(LARS, _delete_=True, eta=0.1)}
    if world_size > 1:
        options.update(
            launcher='pytorch', model_wrapper_cfg=dict(
                type='us3l_mm.MultiPassDistributedDataParallel'))
    views = MultiPassSSL.views
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gate, 'logistic_noise', torch.zeros_like)
            patch.setattr(
                MultiPassSSL, 'views', lambda self, data: [
                    view.double() for view in views(self, data)])
            runner = Runner.from_cfg(
                config(Path(folder) / f'run-{world_size}', **options))
            if world_size > 1:
                assert runner.model.find_unused_parameters is False
            runner.train()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.save(
        get_ori_model(runner.model).state_dict(),
        Path(folder) / f'{world_size}-{rank}.pth')


@pytest.mark.ddp
def test_two_processes_train_the_recipe_as_one_does(tmp_path):
    process(0, tmp_path, 1)
    run_processes(process, 2, tmp_path, 2)
    one, *two = (torch.load(tmp_path / f'{name}.pth')
                 for name in ('1-0', '2-0', '2-1'))
    for state in two:
        for name, value in one.items():
            torch.testing.assert_close(state[name], value, rtol=1e-8,
                                       atol=1e-8,
                                       msg=lambda t, name=name: f'{name}: {t}')


def test_find_unused_parameters_of_the_user_goes_first():
    wrong = small_gated(gate_warmup=0.1)
    with pytest.raises(ValueError, match=re.escape('gates in a dense pass')):
        MultiPassDistributedDataParallel(wrong, find_unused_parameters=False)
