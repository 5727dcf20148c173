# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""US3L as a plain script has it."""
import torch


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
