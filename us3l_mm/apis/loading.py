# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from dataclasses import dataclass
from typing import Optional, Union

from mmengine.config import Config
from torch import nn

from us3l_mm.evaluation.loading import load_network
from us3l_mm.export.architecture import (build_stored_backbone,
                                         load_backbone_weights, stored_model)
from us3l_mm.fileio import load_weights


@dataclass(frozen=True)
class Source:
    """A checkpoint and the network that is in it.

    Attributes:
        backbone (nn.Module): In evaluation mode, on the CPU.
        preprocessing (dict): Of its images, as the config says it.
        preprocessor (nn.Module, optional): Where there is a config.
    """

    backbone: nn.Module
    preprocessing: dict
    preprocessor: Optional[nn.Module] = None


def load_backbone(checkpoint: str, config: Union[str, Config, None] = None,
                  trust_pickle: bool = False) -> nn.Module:
    """The slimmable backbone that a checkpoint holds, statistics included.

    Args:
        checkpoint (str): What training, ``tools/evaluate_widths.py
            --save-checkpoint`` or a converter wrote.
        config (str or Config, optional): The config of the training, a Python
            file that is executed. Defaults to the text that MMEngine stores
            in the checkpoint, of which only the model is parsed.
        trust_pickle (bool): Read a file that executes code when it is read.
            Defaults to False.

    Returns:
        nn.Module: At full width, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError, ValueError: with what is wrong and what to do.
    """
    return load_source(checkpoint, config, trust_pickle).backbone


def load_source(checkpoint: str, config: Union[str, Config, None] = None,
                trust_pickle: bool = False) -> Source:
    """:func:`load_backbone`, with what its images go through before."""
    content = load_weights(checkpoint, trust_pickle)
    if config is None:
        model = stored_model(content)
        backbone = build_stored_backbone(model)
        load_backbone_weights(backbone, content['state_dict'])
        return Source(backbone, model.get('data_preprocessor') or {})
    if isinstance(config, str):
        config = Config.fromfile(config)
    backbone, preprocessor = load_network(config, content)
    return Source(
        backbone,
        config.model.get('data_preprocessor')
        or config.get('data_preprocessor') or {}, preprocessor)
