# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Dense and gated in a real run: from the config to an exact resume."""
import importlib
import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from gated_networks import model_cfg
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_run import small_cfg

from us3l_mm.engine import MultiPassOptimWrapper
from us3l_mm.fileio import load_weights

MODEL = {
    **model_cfg(swap_views=True), 'data_preprocessor':
    dict(mean=[64.] * 3, std=[64.] * 3)}


class Log(Hook):
    """The last output of the training step."""

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.outputs = outputs


def config(work_dir, epochs=2, **changes):
    cfg = small_cfg(
        work_dir,
        **{
            # A copy, which options change.
            'model': {
                '_delete_': True,
                **deepcopy(MODEL)},
            'train_cfg.max_epochs': epochs,
            'default_hooks.sampler.widths': ['dense'],
            **changes})
    cfg.default_hooks.pop('group_reg')
    return cfg


def run(work_dir, resume=None, watch=None, hooks=(), **changes):
    """The runner after training, and its last output.

    ``watch`` is called with the embeddings of each view.
    """
    cfg = config(work_dir, **changes)
    if resume is not None:
        cfg.update(resume=True, load_from=str(resume))
    runner, log = Runner.from_cfg(cfg), Log()
    if watch is not None:
        runner.model.neck.register_forward_hook(lambda _, maps, z: watch(z[0]))
    for hook in (log, *hooks):
        runner.register_hook(hook)
    runner.train()
    return runner, log.outputs


def test_a_run_is_resumed_to_the_bit_with_its_noise(tmp_path):
    whole, log = run(tmp_path / 'whole')
    again, same = run(tmp_path / 'again', tmp_path / 'whole/epoch_1.pth')
    assert isinstance(whole.optim_wrapper, MultiPassOptimWrapper)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    assert log['ratio'] == same['ratio'] and log['loss'] == same['loss']
    assert log['bound_low'] < log['bound_high'] and log['target'] == 0.5
    start, end = (load_weights(str(
        tmp_path / f'whole/epoch_{i}.pth'))['state_dict'] for i in (1, 2))
    # All learn and track statistics, but the projector's norms track none and
    # a threshold belongs to evaluation.
    for name, value in end.items():
        fixed = re.fullmatch(r'neck\.bn\d\.(run|num_)\w+|.*\.threshold', name)
        assert torch.equal(value, start[name]) == bool(fixed), name


def test_what_cannot_be_trained_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match='Use a target between'):
        run(tmp_path, **{'model.budget.target': 0.02})
    with pytest.raises(ValueError, match='got batches of 1 image'):
        run(tmp_path, **{'train_dataloader.batch_size': 1})
    assert not [*tmp_path.rglob('*.pth')]


def test_the_report_of_both_modes(tmp_path, monkeypatch, capsys):
    loader = dict(
        batch_size=16, num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
            type='us3l_mm.RenderedDigits', split='train', num_images=32,
            pipeline=[
                dict(type='Resize', scale=(16, 16)),
                dict(type='PackInputs')]))
    runner, _ = run(tmp_path, epochs=1, knn_bank_dataloader=loader,
                    knn_query_dataloader=loader)
    runner.cfg.dump(tmp_path / 'gated.py')
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / 'tools'))
    importlib.import_module('evaluate_widths').main([
        str(tmp_path / 'gated.py'),
        str(tmp_path / 'epoch_1.pth'), '--widths', 'dense', 'gated', '--knn',
        '--k', '3', '--device', 'cpu', '--out',
        str(tmp_path)])
    rows = json.loads((tmp_path / 'widths.json').read_text())['rows']
    assert [row['subnet'] for row in rows] == ['w1.00', 'gated']
    assert all(row['knn'] is not None for row in rows)
