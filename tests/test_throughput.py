# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Throughput of training, and the plain scripts that it is compared with."""
import importlib
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import cv2
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

from us3l_mm.models import GroupDecay

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs/us3l'
RESNET = CONFIGS / 'us3l_resnet18_4xb128-coslr-400e_cifar10.py'
BYOL = CONFIGS / 'us3l-byol_resnet18_4xb128-coslr-400e_cifar10.py'
SMALL = [
    'train_dataloader.num_workers=0', 'model.backbone.base_channels=16',
    'model.backbone.stem_channels=16', 'model.neck.in_channels=128',
    'model.neck.hid_channels=32', 'model.neck.out_channels=16',
    'model.distill_head.predictor.in_channels=16',
    'model.distill_head.predictor.out_channels=16']
OF_BYOL = [
    'model.head.predictor.in_channels=16',
    'model.head.predictor.out_channels=16']


@pytest.fixture(autouse=True)
def _benchmarks_are_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/benchmarks'))


@pytest.fixture
def throughput():
    return importlib.import_module('throughput')


@pytest.fixture
def make_trial(throughput, tmp_path):
    """A training run by one setting, and its arguments."""
    trials = []

    def make(*words, setting='float32', config=RESNET, options=()):
        args = throughput.parse_args([
            '--config',
            str(config), '--synthetic', '--batch-size', '4', *words,
            '--cfg-options', *SMALL, *options])
        trials.append(throughput.Trial(args, setting, str(tmp_path)))
        return trials[-1], args

    yield make
    for trial in trials:
        trial.close()


def figures_of(throughput, tmp_path, *words):
    """What the benchmark writes to its JSON file."""
    path = tmp_path / 'figures.json'
    throughput.main([
        '--synthetic', '--batch-size', '4', '--rounds', '3', '--iterations',
        '1', '--json',
        str(path), *words, '--cfg-options', *SMALL])
    return json.loads(path.read_text())


def test_settings_are_compared_in_turn(throughput, tmp_path, monkeypatch):
    peaks = iter((100.0, 200.0))
    monkeypatch.setattr(throughput, 'in_own_process', lambda *_: next(peaks))
    turns, turn = [], throughput.Trial.turn

    def noted(trial, iterations):
        turns.append(trial.setting)
        turn(trial, iterations)

    monkeypatch.setattr(throughput.Trial, 'turn', noted)
    names = ['recipe', 'channels-last+amp']
    figures = figures_of(throughput, tmp_path, '--settings', *names)
    assert turns == names * 3
    rows = figures['settings_in_turn']
    assert [row['setting'] for row in rows] == names
    assert [row['peak_mib'] for row in rows] == [100, 200]
    assert rows[0]['ratio'] == 1 and rows[0]['ratio_range'] == [1, 1]
    low, high = rows[1]['ratio_range']
    assert 0 < low <= rows[1]['ratio'] <= high
    for row in rows:
        assert row['images_per_second'] == pytest.approx(4000 /
                                                         row['iteration_ms'])
        assert 0 < row['waiting_share'] < 1
        assert {
            'views', 'teacher', 'pass w1.00', 'pass w0.625', 'pass w0.25',
            'optimizer'} < row['parts_ms'].keys()
    assert figures['date'] and figures['torch'] == str(torch.__version__)


def test_parts_add_up_to_the_iteration(make_trial):
    trial, _ = make_trial()
    trial.warm_up()
    begin = time.perf_counter()
    parts = trial.step()
    passed = 1000 * (time.perf_counter() - begin)
    assert 0.5 * passed < sum(parts.values()) <= passed + 0.1
    assert all(ms >= 0 for ms in parts.values())
    assert {'pass w1.00', 'pass w0.625', 'pass w0.25'} <= {*parts}


def test_what_a_setting_makes_of_the_recipe(make_trial):
    trial, _ = make_trial(setting='channels-last+amp')
    weight = trial.algorithm.backbone.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    trial.algorithm.backbone.conv1.register_forward_hook(
        lambda _, args, output: seen.append(output.dtype))
    trial.step()
    half = torch.float16 if trial.on_gpu else torch.bfloat16
    assert {*seen} == {half}
    # The teacher has a copy of its own.
    assert len(seen) == 3 * 2


def test_the_time_of_a_slow_loader_is_waiting(make_trial, monkeypatch):
    trial, _ = make_trial()
    data = type(trial.runner.train_dataloader.dataset)
    read = data.__getitem__

    def slowly(self, index):
        time.sleep(0.05)
        return read(self, index)

    monkeypatch.setattr(data, '__getitem__', slowly)
    assert trial.step()['waiting for data'] >= 4 * 50


def test_workers_rest_between_turns(make_trial):
    trial, _ = make_trial(options=['train_dataloader.num_workers=1'])
    trial.warm_up()
    worker, = trial.workers

    def comes_to_be(stopped):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:  # a signal takes a moment
            stat = Path(f'/proc/{worker.pid}/stat').read_text()
            if (stat.rsplit(') ')[1][0] == 'T') == stopped:
                return True
        return False

    assert comes_to_be(stopped=True)
    with trial.at_work():
        assert comes_to_be(stopped=False)
        assert trial.next_batch() is not None
    assert comes_to_be(stopped=True)
    trial.close()  # a stopped process would not end
    assert comes_to_be(stopped=False)


def test_epochs_follow_each_other(make_trial, monkeypatch):
    synthetic = importlib.import_module('synthetic')
    monkeypatch.setattr(synthetic, 'LENGTH', 9)
    trial, _ = make_trial(options=['train_dataloader.drop_last=True'])
    begun, begin = [], trial.begin_epoch
    trial.begin_epoch = lambda: begun.append(1) or begin()
    trial.turn(5)
    assert len(begun) == 3 and len(trial.rounds[0]) == 5


def test_graphs_and_the_time_they_take(throughput, make_trial, monkeypatch):
    monkeypatch.setitem(
        importlib.import_module('trial').SETTINGS, 'compile',
        {'compile': dict(backend='eager')})
    torch._dynamo.reset()
    trial, _ = make_trial('--widths', '1.0', '0.5', setting='compile')
    trial.warm_up()
    trial.turn(2)
    # Backbone and projector: two widths, and the teacher without a gradient.
    assert trial.graphs == 2 * 3
    figures = throughput.summarise(trial, trial, 0.0)
    own = [sum(i.values()) - i['waiting for data'] for i in trial.rounds[0]]
    assert figures['graphs'] == 6
    assert figures['compile_s'] == pytest.approx(
        (trial.first_ms - median(own)) / 1000)
    torch._dynamo.reset()


def test_peak_memory_is_that_of_a_new_process(throughput, make_trial,
                                              tmp_path):
    _, args = make_trial()
    filler = torch.ones(2**28)  # 1 GiB of this process, which does not count
    peak = throughput.in_own_process(throughput.peak_memory, args, 'recipe',
                                     str(tmp_path))
    assert 100 < peak < filler.nbytes / 2**20 + 300
    assert peak < rss_mib() - 512


def rss_mib():
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def test_synthetic_images_are_arrays_or_files(tmp_path, monkeypatch):
    synthetic = importlib.import_module('synthetic')
    monkeypatch.setattr(synthetic, 'DIFFERENT', 3)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        cifar = ConfigDict(type='CIFAR10', data_root='absent', pipeline=[
            dict(type='PackInputs')])
        synthetic.replace_images(cifar, 16, tmp_path / 'unused')
        cifar.pop('type')
        images = synthetic.SyntheticImages(**cifar)
        assert len(images) == 50_000 and not [*tmp_path.iterdir()]
        assert images[1]['inputs'].shape == (3, 16, 16)
        assert torch.equal(images[1]['inputs'], images[4]['inputs'])
        assert not torch.equal(images[1]['inputs'], images[2]['inputs'])
        folder = ConfigDict(
            type='ImageNet', data_root='absent', pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='PackInputs')])
        synthetic.replace_images(folder, 24, tmp_path / 'images')
        folder.pop('type')
        images = synthetic.SyntheticImages(**folder)
        files = sorted((tmp_path / 'images').rglob('*.jpg'))
        assert len(files) == 3
        pixels = torch.from_numpy(cv2.imread(str(files[1])))
        assert pixels.shape == (24, 24, 3)
        assert torch.equal(images[4]['inputs'], pixels.permute(2, 0, 1))


@pytest.mark.parametrize('config, options',
                         [(RESNET, ['default_hooks.group_reg.lam=0.01']),
                          (BYOL, OF_BYOL)], ids=['simclr', 'byol'])
def test_the_plain_script_trains_the_same_network(make_trial, config, options):
    against = importlib.import_module('against')
    trial, _ = make_trial(config=config, options=options)
    ours, wrapper = trial.algorithm, trial.runner.optim_wrapper
    views = [view.double() for view in ours.views(trial.next_batch())]
    ours.views = lambda data: data['views']
    ours.double()
    if config == RESNET:
        named = [(name, p) for name, p in ours.named_parameters()
                 if p.requires_grad]
        decay = GroupDecay(named, lam=0.01)
        decay.set_ramp(1.0)
        wrapper.regularise(decay)
    plan = against.plan_of('plain', trial)
    script = against.rival_of('plain', trial, plan)
    before = [p.clone() for p in ours.parameters()]
    for _ in range(3):
        ours.train_step(dict(views=views, plan=plan), wrapper)
        script(views)
    assert not any(
        torch.equal(p, old)
        for p, old in zip(ours.backbone.parameters(), before))
    for mine, theirs in ((ours.backbone, script.student.backbone),
                         (ours.neck, script.student.neck), (ours.head,
                                                            script.head),
                         (ours.distill_head,
                          script.distill_head), (ours.teacher.backbone,
                                                 script.teacher.backbone)):
        theirs = dict(theirs.named_parameters())
        for name, p in mine.named_parameters():
            # In single precision three iterations amplify the rounding.
            torch.testing.assert_close(p, theirs[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('against', ['floor', 'plain'])
def test_steps_are_compared_with_those_of_others(throughput, tmp_path,
                                                 against):
    figures = figures_of(throughput, tmp_path, '--against', against,
                         '--settings', 'channels-last+amp')
    row, = figures['against']
    low, high = row['ratio_range']
    assert 0 < low <= row['ratio'] <= high
    assert min(row['ours_ms'], row['theirs_ms']) > 0


def test_another_algorithm_has_no_plain_script(make_trial):
    against = importlib.import_module('against')
    trial, _ = make_trial()
    trial.algorithm.base_from = 'online'
    with pytest.raises(ValueError, match="base_from': 'teacher'.*'online'"):
        against.rival_of('plain', trial, None)


def test_lightly_is_asked_for(throughput, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'lightly', None)
    monkeypatch.delitem(sys.modules, 'lightly_methods', raising=False)
    with pytest.raises(SystemExit, match=r'pip install lightly.*\[benchmark'):
        figures_of(throughput, tmp_path, '--against', 'lightly', '--settings',
                   'recipe')
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('config, options, name',
                         [(RESNET, [], 'LightlySimCLR'),
                          (BYOL, OF_BYOL, 'LightlyBYOL')])
def test_lightly_trains_the_base_method(make_trial, config, options, name):
    pytest.importorskip(
        'lightly', reason='lightly is not installed: the methods that steps '
        'are compared with are not tested')
    against = importlib.import_module('against')
    trial, _ = make_trial(config=config, options=options)
    script = against.rival_of('lightly', trial, None)
    assert type(script).__name__ == name
    views = [torch.randn(4, 3, 32, 32) for _ in range(2)]
    for _ in range(2):  # the student has moved when the second one begins
        old = {n: p.double() for n, p in script.named_parameters()}
        script(views)
        for key, p in script.named_parameters():
            if '_momentum' in key:
                student = old[key.replace('_momentum', '')]
                torch.testing.assert_close(p.double(),
                                           0.99 * old[key] + 0.01 * student,
                                           rtol=1e-6, atol=1e-8)
            else:
                assert not torch.equal(p.double(), old[key]), key
