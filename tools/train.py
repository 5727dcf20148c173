# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Train from a config file: MMPretrain's flags, and earlier errors."""
import argparse
import inspect
import os
import os.path as osp
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path

import torch.distributed as torch_dist
from mmengine.config import Config, DictAction
from mmengine.device import (is_cuda_available, is_mlu_available,
                             is_musa_available, is_npu_available)
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from us3l_mm.engine.launching import config as launch
from us3l_mm.engine.launching.faults import explain
from us3l_mm.engine.launching.processes import join_on_cpus
from us3l_mm.engine.launching.safety import make_resumable
from us3l_mm.fileio import load_weights

# What a Runner reads of its config besides its own arguments
RUNNER_EXTRAS = {
    'activation_checkpointing', 'compile', 'custom_imports',
    'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg',
    'runner_type', 'sync_bn'
}
CPU_AMP = 'us3l_mm.CpuAmpOptimWrapper'
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Pre-train a slimmable network, or train a classifier '
        'or a detector on one.',
        epilog='Example, two epochs with a log line per iteration: '
        'python tools/train.py '
        'configs/us3l/us3l_resnet18_4xb128-coslr-400e_cifar10.py '
        '--cfg-options train_cfg.max_epochs=2 default_hooks.logger.interval=1')
    parser.add_argument('config', help='config file, such as one of '
                        'configs/us3l/')
    parser.add_argument(
        '--work-dir', help='folder of logs and checkpoints; '
        'default: ./work_dirs/<name of the config>')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CKPT',
        help='go on from this checkpoint, or without a value from the newest '
        'one in the work dir that is whole')
    parser.add_argument(
        '--amp', action='store_true',
        help='automatic mixed precision: float16, on a '
        'GPU; --cfg-options optim_wrapper.dtype=bfloat16 for '
        'bfloat16, on CPUs too')
    parser.add_argument(
        '--no-validate', action='store_true',
        help='leave out evaluation during training, kNN '
        'included')
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='multiply the learning rate by (batch size of this run) / '
        '(auto_scale_lr.base_batch_size of the config)')
    parser.add_argument(
        '--no-pin-memory', action='store_true',
        help='do not pin the memory of the data loaders; '
        'default: pinned when there is a GPU')
    parser.add_argument(
        '--no-persistent-workers', action='store_true',
        help='start the workers of the data loaders anew in '
        'each epoch')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='change the config: train_cfg.max_epochs=100; lists by index: '
        'custom_hooks.1.num_stages=1; list values without blanks: '
        'model.backbone.out_indices="[2,3]"')
    parser.add_argument(
        '--launcher', default='none',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        help='what starts the processes of a distributed run; '
        'tools/dist_train.sh and tools/slurm_train.sh set it')
    # Passed by launchers of the past; torchrun sets LOCAL_RANK instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def load_config(path: str, options: dict) -> Config:
    """The config at ``path``, changed by ``options`` (dotted keys).

    ``data_root`` moves every path below the ``data_root`` of the config file.
    """
    if not osp.isfile(path):
        folder = Path(path).parent
        names = [p.name for p in folder.glob('*.py')]
        close = get_close_matches(Path(path).name, names)
        hint = (f'Did you mean {folder / close[0]}?'
                if close else f'{folder}/ has the configs {sorted(names)}.'
                if names else 'Configs are in configs/us3l/.')
        sys.exit(f'There is no config file {path}. {hint}')
    try:
        cfg = launch.load(path)
    except ImportError as error:
        sys.exit(str(error))
    if 'data_root' in options and cfg.get('data_root'):
        options = dict(options)
        launch.move_data_root(cfg, options.pop('data_root'))
    if 'runner_type' not in cfg:
        check_keys(cfg, path, options)
    cfg.merge_from_dict(options)
    return cfg


def check_keys(cfg: Config, path: str, options: dict) -> None:
    """Refuse what looks like a key of the Runner and would not be read."""
    read = RUNNER_EXTRAS | {*inspect.signature(Runner.__init__).parameters}
    for key in cfg.keys() - read:
        # Other variables of a config file are its own affair.
        close = get_close_matches(key, read, cutoff=0.9)
        if close:
            sys.exit(f'{path}: nothing reads the key {key}. Did you mean '
                     f'{close[0]}?')
    for option in options:
        key = option.split('.')[0]
        if key in read:
            continue
        if key in cfg:
            sys.exit(
                f'--cfg-options {option}: {key} is a variable of the config '
                'file, whose value has been used already. Set the keys that '
                'the Runner reads, such as train_dataloader.dataset.data_root '
                'or custom_hooks.1.num_stages.')
        close = get_close_matches(key, read)
        hint = (f'Did you mean {close[0]}?'
                if close else f'There are {sorted(read & {*cfg})}.')
        sys.exit(f'--cfg-options {option}: there is no key {key}. {hint}')


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Write the flags into the config."""
    cfg.launcher = args.launcher
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.custom_hooks = [
            hook for hook in cfg.get('custom_hooks') or []
            if hook.type != 'us3l_mm.WidthKNNHook'
        ]
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', Path(args.config).stem)
    if args.resume is not None:
        merge_resume(cfg, args.resume)
    make_resumable(cfg)
    merge_amp(cfg, args.amp)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            sys.exit(
                '--auto-scale-lr needs to know which batch size the learning '
                f'rate of {args.config} is meant for. Add auto_scale_lr=dict('
                'base_batch_size=<GPUs x batch size per GPU>) to it.')
        cfg.auto_scale_lr.enable = True
    for name in LOADERS:
        if cfg.get(name) is not None:
            merge_loader(cfg[name], args, launch.is_detection(cfg))
    launch.add_checks(cfg)
    return cfg


def merge_resume(cfg: Config, checkpoint: str) -> None:
    """Resume from ``checkpoint``, a path, a URL or 'auto'."""
    cfg.resume, cfg.load_from = True, None
    if checkpoint != 'auto':
        if '://' not in checkpoint and not osp.isfile(checkpoint):
            sys.exit(f'--resume {checkpoint}: there is no such file. Without '
                     'a value, --resume takes the last checkpoint of the work '
                     f'dir, {cfg.work_dir}.')
        cfg.load_from = checkpoint


def merge_amp(cfg: Config, amp: bool) -> None:
    """Turn mixed precision on if ``amp``; check that it can run."""
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if amp and kind == 'OptimWrapper':
        wrapper.type = kind = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if amp and kind not in ('AmpOptimWrapper', CPU_AMP):
        sys.exit('--amp makes an OptimWrapper an AmpOptimWrapper; the config '
                 f'has optim_wrapper.type={kind!r}.')
    if kind != 'AmpOptimWrapper' or has_accelerator():
        return
    if wrapper.get('dtype') == 'bfloat16':
        wrapper.type = CPU_AMP
        wrapper.pop('loss_scale', None)  # bfloat16 has the range of float32
        return
    way_out = ('Leave out --amp' if amp else 'Train in single precision: '
               '--cfg-options optim_wrapper.type=OptimWrapper')
    sys.exit('Mixed precision in float16 needs a GPU, and PyTorch finds none '
             f'here. {way_out}, or train in bfloat16, which CPUs have: '
             '--cfg-options optim_wrapper.dtype=bfloat16')


def merge_loader(loader: dict, args: argparse.Namespace,
                 of_detection: bool = False) -> None:
    """Set the defaults of a data loader that speed it up, where they can."""
    loader.setdefault('pin_memory', is_cuda_available())
    loader.setdefault('persistent_workers', True)
    if not of_detection:  # MMDetection's images differ in size
        loader.setdefault('collate_fn', dict(type='default_collate'))
    if loader.get('num_workers'):
        # Seconds; PyTorch's own default is to wait for ever.
        loader.setdefault('timeout', 600)
    if args.no_pin_memory:
        loader.pin_memory = False
    # PyTorch refuses to keep workers that do not exist.
    if args.no_persistent_workers or not loader.get('num_workers'):
        loader.persistent_workers = False


def has_accelerator() -> bool:
    """Whether MMEngine can run mixed precision here."""
    return (is_cuda_available() or is_npu_available() or is_mlu_available()
            or is_musa_available())


def check_checkpoint(cfg: Config) -> None:
    """Refuse to begin from a file that holds more than weights.

    MMEngine warns of such a file and then executes the code in it. Whoever
    trusts a file sets TORCH_FORCE_WEIGHTS_ONLY_LOAD=0. What --resume finds by
    itself is checked when it is chosen, by AtomicCheckpointHook.
    """
    if os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1') == '0':
        return
    path = cfg.get('load_from')
    if path is not None and osp.isfile(path):
        try:
            load_weights(path)
        except ValueError as error:
            sys.exit(f'{error} In this tool: TORCH_FORCE_WEIGHTS_ONLY_LOAD=0.'
                     if 'would execute' in str(error) else str(error))


def join_processes(cfg: Config) -> None:
    """Connect the processes of a distributed run on CPUs.

    MMEngine does this itself where there are GPUs; its way begins by choosing
    one and fails without.
    """
    if cfg.launcher == 'none' or has_accelerator():
        return
    launch.for_processes_on_cpus(cfg)
    try:
        join_on_cpus(cfg.launcher, cfg.env_cfg.dist_cfg.get('timeout'))
    except ValueError as error:
        sys.exit(str(error))


def check_batches(runner: Runner) -> None:
    """Refuse a training set that is smaller than a batch."""
    try:
        loader = runner.train_dataloader
    except ValueError as error:  # MMEngine joins the annotations of no image
        if 'need at least one array to concatenate' not in str(error):
            raise
        sys.exit('No image is left in the training set: its annotation file '
                 'lists none, or dataset.filter_cfg of the config removes all '
                 '(images without instances, or smaller than min_size).')
    if len(loader) == 0:
        sys.exit(
            f'The training set has {len(loader.dataset)} images, '
            f'{len(loader.sampler)} for each process, which is less than a '
            'batch: lower train_dataloader.batch_size, now '
            f'{loader.batch_size}, or give more images.')


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options or {})
    cfg = merge_args(cfg, args)
    check_checkpoint(cfg)
    try:
        launch.check_pretrained_file(cfg)
        launch.check_annotation_files(cfg)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    join_processes(cfg)
    try:
        train(cfg)
    except Exception as error:
        cause = explain(error, cfg.work_dir)
        if cause is None:
            raise
        traceback.print_exc()
        sys.exit(cause)
    if torch_dist.is_available() and torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def train(cfg: Config) -> None:
    """Build the Runner of ``cfg`` and train."""
    if 'runner_type' in cfg:
        runner = RUNNERS.build(cfg)
    else:
        runner = Runner.from_cfg(cfg)
    check_batches(runner)
    runner.train()


if __name__ == '__main__':
    main()
