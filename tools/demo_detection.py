# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From one checkpoint to object detectors of several widths, in minutes.

Slices the checkpoint of the demo, which is pre-trained first if it does not
exist, and fine-tunes Mask R-CNN on a few scenes of handwritten digits with
each slice, and from random weights for comparison. Prints box and mask AP on
scenes of other digits, and draws the detections. After an interruption, the
same command continues.
"""
import argparse
import contextlib
import hashlib
import json
import os
import os.path as osp
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import cv2
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import (BarColumn, MofNCompleteColumn, Progress, TextColumn,
                           TimeRemainingColumn)
from rich.table import Table

from us3l_mm.apis import slice_checkpoint
from us3l_mm.apis.command_line import (OptionsAction, add_common_flags,
                                       errors_as_sentences, subnet_argument)
from us3l_mm.fileio import (load_weights, sha256, trust_pickle,
                            write_atomically)
from us3l_mm.models.layers import Subnet
from us3l_mm.stack import check_detection
from us3l_mm.visualization import Instances, draw_grid, draw_instances

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN = ROOT / 'configs/us3l/us3l_resnet18_demo_digits.py'
DETECTOR = ROOT / 'configs/us3l/detection/mask-rcnn_demo_digit-scenes.py'
STARTS = ('pre-trained', 'random')
METRICS = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50')
DRAWN = 0.5  # the lowest score that is drawn


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        '--checkpoint', metavar='CKPT', help="of the demo's "
        'network (default: the last one in --pretrain-dir)')
    parser.add_argument(
        '--pretrain-dir', default='work_dirs/demo', metavar='DIR',
        help='where `make demo` writes, and '
        'this tool if nothing is there\n(default: '
        'work_dirs/demo)')
    parser.add_argument('--work-dir', default='work_dirs/demo_detection',
                        metavar='DIR', help='default: '
                        'work_dirs/demo_detection')
    parser.add_argument('--widths', type=subnet_argument, nargs='+', default=[
        Subnet(1.0), Subnet(0.5)], metavar='W', help='default: 1.0 0.5')
    parser.add_argument('--iterations', type=int, metavar='N',
                        help='of each detector (default: as the config says)')
    parser.add_argument(
        '--scenes', type=int, metavar='N', help='labelled '
        'scenes to train on (default: as the config says)')
    parser.add_argument('--pictures', type=int, default=8, metavar='N',
                        help='scenes to draw detections in (default: 8)')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction,
                        metavar='KEY=VALUE',
                        help=f'changes to {DETECTOR.name}')
    add_common_flags(parser)
    args = parser.parse_args(argv)
    for name in ('iterations', 'scenes', 'pictures'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name} is at least 1, got {value}.')
    return args


def find_checkpoint(args, console: Console) -> str:
    """The checkpoint of the pre-trained network, which may train it first."""
    if args.checkpoint is not None:
        if not osp.isfile(args.checkpoint):
            raise FileNotFoundError(f'--checkpoint {args.checkpoint}: there '
                                    'is no such file.')
        return args.checkpoint
    epochs = Config.fromfile(PRETRAIN).train_cfg.max_epochs
    last = osp.join(args.pretrain_dir, f'epoch_{epochs}.pth')
    if not osp.isfile(last):
        console.print(f'[bold]There is no {last}[/] yet: pre-training it '
                      f'without labels, {epochs} epochs, about 3 minutes on '
                      '2 cores. `make demo` would have done the same.')
        done = subprocess.run([
            sys.executable,
            str(ROOT / 'tools/train.py'),
            str(PRETRAIN), '--work-dir', args.pretrain_dir, '--resume'],
                              check=False)
        if done.returncode:
            raise RuntimeError('The pre-training ended with exit status '
                               f'{done.returncode}; its messages are above.')
    return last


def sliced(checkpoint: str, subnet: Subnet, work_dir: str) -> str:
    """A file of ``subnet`` for MMDetection, written if it does not exist."""
    out = osp.join(work_dir, f'{subnet}.pth')
    if not (osp.isfile(out) and load_weights(out).get('meta', {}).get(
            'source', {}).get('sha256') == sha256(checkpoint)):
        slice_checkpoint(checkpoint, out, subnet, 'mmdet', str(PRETRAIN),
                         num_images=1438, input_size=32)
    return out


def detector_config(args, slice_file: str, start: str, name: str) -> Config:
    """The config of one fine-tuning, with the channels of the slice."""
    cfg = Config.fromfile(DETECTOR)
    cfg.merge_from_dict(args.cfg_options or {})
    weights = load_weights(slice_file)['state_dict']
    channels = [
        len(weights[f'backbone.layer{stage}.1.bn2.weight'])
        for stage in (1, 2, 3)]
    cfg.model.backbone.base_channels = channels[0]
    cfg.model.backbone.stem_channels = len(weights['backbone.bn1.weight'])
    cfg.model.neck.in_channels = channels
    if start == 'pre-trained':
        cfg.model.backbone.init_cfg = dict(
            type='Pretrained', checkpoint=slice_file, prefix='backbone.')
    if args.iterations is not None:
        cfg.train_cfg.max_iters = args.iterations
    scenes = dict(cfg.train_dataloader.dataset.scenes)
    scenes['num_train'] = args.scenes or scenes['num_train']
    folder = osp.join(args.work_dir, f'scenes_{scenes["num_train"]}')
    for loader in (cfg.train_dataloader, cfg.val_dataloader,
                   cfg.test_dataloader):
        loader.dataset.update(data_root=folder, scenes=scenes)
    # Evaluated once, at the end, where the only checkpoint is written too.
    cfg.train_cfg.val_interval = cfg.train_cfg.max_iters
    cfg.default_hooks.checkpoint.interval = cfg.train_cfg.max_iters
    cfg.work_dir = osp.join(args.work_dir, name)
    # MMEngine keeps loggers and visualizers by name for the whole process.
    cfg.experiment_name = cfg.visualizer.name = name
    return cfg


class ProgressHook(Hook):
    """Advances a bar with each training iteration or evaluated image."""

    def __init__(self, bar: Progress, name: str):
        self.bar, self.name = bar, name

    def before_train(self, runner: Runner) -> None:
        self.train = self.bar.add_task(self.name, total=runner.max_iters)

    def after_train_iter(self, *args, **kwargs) -> None:
        self.bar.advance(self.train)

    def before_val(self, runner: Runner) -> None:
        self.val = self.bar.add_task('  evaluating',
                                     total=len(runner.val_dataloader))

    def after_val_iter(self, *args, **kwargs) -> None:
        self.bar.advance(self.val)


def fine_tune(cfg: Config, name: str, slice_file: str,
              console: Console) -> dict:
    """AP of one detector, from a file if the same run has been finished."""
    digest = hashlib.sha256((cfg.pretty_text + sha256(slice_file)).encode())
    result_file = osp.join(cfg.work_dir, 'result.json')
    if osp.isfile(result_file):
        with open(result_file) as file:
            result = json.load(file)
        if result['digest'] == digest.hexdigest():
            console.print(f'{name}: finished before')
            return result
    began = time.perf_counter()
    columns = (TextColumn('{task.description}'), BarColumn(),
               MofNCompleteColumn(), TimeRemainingColumn())
    # MMEngine's log is in the work dir; the bar has the terminal.
    with Progress(*columns, console=console) as bar, \
            open(os.devnull, 'w') as nowhere, \
            contextlib.redirect_stdout(nowhere):
        runner = Runner.from_cfg(cfg)
        runner.register_hook(ProgressHook(bar, name))
        runner.train()
    # MMDetection reports no AP if there are no detections: AP 0.
    scalars = runner.message_hub.log_scalars
    found = {
        key:
        float(scalars[f'val/coco/{key}'].current())
        if f'val/coco/{key}' in scalars else 0.0 for key in METRICS}
    result = dict(
        digest=digest.hexdigest(),
        seconds=time.perf_counter() - began, checkpoint=osp.join(
            cfg.work_dir, f'iter_{runner.max_iters}.pth'), **found)
    write_json(result, result_file)
    console.print(f'{name}: box AP {100 * result["bbox_mAP"]:.1f}, mask AP '
                  f'{100 * result["segm_mAP"]:.1f}')
    return result


def write_json(content: dict, path: str) -> None:

    def write(temporary):
        with open(temporary, 'w') as file:
            json.dump(content, file, indent=2)

    write_atomically(path, write)


def find_instances(cfg: Config, checkpoint: str, count: int) -> list:
    """Detections in the first validation scenes, as (image, Instances)."""
    import torch
    from mmcv.ops import nms
    from mmengine.dataset import pseudo_collate

    from us3l_mm.registry import DATASETS, MODELS
    with open(os.devnull, 'w') as nowhere, \
            contextlib.redirect_stdout(nowhere):
        model = MODELS.build(cfg.model).eval()
        data = DATASETS.build(cfg.val_dataloader.dataset)
    model.load_state_dict(load_weights(checkpoint)['state_dict'], strict=True)
    found = []
    for i in range(min(count, len(data))):
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([data[i]]))[0]
        sure = sample.pred_instances[sample.pred_instances.scores > DRAWN]
        # The detector may see two classes in one place; the surer is drawn.
        sure = sure[nms(sure.bboxes, sure.scores, iou_threshold=0.5)[1]]
        found.append((cv2.imread(sample.img_path),
                      Instances(sure.masks.numpy(),
                                sure.labels.numpy(), data.metainfo['classes'],
                                sure.scores.numpy())))
    return found


def true_instances(cfg: Config, count: int) -> list:
    """The annotations of the same scenes, as (image, Instances)."""
    from us3l_mm.datasets.digit_scenes import (CLASSES, SceneSettings,
                                               render_scenes)
    settings = SceneSettings(**cfg.val_dataloader.dataset.scenes)
    return [(cv2.cvtColor(scene.image, cv2.COLOR_GRAY2BGR),
             Instances(scene.masks, scene.labels, CLASSES))
            for scene in render_scenes('val', settings)[:count]]


def draw(args, runs: list, console: Console) -> None:
    """A picture per detector and scene, and an overview of all detectors."""
    truth = true_instances(runs[0]['cfg'], args.pictures)
    rows = [('ground truth', [draw_instances(*one) for one in truth])]
    for run in runs:
        found = find_instances(run['cfg'], run['checkpoint'], args.pictures)
        drawn = [draw_instances(*one) for one in found]
        rows.append((f'{run["subnet"]}, {run["start"]}: mask AP '
                     f'{100 * run["segm_mAP"]:.1f}', drawn))
        folder = osp.join(run['cfg'].work_dir, 'pictures')
        os.makedirs(folder, exist_ok=True)
        for number, picture in enumerate(drawn, 1):
            save_picture(osp.join(folder, f'{number:06d}.png'), picture)
    overview = osp.join(args.work_dir, 'overview.png')
    save_picture(overview,
                 draw_grid([(name, pictures[:4]) for name, pictures in rows]))
    console.print(
        f'Pictures, with detections of a score of at least '
        f'{100 * DRAWN:.0f} %:', f'  {overview}',
        *(f'  {run["cfg"].work_dir}/pictures/'
          for run in runs), sep='\n', soft_wrap=True)


def save_picture(path: str, picture) -> None:
    if not cv2.imwrite(path, picture):
        raise OSError(f'{path} could not be written.')


def report(runs: list, cfg: Config) -> Table:
    scenes = cfg.train_dataloader.dataset.scenes
    table = Table(title=(
        f'Mask R-CNN after {cfg.train_cfg.max_iters} iterations on '
        f'{scenes["num_train"]} scenes, on {scenes["num_val"]} scenes of '
        'other digits'))
    for name in ('subnet', 'backbone', 'box AP', 'box AP50', 'mask AP',
                 'mask AP50', 'seconds'):
        table.add_column(name,
                         justify='left' if name == 'backbone' else 'right')
    for i, run in enumerate(runs):
        table.add_row(run['subnet'], run['start'],
                      *(f'{100 * run[key]:.1f}'
                        for key in METRICS), f'{run["seconds"]:.0f}',
                      end_section=i % len(STARTS) == 1)
    return table


def run(args, console: Console) -> None:
    check_detection()
    from mmengine.registry import init_default_scope
    began = time.perf_counter()
    checkpoint = find_checkpoint(args, console)
    console.print(f'Slicing {checkpoint}')
    init_default_scope('mmpretrain')
    slices = {
        subnet: sliced(checkpoint, subnet, args.work_dir)
        for subnet in args.widths}
    init_default_scope('mmdet')
    runs = []
    for subnet, slice_file in slices.items():
        for start in STARTS:
            name = f'{subnet}-{start}'
            cfg = detector_config(args, slice_file, start, name)
            result = fine_tune(deepcopy(cfg), f'{subnet}, {start}', slice_file,
                               console)
            runs.append(
                dict(subnet=str(subnet), width=subnet.width, start=start,
                     cfg=cfg, **result))
    console.print(report(runs, runs[0]['cfg']))
    summary = osp.join(args.work_dir, 'report.json')
    write_json(
        {
            'checkpoint':
            checkpoint,
            'runs': [{
                key: value for key, value in one.items() if key != 'cfg'}
                     for one in runs]}, summary)
    draw(args, runs, console)
    console.print(f'Table: {summary}. Minutes in all: '
                  f'{(time.perf_counter() - began) / 60:.1f}')


def main(argv=None):
    args = parse_args(argv)
    # stdout is replaced while MMEngine runs.
    console = Console(file=sys.stdout)
    trust_pickle(args.trust_pickle)
    try:
        with errors_as_sentences('demo_detection', args.debug):
            run(args, console)
    except KeyboardInterrupt:
        sys.exit('Interrupted. The same command keeps what is finished in '
                 f'{args.work_dir}.')


if __name__ == '__main__':
    main()
