# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A mode such as 'gated' takes the same road as a width."""
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from small_run import small_cfg
from torch import nn

from us3l_mm.evaluation import (calibrate, count_complexity, extract_features,
                                knn_accuracy, width_latency)
from us3l_mm.export import slice_network
from us3l_mm.fileio import load_weights
from us3l_mm.models.layers import (
    FULL, SlimmableBatchNorm2d, SlimmableConv2d, SlimmableLayer, Subnet,
    SwitchableBatchNorm2d, at, has_statistics, subnet_list, subnets_of)
from us3l_mm.registry import MODELS

GATED = Subnet(gated=True)
MODES = ['dense', 'gated']
SWITCHABLE = {
    'model.backbone.norm_cfg': dict(type='SwitchableBN', subnets=MODES)}


@pytest.fixture
def tool(monkeypatch):
    """``main()`` of a tool with arguments, in this process."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / 'tools'))

    def main(name, *argv):
        importlib.import_module(name).main([str(word) for word in argv])

    return main


class Mask(nn.Module):
    """Keeps every other channel."""

    def forward(self, x):
        kept = torch.arange(x.shape[1], device=x.device) % 2
        return x * kept.view(1, -1, 1, 1)


class Gate(SlimmableLayer, nn.Module):
    """Masks channels where the gates are in use."""

    subnets = subnet_list(MODES)

    def __init__(self):
        super().__init__()
        self.mask = Mask()

    def on_subnet(self):
        pass

    def forward(self, x):
        return self.mask(x) if self.subnet.gated else x

    def plain(self, subnet):
        return Mask() if Subnet.of(subnet).gated else nn.Identity()


def toy(norm):
    """A convolution, a gate, a norm: with private or measured statistics."""
    torch.manual_seed(0)
    network = nn.Sequential(SlimmableConv2d(3, 8, 3, slice_in=False), Gate(),
                            norm, nn.ReLU())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | SwitchableBatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
    return network.eval()


def toys():
    return [
        toy(SwitchableBatchNorm2d(8, subnets=MODES)),
        toy(SlimmableBatchNorm2d(8))]


def labelled_batches():
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 3, 8, 8, generator=draw), torch.arange(6) % 3)
            for _ in range(2)]


@pytest.mark.parametrize('network', toys(), ids=['private', 'measured'])
def test_all_of_the_evaluation_takes_a_mode(network):
    assert subnets_of(network) == [FULL, GATED]
    batches = labelled_batches()
    images = torch.cat([images for images, _ in batches])
    calibrate(network, [images], MODES)
    assert has_statistics(network, 'gated')
    features, labels = extract_features(network, batches, MODES)
    assert [*features] == [FULL, GATED]
    for subnet, found in features.items():
        with torch.no_grad(), at(network, subnet):
            expected = network(images).mean(dim=(2, 3))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert knn_accuracy(found, labels, found, labels, k=1) == 100.0
        plain = slice_network(network, str(subnet))
        assert not any(isinstance(m, SlimmableLayer) for m in plain.modules())
        with torch.no_grad():
            torch.testing.assert_close(
                plain(images).mean(dim=(2, 3)), expected)
    assert not np.allclose(features[FULL], features[GATED])
    sizes = count_complexity(network, MODES, (8, 8))
    assert [*sizes] == [FULL, GATED]
    assert sizes[GATED].macs == 8 * 27 * 36
    assert width_latency(network, 'gated', (8, 8), min_run_time=0.01) > 0


def test_measured_statistics_of_a_mode_are_those_of_its_input():
    network, images = toys()[1], labelled_batches()[0][0]
    calibrate(network, [images], MODES)
    with torch.no_grad():
        x = network[0](images)
    for name, inputs in (('dense', x), ('gated', Mask()(x))):
        reference = nn.BatchNorm2d(8, momentum=1.0)
        reference(inputs)
        mean, var = network[2].statistics(name)
        torch.testing.assert_close(mean, reference.running_mean)
        torch.testing.assert_close(var, reference.running_var)
    assert 'running_mean_gated' in network[2].state_dict()


def evaluated(folder):
    """A config and a checkpoint of two modes, whose norms differ."""
    loader = dict(
        batch_size=16, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
            type='us3l_mm.RenderedDigits', split='train', num_images=32,
            pipeline=[
                dict(type='Resize', scale=(16, 16)),
                dict(type='PackInputs')]))
    cfg = small_cfg('unused', knn_bank_dataloader=loader,
                    knn_query_dataloader=loader, **SWITCHABLE)
    cfg.dump(folder / 'modes.py')
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    algorithm = MODELS.build(cfg.model)
    for name, value in algorithm.state_dict().items():
        if '.gated.' in name and value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    torch.save(dict(state_dict=algorithm.state_dict()), folder / 'modes.pth')
    return folder / 'modes.py', folder / 'modes.pth'


def test_modes_from_the_command_line_to_the_report(tool, tmp_path, capsys):
    files = evaluated(tmp_path)
    saved, out = tmp_path / 'saved.pth', tmp_path / 'out'
    tool('evaluate_widths', *files, '--widths', 'gated', 'dense', '--knn',
         '--latency', '--k', 3, '--device', 'cpu', '--out', out,
         '--save-checkpoint', saved)
    table = [
        line.split('│')[1:-1] for line in capsys.readouterr().out.splitlines()
        if line.startswith('│')]
    assert [row[0].strip() for row in table] == ['dense', 'gated']
    path = out / 'widths.json'
    rows = json.loads(path.read_text())['rows']
    assert [(row['subnet'], row['width']) for row in rows] == [('w1.00', 1.0),
                                                               ('gated', 1.0)]
    assert all(row['knn'] is not None and row['latency_ms'] > 0
               for row in rows)
    # A mode that is in the report already is not measured again.
    before = path.read_text()
    tool('evaluate_widths', *files, '--knn', '--latency', '--k', 3, '--device',
         'cpu', '--out', out)
    assert path.read_text() == before
    state, after = (load_weights(str(file))['state_dict']
                    for file in (files[1], saved))
    assert all(
        torch.equal(after[name], value) for name, value in state.items())


@pytest.mark.parametrize('name, before, option', [
    ('evaluate_widths', ['x.py', 'x.pth'], '--widths'),
    ('get_flops', ['x.py'], '--widths'),
    ('detect_image', ['x.py', 'x.pth', 'x.jpg'], '--width'), ])
@pytest.mark.parametrize('text, message', [
    ('gatd', "one of full, dense and gated, got 'gatd'"),
    ('1.5', 'multiplier in (0, 1], got 1.5'), ])
def test_command_lines_say_what_names_a_sub_network(tool, capsys, name, before,
                                                    option, text, message):
    with pytest.raises(SystemExit):
        tool(name, *before, option, text)
    error = capsys.readouterr().err
    assert f'argument {option}' in error and message in error


def test_a_network_without_gates_refuses_the_mode(tool, tmp_path):
    cfg = small_cfg('unused')
    cfg.dump(tmp_path / 'plain.py')
    with pytest.raises(SystemExit, match='has no gates'):
        tool('get_flops', tmp_path / 'plain.py', '--widths', 'gated')
