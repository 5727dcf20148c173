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


@pytest.mark.parametrize('amp', [dict(type='AmpOptimWrapper'), {}])
def test_training_on_the_device(tmp_path, amp):
    runner = Runner.from_cfg(small_cfg(tmp_path, optim_wrapper=amp))
    runner.train()
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())


def test_regularisation_follows_the_loss_scale():
    from us3l_mm.models import GroupRegulariser
    layer = torch.nn.Linear(4, 4).cuda()
    scaler = torch.amp.GradScaler('cuda', init_scale=1024.)
    regulariser = GroupRegulariser(layer.named_parameters(), lam=.5)
    scaler.scale(regulariser.loss(False)).backward()
    regulariser.add_gradients()
    scaler.unscale_(torch.optim.SGD(layer.parameters(), lr=1.))
    for p in layer.parameters():
        torch.testing.assert_close(p.grad, p.detach())
