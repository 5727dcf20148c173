# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Features, kNN, linear probe, sizes: against other ways to compute them."""
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import run_processes
from fvcore.nn import FlopCountAnalysis
from mmpretrain.models import ResNet, ResNet_CIFAR
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils import resample
from torch import nn

from us3l_mm.evaluation import (Report, WidthRow, calibrate, chance_accuracy,
                                count_complexity, default_subnets,
                                extract_features, knn_accuracy, linear_probe,
                                raw_pixels, width_latency)
from us3l_mm.evaluation import features as features_module
from us3l_mm.evaluation import spool
from us3l_mm.evaluation.features import encode
from us3l_mm.evaluation.latency import latency
from us3l_mm.evaluation.linear_probe import linear_run
from us3l_mm.evaluation.report import resume
from us3l_mm.export import slice_network
from us3l_mm.models import SlimmableResNet, SlimmableResNet_CIFAR
from us3l_mm.models.layers import Subnet, at, set_subnet
from us3l_mm.visualization import plot_reports


def small_resnet(**options):
    torch.manual_seed(0)
    return SlimmableResNet_CIFAR(depth=18, base_channels=16, stem_channels=16,
                                 **options)


def labelled_batches(sizes=(4, 1, 3)):
    g = torch.Generator().manual_seed(0)
    return [(torch.rand(n, 3, 8, 8, generator=g),
             torch.randint(0, 3, (n, ), generator=g)) for n in sizes]


def blobs(n=240, c=12, classes=4, seed=0):
    """Overlapping classes, in train and test."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(9).normal(size=(classes, c))
    features = centres[labels] + 1.3 * rng.normal(size=(n, c))
    # Different scales and an offset, which a probe has to live with.
    return (features * 10.0**rng.integers(-1, 2, c) + 5).astype(
        np.float32), labels


def test_features_are_pooled_maps_of_each_width():
    network, batches = small_resnet(), labelled_batches()
    calibrate(network, [images for images, _ in batches], [1.0, 0.5])
    network.train()
    features, labels = extract_features(network, iter(batches), [1.0, 0.5])
    assert network.training and network.layer1.training
    assert labels.tolist() == torch.cat([b[1] for b in batches]).tolist()
    network.eval()
    for width, channels in ((1.0, 128), (0.5, 64)):
        with torch.no_grad(), at(network, width):
            expected = torch.cat([
                network(images)[-1].mean(dim=(2, 3)) for images, _ in batches])
        found = features[Subnet(width)]
        assert found.shape == (8, channels) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_raw_pixels_are_pixels_and_large_images_are_averaged():
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(raw_pixels(images), images.flatten(1))
    large = torch.rand(2, 3, 64, 64)
    expected = large.reshape(2, 3, 32, 2, 32, 2).mean(dim=(3, 5))
    torch.testing.assert_close(raw_pixels(large), expected.flatten(1))


def test_an_empty_loader_is_an_error():
    with pytest.raises(ValueError, match='the loader is empty'):
        encode({}, [])


@pytest.mark.parametrize('weights', ['uniform', 'distance'])
@pytest.mark.parametrize('k', [1, 5, 20])
def test_knn_equals_scikit_learns_with_the_cosine(k, weights):
    (bank, bank_labels), (queries, query_labels) = blobs(), blobs(90, seed=1)

    def chord(cosine_distance):  # Euclidean distance on the unit sphere
        return 1 / np.maximum(np.sqrt(2 * cosine_distance), 1e-12)

    classifier = KNeighborsClassifier(
        k, metric='cosine', algorithm='brute',
        weights=chord if weights == 'distance' else 'uniform')
    expected = classifier.fit(bank, bank_labels).score(queries, query_labels)
    assert 0.3 < expected < 1
    assert knn_accuracy(bank, bank_labels, queries, query_labels, k,
                        weights) == pytest.approx(100 * expected)


@pytest.mark.parametrize('weights', ['uniform', 'distance'])
def test_knn_equals_a_naive_double_loop(weights):
    (bank, bank_labels), (queries, query_labels) = blobs(60), blobs(30, seed=1)
    right = 0
    for query, label in zip(queries, query_labels):
        distances = [
            np.linalg.norm(query / np.linalg.norm(query) -
                           other / np.linalg.norm(other)) for other in bank]
        votes = Counter()
        for i in np.argsort(distances)[:7]:
            votes[bank_labels[i]] += (1 if weights == 'uniform' else 1 /
                                      distances[i])
        most = max(votes.values())
        right += label == min(c for c, v in votes.items() if v == most)
    assert knn_accuracy(bank, bank_labels, queries, query_labels, 7,
                        weights) == pytest.approx(100 * right / 30)


@pytest.mark.parametrize('k', [0, 61, 2.5, True])
def test_k_must_be_a_number_of_neighbours_that_there_are(k):
    with pytest.raises(
            ValueError, match='from 1 to the 60 labelled images of '
            f'the bank, got k={k}'):
        knn_accuracy(*blobs(60), *blobs(30), k)


@pytest.mark.parametrize('classify', [knn_accuracy, linear_probe])
def test_features_of_diverged_weights_are_refused(classify):
    features, labels = blobs(60)
    features[3] = np.nan
    with pytest.raises(
            ValueError, match='1 of 60 images are not finite: the '
            'weights have probably diverged'):
        classify(features, labels, *blobs(30))


def test_chance_is_the_most_frequent_class():
    assert chance_accuracy(np.array([0, 1, 1, 2])) == 50.0


def test_linear_probe_equals_scikit_learns_logistic_regression():
    (train, train_labels), (test, test_labels) = blobs(), blobs(90, seed=1)
    scaler = StandardScaler().fit(train)
    for decay in (1.0, 1e-2):
        expected = LogisticRegression(
            C=1 / (decay * len(train)), max_iter=1000).fit(
                scaler.transform(train), train_labels).score(
                    scaler.transform(test), test_labels)
        found = linear_probe(train, train_labels, test, test_labels, [decay])
        assert found == (pytest.approx(100 * expected), decay)


def test_the_decay_is_chosen_on_held_out_training_images():
    """It is the best on a fifth of the training images, fitted without it."""
    train, labels = blobs(100, c=40)
    order = np.random.RandomState(0).permutation(100)  # as scikit-learn's
    held_out, rest = order[:20], order[20:]
    scaler = StandardScaler().fit(train[rest])
    scores = {
        decay:
        LogisticRegression(C=1 / (decay * 80), max_iter=1000).fit(
            scaler.transform(train[rest]), labels[rest]).score(
                scaler.transform(train[held_out]), labels[held_out])
        for decay in (10.0, 1.0, 1e-1, 1e-2)}
    best = max(scores, key=scores.get)
    assert scores[best] > min(scores.values())
    # Test images, here noise with any labels, have no say.
    noise = np.random.default_rng(3).normal(size=(50, 40)).astype(np.float32)
    for wrong in (np.zeros(50, int), np.arange(50) % 4):
        assert linear_probe(train, labels, noise, wrong,
                            list(scores))[1] == best


def test_runs_of_a_linear_classifier_draw_their_training_images():
    """Each is scikit-learn's classifier on some of the images twice."""
    (train, labels), (test, test_labels) = blobs(), blobs(90, seed=1)
    runs = [
        linear_run(train, labels, test, test_labels, 1e-2, run)
        for run in (0, 1, 2, 0)]
    assert runs[0] == runs[3] and len(set(runs)) > 1
    drawn = resample(np.arange(240), random_state=1, stratify=labels)
    assert (np.bincount(labels[drawn]) == np.bincount(labels)).all()
    assert 100 < len(set(drawn)) < 200
    scaler = StandardScaler().fit(train[drawn])
    expected = LogisticRegression(C=1 / (1e-2 * 240), max_iter=1000).fit(
        scaler.transform(train[drawn]), labels[drawn]).score(
            scaler.transform(test), test_labels)
    assert runs[1] == pytest.approx(100 * expected)


def test_a_linear_probe_needs_two_classes():
    with pytest.raises(ValueError, match='at least two classes'):
        linear_probe(np.eye(5), np.zeros(5, int), np.eye(5), np.zeros(5, int))


@pytest.mark.parametrize('ours, theirs, depth, size',
                         [(SlimmableResNet, ResNet, 50, (64, 96)),
                          (SlimmableResNet_CIFAR, ResNet_CIFAR, 18, (32, 32))])
def test_sizes_equal_an_independent_count_of_the_plain_network(
        ours, theirs, depth, size):
    widths = [1.0, 0.625, 0.25]
    counted = count_complexity(ours(depth), widths, size)
    for width in widths:
        channels = int(64 * width)
        plain = theirs(depth, base_channels=channels, stem_channels=channels)
        plain.eval()
        found = counted[Subnet(width)]
        assert found.params == sum(p.numel() for p in plain.parameters())
        flops = FlopCountAnalysis(plain, torch.zeros(1, 3, *size))
        flops.unsupported_ops_warnings(False)
        assert found.macs == flops.by_operator()['conv']


def test_sizes_off_the_grid_equal_those_of_the_sliced_network():
    network = small_resnet()
    set_subnet(network, 0.25)  # what it is set to does not matter
    counted = count_complexity(network, [0.7], (32, 32))[Subnet(0.7)]
    plain = slice_network(network, 0.7, without_statistics=True).eval()
    assert counted.params == sum(p.numel() for p in plain.parameters())
    flops = FlopCountAnalysis(plain, torch.zeros(1, 3, 32, 32))
    flops.unsupported_ops_warnings(False)
    assert counted.macs == flops.by_operator()['conv']


def test_private_norms_are_counted_once_and_linear_layers_too():
    switchable = small_resnet(
        norm_cfg=dict(type='SwitchableBN', widths=[1.0, 0.5]))
    shared = small_resnet()
    assert (count_complexity(switchable, [0.5], (32, 32)) == count_complexity(
        shared, [0.5], (32, 32)))
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    counted = count_complexity(classifier, [1.0], (2, 2))[Subnet(1.0)]
    assert (counted.params, counted.macs) == (65, 60)


def test_latency_is_that_of_a_cut_copy():
    network = small_resnet().train()
    before = {
        name: value.clone() for name, value in network.state_dict().items()}
    milliseconds = width_latency(network, 0.5, (8, 8), min_run_time=0.05)
    assert 0 < milliseconds < 10000
    assert network.training
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_latency_is_that_of_the_faster_layout(monkeypatch):
    network, batch = small_resnet(), torch.rand(2, 3, 8, 8)
    plain = slice_network(network, 0.5, without_statistics=True).eval()
    seen, outputs, forward = set(), {}, type(plain).forward
    seconds = {False: 3.0, True: 2.0}

    def watched(self, images):
        layout = is_channels_last(self)
        outputs[layout] = forward(self, images)[-1]
        return outputs[layout]

    class Clock:  # runs the network once, and says what a run would take

        def __init__(self, statement, globals, num_threads):
            self.code, self.names = statement, globals

        def blocked_autorange(self, min_run_time):
            exec(self.code, self.names)
            seen.add(min_run_time)
            return SimpleNamespace(
                median=seconds[is_channels_last(self.names['network'])])

    monkeypatch.setattr(type(plain), 'forward', watched)
    monkeypatch.setattr('us3l_mm.evaluation.latency.Timer', Clock)
    for fast in (True, False):
        seconds[fast] = 1.0
        assert latency(plain, batch, min_run_time=8) == 1000 / 2
        assert seen == {4} and not is_channels_last(plain)
        seconds[fast] = 9.0
    torch.testing.assert_close(outputs[True], outputs[False])


def is_channels_last(network):
    found = {
        layer.weight.is_contiguous(memory_format=torch.channels_last)
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize('width', [1.0, 0.5, 0.3125])
def test_images_take_the_layout_of_the_weights(width):
    """In the first convolution, so that evaluation converts nothing."""
    network, batches = small_resnet(), labelled_batches()
    images = [images for images, _ in batches]
    calibrate(network, images, [width])
    expected, _ = extract_features(network, batches, [width])
    network.to(memory_format=torch.channels_last)
    layouts = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, inputs, output: (layouts.append(
                    output.is_contiguous(memory_format=torch.channels_last))))
    found, _ = extract_features(network, batches, [width])
    assert len(layouts) == 3 * 20 and all(layouts)
    # Both are rounded, in 20 layers; the largest features are about 2.
    np.testing.assert_allclose(found[Subnet(width)], expected[Subnet(width)],
                               rtol=0, atol=1e-4)


def test_default_subnets_are_even_or_those_of_the_norms():
    assert default_subnets(small_resnet(), 4) == [
        *map(Subnet, (1.0, 0.75, 0.5, 0.25))]
    assert default_subnets(small_resnet(), 1) == [Subnet(1.0)]
    switchable = small_resnet(
        norm_cfg=dict(type='SwitchableBN', widths=[0.5, 1.0]))
    assert default_subnets(switchable, 7) == [Subnet(1.0), Subnet(0.5)]
    with pytest.raises(ValueError, match='at least 1, got 0'):
        default_subnets(small_resnet(), 0)


def a_report(**settings):
    return Report('run', settings, [
        WidthRow(0.5, 64, 10**6, 0.1, knn=70.0),
        WidthRow(1.0, 128, 4 * 10**6, 0.4)])


def test_a_report_is_read_back_as_it_was_written(tmp_path):
    a_report(k=20).save(str(tmp_path))
    found, notice = resume(str(tmp_path), 'run', dict(k=20))
    assert 'Continuing' in notice
    assert [row.width for row in found.rows] == [1.0, 0.5]
    assert found.row(0.5) == WidthRow(0.5, 64, 10**6, 0.1, knn=70.0)
    lines = (tmp_path / 'widths.csv').read_text().splitlines()
    assert lines[0].startswith('subnet,width,channels,params,gmacs')
    assert lines[2].startswith('w0.50,0.5,64,1000000,0.1,')


def test_a_report_of_before_sub_networks_had_names_is_read(tmp_path):
    rows = [
        dict(width=width, channels=64, params=10, gmacs=0.1, knn=50.0)
        for width in (1.0, 0.28125)]
    path = tmp_path / 'widths.json'
    path.write_text(json.dumps(dict(name='old', settings={}, rows=rows)))
    report = Report.load(str(path))
    assert report.rows == [
        WidthRow(1.0, 64, 10, 0.1, knn=50.0),
        WidthRow('w0.28125', 64, 10, 0.1, knn=50.0)]
    report.save(str(tmp_path))
    written = json.loads(path.read_text())['rows']
    assert [(row['subnet'], row['width'])
            for row in written] == [('w1.00', 1.0), ('w0.28125', 0.28125)]
    assert Report.load(str(path)) == report


def test_a_report_of_other_settings_is_kept_aside(tmp_path):
    a_report(k=20, num_images=5).save(str(tmp_path))
    found, notice = resume(str(tmp_path), 'run', dict(k=5, num_images=5))
    assert found.rows == [] and 'another k; it is' in notice
    kept = json.loads((tmp_path / 'previous_widths.json').read_text())
    assert kept['settings']['k'] == 20
    assert not (tmp_path / 'widths.json').exists()


def test_a_report_cut_short_by_a_full_disk_leaves_the_old_one(
        tmp_path, monkeypatch):
    a_report(k=20).save(str(tmp_path))
    before = (tmp_path / 'widths.json').read_text()

    def full(content, file, **_):
        file.write('{"name": ')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(json, 'dump', full)
    with pytest.raises(OSError, match='No space left'):
        a_report(k=20).save(str(tmp_path))
    assert (tmp_path / 'widths.json').read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'widths.csv', 'widths.json']


def test_pictures_are_drawn_and_bad_axes_refused(tmp_path):
    path = str(tmp_path / 'curve.png')
    plot_reports(path, [a_report(), Report('nothing yet', {})],
                 compute='params')
    assert (tmp_path / 'curve.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(ValueError, match="compute is one of .*'watts'"):
        plot_reports(path, [a_report()], compute='watts')
    with pytest.raises(ValueError, match="measure is one of .*'luck'"):
        plot_reports(path, [a_report()], measure='luck')


def _encode_a_shard(rank, out):
    images = torch.arange(7.0).view(7, 1, 1, 1)
    # What DefaultSampler deals: every second sample, the first one again at
    # the end of the shorter shard.
    own = torch.cat([images, images[:1]])[rank::2]
    features, labels = encode({'twice': lambda x: 2 * x.flatten(1)},
                              [(own[:3], own[:3].flatten().long()),
                               (own[3:], own[3:].flatten().long())], size=7)
    np.savez(f'{out}/{rank}.npz', labels=labels, **features)
    # As of many images: temporary files, and several messages.
    spool.MAX_IN_MEMORY = 0
    features_module.MESSAGE_SIZE = 16
    again, _ = encode({'twice': lambda x: 2 * x.flatten(1)},
                      [(own, own.flatten().long())], size=7)
    assert [*again] == ([] if rank else ['twice'])
    for rows in again.values():
        assert isinstance(rows, np.memmap)
        assert rows.tolist() == features['twice'].tolist()
    with pytest.raises(ValueError, match='read .4, 1. images.*DefaultSampler'):
        encode({}, [(own[rank:4 - 2 * rank], own[rank:4 - 2 * rank].long())])


@pytest.mark.ddp
def test_features_of_two_processes_come_in_the_order_of_the_data(tmp_path):
    run_processes(_encode_a_shard, 2, tmp_path)
    found = np.load(tmp_path / '0.npz')
    assert found['twice'].tolist() == [[2.0 * i] for i in range(7)]
    assert found['labels'].tolist() == list(range(7))
    # Only the main process uses them, so only it has them.
    other = np.load(tmp_path / '1.npz')
    assert other.files == ['labels'] and not len(other['labels'])
