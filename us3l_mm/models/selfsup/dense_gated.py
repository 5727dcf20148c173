# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import random
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from torch import Tensor, nn

from us3l_mm.models.layers import Gating, at
from us3l_mm.registry import MODELS
from .multi_pass import MultiPassSSL, spread
from .passes import Batch
from .plan import Pass, Plan

DENSE, GATED = 'dense', 'gated'


@MODELS.register_module()
class DenseGatedSSL(MultiPassSSL):
    """Two encoders from one run: a dense network, and a gated one within it.

    One view of an image goes through the gated network, the other one through
    the dense network; a self-supervised loss between their embeddings trains
    the shared weights from scratch, and a compute budget the gates. There is
    one backward pass and one optimizer step a batch. Source: Unifying
    Synergies between Self-supervised Learning and Dynamic Computation,
    `arXiv 2301.09164 <https://arxiv.org/abs/2301.09164>`_.

    Args:
        backbone (dict or nn.Module): A
            :class:`~us3l_mm.models.backbones.GatedResNet`.
        neck (dict): The projector, whose norms both modes share.
        head (dict or nn.Module): The loss between the views,
            :class:`~us3l_mm.models.heads.PairHead`.
        budget (dict, optional): Arguments of
            :class:`~us3l_mm.models.losses.ComputeBudget`. Its losses are
            added up over the gated views, the log is that of the last one.
            Defaults to None, for two dense views.
        modes (sequence[str]): The modes of the two views. Two dense ones are
            the base method alone, two gated ones train a gated network alone.
            Defaults to ('gated', 'dense').
        swap_views (bool): Whether the modes of the two views are swapped in a
            random half of the iterations, the same on all processes. Defaults
            to False.
        gate_warmup (float): The share of training, in [0, 1), in which all
            views are dense. Defaults to 0.0; the authors' option is 0.02.
        separate (bool): Whether dense views go through a network and a
            projector of their own, in place of the dense mode. Defaults to
            False.
        rotation (dict, optional): Arguments of
            :class:`~us3l_mm.models.heads.RotationHead`. Dense views are
            rotated, and their features tell by how much; {} for its defaults.
            Defaults to None: no such task.
        seed (int): Of ``swap_views``. Defaults to 0.
        **kwargs: Arguments of :class:`MultiPassSSL`.
    """

    against_collapse = (
        'a loss that forbids it, such as VICRegLoss with a larger weight of '
        'the variance, BarlowTwinsLoss or InfoNCELoss; for a loss of '
        'distances alone a predictor with a batch norm; a smaller learning '
        'rate')

    def __init__(self, backbone: Union[dict, nn.Module], neck: dict,
                 head: Union[dict, nn.Module], budget: Optional[dict] = None,
                 modes: Sequence[str] = (GATED,
                                         DENSE), swap_views: bool = False,
                 gate_warmup: float = 0.0, separate: bool = False,
                 rotation: Optional[dict] = None, seed: int = 0, **kwargs):
        if len(modes) != self.num_views or not {*modes} <= {DENSE, GATED}:
            raise ValueError(f'modes are those of two views, {DENSE!r} or '
                             f'{GATED!r} each, got {modes!r}.')
        if (GATED in modes) != (budget is not None):
            raise ValueError(
                f'modes={tuple(modes)} with budget={budget!r}: a gated view '
                'needs a compute budget, budget=dict(target=0.3), and dense '
                'views have none.')
        if separate and not isinstance(backbone, dict):
            raise TypeError('separate=True builds the backbone twice, from a '
                            f'config, got a {type(backbone).__name__}.')
        if rotation is not None and DENSE not in modes:
            raise ValueError(
                'The rotation task is that of dense views, and there are none '
                f'in modes={tuple(modes)}. Leave out rotation.')
        if not 0.0 <= gate_warmup < 1.0:
            raise ValueError('gate_warmup is a share of training in [0, 1), '
                             f'got {gate_warmup}.')
        super().__init__(backbone, neck, head, **kwargs)
        if not hasattr(self.backbone, 'forward_gated'):
            raise ValueError(
                f'{type(self.backbone).__name__} has no gates. Use '
                'us3l_mm.GatedResNet or us3l_mm.GatedResNet_CIFAR.')
        self.budget: Any = None
        if budget is not None:
            self.budget = MODELS.build(
                dict(type='us3l_mm.ComputeBudget', **budget))
        self.modes, self.swap_views = tuple(modes), swap_views
        self.gate_warmup, self.seed = gate_warmup, seed
        self.rotation: Any = None
        if rotation is not None:
            self.rotation = MODELS.build(
                dict(type='us3l_mm.RotationHead',
                     in_channels=self.backbone.feature_channels()[-1],
                     **rotation))
        self.dense_network: Any = None
        if separate:
            self.dense_network = nn.ModuleDict(
                dict(backbone=MODELS.build(backbone), neck=MODELS.build(
                    dict(neck, slice_in=False))))
            self.dense_network.backbone.drop_gates()
        # Gates and private norms wait for the mode that uses them.
        self.leaves_unused = (separate or gate_warmup > 0
                              or {*modes} != {DENSE, GATED})
        self.finish()

    def check_batch(self, size: int) -> None:
        """Raise ValueError for batches of one image, which have no variance.
        """
        if size < 2:
            raise ValueError(
                'The gates and the loss need statistics of a batch, got '
                f'batches of {size} image; set train_dataloader.batch_size to '
                '2 or more.')

    def check_image_size(self, size: Tuple[int, int]) -> None:
        """Raise ValueError if no masks meet the budget at this size."""
        if self.budget is not None:
            self.backbone.compute(size).check_target(self.budget.target)

    def begin(self, batch: Batch) -> None:
        """Refuse a plan of other passes than one of the dense network."""
        trained = [pass_.subnet for pass_ in batch.plan.passes]
        if len(trained) != 1 or not trained[0].is_full:
            raise ValueError(
                'Dense and gated are trained in one pass, got a plan of '
                f'{[str(subnet) for subnet in trained]}. Set default_hooks.'
                "sampler=dict(type='us3l_mm.DynamicSamplerHook', "
                'widths=[1.0]); the modes of the views are model.modes.')

    def loss(self, batch: Batch, pass_: Pass) -> Dict[str, dict]:
        """The losses of the only pass: each view in its mode."""
        losses: Dict[str, Tensor] = {}
        log: Dict[str, Any] = {}
        embeddings = []
        for view, mode in zip(batch.views, self.modes_of(batch.plan)):
            if self.rotation is not None and mode == DENSE:
                view, turns = self.rotation.rotate(view)
            features, z, gatings = self.encode(view, mode)
            embeddings.append(z)
            log[f'spread_{mode}'] = spread(z)
            terms = {}
            if mode == GATED:
                terms, entries = self.budget(
                    gatings, self.backbone.compute(tuple(view.shape[-2:])),
                    batch.plan.progress - self.gate_warmup)
                log.update(entries)
            elif self.rotation is not None:
                terms = dict(loss_rotation=self.rotation.loss(features, turns))
            for name, term in terms.items():
                losses[name] = losses.get(name, 0) + term
        losses['loss_ssl'] = self.head.loss(*embeddings)
        return dict(losses=losses, log=log)

    def modes_of(self, plan: Plan) -> Tuple[str, ...]:
        """The modes of the two views in an iteration."""
        if plan.progress < self.gate_warmup:
            return (DENSE, ) * self.num_views
        # A function of the iteration alone, equal on all processes.
        draw = random.Random(f'{self.seed}/{plan.progress}')
        if self.swap_views and draw.random() < 0.5:
            return self.modes[::-1]
        return self.modes

    def encode(self, view: Tensor,
               mode: str) -> Tuple[Tensor, Tensor, List[Gating]]:
        """The map (N, c, H, W) and embedding (N, d) of a view, and its masks.
        """
        network: Any = self
        if mode == DENSE and self.dense_network is not None:
            network = self.dense_network
        with at(network.backbone, mode):
            maps, gatings = network.backbone.forward_gated(view)
        return maps[-1], network.neck(maps[-1:])[0], gatings
