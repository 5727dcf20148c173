# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The benchmarks run, and what they measure is what they say."""
import importlib
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from mmpretrain.models import ResNet
from processes import start_processes
from torch import nn

from us3l_mm.models import GatedResNet_CIFAR

BENCHMARKS = Path(__file__).parents[1] / 'tools' / 'benchmarks'
CONFIGS = Path(__file__).parents[1] / 'configs' / 'us3l'
SLIMCLR = CONFIGS.parent / 'slimclr' / 'slimclr_resnet18_demo_digits.py'
GATED = CONFIGS.parent / 'gated' / 'gated_resnet18_demo_digits.py'
MIB = 2**20


@pytest.fixture(autouse=True)
def _benchmarks_are_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def figures_of(path, name, *arguments):
    """What a benchmark writes to its JSON file."""
    benchmark = importlib.import_module(name)
    benchmark.main([
        '--device', 'cpu', *map(str, arguments), '--json',
        str(path / 'figures.json')])
    return json.loads((path / 'figures.json').read_text())


def numbers(value):
    """All numbers inside of ``value``."""
    if isinstance(value, (dict, list)):
        inside = value.values() if isinstance(value, dict) else value
        return [number for item in inside for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize('network', [
    ['--image-size', 16],
    [
        '--config', CONFIGS / 'us3l_vit-tiny_8xb64-coslr-300e_cifar10.py',
        '--image-size', 32, '--cfg-options', 'model.backbone.img_size=32'],
    ['--config', SLIMCLR, '--image-size', 32, '--widths', 1.0, 0.5]], ids=[
        'resnet', 'vit', 'slimclr'])
def test_train_step_gives_finite_figures(network, tmp_path):
    figures = figures_of(tmp_path, 'train_step', *network, '--batch-size', 2,
                         '--rounds', 1)
    assert all(map(math.isfinite, numbers(figures)))
    parts = {row['part']: row for row in figures['parts']}
    assert parts['iteration']['share'] == 1
    assert all(row['ms'] > 0 for row in parts.values())


def test_vit_widths_are_timed_in_three_ways(tmp_path):
    figures = figures_of(tmp_path, 'vit_widths', '--batch-size', 2, '--rounds',
                         1, '--patch-size', 8, '--widths', 1.0, 0.5)
    assert all(map(math.isfinite, numbers(figures)))
    full, half = figures['widths']
    assert full['macs'] == full['reference_macs'] > half['reference_macs']
    assert half['reference_macs'] > 1.3 * half['macs']
    assert min(half[name] for name in ('slimmable', 'sliced', 'reference')) > 0


@pytest.mark.parametrize('layout', [[], ['--layout', 'contiguous']])
def test_a_slice_needs_the_memory_of_the_plain_network(layout, tmp_path):
    figures = figures_of(tmp_path, 'slices', '--depth', 18, '--batch-size', 1,
                         '--rounds', 1, '--image-size', 32, '--widths', 0.25,
                         1.0, *layout)
    assert all(map(math.isfinite, numbers(figures)))
    for row in figures['widths']:
        channels = int(64 * row['width'])
        plain = ResNet(18, base_channels=channels, stem_channels=channels)
        weights = sum(t.nbytes for t in plain.state_dict().values()) / MIB
        assert row['largest_difference'] == 0
        assert row['sliced']['mib'] == row['plain']['mib'] > weights
        for kind in ('sliced', 'plain', 'slimmable'):
            assert row[kind]['ms'] > 0 and row[kind]['ratio'] > 0
    narrow, full = figures['widths']
    # The slimmable network holds all its weights at every width.
    assert narrow['slimmable']['mib'] > weights
    assert narrow['sliced']['mib'] < 0.2 * full['sliced']['mib']


def test_gates_are_timed_in_four_ways(tmp_path):
    figures = figures_of(tmp_path, 'gated_latency', '--rounds', 1,
                         '--image-sizes', 16, '--depths', 18, '--densities',
                         0.25, 1.0)
    quarter, full = figures['rows']
    for row in (quarter, full):
        # Gates that leave all channels on cost a little, and save nothing.
        compute = GatedResNet_CIFAR(18).compute((16, 16))
        counts = (compute.channels * row['density'])[None]
        gated = int(compute.macs(counts))
        gates = int(compute.macs(compute.channels[None])) - compute.total
        assert row['dense']['macs'] == compute.total
        assert row['masked']['macs'] == compute.total + gates
        assert row['dynamic']['macs'] == gated
        assert row['pruned']['macs'] == gated - gates
        assert 0 <= row['largest_difference'] < 1e-5
        for kind in ('dense', 'masked', 'dynamic', 'pruned'):
            assert row[kind]['ms'] > 0
    limit, = figures['faster_up_to']
    benchmark = importlib.import_module('gated_latency')
    assert limit['density'] == benchmark.break_even(figures['rows'])[0][2]


def test_where_dynamic_execution_stops_to_be_faster():
    benchmark = importlib.import_module('gated_latency')

    def limits(*ratios):
        rows = [
            dict(depth=18, image_size=32, density=density,
                 dynamic=dict(ratio=ratio)) for density, ratio in ratios]
        return benchmark.break_even(rows)

    assert limits((.9, 1.1), (.1, .4), (.5, .7)) == [(18, 32, .5)]
    assert limits((.1, 1.2), (.5, .9)) == [(18, 32, None)]
    assert limits((.1, .2), (.9, .9)) == [(18, 32, .9)]


def test_peak_memory_counts_what_is_alive_together():
    slices = importlib.import_module('slices')
    images = torch.zeros(1, 3, 64, 64)
    three = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU())
    with torch.no_grad():
        # A map and the one before it; the image was there already.
        assert slices.peak_memory(three, images) == 2 * images.nbytes
        three.register_buffer('held', torch.zeros(5))
        assert slices.peak_memory(three, images) == 2 * images.nbytes + 20


def test_one_pass_and_by_width_measure_the_same(tmp_path):
    figures = figures_of(tmp_path, 'calibration', '--base-channels', 16,
                         '--image-size', 32, '--num-images', 20,
                         '--batch-size', 8, '--rounds', 1, '--num-widths', 3)
    assert all(map(math.isfinite, numbers(figures)))
    assert figures['largest_difference'] < 1e-5
    assert [row['part'] for row in figures['parts']] == [
        'calibration', 'features', 'both']
    for row in figures['parts']:
        assert row['ratio'] == row['by_width_s'] / row['one_pass_s']
    *parts, both = figures['parts']
    for way in ('one_pass_s', 'by_width_s'):
        assert both[way] == pytest.approx(sum(row[way] for row in parts))


@pytest.mark.parametrize('layout', [[], ['--channels-last']])
def test_knn_of_widths_is_compared_with_their_forwards(layout, tmp_path):
    figures = figures_of(tmp_path, 'width_knn', '--base-channels', 8, '--bank',
                         30, '--queries', 10, '--image-size', 8,
                         '--batch-size', 16, '--rounds', 2, '--num-widths', 3,
                         *layout)
    assert all(map(math.isfinite, numbers(figures)))
    assert len(figures['accuracies']) == 3
    parts = {row['part']: row for row in figures['parts']}
    assert [*parts] == [
        'bare forwards', 'features', 'neighbours', 'both', 'reading',
        'calibration']
    assert parts['bare forwards']['ratio_range'] == [1, 1]
    assert min(row['s'] for row in parts.values()) > 0
    # Medians of two rounds are means.
    assert parts['both']['s'] == pytest.approx(parts['features']['s'] +
                                               parts['neighbours']['s'])


@pytest.mark.ddp
def test_communication_counts_what_is_said(tmp_path, monkeypatch):
    # Forks, which begin sooner than new processes.
    monkeypatch.setattr('torch.multiprocessing.spawn',
                        partial(start_processes, start_method='forkserver'))
    figures = figures_of(
        tmp_path, 'communication', '--image-size', 8, '--batch-size', 2,
        '--rounds', 1, '--iterations', 200, '--modes', 'sequential',
        'accumulate', '--cfg-options', 'model.backbone.base_channels=16',
        'model.backbone.stem_channels=16', 'model.neck.in_channels=128')
    modes = {row['update_mode']: row for row in figures['modes']}
    assert [row['optimizer_steps'] for row in modes.values()] == [3, 1]
    for row in modes.values():
        # Every trained parameter once per optimizer step, in any mode.
        assert row['said']['gradients']['mib'] == pytest.approx(
            row['optimizer_steps'] * row['parameters_mib'])
        # Two views, prediction and target, in the base pass alone: 256
        # numbers of 2 images from 2 processes each.
        assert row['said']['embeddings'] == dict(calls=4,
                                                 mib=4 * 4 * 256 * 4 / MIB)
        # One exchange forward, one backward: 20 norms of the ResNet and 2 of
        # the projector, 1 of the distillation head; two views; the teacher.
        assert row['said']['norms']['calls'] == 2 * (22 + 22 * 2 + 2 * 23 * 2)
        assert min(row[name] for name in ('together_ms', 'apart_ms',
                                          'alone_ms', 'communication')) > 0
    with_grid, without = figures['shapes']['rows']
    assert with_grid['grid'] == 1 / 32 and without['grid'] is None
    assert with_grid['widths'] <= 25 < 100 < without['widths']
    assert with_grid['graphs'] == 2 * (with_grid['widths'] + 1)


def test_products_with_a_queue(tmp_path):
    figures = figures_of(tmp_path, 'queue_logits', '--batch-size', 4,
                         '--queue-length', 64, '--rounds', 2)
    assert figures['settings']['widths'] == 4
    assert min(figures[k] for k in ('each_ms', 'once_ms', 'ratio')) > 0


def test_views_are_made_in_two_ways(tmp_path):
    figures = figures_of(
        tmp_path, 'augmentation', '--configs',
        CONFIGS / 'us3l_resnet18_4xb128-coslr-400e_cifar10.py', '--batch-size',
        32, '--rounds', 2)
    [row] = figures['rows']
    assert row['image_size'] == 32
    assert min(row[name] for name in ('image_per_s', 'batch_per_s')) > 0
    # Measured: 7
    assert row['ratio'] > 2
