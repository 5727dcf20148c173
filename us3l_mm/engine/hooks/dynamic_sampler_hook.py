# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence, Tuple

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.utils import get_ori_model

from us3l_mm.engine.sampling import lowest_width, sandwich, stage_of
from us3l_mm.models.layers import at_width, check_width, check_width_range
from us3l_mm.models.selfsup import Plan
from us3l_mm.registry import HOOKS


@HOOKS.register_module()
class DynamicSamplerHook(Hook):
    """Say before each iteration which widths it trains.

    By default the sandwich rule (the full width, random ones, the smallest
    one) with dynamic sampling: training has four equal stages, the first
    trains the full width alone, the others lower the smallest width evenly to
    the end of the range. Widths are a pure function of the seed and the
    iteration, so all processes agree and a resumed run draws the same. Source:
    US3L, arXiv 2303.06870, dynamic sampling; sandwich rule: 1903.05134.

    Args:
        width_range (tuple[float, float], optional): Lowest and highest width.
            Defaults to the ``width_range`` of the backbone.
        num_samples (int): Widths per iteration, at least 2. Defaults to 3.
        num_stages (int): 1 samples the whole range from the start (sandwich
            without dynamic sampling). Defaults to 4.
        widths (sequence[float], optional): A fixed list to train in every
            iteration instead; one width trains that network alone. Defaults
            to None.
        grid (float, optional): Random widths are multiples of it, so that
            autotuners and compilers meet few shapes; None draws from the
            whole interval, as the reference does. Defaults to 1/32.
        seed (int): Of the random widths. Defaults to 0.
    """

    priority = 'VERY_HIGH'

    def __init__(self, width_range: Optional[Tuple[float, float]] = None,
                 num_samples: int = 3, num_stages: int = 4,
                 widths: Optional[Sequence[float]] = None,
                 grid: Optional[float] = 1 / 32, seed: int = 0):
        for name, value, least in (('num_samples', num_samples, 2),
                                   ('num_stages', num_stages, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f'{name} is an integer of at least {least}, '
                                 f'got {value!r}.')
        if grid is not None and not 0.0 < grid <= 1.0:
            raise ValueError(f'grid is in (0, 1] or None, got {grid!r}.')
        if widths is not None:
            if not widths:
                raise ValueError('widths is a list of at least one width.')
            if width_range is not None:
                raise ValueError(
                    f'widths={list(widths)} trains these and no others, got '
                    f'width_range={width_range} beside it; give one of them.')
            widths = sorted({check_width(w) for w in widths}, reverse=True)
        self.width_range = (None if width_range is None else
                            check_width_range(width_range))
        self.num_samples, self.num_stages = num_samples, num_stages
        self.widths, self.grid, self.seed = widths, grid, seed

    def plan(self, iteration: int, max_iterations: int,
             width_range: Tuple[float, float]) -> Plan:
        """The plan of one iteration."""
        progress = iteration / max(max_iterations, 1)
        if self.widths is not None:
            return Plan.of(self.widths, progress=progress)
        stage = stage_of(iteration, max_iterations, self.num_stages)
        lowest = lowest_width(stage, width_range, self.num_stages)
        return Plan.of(
            sandwich(lowest, width_range[1], self.num_samples, self.seed,
                     iteration, self.grid), stage, progress)

    def count_widths(self, width_range: Tuple[float, float]) -> Optional[int]:
        """How many widths training can meet; None for any number."""
        if self.widths is not None:
            return len(self.widths)
        low, high = self.width_range or width_range
        if self.num_samples > 2 and self.grid is None:
            return None
        on_grid = (int((high - low) / self.grid +
                       1e-6) if self.num_samples > 2 else 0)
        return on_grid + self.num_stages + 1  # the ends may lie off the grid

    def before_train(self, runner: Runner) -> None:
        """Refuse widths that the network cannot run at."""
        algorithm = get_ori_model(runner.model)
        has = algorithm.backbone.width_range
        for width in (*(self.widths or ()), *(self.width_range or ())):
            check_width(width, has)
        # Networks of switchable norms have some widths only; a random one
        # would first be drawn when a quarter of training is over.
        last = self.plan(runner.max_iters - 1, runner.max_iters,
                         self.width_range or has)
        for subnet in last.subnets:
            with at_width(algorithm, subnet.width):
                pass
        distils_maps = getattr(algorithm, 'feature_distiller', None)
        if distils_maps is not None and last.base.width != has[1]:
            raise ValueError(
                'feature_distill matches the maps of the whole network, and '
                f'the widest sub-network in training is {last.base.width:g} '
                f'of {has[1]:g}. Leave it out, or train the full width too.')

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Set the plan of the iteration on the algorithm."""
        algorithm = get_ori_model(runner.model)
        algorithm.plan = self.plan(
            runner.iter, runner.max_iters, self.width_range
            or algorithm.backbone.width_range)
