# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""From a checkpoint to a file with one width: choose, measure, check, write.
"""
import os.path as osp
from dataclasses import dataclass
from typing import Dict, Optional, Tuple, Union

from mmengine.config import Config
from mmengine.runner import set_random_seed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.evaluation.calibration import calibrate
from us3l_mm.evaluation.complexity import Complexity, count_complexity
from us3l_mm.evaluation.data import (BANK, TRAIN, build_loader, image_batches,
                                     loader_cfg, shuffled)
from us3l_mm.evaluation.latency import width_latency
from us3l_mm.fileio import check_writable, save_atomically, sha256
from us3l_mm.export.families import family_of, output_channels
from us3l_mm.export.formats import FORMATS, SlicedNetwork, verify
from us3l_mm.export.select import (Choice, format_amount, format_seconds,
                                   parse_amount, parse_seconds,
                                   selectable_widths, widest_within)
from us3l_mm.export import slice_network
from us3l_mm.models.layers import Subnet, check_statistics, has_statistics
from us3l_mm.version import __version__
from .loading import Source, load_source

COSTS = ('flops', 'params', 'latency')


@dataclass(frozen=True)
class Budget:
    """What a sub-network may cost at most.

    Attributes:
        kind (str): 'flops' (multiply-accumulates of one image, as MMEngine
            and fvcore count them), 'params', or 'latency' (of one image, in
            seconds, measured here).
        limit (float): The highest allowed cost.
    """

    kind: str
    limit: float

    @classmethod
    def parse(cls, kind: str, text: str) -> 'Budget':
        """From a text such as '1G' or '10ms'."""
        if kind not in COSTS:
            raise ValueError(f'A budget is one of {COSTS}, got {kind!r}.')
        parse = parse_seconds if kind == 'latency' else parse_amount
        return cls(kind, parse(text))

    def show(self, cost: float) -> str:
        """A cost of this kind, to be read."""
        if self.kind == 'latency':
            return format_seconds(cost)
        return format_amount(cost) + {
            'flops': ' MACs', 'params': ' parameters'
        }[self.kind]

    def choose(self, network: nn.Module, input_size: int) -> Choice:
        """The widest width of ``network`` inside; ValueError if none is."""
        size = (input_size, input_size)

        def cost(width: float) -> float:
            if self.kind == 'latency':
                return width_latency(network, width, size) / 1000
            [counted] = count_complexity(network, [width], size).values()
            return counted.macs if self.kind == 'flops' else counted.params

        return widest_within(selectable_widths(network), cost, self.limit,
                             self.show)


@dataclass(frozen=True)
class SliceReport:
    """What was written.

    Attributes:
        out (str): The file.
        width (float): The width.
        choice (Choice, optional): How a budget chose it.
        gap (float): Largest difference from the slimmable network.
        size (Complexity): Parameters and multiply-accumulates of it.
        meta (dict): What the file says about itself.
        usage (str): Python that loads it.
    """

    out: str
    width: float
    choice: Optional[Choice]
    gap: float
    size: Complexity
    meta: dict
    usage: str


def slice_checkpoint(checkpoint: str, out: str, width: Union[float, Budget],
                     format: str = 'mmpretrain', config: Union[str, Config,
                                                               None] = None,
                     num_images: int = 10000, input_size: Optional[int] = None,
                     device: str = 'cpu',
                     trust_pickle: bool = False) -> SliceReport:
    """Slice one width out of ``checkpoint`` and write it to ``out``.

    The file is written only after what it holds has been loaded into the
    consumer's own network and compared with the slimmable one.

    Args:
        checkpoint (str): The slimmable network.
        out (str): The file to write.
        width (float or Budget): The width, or what it may cost.
        format (str): A key of ``us3l_mm.export.formats.FORMATS``. Defaults to
            'mmpretrain'.
        config (str or Config, optional): Of the training. With it, a width
            without statistics is calibrated, on the images of
            ``knn_bank_dataloader`` or else ``train_dataloader``.
        num_images (int): How many images to calibrate with. Defaults to
            10000.
        input_size (int): Side of a square image in pixels, to count, time
            and verify with. Defaults to what the backbone is meant for.
        device (str): Where to calibrate and to time. Defaults to 'cpu'.
        trust_pickle (bool): As of :func:`load_backbone`.

    Raises:
        ImportError, OSError, TypeError, ValueError: with what is wrong and
            what to do; nothing has been written then.
    """
    if format not in FORMATS:
        raise ValueError(f'A format is one of {sorted(FORMATS)}, got '
                         f'{format!r}.')
    check_writable(out, checkpoint)
    if isinstance(config, str):
        config = Config.fromfile(config)
    source = load_source(checkpoint, config, trust_pickle)
    backbone, choice = source.backbone, None
    if input_size is None:
        input_size = family_of(backbone).input_size(backbone)
    if isinstance(width, Budget):
        choice = width.choose(backbone.to(device), input_size)
        width = choice.width
    width = Subnet.of(width).check(backbone.width_range).width
    meta = _describe(checkpoint, source, width, format, input_size)
    origin = 'the checkpoint'
    if not any(isinstance(m, _BatchNorm) for m in backbone.modules()):
        origin = 'nowhere, as there are no batch norms'
    if not has_statistics(backbone, width):
        if config is None:
            _refuse(backbone, width, choice)
        # What the format refuses is refused before the long work.
        _sub_network(backbone, width, input_size, out, meta, format)
        origin = _calibrate(source, config, width, num_images, device)
    meta['statistics'] = origin
    network, artifact = _sub_network(backbone, width, input_size, out, meta,
                                     format)
    gap = verify(artifact, network)
    [size] = count_complexity(backbone, [width],
                              (input_size, input_size)).values()
    save_atomically(artifact.content, out)
    return SliceReport(out, width, choice, gap, size, meta, artifact.usage)


def _refuse(backbone: nn.Module, width: float,
            choice: Optional[Choice]) -> None:
    try:
        check_statistics(backbone, width)
    except ValueError as error:
        raise ValueError(
            str(error) if choice is None else (
                f'The widest width inside the budget is {width:g}. {error}'
            )) from None


def _sub_network(backbone: nn.Module, width: float, input_size: int, out: str,
                 meta: dict, format: str) -> Tuple[SlicedNetwork, object]:
    plain = slice_network(backbone.cpu(), width, without_statistics=True)
    network = SlicedNetwork(backbone, plain.eval(), width, input_size, out,
                            {**meta, 'channels': output_channels(plain)})
    return network, FORMATS[format](network)


def _calibrate(source: Source, config: Config, width: float, num_images: int,
               device: str) -> str:
    """Measure the statistics of ``width``; returns what to say about it."""
    key = BANK if BANK in config else TRAIN
    loader = build_loader(loader_cfg(config, key))
    if key == BANK:
        loader = shuffled(loader)
    set_random_seed(0)  # of the augmentation
    seen = calibrate(source.backbone.to(device),
                     image_batches(loader,
                                   source.preprocessor.to(device)), [width],
                     min(num_images, len(loader.dataset)),
                     progress='Calibrating')
    name = osp.basename(config.filename or 'the given config')
    return f'measured on {seen} images of {key} in {name}'


def _describe(checkpoint: str, source: Source, width: float, format: str,
              input_size: int) -> Dict[str, object]:
    """What the file will say about itself; plain types only."""
    backbone = source.backbone
    family = family_of(backbone)
    arguments = family.arguments(backbone)
    return dict(
        us3l_mm_version=__version__, format=format, width=width,
        architecture=dict(type=family.stock_class(backbone).__name__,
                          **arguments),
        feature_channels=list(backbone.feature_channels(width)),
        input_channels=arguments.get('in_channels', 3), input_size=input_size,
        data_preprocessor={
            key: value
            for key, value in source.preprocessing.items() if key != 'type'
        }, source=dict(file=osp.basename(checkpoint),
                       sha256=sha256(checkpoint)))
