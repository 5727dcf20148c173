# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The ops of mmcv by torchvision, where mmcv was installed without its own.

The functions of ``mmcv.ops`` call a compiled module, ``mmcv._ext``, which few
combinations of Python and PyTorch have ready-made wheels of. torchvision has
what Faster and Mask R-CNN, RetinaNet and FCOS need of it, compiled for the CPU
and for CUDA. `import us3l_mm` adds a finder of last resort to Python's import
system: if there is no ``mmcv._ext``, it supplies one that is made of the
functions below. A compiled ``mmcv._ext`` is found before that, and used.

The functions have the signatures of the compiled ones: they are called by
``mmcv.ops``, and some fill a tensor that it has made.
"""
import importlib.util
import logging
import sys
from functools import cache
from typing import Callable, NoReturn

import torch
from torch import Tensor

NAME = 'mmcv._ext'
COMPILE = ('pip install ninja psutil setuptools==80.9.0 wheel && pip install '
           '--no-build-isolation --no-cache-dir --no-deps --force-reinstall '
           'onedl-mmcv')


@cache
def announce() -> None:
    """Say in the log, once a process, which ops are in use."""
    from mmengine.logging import print_log
    print_log(
        'mmcv has no compiled ops: those of torchvision are used for NMS, '
        'RoIAlign and the focal loss.', 'current', logging.INFO)


def widened(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one type of at least 32 bits.

    torchvision wants one type, and has no kernels for 16 bits on a CPU.
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float,
        offset: int) -> Tensor:
    """Non-maximum suppression.

    Args:
        boxes (Tensor): Corners (x1, y1, x2, y2), in pixels; shape (N, 4).
        scores (Tensor): Of shape (N, ).
        iou_threshold (float): A box is left out if its IoU with a box of a
            higher score is above this.
        offset (int): Width and height of a box are x2 - x1 + ``offset`` and
            y2 - y1 + ``offset``; 0 or 1.

    Returns:
        Tensor: Indices of the boxes that are kept, by falling score.
    """
    from torchvision import ops
    announce()
    boxes, = widened(boxes)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    # The compiled op takes equal scores in the order of this sort, which is
    # not a stable one; and compares in 32 bits, torchvision on a CPU in 64.
    order = scores.argsort(descending=True)
    falling = torch.arange(len(order), 0, -1).to(boxes)
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return order[ops.nms(boxes[order], falling, threshold)]


def roi_align_forward(features: Tensor, rois: Tensor, output: Tensor,
                      argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
                      aligned_width: int, spatial_scale: float,
                      sampling_ratio: int, pool_mode: int,
                      aligned: bool) -> None:
    """RoIAlign (https://arxiv.org/abs/1703.06870, section 3).

    Args:
        features (Tensor): Of shape (B, C, H, W).
        rois (Tensor): Index of the image and corners (x1, y1, x2, y2), in
            pixels of the image; shape (N, 5).
        output (Tensor): Is filled; shape (N, C, ``aligned_height``,
            ``aligned_width``).
        argmax_y, argmax_x (Tensor): Are for pooling by maximum, and unused.
        aligned_height, aligned_width (int): Number of bins.
        spatial_scale (float): Pixels of ``features`` per pixel of the image.
        sampling_ratio (int): Samples per bin in each direction; 0 for as many
            as the bin has pixels, rounded up.
        pool_mode (int): 1, which averages the samples of a bin.
        aligned (bool): Whether the centre of the first pixel is at 0.5.

    Raises:
        NotImplementedError: With ``pool_mode=0``, the maximum.
    """
    from torchvision import ops
    if pool_mode != 1:
        lacking("roi_align with pool_mode='max'")
    announce()
    features, rois = widened(features, rois)
    output.copy_(
        ops.roi_align(features, rois, (aligned_height, aligned_width),
                      spatial_scale, sampling_ratio, aligned))


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor,
                       argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int,
                       spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Fill ``grad_input``, the gradient of the features.

    See ``roi_align_forward``; the gradients have the shapes of its ``output``
    and ``features``.
    """
    from torchvision import ops
    grad_output, rois = widened(grad_output, rois)
    # RoIAlign is linear in the features, so any have the same gradient.
    features = torch.zeros_like(grad_input, dtype=rois.dtype)
    with torch.enable_grad():
        output = ops.roi_align(features.requires_grad_(), rois,
                               (aligned_height, aligned_width), spatial_scale,
                               sampling_ratio, aligned)
    grad_input.copy_(torch.autograd.grad(output, features, grad_output)[0])


def focal_losses(logits: Tensor, target: Tensor, weight: Tensor, gamma: float,
                 alpha: float) -> Tensor:
    """The elements of the sigmoid focal loss, in at least 32 bits."""
    from torchvision import ops
    announce()
    logits, = widened(logits)
    classes = torch.arange(logits.size(1), device=logits.device)
    is_class = (target[:, None] == classes).to(logits.dtype)
    losses = ops.sigmoid_focal_loss(logits, is_class, alpha, gamma)
    return losses * weight[target][:, None] if weight.numel() else losses


def sigmoid_focal_loss_forward(logits: Tensor, target: Tensor, weight: Tensor,
                               output: Tensor, gamma: float,
                               alpha: float) -> None:
    r"""Sigmoid focal loss (https://arxiv.org/abs/1708.02002, equation 5).

    With :math:`p = \sigma(\text{logit})`, an element is
    :math:`-\alpha (1 - p)^\gamma \log p` for the class of ``target`` and
    :math:`-(1 - \alpha) p^\gamma \log (1 - p)` for the others.

    Args:
        logits (Tensor): Of shape (N, C).
        target (Tensor): Indices of classes, of shape (N, ); C for the
            background, which is none of them.
        weight (Tensor): Factors by class of ``target``, or without elements.
        output (Tensor): Is filled; shape (N, C).
        gamma (float): Exponent.
        alpha (float): Share of the class of ``target``.
    """
    output.copy_(focal_losses(logits, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(logits: Tensor, target: Tensor, weight: Tensor,
                                grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Fill ``grad_input``, the gradient of the sum of the losses.

    See ``sigmoid_focal_loss_forward``; shape (N, C), like the logits.
    """
    logits = logits.detach().requires_grad_()
    with torch.enable_grad():
        total = focal_losses(logits, target, weight, gamma, alpha).sum()
    grad_input.copy_(torch.autograd.grad(total, logits)[0])


def compiler_version() -> str:
    """What a report of the environment says of mmcv's compilers."""
    return 'not compiled'


OPS = {
    'nms': nms,
    'roi_align_forward': roi_align_forward,
    'roi_align_backward': roi_align_backward,
    'sigmoid_focal_loss_forward': sigmoid_focal_loss_forward,
    'sigmoid_focal_loss_backward': sigmoid_focal_loss_backward,
    'get_compiler_version': compiler_version,
    'get_compiling_cuda_version': compiler_version, }


def lacking(op: str) -> NoReturn:
    """Raise NotImplementedError for an op that is not in ``OPS``."""
    raise NotImplementedError(
        f'{op} needs the compiled ops of mmcv, and mmcv is installed without '
        "them. torchvision replaces nms, roi_align with pool_mode='avg', and "
        'sigmoid_focal_loss. To compile the others, which takes about 20 '
        'minutes divided by the number of cores, install a C++ compiler and '
        f'the headers of Python, then run: {COMPILE}')


def other_op(name: str) -> Callable:
    """``lacking``, under a name that mmcv looks for when it is imported."""
    if name.startswith('__'):  # what Python asks every module for
        raise AttributeError(f'{NAME} has no {name}')

    def op(*args, **kwargs):
        lacking(name)

    return op


class LastResort:
    """Finds and loads ``mmcv._ext`` where nothing else does."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == NAME:
            return importlib.util.spec_from_loader(name, cls)
        return None

    @staticmethod
    def create_module(spec):
        return None  # an ordinary one

    @staticmethod
    def exec_module(module):
        vars(module).update(OPS, __getattr__=other_op)


def install() -> None:
    """Have ``mmcv._ext`` found; does nothing if it is done already."""
    if LastResort not in sys.meta_path:
        sys.meta_path.append(LastResort)
