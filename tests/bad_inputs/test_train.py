# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Bad inputs of tools/train.py."""
import os
import subprocess
import sys

import pytest
import torch

from .harness import ROOT, check, main_of, run

DIGITS = ROOT / 'configs/us3l/us3l_resnet18_demo_digits.py'
FOLDER = DIGITS.with_name('us3l_resnet18_4xb128-coslr-400e_cifar10-folder.py')
LOADER, DATASET = 'train_dataloader', 'train_dataloader.dataset'
HOOKS, OPTIMIZER = 'default_hooks', 'optim_wrapper.optimizer'
VIEWS = f'{DATASET}.pipeline.1.transforms.0.0'

# --cfg-options, and what the message has to say
OPTIONS = [
    # types
    ('model.type=us3l_mm.US3LAlgoritm', "Did you mean 'us3l_mm.US3LAlgorithm'"
     ),
    ('model.type=US3LAlgorithm', "Did you mean 'us3l_mm.US3LAlgorithm'"),
    ('model.backbone.type=us3l_mm.SlimmableResNt', 'model.backbone.type',
     "Did you mean 'us3l_mm.SlimmableResNet'"),
    ('model.neck.type=us3l_mm.SlimableProjector',
     "Did you mean 'us3l_mm.SlimmableProjector'"),
    ('model.head.loss.type=us3l_mm.InfoNCELos', 'model.head.loss.type',
     "Did you mean 'us3l_mm.InfoNCELoss'"),
    ('model.distill_head.predictor.type=us3l_mm.Predicter',
     "Did you mean 'us3l_mm.Predictor'"),
    ('model.backbone.norm_cfg.type=BNN', 'norm_cfg', 'BNN'),
    ('model.backbone.init_cfg.type=Kaimming', "Did you mean 'Kaiming"),
    (f'{HOOKS}.sampler.type=us3l_mm.DynamicSamplerHok',
     "Did you mean 'us3l_mm.DynamicSamplerHook'"),
    (f'{HOOKS}.timer.type=IterTimerHok', "Did you mean 'IterTimerHook'"),
    (f'{HOOKS}.sampler.type=us3l_mm.SlimmableResNet', 'no hook of this name'),
    (f'{DATASET}.type=us3l_mm.RenderedDigit',
     "Did you mean 'us3l_mm.RenderedDigits'"),
    (f'{DATASET}.type=CIFAR11', "Did you mean 'CIFAR1"),
    (f'{DATASET}.pipeline.0.type=us3l_mm.SeedAugmentatoin',
     "Did you mean 'us3l_mm.SeedAugmentation'"),
    (f'{VIEWS}.type=RandomResizedCorp', "Did you mean 'RandomResizedCrop'"),
    (f'{LOADER}.sampler.type=us3l_mm.SeedSampler',
     "Did you mean 'us3l_mm.SeededSampler'"),
    (f'{LOADER}.collate_fn.type=defalt_collate',
     "Did you mean 'default_collate'"),
    ('optim_wrapper.type=us3l_mm.MultipassOptimWrapper',
     "Did you mean 'us3l_mm.MultiPassOptimWrapper'"),
    (f'{OPTIMIZER}.type=SDG', f"{OPTIMIZER}.type='SDG'", "Did you mean '"),
    ('param_scheduler.0.type=CosineAnealingLR',
     "Did you mean 'CosineAnnealingLR'"),
    ('train_cfg.type=EpochTrainLoop', 'train_cfg', 'EpochBasedTrainLoop'),
    ('visualizer.type=Visualiser', "Did you mean '"),
    ('visualizer.vis_backends.0.type=TensorBoardVisBackend',
     "Did you mean 'TensorboardVisBackend'"),
    ('model_wrapper_cfg.type=us3l_mm.MultipassDistributedDataParallel',
     "Did you mean 'us3l_mm.MultiPassDistributedDataParallel'"),
    # arguments
    (f'{HOOKS}.sampler.num_sampels=4', 'Did you mean num_samples?'),
    (f'{HOOKS}.checkpoint.intervall=4', 'Did you mean interval?'),
    (f'{HOOKS}.logger.interva=4', 'Did you mean interval?'),
    (f'{HOOKS}.group_reg.lamm=4', 'group_reg', 'lamm'),
    ('model.update_mod=sequential', 'Did you mean update_mode?'),
    ('model.backbone.dept=18', 'Did you mean depth?'),
    ('model.neck.hid_chanels=18', 'Did you mean hid_channels?'),
    ('model.head.loss.temperatur=1', 'Did you mean temperature?'),
    ('model.teacher.momentun=0.1', 'momentun'),
    (f'{DATASET}.splt=train', 'Did you mean split?'),
    (f'{VIEWS}.colour=1', f'{VIEWS}.colour', 'RenderDigit has no such'),
    (f'{LOADER}.batchsize=4', 'Did you mean batch_size?'),
    (f'{LOADER}.num_worker=4', 'Did you mean num_workers?'),
    (f'{LOADER}.sampler.shufle=True', 'Did you mean shuffle?'),
    (f'{OPTIMIZER}.learning_rate=1', 'SGD has no such argument'),
    (f'{OPTIMIZER}.momentm=.9', 'Did you mean momentum?'),
    ('optim_wrapper.clip_gard.max_norm=1', 'Did you mean clip_grad?'),
    ('param_scheduler.0.eta_mni=0', 'Did you mean eta_min?'),
    ('train_cfg.max_epoch=3', 'Did you mean max_epochs?'),
    # keys
    ('train_cgf.max_epochs=1', 'train_cgf', 'Did you mean train_cfg'),
    ('whatever=1', 'whatever', 'train_dataloader'),
    ('train_pipeline.0.x=1', 'train_pipeline is a variable', 'dataset'),
    ('train_cfg..max_epochs=1', 'train_cfg..max_epochs', 'single dots'),
    ('param_scheduler.7.eta_min=0', 'param_scheduler.7', '7'),
    ('train_cfg=5', 'train_cfg=5', 'train_cfg.NAME=VALUE'),
    ('train_cfg.max_epochs.x=5', 'train_cfg.max_epochs.x'),
    ('model=None', 'has no model'),
    ('model.backbone=5', 'model.backbone', '5'),
    ('model.neck=None', 'model.neck', 'None'),
    ('model.backbone.out_indices=7', 'SlimmableResNet cannot be built', 'int'),
    ('model.backbone.strides="[1]"', 'SlimmableResNet cannot', 'len(strides)'),
    ('model.head=None', 'model.head', 'None'),
    ('env_cfg.cudnn_benchmrk=True', 'Did you mean cudnn_benchmark?'),
    ('randomness.sed=1', 'Did you mean seed?'),
    ('randomness.deterministic=abc', "deterministic='abc'", 'True or False'),
    ('auto_scale_lr.enable=1', 'auto_scale_lr.enable=1', 'True or False'),
    ('custom_hooks=abc', "custom_hooks='abc'", 'list'),
    ('optim_wrapper=None', 'has no optim_wrapper'),
    # numbers
    *((f'{LOADER}.batch_size={value}', f'batch_size={shown}', 'from 1 to')
      for value, shown in (('0', '0'), ('-4', '-4'), ('2.5', '2.5'),
                           ('abc', "'abc'"), ('True', 'True'),
                           ('1e9', '1000000000'))),
    (f'{LOADER}.batch_size=1', 'batch_size=1', 'at least 2 images'),
    (f'{LOADER}.batch_size=2000', 'less than a batch', 'now 2000'),
    *((f'{LOADER}.num_workers={value}', f'num_workers={shown}', 'from 0 to')
      for value, shown in (('-1', '-1'), ('1.5', '1.5'), ('many', "'many'"),
                           ('99999', '99999'))),
    *((f'train_cfg.max_epochs={value}', f'max_epochs={shown}', 'from 1 to')
      for value, shown in (('0', '0'), ('-3', '-3'), ('0.5', '0.5'),
                           ('ten', "'ten'"))),
    ('train_cfg.val_interval=0', 'val_interval=0', 'from 1 to'),
    (f'{HOOKS}.logger.interval=0', 'interval=0', 'from 1 to'),
    (f'{HOOKS}.checkpoint.interval=-2', 'interval=-2', 'from 1 to'),
    (f'{OPTIMIZER}.lr=-1', 'lr=-1', 'from 0'),
    (f'{OPTIMIZER}.lr=fast', "lr='fast'", 'learning rate'),
    (f'{OPTIMIZER}.lr=nan', 'lr=nan', 'finite'),
    (f'{OPTIMIZER}.momentum=-1', f'{OPTIMIZER}:', '-1'),
    (f'{OPTIMIZER}.weight_decay=-1', 'weight_decay=-1', 'from 0'),
    (f'{HOOKS}.group_reg.lam=nan', 'lam=nan', 'finite'),
    ('model.teacher.momentum=inf', 'momentum=inf', 'finite'),
    ('model.data_preprocessor.std="[1,nan,1]"', 'std.1=nan', 'finite'),
    ('model.backbone.base_channels=0', 'base_channels=0', 'from 1'),
    ('model.backbone.base_channels=2.5', 'base_channels=2.5', 'integer'),
    ('model.neck.out_channels=-8', 'out_channels=-8', 'from 1'),
    ('model.neck.hid_channels=wide', "hid_channels='wide'", 'integer'),
    ('model.neck.in_channels=64', 'in_channels=64', '128 channels'),
    ('model.backbone.depth=19', '19'),
    ('model.update_mode=joint', "'joint'", 'accumulate'),
    ('model.base_from=self', "'self'", 'base_from'),
    (f'{HOOKS}.sampler.num_stages=0', 'num_stages', 'got 0'),
    (f'{HOOKS}.sampler.widths="[1.0,2.0]"', 'sampler', '2.0'),
    (f'{HOOKS}.non_finite.max_consecutive=0', 'max_consecutive=0',
     'at least 1'),
    (f'{HOOKS}.collapse.action=halt', "'halt'", 'stop'),
    ('optim_wrapper.accumulative_counts=0', 'accumulative_counts=0'),
    ('optim_wrapper.accumulative_counts=2', 'accumulative_counts=2',
     'accumulate'),
    ('randomness.seed=-1', 'seed=-1', 'from 0'),
    ('randomness.seed=abc', "seed='abc'", 'integer'),
    ('model.backbone.frozen_stages=1', 'frozen_stages=1', '-1'),
    # types
    ('model.channels_last=abc', "channels_last='abc'", 'bool'),
    (f'{HOOKS}.checkpoint.max_keep_ckpts=abc', "max_keep_ckpts='abc'", 'int'),
    (f'{HOOKS}.sampler.seed=abc', "seed='abc'", 'int'),
    ('resume=abc', "resume='abc'", 'bool'),
    ('train_cfg.by_epoch=abc', "by_epoch='abc'", 'True or False'),
    ('load_from=5', 'load_from=5', 'str'),
    ('log_level=FOO', "log_level='FOO'", 'WARNING'),
    ('randomness.sed=1', 'randomness.sed', 'Did you mean seed?'),
    ('optim_wrapper.optimizer=SGD', "optimizer='SGD'", 'dict'),
    ('optim_wrapper.clip_grad=5', 'clip_grad'),
    ('launcher=mpi', 'launcher', 'nothing reads'),
    ('model.backbone.out_indices=(9,)', 'out_indices'),
    ('model.backbone.base_channels=1000000', 'allocate'),
    ('model.neck.num_layers=0', 'num_layers=0', 'from 1'),
    ('param_scheduler.0.end=-1', 'end=-1'),
    ('log_processor.window_size=-3', 'window_size=-3', 'from 1'),
    ('compile=5', 'compile', 'dict or bool'),
    ('sync_bn=torch', "sync_bn='torch'", 'sync_norms'),
    # files
    ('model.backbone.init_cfg.type=Pretrained', 'weights of the backbone',
     'init_cfg.checkpoint=FILE'),
    ('load_from=none.pth', 'none.pth'),
    ('work_dir=/dev/null/run', '/dev/null', 'another folder'), ]


@pytest.fixture(scope='module')
def main():
    return main_of('train')


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')


@pytest.mark.parametrize('option, needles', [(o[0], o[1:]) for o in OPTIONS],
                         ids=[o[0] for o in OPTIONS])
def test_options(main, tmp_path, capsys, option, needles):
    words = [option.replace('"', '')]
    check(run(main, [DIGITS, '--cfg-options', *words], tmp_path, capsys),
          *needles)


FLAGS = [
    ([ROOT / 'configs/us3l/r50_8xb265.py'], 'r50_8xb265.py', 'Did you mean'),
    (['no/such.py'], 'no/such.py', 'configs/us3l'),
    ([], 'config'),
    ([DIGITS, '--lancher', 'pytorch'], '--lancher'),
    ([DIGITS, '--launcher', 'ssh'], 'ssh', 'slurm'),
    ([DIGITS, '--launcher', 'mpi'], 'OMPI_COMM_WORLD_RANK', 'mpirun'),
    ([DIGITS, '--resume', 'none.pth'], '--resume none.pth', 'work dir'),
    ([DIGITS, '--work-dir', 'text.txt/run'], 'text.txt', 'another folder'),
    ([DIGITS, '--work-dir', ''], '--work-dir', 'path'),
    ([DIGITS, '--cfg-options', 'a'], "got 'a'", 'KEY=VALUE'),
    ([DIGITS, '--cfg-options', 'a=[1'], 'a=[1', 'brackets'),
    ([DIGITS, '--cfg-options'], '--cfg-options'),
    ([FOLDER], "data_root='data/cifar10_folder/train'", 'data_root=FOLDER'),
    ([FOLDER, '--cfg-options',
      f'{DATASET}.data_root=text.txt'], 'is a file', 'data_root=FOLDER'),
    ([FOLDER, '--cfg-options',
      f'{DATASET}.data_root=empty'], 'empty has no image', 'data_root'),
    ([FOLDER, '--cfg-options',
      f'{DATASET}.data_root=a, b'], 'data_root=', 'comma'),
    ([
        FOLDER, '--cfg-options', f'{VIEWS[:-4]}.0.0.scale=0',
        f'{DATASET}.pipeline.2.transforms.0.0.scale=0'], 'scale=0', 'pixels'),
]


@pytest.mark.parametrize('argv, needles', [(f[0], f[1:]) for f in FLAGS], ids=[
    ' '.join(map(str, f[0][1:])) for f in FLAGS])
def test_flags(main, tmp_path, capsys, monkeypatch, argv, needles):
    monkeypatch.delenv('OMPI_COMM_WORLD_RANK', raising=False)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.txt').write_text('no image')
    check(run(main, argv, tmp_path, capsys), *needles)


# The text of a config, and what the message has to say
CONFIGS = [
    ('a = dict(', 'bad.py, line 2', 'never closed'),
    ('a = b', 'bad.py, line 2', "'b' is not defined"),
    ('a = 1 / 0', 'bad.py, line 2', 'division'),
    ("_base_ = 'none.py'", 'none.py', 'bad.py'),
    ("_base_ = ['other.py']", 'other.py, line 1', 'never closed'),
    ("custom_imports = dict(imports=['no_such'])", 'bad.py', 'no_such'),
    ('model = dict()', 'bad.py has no model'),
    ("model = dict(type='us3l_mm.US3LAlgorithm')",
     'bad.py has no train_dataloader'),
    ('optim_wraper = dict()', 'optim_wraper', 'Did you mean optim'), ]


@pytest.mark.parametrize('text, needles', [(c[0], c[1:]) for c in CONFIGS],
                         ids=[c[0] for c in CONFIGS])
def test_configs(main, tmp_path, capsys, text, needles):
    (tmp_path / 'bad.py').write_text(f'# A config\n{text}\n')
    (tmp_path / 'other.py').write_text('a = (')
    check(run(main, ['bad.py'], tmp_path, capsys), *needles)


def checkpoint(**changes) -> dict:
    """A checkpoint of some other network."""
    content = dict(
        state_dict={'conv.weight': torch.ones(2)}, optimizer={},
        message_hub=dict(log_scalars={}, runtime_info={},
                         resumed_keys={}), meta=dict(iter=11, epoch=1, seed=0))
    content.update(changes)
    return {k: value for k, value in content.items() if value is not None}


FILES = [
    (checkpoint(meta=None), 'does not say at which iteration', 'load_from='),
    (checkpoint(optimizer=None), "no 'optimizer'", 'load_from='),
    (checkpoint(), 'no parameter of this US3LAlgorithm', 'load_from='),
    (checkpoint(state_dict={}), 'a.pth', 'no weights'),
    (dict(weight=torch.ones(2)), 'does not say at which iteration',
     'load_from='),
    (checkpoint(state_dict={'w': torch.full((2, ), float('nan'))}), 'a.pth',
     'NaN'), ]


@pytest.mark.parametrize('content, needles', [(f[0], f[1:]) for f in FILES],
                         ids=[f[1] for f in FILES])
def test_files_to_resume_from(main, tmp_path, capsys, content, needles):
    torch.save(content, tmp_path / 'a.pth')
    check(run(main, [DIGITS, '--resume', 'a.pth'], tmp_path, capsys), *needles)


@pytest.mark.parametrize('option, needle',
                         [(OPTIONS[0][0], 'Did you mean'),
                          ('model.base_from=self', 'base_from')])
def test_as_a_program(tmp_path, option, needle):
    done = subprocess.run([
        sys.executable, ROOT / 'tools/train.py', DIGITS, '--cfg-options',
        option], cwd=tmp_path, capture_output=True, text=True, env={
            **os.environ, 'OMP_NUM_THREADS': '1'})
    lines = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1 and len(lines) < 15
    assert lines[-1].startswith('train.py: ') and needle in lines[-1]
    assert not [*tmp_path.iterdir()]
