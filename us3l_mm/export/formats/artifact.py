# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What an export format takes and returns, and the check of its file."""
import io
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Callable, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from us3l_mm.export.families import Family, family_of
from us3l_mm.models.layers import Subnet, at

TOLERANCE = 1e-5  # of the largest output
ROUNDINGS = 4


@dataclass(frozen=True)
class SlicedNetwork:
    """The input of a format.

    Attributes:
        backbone (nn.Module): The slimmable backbone.
        plain (nn.Module): The ordinary network that was sliced out of it. Its
            batch-norm statistics may be loaded later, before ``write``.
        subnet (Subnet): The sub-network.
        input_size (int): Side of a square image in pixels.
        out (str): The file that will be written.
        meta (dict): The description to store with the weights.
    """

    backbone: nn.Module
    plain: nn.Module
    subnet: Subnet
    input_size: int
    out: str
    meta: dict

    @property
    def width(self) -> float:
        """The width of the sub-network."""
        return self.subnet.width

    @property
    def family(self) -> Family:
        """The description of this kind of backbone."""
        return family_of(self.backbone)

    @property
    def map_channels(self) -> Tuple[int, ...]:
        """The channels of all feature maps; those of the last output last."""
        return self.family.map_channels(self.plain)


@dataclass(frozen=True)
class Artifact:
    """The output of a format.

    Attributes:
        write (callable): Returns the content of the file, as bytes.
        run (callable): Takes this content and images (N, 3, H, W), runs the
            network in it, and returns the feature maps of the backbone, or
            only the pooled features (N, c).
        usage (str): Python code that loads the file.
    """

    write: Callable[[], bytes]
    run: Callable[[bytes, Tensor], Sequence[Tensor]]
    usage: str


def pooled(outputs: Sequence[Tensor]) -> Tensor:
    """The features (N, c) of a backbone: those of its last output.

    A feature map (N, c, H, W) is averaged over its positions.
    """
    last = outputs[-1]
    return last.mean(dim=(2, 3)) if last.ndim == 4 else last


def read_back(content: bytes) -> Any:
    """What ``torch.save`` wrote into ``content``."""
    return torch.load(io.BytesIO(content), map_location='cpu',
                      weights_only=True)


@torch.no_grad()
def verify(artifact: Artifact, content: bytes,
           network: SlicedNetwork) -> float:
    """Compare a file with the slimmable network that it was sliced out of.

    Both run on the same random images, on the CPU. Other kernels round
    differently, such as those of onnxruntime, which folds norms into
    convolutions. A difference of 1e-5 of the largest output is allowed, or of
    four times the rounding error of the slimmable network, which is its
    difference from the same network in double precision.

    Args:
        artifact (Artifact): The artifact of ``network``.
        content (bytes): What ``artifact.write()`` returned.
        network (SlicedNetwork): With the statistics of the sub-network.

    Returns:
        float: The largest absolute difference of an output.

    Raises:
        ValueError: If the difference is larger.
    """
    images = torch.randn(3, network.meta['input_channels'], network.input_size,
                         network.input_size,
                         generator=torch.Generator().manual_seed(0))
    outputs = list(artifact.run(content, images))
    expected = _expected(network, images, outputs)
    for there, here in zip(outputs, expected, strict=True):
        if there.shape != here.shape:
            raise ValueError(
                f'The sliced network has an output of {tuple(there.shape)} '
                f'where the slimmable one has {tuple(here.shape)}; nothing '
                'was written.')
    gap = _largest(outputs, expected)
    scale = max(1.0, *(here.abs().max().item() for here in expected))
    if not gap <= TOLERANCE * scale:
        exact = _expected(network, images.double(), outputs)
        rounding = _largest(expected, exact)
        if not gap <= ROUNDINGS * rounding:
            raise ValueError(
                f'The sliced network differs from the slimmable one at width '
                f'{network.width:g} by {gap:.3g}. Outputs are at most '
                f'{scale:.3g}, and rounding explains {rounding:.1g} of it; '
                'nothing was written.')
    return gap


def _expected(network: SlicedNetwork, images: Tensor,
              outputs: Sequence[Tensor]) -> List[Tensor]:
    """The outputs of the slimmable network, in the precision of ``images``."""
    backbone = network.backbone.eval()
    if images.dtype != next(backbone.parameters()).dtype:
        backbone = deepcopy(backbone).to(images.dtype)
    with at(backbone, network.subnet):
        maps = backbone(images)
    return ([pooled(maps)]
            if len(outputs) == 1 and outputs[0].ndim == 2 else list(maps))


def _largest(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max((there - here).abs().max().item()
               for there, here in zip(outputs, expected))
