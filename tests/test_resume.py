# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A run that is killed and resumed ends like one that is left alone."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from small_run import small_cfg

RUN = '''
import os, signal, sys
sys.path.insert(0, {tests!r})
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_run import small_cfg

class Kill(Hook):
    priority = 'LOWEST'
    def after_train_iter(self, runner, **kwargs):
        if runner.iter == {kill_at}:
            os.kill(os.getpid(), signal.SIGKILL)

runner = Runner.from_cfg(small_cfg({work_dir!r}, resume={resume}))
runner.register_hook(Kill())
runner.train()
'''


def run(work_dir, kill_at=-1, resume=False):
    script = RUN.format(tests=str(Path(__file__).parent), resume=resume,
                        work_dir=str(work_dir), kill_at=kill_at)
    return subprocess.run([sys.executable, '-c', script], capture_output=True,
                          text=True)


def final(work_dir):
    checkpoint = torch.load(work_dir / 'epoch_4.pth', weights_only=False)
    return checkpoint['state_dict'], checkpoint['optimizer']['state']


def test_a_killed_and_resumed_run_ends_with_the_same_bits(tmp_path):
    alone, killed = tmp_path / 'alone', tmp_path / 'killed'
    done = run(alone)
    assert done.returncode == 0, done.stderr
    # Three iterations an epoch: killed in the third epoch, of stage 2.
    assert run(killed, kill_at=7).returncode == -9
    assert not (killed / 'epoch_3.pth').exists()
    done = run(killed, resume=True)
    assert done.returncode == 0, done.stderr
    for left, right in zip(final(alone), final(killed)):
        assert left.keys() == right.keys()
        for key, value in left.items():
            if isinstance(value, dict):  # the momentum of a parameter
                value, other = (value['momentum_buffer'],
                                right[key]['momentum_buffer'])
            else:
                other = right[key]
            assert torch.equal(value, other), key
    weights = final(alone)[0]
    assert any(key.startswith('teacher.') for key in weights)


def test_a_finished_run_has_nothing_left_to_train(tmp_path, capsys):
    run_small(tmp_path, {'train_cfg.max_epochs': 1})
    weights = torch.load(tmp_path / 'epoch_1.pth',
                         weights_only=False)['state_dict']
    capsys.readouterr()
    runner = run_small(tmp_path, {'train_cfg.max_epochs': 1, 'resume': True})
    said = capsys.readouterr().out
    assert re.search(
        r'epoch_1.pth is from the end of training, iteration 3: '
        r'there is nothing left.*max_epochs', said)
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, weights[name])


def run_small(folder, changes):
    runner = Runner.from_cfg(small_cfg(folder, **changes))
    runner.train()
    return runner


@pytest.mark.parametrize('changes, says', [
    ({
        'train_cfg.max_epochs': 1
    }, 'after 6 iterations, and this run ends after 3.*max_epochs'),
    ({
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.neck.in_channels': 64
    }, r'does not fit this US3LAlgorithm(?s:.)*load_from=FILE')])
def test_a_file_that_does_not_fit_is_refused(tmp_path, changes, says):
    run_small(tmp_path, {'train_cfg.max_epochs': 2})
    runner = Runner.from_cfg(
        small_cfg(tmp_path, **{
            'train_cfg.max_epochs': 2,
            'resume': True,
            **changes}))
    with pytest.raises(ValueError, match=says):
        runner.train()


def test_a_file_without_a_teacher_is_not_refused(tmp_path):
    run_small(tmp_path, {'train_cfg.max_epochs': 1})
    path = tmp_path / 'epoch_1.pth'
    content = torch.load(path, weights_only=False)
    content['state_dict'] = {
        name: value for name, value in content['state_dict'].items()
        if not name.startswith('teacher.')}
    torch.save(content, path)
    run_small(tmp_path, {'train_cfg.max_epochs': 2, 'resume': True})
    assert (tmp_path / 'epoch_2.pth').exists()
