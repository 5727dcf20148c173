# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Dict, List, Optional, Union

import torch
import torch.nn.functional as F
from mmpretrain.models import BaseSelfSupervisor
from torch import Tensor, nn

from us3l_mm.models.layers import SlimmableBatchNorm
from us3l_mm.models.losses.gather import at_least_single
from us3l_mm.registry import MODELS
from .base_methods import get_base_method, head_cfg
from .checkpointing import use_plain_checkpoints
from .passes import UPDATE_MODES, joint_losses, run_passes
from .subnet import Plan, Subnet
from .teacher import Teacher, encode

DISTILL_SOURCES = ('teacher', 'online', None)


@MODELS.register_module()
class US3LAlgorithm(BaseSelfSupervisor):
    """Universally slimmable self-supervised learning.

    Per batch of two views: the widest network learns by a base loss against a
    momentum teacher (guideline 1); each narrower one matches the same
    full-width targets of the teacher (guideline 2) through a predictor of its
    own (guideline 3). Which widths those are says ``plan``, which
    :class:`~us3l_mm.engine.DynamicSamplerHook` sets before each iteration.
    Source: `Three Guidelines You Should Know for Universally Slimmable
    Self-Supervised Learning
    <https://arxiv.org/abs/2303.06870>`_, section 3.

    Args:
        backbone (dict or nn.Module): A slimmable backbone.
        base_method (str): 'simclr_momentum', 'byol', 'simsiam',
            'simsiam_momentum' or 'moco_v3': projector, predictors, losses and
            targets, see ``base_methods.py``. Defaults to 'byol'.
        neck (dict, optional): Changes to the method's projector, such as
            ``dict(hid_channels=512, out_channels=128)``.
        predictor (dict, optional): Changes to the predictor of the base pass;
            ``dict(type='us3l_mm.Identity')`` for none.
        distill_predictor (dict, optional): The same for the distillation head.
        base_loss (str or dict, optional): 'info_nce', 'cosine', 'mse',
            'moco_v3' or a config. Defaults to the method's.
        distill_loss (str or dict, optional): Likewise.
        share_head (bool): Whether distillation goes through the predictor of
            the base pass (against guideline 3). Defaults to False.
        distill_from (str, optional): 'teacher'; 'online', the base pass's own
            output; or None: no distillation, every width has a base loss with
            targets of its own width (US-Net). Defaults to 'teacher', or
            'online' for a method without one.
        feature_distill (dict, optional): Arguments of
            :class:`~us3l_mm.models.FeatureDistiller`. Defaults to None.
        teacher_momentum (float): The share of the student that enters the
            teacher per update: 0.01 is a paper's 0.99. Defaults to 0.01.
        final_teacher_momentum (float, optional): What it comes to by the end
            of training, along half a cosine. Defaults to the method's: 0.0
            for 'moco_v3', else it stays.
        update_mode (str): 'sequential', an optimizer step per pass (US3L);
            'accumulate', one per batch (US-Nets); or 'joint', the same by one
            backward through all passes, which needs the memory of all.
            Defaults to 'sequential'.
        sync_norms (bool): Whether the batch norms of student and teacher use
            the statistics of all processes together. Defaults to False.
        channels_last (bool): Whether images and convolutions lie in memory
            channels last, which GPUs prefer in half precision. Defaults to
            False.
        data_preprocessor (dict, optional): Defaults to MMPretrain's
            ``SelfSupDataPreprocessor``.
        init_cfg (dict, optional): As of any MMEngine module.
    """

    def __init__(self, backbone: Union[dict,
                                       nn.Module], base_method: str = 'byol',
                 neck: Optional[dict] = None, predictor: Optional[dict] = None,
                 distill_predictor: Optional[dict] = None,
                 base_loss: Union[str, dict, None] = None,
                 distill_loss: Union[str, dict,
                                     None] = None, share_head: bool = False,
                 distill_from: Optional[str] = 'default',
                 feature_distill: Optional[dict] = None,
                 teacher_momentum: float = 0.01,
                 final_teacher_momentum: Optional[float] = None,
                 update_mode: str = 'sequential', sync_norms: bool = False,
                 channels_last: bool = False,
                 data_preprocessor: Optional[dict] = None,
                 init_cfg: Optional[dict] = None):
        method = get_base_method(base_method)
        if update_mode not in UPDATE_MODES:
            raise ValueError(f'update_mode is one of {UPDATE_MODES}, got '
                             f'{update_mode!r}.')
        if distill_from == 'default':
            distill_from = 'teacher' if method.has_teacher else 'online'
        if distill_from not in DISTILL_SOURCES:
            raise ValueError(f'distill_from is one of {DISTILL_SOURCES}, got '
                             f'{distill_from!r}.')
        if share_head and distill_predictor is not None:
            raise ValueError(
                'share_head=True distils through the predictor of the base '
                f'pass, got distill_predictor={distill_predictor!r}.')
        if not isinstance(backbone, nn.Module):
            backbone = MODELS.build(backbone)
        if use_plain_checkpoints(backbone) and update_mode == 'joint':
            raise ValueError(
                "update_mode='joint' runs its backward pass when the widths "
                'of all passes are over, and with_cp=True would compute again '
                "at the wrong one. Use update_mode='accumulate', the same "
                'update in the memory of one pass.')
        channels = backbone.feature_channels()  # of the whole network
        rounding = backbone.feature_rounding  # how they narrow
        neck = dict(neck or {})
        if 'type' not in neck:
            neck = dict(type='us3l_mm.SlimmableProjector',
                        **{**rounding[-1], **neck})
        neck = {'in_channels': channels[-1], **method.neck, **neck}
        embedding = neck['out_channels']
        head = head_cfg(_changed(method.predictor, predictor), embedding,
                        base_loss or method.loss)
        super().__init__(backbone, neck, head, init_cfg=init_cfg,
                         data_preprocessor=data_preprocessor)
        self.distill_head = None
        if distill_from is not None:
            self.distill_head = MODELS.build(
                head_cfg(
                    None if share_head else _changed(method.distill_predictor,
                                                     distill_predictor),
                    embedding, distill_loss or method.distill_loss))
            if share_head:
                self.distill_head.predictor = self.head.predictor
        self.feature_distiller = None
        if feature_distill is not None:
            if distill_from is None:
                raise ValueError('feature_distill needs a distill_from, got '
                                 'distill_from=None.')
            self.feature_distiller = MODELS.build(
                dict(type='us3l_mm.FeatureDistiller', channels=channels,
                     rounding=rounding, **feature_distill))
        self.teacher = None
        if method.has_teacher or distill_from == 'teacher':
            if final_teacher_momentum is None:
                final_teacher_momentum = method.final_momentum
            self.teacher = Teacher(self.backbone, self.neck, teacher_momentum,
                                   final_teacher_momentum)
        for module in self.modules():
            if isinstance(module, SlimmableBatchNorm):
                module.sync = sync_norms
        for head in filter(None, (self.head, self.distill_head)):
            # Predictors run in half precision, losses do not.
            head.loss_module.register_forward_pre_hook(_in_single_precision)
        self.channels_last = channels_last
        if channels_last:  # now, as a distributed wrapper keeps the layout
            self.to(memory_format=torch.channels_last)
        self.base_from_teacher = method.has_teacher
        self.distill_from = distill_from
        self.update_mode = update_mode
        self.plan = Plan()
        self.regulariser = None  # set by GroupRegHook
        self.guard = None  # set by NonFiniteHook
        self.encode = encode  # CompileHook compiles it

    def train_step(self, data: dict, optim_wrapper) -> Dict[str, Tensor]:
        """Train on one batch; see :func:`run_passes`."""
        return run_passes(self, self, data, optim_wrapper)

    def forward(self, inputs: Union[Tensor, List[Tensor]], data_samples=None,
                mode: str = 'tensor', subnet: Optional[Subnet] = None,
                targets: Optional[list] = None):
        """MMPretrain's two modes; ``loss`` is one pass of one sub-network."""
        if mode != 'loss':
            return super().forward(inputs, data_samples, mode)
        if subnet is None:
            raise RuntimeError(
                'US3LAlgorithm was asked for a loss without being told the '
                'sub-network, as a stock wrapper does, which would train the '
                'full width alone. Set model_wrapper_cfg=dict(type='
                "'us3l_mm.US3LDistributedDataParallel').")
        if isinstance(subnet, Plan):
            return joint_losses(self, inputs, subnet, targets)
        return self.loss(inputs, subnet, targets)

    def loss(self, inputs: List[Tensor], subnet: Subnet,
             targets: Optional[list]) -> Dict[str, dict]:
        """The losses of one pass, at the width that the layers are set to.

        Args:
            inputs (list[Tensor]): Two views, each (N, 3, H, W).
            subnet (Subnet): Which pass this is.
            targets (list, optional): Per view the maps and the embedding to
                match; None for this pass's own.

        Returns:
            dict: ``losses`` to add up, ``log`` and, detached, the ``encoded``
            views.
        """
        encoded = self.encode(self.backbone, self.neck, inputs)
        (maps1, z1), (maps2, z2) = encoded
        kept = [(_detached(maps) if self.feature_distiller else None,
                 z.detach()) for maps, z in encoded]
        (target_maps1, t1), (target_maps2, t2) = targets or kept

        distils = self.distill_from is not None and not subnet.is_base
        head = self.distill_head if distils else self.head
        name = 'distill' if distils else 'base'
        suffix = '' if subnet.is_base else f'_{subnet.name}'
        # Crosswise: view 1 is matched to the target of view 2, and back.
        losses = {
            f'loss_{name}{suffix}':
            0.5 * (head.loss(z1, t2) + head.loss(z2, t1))
        }
        if distils and self.feature_distiller is not None:
            match = self.feature_distiller.loss
            losses[f'loss_feature{suffix}'] = 0.5 * (
                match(maps1, target_maps2) + match(maps2, target_maps1))
        log = {f'spread_{subnet.name}': spread(z1)}
        if subnet.is_base and targets is not None:
            log['spread_teacher'] = spread(t1)
        return dict(losses=losses, log=log, encoded=kept)

    def views(self, data: dict) -> List[Tensor]:
        """The two preprocessed views of a batch."""
        views = self.data_preprocessor(data, training=True)['inputs']
        check_views(views)
        if self.channels_last:
            views = [
                view.contiguous(memory_format=torch.channels_last)
                for view in views
            ]
        return views

    def targets(self, subnet: Subnet, views: List[Tensor],
                cache: Dict[str, list]) -> Optional[list]:
        """What the pass of ``subnet`` must match; None for its own output.

        The teacher is updated and run in the base pass, before the student
        moves, and at no other time. ``cache`` holds the targets of this batch
        by source, and whether the ``student_moved`` since the batch before.
        """
        if subnet.is_base:
            if self.teacher is not None:
                if cache.get('student_moved', True):
                    self.teacher.update(self.plan.progress)
                cache['teacher'] = self._taught(views, subnet.width)
            return cache['teacher'] if self.base_from_teacher else None
        if self.distill_from is None:
            return (self._taught(views, subnet.width)
                    if self.base_from_teacher else None)
        return cache[self.distill_from]

    def _taught(self, views: List[Tensor], width: float) -> list:
        return [(maps if self.feature_distiller else None, z)
                for maps, z in self.teacher(views, width)]


def spread(embeddings: Tensor) -> Tensor:
    """How far the directions of ``embeddings`` (N, d) spread, a scalar.

    The standard deviation over the batch of each coordinate of the
    L2-normalised embeddings, averaged and multiplied by sqrt(d): about 1 for
    directions all over the sphere, 0 when they have collapsed to one.
    """
    unit = F.normalize(embeddings.detach().float(), dim=1)
    return unit.std(dim=0).mean() * unit.shape[1]**0.5


def check_views(views) -> None:
    """Raise unless ``views`` is a list of two."""
    count = len(views) if isinstance(views, (list, tuple)) else 1
    if count != 2:
        raise ValueError(
            f'US3L compares two views of each image, got {count}. Give the '
            "pipeline dict(type='MultiView', num_views=[2], ...) or two "
            'transforms with num_views=[1, 1].')


def _changed(cfg: Optional[dict], changes: Optional[dict]) -> Optional[dict]:
    if changes is None:
        return cfg
    if 'type' in changes:  # another module altogether
        return None if changes['type'] == 'us3l_mm.Identity' else changes
    return {**(cfg or {}), **changes}


def _in_single_precision(module: nn.Module, args: tuple) -> tuple:
    return tuple(map(at_least_single, args))


def _detached(maps) -> tuple:
    return tuple(m.detach() for m in maps)
