# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from copy import deepcopy
from typing import Any, Dict, List, Optional, Union

from torch import nn

from us3l_mm.models.heads import FeatureDistiller
from us3l_mm.registry import MODELS
from .multi_pass import MultiPassSSL, encode, spread
from .passes import Batch
from .plan import Pass
from .teacher import Teacher

TEACHER, ONLINE = 'teacher', 'online'
CHOICES = dict(base_from=(TEACHER, ONLINE), distill_from=(TEACHER, ONLINE,
                                                          None),
               share_predictor=(False, True, 'at the start'))


@MODELS.register_module()
class US3LAlgorithm(MultiPassSSL):
    """Universally slimmable self-supervised learning.

    The widest network learns by a base loss against a momentum teacher
    (guideline 1). Each narrower one matches the same full-width targets of
    the teacher (guideline 2) through a head of its own (guideline 3). Source:
    US3L, `arXiv 2303.06870 <https://arxiv.org/abs/2303.06870>`_, section 3.

    Args:
        backbone (dict or nn.Module): A slimmable backbone.
        neck (dict): The projector, :class:`SlimmableProjector`.
        head (dict or nn.Module): Predictor and loss of the base pass.
        distill_head (dict, optional): Predictor and loss of the distillation
            passes. Defaults to None, for ``distill_from=None``.
        base_from (str): Targets of the base pass: 'teacher', or 'online' for
            the network's own output without gradient, as in SimSiam. Defaults
            to 'teacher'.
        distill_from (str, optional): Targets of the distillation passes:
            'teacher'; 'online', the output of the base pass; or None for no
            distillation, where every width has the base loss with targets of
            its own width (US-Net). Defaults to 'teacher'.
        share_predictor (bool or str): Whether distillation goes through the
            predictor of the base pass, against guideline 3; 'at the start'
            through its own, which begins as a copy. Defaults to False.
        teacher (dict, optional): Arguments of :class:`Teacher`. Defaults to
            None: a momentum of 0.01, which is a paper's m = 0.99.
        feature_distiller (dict, optional): Arguments of
            :meth:`FeatureDistiller.of`. Defaults to None.
        **kwargs: Arguments of :class:`MultiPassSSL`.
    """

    against_collapse = (
        'a base loss of relative distances (InfoNCELoss, MoCoV3Loss), or an '
        "absolute one against a momentum teacher (base_from='teacher'); "
        "distillation from the teacher (distill_from='teacher') through a "
        'head of its own (share_predictor=False); a batch norm in the '
        'predictor; a smaller teacher.momentum or learning rate')

    def __init__(self, backbone: Union[dict, nn.Module], neck: dict,
                 head: Union[dict, nn.Module],
                 distill_head: Optional[dict] = None, base_from: str = TEACHER,
                 distill_from: Optional[str] = TEACHER, share_predictor: Union[
                     bool, str] = False, teacher: Optional[dict] = None,
                 feature_distiller: Optional[dict] = None, **kwargs):
        check_sources(distill_head, feature_distiller, base_from, distill_from,
                      share_predictor)
        super().__init__(backbone, neck, head, **kwargs)
        self.base_from, self.distill_from = base_from, distill_from
        if distill_head is not None and share_predictor:
            distill_head = dict(distill_head, predictor=self.head.predictor)
        self.distill_head: Any = distill_head and MODELS.build(distill_head)
        if share_predictor == 'at the start':
            self.distill_head = deepcopy(self.distill_head)
        self.feature_distiller: Any = None
        if feature_distiller is not None:  # it may have no arguments
            self.feature_distiller = FeatureDistiller.of(
                self.backbone, **feature_distiller)
        self.teacher: Optional[Teacher] = None
        if TEACHER in (base_from, distill_from):
            self.teacher = Teacher(self.backbone, self.neck, **teacher or {})
        self.finish()

    def begin(self, batch: Batch) -> None:
        """Update the teacher and run it, before the student moves."""
        if self.teacher is None:
            return
        if batch.student_moved:
            self.teacher.update(batch.plan.progress)
        for pass_ in batch.plan.passes:
            if self.base_from == TEACHER and (pass_.role == 'base'
                                              or self.distill_from is None):
                batch.targets[pass_] = self.keep(
                    self.teacher(batch.views, pass_.subnet))
        if self.distill_from == TEACHER:
            full = batch.plan.base
            batch.targets[TEACHER] = batch.targets.get(full) or self.keep(
                self.teacher(batch.views, full.subnet))

    def loss(self, batch: Batch, pass_: Pass) -> Dict[str, dict]:
        """The losses of one pass, at the width that the layers are set to."""
        encoded = encode(self.backbone, self.neck, batch.views)
        (maps1, z1), (maps2, z2) = encoded
        online = self.keep(encoded)
        distils = pass_.role == 'distil' and self.distill_from is not None
        if distils:
            # Guideline 2: all widths match the same full-width targets.
            targets = {**batch.targets, **batch.carried}[self.distill_from]
            # Guideline 3: not through the head of the base loss.
            head, name = self.distill_head, 'distill'
        else:
            # Guideline 1: the teacher's targets change slowly.
            targets = batch.targets.get(pass_, online)
            head, name = self.head, 'base'
        (target_maps1, t1), (target_maps2, t2) = targets
        suffix = '' if pass_.role == 'base' else f'_{pass_.name}'
        # Crosswise: view 1 is matched to the target of view 2, and back.
        losses = {
            f'loss_{name}{suffix}': head.loss(z1, t2) + head.loss(z2, t1)}
        if distils and self.feature_distiller is not None:
            match = self.feature_distiller.loss
            losses[f'loss_feature{suffix}'] = 0.5 * (
                match(maps1, target_maps2) + match(maps2, target_maps1))
        log = {f'spread_{pass_.name}': spread(z1)}
        if pass_ in batch.targets and pass_.role == 'base':
            log['spread_teacher'] = spread(t1)
        carried = {ONLINE: online} if pass_.role == 'base' else {}
        return dict(losses=losses, log=log, carried=carried)

    def keep(self, encoded: List[tuple]) -> List[tuple]:
        """Targets: the embeddings, and the maps if they are distilled."""
        return [(self.feature_distiller and [m.detach()
                                             for m in maps], z.detach())
                for maps, z in encoded]


def check_sources(distill_head: Optional[dict],
                  feature_distiller: Optional[dict], *choices) -> None:
    """Refuse targets and heads that do not fit each other."""
    for (name, allowed), value in zip(CHOICES.items(), choices):
        if value not in allowed:
            raise ValueError(f'{name} is one of {allowed}, got {value!r}.')
    _, distill_from, shares = choices
    if (distill_head is None) != (distill_from is None):
        raise ValueError(
            'distill_head is the head of the distillation passes, which '
            f'distill_from={distill_from!r} ' +
            ('needs; it is missing.' if distill_head is
             None else 'leaves out; remove it.'))
    if shares and (distill_head is None or 'predictor' in distill_head):
        raise ValueError(
            f'share_predictor={shares!r} distils through the predictor of the '
            'base pass, or a copy: give a distill_head without a predictor, '
            f'got {distill_head!r}.')
    if feature_distiller is not None and distill_from is None:
        raise ValueError('feature_distiller needs targets: set distill_from, '
                         'got None.')
