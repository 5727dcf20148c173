# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""tools/train.py and its launcher, on a folder of a few random images."""
import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from launched import launched
from lives import run_alone
from mmengine.config import Config

from us3l_mm.apis.launching import runner, settings

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / ('configs/us3l/'
                 'us3l_resnet18_4xb128-coslr-400e_cifar10-folder.py')
SMALL = [
    'model.backbone.base_channels=16', 'model.backbone.stem_channels=16',
    'model.neck.in_channels=128', 'model.neck.hid_channels=32',
    'model.neck.out_channels=16',
    'model.distill_head.predictor.in_channels=16',
    'model.distill_head.predictor.hid_channels=32',
    'model.distill_head.predictor.out_channels=16',
    'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0',
    'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']

no_gpu = pytest.mark.skipif(torch.cuda.is_available(),
                            reason='says what happens without a GPU')


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    """parse_args sets LOCAL_RANK; other tests must not see it."""
    monkeypatch.setenv('LOCAL_RANK', '0')


@pytest.fixture(scope='module')
def tool():
    """tools/train.py as a module."""
    spec = importlib.util.spec_from_file_location('train_tool',
                                                  ROOT / 'tools/train.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    """A folder of twelve images of different sizes, two levels deep."""
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for index in range(12):
        folder = root / f'deep/{index % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (30 + index, 40, 3), np.uint8)
        cv2.imwrite(str(folder / f'{index}.jpg'), pixels)
    return root


class BuiltError(BaseException):
    """The tool has reached the Runner."""


def merged(tool, *argv) -> Config:
    """The config that ``train.py *argv`` would train."""

    def build_runner(cfg):
        raise BuiltError(cfg)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, 'build_runner', build_runner)
        # Their data sets are not here.
        patch.setattr(runner, 'check_config', lambda cfg, stages: None)
        with pytest.raises(BuiltError) as built:
            tool.main([str(arg) for arg in argv])
    return built.value.args[0]


def run(command, cwd, **env) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], cwd=cwd,
                          capture_output=True, text=True, env={
                              **os.environ, 'OMP_NUM_THREADS': '1',
                              **env})


def scalars(work_dir: Path) -> list:
    """What was logged per iteration."""
    [file] = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_three_iterations_into_the_default_work_dir(images, tmp_path):
    run_alone(tmp_path / 'log', ROOT / 'tools/train.py', CONFIG,
              '--cfg-options', *SMALL,
              f'train_dataloader.dataset.data_root={images}', folder=tmp_path)
    work_dir = tmp_path / 'work_dirs' / CONFIG.stem
    assert (work_dir / 'epoch_1.pth').is_file()
    log = scalars(work_dir)
    assert len(log) == 3 and np.isfinite([line['loss'] for line in log]).all()
    # Dynamic sampling follows the progress of whatever run this is.
    assert [line['stage'] for line in log] == [0, 1, 2]
    assert log[1]['width_min'] == 0.75 and log[2]['width_min'] == 0.5


@pytest.mark.ddp
@no_gpu
def test_dist_train_runs_two_processes_on_cpus(images, tmp_path):
    code, output = launched(tmp_path, ROOT / 'tools/dist_train.sh', CONFIG, 2,
                            '--work-dir', tmp_path / 'here', '--cfg-options',
                            *SMALL, 'train_dataloader.batch_size=3',
                            f'train_dataloader.dataset.data_root={images}')
    assert code == 0, output[-3000:]
    assert output.count('talk through gloo') == 1
    log = scalars(tmp_path / 'here')
    assert len(log) == 2  # twelve images, two processes of three at a time
    assert 'loss_distill_min' in log[1]
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize('script, wanted', [
    ('dist_train.sh', 'CONFIG GPUS'), ('dist_test.sh', 'CONFIG CKPT GPUS'),
    ('slurm_train.sh', 'PARTITION JOB_NAME CONFIG WORK_DIR'),
    ('slurm_test.sh', 'PARTITION JOB_NAME CONFIG CKPT')])
def test_launchers_say_what_they_need(script, wanted, tmp_path):
    done = run(['bash', ROOT / 'tools' / script, 'only-one'], tmp_path)
    assert done.returncode == 2 and wanted in done.stderr


def test_slurm_train_hands_everything_to_srun(tmp_path):
    (tmp_path / 'srun').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    done = run([
        'bash', ROOT / 'tools/slurm_train.sh', 'gpus', 'job', 'c.py', 'out',
        '--amp', '--cfg-options', 'a=[1, 2]'], tmp_path,
               PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='16',
               SRUN_ARGS='--exclusive --mem=0')
    words = done.stdout.splitlines()
    assert words[:2] == ['-p', 'gpus']
    assert {
        '--ntasks=16', '--gres=gpu:8', '--ntasks-per-node=8',
        '--cpus-per-task=5', '--exclusive', '--mem=0'} <= {*words}
    start = words.index('c.py')
    assert words[start:] == [
        'c.py', '--work-dir', 'out', '--launcher', 'slurm', '--amp',
        '--cfg-options', 'a=[1, 2]']


def test_help_explains_every_flag(tool, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(['--help'])
    text = capsys.readouterr().out
    for flag in ('--work-dir', '--resume', '--amp', '--no-validate',
                 '--auto-scale-lr', '--no-pin-memory', '--cfg-options',
                 '--no-persistent-workers', '--launcher'):
        assert re.search(rf'^  {flag}\b.*\n? +\w+', text, re.M), flag
    assert 'local' not in text


def test_work_dir_of_the_flag_goes_before_that_of_the_config(tool):
    option = ['--cfg-options', 'work_dir=config']
    assert merged(tool, CONFIG, *option).work_dir == 'config'
    assert merged(tool, CONFIG, '--work-dir', 'flag',
                  *option).work_dir == 'flag'


def test_resume_names_a_checkpoint_or_finds_the_last(tool, tmp_path):
    cfg = merged(tool, CONFIG, '--resume')
    assert cfg.resume is True and cfg.load_from is None
    torch.save(dict(state_dict=dict(weight=torch.ones(1)), meta=dict(iter=1)),
               tmp_path / 'a.pth')
    cfg = merged(tool, CONFIG, '--resume', tmp_path / 'a.pth')
    assert cfg.resume is True and cfg.load_from == str(tmp_path / 'a.pth')
    with pytest.raises(SystemExit, match=r'no such file.*last checkpoint'):
        merged(tool, CONFIG, '--resume', tmp_path / 'b.pth')


def test_loaders_get_only_what_pytorch_accepts(tool):
    loader = merged(tool, CONFIG).train_dataloader
    assert loader.persistent_workers is True
    assert loader.pin_memory is torch.cuda.is_available()
    options = [
        '--cfg-options', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=True']
    assert merged(tool, CONFIG,
                  *options).train_dataloader.persistent_workers is False
    loader = merged(tool, CONFIG, '--no-persistent-workers', '--no-pin-memory',
                    '--cfg-options',
                    'train_dataloader.pin_memory=True').train_dataloader
    assert not loader.persistent_workers and not loader.pin_memory


def test_workers_that_hang_are_not_waited_for_for_ever(tool):
    assert merged(tool, CONFIG).train_dataloader.timeout == 600
    for option, timeout in (('num_workers=0', None), ('timeout=5', 5)):
        loader = merged(tool, CONFIG, '--cfg-options',
                        f'train_dataloader.{option}').train_dataloader
        assert loader.get('timeout') == timeout


def test_stock_checkpoint_hooks_become_atomic(tool):
    hooks = merged(
        tool, CONFIG, '--cfg-options',
        'default_hooks.checkpoint.type=CheckpointHook').default_hooks
    assert hooks.checkpoint.type == 'us3l_mm.AtomicCheckpointHook'
    assert hooks.exact_resume.type == 'us3l_mm.ExactResumeHook'


def test_no_validate_leaves_out_the_knn_hook_alone(tool):
    recipe = CONFIG.with_name(CONFIG.name.replace('-folder', ''))
    both = [{
        name: hook.type
        for name, hook in merged(tool, recipe, *flags).default_hooks.items()}
            for flags in ([], ['--no-validate'])]
    assert both[0] == dict(both[1], knn='us3l_mm.WidthKNNHook')
    assert both[0] != both[1]


def test_a_default_hook_that_is_none_is_left_out(tool):
    hooks = merged(tool, CONFIG, '--cfg-options',
                   'default_hooks.group_reg=None',
                   'default_hooks.exact_resume=None',
                   'default_hooks.timer=None').default_hooks
    assert 'sampler' in hooks
    assert 'group_reg' not in hooks and 'exact_resume' not in hooks
    # MMEngine adds its own hooks unless they are None.
    assert hooks.timer is None


def test_auto_scale_lr_needs_the_batch_size_of_the_config(tool, tmp_path):
    assert merged(tool, CONFIG, '--auto-scale-lr').auto_scale_lr.enable is True
    bare = tmp_path / 'bare.py'
    bare.write_text(f'_base_ = {str(CONFIG)!r}\nauto_scale_lr = None')
    with pytest.raises(SystemExit, match=r'base_batch_size=<GPUs x batch'):
        merged(tool, bare, '--auto-scale-lr')


@no_gpu
def test_mixed_precision_without_a_gpu_is_bfloat16(tool):
    plain, mixed = ('us3l_mm.MultiPassOptimWrapper',
                    'us3l_mm.MultiPassAmpOptimWrapper')
    # This wrapper chooses bfloat16 by itself (tests/test_precision.py).
    assert merged(tool, CONFIG, '--amp').optim_wrapper.type == mixed
    in1k = ROOT / 'configs/us3l/us3l_resnet18_8xb128-coslr-100e_in1k.py'
    assert merged(tool, in1k).optim_wrapper.type == mixed
    wrapper = merged(tool, in1k, '--cfg-options',
                     f'optim_wrapper.type={plain}').optim_wrapper
    assert {*wrapper} == {'type', 'optimizer'}
    for path in (CONFIG, in1k):
        wrapper = merged(tool, path, '--amp', '--cfg-options',
                         'optim_wrapper.type=OptimWrapper').optim_wrapper
        assert wrapper.type == 'us3l_mm.CpuAmpOptimWrapper'
        assert 'loss_scale' not in wrapper


@pytest.mark.parametrize('gpu, instructions, options, says', [
    (False, True, ['--amp'], 'on the CPU: bfloat16.'),
    (False, False, ['--amp'], 'single precision is faster: leave out --amp.'),
    (True, True, ['--amp'], 'precision: float16.'),
    (True, True, ['--amp', '--cfg-options', 'optim_wrapper.dtype=bfloat16'
                  ], 'precision: bfloat16.')])
def test_the_precision_is_said(tool, monkeypatch, gpu, instructions, options,
                               says):
    monkeypatch.setattr(settings, 'has_accelerator', lambda: gpu)
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported',
                        lambda: instructions)
    assert settings.describe_precision(merged(tool, CONFIG)) is None
    mixed = merged(tool, CONFIG, *options)
    assert settings.describe_precision(mixed).endswith(says)


def test_amp_keeps_every_other_key(tool, monkeypatch):
    monkeypatch.setattr(settings, 'has_accelerator', lambda: True)
    plain, amp = merged(tool, CONFIG), merged(tool, CONFIG, '--amp')
    assert amp.optim_wrapper.to_dict() == {
        **plain.optim_wrapper.to_dict(), 'type':
        'us3l_mm.MultiPassAmpOptimWrapper'}
    with pytest.raises(SystemExit, match='Other'):
        merged(tool, CONFIG, '--amp', '--cfg-options',
               'optim_wrapper.type=Other')


@pytest.mark.parametrize('option, says', [
    ('train_cgf.max_epochs=1',
     r'reads the key train_cgf.*Did you mean train_cfg'),
    ('whatever=1', r'reads the key whatever.*one of \['),
    ('train_pipeline.0.x=1', r'train_pipeline is a variable.*data_root'), ])
def test_an_option_that_nothing_reads_is_refused(tool, option, says):
    with pytest.raises(SystemExit, match=says):
        merged(tool, CONFIG, '--cfg-options', option)


def test_a_misspelt_key_of_a_config_is_refused(tool, tmp_path):
    path = tmp_path / 'misspelt.py'
    path.write_text(f'_base_ = {str(CONFIG)!r}\noptim_wraper = dict()')
    with pytest.raises(SystemExit, match=r'optim_wraper\. Did you mean optim'):
        merged(tool, path)


def test_a_config_that_is_not_there_is_named_with_its_neighbours(tool):
    with pytest.raises(SystemExit, match='Did you mean .*r50_8xb256.py'):
        merged(tool, ROOT / 'configs/us3l/r50_8xb265.py')


@pytest.mark.parametrize('folder, error, says', [
    ('empty', SystemExit, 'empty has no image.*data_root'),
    ('missing', SystemExit, r"missing': this folder is not there.*data_root="),
    ('few', SystemExit, r'has 1 images.*less than a batch.*batch_size'), ])
def test_a_useless_data_folder_is_refused_before_training(
        tool, tmp_path, monkeypatch, folder, error, says):
    (tmp_path / 'empty/sub').mkdir(parents=True)
    (tmp_path / 'few').mkdir()
    cv2.imwrite(str(tmp_path / 'few/1.png'), np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr('sys.argv', [
        'train.py',
        str(CONFIG), '--work-dir',
        str(tmp_path / 'out'), '--cfg-options', *SMALL, 'log_level=ERROR',
        f'train_dataloader.dataset.data_root={tmp_path / folder}'])
    with pytest.raises(error, match=says):
        tool.main()
    assert not [*tmp_path.glob('out/*.pth')]
