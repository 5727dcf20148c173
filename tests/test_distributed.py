# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Two processes train what one process would."""
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.optim import OptimWrapper
from small_run import small_cfg

from us3l_mm.engine import US3LDistributedDataParallel
from us3l_mm.models import GroupRegulariser, Plan, at_width
from us3l_mm.registry import MODELS

pytestmark = pytest.mark.ddp
PLANS = [Plan.of([1.0]), Plan.of([1.0, 0.6, 0.25])]
# Base method, update mode, and whether norms and negatives span processes.
CASES = [('byol', 'sequential', 'local'), ('byol', 'accumulate', 'local'),
         ('simclr_momentum', 'sequential', 'local'),
         ('simsiam', 'accumulate', 'local'),
         ('byol', 'accumulate', 'joint'), ('simsiam', 'sequential', 'joint'),
         ('simclr_momentum', 'sequential', 'joint'),
         ('simclr_momentum', 'accumulate', 'joint')]


def build(base_method, update_mode, scope):
    torch.manual_seed(0)
    cfg = small_cfg('unused').model
    cfg.update(base_method=base_method, update_mode=update_mode)
    cfg.sync_norms = scope == 'joint'
    if base_method.startswith('simclr'):
        cfg.pop('predictor')
        cfg.base_loss = dict(type='us3l_mm.InfoNCELoss',
                             gather=scope == 'joint')
    algorithm = MODELS.build(cfg).double()
    algorithm.regulariser = GroupRegulariser(
        (name, p) for name, p in algorithm.named_parameters()
        if p.requires_grad)
    return algorithm


def optimizer(algorithm):
    return OptimWrapper(torch.optim.SGD(algorithm.parameters(), lr=.05,
                                        momentum=.9))


def shards():
    g = torch.Generator().manual_seed(1)
    return [[torch.rand(4, 3, 16, 16, generator=g, dtype=torch.float64)
             for _ in range(2)] for _ in range(2)]


def joint_batch(case):
    """One process with both shards as one batch."""
    algorithm = build(*case)
    algorithm.views = lambda data: data
    wrapper = optimizer(algorithm)
    for plan in PLANS:
        algorithm.plan = plan
        algorithm.train_step([torch.cat(view) for view in zip(*shards())],
                             wrapper)
    return algorithm.state_dict()


def average_of_losses(case):
    """Both shards in one process, one after the other."""
    algorithm, update_mode = build(*case), case[1]
    wrapper = optimizer(algorithm)
    for plan in PLANS:
        caches = [{}, {}]
        for subnet in plan.subnets:
            with at_width(algorithm, subnet.width):
                total = 0
                for rank, views in enumerate(shards()):
                    if subnet.is_base and algorithm.teacher and rank == 1:
                        update, algorithm.teacher.update = (
                            algorithm.teacher.update, lambda: None)
                    targets = algorithm.targets(subnet, views, caches[rank])
                    if subnet.is_base and algorithm.teacher and rank == 1:
                        algorithm.teacher.update = update
                    output = algorithm(views, mode='loss', subnet=subnet,
                                       targets=targets)
                    if subnet.is_base:
                        caches[rank]['online'] = output['encoded']
                    total = total + sum(output['losses'].values()) / 2
                total = total + sum(5e-5 * p.square().sum() for name, p in
                                    algorithm.named_parameters()
                                    if p.requires_grad and not (
                                        subnet.is_base and
                                        'predictor' in name))
                total.backward()
            if update_mode == 'sequential':
                wrapper.step(), wrapper.zero_grad()
        if update_mode == 'accumulate':
            wrapper.step(), wrapper.zero_grad()
    return algorithm.state_dict()


def worker(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    for case in CASES:
        algorithm = build(*case)
        algorithm.views = lambda data: data
        model = US3LDistributedDataParallel(algorithm)
        wrapper = optimizer(algorithm)
        for plan in PLANS:
            algorithm.plan = plan
            model.train_step(shards()[rank], wrapper)
        torch.save(algorithm.state_dict(),
                   os.path.join(folder, f'{"-".join(case)}-{rank}.pth'))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.spawn(worker, (port, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize('case', CASES, ids='-'.join)
def test_two_processes_equal_one(trained, case):
    ranks = [torch.load(trained / f'{"-".join(case)}-{rank}.pth')
             for rank in range(2)]
    expected = (joint_batch if case[2] == 'joint' else average_of_losses)(case)
    initial = build(*case).state_dict()
    moved = 0
    for name, value in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, rtol=0, atol=1e-9)
        moved += not torch.equal(value, initial[name])
    assert moved > 50


def test_a_stock_wrapper_is_refused():
    algorithm = build('byol', 'sequential', 'local')
    with pytest.raises(RuntimeError, match='US3LDistributedDataParallel'):
        algorithm(shards()[0], mode='loss')


def test_unused_parameters_cannot_be_switched_off():
    with pytest.raises(ValueError, match='find_unused_parameters'):
        US3LDistributedDataParallel(torch.nn.Linear(1, 1),
                                    find_unused_parameters=False)
