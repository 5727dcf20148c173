# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Any, Dict, List, Optional, Union

import torch
from mmpretrain.models.utils import batch_shuffle_ddp, batch_unshuffle_ddp
from torch import Tensor, nn

from us3l_mm.models.layers import FULL, SwitchableBatchNorm, set_sync
from us3l_mm.registry import MODELS
from .multi_pass import MultiPassSSL, encode, spread
from .passes import Batch
from .plan import Pass
from .teacher import Teacher

FULL_NETWORK, LARGER = 'full', 'larger'
CHOICES = dict(distill_from=(FULL_NETWORK, LARGER),
               key_norms=('as the queries', 'shuffled', 'synchronised'))


@MODELS.register_module()
class SlimCLR(MultiPassSSL):
    """Slimmable networks learned contrastively, all widths in every step.

    Every width of a fixed list has norms of its own and learns to pick the
    key of its image, (1 - beta) C_i. The narrower ones also match how similar
    the full network finds the images, beta D_i. The weights a_i of the widths
    and their slow start are those of the passes (``DynamicSamplerHook``). One
    optimizer step a batch follows from sum_i a_i ((1 - beta) C_i + beta D_i).
    The method is that of the head: MoCo v2, MoCo v3 or SimCLR. Source:
    SlimCLR, `arXiv 2209.15525 <https://arxiv.org/abs/2209.15525>`_.

    Args:
        backbone (dict or nn.Module): A backbone with switchable norms.
        neck (dict): The projector, :class:`SlimmableProjector`.
        head (dict or nn.Module): A
            :class:`~us3l_mm.models.heads.Contrast`.
        distill (dict, optional): The loss between the similarities of two
            widths, :class:`~us3l_mm.models.losses.SimilarityDistillation`.
            Defaults to None: no distillation, beta = 0.
        distill_weight (float): beta. Defaults to 0.5.
        distill_from (str): 'full' for the full network, or 'larger' for the
            mean over all larger widths. Defaults to 'full'.
        key_norms (str): The statistics of the momentum encoder's norms: 'as
            the queries', 'shuffled' over the processes as in MoCo, or
            'synchronised'. Defaults to 'as the queries'.
        teacher (dict, optional): Arguments of :class:`Teacher`, which is a
            network of full width alone. Defaults to a momentum of 0.001, a
            paper's m = 0.999.
        **kwargs: Arguments of :class:`MultiPassSSL`; ``update_mode`` defaults
            to 'accumulate'.
    """

    against_collapse = (
        'a smaller learning rate, a smaller temperature of the contrastive '
        'loss, or more keys in the queue or the batch')

    def __init__(self, backbone: Union[dict, nn.Module], neck: dict,
                 head: Union[dict, nn.Module], distill: Optional[dict] = None,
                 distill_weight: float = 0.5, distill_from: str = FULL_NETWORK,
                 key_norms: str = 'as the queries',
                 teacher: Optional[dict] = None, **kwargs):
        for (name, allowed), value in zip(CHOICES.items(),
                                          (distill_from, key_norms)):
            if value not in allowed:
                raise ValueError(f'{name} is one of {allowed}, got {value!r}.')
        if not 0.0 <= distill_weight <= 1.0:
            raise ValueError('distill_weight is the share of the distillation '
                             f'in the loss, in [0, 1], got {distill_weight}.')
        super().__init__(backbone, neck, head, **{
            'update_mode': 'accumulate',
            **kwargs})
        check_exact_channels(self)
        self.distill: Any = distill and MODELS.build(distill)
        self.distill_weight = distill_weight if distill else 0.0
        self.distill_from, self.key_norms = distill_from, key_norms
        self.teacher: Optional[Teacher] = None
        if self.head.has_keys:
            self.teacher = Teacher(self.backbone, self.neck, **teacher
                                   or dict(momentum=0.001), full_only=True)
        elif teacher is not None:
            raise ValueError(f'{type(self.head).__name__} has no momentum '
                             f'encoder; remove teacher={teacher!r}.')
        self.finish()
        if key_norms == 'synchronised' and self.teacher is not None:
            set_sync(self.teacher, True)

    def check_batch(self, size: int) -> None:
        """Raise ValueError if the queue is not a multiple of ``size``."""
        self.head.check_batch(size)

    def begin(self, batch: Batch) -> None:
        """The keys of all widths: those of the full momentum encoder."""
        batch.targets['keys'] = []
        if self.teacher is None:
            return
        if batch.student_moved:
            self.teacher.update(batch.plan.progress)
        # Crosswise: the key of view 2 is for the query of view 1, and back.
        views = batch.views[::-1][:self.head.num_queries]
        if self.key_norms == 'shuffled':
            shuffled = [batch_shuffle_ddp(view) for view in views]
            views = [view for view, _ in shuffled]
        keys = [z for _, z in self.teacher(views, FULL)]
        if self.key_norms == 'shuffled':
            keys = [
                batch_unshuffle_ddp(key, order)
                for key, (_, order) in zip(keys, shuffled)]
        batch.targets['keys'] = keys

    def loss(self, batch: Batch, pass_: Pass) -> Dict[str, dict]:
        """The losses of one pass, at the width that the layers are set to."""
        queries = self.queries(batch.views)
        teachers = batch.carried.get('teachers', [])
        distils = self.distill is not None and bool(teachers)
        beta = self.distill_weight if distils else 0.0
        with torch.autocast(queries[0].device.type, enabled=False):
            similarities = self.head.similarities(queries,
                                                  batch.targets['keys'])
            losses = {
                f'loss_contrast_{pass_.name}':
                (1 - beta) * self.head.loss(similarities)}
            rows, carried = similarities, {}
            if self.distill is not None and self.distill.on == 'embeddings':
                rows = [(q, own) for q, (_, own) in zip(queries, similarities)]
            if distils:
                losses[f'loss_distill_{pass_.name}'] = beta / len(
                    teachers) * sum(
                        self.distill(x, target, own) for teacher in teachers
                        for (x, own), target in zip(rows, teacher))
            if self.distill is not None and (pass_.role == 'base'
                                             or self.distill_from == LARGER):
                carried['teachers'] = [
                    *teachers, [self.distill.target(x) for x, _ in rows]]
        log = {f'spread_{pass_.name}': spread(queries[0])}
        if batch.plan.diagnose:
            log.update(gradient_norms(losses, queries))
        return dict(losses=losses, log=log, carried=carried)

    def queries(self, views: List[Tensor]) -> List[Tensor]:
        """The L2-normalised queries of ``views``, each (N, d)."""
        views = views[:self.head.num_queries]
        if self.head.joint:
            (_, z), = encode(self.backbone, self.neck, [torch.cat(views)])
            return self.head.queries([*z.chunk(len(views))])
        encoded = encode(self.backbone, self.neck, views)
        return self.head.queries([z for _, z in encoded])

    def end(self, batch: Batch) -> None:
        """Remember the keys."""
        self.head.end(batch.targets['keys'])


def gradient_norms(losses: Dict[str, Tensor],
                   queries: List[Tensor]) -> Dict[str, Tensor]:
    """The norm of the gradient of each loss with respect to the queries."""
    norms = {}
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, queries, retain_graph=True)
        norms[name.replace('loss', 'grad')] = torch.stack(
            torch._foreach_norm(gradients)).norm()
    return norms


def check_exact_channels(network: nn.Module) -> None:
    """Refuse widths at which a number of channels would be rounded."""
    for norm in network.modules():
        if not isinstance(norm, SwitchableBatchNorm):
            continue
        for subnet in norm.subnets:
            own = norm.of(subnet).num_features
            exact = subnet.width * norm.num_features
            if norm.slice_channels and own != exact:
                raise ValueError(
                    f'At {subnet} a layer of {norm.num_features} channels '
                    f'would have {exact:g} and is rounded to {own}. Name '
                    'widths that divide the channels of the network in '
                    'multiples of its divisor.')
