# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Several processes train what one would."""
import os

import pytest
import torch
from mmengine.optim import OptimWrapper
from processes import run_processes
from small_run import small_cfg

from us3l_mm.engine import US3LDistributedDataParallel
from us3l_mm.engine.sampling import sandwich
from us3l_mm.models import GroupRegulariser, Plan, at_width
from us3l_mm.models.selfsup import BASE_METHODS
from us3l_mm.models.selfsup.passes import UPDATE_MODES
from us3l_mm.registry import MODELS

pytestmark = pytest.mark.ddp
ITERATIONS, IMAGES, COMPARED = 20, 8, 4
SWITCHABLE = dict(type='SwitchableBN', widths=[1.0, 0.5, 0.25])

# Base method, update mode, whether norms and negatives span processes, and
# changes to the algorithm.
JOINT = [(method, mode, 'joint', {}) for method in sorted(BASE_METHODS)
         for mode in UPDATE_MODES]
LOCAL = [(method, mode, 'local', {})
         for method, mode in (('byol', 'sequential'), ('byol', 'accumulate'),
                              ('byol', 'joint'), ('simclr_momentum',
                                                  'sequential'),
                              ('moco_v3', 'accumulate'), ('simsiam', 'joint'))]
# What leaves other parameters unused: private norms, feature projections, a
# second head's absence; checkpoints, which hide parameters from the wrapper;
# an update of several batches.
OPTIONS = [
    *[('byol', mode, 'local', {'backbone.norm_cfg': SWITCHABLE})
      for mode in UPDATE_MODES],
    ('byol', 'accumulate', 'joint', dict(feature_distill={})),
    ('simclr_momentum', 'joint', 'joint', dict(share_head=True)),
    ('byol', 'sequential', 'joint', dict(distill_from='online')),
    ('simsiam', 'joint', 'joint', dict(distill_from=None)),
    ('byol', 'sequential', 'joint', {'backbone.with_cp': True}),
    ('byol', 'accumulate', 'joint', {'backbone.with_cp': True}),
    ('byol', 'accumulate', 'joint', dict(accumulative_counts=3)),
    ('byol', 'joint', 'joint', dict(accumulative_counts=3)),
]
CASES = JOINT + LOCAL + OPTIONS
FOUR = [('moco_v3', 'accumulate', 'joint', {}),
        ('simclr_momentum', 'sequential', 'joint', {})]


def case_id(case):
    method, mode, scope, options = case
    return '-'.join([method, mode, scope, *map(str, options)])


def build(case):
    method, mode, scope, options = case
    torch.manual_seed(0)
    cfg = small_cfg('unused').model
    cfg.backbone.update(num_stages=1, strides=(1, ), dilations=(1, ),
                        out_indices=(0, ))
    cfg.update(base_method=method, update_mode=mode,
               sync_norms=scope == 'joint')
    if BASE_METHODS[method].predictor is None:
        cfg.pop('predictor')
    if BASE_METHODS[method].loss in ('info_nce', 'moco_v3'):
        loss = dict(
            type='us3l_mm.MoCoV3Loss' if method == 'moco_v3' else
            'us3l_mm.InfoNCELoss', gather=scope == 'joint')
        cfg.base_loss = loss
        if BASE_METHODS[method].distill_loss == BASE_METHODS[method].loss:
            cfg.distill_loss = loss
    options = {k: v for k, v in options.items() if k != 'accumulative_counts'}
    if options.get('share_head') or options.get('distill_from', 1) is None:
        cfg.pop('distill_predictor')
    for key, value in options.items():
        _set(cfg, key, value)
    algorithm = MODELS.build(cfg).double()
    algorithm.views = lambda data: data
    algorithm.regulariser = GroupRegulariser(
        (name, p) for name, p in algorithm.named_parameters()
        if p.requires_grad)
    return algorithm


def _set(cfg, key, value):
    *path, last = key.split('.')
    for part in path:
        cfg = cfg[part]
    cfg[last] = value


def optimizer(algorithm, case):
    counts = case[3].get('accumulative_counts', 1)
    wrapper = OptimWrapper(
        torch.optim.SGD(algorithm.parameters(), lr=.05, momentum=.9),
        accumulative_counts=counts)
    wrapper.initialize_count_status(torch.nn.Identity(), 0, ITERATIONS)
    return wrapper


def plans(case):
    """The full width alone, then sandwiches, and both in turn."""
    lowest = [1.0, .25, .25, .5, *[1.0, 1.0, 1.0, .25] * 4]
    if 'backbone.norm_cfg' in case[3]:
        middle = SWITCHABLE['widths']
        return [Plan.of([1.0]), *[Plan.of(middle)] * (ITERATIONS - 1)]
    return [
        Plan.of(sandwich(lowest[i], 1.0, 3, 0, i, 1 / 32),
                progress=i / ITERATIONS) for i in range(ITERATIONS)
    ]


def shards(iteration, world_size):
    g = torch.Generator().manual_seed(iteration)
    views = [
        torch.rand(IMAGES, 3, 12, 12, generator=g, dtype=torch.float64)
        for _ in range(2)
    ]
    return list(zip(*(view.chunk(world_size) for view in views)))


def worker(rank, folder, cases):
    for case in cases:
        world_size = torch.distributed.get_world_size()
        algorithm = build(case)
        model = US3LDistributedDataParallel(algorithm)
        wrapper = optimizer(algorithm, case)
        saved = {}
        # Twenty iterations of every base method and mode; less of the rest.
        last = ITERATIONS if case in JOINT else COMPARED + 2
        for iteration, algorithm.plan in enumerate(plans(case)[:last]):
            model.train_step(list(shards(iteration, world_size)[rank]),
                             wrapper)
            if iteration + 1 == COMPARED:
                saved['early'] = {
                    k: v.clone()
                    for k, v in algorithm.state_dict().items()
                }
        saved['late'] = algorithm.state_dict()
        torch.save(
            saved,
            os.path.join(folder, f'{world_size}-{case_id(case)}-{rank}.pth'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    run_processes(worker, 2, folder, CASES)
    run_processes(worker, 4, folder, FOUR)
    return folder


def joint_batch(case, iterations):
    """One process with all shards as one batch."""
    algorithm = build(case)
    wrapper = optimizer(algorithm, case)
    for iteration, algorithm.plan in enumerate(plans(case)[:iterations]):
        algorithm.train_step(
            [torch.cat(view) for view in zip(*shards(iteration, 2))], wrapper)
    return algorithm.state_dict()


def average_of_losses(case, iterations):
    """Both shards in one process, one after the other."""
    algorithm, sequential = build(case), case[1] == 'sequential'
    wrapper = optimizer(algorithm, case)
    for iteration, algorithm.plan in enumerate(plans(case)[:iterations]):
        # The second shard meets the same teacher.
        caches = [{}, {'student_moved': False}]
        for subnet in algorithm.plan.subnets:
            with at_width(algorithm, subnet.width):
                for rank, views in enumerate(shards(iteration, 2)):
                    views, cache = list(views), caches[rank]
                    buffers = running(algorithm)
                    targets = algorithm.targets(subnet, views, cache)
                    output = algorithm(views, mode='loss', subnet=subnet,
                                       targets=targets)
                    if subnet.is_base:
                        cache['online'] = output['encoded']
                    (sum(output['losses'].values()) / 2).backward()
                    if rank == 0:
                        kept = running(algorithm)
                        restore(algorithm, buffers)
                restore(algorithm, kept)  # those of rank 0
                sum(5e-5 * p.square().sum()
                    for name, p in algorithm.named_parameters()
                    if p.requires_grad and not (
                        subnet.is_base and 'predictor' in name)).backward()
            if sequential:
                wrapper.step(), wrapper.zero_grad()
        if not sequential:
            wrapper.step(), wrapper.zero_grad()
    return algorithm.state_dict()


def running(algorithm):
    """Running statistics of private norms."""
    return {k: v.clone() for k, v in algorithm.named_buffers()}


def restore(algorithm, buffers):
    for name, value in algorithm.named_buffers():
        value.copy_(buffers[name])


def close(actual, expected, what):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=1e-6,
            msg=lambda text, name=name: f'{what} {name}: {text}')


def load(folder, world_size, case):
    return [
        torch.load(folder / f'{world_size}-{case_id(case)}-{rank}.pth')
        for rank in range(world_size)
    ]


@pytest.mark.parametrize('case', CASES, ids=case_id)
def test_two_processes_equal_one(trained, case):
    ranks = load(trained, 2, case)
    whole = joint_batch if case[2] == 'joint' else average_of_losses
    initial = build(case).state_dict()
    expected = whole(case, COMPARED)
    close(ranks[0]['early'], expected, 'after 4 iterations,')
    still = [
        name for name, p in build(case).named_parameters()
        if torch.equal(expected[name], initial[name])
    ]
    assert not still


@pytest.mark.parametrize('case', CASES, ids=case_id)
def test_replicas_stay_identical(trained, case):
    first, second = load(trained, 2, case)
    buffers = {name for name, _ in build(case).named_buffers()}
    for name, value in first['late'].items():
        assert torch.isfinite(value).all(), name
        # Private norms see the images of their own process.
        if name not in buffers:
            assert torch.equal(value, second['late'][name]), name


@pytest.mark.parametrize('case', FOUR, ids=case_id)
def test_four_processes_equal_one(trained, case):
    ranks = load(trained, 4, case)
    close(ranks[0]['early'], joint_batch(case, COMPARED), 'four')
    for other in ranks[1:]:
        for name, value in ranks[0]['late'].items():
            assert torch.equal(value, other['late'][name]), name


def test_a_stock_wrapper_is_refused():
    algorithm = build(CASES[0])
    with pytest.raises(RuntimeError, match='US3LDistributedDataParallel'):
        algorithm(list(shards(0, 1)[0]), mode='loss')


def test_unused_parameters_cannot_be_switched_off():
    with pytest.raises(ValueError, match='find_unused_parameters'):
        US3LDistributedDataParallel(torch.nn.Linear(1, 1),
                                    find_unused_parameters=False)
