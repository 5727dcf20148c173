# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A checkpoint from anywhere in a run continues it, bit by bit."""
import copy

import pytest
import torch
from lives import assert_same_end, end_of, finish, ranks, start, train
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from small_run import small_cfg

from us3l_mm.datasets import SeededSampler
from us3l_mm.engine.resuming import Layout
from us3l_mm.fileio import load_weights

ITERATIONS = {
    'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=10),
    'param_scheduler': [
        dict(type='CosineAnnealingLR', by_epoch=False, T_max=10)]}
# Dropout draws from PyTorch's state.
DRAWING = {'model.backbone.drop_path_rate': 0.5}


class Watch(Hook):
    """Notes which images each iteration saw, and at which learning rate."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen, self.lr = {}, {}

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.seen[runner.iter] = [
            int(sample.sample_idx) for sample in data_batch['data_samples']]
        self.lr[runner.iter] = runner.optim_wrapper.get_lr()['lr'][0]


def run(work_dir, resume=None, **changes):
    changes = copy.deepcopy(changes)  # MMEngine takes _delete_ out of it
    cfg = small_cfg(
        work_dir, **{
            'train_dataloader.dataset.num_images': 40,
            'train_cfg': dict(by_epoch=True, max_epochs=2),
            'default_hooks.checkpoint.by_epoch': False,
            **DRAWING,
            **changes})
    if not cfg.train_dataloader.num_workers:
        # Without SeedAugmentation, from python's and NumPy's as well.
        cfg.train_dataloader.dataset.pipeline.pop(0)
    cfg.train_dataloader.dataset.pipeline[-1].meta_keys = ('sample_idx', )
    if resume is not None:
        cfg.update(resume=True, load_from=str(resume))
    runner, watch = Runner.from_cfg(cfg), Watch()
    runner.register_hook(watch)
    runner.train()
    if cfg.train_dataloader.num_workers:
        # PyTorch waits for 5 seconds if the garbage collector does it.
        runner.train_dataloader._iterator._shutdown_workers()
    return runner, watch


def state_of(runner):
    optimizer = runner.optim_wrapper.state_dict()['state']
    return copy.deepcopy((runner.model.state_dict(), {
        f'{key}': state['momentum_buffer']
        for key, state in optimizer.items()}))


def assert_same(one, other):
    for left, right in zip(state_of(one), state_of(other)):
        assert left.keys() == right.keys() and left
        for name, value in left.items():
            assert torch.equal(value, right[name]), name


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
@pytest.mark.parametrize('workers', [0, 1])
def test_any_checkpoint_continues_the_run_to_the_bit(tmp_path, loop, workers):
    changes = {
        'train_dataloader.num_workers': workers,
        'train_dataloader.persistent_workers': bool(workers)}
    if loop == 'iterations':
        changes.update(ITERATIONS)
    whole, watched = run(tmp_path / 'whole', **changes)
    for step in (5, 7) if not workers else (7, ):
        again, watched_again = run(tmp_path / f'from-{step}', tmp_path /
                                   f'whole/iter_{step}.pth', **changes)
        assert [*watched_again.seen] == [*range(step, 10)]
        for iteration, images in watched_again.seen.items():
            assert images == watched.seen[iteration]
            assert watched_again.lr[iteration] == watched.lr[iteration]
        assert_same(whole, again)
        assert (again.epoch, again.iter) == (whole.epoch, whole.iter)


def notes(work_dir, rank=0) -> dict:
    return torch.load(work_dir / f'notes-{rank}.pth')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Runs of one and of two processes, with a checkpoint per iteration.

    24 images in batches of 4: six iterations an epoch, or three.
    """
    folder = tmp_path_factory.mktemp('runs')
    changes = {
        'train_dataloader.batch_size': 4,
        'train_cfg.max_epochs': 3,
        # SeedAugmentation in this process would seed dropout as well.
        'train_dataloader.num_workers': 1,
        'default_hooks.checkpoint.by_epoch': False}
    assert finish(
        *ranks(folder, folder / 'two', [(changes, )] * 2),
        start(folder / 'one.log', train, str(folder / 'one'), changes)) == [
            0, 0, 0], read_logs(folder)
    return folder, changes


def read_logs(folder):
    return '\n'.join(p.read_text()[-2000:] for p in folder.glob('*.log'))


def from_checkpoint(runs, name, processes, checkpoint):
    """Resume, with as many processes, what the fixture has saved."""
    folder, changes = runs
    changes = {
        **changes, 'resume': True,
        'load_from': str(folder / checkpoint)}
    started = (ranks(folder, folder / name, [
        (changes, )] * 2) if processes == 2 else [
            start(folder / f'{name}.log', train, str(folder / name), changes)])
    assert finish(*started) == [0] * processes, read_logs(folder)
    return folder / name


@pytest.mark.ddp
def test_two_processes_continue_within_an_epoch_to_the_bit(runs):
    resumed = from_checkpoint(runs, 'two-again', 2, 'two/iter_4.pth')
    for rank in range(2):
        assert_same_end(end_of(runs[0] / 'two', rank), end_of(resumed, rank))
        whole, rest = notes(runs[0] / 'two', rank), notes(resumed, rank)
        assert rest == {i: whole[i] for i in range(4, 9)}
    # Each process had random states of its own.
    states = load_weights(str(
        runs[0] / 'two/iter_4.pth'))['exact_resume']['random_states']
    assert not torch.equal(states[0]['torch'], states[1]['torch'])


def images_of(work_dir, iterations, processes) -> list:
    return sorted(image for rank in range(processes) for i in iterations
                  for image in notes(work_dir, rank)[i]['images'])


@pytest.mark.ddp
@pytest.mark.parametrize('before, after, step, first, lengths',
                         [(2, 1, 4, 8, (3, 6)), (1, 2, 8, 4, (6, 3))])
def test_another_number_of_processes_continues_correctly(
        runs, before, after, step, first, lengths):
    """From within the second of three epochs."""
    names = {1: 'one', 2: 'two'}
    old = runs[0] / names[before]
    new = from_checkpoint(runs, f'{names[before]}-to-{names[after]}', after,
                          f'{names[before]}/iter_{step}.pth')
    here, whole = notes(new), notes(runs[0] / names[after])
    old_length, length = lengths
    assert [*here] == [*range(first, 3 * length)]
    # No image of the epoch was left out, none was seen twice.
    assert sorted(
        images_of(old, range(old_length, step), before) +
        images_of(new, range(first, 2 * length), after)) == [*range(24)]
    for i, noted in here.items():
        # As if it had had this many processes from the start.
        assert noted['lr'] == pytest.approx(whole[i]['lr'], rel=1e-12)
        assert noted['widths'] == whole[i]['widths']
    if after == 2:
        assert_same_end(end_of(new, 0), end_of(new, 1))
    trained = end_of(new)[0]
    assert all(value.isfinite().all() for value in trained.values())


@pytest.mark.parametrize('images, batch, drop_last', [(24, 3, False),
                                                      (23, 4, True),
                                                      (23, 4, False),
                                                      (5, 2, False)])
@pytest.mark.parametrize('world', [1, 2, 3])
def test_a_pass_can_begin_anywhere(images, batch, drop_last, world):
    """Against MMEngine's sampler and PyTorch's own count of batches."""

    def sampler(rank, kind=SeededSampler):
        made = kind(range(images), shuffle=True, seed=4)
        made.rank, made.world_size = rank, world
        made.num_samples = -(-images // world)
        made.total_size = made.num_samples * world
        made.set_epoch(2)
        return made

    layout = Layout(images, batch, world, drop_last)
    for steps in range(layout.steps_left() + 1):
        start_at = steps * layout.step
        for rank in range(world):
            ours, stock = sampler(rank), sampler(rank, DefaultSampler)
            ours.start_at(start_at)
            batches = list(
                torch.utils.data.BatchSampler(ours, batch, drop_last))
            assert batches == list(
                torch.utils.data.BatchSampler(stock, batch, drop_last))[steps:]
            assert len(batches) == layout.steps_left(start_at)
            assert list(ours) == list(stock)  # the next pass is a whole one


def test_a_pass_of_other_processes_deals_the_rest_of_the_order():
    whole = SeededSampler(range(23), shuffle=True, seed=4)
    order, rest = list(whole), []
    for rank in range(3):
        share = SeededSampler(range(23), shuffle=True, seed=4)
        share.rank, share.world_size = rank, 3
        share.start_at(10)
        rest.append(list(share))
    assert {len(part) for part in rest} == {5}  # thirteen and two repeated
    assert [i for row in zip(*rest) for i in row] == order[10:] + order[:2]


def test_a_sampler_without_positions_is_refused_within_an_epoch(tmp_path):
    changes = {
        'train_dataloader.sampler.type': 'DefaultSampler',
        'train_cfg': dict(by_epoch=True, max_epochs=1)}
    cfg = small_cfg(tmp_path, **{
        'default_hooks.checkpoint.by_epoch': False,
        **changes})
    cfg.train_dataloader.dataset.pipeline.pop(0)
    cfg.default_hooks.pop('preflight')
    Runner.from_cfg(cfg).train()
    cfg.update(resume=True, load_from=str(tmp_path / 'iter_2.pth'))
    with pytest.raises(
            ValueError, match='at iteration 2, and DefaultSampler'
            r".*sampler.type='us3l_mm.SeededSampler'"):
        Runner.from_cfg(cfg).train()


class Toy(BaseModel):
    """A layer with dropout."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, inputs, mode):
        if mode == 'predict':
            return [torch.rand(1)]  # as shuffling and test-time dropout do
        return dict(loss=torch.dropout(self.layer(torch.stack(inputs)), 0.5,
                                       True).square().mean())


class Count(BaseMetric):

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(accuracy=len(results))


def train_toy(work_dir, validate, resume=None):
    torch.manual_seed(3)
    data = [dict(inputs=torch.randn(3)) for _ in range(8)]
    loader = dict(batch_size=2, dataset=data, sampler=dict(
        type='DefaultSampler', shuffle=True))
    cfg = dict(
        model=Toy(), work_dir=str(work_dir), train_dataloader=loader,
        train_cfg=dict(by_epoch=True,
                       max_epochs=3), log_level='ERROR', optim_wrapper=dict(
                           optimizer=dict(type='SGD', lr=.1, momentum=.9)),
        randomness=dict(seed=0), default_hooks=dict(
            checkpoint=dict(type='us3l_mm.AtomicCheckpointHook', interval=1,
                            save_best='accuracy', rule='greater'),
            exact_resume=dict(type='us3l_mm.ExactResumeHook')), resume=resume
        is not None, load_from=resume)
    if validate:
        cfg.update(val_cfg=dict(), val_evaluator=[Count()],
                   val_dataloader=loader)
    runner = Runner(**cfg, experiment_name=work_dir.name)
    runner.train()
    return runner


def test_validation_does_not_reach_training(tmp_path):
    with_it, without = (train_toy(tmp_path / str(validate), validate)
                        for validate in (True, False))
    assert_same(with_it, without)
    # So a run that validated before it was interrupted resumes exactly.
    again = train_toy(tmp_path / 'again', True,
                      str(tmp_path / 'True/epoch_2.pth'))
    assert_same(with_it, again)
