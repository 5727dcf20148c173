# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The dense and the gated network of a checkpoint as plain networks."""
import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gated_networks import model_cfg
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from small_run import small_cfg

from us3l_mm.apis import load_backbone, prune_checkpoint, slice_checkpoint
from us3l_mm.evaluation import count_complexity, measure_gates
from us3l_mm.evaluation.loading import run_config
from us3l_mm.export import choose_channels, match_norms, prune, pruned_ratio
from us3l_mm.fileio import load_weights
from us3l_mm.models import (GatedResNet, GatedResNet_CIFAR, PrunedResNet,
                            SlimmableResNet, at)
from us3l_mm.models.layers import (ChannelGate, Gating, SwitchableGate,
                                   slimmable_layers)
from us3l_mm.registry import DATASETS, MODELS

TOOL = Path(__file__).parents[1] / 'tools/slice_checkpoint.py'
SMALL = dict(base_channels=16, stem_channels=16)
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.manual_seed(0))
# By name, with gates that leave channels on for all images or for none
STATIC = dict(r18=dict(type='us3l_mm.GatedResNet', depth=18, **SMALL),
              r50=dict(type='us3l_mm.GatedResNet', depth=50, **SMALL),
              cifar=dict(type='us3l_mm.GatedResNet_CIFAR', depth=18, **SMALL))


def loader(split, count):
    return dict(
        batch_size=25, num_workers=0, sampler=dict(type='DefaultSampler',
                                                   shuffle=False),
        collate_fn=dict(type='default_collate'), dataset=dict(
            type='us3l_mm.RenderedDigits', split=split, num_images=count,
            pipeline=[dict(type='PackInputs')]))


def written(folder, backbone, static):
    """The checkpoint of a run, with random weights and its own config."""
    torch.manual_seed(0)
    network = MODELS.build(dict(backbone))
    network.init_weights()
    for module in network.modules():
        if hasattr(module, 'momentum'):
            module.momentum = 1.0
        if isinstance(module, SwitchableGate):
            torch.nn.init.normal_(module.conv2.weight)
    for mode in ('dense', 'gated'):
        with torch.no_grad(), at(network.train(), mode):
            network(torch.randn(16, 3, 32, 32))
    for module in network.modules() if static else ():
        if isinstance(module, SwitchableGate):
            # The hidden layer is 1 for each image.
            torch.nn.init.zeros_(module.norm.weight)
            torch.nn.init.ones_(module.norm.bias)
    cfg = small_cfg(
        folder, **{
            'model': {
                '_delete_': True,
                **model_cfg(backbone=dict(backbone))},
            'knn_bank_dataloader': loader('train', 60),
            'knn_query_dataloader': loader('test', 40)})
    cfg.model.neck.in_channels = network.output_channels()[-1]
    path = folder / 'epoch_1.pth'
    torch.save(
        dict(
            state_dict={
                f'backbone.{key}': value
                for key, value in network.state_dict().items()},
            meta=dict(cfg=cfg.pretty_text)), path)
    return str(path)


@pytest.fixture(autouse=True)
def _times_are_short(monkeypatch):
    for module in ('pruned_file', 'sliced_file'):
        monkeypatch.setattr(f'us3l_mm.apis.{module}.MIN_RUN_TIME', 0.01)


@pytest.fixture(scope='module')
def static(tmp_path_factory):
    return {
        name: written(tmp_path_factory.mktemp(name), backbone, True)
        for name, backbone in STATIC.items()}


@pytest.fixture(scope='module')
def varying(tmp_path_factory):
    """Whose masks differ from image to image."""
    return written(tmp_path_factory.mktemp('varying'), STATIC['r18'], False)


@torch.no_grad()
def features(network, mode=None, images=IMAGES):
    if mode is None:
        return network(images)[-1].mean(dim=(2, 3))
    with at(network, mode):
        return network(images)[-1].mean(dim=(2, 3))


def run_usage(report, **names):
    exec(report.usage, names)
    return names


def of_config(report, scope='mmpretrain'):
    """The backbone that the printed config builds and loads."""
    config = run_usage(report)
    with DefaultScope.overwrite_default_scope(scope):
        network = ROOT_MODELS.build(config['backbone'])
    network.init_weights()
    network.eval()
    return network, config


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


# Dense -----------------------------------------------------------------------


@pytest.mark.parametrize('name', STATIC)
def test_dense_is_the_plain_network(static, tmp_path, name):
    report = slice_checkpoint(static[name], str(tmp_path / 'dense.pth'),
                              'dense', input_size=32)
    network, config = of_config(report)
    # The authors' stem has another padding than MMPretrain's.
    kind = 'us3l_mm.PrunedResNet_CIFAR' if name == 'cifar' else 'ResNet'
    assert config['backbone']['type'] == kind and report.gap == 0
    assert torch.equal(features(network),
                       features(load_backbone(static[name]), 'dense'))
    assert report.milliseconds > 0
    strict = torch.load(report.out, weights_only=True)['state_dict']
    assert {k.removeprefix('backbone.')
            for k in strict} == network.state_dict().keys()


# Both kinds of block and both stems in each library, over the two tests.
@pytest.mark.parametrize('name, library', [('r50', 'torchvision'),
                                           ('r18', 'timm'), ('cifar', 'timm')])
def test_other_libraries_load_dense_as_printed(static, tmp_path, name,
                                               library):
    pytest.importorskip(library)
    report = slice_checkpoint(static[name], str(tmp_path / 'dense.pth'),
                              'dense', library, input_size=32)
    found = run_usage(report, images=IMAGES)['features']
    expected = features(load_backbone(static[name]), 'dense')
    assert relative(found, expected) < 1e-5


# Pruned ----------------------------------------------------------------------


@pytest.mark.parametrize('name', STATIC)
def test_without_channels_that_depend_on_images_it_is_exact(
        static, tmp_path, name):
    report = prune_checkpoint(static[name], str(tmp_path / 'pruned.pth'))
    off, always, depends = map(sum, zip(*report.use.kinds.values()))
    assert depends == 0 and off > 20 < always
    # Sums of other length round differently; the next line is exact.
    assert report.gap.error < 1e-5 and report.gap.neighbours == 1.0
    network, config = of_config(report)
    assert not any(slimmable_layers(network))
    assert not any(isinstance(m, ChannelGate) for m in network.modules())
    gated = load_backbone(static[name]).double()
    expected = features(gated, 'gated', IMAGES.double())
    found = features(network.double(), images=IMAGES.double())
    assert relative(found, expected) < 1e-12
    compute, counts = gated.compute((32, 32)), []
    for gate in compute.names:
        counts.append(report.use.kinds[gate][1])
    gates = float(compute.macs(compute.channels[None])) - compute.total
    assert report.size.macs == float(compute.macs(torch.tensor([counts
                                                                ]))) - gates
    assert report.size.macs < 0.75 * report.dense_size.macs
    assert config['head']['in_channels'] == expected.shape[1]
    assert sum(map(sum, config['backbone']['mid_channels'])) == sum(counts)


@pytest.mark.parametrize('name, library', [('r18', 'torchvision'),
                                           ('cifar', 'torchvision'),
                                           ('r50', 'timm')])
def test_other_libraries_load_pruned_as_printed(static, tmp_path, name,
                                                library):
    pytest.importorskip(library)
    report = prune_checkpoint(static[name], str(tmp_path / 'p.pth'),
                              file_format=library)
    found = run_usage(report, images=IMAGES)
    expected = features(load_backbone(static[name]), 'gated')
    assert relative(found['features'], expected) < 1e-5
    assert type(found['network']).__module__.startswith(library)


def test_onnx_computes_the_same(static, tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    report = prune_checkpoint(static['r18'], str(tmp_path / 'p.onnx'),
                              file_format='onnx')
    session = run_usage(report)['session']
    found = session.run(['features'], dict(images=IMAGES.numpy()))[0]
    expected = features(load_backbone(static['r18']), 'gated')
    assert relative(torch.from_numpy(found), expected) < 1e-5


def test_the_pruned_network_costs_no_more_than_the_gated_one(
        varying, tmp_path):
    """And the file says what was chosen."""
    report = prune_checkpoint(varying, str(tmp_path / 'p.pth'), target=0.5)
    assert report.use.ratio == pytest.approx(0.5, rel=0.01)
    dense = report.dense_size.macs
    assert 0.97 * 0.495 < report.size.macs / dense <= report.use.ratio
    assert sum(kinds[2] for kinds in report.use.kinds.values()) > 50
    assert 0 < report.min_share < 1
    meta = torch.load(report.out, weights_only=True)['meta']
    assert meta == report.meta and meta['subnet'] == 'gated'
    assert meta['gates']['target'] == 0.5
    assert meta['gates']['images'].startswith(
        '60 images of knn_bank_dataloader in ')
    assert meta['architecture']['type'] == 'us3l_mm.PrunedResNet'
    assert meta['gap']['images'] == 40
    assert min(report.milliseconds.values()) > 0


def test_the_gap_is_measured_on_images_that_chose_no_channel(
        varying, tmp_path):
    """Again from the file, by NumPy, on the images of the test split."""
    report = prune_checkpoint(varying, str(tmp_path / 'p.pth'))
    pruned, _ = of_config(report)
    gated = load_backbone(varying)
    dataset = DATASETS.build(loader('test', 40)['dataset'])
    images = torch.stack([item['inputs'] for item in dataset])
    images = (images.float() - 120) / 60
    ours, theirs = (f.double().numpy()
                    for f in (features(gated, 'gated', images),
                              features(pruned, images=images)))
    expected = np.sqrt(((ours - theirs)**2).mean() / (ours**2).mean())
    assert report.gap.error == pytest.approx(expected, rel=1e-4)
    unit = [
        f / np.linalg.norm(f, axis=1, keepdims=True) for f in (ours, theirs)]
    assert report.gap.cosine == pytest.approx(
        (unit[0] * unit[1]).sum(1).mean(), rel=1e-6)
    nearest = [(u @ u.T - 3 * np.eye(40)).argmax(axis=1) for u in unit]
    assert report.gap.neighbours == (nearest[0] == nearest[1]).mean()
    assert 0 < report.gap.error < 1 > report.gap.neighbours


def test_a_gap_above_the_limit_is_refused(varying, tmp_path):
    with pytest.raises(
            ValueError, match='more than max_gap=0.001 allows: .*'
            'nearest neighbour.*nothing was written'):
        prune_checkpoint(varying, str(tmp_path / 'p.pth'), max_gap=0.001)
    assert os.listdir(tmp_path) == []


def test_channels_can_be_kept_by_their_share(varying, tmp_path):
    report = prune_checkpoint(varying, str(tmp_path / 'p.pth'), min_share=0.25)
    network, _ = of_config(report)
    kept = [int((on >= 0.25).sum()) for on in report.use.shares.values()]
    assert [c for stage in network.mid_channels for c in stage] == kept
    assert report.min_share == 0.25


def test_without_queries_a_quarter_of_the_images_is_held_out(
        varying, tmp_path):
    content = load_weights(varying)
    config = run_config(varying, content)
    config.knn_query_dataloader = None
    report = prune_checkpoint(varying, str(tmp_path / 'p.pth'), config=config)
    assert report.meta['gates']['images'].startswith('45 images')
    assert report.gap.images == 15
    config.knn_bank_dataloader = None
    report = prune_checkpoint(varying, str(tmp_path / 'p.pth'), num_images=10,
                              config=config)
    assert report.meta['gates']['images'].startswith(
        '10 images of train_dataloader')
    assert report.gap.images == 14


# Choice and cut --------------------------------------------------------------


@pytest.mark.parametrize('make, depth', [(GatedResNet, 18),
                                         (GatedResNet_CIFAR, 50)])
@pytest.mark.parametrize('share', [0.0, 0.4, 1.0])
def test_pruning_is_running_with_these_masks(make, depth, share, monkeypatch):
    torch.manual_seed(0)
    network = make(depth, **SMALL).double().eval()
    for value in network.state_dict().values():
        if value.ndim == 1:
            value.copy_(torch.rand_like(value) + 0.5)
    kept = {
        name: torch.rand(gate.conv2.out_channels) < share
        for name, gate in network.named_modules()
        if isinstance(gate, SwitchableGate)}
    kept[min(kept)][:] = False  # a block without any channel
    for name in kept:
        network.get_submodule(name).of_test = name

    def forced(self, x):
        mask = kept[self.of_test].to(x).expand(len(x), -1)
        return Gating(mask, mask)

    monkeypatch.setattr(SwitchableGate, 'forward', forced)
    pruned = prune(network, kept)
    images = IMAGES.double()
    torch.testing.assert_close(features(pruned, images=images),
                               features(network, 'gated', images), rtol=1e-12,
                               atol=1e-12)
    assert isinstance(pruned, PrunedResNet) == (make is GatedResNet)
    compute = network.compute((32, 32))
    size = count_complexity(pruned, [1.0], (32, 32))
    counted, = size.values()
    assert counted.macs == pytest.approx(
        compute.total * pruned_ratio(compute, kept), abs=1)


def test_the_channels_on_most_often_are_kept():
    compute = GatedResNet(18, **SMALL).compute((32, 32))
    draw = torch.Generator().manual_seed(0)
    shares = {
        name: torch.rand(int(count), generator=draw)
        for name, count in zip(compute.names, compute.channels)}
    kept, least = choose_channels(shares, compute, 0.4)
    assert pruned_ratio(compute, kept) <= 0.4
    on, off = ([
        float(value) for name in kept
        for value in shares[name][kept[name] == state]]
               for state in (True, False))
    assert min(on) == pytest.approx(least) and min(on) > max(off)
    # One more would cost too much.
    more = {name: shares[name] >= max(off) for name in kept}
    assert sum(int(m.sum()) for m in more.values()) == len(on) + 1
    assert pruned_ratio(compute, more) > 0.4
    everything, least = choose_channels(shares, compute, 1.0)
    assert all(mask.all() for mask in everything.values())
    never = {name: torch.zeros_like(on) for name, on in shares.items()}
    nothing, least = choose_channels(never, compute, 1.0)
    assert not any(mask.any() for mask in nothing.values()) and least == 1.0


# Bad input -------------------------------------------------------------------


@pytest.mark.parametrize('mid_channels', [[[8, 8]], [[8], [8], [8], [
    8]], 8, [[8, 8], [8, 8], [8, 8], [8, 129]], [[8, 8], [0, 8], [8, 8], [
        8, 8]], [[8, 8], [8, 8], [8, 8], [8, 2.5]]])
def test_inner_widths_that_do_not_fit_are_refused(mid_channels):
    with pytest.raises(
            ValueError, match=r'mid_channels has a list for each '
            r'stage.*\[\[16, 16\], \[32, 32\], .*got'):
        PrunedResNet(18, mid_channels, **SMALL)


@pytest.mark.parametrize('arguments, error, message', [
    (dict(target=2), ValueError, r'target is a share in \(0, 1\], got 2'),
    (dict(target=0.01), ValueError, 'Use a target between'),
    (dict(min_share=0), ValueError, r'min_share is a share .*got 0'),
    (dict(max_gap=-1), ValueError, 'max_gap is the largest .*got -1'),
    (dict(num_images=0), ValueError, 'num_images .*got 0'),
    (dict(num_images=2), ValueError, 'There are 2 images .* at least 3'),
    (dict(file_format='caffe'), ValueError, "got 'caffe'"),
    (dict(device='gpu'), ValueError, "'gpu' is not available")])
def test_what_cannot_be_pruned_is_refused(varying, tmp_path, arguments, error,
                                          message):
    with pytest.raises(error, match=message):
        prune_checkpoint(varying, str(tmp_path / 'p.pth'), **arguments)
    assert os.listdir(tmp_path) == []


def test_networks_without_gates_or_images_are_refused(varying, tmp_path):
    out = str(tmp_path / 'p.pth')
    with pytest.raises(ValueError, match='no slice. Use prune_checkpoint'):
        slice_checkpoint(varying, out, 'gated')
    content = torch.load(varying, weights_only=True)
    text = content['meta']['cfg']
    for name, model, message in (
        ('plain', "model = dict(backbone=dict(type='us3l_mm.SlimmableResNet', "
         'depth=18, base_channels=16, stem_channels=16))', 'has no gates'),
        ('bare', f'model = {Config.fromstring(text, ".py").model.to_dict()}',
         'no config of its run.*--config')):
        folder = tmp_path / name
        folder.mkdir()
        content['meta']['cfg'] = model
        if name == 'plain':
            content['state_dict'] = SlimmableResNet(18, **SMALL).state_dict()
        else:
            content['state_dict'] = torch.load(varying,
                                               weights_only=True)['state_dict']
        torch.save(content, folder / 'c.pth')
        with pytest.raises(ValueError, match=message):
            prune_checkpoint(str(folder / 'c.pth'), out)
    assert not os.path.exists(out)


def test_the_command(varying, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location('tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    out = str(tmp_path / 'p.pth')
    tool.main([varying, out, '--width', 'gated', '--target', '0.5'])
    printed = capsys.readouterr().out
    for words in ('On 60 images of knn_bank_dataloader', 'never on', 'cosine',
                  'nearest neighbour', 'ms an image', 'PrunedResNet',
                  'mid_channels=', out):
        assert words in printed, printed
    with pytest.raises(SystemExit):
        tool.main([varying, out, '--width', 'dense', '--target', '0.5'])
    assert '--target is for --width gated' in capsys.readouterr().err


# Norms -----------------------------------------------------------------------


def test_matched_norms_put_out_what_those_of_the_gated_network_do(varying):
    """In the mean and in the variance of each channel, over the images."""
    network = load_backbone(varying).double()
    batches = [IMAGES.double(), IMAGES.double().flip(3)]
    shares = measure_gates(network, batches).shares
    kept = {name: on > 0.5 for name, on in shares.items()}
    pruned = prune(network, kept)
    before = {k: v.clone() for k, v in pruned.state_dict().items()}

    def outputs(net, mode=None):
        """Of the second norm of each block."""
        found, handles = {}, []
        for name, norm in net.named_modules():
            if re.fullmatch(r'layer\d\.\d\.bn2', name):
                handles.append(
                    norm.register_forward_hook(lambda _, x, y, name=name: found
                                               .__setitem__(name, y.clone())))
        features(net, mode, torch.cat(batches))
        for handle in handles:
            handle.remove()
        return found

    expected = outputs(network, 'gated')
    apart = outputs(pruned)
    match_norms(network, pruned, kept, batches)
    found = outputs(pruned)
    assert len(expected) == 8
    for name, there in found.items():
        for moment in (torch.mean, torch.std):
            wanted = moment(expected[name], dim=(0, 2, 3))
            torch.testing.assert_close(moment(there, dim=(0, 2, 3)), wanted,
                                       rtol=1e-3, atol=1e-3)
            assert not torch.allclose(moment(apart[name], dim=(0, 2, 3)),
                                      wanted, rtol=1e-2, atol=1e-2)
    changed = {
        name for name, value in pruned.state_dict().items()
        if not torch.equal(value, before[name])}
    assert changed == {
        f'{name}.{leaf}' for name in expected
        for leaf in ('running_mean', 'running_var')}


def test_norms_behind_unchanged_channels_are_not_changed(static):
    network = load_backbone(static['r50']).double()
    batches = [IMAGES.double()]
    kept = {
        name: on > 0
        for name, on in measure_gates(network, batches).shares.items()}
    pruned = prune(network, kept)
    before = features(pruned, images=batches[0])
    match_norms(network, pruned, kept, batches)
    torch.testing.assert_close(features(pruned, images=batches[0]), before,
                               rtol=1e-6, atol=1e-9)


def test_norms_are_matched_where_that_lessens_the_gap(varying, tmp_path,
                                                      monkeypatch):
    out = str(tmp_path / 'p.pth')
    report = prune_checkpoint(varying, out, min_share=0.01)
    assert report.meta['gates']['matched_norms']
    monkeypatch.setattr('us3l_mm.apis.pruned_file.match_norms',
                        lambda *arguments: None)
    plain = prune_checkpoint(varying, out, min_share=0.01)
    assert not plain.meta['gates']['matched_norms']
    assert report.gap.error < plain.gap.error


def test_of_two_separate_networks_the_dense_one_is_the_slice(
        varying, tmp_path):
    content = load_weights(varying)
    key = 'backbone.conv1.weight'
    own = content['state_dict'][key] + 1
    content['state_dict'][f'dense_network.{key}'] = own
    torch.save(content, tmp_path / 'two.pth')
    slice_checkpoint(str(tmp_path / 'two.pth'), str(tmp_path / 'd.pth'),
                     'dense')
    assert torch.equal(
        load_weights(tmp_path / 'd.pth')['state_dict'][key], own)
