# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Boxes and masks in image files; needs MMDetection."""
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import List, Optional, Union

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import VISUALIZERS
from torch import nn

from us3l_mm.evaluation.loading import saved_config, set_scope
from us3l_mm.fileio import check_fit, load_weights
from us3l_mm.models.backbones.weights import adapt_weights
from us3l_mm.models.layers import (Subnet, SubnetLike, at, check_subnets,
                                   slimmable_layers)
from us3l_mm.registry import MODELS
from us3l_mm.stack import check_detection


def load_detector(config: Union[str,
                                Config], checkpoint: str, device: str = 'cpu',
                  trust_pickle: bool = False) -> nn.Module:
    """A trained detector, with the names of its classes.

    Args:
        config (str or Config): The config of its training.
        checkpoint (str): A checkpoint of its training.
        device (str): The device to run on. Defaults to 'cpu'.
        trust_pickle (bool): Whether to read a file that executes code when it
            is read. Defaults to False.

    Returns:
        nn.Module: The detector in evaluation mode; its
        ``dataset_meta['classes']`` are the names of the classes.

    Raises:
        ImportError: If MMDetection cannot be used.
        FileNotFoundError, ValueError: If a file is missing or does not fit.
    """
    check_detection()
    if isinstance(config, str):
        config = Config.fromfile(config)
    content = load_weights(checkpoint, trust_pickle)
    given = (content.get('meta') or {}).get('dataset_meta')
    names = {
        str(key).lower(): value
        for key, value in (given if isinstance(given, dict) else {}).items()}
    if not isinstance(names.get('classes'), (list, tuple)):
        raise ValueError(
            f'{checkpoint} does not name the classes that it detects '
            "(meta.dataset_meta), so it is no checkpoint of a detector's "
            'training. Take what tools/train.py wrote.')
    set_scope(config)
    detector = revert_sync_batchnorm(MODELS.build(config.model))
    weights = adapt_weights(detector, content['state_dict'])
    check_fit(
        detector.state_dict(), weights, 'detector of the config',
        'Give the config of its training, with the same --cfg-options; the '
        f'run saved it as {saved_config(checkpoint) or "a file"} in its work '
        'dir.', checkpoint)
    detector.load_state_dict(weights, strict=False)
    detector.dataset_meta = names
    # MMDetection takes the test pipeline from it, and changes it.
    detector.cfg = deepcopy(config)
    return detector.to(device).eval()


@torch.no_grad()
def detect(detector: nn.Module, images: List[Union[str, np.ndarray]],
           subnet: Optional[SubnetLike] = None) -> list:
    """Predict on image files, or on arrays (H, W, 3) in BGR order.

    Args:
        detector (nn.Module): A detector from :func:`load_detector`.
        images (list[str or np.ndarray]): The images.
        subnet (Subnet, float or str, optional): The sub-network to run, of a
            detector with several; its statistics must have been measured.
            Defaults to the full network.

    Returns:
        list[DetDataSample]: ``pred_instances`` have ``bboxes`` (n, 4) in
        pixels of the image, ``scores`` (n,), ``labels`` (n,), and ``masks``
        (n, H, W) where the detector predicts them.
    """
    from mmdet.apis import inference_detector
    context: AbstractContextManager = nullcontext()
    if subnet is not None:
        check_runs(detector, subnet)
        context = at(detector, subnet)
    with context:
        return [
            inference_detector(detector, mmcv.imread(image))
            for image in images]


def check_runs(detector: nn.Module, subnet: SubnetLike) -> None:
    """Raise ValueError if ``detector`` does not have ``subnet``."""
    subnet = Subnet.of(subnet)
    if not any(slimmable_layers(detector)):
        raise ValueError(
            f'This detector has one width, so it cannot run at {subnet}. '
            'Leave out --width, or train one for several widths.')
    check_subnets(detector, [subnet])


def draw(detector: nn.Module, image: np.ndarray, sample, out: str,
         threshold: float = 0.3) -> None:
    """Write ``image`` with the detected boxes and masks to the file ``out``.

    Args:
        detector (nn.Module): The detector, which names the classes.
        image (np.ndarray): The image (H, W, 3) in RGB order.
        sample (DetDataSample): The result of :func:`detect` for it.
        out (str): The picture file to write.
        threshold (float): Boxes with a lower score are left out. Defaults to
            0.3.
    """
    visualizer = VISUALIZERS.build(
        dict(type='mmdet.DetLocalVisualizer', name=f'us3l_mm_{out}',
             vis_backends=None, save_dir=None))
    visualizer.dataset_meta = detector.dataset_meta
    visualizer.add_datasample('', image, sample, draw_gt=False, out_file=out,
                              pred_score_thr=threshold)
