# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What is right is not refused; see tests/bad_inputs for what is wrong."""
from pathlib import Path

import pytest
from mmengine.config import Config

from us3l_mm.apis.launching import mistakes
from us3l_mm.apis.launching.config import load_config
from us3l_mm.apis.launching.mistakes import check_config, check_number

CONFIGS = Path(__file__).parents[1] / 'configs/us3l'


@pytest.mark.parametrize('folder',
                         ['.', 'baselines', 'benchmarks', 'detection'])
def test_no_config_of_this_package_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(mistakes, 'check_folder', lambda item: None)
    paths = sorted((CONFIGS / folder).glob('*.py'))
    assert len(paths) > 5
    for path in paths:
        if folder == 'detection':
            pytest.importorskip('mmdet')
        cfg = load_config(str(path))
        cfg.work_dir = str(tmp_path)
        check_config(cfg, ('train', 'val', 'test'))


def test_classes_in_place_of_names_and_unknown_arguments(tmp_path):

    class Anything:

        def __init__(self, known=1, **others):
            pass

    cfg = Config(
        dict(work_dir=str(tmp_path), model=dict(type=Anything, whatever=2)))
    check_config(cfg, ())
    cfg.model.knownn = 2
    with pytest.raises(ValueError, match='model.knownn.*Did you mean known'):
        check_config(cfg, ())


@pytest.mark.parametrize('key, value', [
    ('default_hooks.checkpoint.interval', -1),
    ('train_dataloader.num_workers', 0),
    ('train_dataloader.dataset.pipeline.1.scale', (1333, 800)),
    ('optim_wrapper.optimizer.lr', 0),
    ('optim_wrapper.optimizer.lr', 1),
    ('optim_wrapper.clip_grad.norm_type', float('inf')),
    ('randomness.seed', None), ])
def test_numbers_that_are_allowed(key, value):
    check_number(key, value)


def test_a_data_set_that_is_downloaded_needs_no_folder(tmp_path):
    data = dict(type='CIFAR10', data_root=str(tmp_path / 'new'), split='train')
    cfg = Config(
        dict(default_scope='mmpretrain', work_dir=str(tmp_path),
             train_dataloader=dict(batch_size=2, dataset=data)))
    check_config(cfg, ('train', ))
    cfg.train_dataloader.dataset.download = False
    check_config(cfg, ('val', ))
    with pytest.raises(FileNotFoundError,
                       match='data_root=.*new.*data_root=F'):
        check_config(cfg, ('train', ))
