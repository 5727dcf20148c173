# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence, Tuple, Union

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.models.layers import (SubnetLike, at, check_width_range,
                                   subnet_list)
from us3l_mm.models.selfsup import Plan, Sandwich
from us3l_mm.models.selfsup.reweighting import pass_weights
from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class DynamicSamplerHook(Hook):
    """Choose the sub-networks that each iteration trains.

    It puts a :class:`~us3l_mm.models.selfsup.Plan` into the batch. By default
    that is the sandwich rule with dynamic sampling
    (:class:`~us3l_mm.models.selfsup.Sandwich`). Widths are a pure function of
    the seed and the iteration, so all processes agree and a resumed run draws
    the same. Source: US3L, arXiv 2303.06870, dynamic sampling.

    Args:
        width_range (tuple[float, float], optional): Lowest and highest width.
            Defaults to the ``width_range`` of the backbone.
        num_samples (int): Number of widths per iteration, at least 2.
            Defaults to 3.
        num_stages (int): Number of stages; 1 samples the whole range from the
            start (sandwich without dynamic sampling). Defaults to 4.
        widths (sequence, optional): A fixed list of widths, or of other
            sub-networks, to train in every iteration instead; one width
            trains that network alone. Defaults to None.
        grid (float, optional): Random widths are multiples of it, so that
            autotuners and compilers meet few shapes; None draws from the
            whole interval, as the reference does. Defaults to 1/32.
        seed (int): Seed of the random widths. Defaults to 0.
        weights (str or sequence[float]): The weights of ``widths``, widest
            first, or a name in
            :mod:`us3l_mm.models.selfsup.reweighting`, such as SlimCLR's
            'full plus all'. Defaults to 'equal'.
        slow_start (float): The share of training, in [0, 1), in which the
            widest of ``widths`` trains alone, with a weight of 1. Source:
            SlimCLR, arXiv 2209.15525. Defaults to 0.0.
        slow_start_epochs (float, optional): The same in epochs, which may be
            fractional. Defaults to None.
    """

    priority = 'VERY_HIGH'

    def __init__(self, width_range: Optional[Tuple[float, float]] = None,
                 num_samples: int = 3, num_stages: int = 4,
                 widths: Optional[Sequence[SubnetLike]] = None,
                 grid: Optional[float] = 1 / 32, seed: int = 0, weights: Union[
                     str, Sequence[float]] = 'equal', slow_start: float = 0.0,
                 slow_start_epochs: Optional[float] = None):
        for name, value, least in (('num_samples', num_samples, 2),
                                   ('num_stages', num_stages, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f'{name} is an integer of at least {least}, '
                                 f'got {value!r}.')
        if grid is not None and not 0.0 < grid <= 1.0:
            raise ValueError(f'grid is in (0, 1] or None, got {grid!r}.')
        if widths is not None and width_range is not None:
            raise ValueError(
                f'widths={list(widths)} trains these and no others, got '
                f'width_range={width_range} beside it; give one of them.')
        if widths is None and (weights != 'equal' or slow_start
                               or slow_start_epochs is not None):
            raise ValueError(
                'weights, slow_start and slow_start_epochs are those of a '
                'fixed list; give widths=[1.0, ...] too.')
        if not 0.0 <= slow_start < 1.0:
            raise ValueError('slow_start is a share of training in [0, 1), '
                             f'got {slow_start!r}.')
        if slow_start_epochs is not None and (slow_start
                                              or not slow_start_epochs >= 0):
            raise ValueError(
                'slow_start_epochs is a number of epochs of at least 0, in '
                f'place of slow_start, got {slow_start_epochs!r} and '
                f'slow_start={slow_start!r}.')
        self.widths = None if widths is None else subnet_list(widths)
        self.weights = pass_weights(self.widths or [], weights)
        self.slow_start, self.slow_start_epochs = slow_start, slow_start_epochs
        self.width_range = width_range and check_width_range(width_range)
        self._options = num_samples, num_stages, grid, seed

    def plan(self, iteration: int, max_iterations: int,
             width_range: Tuple[float, float]) -> Plan:
        """The plan of one iteration.

        Args:
            iteration (int): The iteration, counted from 0.
            max_iterations (int): Number of iterations of training.
            width_range (tuple[float, float]): Lowest and highest width of the
                backbone.
        """
        if self.widths is not None:
            progress = iteration / max(max_iterations, 1)
            if progress < self.slow_start:
                return Plan.fixed(self.widths[:1], progress)
            return Plan.fixed(self.widths, progress, self.weights,
                              stage=int(self.slow_start > 0))
        return self._sandwich(width_range)(iteration, max_iterations)

    def _sandwich(self, width_range: Tuple[float, float]) -> Sandwich:
        return Sandwich(self.width_range or width_range, *self._options)

    def count_widths(self, width_range: Tuple[float, float]) -> Optional[int]:
        """The number of widths in training; None if there is no limit."""
        if self.widths is not None:
            return len(self.widths)
        return self._sandwich(width_range).count_widths()

    def before_train(self, runner: Runner) -> None:
        """Refuse sub-networks that the network cannot run."""
        if self.slow_start_epochs is not None:
            self.slow_start = (self.slow_start_epochs *
                               len(runner.train_dataloader) / runner.max_iters)
            if not self.slow_start < 1:
                raise ValueError(
                    f'slow_start_epochs={self.slow_start_epochs} is not '
                    'before the end of training, so that no other sub-network '
                    'would be trained.')
        algorithm = get_ori_model(runner.model)
        has = algorithm.backbone.width_range

        # Networks of switchable norms have some widths only; a random one
        # would first be drawn when a quarter of training is over.
        last = self.plan(runner.max_iters - 1, runner.max_iters, has)
        trained = [pass_.subnet for pass_ in last.passes]
        for subnet in (*(self.width_range or ()), *trained):
            with at(algorithm, subnet):
                pass
        distils_maps = getattr(algorithm, 'feature_distiller', None)
        if distils_maps is not None and last.base.subnet.width != has[1]:
            raise ValueError(
                'feature_distiller matches the maps of the whole network, and '
                f'the widest sub-network in training is {last.base.subnet} of '
                f'{has[1]:g}. Leave it out, or train the full width too.')

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Put the plan of the iteration into the batch."""
        width_range = get_ori_model(runner.model).backbone.width_range
        assert data_batch is not None  # the Runner always passes it
        data_batch['plan'] = self.plan(runner.iter, runner.max_iters,
                                       width_range)
