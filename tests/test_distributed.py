# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Several processes train what one would."""
import os

import pytest
import torch
from algorithms import METHODS, RESNET, model_cfg
from processes import run_processes

from us3l_mm.engine import (MultiPassDistributedDataParallel,
                            MultiPassOptimWrapper)
from us3l_mm.models import GroupDecay, Plan, at_width
from us3l_mm.models.selfsup import Batch
from us3l_mm.models.selfsup.passes import UPDATE_MODES
from us3l_mm.models.selfsup.plan import sandwich
from us3l_mm.registry import MODELS

pytestmark = pytest.mark.ddp
ITERATIONS, IMAGES, COMPARED = 8, 8, 4
SWITCHABLE = dict(type='SwitchableBN', widths=[1.0, 0.5, 0.25])
SMALL = dict(RESNET, num_stages=1, strides=(1, ), dilations=(1, ),
             out_indices=(0, ))

# Base method, update mode, whether norms and negatives span processes, and
# changes to the algorithm.
# SimSiam's two kinds differ from BYOL in where targets come from, which is
# an option below, and are trained in one mode each.
JOINT = [(method, mode, 'joint', {}) for method in sorted(METHODS)
         for mode in UPDATE_MODES
         if (method, mode) not in (('simsiam', 'sequential'),
                                   ('simsiam_momentum', 'accumulate'))]
LONG = [('byol', mode, 'joint', {}) for mode in UPDATE_MODES]
LOCAL = [
    (method, mode, 'local', {})
    for method, mode in (('byol', 'sequential'), ('byol', 'accumulate'),
                         ('simclr_momentum', 'sequential'),
                         ('moco_v3', 'accumulate'), ('simsiam', 'accumulate'))]
# What leaves other parameters unused: private norms, feature projections, a
# second head's absence; checkpoints, which hide parameters from the wrapper;
# an update of several batches.
OPTIONS = [
    *[('byol', mode, scope, {
        'backbone.norm_cfg': SWITCHABLE})
      for mode, scope in (('sequential', 'local'), ('accumulate', 'joint'))],
    ('byol', 'accumulate', 'joint', dict(feature_distiller={})),
    ('simclr_momentum', 'accumulate', 'joint', dict(share_predictor=True)),
    ('byol', 'sequential', 'joint', dict(distill_from='online')),
    ('simsiam', 'accumulate', 'joint', dict(distill_from=None)),
    ('byol', 'sequential', 'joint', {
        'backbone.with_cp': True}),
    ('byol', 'accumulate', 'joint', {
        'backbone.with_cp': True}),
    ('byol', 'accumulate', 'joint', dict(accumulative_counts=3)), ]
CASES = JOINT + LOCAL + OPTIONS
FOUR = [('moco_v3', 'accumulate', 'joint', {}),
        ('simclr_momentum', 'sequential', 'joint', {})]


def case_id(case):
    method, mode, scope, options = case
    return '-'.join([method, mode, scope, *map(str, options)])


def build(case):
    method, mode, scope, options = case
    torch.manual_seed(0)
    options = {k: v for k, v in options.items() if k != 'accumulative_counts'}
    backbone = dict(SMALL)
    for key in [key for key in options if key.startswith('backbone.')]:
        backbone[key.removeprefix('backbone.')] = options.pop(key)
    cfg = model_cfg(method, backbone, hid=32, out=16, predictor_hid=32,
                    distill_hid=32, update_mode=mode,
                    sync_norms=scope == 'joint', **options)
    for head in (cfg['head'], cfg['distill_head']):
        if head and head['loss']['type'].startswith('us3l_mm.'):
            head['loss'] = dict(head['loss'], gather=scope == 'joint')
    algorithm = MODELS.build(cfg).double()
    algorithm.views = lambda data: data['views']
    return algorithm


def optimizer(algorithm, case):
    counts = case[3].get('accumulative_counts', 1)
    wrapper = MultiPassOptimWrapper(
        optimizer=torch.optim.SGD(algorithm.parameters(), lr=.05, momentum=.9),
        accumulative_counts=counts)
    wrapper.initialize_count_status(torch.nn.Identity(), 0, ITERATIONS)
    wrapper.regularise(
        GroupDecay((name, p) for name, p in algorithm.named_parameters()
                   if p.requires_grad))
    return wrapper


def plans(case):
    """The full width alone, then sandwiches, and both in turn."""
    lowest = [1.0, .25, .25, .5, 1.0, 1.0, .25, 1.0]
    if 'backbone.norm_cfg' in case[3]:
        middle = SWITCHABLE['widths']
        return [
            Plan.sampled([1.0]), *[Plan.sampled(middle)] * (ITERATIONS - 1)]
    return [
        Plan.sampled(sandwich(lowest[i], 1.0, 3, 0, i, 1 / 32),
                     progress=i / ITERATIONS) for i in range(ITERATIONS)]


def shards(iteration, world_size):
    g = torch.Generator().manual_seed(iteration)
    views = [
        torch.rand(IMAGES, 3, 12, 12, generator=g, dtype=torch.float64)
        for _ in range(2)]
    return list(zip(*(view.chunk(world_size) for view in views)))


def worker(rank, folder, cases):
    for case in cases:
        world_size = torch.distributed.get_world_size()
        algorithm = build(case)
        model = MultiPassDistributedDataParallel(algorithm)
        wrapper = optimizer(algorithm, case)
        saved = {}
        # Eight iterations of one base method in each mode; less of the rest.
        last = ITERATIONS if case in LONG else COMPARED
        for iteration, plan in enumerate(plans(case)[:last]):
            views = list(shards(iteration, world_size)[rank])
            model.train_step(dict(views=views, plan=plan), wrapper)
            if iteration + 1 == COMPARED:
                saved['early'] = {
                    k: v.clone() for k, v in algorithm.state_dict().items()}
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
    for iteration, plan in enumerate(plans(case)[:iterations]):
        views = [torch.cat(view) for view in zip(*shards(iteration, 2))]
        algorithm.train_step(dict(views=views, plan=plan), wrapper)
    return algorithm.state_dict()


def average_of_losses(case, iterations):
    """Both shards in one process, one after the other."""
    algorithm, sequential = build(case), case[1] == 'sequential'
    wrapper = torch.optim.SGD(algorithm.parameters(), lr=.05, momentum=.9)
    for iteration, plan in enumerate(plans(case)[:iterations]):
        batches = [Batch(list(v), plan) for v in shards(iteration, 2)]
        batches[1].student_moved = False  # meets the same teacher
        algorithm.begin(batches[0])
        kept = running(algorithm)
        algorithm.begin(batches[1])
        restore(algorithm, kept)  # those of rank 0
        for pass_ in plan.passes:
            with at_width(algorithm, pass_.subnet):
                for rank, batch in enumerate(batches):
                    buffers = running(algorithm)
                    output = algorithm(batch, mode='loss', pass_=pass_)
                    batch.carried.update(output['carried'])
                    (sum(output['losses'].values()) / 2).backward()
                    if rank == 0:
                        kept = running(algorithm)
                        restore(algorithm, buffers)
                restore(algorithm, kept)  # those of rank 0
                sum(5e-5 * p.square().sum()
                    for name, p in algorithm.named_parameters()
                    if p.requires_grad
                    and not (pass_.role == 'base' and 'predictor' in name)
                    ).backward()
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
        for rank in range(world_size)]


@pytest.mark.parametrize('case', CASES, ids=case_id)
def test_two_processes_equal_one(trained, case):
    ranks = load(trained, 2, case)
    whole = joint_batch if case[2] == 'joint' else average_of_losses
    initial = build(case).state_dict()
    expected = whole(case, COMPARED)
    close(ranks[0]['early'], expected, 'after 4 iterations,')
    still = [
        name for name, p in build(case).named_parameters()
        if torch.equal(expected[name], initial[name])]
    assert not still


@pytest.mark.parametrize('case', CASES, ids=case_id)
def test_replicas_stay_identical(trained, case):
    first, second = load(trained, 2, case)
    buffers = {name for name, _ in build(case).named_buffers()}
    for name, value in first['late'].items():
        assert torch.isfinite(value).all(), name
        # Private norms see the images of their own process, or of all.
        if name not in buffers or case[2] == 'joint':
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
    with pytest.raises(RuntimeError, match='MultiPassDistributedDataParallel'):
        algorithm(Batch(list(shards(0, 1)[0]),
                        plans(CASES[0])[0]), mode='loss')


def test_unused_parameters_cannot_be_switched_off():
    with pytest.raises(ValueError, match='find_unused_parameters'):
        MultiPassDistributedDataParallel(torch.nn.Linear(1, 1),
                                         find_unused_parameters=False)
