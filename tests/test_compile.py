# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""With a width grid, compilation stops after the first iterations."""
import pytest
import torch
from mmengine.runner import Runner
from small_run import small_cfg
from torch._dynamo.utils import counters

from us3l_mm.models.layers import active_channels

EAGER = dict(backend='eager')  # counts graphs without generating code


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8,
                                    accumulated_recompile_limit=256):
        yield
    torch._dynamo.reset()


def train(folder, channels=64, **changes):
    """Four epochs; the widths, the number of graphs per iteration, weights."""
    cfg = small_cfg(folder, **changes)
    cfg.model.neck.in_channels = channels
    cfg.model.backbone.update(num_stages=1, strides=(1, ), dilations=(1, ),
                              out_indices=(0, ), base_channels=channels,
                              stem_channels=channels)
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.num_images = 6
    cfg.default_hooks.compile = dict(type='us3l_mm.CompileHook')
    cfg.default_hooks.sampler.update(num_stages=1, grid=1 / 8)
    cfg.merge_from_dict(changes)
    runner = Runner.from_cfg(cfg)
    widths, graphs = [], []
    begin = runner.model.begin

    def noted(batch):  # called in every training step
        widths.append([p.subnet.width for p in batch.plan.passes])
        graphs.append(counters['stats']['unique_graphs'])
        begin(batch)

    runner.model.begin = noted
    runner.train()
    graphs = [*graphs[1:], counters['stats']['unique_graphs']]
    return widths, graphs, runner.model.state_dict()


def test_one_graph_for_each_width_and_no_more(tmp_path):
    widths, graphs, state = train(tmp_path, compile=EAGER)
    met, expected = set(), []
    for iteration in widths:  # at 64 channels each is a network of its own
        met |= {*iteration}
        # And the teacher, without a gradient; backbone and projector.
        expected.append(2 * (len(met) + 1))
    assert graphs == expected
    assert 5 <= len(met) <= 7 < len([w for it in widths for w in it])
    _, _, plain = train(tmp_path)
    for name, value in plain.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)


def test_more_widths_than_pytorch_compiles_by_itself(tmp_path):
    changes = {
        'default_hooks.sampler.grid': 1 / 32,
        'compile': EAGER,
        'default_hooks.sampler.num_samples': 6,
        'train_cfg.max_epochs': 2}
    widths, graphs, _ = train(tmp_path, 128, **changes)
    met = {w for iteration in widths for w in iteration}
    networks = {active_channels(128, width) for width in met}
    # Widths that round to the same channels are one network, with the graphs
    # of its backbone and its projector.
    assert graphs[-1] == 2 * (len(networks) + 1)
    assert 10 < len(networks) < len(met)
    assert torch._dynamo.config.recompile_limit >= 2 * 25


def test_compiling_any_width_is_refused(tmp_path):
    with pytest.raises(
            ValueError, match='DynamicSamplerHook.grid=None. draws '
            'new ones.*Set a grid, such as grid=1/32'):
        train(tmp_path, **{
            'default_hooks.sampler.grid': None,
            'compile': True})


def test_compiling_without_the_hook_is_refused(tmp_path):
    with pytest.raises(ValueError, match='compile without CompileHook'):
        Runner.from_cfg(small_cfg(tmp_path, compile=True)).train()


def test_checkpoints_of_the_runner_are_refused(tmp_path):
    with pytest.raises(ValueError, match='model.backbone.with_cp=True'):
        Runner.from_cfg(
            small_cfg(tmp_path, activation_checkpointing='backbone')).train()
