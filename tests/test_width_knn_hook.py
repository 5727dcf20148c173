# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The kNN hook reports every width and leaves training alone."""
import json
import re

import pytest
import torch
from lives import finish, start
from mmengine.runner import Runner
from small_run import small_cfg
from torch._dynamo.utils import counters

from us3l_mm.engine import WidthKNNHook
from us3l_mm.engine.hooks import width_knn_hook
from us3l_mm.evaluation import calibrate, extract_features, knn_accuracy
from us3l_mm.evaluation.data import (build_loader, image_batches,
                                     labelled_batches, shuffled)
from us3l_mm.models.layers import Subnet

WIDTHS = [1.0, 0.5, 0.3125]
NAMES = ['knn/top1_w1.00', 'knn/top1_w0.50', 'knn/top1_w0.3125']


def labelled(split, num_images):
    return dict(
        batch_size=7, num_workers=0, sampler=dict(type='DefaultSampler',
                                                  shuffle=False),
        collate_fn=dict(type='default_collate'), dataset=dict(
            type='us3l_mm.RenderedDigits', split=split, num_images=num_images,
            pipeline=[
                dict(type='Resize', scale=(16, 16)),
                dict(type='PackInputs')]))


def hook_cfg(**arguments):
    cfg = dict(type='us3l_mm.WidthKNNHook', widths=WIDTHS, k=5)
    cfg['bank_dataloader'] = labelled('train', 30)
    cfg['query_dataloader'] = labelled('test', 20)
    return {**cfg, **arguments}


def run(work_dir, hook=None, **changes):
    cfg = small_cfg(
        work_dir, **{
            'train_cfg.max_epochs': 3,
            'randomness.seed': 3,
            **changes})
    # Augmentation out of the global random states, so that a hook which
    # disturbed them would be seen.
    cfg.train_dataloader.dataset.pipeline.pop(0)
    if hook is not None:
        cfg.default_hooks.knn = hook
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def parameters(runner):
    return dict(runner.model.named_parameters())


@pytest.fixture(scope='module')
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp('watched')
    return folder, run(folder, hook_cfg())


def test_training_is_bit_identical_with_and_without_it(tmp_path):
    # Training and hook alike draw from python's, NumPy's and PyTorch's states.
    changes = {'model.backbone.drop_path_rate': 0.5}
    hook = hook_cfg()
    for loader in (hook['bank_dataloader'], hook['query_dataloader']):
        loader['dataset']['pipeline'].insert(0,
                                             dict(type='RandomFlip', prob=0.5))
    ours, theirs = (parameters(run(tmp_path, chosen, **changes))
                    for chosen in (hook, None))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_every_width_is_reported_under_its_name(watched):
    folder, runner = watched
    for name in NAMES:
        assert len(runner.message_hub.get_scalar(name).data[0]) == 3
    scalars = [
        json.loads(line) for path in folder.rglob('scalars.json')
        for line in path.read_text().splitlines()]
    rows = [row for row in scalars if NAMES[0] in row]
    assert [row['step'] for row in rows] == [3, 6, 9]
    assert all(0 <= row[name] <= 100 for row in rows for name in NAMES)


def test_reported_is_the_accuracy_of_the_weights_at_that_time(watched):
    runner = watched[1]
    algorithm = runner.model
    bank, queries = (build_loader(labelled(*which))
                     for which in (('train', 30), ('test', 20)))
    preprocessor = algorithm.data_preprocessor
    for norm in algorithm.modules():
        if hasattr(norm, 'clear_statistics'):
            norm.clear_statistics()
    calibrate(algorithm.backbone, image_batches(shuffled(bank), preprocessor),
              WIDTHS)
    (train, train_labels), (test, test_labels) = (extract_features(
        algorithm.backbone, labelled_batches(loader, preprocessor),
        WIDTHS) for loader in (bank, queries))
    for width, name in zip(WIDTHS, NAMES):
        subnet = Subnet(width)
        assert runner.message_hub.get_scalar(name).current() == knn_accuracy(
            train[subnet], train_labels, test[subnet], test_labels, k=5)


def test_the_checkpoint_of_the_same_epoch_has_the_statistics(watched):
    state = torch.load(watched[0] / 'epoch_2.pth',
                       weights_only=False)['state_dict']
    for suffix in ('', '_w0500000', '_w0312500'):
        mean = state[f'backbone.layer1.0.bn1.running_mean{suffix}']
        assert mean.abs().sum() > 0
    assert state['backbone.bn1.num_batches_tracked'] == 1


def test_images_of_the_bank_do_not_find_themselves(tmp_path):
    cfg = hook_cfg(query_dataloader=labelled('train', 30), k=1)
    runner = run(tmp_path, cfg)
    assert runner.message_hub.get_scalar(NAMES[0]).current() < 90
    [log] = tmp_path.glob('*/*.log')
    assert log.read_text().count('30 images of query_dataloader are also') == 1


def test_reports_by_iteration_and_at_the_end(tmp_path):
    runner = run(
        tmp_path, hook_cfg(by_epoch=False, interval=3), **{
            'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=5),
            'param_scheduler': []})
    assert len(runner.message_hub.get_scalar(NAMES[0]).data[0]) == 2
    steps = [
        json.loads(line)['step'] for path in tmp_path.rglob('scalars.json')
        for line in path.read_text().splitlines() if NAMES[0] in line]
    assert steps == [3, 5]


def test_the_last_epoch_is_reported_whatever_the_interval(tmp_path):
    runner = run(tmp_path, hook_cfg(interval=2))
    assert len(runner.message_hub.get_scalar(NAMES[0]).data[0]) == 2


def test_evaluation_runs_compiled_networks_as_they_are(tmp_path):
    changes = {
        'compile': dict(backend='eager'),  # counts graphs, generates no code
        'default_hooks.compile': dict(type='us3l_mm.CompileHook'),
        'default_hooks.sampler.num_samples': 2,
        'train_dataloader.dataset.num_images': 8,
        'model.neck.in_channels': 16}
    backbone = dict(num_stages=1, strides=(1, ), dilations=(1, ),
                    out_indices=(0, ))
    changes.update({f'model.backbone.{k}': v for k, v in backbone.items()})
    graphs = []
    for hook in (hook_cfg(), None):
        torch._dynamo.reset()
        counters.clear()
        run(tmp_path, hook, **changes)
        graphs.append(counters['stats']['unique_graphs'])
    torch._dynamo.reset()
    assert graphs[0] == graphs[1] > 0


@pytest.mark.parametrize('arguments, message', [
    (dict(k=31), '1 to the 30 images of bank_dataloader, got k=31'),
    (dict(widths=[1.0, 0.1]), 'Width 0.1 is outside the range'), ])
def test_what_cannot_be_evaluated_is_refused_before_training(
        tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, hook_cfg(**arguments))
    assert not list(tmp_path.rglob('*.pth'))


def test_space_for_features_is_checked_before_training(tmp_path, monkeypatch):

    def full(images, channels):
        raise OSError(f'no room for {images} of {list(channels)}')

    monkeypatch.setattr(width_knn_hook, 'check_space', full)
    with pytest.raises(OSError, match=r'30 of \[32, 16, 16\]'):
        run(tmp_path, hook_cfg())
    assert not list(tmp_path.rglob('*.pth'))


@pytest.mark.parametrize('arguments, message', [
    (dict(interval=0), 'at least 1, got 0'),
    (dict(widths=[]), 'a list of at least one width'),
    (dict(widths=[1.5]), r'multiplier in (0, 1], got 1.5'), ])
def test_bad_arguments_are_refused(arguments, message):
    cfg = hook_cfg(**arguments)
    cfg.pop('type')
    with pytest.raises(ValueError, match=re.escape(message)):
        WidthKNNHook(**cfg)


def report_of_one_model(folder, rank, world):
    """What the hook says of an untrained network, in one of the processes."""
    torch.distributed.init_process_group(
        'gloo', f'file://{folder}/store-{world}', rank=rank, world_size=world)
    runner = Runner.from_cfg(small_cfg(f'{folder}/{world}'))
    cfg = hook_cfg(num_images=23)
    cfg.pop('type')
    hook = WidthKNNHook(**cfg)
    hook.before_train(runner)
    accuracies = hook.evaluate(runner.model)
    accuracies = {f'knn/top1_{s}': value for s, value in accuracies.items()}
    torch.save((accuracies, runner.model.state_dict()),
               f'{folder}/{world}-{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.ddp
def test_processes_together_report_what_one_would(tmp_path):
    """23 images in batches of seven: two batches each, the last of two."""
    logs = [
        tmp_path / f'{world}-{rank}.log'
        for world, rank in ((1, 0), (2, 0), (2, 1))]
    assert finish(
        *(start(log, report_of_one_model, str(tmp_path),
                *reversed([int(word) for word in log.stem.split('-')]))
          for log in logs)) == [0, 0, 0], '\n'.join(log.read_text()
                                                    for log in logs)
    (expected, weights), *others = (torch.load(log.with_suffix('.pth'))
                                    for log in logs)
    assert [*expected] == NAMES
    for accuracies, theirs in others:
        assert accuracies == expected
        for name, value in weights.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-5,
                                       atol=1e-6)
    assert weights['backbone.bn1.running_mean_w0500000'].abs().sum() > 0
