# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""US3L as a plain script has it."""
from copy import deepcopy

import torch
import torch.nn.functional as F
from script import Script
from torch import nn

from us3l_mm.export import slice_network
from us3l_mm.models import (SlimmableResNet, SlimmableResNet_CIFAR,
                            US3LAlgorithm)
from us3l_mm.models.layers.channels import active_channels


class SlicedConv2d(nn.Conv2d):
    """A convolution whose kernel is cut by indices, as in US-Nets."""

    width = 1.0

    def forward(self, x):
        out = active_channels(self.out_channels, self.width)
        return F.conv2d(x, self.weight[:out, :x.shape[1]], None, self.stride,
                        self.padding, self.dilation)


class SlicedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm over the channels that there are."""

    def forward(self, x):
        channels = x.shape[1]
        return F.batch_norm(x, None, None, self.weight[:channels],
                            self.bias[:channels], True, eps=self.eps)


class SlicedLinear(nn.Linear):
    """A linear layer that reads the features that there are."""

    def forward(self, x):
        return F.linear(x, self.weight[:, :x.shape[1]], self.bias)


SLICED = {
    nn.Conv2d: SlicedConv2d,
    nn.BatchNorm2d: SlicedBatchNorm2d,
    nn.Linear: SlicedLinear}


def with_slices(network):
    """The plain network of full width, whose layers can be cut."""
    plain = slice_network(network, 1.0, without_statistics=True)
    for module in plain.modules():
        # The same parameters, with another forward pass.
        module.__class__ = SLICED.get(type(module), type(module))
    return plain.to(memory_format=torch.contiguous_format)


class PlainUS3L(Script):
    """A training step of US3L, pass by pass and parameter by parameter.

    It computes what :class:`~us3l_mm.models.US3LAlgorithm` does on a ResNet,
    from the same weights, channels first.

    Args:
        algorithm (US3LAlgorithm): Ours.
        wrapper (OptimWrapper): Ours.
        plan (Plan): The passes.
        group_dims (dict): Of the group regularisation, see
            :func:`float64_mask_loss`.

    Raises:
        ValueError: If ``algorithm`` is not what the script has.
    """

    def __init__(self, algorithm, wrapper, plan, group_dims):
        super().__init__(wrapper)
        check(algorithm)
        self.plan, self.group_dims = plan, group_dims
        self.student = nn.ModuleDict(
            dict(backbone=with_slices(algorithm.backbone),
                 neck=with_slices(algorithm.neck)))
        self.teacher = deepcopy(self.student).requires_grad_(False)
        self.share = algorithm.teacher.momentum
        self.head = deepcopy(algorithm.head)
        self.distill_head = deepcopy(algorithm.distill_head)
        self.set_up()

    def embed(self, encoder, views):
        return [encoder.neck(encoder.backbone(view)[-1:])[0] for view in views]

    @torch.no_grad()
    def targets(self, views):
        """Update the teacher, parameter by parameter, and run it."""
        for theirs, own in zip(self.teacher.parameters(),
                               self.student.parameters()):
            theirs.mul_(1 - self.share).add_(own, alpha=self.share)
        return self.embed(self.teacher, views)

    def decay(self, pass_):
        """The group regularisation of a pass."""
        regulariser = self.wrapper.regulariser
        if regulariser is None:
            return 0.0
        named = named_parameters(self)
        if pass_.role == 'base':  # as in the reference
            named = [(n, p) for n, p in named if 'predictor' not in n]
        return float64_mask_loss(named, regulariser.lam, regulariser.alpha,
                                 self.group_dims)

    def forward(self, views):
        """A training step on two ``views``, each (N, 3, H, W)."""
        with self.precision():
            target1, target2 = self.targets(views)
        for pass_ in self.plan.passes:
            self.student.apply(
                lambda m: setattr(m, 'width', pass_.subnet.width))
            head = self.head if pass_.role == 'base' else self.distill_head
            with self.precision():
                z1, z2 = self.embed(self.student, views)
                loss = head.loss(z1, target2) + head.loss(z2, target1)
            self.update(loss + self.decay(pass_))


def check(algorithm):
    """Raise ValueError if the script does not have ``algorithm``."""
    needed = dict(base_from='teacher', distill_from='teacher',
                  update_mode='sequential', feature_distiller=None)
    found = {name: getattr(algorithm, name, None) for name in needed}
    backbone = algorithm.backbone
    if (not isinstance(algorithm, US3LAlgorithm) or found != needed
            or algorithm.distill_head.predictor is algorithm.head.predictor
            or not isinstance(backbone,
                              (SlimmableResNet, SlimmableResNet_CIFAR))):
        raise ValueError(
            f'--against plain is US3L on a ResNet with {needed} and two '
            f'predictors, got a {type(algorithm).__name__} on a '
            f'{type(backbone).__name__} with {found}. Give such a recipe, for '
            'instance configs/us3l/us3l_resnet18_4xb128-coslr-400e_cifar10.py.'
        )


def named_parameters(algorithm):
    return [(name, p) for name, p in algorithm.named_parameters()
            if p.requires_grad]


def float64_mask_loss(named, lam, alpha, group_dims, groups=8):
    """Group regularisation with a new float64 mask for every parameter."""
    loss = 0.0
    for _, p in named:
        mask = torch.full(p.shape, lam, dtype=torch.float64, device=p.device)
        if p.dim() in group_dims:
            channels = mask.movedim(group_dims[p.dim()], 0)  # a view
            size = len(channels) // groups
            for g in range(groups):
                end = len(channels) if g == groups - 1 else (g + 1) * size
                channels[g * size:end] = lam * (1 - alpha * g)
        loss = loss + (mask * p.square()).sum()
    return loss
