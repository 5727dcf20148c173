# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Reports of gated networks: one checkpoint at any budget."""
import csv
import importlib
import json
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from gated_networks import RESNET, model_cfg
from matplotlib.figure import Figure
from mmengine.registry import init_default_scope
from small_run import small_cfg
from torch import nn

from us3l_mm.evaluation import (Report, calibrate, calibrate_threshold,
                                count_complexity, knn_accuracy, load_backbone,
                                measure_gates, widths)
from us3l_mm.evaluation.data import (Images, build_loader, labelled_batches,
                                     shuffled)
from us3l_mm.evaluation.gates import GateTally
from us3l_mm.evaluation.loading import load_source
from us3l_mm.fileio import load_weights
from us3l_mm.models import GatedResNet_CIFAR, at
from us3l_mm.models.layers import (FULL, GATED, SwitchableBatchNorm2d,
                                   SwitchableGate, set_threshold)
from us3l_mm.registry import MODELS
from us3l_mm.visualization import gates as picture

BUDGETS = (0.7, 0.5)
MODES = ('dense', 'gated')


def varied(network, images):
    """Give random gates to ``network`` and the statistics of ``images``."""
    for module in network.modules():
        if hasattr(module, 'momentum'):
            module.momentum = 1.0
        if isinstance(module, SwitchableGate):
            nn.init.normal_(module.conv2.weight)
    for mode in MODES:
        with torch.no_grad(), at(network.train(), mode):
            network(images)
    return network.eval()


def images(count=24, size=16):
    return torch.randn(count, 3, size, size,
                       generator=torch.Generator().manual_seed(1))


def small_network(**options):
    torch.manual_seed(0)
    return varied(
        GatedResNet_CIFAR(18, reduction=1, base_channels=16, stem_channels=16,
                          num_stages=2, strides=(1, 2), dilations=(1, 1),
                          out_indices=(1, ), **options), images())


def test_private_statistics_are_those_that_pytorch_tracks():
    network, batch = small_network(), 2 * images()
    set_threshold(network, 0.5)
    expected = deepcopy(network)
    norms = [
        module for module in expected.modules()
        if isinstance(module, SwitchableBatchNorm2d)]
    for norm in norms:
        norm.of(GATED).train()
        norm.of(GATED).momentum = 1.0
    with torch.no_grad(), at(expected, 'gated'):
        expected(batch)
    changed = {
        name for name, value in expected.state_dict().items()
        if not torch.equal(value,
                           network.state_dict()[name])}
    assert len(norms) == 8 and len(changed) == 3 * 8
    assert all('.gated.' in name for name in changed)
    assert calibrate(network, [batch], ['gated']) == 0  # not asked for
    assert calibrate(network, [batch[:9], batch[9:]], ['gated'],
                     private=True) == 24
    # Batches of others differ behind the first norm, where they meet.
    first = 'layer1.0.bn1.gated.running_'
    for name in ('mean', 'var'):
        torch.testing.assert_close(network.state_dict()[first + name],
                                   expected.state_dict()[first + name])
    assert calibrate(network, [batch], ['gated'], private=True) == 24
    for name, value in network.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            torch.testing.assert_close(value, expected.state_dict()[name])
    # As before: what is tracked, and how the network runs.
    assert all(m.track_running_stats for m in norms) and not network.training


def test_threshold_and_statistics_of_a_budget_belong_together():
    network = small_network()
    batches = images().split(8)
    with torch.no_grad(), at(network, 'dense'):
        dense = network(images())[-1]
    threshold = calibrate_threshold(network, batches, 0.5, 0.002)
    assert measure_gates(network, batches).ratio == pytest.approx(
        0.5, rel=0.002)
    after = deepcopy(network.state_dict())
    # They are a fixed point: statistics measured again are the same.
    calibrate(network, batches, ['gated'], private=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, after[name]), name
    with torch.no_grad(), at(network, 'dense'):
        assert torch.equal(network(images())[-1], dense)
    # The statistics of training have another compute at this threshold.
    other = small_network()
    set_threshold(other, threshold)
    assert abs(measure_gates(other, batches).ratio - 0.5) > 0.002 * 0.5
    assert calibrate_threshold(other, batches, 0.5, 0.002,
                               statistics=False) != threshold
    assert torch.equal(other.state_dict()['layer1.0.bn2.gated.running_var'],
                       small_network().layer1[0].norm2.gated.running_var)


def test_a_budget_that_fails_changes_nothing():
    network = small_network()
    before = deepcopy(network.state_dict())
    with pytest.raises(ValueError, match='nearest ratio is'):
        calibrate_threshold(network, [images(2)], 0.5, 1e-9)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_norms_that_both_modes_share_keep_their_statistics():
    network = small_network(norm_cfg=dict(type='BN'))
    before = deepcopy(network.state_dict())
    calibrate_threshold(network, images().split(8), 0.5)
    changed = {
        name.rpartition('.')[2]
        for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])}
    assert changed == {'threshold'}


def test_images_that_a_sampler_repeats_do_not_count():
    network, tally = small_network(), GateTally(10)
    compute = network.compute((16, 16))
    with torch.no_grad(), at(network, 'gated'):
        for batch in images().split(8):
            tally.add(network.forward_gated(batch)[1], compute)
    found, expected = tally.use(), measure_gates(network, [images()[:10]])
    assert found.ratio == pytest.approx(expected.ratio)
    assert found.kinds == expected.kinds


# --- the tool ----------------------------------------------------------------


def labelled(split, num_images):
    return dict(
        batch_size=200, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
            type='us3l_mm.RenderedDigits', split=split, num_images=num_images,
            pipeline=[
                dict(type='Resize', scale=(16, 16)),
                dict(type='PackInputs')]))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A config and a checkpoint, whose statistics are those of its images."""
    folder = tmp_path_factory.mktemp('files')
    cfg = small_cfg('unused')
    cfg.model = {
        **model_cfg(backbone=dict(RESNET, reduction=1)), 'data_preprocessor':
        dict(type='SelfSupDataPreprocessor', mean=[64.] * 3, std=[64.] * 3)}
    cfg.knn_bank_dataloader = labelled('train', 240)
    cfg.knn_query_dataloader = labelled('test', 240)
    cfg.dump(folder / 'tiny.py')
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    algorithm = MODELS.build(cfg.model)
    batch, *_ = next(
        iter(
            labelled_batches(build_loader(labelled('train', 64)),
                             algorithm.data_preprocessor)))
    varied(algorithm.backbone, batch)
    torch.save(dict(state_dict=algorithm.state_dict()), folder / 'tiny.pth')
    return folder


@pytest.fixture(scope='module')
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / 'tools'))
        yield importlib.import_module('evaluate_widths')


@pytest.fixture
def evaluate(files, tool):

    def call(out, *flags):
        tool.main([
            str(files / 'tiny.py'),
            str(files / 'tiny.pth'), '--out',
            str(out), '--device', 'cpu', *flags])

    return call


FLAGS = [
    '--budgets', *map(str, BUDGETS), '--knn', '--k', '1', '--metric',
    'euclidean', '--num-images', '150', '--linear-runs', '2']


@pytest.fixture(scope='module')
def whole(files, tool, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    tool.main([
        str(files / 'tiny.py'),
        str(files / 'tiny.pth'), '--out',
        str(out), '--device', 'cpu', *FLAGS])
    return out


def rows_of(out):
    return json.loads((out / 'widths.json').read_text())['rows']


def test_each_budget_has_a_row_that_meets_it(files, whole):
    rows = rows_of(whole)
    assert [(row['subnet'], row.get('budget'))
            for row in rows] == [('w1.00', None), ('gated', None),
                                 ('gated', 0.7), ('gated', 0.5)]
    dense, *gated = rows
    assert not {'ratio', 'gates', 'threshold'} & dense.keys()
    assert gated[0]['threshold'] == 0
    for row, budget in zip(gated[1:], BUDGETS):
        assert row['ratio'] == pytest.approx(budget, rel=0.01)
        assert row['threshold'] != 0
    network = load_backbone(str(files / 'tiny.pth'), str(files / 'tiny.py'))
    total = count_complexity(network, ['dense'], (16, 16))[FULL].macs
    assert dense['gmacs'] == total / 1e9
    for row in gated:
        assert row['gmacs'] == pytest.approx(row['ratio'] * total / 1e9)
        assert [*row['gates']] == [
            f'layer{i}.{j}.gate1' for i in (1, 2) for j in (0, 1)]
        channels = [16, 16, 32, 32]
        on = 0
        for gate, number in zip(row['gates'].values(), channels):
            assert gate['off'] + gate['on'] + gate['data_dependent'] == number
            assert gate['on'] <= gate['density'] * number + 1e-5
            on += gate['density'] * number
        assert row['density'] == pytest.approx(on / sum(channels))
    for row in rows:
        assert len(row['linear_runs']) == 2
        assert row['linear_mean'] == pytest.approx(np.mean(row['linear_runs']))
        assert row['linear_deviation'] == pytest.approx(
            np.std(row['linear_runs'], ddof=1))
    report = Report.load(str(whole / 'widths.json'))
    assert report.row('gated', 0.5).linear_runs == rows[3]['linear_runs']
    with open(whole / 'widths.csv') as file:
        written = [*csv.DictReader(file)]
    assert [row['budget'] for row in written] == ['', '', '0.7', '0.5']
    assert float(written[3]['ratio']) == rows[3]['ratio']
    assert {path.name for path in whole.glob('*.png')} == {
        f'widths_{name}.png' for name in ('knn', 'linear', 'gates')}


def test_a_row_is_what_the_parts_give(files, whole):
    """Threshold, features and neighbours, each by itself."""
    source = load_source(str(files / 'tiny.pth'), str(files / 'tiny.py'))
    network, data = source.backbone, {}
    for split in ('train', 'test'):
        loader = build_loader(labelled(split, 240))
        batches = [*labelled_batches(loader, source.preprocessor)]
        data[split] = [
            torch.cat([batch[i] for batch in batches]) for i in (0, 1)]
    row = rows_of(whole)[3]
    shuffle = shuffled(build_loader(labelled('train', 240)), 150)
    calibrate_threshold(network, [*Images(shuffle, source.preprocessor)], 0.5,
                        widths.TOLERANCE)
    assert float(network.layer1[0].gate1.threshold) == row['threshold']
    use = measure_gates(network, data['test'][0].split(100))
    assert use.ratio == pytest.approx(row['ratio'])
    with torch.no_grad(), at(network, 'gated'):
        bank, queries = (network(x)[-1].mean((2, 3)) for x, _ in data.values())
    nearest = torch.cdist(queries, bank).argmin(dim=1)
    right = data['train'][1][nearest] == data['test'][1]
    assert row['knn'] == pytest.approx(100 * float(right.float().mean()))


def test_of_two_separate_networks_each_has_its_row(files, tool, tmp_path):
    content = load_weights(files / 'tiny.pth')
    state = content['state_dict']
    expected = {}
    flags = ['--widths', 'dense', 'gated', '--knn', '--device', 'cpu']
    for name in ('one', 'other', 'both'):
        if name == 'other':  # the weights of another network
            first = dict(state)
            for key in filter(re.compile('backbone.*conv').match, state):
                if 'gate' not in key:
                    state[key] = state[key].flip(0)
        if name == 'both':
            state.update({
                f'dense_network.{key}': state[key] for key in state
                if 'gate' not in key})
            state.update(first)
        path = tmp_path / f'{name}.pth'
        torch.save(content, path)
        out = tmp_path / name
        tool.main([
            str(files / 'tiny.py'),
            str(path), '--out',
            str(out), *flags])
        expected[name] = [row['knn'] for row in rows_of(out)]
    assert expected['one'][0] != expected['other'][0]
    assert expected['both'] == [expected['other'][0], expected['one'][1]]


def test_a_second_run_computes_nothing(evaluate, whole, monkeypatch, capsys):
    before = (whole / 'widths.json').read_text()
    for name in ('calibrate', 'calibrate_threshold', 'encode', 'knn_accuracy'):
        monkeypatch.setattr(widths, name, None)
    monkeypatch.setenv('COLUMNS', '140')
    evaluate(whole, *FLAGS)
    assert (whole / 'widths.json').read_text() == before
    printed = capsys.readouterr().out
    for text in ('dense', 'gated 0.7', 'gated 0.5', 'of dense', 'density',
                 'euclidean distance', '±', 'widths_gates.png'):
        assert text in printed


def test_an_interrupted_run_goes_on_budget_by_budget(evaluate, whole, tmp_path,
                                                     monkeypatch):
    calls, met = [], []
    known, meet = widths.knn_accuracy, widths.calibrate_threshold

    def interrupted(*data, **more):
        calls.append(data)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return known(*data, **more)

    def watched(network, batches, target, *more):
        met.append(target)
        return meet(network, batches, target, *more)

    monkeypatch.setattr(widths, 'knn_accuracy', interrupted)
    monkeypatch.setattr(widths, 'calibrate_threshold', watched)
    flags = FLAGS[:-2]
    with pytest.raises(SystemExit, match='goes on from there'):
        evaluate(tmp_path, *flags)
    evaluate(tmp_path, *flags)
    assert met == [0.7, 0.5, 0.5]
    for row, expected in zip(rows_of(tmp_path), rows_of(whole)):
        assert row == {
            name: None if name in ('linear', 'linear_decay') else value
            for name, value in expected.items()
            if name not in ('linear_runs', 'linear_mean', 'linear_deviation')}


def test_a_checkpoint_of_a_budget(evaluate, files, tmp_path):
    saved = str(tmp_path / 'half.pth')
    evaluate(tmp_path, '--widths', 'dense', '--budgets', '0.5', '--latency',
             '--save-checkpoint', saved)
    dense, gated = rows_of(tmp_path)
    assert dense['latency_ms'] > 0 and gated['latency_ms'] > 0
    assert gated['ratio'] == pytest.approx(0.5, rel=0.01)
    assert gated['knn'] is None  # not asked for
    before = load_weights(str(files / 'tiny.pth'))['state_dict']
    after = load_weights(saved)['state_dict']
    assert before.keys() == after.keys()
    changed = {
        name for name, value in after.items()
        if not torch.equal(value, before[name])}
    assert all('.gated.running_' in name or name.endswith('.threshold')
               for name in changed)
    assert len(changed) == 4 + 2 * 8
    assert after['backbone.layer1.0.gate1.threshold'] == pytest.approx(
        gated['threshold'])


@pytest.mark.parametrize('flags, message', [
    (['0.01'], 'target=0.01 is not a compute budget.*Use a target between'),
    (['1.5'], 'target=1.5 is not a compute budget'),
    (['0.5', '0.5'], 'A budget is named once, got 0.5, 0.5'),
    (['0.5', '0.6', '--save-checkpoint', 'x.pth'], 'one threshold, got'), ])
def test_budgets_that_cannot_be_are_refused_before_any_work(
        evaluate, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(widths, 'encode', None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        evaluate(tmp_path / 'out', '--budgets', *flags)
    assert not list(tmp_path.iterdir())


def test_bars_have_the_shares_of_the_channels():
    axes = Figure().add_subplot()
    picture._draw_bars(
        axes, {
            'layer1.0.gate1': dict(density=.5, off=2, on=4, data_dependent=2),
            'layer1.1.gate1': dict(density=.1, off=16, on=0, data_dependent=0)
        })
    found = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert found == [[.5, 0], [.25, 0], [.25, 1]]  # on, depends, off
    assert [text.get_text()
            for text in axes.get_xticklabels()] == ['layer1.0', 'layer1.1']
    assert axes.lines[0].get_ydata().tolist() == [.5, .1]


@pytest.mark.parametrize('k', [1, 5])
def test_euclidean_neighbours_are_those_of_a_table_of_distances(k):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    bank = rng.normal(size=(90, 4))
    bank[:, 0] += 3 * labels
    table = np.linalg.norm(bank[:30, None] - bank[None, 30:], axis=2)
    right = 0
    for distances, label in zip(table, labels[:30]):
        votes = np.zeros(3)
        for i in np.argsort(distances)[:k]:
            votes[labels[30 + i]] += 1 / distances[i]
        right += votes.argmax() == label
    data = bank[30:], labels[30:], bank[:30], labels[:30], k
    assert knn_accuracy(*data,
                        metric='euclidean') == pytest.approx(100 * right / 30)
    assert knn_accuracy(*data) != knn_accuracy(*data, metric='euclidean')
    with pytest.raises(ValueError, match="'cosine', 'euclidean'.*got 'l1'"):
        knn_accuracy(*data, metric='l1')
