# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the command ``us3l`` does with a run, in Python."""
from typing import Any, Optional, Sequence

from us3l_mm.evaluation import (Measures, Report, WidthEvaluation,
                                default_subnets)
from us3l_mm.evaluation.loading import run_config
from us3l_mm.fileio import checkpoint_of, load_weights
from us3l_mm.models.layers import SubnetLike
from .labelled import use_labelled
from .own_images import pretrain
from .sliced_file import SliceReport, slice_checkpoint

__all__ = ['evaluate', 'pretrain', 'slice']


def evaluate(run: str, labelled: Optional[str] = None,
             subnets: Optional[Sequence[SubnetLike]] = None,
             out: Optional[str] = None, **measures: Any) -> Report:
    """Measure sub-networks of a run.

    Args:
        run (str): The folder of a run, or a checkpoint of one.
        labelled (str, optional): A folder with a folder of images for each
            class. One in five is classified, by the others. Defaults to the
            labelled images of the config.
        subnets (sequence, optional): The sub-networks, or their widths.
            Defaults to seven widths, or to all of a fixed list.
        out (str, optional): The folder of the report. Defaults to the name of
            the checkpoint, with ``_widths`` behind it.
        **measures: Arguments of :class:`~us3l_mm.evaluation.Measures`.

    Raises:
        OSError, TypeError, ValueError: With what is wrong and what to do.
    """
    checkpoint = checkpoint_of(run)
    config = run_config(checkpoint, load_weights(checkpoint))
    if config is None:
        raise ValueError(f'{run} has no config of its training.')
    if labelled is not None:
        use_labelled(config, labelled)
    evaluation = WidthEvaluation(
        config, checkpoint, out or checkpoint.removesuffix('.pth') + '_widths',
        Measures(**measures))
    return evaluation.run(subnets or default_subnets(evaluation.network, 7))


def slice(run: str, out: str, subnet: Any, **kwargs: Any) -> SliceReport:
    """Write one sub-network of a run as an ordinary network.

    Args:
        run (str): The folder of a run, or a checkpoint of one.
        out (str): The file to write.
        subnet (Subnet, float, str or Budget): What to slice out.
        **kwargs: Other arguments of :func:`~us3l_mm.apis.slice_checkpoint`.
    """
    return slice_checkpoint(checkpoint_of(run), out, subnet, **kwargs)
