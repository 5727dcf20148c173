# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A training step as a plain script has it."""
import torch
from torch import nn


class Script(nn.Module):
    """Networks, optimizer and precision of a script.

    Args:
        wrapper (OptimWrapper): Ours, whose precision and settings of SGD the
            script has as well.
    """

    def __init__(self, wrapper):
        super().__init__()
        self.wrapper = wrapper

    def set_up(self):
        """Make the optimizer, when all networks are there."""
        group = self.wrapper.optimizer.param_groups[0]
        parameters = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=group['lr'],
                                         momentum=group.get('momentum', 0.9),
                                         weight_decay=group['weight_decay'])
        self.scaler = torch.amp.GradScaler(
            parameters[0].device.type, enabled=hasattr(self.wrapper,
                                                       'loss_scaler'))

    def precision(self):
        """A context of the precision of forward passes."""
        return self.wrapper.optim_context(self)

    def update(self, loss):
        """Backward pass and step of the optimizer."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def features_of(backbone, view):
    """The features of the images, (N, c): the last map, averaged."""
    return backbone(view)[-1].mean(dim=(2, 3))
