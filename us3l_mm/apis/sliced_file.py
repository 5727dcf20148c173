# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From a checkpoint to the file of one sub-network."""
import os.path as osp
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Dict, Optional, Union

import torch
from mmengine.config import Config
from mmengine.runner import set_random_seed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from us3l_mm.evaluation.calibration import calibrate
from us3l_mm.evaluation.complexity import Complexity, count_complexity
from us3l_mm.evaluation.data import (BANK, TRAIN, build_loader, image_batches,
                                     loader_cfg, shuffled)
from us3l_mm.evaluation.latency import check_device, latency
from us3l_mm.evaluation.loading import (Source, load_source, run_config,
                                        with_dense_network)
from us3l_mm.export import slice_backbone, slice_network
from us3l_mm.export.families import family_of, output_channels
from us3l_mm.export.formats import FORMATS, SlicedNetwork, verify
from us3l_mm.fileio import (check_writable, load_weights, save_atomically,
                            sha256)
from us3l_mm.models.layers import (Subnet, SubnetLike, check_statistics,
                                   check_subnets, has_statistics)
from us3l_mm.version import __version__
from .budget import Budget, Choice, check_count
from .launching.config import change_config, load_config

MIN_RUN_TIME = 0.1  # seconds


@dataclass(frozen=True)
class SliceReport:
    """The result of :func:`slice_checkpoint`.

    Attributes:
        out (str): The file that was written.
        subnet (Subnet): The sub-network in the file.
        choice (Choice, optional): The choice within a budget, if there was
            one.
        gap (float): Largest difference to the slimmable network's outputs.
        size (Complexity): Parameters and multiply-accumulates of the
            sub-network.
        milliseconds (float): Of one image in the sub-network, measured.
        meta (dict): The description in the file.
        usage (str): Python code that loads the file.
    """

    out: str
    subnet: Subnet
    choice: Optional[Choice]
    gap: float
    size: Complexity
    milliseconds: float
    meta: dict
    usage: str


def slice_checkpoint(checkpoint: str, out: str, subnet: Union[SubnetLike,
                                                              Budget],
                     file_format: str = 'mmpretrain',
                     config: Union[str, Config, None] = None,
                     num_images: int = 10000, input_size: Optional[int] = None,
                     device: str = 'cpu', trust_pickle: bool = False,
                     cfg_options: Optional[dict] = None) -> SliceReport:
    """Slice one sub-network out of ``checkpoint`` and write it to ``out``.

    The file is written only after its content has been loaded into the
    network that will use it, and compared with the slimmable one.

    Args:
        checkpoint (str): The file of the slimmable network.
        out (str): The file to write.
        subnet (Subnet, float, str or Budget): The sub-network, its width, or
            its highest cost.
        file_format (str): A key of ``us3l_mm.export.formats.FORMATS``.
            Defaults to 'mmpretrain'.
        config (str or Config, optional): The config of the training, by which
            missing batch-norm statistics are measured, on the images of
            ``knn_bank_dataloader`` or else ``train_dataloader``. Defaults to
            the one that the run saved in the checkpoint or beside it. If there
            is none, a sub-network without statistics is refused.
        num_images (int): Number of images to measure them with. Defaults to
            10000.
        input_size (int, optional): Side of a square image in pixels, for
            counting, timing and the comparison. Defaults to the size that the
            backbone is meant for.
        device (str): Where to measure and to time. Defaults to 'cpu'.
        trust_pickle (bool): Whether to read a file that executes code when it
            is read. Defaults to False.
        cfg_options (dict, optional): Changes to the config, by dotted keys.
            Defaults to none.

    Raises:
        ImportError, OSError, TypeError, ValueError: With what is wrong and
            what to do; nothing has been written then.
    """
    check_settings(checkpoint, out, file_format, num_images, input_size,
                   device)
    stored = load_weights(checkpoint, trust_pickle)
    config = given_config(checkpoint, stored, config, cfg_options)
    source = load_source(
        with_dense_network(stored) or stored, config, path=checkpoint)
    backbone, choice = source.backbone, None
    if input_size is None:
        input_size = family_of(backbone).input_size(backbone)
    if isinstance(subnet, Budget):
        choice = subnet.choose(backbone.to(device), input_size)
        backbone.cpu()
        subnet = choice.subnet
    subnet = Subnet.of(subnet)
    check_subnets(backbone, [subnet])
    if subnet.gated:
        raise ValueError('Gates are a function of images, so a gated network '
                         'is no slice. Use prune_checkpoint, or '
                         'tools/slice_checkpoint.py --width gated.')
    measure = not has_statistics(backbone, subnet)
    if measure and config is None:
        config = run_config(checkpoint, stored)
        if config is None:
            _refuse(backbone, subnet, choice)
        source = replace(source, preprocessor=load_source(stored,
                                                          config).preprocessor)
    network = SlicedNetwork(
        backbone,
        slice_network(backbone, subnet, without_statistics=True).eval(),
        subnet, input_size, out,
        describe_file(checkpoint, source, subnet, file_format, input_size))
    artifact = FORMATS[file_format](network)  # refuses before the long work
    origin = 'the checkpoint'
    if measure:
        origin = _calibrate(source, config, subnet, num_images, device)
        network.plain.load_state_dict(slice_backbone(backbone, subnet))
    elif not any(isinstance(m, _BatchNorm) for m in backbone.modules()):
        origin = 'nowhere, as there are no batch norms'
    network.meta.update(statistics=origin,
                        channels=output_channels(network.plain))
    content = artifact.write()
    gap = verify(artifact, content, network)
    size = count_complexity(backbone, [subnet], (input_size, input_size))
    image = torch.zeros(1, network.meta['input_channels'], input_size,
                        input_size)
    milliseconds = latency(network.plain.to(device), image,
                           min_run_time=MIN_RUN_TIME)
    save_atomically(content, out)
    return SliceReport(out, subnet, choice, gap, size[subnet], milliseconds,
                       network.meta, artifact.usage)


def check_settings(checkpoint: str, out: str, file_format: str,
                   num_images: int, input_size: Optional[int],
                   device: str) -> None:
    """Refuse arguments of :func:`slice_checkpoint` that cannot be right."""
    if file_format not in FORMATS:
        raise ValueError(f'A format is one of {sorted(FORMATS)}, got '
                         f'{file_format!r}.')
    check_writable(out, checkpoint)
    check_count('num_images', num_images)
    if input_size is not None:
        check_count('input_size', input_size)
    check_device(device)


def given_config(checkpoint: str, content: dict, config: Union[str, Config,
                                                               None],
                 options: Optional[dict]) -> Optional[Config]:
    """The config that the caller gave, with the options."""
    if isinstance(config, str):
        return load_config(config, options)
    if not options:
        return config
    config = deepcopy(config) or run_config(checkpoint, content)
    if config is None:
        raise ValueError(
            f'There is no config to change by {sorted(options)}: {checkpoint} '
            'has none of its run, nor is there one beside it. Give --config.')
    return change_config(config, str(config.filename), options)


def _refuse(backbone: nn.Module, subnet: Subnet,
            choice: Optional[Choice]) -> None:
    try:
        check_statistics(backbone, subnet)
    except ValueError as error:
        chosen = ('' if choice is None else
                  f'The widest within the budget is {subnet}. ')
        raise ValueError(f'{chosen}{error} The --config of the training lets '
                         'this tool measure them.') from None


def _calibrate(source: Source, config: Config, subnet: Subnet, num_images: int,
               device: str) -> str:
    """Measure the statistics of ``subnet``, and return their origin."""
    key = BANK if config.get(BANK) else TRAIN
    name = osp.basename(config.filename or 'the given config')
    loader = open_images(config, key, f'the statistics of {subnet}')
    if key == BANK:
        loader = shuffled(loader)
    set_random_seed(0)  # of the augmentation
    assert source.preprocessor is not None  # it comes with the config
    seen = calibrate(
        source.backbone.to(device),
        image_batches(loader, source.preprocessor.to(device)), [subnet],
        min(num_images, len(loader.dataset)), progress='Calibrating')
    source.backbone.cpu()
    return f'measured on {seen} images of {key} in {name}'


def open_images(config: Config, key: str, purpose: str) -> DataLoader:
    """The dataloader of ``config`` under ``key``.

    Raises:
        FileNotFoundError: If the images are not there, with the ``purpose``
            for which they would be read.
    """
    try:
        return build_loader(loader_cfg(config, key))
    except FileNotFoundError as error:
        name = osp.basename(config.filename or 'the given config')
        raise FileNotFoundError(
            f'The images of {key} in {name}, by which {purpose} would be '
            f'measured, are not there: {error}. Set --cfg-options '
            f'{key}.dataset.data_root=FOLDER.') from None


def describe_file(checkpoint: str, source: Source, subnet: Subnet,
                  file_format: str, input_size: int) -> Dict[str, object]:
    """The description in the file, of plain types."""
    backbone = source.backbone
    family = family_of(backbone)
    arguments = family.arguments(backbone)
    return dict(
        us3l_mm_version=__version__, format=file_format, width=subnet.width,
        subnet=str(subnet),
        architecture=family.architecture(backbone), feature_channels=list(
            backbone.feature_channels(subnet)), input_channels=arguments.get(
                'in_channels', 3), input_size=input_size, data_preprocessor={
                    key: value for key, value in source.preprocessing.items()
                    if key != 'type'}, source=dict(
                        file=osp.basename(checkpoint),
                        sha256=sha256(checkpoint)))
