# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What one product of a queue with the queries of all widths would save.

SlimCLR finishes one width before the next one begins, so each has a product
with the queue of its own. One product for all of them would need the graphs
of all widths at the same time. Both ways, forward and backward, are timed in
turn; the ratio is the median of the ratios of the rounds.
"""
import argparse
from statistics import median

import torch
from arguments import add_shared, at_least
from results import save
from stopwatch import Stopwatch

from us3l_mm.models import MoCoV2Contrast


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--widths', type=at_least(1), default=4,
                        help='number of widths (default: 4)')
    parser.add_argument('--batch-size', type=at_least(1), default=256,
                        help='queries of a width (default: 256)')
    parser.add_argument('--queue-length', type=at_least(1), default=65536,
                        help='keys in the queue (default: 65536)')
    add_shared(parser, rounds=7)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    torch.manual_seed(0)
    head = MoCoV2Contrast(queue_length=args.queue_length).to(args.device)
    queries, keys = (torch.randn(args.widths * args.batch_size, 128,
                                 device=args.device) for _ in range(2))
    queries.requires_grad_()
    watch = Stopwatch(args.device)

    def compare(parts):
        for query, key in zip(queries.chunk(parts), keys.chunk(parts)):
            head.loss(head.similarities([query], [key])).backward()

    for index in range(args.rounds + 1):
        watch('each', lambda: compare(args.widths))
        watch('once', lambda: compare(1))
        if index == 0:
            watch.times.clear()  # the warm-up
    each, once = watch.ms('each'), watch.ms('once')
    figures = dict(each_ms=median(each), once_ms=median(once),
                   ratio=median(a / b for a, b in zip(each, once)))
    print(f'a product for each of {args.widths} widths: '
          f'{figures["each_ms"]:.0f} ms; one for all: '
          f'{figures["once_ms"]:.0f} ms; ratio {figures["ratio"]:.3f} '
          f'({args.batch_size} queries of a width, {args.queue_length} keys, '
          f'{args.device})')
    save(figures, args)


if __name__ == '__main__':
    main()
