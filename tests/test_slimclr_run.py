# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Real runs of SlimCLR: slow start, resume, and what comes after."""
import json

import pytest
import torch
from algorithms import student_parameters
from mmengine.runner import Runner
from mmpretrain.models import ResNet_CIFAR
from slimclr_networks import WIDTHS, model_cfg, small_slimclr
from small_run import small_cfg

from us3l_mm.apis import load_backbone, slice_checkpoint, slice_network
from us3l_mm.engine.wrappers.multi_pass_optim_wrapper import (
    multi_pass_amp_optim_wrapper)
from us3l_mm.export import slice_backbone
from us3l_mm.models import Plan, at_width


def run(work_dir, method='moco_v2', resume=None, **changes):
    """Six iterations of eight images in two epochs."""
    cfg = small_cfg(
        work_dir, **{
            'train_cfg.max_epochs': 2,
            'default_hooks.sampler.widths': WIDTHS,
            'default_hooks.sampler.weights': 'full plus all',
            'default_hooks.sampler.slow_start': 0.5,
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.interval': 2,
            'log_processor': dict(window_size=1),
            'optim_wrapper.optimizer.weight_decay': 1e-3,
            **changes})
    del cfg.default_hooks['group_reg']
    model = model_cfg(method, data_preprocessor=cfg.model.data_preprocessor)
    if method == 'moco_v2':
        model['head']['queue_length'] = changes.get('queue', 16)
    cfg.model = model
    if resume is not None:
        cfg.update(resume=True, load_from=str(resume))
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def log_of(work_dir):
    path, = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('slimclr')
    return folder, run(folder)


def test_sub_networks_join_when_the_slow_start_ends(trained):
    lines = log_of(trained[0])
    assert [line['stage'] for line in lines] == [0, 0, 0, 1, 1, 1]
    for line in lines:
        parts = [line[k] for k in line if k.startswith('loss_')]
        assert len(parts) == (5 if line['stage'] else 1)
    first, last = lines[0], lines[-1]
    assert first['loss'] == pytest.approx(first['loss_contrast_w1.00'])
    assert last['loss'] == pytest.approx(
        1.75 * last['loss_contrast_w1.00'] +
        sum(last[f'loss_{kind}_{width}'] for kind in ('contrast', 'distill')
            for width in ('w0.50', 'w0.25')), rel=1e-5)


def test_a_fractional_number_of_epochs(tmp_path):
    run(
        tmp_path, 'simclr', **{
            'default_hooks.sampler.slow_start': 0.0,
            'default_hooks.sampler.slow_start_epochs': 1 + 1 / 3})
    assert [line['stage'] for line in log_of(tmp_path)] == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize('method', ['moco_v2', 'moco_v3'])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, trained, method):
    """From before the end of the slow start to after it."""
    folder, whole = trained
    if method != 'moco_v2':
        folder = tmp_path / 'whole'
        whole = run(folder, method)
    resumed = run(tmp_path / 'resumed', method, folder / 'iter_2.pth')
    assert resumed.iter == whole.iter == 6
    state = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    optimizers = [
        runner.optim_wrapper.state_dict()['state']
        for runner in (whole, resumed)]
    for index, entry in optimizers[0].items():
        assert torch.equal(entry['momentum_buffer'],
                           optimizers[1][index]['momentum_buffer'])


def test_each_width_slices_into_a_plain_network_without_calibration(
        trained, tmp_path):
    path = str(trained[0] / 'iter_6.pth')
    network = load_backbone(path).double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for width in WIDTHS:
        plain = ResNet_CIFAR(18, base_channels=int(
            32 * width), stem_channels=int(32 * width), num_stages=2,
                             strides=(1, 2), dilations=(1, 1),
                             out_indices=(1, )).double()
        plain.eval()
        plain.load_state_dict(slice_backbone(network, width), strict=True)
        with at_width(network, width), torch.no_grad():
            expected = network(images)[-1]
            assert torch.equal(plain(images)[-1], expected)
            sliced = slice_network(network, width)
            assert torch.equal(sliced(images)[-1], expected)
    report = slice_checkpoint(path, str(tmp_path / 'half.pth'), 0.5,
                              input_size=16)
    assert report.gap < 1e-5
    with pytest.raises(
            ValueError, match=r'norm of its own for w0.75.*built '
            r'for \[w1.00, w0.50, w0.25\]'):
        slice_checkpoint(path, str(tmp_path / 'no.pth'), 0.75)


def test_mixed_precision_compares_in_single_precision():
    algorithm = small_slimclr('moco_v2').float()
    wrapper = multi_pass_amp_optim_wrapper(
        dtype='bfloat16', optimizer=torch.optim.SGD(
            student_parameters(algorithm).values(), lr=0.1))
    seen = []
    similarities = algorithm.head.similarities

    def watch(queries, keys):
        result = similarities(queries, keys)
        seen.extend([*queries, result[0][0]])
        return result

    algorithm.head.similarities = watch
    views = [
        torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
        for _ in range(2)]
    log = algorithm.train_step(
        dict(inputs=views, data_samples=[None] * 4, plan=Plan.fixed(WIDTHS)),
        wrapper)
    assert torch.isfinite(log['loss'])
    assert len(seen) == 6
    assert all(x.dtype == torch.float32 for x in seen)


@pytest.mark.parametrize('changes, message', [
    ({
        'default_hooks.sampler.slow_start': 1.0}, r'in \[0, 1\), got 1.0'),
    ({
        'default_hooks.sampler.slow_start': 0.0,
        'default_hooks.sampler.slow_start_epochs': 2
    }, 'slow_start_epochs=2 is '
     'not before the end of training'),
    ({
        'default_hooks.sampler.slow_start_epochs': 1
    }, 'in place of slow_start'),
    ({
        'default_hooks.sampler.weights': [1, 2]
    }, 'each of the 3 sub-networks'),
    ({
        'default_hooks.sampler.widths': None}, 'are those of a fixed list'),
    ({
        'queue': 20}, 'queue of 20 keys is not a multiple of the 8 images'),
    ({
        'default_hooks.sampler.widths': [1.0, 0.75]
    }, 'norm of its own for w0.75'), ], ids=str)
def test_mistakes_are_refused_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)
    assert not [*tmp_path.glob('*.pth')]
