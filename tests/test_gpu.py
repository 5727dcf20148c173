# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What only a GPU can show."""
import pytest
import torch
from mmengine.runner import Runner
from small_run import small_cfg

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason='no GPU: automatic mixed precision, its loss scale under the '
        'group regularisation, and training on the device are not tested')]


@pytest.mark.parametrize('kind', [
    'us3l_mm.MultiPassOptimWrapper', 'us3l_mm.MultiPassAmpOptimWrapper'])
def test_training_on_the_device(tmp_path, kind):
    runner = Runner.from_cfg(
        small_cfg(tmp_path, **{'optim_wrapper.type': kind}))
    runner.train()
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_in_every_mode(tmp_path, update_mode, dtype):
    runner = Runner.from_cfg(
        small_cfg(
            tmp_path, **{
                'optim_wrapper':
                dict(type='us3l_mm.MultiPassAmpOptimWrapper', dtype=dtype,
                     clip_grad=dict(max_norm=10.)),
                'model.update_mode':
                update_mode,
                'model.channels_last':
                True,
                'default_hooks.non_finite':
                dict(type='us3l_mm.NonFiniteHook')}))
    before = [p.detach().clone() for p in runner.model.parameters()]
    runner.train()
    # Only the search for the loss scale may cost steps.
    assert int(runner.optim_wrapper.consecutive) == 0
    for p in runner.model.parameters():
        assert torch.isfinite(p).all() and p.dtype == torch.float32
    assert any(not torch.equal(p, old)
               for p, old in zip(runner.model.backbone.parameters(), before))


def test_a_step_is_left_out_on_the_device():
    from us3l_mm.engine.wrappers.multi_pass_optim_wrapper import (
        MultiPassOptimWrapper, skips_on_device)
    p = torch.nn.Parameter(torch.ones(4, device='cuda'))
    optimizer = torch.optim.AdamW([p], fused=True)
    assert skips_on_device(optimizer)
    wrapper = MultiPassOptimWrapper(optimizer=optimizer)
    with torch.cuda.stream(torch.cuda.current_stream()):
        torch.cuda.set_sync_debug_mode('error')
        try:
            for value in (float('nan'), 1.0):
                p.grad = torch.full_like(p, value)
                wrapper.step()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    assert int(wrapper.skipped) == 1 and int(wrapper.consecutive) == 0
    assert optimizer.state[p]['step'] == 1


def test_regularisation_follows_the_loss_scale():
    from us3l_mm.models import GroupDecay
    layer = torch.nn.Linear(4, 4).cuda()
    scaler = torch.amp.GradScaler('cuda', init_scale=1024.)
    decay = GroupDecay(layer.named_parameters(), lam=.5)
    decay.add_gradients(dict(distil=1),
                        scaler.scale(torch.ones((), device='cuda')))
    scaler.unscale_(torch.optim.SGD(layer.parameters(), lr=1.))
    for p in layer.parameters():
        torch.testing.assert_close(p.grad, p.detach())
