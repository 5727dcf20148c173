# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of tools/test.py."""
import pytest
import torch

from .harness import ROOT, check, main_of, run

DIGITS = ROOT / 'configs/us3l/us3l_resnet18_demo_digits.py'
LINEAR = ROOT / 'configs/us3l/benchmarks'
LINEAR /= 'linear_resnet18_4xb128-steplr-100e_cifar10.py'

CASES = [
    ([DIGITS], 'checkpoint', 'required'),
    ([DIGITS, 'none.pth'], 'none.pth', 'no checkpoint'),
    ([DIGITS, 'a.pth'], 'no test_dataloader', 'evaluate_widths.py'),
    (['none.py', 'a.pth'], 'none.py', 'no config file'),
    ([LINEAR, 'empty.pth'], 'empty.pth', 'empty'),
    ([LINEAR, 'text.pth'], 'text.pth', 'not a PyTorch checkpoint'),
    ([LINEAR, 'a.pth', '--out-item', 'pred'], '--out-item', '--out FILE'),
    ([LINEAR, 'a.pth', '--out-item', 'all'], "'all'", 'metrics'),
    ([LINEAR, 'a.pth', '--interval', 'x'], '--interval', "'x'"),
    ([LINEAR, 'a.pth', '--interval', '0'], '--interval', '0'),
    ([LINEAR, 'a.pth', '--wait-time', 'x'], '--wait-time', "'x'"),
    ([LINEAR, 'a.pth', '--wait-time', 'nan'], '--wait-time', 'nan'),
    ([LINEAR, 'a.pth', '--out', 'a.txt'], '--out a.txt', '.pkl'),
    ([LINEAR, 'a.pth', '--out', 'no/such/a.pkl'], 'no/such', 'folder'),
    ([LINEAR, 'a.pth', '--launcher', 'ssh'], "'ssh'", 'slurm'),
    ([LINEAR, 'a.pth', '--work-dir',
      'text.pth/run'], 'text.pth', 'another folder'),
    *(([LINEAR, 'a.pth', '--cfg-options', option], *needles)
      for option, *needles in [
          ('test_dataloader.batch_size=0', 'batch_size=0', 'from 1'),
          ('test_dataloader.batchsize=4', 'Did you mean batch_size?'),
          ('test_dataloader.dataset.type=CIFAR11', "Did you mean 'CIFAR1"),
          ('test_evaluator.type=Acuracy', "Did you mean 'Accuracy'"),
          ('test_evaluator.topkk=1', 'Did you mean topk?'),
          ('test_cfg.type=us3l_mm.WidthTestLop',
           "Did you mean 'us3l_mm.WidthTestLoop'"),
          ('test_cfg.fp17=True', 'Did you mean fp16?'),
          ('model.head.topk=nan', 'topk=nan', 'finite'),
          ('tset_cfg.fp16=True', 'Did you mean test_cfg'),
          ('test_cfg=3', 'test_cfg=3', 'NAME=VALUE'),
          ('test_dataloader.num_workers=-1', 'num_workers=-1', 'from 0'), ])]


@pytest.fixture(scope='module')
def main():
    return main_of('test')


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')


@pytest.mark.parametrize('argv, needles', [(c[0], c[1:]) for c in CASES], ids=[
    ' '.join(map(str, c[0][1:])) for c in CASES])
def test_bad_input(main, tmp_path, capsys, argv, needles):
    torch.save(dict(state_dict={'w': torch.ones(1)}), tmp_path / 'a.pth')
    (tmp_path / 'empty.pth').touch()
    (tmp_path / 'text.pth').write_text('weights')
    check(run(main, argv, tmp_path, capsys), *needles)
