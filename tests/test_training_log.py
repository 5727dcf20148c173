# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a training run writes down, under names that stay."""
import json

import pytest
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from small_run import small_cfg

from us3l_mm.apis.launching import build_runner, replace_hooks
from us3l_mm.engine import ProgressHook
from us3l_mm.engine.hooks import progress_hook

ALWAYS = {
    'loss', 'loss_base', 'loss_reg', 'stage', 'width_max', 'spread_max',
    'spread_teacher'}
NARROW = {
    'loss_distill_rand', 'loss_distill_min', 'width_rand', 'width_min',
    'spread_rand', 'spread_min'}


@pytest.fixture(scope='module')
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    Runner.from_cfg(
        small_cfg(
            folder, visualizer=dict(
                type='UniversalVisualizer', vis_backends=[
                    dict(type='LocalVisBackend'),
                    dict(type='TensorboardVisBackend')]))).train()
    scalars, = folder.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    return folder, lines


def test_names_stay_the_same_in_every_stage(log):
    _, lines = log
    assert [line['stage'] for line in lines[::3]] == [0, 1, 2, 3]
    for line in lines:
        assert ALWAYS <= line.keys()
        assert (NARROW <= line.keys()) == (line['stage'] > 0)
        unknown = {
            key for key in line
            if key.startswith(('loss', 'width', 'spread'))} - ALWAYS - NARROW
        assert not unknown


def test_widths_follow_the_stage(log):
    _, lines = log
    lowest = [line['width_min'] for line in lines[3::3]]
    assert lowest == pytest.approx([.75, .5, .25])
    assert all(line['width_min'] <= line['width_rand'] <= line['width_max']
               for line in lines[3:])


def test_names_of_a_fixed_list_are_those_of_its_sub_networks(tmp_path):
    Runner.from_cfg(
        small_cfg(
            tmp_path, **{
                'default_hooks.sampler.widths': [1.0, 0.75],
                'train_cfg.max_epochs': 1})).train()
    scalars, = tmp_path.glob('*/vis_data/scalars.json')
    for line in map(json.loads, scalars.read_text().splitlines()):
        assert {
            key for key in line
            if key.startswith(('loss', 'width', 'spread'))} == {
                'loss', 'loss_base', 'loss_reg', 'width_w1.00', 'spread_w1.00',
                'spread_teacher', 'loss_distill_w0.75', 'width_w0.75',
                'spread_w0.75'}
        assert (line['width_w1.00'], line['width_w0.75']) == (1.0, 0.75)


def test_tensorboard_by_configuration(log):
    folder, _ = log
    from tensorboard.backend.event_processing.event_accumulator import \
        EventAccumulator
    events, = folder.glob('*/vis_data/events.out.tfevents.*')
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert ALWAYS <= set(accumulator.Tags()['scalars'])


def lines_of(folder, capsys, monkeypatch, speed):
    """What a run shows whose iterations take ``speed`` seconds."""
    monkeypatch.setattr(
        progress_hook, 'perf_counter',
        lambda: speed * MessageHub.get_current_instance().get_info('iter'))
    cfg = small_cfg(folder, log_level='INFO')
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=50)
    replace_hooks(cfg)
    build_runner(cfg).train()
    return capsys.readouterr().out


def test_slow_iterations_are_logged_one_by_one(tmp_path, capsys, monkeypatch):
    slow = lines_of(tmp_path / 'slow', capsys, monkeypatch, 20)
    fast = lines_of(tmp_path / 'fast', capsys, monkeypatch, 1)
    for epoch in (2, 3, 4):
        assert f'[{epoch}][1/3]' in slow and f'[{epoch}][1/3]' not in fast
        assert f'[{epoch}][3/3]' in slow and f'[{epoch}][3/3]' in fast


def test_a_run_says_once_how_long_it_takes(tmp_path, capsys, monkeypatch):
    for speed, left in ((20, '10 that are left take about 0:03:20 (20.00 s'),
                        (.1, '3 that are left take about 0:00:00 (0.10 s')):
        text = lines_of(tmp_path / left[:2], capsys, monkeypatch, speed)
        assert text.count('24 images in batches of 8: 12 iterations') == 1
        assert left in text


def test_listings_are_in_the_file_and_not_on_the_screen(
        tmp_path, capsys, monkeypatch):
    shown = lines_of(tmp_path, capsys, monkeypatch, 1)
    written, = tmp_path.glob('*/*.log')
    for text in ('System environment:', 'Config:', 'Hooks will be executed'):
        assert text in written.read_text() and text not in shown
    before, _ = shown.split('Epoch(train)', 1)
    assert len(before.splitlines()) < 10


def test_a_line_every_no_seconds_is_refused():
    with pytest.raises(ValueError, match='above 0, got 0'):
        ProgressHook(seconds=0)
