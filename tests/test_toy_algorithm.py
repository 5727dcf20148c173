# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Another method is one file, which trains as US3L does, alone or together."""
import inspect
import json
import os

import pytest
import torch
import torch.nn.functional as F
import toy_algorithm
from algorithms import LOSSES, RESNET, randomise, sgd
from mmengine.runner import Runner
from processes import run_processes
from small_run import small_cfg

from us3l_mm.engine import MultiPassDistributedDataParallel
from us3l_mm.models import Plan, at_width
from us3l_mm.registry import MODELS

WIDTHS, BATCHES, IMAGES = [1.0, 0.5], 4, 8
MODES = ['sequential', 'accumulate']
MODEL = dict(
    type='us3l_mm.ToyAlgorithm',
    backbone=dict(RESNET, num_stages=1, strides=(1, ), dilations=(1, ),
                  out_indices=(0, )),
    neck=dict(type='us3l_mm.SlimmableProjector', in_channels=16,
              hid_channels=24, out_channels=12, with_last_bn=False), head=dict(
                  type='us3l_mm.PredictionHead', loss=LOSSES['cosine'],
                  weight=1.0))


def test_it_is_a_file_of_under_forty_lines():
    source = inspect.getsource(toy_algorithm.ToyAlgorithm)
    assert len(source.splitlines()) < 40


def build(update_mode, sync_norms=False):
    cfg = dict(MODEL, update_mode=update_mode, sync_norms=sync_norms)
    algorithm = randomise(MODELS.build(cfg).double().train())
    generator = torch.Generator().manual_seed(2)
    algorithm.queue = F.normalize(
        torch.randn(12, 12, generator=generator, dtype=torch.float64))
    algorithm.views = lambda data: data['views']
    return algorithm


def views_of(iteration):
    generator = torch.Generator().manual_seed(iteration)
    return [
        torch.rand(IMAGES, 3, 12, 12, generator=generator, dtype=torch.float64)
        for _ in range(2)]


def train(algorithm, model, rank=0, world_size=1):
    """Logs of a few batches, with the regularisation of the hook."""
    wrapper, logs = sgd(algorithm, regularise=True), []
    for iteration in range(BATCHES):
        views = [v.chunk(world_size)[rank] for v in views_of(iteration)]
        log = model.train_step(dict(views=views, plan=Plan.fixed(WIDTHS)),
                               wrapper)
        logs.append({k: float(v) for k, v in log.items()})
    return logs


@pytest.mark.parametrize('update_mode', MODES)
def test_a_step_is_what_the_method_says(update_mode):
    """The first batch by hand, without the loop of the package."""
    algorithm, twin = build(update_mode), build(update_mode)
    logs = train(algorithm, algorithm)
    optimizer = torch.optim.SGD(twin.parameters(), 0.05, 0.9)
    views, queue = views_of(0), twin.queue
    full, losses = None, []
    for width in WIDTHS:
        with at_width(twin, width):
            z1, z2 = (F.normalize(twin.neck(twin.backbone(v))[0])
                      for v in views)
        if full is None:
            scores = torch.cat([
                (z1 * z2.detach()).sum(1, keepdim=True), z1 @ queue.T],
                               1) / 0.2
            loss = -scores.log_softmax(1)[:, 0].mean()
            full = z2.detach()
        else:
            loss = -(z1 * full).sum(1).mean()
        losses.append(loss.item())
        (loss + sum(5e-5 * p.square().sum()
                    for p in twin.parameters())).backward()
        if update_mode == 'sequential':
            optimizer.step(), optimizer.zero_grad()
    assert logs[0]['loss_base'] == pytest.approx(losses[0], abs=1e-12)
    assert logs[0]['loss_w0.50'] == pytest.approx(losses[1], abs=1e-12)
    # Twelve keys, of which the newest eight are those of the first batch.
    fresh = build(update_mode)
    wrapper = sgd(fresh, regularise=True)
    fresh.train_step(dict(views=views, plan=Plan.fixed(WIDTHS)), wrapper)
    torch.testing.assert_close(fresh.queue, torch.cat([queue[8:], full]))
    if update_mode == 'accumulate':
        optimizer.step()
    for name, p in twin.named_parameters():
        torch.testing.assert_close(fresh.get_parameter(name), p, rtol=0,
                                   atol=1e-12)


def worker(rank, folder):
    for mode in MODES:
        algorithm = build(mode, sync_norms=True)
        train(algorithm, MultiPassDistributedDataParallel(algorithm), rank, 2)
        torch.save(algorithm.state_dict(),
                   os.path.join(folder, f'{mode}-{rank}.pth'))


@pytest.mark.ddp
def test_two_processes_equal_one(tmp_path):
    run_processes(worker, 2, tmp_path)
    for mode in MODES:
        algorithm = build(mode)
        initial = {k: v.clone() for k, v in algorithm.state_dict().items()}
        train(algorithm, algorithm)
        first, second = (torch.load(tmp_path / f'{mode}-{rank}.pth')
                         for rank in range(2))
        for name, value in algorithm.state_dict().items():
            assert torch.equal(first[name], second[name]), name
            # Keys of two processes stand in the same order as their images.
            torch.testing.assert_close(first[name], value, rtol=0, atol=1e-9,
                                       msg=lambda text, n=name: f'{n}: {text}')
        moved = [
            p for p, _ in algorithm.named_parameters()
            if not torch.equal(first[p], initial[p])]
        assert len(moved) == len([*algorithm.parameters()])


def test_a_runner_trains_it(tmp_path):
    cfg = small_cfg(
        tmp_path, **{
            'default_hooks.sampler.widths': WIDTHS,
            'train_cfg.max_epochs': 2})
    cfg.model = dict(MODEL, data_preprocessor=cfg.model.data_preprocessor)
    runner = Runner.from_cfg(cfg)
    queue = runner.model.queue.clone()
    runner.train()
    log, = tmp_path.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert {
            'loss', 'loss_base', 'loss_w0.50', 'loss_reg', 'spread_w1.00',
            'spread_w0.50', 'skipped'} <= line.keys()
    saved = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert torch.equal(saved['state_dict']['queue'], runner.model.queue)
    assert not torch.equal(runner.model.queue, queue)
    assert torch.allclose(runner.model.queue.norm(dim=1), torch.ones(12))
