# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From the checkpoint of a gated network to the file of a pruned one."""
import os.path as osp
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

import torch
from mmengine.config import Config
from mmengine.runner import set_random_seed
from torch import Tensor, nn

from us3l_mm.evaluation import (GateUse, calibrate_threshold, encoder,
                                measure_gates)
from us3l_mm.evaluation.complexity import Complexity, count_complexity
from us3l_mm.evaluation.data import BANK, QUERY, TRAIN, image_batches, shuffled
from us3l_mm.evaluation.feature_gap import FeatureGap, feature_gap
from us3l_mm.evaluation.latency import latency, width_latency
from us3l_mm.evaluation.loading import Source, load_source, run_config
from us3l_mm.export import match_norms
from us3l_mm.export.families import output_channels
from us3l_mm.export.formats import FORMATS, SlicedNetwork, verify
from us3l_mm.export.pruning import choose_channels, prune
from us3l_mm.fileio import load_weights, save_atomically
from us3l_mm.models.layers import FULL, GATED, ChannelGate, check_subnets
from .sliced_file import (check_settings, describe_file, given_config,
                          open_images)

HELD_OUT = 1000
TIMED, MIN_RUN_TIME = 16, 0.2
BATCH = 100
MATCHED = 5  # batches


@dataclass(frozen=True)
class PruneReport:
    """The result of :func:`prune_checkpoint`.

    Attributes:
        out (str): The file that was written.
        use (GateUse): What the gated network leaves on at this budget.
        min_share (float): The least share of images for which a channel that
            was kept is on.
        gap (FeatureGap): From the gated to the pruned network.
        difference (float): The largest difference between the network in the
            file and the pruned one.
        size, dense_size (Complexity): Of the pruned and the dense network.
        milliseconds (dict[str, float]): Of one image in the 'pruned', the
            'gated' (computing the channels that are on) and the 'dense'
            network.
        meta (dict): The description in the file.
        usage (str): Python code that loads the file.
    """

    out: str
    use: GateUse
    min_share: float
    gap: FeatureGap
    difference: float
    size: Complexity
    dense_size: Complexity
    milliseconds: Dict[str, float]
    meta: dict
    usage: str


def prune_checkpoint(checkpoint: str, out: str, target: Optional[float] = None,
                     min_share: Optional[float] = None,
                     max_gap: Optional[float] = None,
                     file_format: str = 'mmpretrain',
                     config: Union[str, Config, None] = None,
                     num_images: int = 2000, input_size: Optional[int] = None,
                     device: str = 'cpu', trust_pickle: bool = False,
                     cfg_options: Optional[dict] = None) -> PruneReport:
    """Make a plain network of the gated one in ``checkpoint``, in ``out``.

    Images of the training tell which channels a gate leaves on. Those that
    are on for none of them are removed, those that are on for all lose their
    gate, and neither changes the output. Of the others, which depend on the
    image, some stay for all images: by default those that are on for most
    images, as many as cost no more than the gated network does on average.
    The norms behind them are matched (:func:`~us3l_mm.export.match_norms`) if
    that brings the features closer to those of the gated network.
    Other images, which took no part in this, tell how far the features of the
    result are from those of the gated network.

    The file is written only after its content has been loaded into the
    network that will use it, and compared.

    Args:
        checkpoint (str): The file of the gated network.
        out (str): The file to write.
        target (float, optional): The compute budget of the gated network, as
            a share of the dense one's multiply-accumulates, see
            :func:`~us3l_mm.evaluation.calibrate_threshold`. Defaults to None:
            the threshold in the checkpoint.
        min_share (float, optional): Keep the channels that are on for at
            least this share of the images, in (0, 1]. Defaults to None: as
            many as the gated network computes on average.
        max_gap (float, optional): The largest error of the features that is
            accepted (``FeatureGap.error``). Defaults
            to None: any.
        file_format (str): A key of ``us3l_mm.export.formats.FORMATS``.
            Defaults to 'mmpretrain'.
        config (str or Config, optional): The config of the training, whose
            ``knn_bank_dataloader``, or else ``train_dataloader``, gives the
            images, and whose ``knn_query_dataloader`` the others if it has
            one. Defaults to the one that the run saved in the checkpoint or
            beside it.
        num_images (int): Number of images by which channels are chosen; they
            are held in memory. At most 1000 others are compared. Defaults to
            2000.
        input_size (int, optional): Side of a square image in pixels, for
            counting and timing. Defaults to that of the images.
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
    for name, value in (('target', target), ('min_share', min_share)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f'{name} is a share in (0, 1], got {value}.')
    if max_gap is not None and not max_gap >= 0:
        raise ValueError('max_gap is the largest error that is accepted, as a '
                         f'share of the features, got {max_gap}.')
    stored = load_weights(checkpoint, trust_pickle)
    config = given_config(checkpoint, stored, config, cfg_options)
    config = config or run_config(checkpoint, stored)
    source = load_source(stored, config, path=checkpoint)
    network: Any = source.backbone
    check_subnets(network, [GATED])
    if config is None:
        raise ValueError(
            f'{checkpoint} has no config of its run, nor is there one beside '
            'it, so there are no images that tell which channels are on. Give '
            'the --config of the training.')
    _check_format(network, source, checkpoint, out, file_format)
    # Channels are chosen by some images, and compared on others.
    images, others, origin = _read_images(config, source, num_images, device)
    network.to(device)
    if target is not None:
        calibrate_threshold(network, images, target)
    use = measure_gates(network, images)
    kept, least = _choose(network, use, images, min_share)
    pruned, matched = _prune(network, kept, use, images)
    gap = feature_gap(encoder(network, GATED), encoder(pruned, FULL), others)
    if max_gap is not None and gap.error > max_gap:
        raise ValueError(
            f'The pruned network differs from the gated one by {gap.error:.3g}'
            f' of the features, more than max_gap={max_gap:g} allows: {gap}; '
            'nothing was written. Keep more channels by --min-share, or take '
            'a larger --target or --max-gap.')
    size = input_size or max(images[0].shape[-2:])
    milliseconds = _time(network, pruned, others, size)
    sliced = _sliced(pruned.cpu(), source, checkpoint, out, file_format, size)
    sliced.meta['gates'] = dict(
        target=target, threshold=_threshold(network), ratio=use.ratio,
        min_share=least, images=origin, matched_norms=matched, kinds={
            name: list(kinds) for name, kinds in use.kinds.items()})
    sliced.meta['gap'] = asdict(gap)
    artifact = FORMATS[file_format](sliced)
    content = artifact.write()
    difference = verify(artifact, content, sliced)
    small, dense = (count_complexity(plain, [FULL], (size, size))[FULL]
                    for plain in (pruned, network))
    save_atomically(content, out)
    return PruneReport(out, use, least, gap, difference, small, dense,
                       milliseconds, sliced.meta, artifact.usage)


def _sliced(pruned: nn.Module, source: Source, checkpoint: str, out: str,
            file_format: str, size: int) -> SlicedNetwork:
    """What a format takes, for a pruned network."""
    meta = describe_file(checkpoint, replace(source, backbone=pruned), FULL,
                         file_format, size)
    meta.update(subnet=str(GATED), channels=output_channels(pruned),
                statistics='the checkpoint')
    return SlicedNetwork(pruned, pruned, FULL, size, out, meta)


def _check_format(network: Any, source: Source, checkpoint: str, out: str,
                  file_format: str) -> None:
    """Refuse what a format cannot hold, before the long work."""
    channels = {
        f'{name}.gate{i}':
        torch.ones(getattr(block, f'conv{i}').out_channels, dtype=torch.bool)
        for name, block in network.blocks.items()
        for i in range(1, block.num_convs)}
    FORMATS[file_format](_sliced(prune(network, channels), source, checkpoint,
                                 out, file_format, 1))


def _read_images(config: Config, source: Source, num_images: int,
                 device: str) -> Tuple[List[Tensor], List[Tensor], str]:
    """Images to choose channels by, others to compare, and their origin."""
    assert source.preprocessor is not None  # it comes with the config
    preprocessor = source.preprocessor.to(device)
    set_random_seed(0)  # of the augmentation

    def singles(key: str) -> Iterator[Tensor]:
        loader = open_images(config, key, 'which channels are on')
        # A training loader draws its own order, with the seeds of its images.
        batches = image_batches(loader if key == TRAIN else shuffled(loader),
                                preprocessor)
        return chain.from_iterable(images.split(1) for images in batches)

    key = BANK if config.get(BANK) else TRAIN
    found = [*islice(singles(key), num_images + HELD_OUT)]
    count = min(num_images, 3 * len(found) // 4)
    others = found[count:]
    if config.get(QUERY):
        count = num_images
        others = [*islice(singles(QUERY), HELD_OUT)]
    images = found[:count]
    if min(len(images), len(others)) < 3:
        raise ValueError(
            f'There are {len(images)} images of {key} to choose channels by, '
            f'and {len(others)} to compare; at least 3 of each are needed.')
    name = osp.basename(config.filename or 'the given config')
    origin = f'{len(images)} images of {key} in {name}'
    return ([*torch.cat(images).split(BATCH)], [
        *torch.cat(others).split(BATCH)], origin)


def _choose(network: Any, use: GateUse, images: List[Tensor],
            min_share: Optional[float]) -> Tuple[Dict[str, Tensor], float]:
    """The channels to keep, and the least share of images that one is on."""
    if min_share is not None:
        return {
            name: on >= min_share
            for name, on in use.shares.items()}, min_share
    compute = network.compute(tuple(images[0].shape[-2:]))
    return choose_channels(use.shares, compute, use.ratio)


def _prune(network: nn.Module, kept: Dict[str, Tensor], use: GateUse,
           images: List[Tensor]) -> Tuple[nn.Module, bool]:
    """The pruned network, and whether its norms were matched.

    They are if the features are then closer to those of the gated network.
    """
    pruned, few = prune(network, kept), images[:MATCHED]
    if not any(depends for _, _, depends in use.kinds.values()):
        return pruned, False
    matched = deepcopy(pruned)
    match_norms(network, matched, kept, few)
    errors = [
        feature_gap(encoder(network, GATED), encoder(plain, FULL), few).error
        for plain in (pruned, matched)]
    return (matched, True) if errors[1] < errors[0] else (pruned, False)


def _time(network: nn.Module, pruned: nn.Module, images: List[Tensor],
          size: int) -> Dict[str, float]:
    """Milliseconds of one image, in the three networks."""
    few, sides = images[0][:TIMED], (size, size)
    return dict(
        pruned=latency(pruned, few, min_run_time=MIN_RUN_TIME),
        gated=width_latency(network, GATED, sides, images=few,
                            min_run_time=MIN_RUN_TIME), dense=width_latency(
                                network, FULL, sides, images=few,
                                min_run_time=MIN_RUN_TIME))


def _threshold(network: nn.Module) -> float:
    """The threshold of all gates."""
    return next(
        float(gate.threshold) for gate in network.modules()
        if isinstance(gate, ChannelGate))
