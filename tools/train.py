# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Train from a config file, with the flags of MMPretrain's tool."""
import argparse
import os

from mmengine.config import Config

from us3l_mm.apis import launching
from us3l_mm.apis.command_line import (OptionsAction, add_common_flags,
                                       errors_as_sentences)
from us3l_mm.fileio import trust_pickle


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
        help='automatic mixed precision: float16 on a GPU, bfloat16 on a CPU; '
        '--cfg-options optim_wrapper.dtype=bfloat16 for bfloat16 on a GPU')
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
        '--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
        help='change the config: train_cfg.max_epochs=100; hooks by name: '
        'default_hooks.sampler.num_stages=1; a value with blanks or '
        'brackets in quotation marks: model.backbone.out_indices="[2, 3]"')
    parser.add_argument(
        '--launcher', default='none', choices=[
            'none', 'pytorch', 'slurm', 'mpi'],
        help='what starts the processes of a distributed run; '
        'tools/dist_train.sh and tools/slurm_train.sh set it')
    add_common_flags(parser)
    # Passed by launchers of the past; torchrun sets LOCAL_RANK instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def config_of(args: argparse.Namespace) -> Config:
    """The config to train from: the file, the options and the flags."""
    cfg = launching.load_config(args.config, args.cfg_options)
    for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'):
        if not cfg.get(key):
            raise ValueError(f'{args.config} has no {key}, so there is nothing'
                             ' to train by. Configs are in configs/us3l/.')
    launching.set_up_training(cfg, args.config, args.work_dir, args.resume,
                              args.amp, args.launcher, not args.no_validate,
                              args.auto_scale_lr, not args.no_pin_memory,
                              not args.no_persistent_workers)
    return cfg


def main(argv=None) -> None:
    args = parse_args(argv)
    trust_pickle(args.trust_pickle)
    with errors_as_sentences('train.py', args.debug):
        cfg = config_of(args)
        launching.check_training(cfg)
    with launching.nothing_left_behind(cfg) as begun, errors_as_sentences(
            'train.py', args.debug, lambda: begun.begun):
        launching.train(cfg, begun)
    launching.leave_processes()


if __name__ == '__main__':
    main()
