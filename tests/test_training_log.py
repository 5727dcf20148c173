# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a training run writes down, under names that stay."""
import json

import pytest
from mmengine.runner import Runner
from small_run import small_cfg

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
