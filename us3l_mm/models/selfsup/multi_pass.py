# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What the algorithms share: views, memory layout, one step of many passes."""
from typing import Dict, List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from mmpretrain.models import BaseSelfSupervisor
from torch import Tensor, nn

from us3l_mm.models.heads.feature_distiller import inner_maps
from us3l_mm.models.layers import set_sync
from us3l_mm.registry import MODELS
from .checkpointing import use_plain_checkpoints
from .multi_pass_model import MultiPassModel
from .passes import UPDATE_MODES, Batch
from .plan import Pass, Plan


class MultiPassSSL(MultiPassModel, BaseSelfSupervisor):
    """Base class of an algorithm that trains several sub-networks.

    A training step is a list of passes over one batch, see
    :func:`run_passes`. A subclass says what a pass learns:

    * :meth:`begin`, once a batch and without gradient: update the teacher and
      compute targets;
    * :meth:`loss`, one pass: the equation of the paper;
    * :meth:`end`, once a batch: for instance fill a queue.

    Args:
        backbone (dict or nn.Module): A slimmable backbone.
        neck (dict): The projector. How it narrows at its input follows the
            backbone.
        head (dict or nn.Module): The head of the base pass.
        update_mode (str): 'sequential' for an optimizer step after each pass,
            'accumulate' for one after the last pass. Defaults to
            'sequential'.
        sync_norms (bool): Whether batch norms use the statistics of all
            processes together. Defaults to False.
        channels_last (bool, optional): Whether images and convolutions are in
            the channels-last memory format. Defaults to None: what the
            backbone prefers, which is True for convolutional networks.
        data_preprocessor (dict, optional): Defaults to MMPretrain's
            ``SelfSupDataPreprocessor``.
        init_cfg (dict, optional): Initialization config of MMEngine.

    Attributes:
        num_views (int): The number of views of an image.
        against_collapse (str): What may prevent a collapse of the embeddings,
            for the message of ``CollapseMonitorHook``.
    """

    num_views = 2
    against_collapse = 'a smaller learning rate'

    def __init__(self, backbone: Union[dict, nn.Module], neck: dict,
                 head: Union[dict, nn.Module], update_mode: str = 'sequential',
                 sync_norms: bool = False,
                 channels_last: Optional[bool] = None,
                 data_preprocessor: Optional[dict] = None,
                 init_cfg: Optional[dict] = None):
        if update_mode not in UPDATE_MODES:
            raise ValueError(f'update_mode is one of {UPDATE_MODES}, got '
                             f'{update_mode!r}.')
        for name, value, kinds in (('backbone', backbone, (dict, nn.Module)),
                                   ('neck', neck, (dict, )),
                                   ('head', head, (dict, nn.Module))):
            if not isinstance(value, kinds):
                raise TypeError(f'model.{name} is a config with a type, got '
                                f'{value!r}.')
        if not isinstance(backbone, nn.Module):
            backbone = MODELS.build(backbone)
        use_plain_checkpoints(backbone)
        channels = backbone.feature_channels()[-1]
        if neck.get('in_channels') != channels:
            raise ValueError(
                f'The features of this backbone have {channels} channels, got '
                f'neck.in_channels={neck.get("in_channels")!r}.')
        super().__init__(backbone, {
            **backbone.feature_rounding[-1],
            **neck}, head, init_cfg=init_cfg,
                         data_preprocessor=data_preprocessor)
        if channels_last is None:
            channels_last = getattr(backbone, 'prefers_channels_last', False)
        self.update_mode, self.channels_last = update_mode, channels_last
        self.sync_norms = sync_norms
        self.finish()

    def finish(self) -> None:
        """Apply ``sync_norms`` and ``channels_last`` to all modules.

        A subclass that adds modules calls it at the end of its constructor.
        """
        set_sync(self, self.sync_norms)
        if self.channels_last:  # now, as a distributed wrapper keeps it
            self.to(memory_format=torch.channels_last)

    def init_weights(self) -> None:
        """Initialise, by random numbers that are the same in every layout."""
        # A tensor is filled with random numbers in the order of its memory.
        self.to(memory_format=torch.contiguous_format)
        super().init_weights()
        self.finish()

    @property
    def default_plan(self) -> Plan:
        """The plan of a batch that has none: an error."""
        raise RuntimeError(
            'The batch has no plan, so nothing says which sub-networks to '
            "train. Add default_hooks.sampler=dict(type='us3l_mm."
            "DynamicSamplerHook').")

    def views(self, data: dict) -> List[Tensor]:
        """The preprocessed views of a batch, each (N, 3, H, W)."""
        views = self.data_preprocessor(data, training=True)['inputs']
        check_views(views, self.num_views)
        if self.channels_last:
            views = [
                view.contiguous(memory_format=torch.channels_last)
                for view in views]
        return views

    def check_batch(self, size: int) -> None:
        """Raise ValueError if it cannot train on batches of ``size`` images.

        These are the images of all processes together.
        """

    def check_image_size(self, size: Tuple[int, int]) -> None:
        """Raise ValueError if it cannot train on images of ``size`` (H, W)."""

    def pass_loss(self, batch: Batch, pass_: Pass) -> Dict[str, dict]:
        return self.loss(batch, pass_)

    def loss(self, batch: Batch, pass_: Pass) -> Dict[str, dict]:
        """The losses of one pass, at the sub-network that the layers run.

        Returns:
            dict: ``losses`` (dict[str, Tensor]) to add up; optionally ``log``
            (dict) and ``carried`` (dict), detached tensors for later passes.
        """
        raise NotImplementedError(f'{type(self).__name__} has no loss.')


def encode(backbone: nn.Module, neck: nn.Module,
           views: List[Tensor]) -> List[Tuple[tuple, Tensor]]:
    """Maps and embedding of each view, at the width the layers are set to.

    The views are encoded one by one, so that batch statistics are per view.

    Args:
        backbone (nn.Module): Returns a tuple of maps, each (N, c, H, W). The
            outputs of its ``map_modules`` take their place, if it has any.
        neck (nn.Module): The projector of the last map.
        views (list[Tensor]): Images, each (N, 3, H, W).

    Returns:
        list[tuple]: For each view the maps and the embedding, (N, d).
    """
    encoded = []
    for view in views:
        with inner_maps(backbone) as inner:
            maps = backbone(view)
        encoded.append((tuple(inner) or maps, neck(maps[-1:])[0]))
    return encoded


def spread(embeddings: Tensor) -> Tensor:
    """How far the directions of ``embeddings`` (N, d) spread, a scalar.

    The standard deviation over the batch of each coordinate of the
    L2-normalised embeddings, averaged and multiplied by sqrt(d): about 1 for
    directions all over the sphere, 0 when they have collapsed to one.
    """
    unit = F.normalize(embeddings.detach().float(), dim=1)
    return unit.std(dim=0).mean() * unit.shape[1]**0.5


def check_views(views, num_views: int = 2) -> None:
    """Raise unless ``views`` is a list of ``num_views``."""
    count = len(views) if isinstance(views, (list, tuple)) else 1
    if count != num_views:
        raise ValueError(
            f'The algorithm compares {num_views} views of each image, got '
            f"{count}. Give the pipeline dict(type='MultiView', num_views=[2],"
            ' ...) or two transforms with num_views=[1, 1].')
