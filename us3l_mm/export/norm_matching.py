# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Statistics of a pruned network that make it behave like the gated one."""
from typing import Any, Dict, Sequence, Tuple

import torch
from torch import Tensor, nn

from us3l_mm.models.layers import GATED, at, evaluation_mode

Moments = Tuple[Tensor, Tensor]
# A convolution that puts out nearly nothing is not scaled without limit.
MOST = 10.0
TINY = 1e-12


@torch.no_grad()
def match_norms(network: Any, pruned: nn.Module, kept: Dict[str, Tensor],
                batches: Sequence[Tensor]) -> None:
    """Change the running statistics of ``pruned``, in place.

    A channel that stays for all images, though its gate switched it off for
    some, changes the mean and the variance of what the next convolution puts
    out, and so does one that was removed. Behind each such convolution x is
    replaced by ``s (x - m) + M`` with ``s = sqrt(V / v)``, where m and v are
    mean and variance over the images in the pruned network, and M and V in
    the gated one. This is a change of the statistics of the norm, whose
    layers therefore stay plain. Norms are matched from the image on, each
    with those before it matched. If nothing was changed by pruning, this
    changes nothing.

    Args:
        network (GatedResNet): The gated network, which is not changed.
        pruned (nn.Module): From :func:`~us3l_mm.export.prune`.
        kept (dict[str, Tensor]): The channels that were kept, as given there.
        batches (sequence[Tensor]): Preprocessed images (N, 3, H, W).
    """
    names = [
        f'{name}.conv{i}' for name, block in network.blocks.items()
        for i in range(2, block.num_convs + 1)]
    with evaluation_mode(network), at(network, GATED):
        wanted = _moments(network, names, batches)
    for name in names:
        block = pruned.get_submodule(name.rpartition('.')[0])
        norm = getattr(block, f'norm{name[-1]}')
        mean, var = _moments(pruned, [name], batches)[name]
        gated_mean, gated_var = wanted[name]
        mask = kept.get(name.replace('conv', 'gate'))  # none for the last
        if mask is not None and mask.any():
            gated_mean, gated_var = gated_mean[mask], gated_var[mask]
        elif mask is not None:
            continue  # what is put out has no effect
        scale = ((gated_var + TINY) / (var + TINY)).sqrt()
        scale = scale.clamp(1 / MOST, MOST)
        running = norm.running_mean.double()
        norm.running_mean.copy_(mean + (running - gated_mean) / scale)
        spread = norm.running_var.double() + norm.eps
        norm.running_var.copy_((spread / scale**2 - norm.eps).clamp(min=0))


def _moments(network: nn.Module, names: Sequence[str],
             batches: Sequence[Tensor]) -> Dict[str, Moments]:
    """Mean and variance of each channel that convolutions put out."""
    sums: Dict[str, Any] = dict.fromkeys(names, 0)

    def add(name: str, output: Tensor) -> None:
        output = output.double().transpose(0, 1).flatten(1)
        sums[name] = sums[name] + torch.stack([
            torch.ones_like(output[:, 0]) * output.shape[1],
            output.sum(1), (output**2).sum(1)])

    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: add(name, output))
        for name in names]
    try:
        for images in batches:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    moments = {}
    for name, (count, total, squares) in sums.items():
        mean = total / count
        moments[name] = mean, (squares / count - mean**2).clamp(min=0)
    return moments
