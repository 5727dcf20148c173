# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What processes say to each other in an iteration, and how long it takes.

For each update mode: calls and bytes of an iteration, by purpose; gradients
are counted in the wrapper's communication hook, norms and gathered embeddings
in torch.distributed. Then the time of an iteration beside that of the same
iteration without any communication, which all processes make at the same
time, and of one that process 0 makes alone; in turn, round by round, figures
are medians. Finally, how many convolution shapes a tuner or compiler would
meet with and without a width grid.
"""
import argparse
import json
import os
import tempfile
import time
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from rich.console import Console
from rich.table import Table
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import \
    allreduce_hook

from arguments import (READ, add_recipe, add_shared, at_least, width_argument)
from results import save
from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.apis.launching import load_config
from us3l_mm.engine import (DynamicSamplerHook,
                            MultiPassDistributedDataParallel,
                            MultiPassOptimWrapper)
from us3l_mm.models import GroupDecay, Plan, SlimmableConv2d, at
from us3l_mm.models.layers import SlimmableBatchNorm, Subnet, check_subnets
from us3l_mm.models.selfsup.passes import UPDATE_MODES
from us3l_mm.registry import MODELS

MIB = 2**20


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_recipe(parser)
    parser.add_argument('--image-size', type=at_least(1), default=32,
                        help='height and width in pixels (default: 32)')
    parser.add_argument('--batch-size', type=at_least(2), default=32,
                        help='images per view and process (default: 32)')
    parser.add_argument('--widths', type=width_argument, nargs='+', default=[
        1.0, 0.625, 0.25], help='of the iteration (default: 1.0 0.625 0.25)')
    parser.add_argument('--local-norms', action='store_true',
                        help='batch norms of each process by itself')
    parser.add_argument('--modes', nargs='+', choices=UPDATE_MODES,
                        default=UPDATE_MODES, help='default: all')
    parser.add_argument('--processes', type=at_least(1), default=2,
                        help='default: 2')
    parser.add_argument(
        '--iterations', type=at_least(1), default=1000,
        help='length of the training whose shapes are counted '
        '(default: 1000)')
    add_shared(parser, rounds=5, default_device='cpu')
    args = parser.parse_args(argv)
    if args.device not in ('cpu', 'cuda'):
        parser.error('--device is cpu, whose processes talk through gloo, or '
                     f'cuda, where they talk through NCCL, got {args.device}.')
    if args.device == 'cuda' and args.processes > torch.cuda.device_count():
        parser.error(f'--processes {args.processes} needs as many GPUs, and '
                     f'there are {torch.cuda.device_count()}.')
    return args


def build(args, update_mode, device, together):
    """An algorithm that talks to other processes, or one that does not."""
    torch.manual_seed(0)
    config = load_config(args.config, args.cfg_options, READ)
    algorithm = MODELS.build(
        dict(config.model, update_mode=update_mode, sync_norms=together
             and not args.local_norms))
    algorithm.init_weights()
    algorithm.to(device).train()
    for module in algorithm.modules():
        if hasattr(module, 'gather'):
            module.gather = together
    algorithm.views = lambda data: data['views']  # made on the device
    named = {
        name: p for name, p in algorithm.named_parameters() if p.requires_grad}
    wrapper = MultiPassOptimWrapper(
        optimizer=torch.optim.SGD(named.values(), lr=1e-3, momentum=0.9))
    wrapper.regularise(GroupDecay(named.items()))
    return algorithm, wrapper


class Counter:
    """Calls and bytes by purpose, of what is said while it is ``active``."""

    def __init__(self):
        self.active, self.said = False, {}

    def add(self, purpose, nbytes):
        if self.active:
            calls, total = self.said.get(purpose, (0, 0))
            self.said[purpose] = calls + 1, total + nbytes

    def gradients(self, model):
        """Count what the wrapper ``model`` reduces."""

        def hook(group, bucket):
            self.add('gradients', bucket.buffer().nbytes)
            active, self.active = self.active, False  # not a norm
            try:
                return allreduce_hook(group, bucket)
            finally:
                self.active = active

        model.register_comm_hook(None, hook)

    def collectives(self):
        """Count what norms and losses exchange."""
        reduce, gather = dist.all_reduce, dist.all_gather

        def counted_reduce(tensor, *args, **kwargs):
            self.add('norms', tensor.nbytes)
            return reduce(tensor, *args, **kwargs)

        def counted_gather(tensors, tensor, *args, **kwargs):
            # Norms gather their statistics as one vector.
            self.add('norms' if tensor.dim() == 1 else 'embeddings',
                     tensor.nbytes * len(tensors))
            return gather(tensors, tensor, *args, **kwargs)

        dist.all_reduce, dist.all_gather = counted_reduce, counted_gather


def measure_mode(args, rank, update_mode, device, counter):
    """Calls, bytes and times of one update mode."""
    together, wrapper = build(args, update_mode, device, together=True)
    model = MultiPassDistributedDataParallel(together)
    counter.gradients(model)
    apart, own_wrapper = build(args, update_mode, device, together=False)
    views = [
        torch.randn(args.batch_size, 3, args.image_size, args.image_size,
                    device=device) for _ in range(2)]
    data = dict(views=views, plan=Plan.fixed(args.widths))
    optimizer_steps = []
    wrapper.optimizer.register_step_post_hook(
        lambda *_: optimizer_steps.append(1))
    times = dict(together_ms=[], apart_ms=[], alone_ms=[])
    for index in range(args.rounds + 1):
        counter.active = index == 0
        times['together_ms'].append(
            timed(device, lambda: model.train_step(data, wrapper)))
        if index == 0:
            counter.active, steps = False, len(optimizer_steps)
        times['apart_ms'].append(
            timed(device, lambda: apart.train_step(data, own_wrapper)))
        if rank == 0:
            start = time.perf_counter()
            apart.train_step(data, own_wrapper)
            wait(device)
            times['alone_ms'].append(1000 * (time.perf_counter() - start))
        dist.barrier()
    said = {
        name: dict(calls=calls, mib=total / MIB)
        for name, (calls, total) in counter.said.items()}
    counter.said = {}
    together_ms, apart_ms, alone_ms = (times[name][1:]
                                       for name in ('together_ms', 'apart_ms',
                                                    'alone_ms'))
    return dict(
        update_mode=update_mode,
        optimizer_steps=steps,
        said=said,
        # One bit of news per parameter and backward pass, in 4 bytes.
        unused_map_mib=steps * 4 *
        len(wrapper.optimizer.param_groups[0]['params']) / MIB,
        parameters_mib=sum(
            p.nbytes
            for p in wrapper.optimizer.param_groups[0]['params']) / MIB,
        together_ms=median(together_ms),
        apart_ms=median(apart_ms),
        alone_ms=median(alone_ms) if alone_ms else None,
        communication=median(a / b for a, b in zip(together_ms, apart_ms)),
        against_alone=(median(
            a / b
            for a, b in zip(together_ms, alone_ms)) if alone_ms else None))


def wait(device):
    if device.type == 'cuda':
        torch.cuda.synchronize()


def timed(device, call):
    """Milliseconds of ``call``, begun by all processes at the same time."""
    wait(device)
    dist.barrier()
    start = time.perf_counter()
    call()
    wait(device)
    return 1000 * (time.perf_counter() - start)


def worker(rank, args, meeting, out):
    torch.set_num_threads(1)
    cuda = args.device == 'cuda'
    device = torch.device(f'cuda:{rank}' if cuda else 'cpu')
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if cuda else 'gloo', f'file://{meeting}',
                            rank=rank, world_size=args.processes)
    MMLogger.get_instance('benchmark', log_level='WARNING')
    counter = Counter()
    counter.collectives()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        modes = [
            measure_mode(args, rank, mode, device, counter)
            for mode in args.modes]
        if rank == 0:
            figures = dict(modes=modes, shapes=count_shapes(args))
            with open(out, 'w') as file:
                json.dump(figures, file)
    dist.barrier()
    dist.destroy_process_group()


def count_shapes(args):
    """Convolution shapes of a training run with the default sampler."""
    algorithm, _ = build(args, 'sequential', torch.device('cpu'), False)
    backbone = algorithm.backbone
    convs = [(name, m) for name, m in backbone.named_modules()
             if isinstance(m, SlimmableConv2d)]
    norms = sum(isinstance(m, SlimmableBatchNorm) for m in backbone.modules())
    rows = []
    for grid in (1 / 32, None):
        hook, widths, shapes, newest = DynamicSamplerHook(grid=grid), {}, {}, 0
        for iteration in range(args.iterations):
            plan = hook.plan(iteration, args.iterations, backbone.width_range)
            for subnet in (pass_.subnet for pass_ in plan.passes):
                if subnet in widths:
                    continue
                widths[subnet], newest = iteration, iteration
                with at(backbone, subnet):
                    for name, conv in convs:
                        shapes.setdefault(
                            (name, conv.active_in, conv.active_out), iteration)
        rows.append(
            dict(
                grid=grid,
                widths=len(widths),
                last_new_width=newest,
                shapes=len(shapes),
                last_new_shape=max(shapes.values()),
                # Backbone and projector of the student at each width, of
                # the teacher at full width.
                graphs=2 * (len(widths) + 1)))
    return dict(iterations=args.iterations, convolutions=len(convs),
                norms=norms, rows=rows)


def show(figures, args):
    console = Console(width=120)
    norms = 'local' if args.local_norms else 'synchronised'
    table = Table(
        title=f'{os.path.basename(args.config)}, {args.image_size} '
        f'px, {args.processes} processes x {args.batch_size} images, '
        f'widths {args.widths}, {norms} norms')
    for column in ('mode', 'steps', 'gradients', 'calls', 'norms', 'calls',
                   'embeddings', 'calls', 'ms', 'apart', 'ratio', 'alone',
                   'ratio'):
        table.add_column(column, justify='right')
    for row in figures['modes']:
        cells = [row['update_mode'], str(row['optimizer_steps'])]
        for name in ('gradients', 'norms', 'embeddings'):
            said = row['said'].get(name, dict(mib=0, calls=0))
            cells += [f'{said["mib"]:.2f}', str(said['calls'])]
        table.add_row(*cells, f'{row["together_ms"]:.0f}',
                      f'{row["apart_ms"]:.0f}', f'{row["communication"]:.3f}',
                      f'{row["alone_ms"]:.0f}', f'{row["against_alone"]:.3f}')
    console.print(table)
    first = figures['modes'][0]
    unused = 1024 * first['unused_map_mib'] / first['optimizer_steps']
    console.print(
        'in MiB; ms of an iteration, of one without communication that all '
        'make at once (apart), of one that process 0 makes alone\n'
        f'trained parameters: {first["parameters_mib"]:.2f} MiB, reduced once '
        'per optimizer step; besides, per step, a map of the parameters in '
        f'use, {unused:.1f} KiB')
    for row in figures['shapes']['rows']:
        grid = 'none' if row['grid'] is None else f'{row["grid"]:g}'
        console.print(
            f'grid {grid}: {row["widths"]} widths, {row["shapes"]} convolution'
            f' shapes, {row["graphs"]} graphs in {args.iterations} iterations;'
            f' the last new shape in iteration {row["last_new_shape"]}')


def benchmark(args):
    # A mistake is found here, and not in each of the processes.
    MMLogger.get_instance('benchmark', log_level='WARNING')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        algorithm, _ = build(args, 'sequential', torch.device('cpu'), False)
    check_subnets(algorithm.backbone, list(map(Subnet, args.widths)))
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, 'figures.json')
        mp.spawn(worker, (args, os.path.join(folder, 'meeting'), out),
                 nprocs=args.processes)
        with open(out) as file:
            figures = json.load(file)
    show(figures, args)
    save(figures, args)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('communication', args.debug):
        benchmark(args)


if __name__ == '__main__':
    main()
