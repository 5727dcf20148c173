# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Which checkpoints a run resumes from, and which it refuses."""
import re

import pytest
import torch
from mmengine.runner import Runner
from small_run import small_cfg


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder of a run of two epochs, of three iterations each."""
    folder = tmp_path_factory.mktemp('trained')
    run_small(folder, {'train_cfg.max_epochs': 2})
    return folder


def run_small(folder, changes):
    runner = Runner.from_cfg(small_cfg(folder, **changes))
    runner.train()
    return runner


def resumed(folder, file, **changes):
    return run_small(folder, {
        'resume': True,
        'load_from': str(file),
        **changes})


def test_a_finished_run_has_nothing_left_to_train(trained, tmp_path, capsys):
    file = trained / 'epoch_1.pth'
    runner = resumed(tmp_path, file, **{'train_cfg.max_epochs': 1})
    said = capsys.readouterr().out
    assert re.search(
        r'epoch_1.pth is from the end of training, iteration 3: '
        r'there is nothing left.*max_epochs', said)
    weights = torch.load(file, weights_only=False)['state_dict']
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize('changes, says', [
    ({
        'train_cfg.max_epochs': 1
    }, 'after 6 iterations, and this run ends after 3.*max_epochs'),
    ({
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        'model.neck.in_channels': 16
    }, r'does not fit this US3LAlgorithm(?s:.)*load_from=FILE')])
def test_a_file_that_does_not_fit_is_refused(trained, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        resumed(tmp_path, trained / 'epoch_2.pth', **changes)


def test_a_file_without_a_teacher_is_not_refused(trained, tmp_path):
    content = torch.load(trained / 'epoch_1.pth', weights_only=False)
    content['state_dict'] = {
        name: value for name, value in content['state_dict'].items()
        if not name.startswith('teacher.')}
    torch.save(content, tmp_path / 'epoch_1.pth')
    resumed(tmp_path, tmp_path / 'epoch_1.pth', **{'train_cfg.max_epochs': 2})
    assert (tmp_path / 'epoch_2.pth').exists()
