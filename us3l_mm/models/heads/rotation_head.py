# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from us3l_mm.models.layers import at_least_single
from us3l_mm.registry import MODELS


@MODELS.register_module()
class RotationHead(BaseModule):
    """Tells by how many quarter turns an image was rotated.

    The pooled map goes through two hidden layers, each with layer norm and
    ReLU, to four classes. Sources: RotNet, arXiv 1803.07728, as a second task
    in dense + gated SSL, 2301.09164.

    Args:
        in_channels (int): Channels of the map.
        hid_channels (int): Features of a hidden layer. Defaults to 2048.
        weight (float): Multiplies the cross entropy. Defaults to 0.2.
        init_cfg (dict, optional): Initialization config of MMEngine.
    """

    def __init__(self, in_channels: int, hid_channels: int = 2048,
                 weight: float = 0.2, init_cfg: Optional[dict] = None):
        super().__init__(init_cfg)
        self.weight = weight
        self.fc1 = nn.Linear(in_channels, hid_channels)
        self.ln1 = nn.LayerNorm(hid_channels)
        self.fc2 = nn.Linear(hid_channels, hid_channels)
        self.ln2 = nn.LayerNorm(hid_channels)
        self.fc3 = nn.Linear(hid_channels, 4)

    @staticmethod
    def rotate(images: Tensor) -> Tuple[Tensor, Tensor]:
        """Each of ``images`` (N, 3, H, H) by random quarter turns (N,)."""
        if images.shape[2] != images.shape[3]:
            raise ValueError('Images that are rotated are square, got '
                             f'{images.shape[2]} x {images.shape[3]} pixels.')
        turns = torch.randint(4, images.shape[:1], device=images.device)
        every = torch.stack([images.rot90(i, (2, 3)) for i in range(4)])
        rows = torch.arange(len(images), device=images.device)
        return every[turns, rows], turns

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 4) of a map (N, c, H, W)."""
        x = self.ln1(self.fc1(x.mean(dim=(2, 3)))).relu()
        return self.fc3(self.ln2(self.fc2(x)).relu())

    def loss(self, x: Tensor, turns: Tensor) -> Tensor:
        """The loss, a scalar, of a map (N, c, H, W) and quarter turns (N,)."""
        return self.weight * F.cross_entropy(at_least_single(self(x)), turns)
