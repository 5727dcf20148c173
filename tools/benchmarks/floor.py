# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The floor of a training step: bare passes of plain networks."""
from copy import deepcopy

import torch

from us3l_mm.export import slice_network
from us3l_mm.models.selfsup import DenseGatedSSL, SlimCLR, encode


class BareContrast:
    """A plain network of one width that SlimCLR trains, and its contrast."""

    def __init__(self, algorithm, pass_):
        self.student = slice_network(algorithm, pass_.subnet,
                                     without_statistics=True)

    def targets(self, views):
        if not self.student.head.has_keys:
            return []
        views = views[::-1][:self.student.head.num_queries]
        encoder = self.student.backbone, self.student.neck
        return [z for _, z in encode(*encoder, views)]

    def __call__(self, views, keys):
        head = self.student.head
        queries = self.student.queries(views)
        head.loss(head.similarities(queries, keys)).backward()
        self.student.zero_grad()


class BarePair:
    """A plain network on both views, and the loss between them."""

    def __init__(self, algorithm, pass_):
        self.student = deepcopy(algorithm)
        self.student.backbone.drop_gates()

    def targets(self, views):
        return []

    def __call__(self, views, targets):
        student = self.student
        embeddings = [
            z for _, z in encode(student.backbone, student.neck, views)]
        student.head.loss(*embeddings).backward()
        student.zero_grad()


class BarePass:
    """Forward and backward of a plain network of one width, nothing else."""

    def __init__(self, algorithm, pass_):
        self.encoder = [
            slice_network(module, pass_.subnet, without_statistics=True)
            for module in (algorithm.backbone, algorithm.neck)]
        # Heads are full at every width.
        self.head = deepcopy(algorithm.head if pass_.role ==
                             'base' else algorithm.distill_head)

    def targets(self, views):
        return [z for _, z in encode(*self.encoder, views)]

    def __call__(self, views, targets):
        z1, z2 = self.targets(views)
        loss = 0.5 * (self.head.loss(z1, targets[1]) +
                      self.head.loss(z2, targets[0]))
        loss.backward()
        for module in (*self.encoder, self.head):
            module.zero_grad()


def bare_passes(algorithm, plan):
    """The floor of each pass, in the memory layout of ``algorithm``."""
    kinds = {SlimCLR: BareContrast, DenseGatedSSL: BarePair}
    kind = kinds.get(type(algorithm), BarePass)
    bare = [kind(algorithm, pass_) for pass_ in plan.passes]
    if algorithm.channels_last:
        for module in (m for pass_ in bare for m in modules_of(pass_)):
            module.to(memory_format=torch.channels_last)
    return bare


def modules_of(bare):
    """The networks of a bare pass."""
    for value in vars(bare).values():
        yield from value if isinstance(value, list) else [value]
