# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A training step needs the memory of its largest pass, not of all."""
import naive
import pytest
import torch
from algorithms import sgd, small_algorithm, train_step
from saved_bytes import SavedBytes

from us3l_mm.models import Pass, Plan, Subnet, at_width
from us3l_mm.models.selfsup import Batch

# So many that maps, and not the kernels of the widths, take the memory.
IMAGES = 64


def peak_of_a_step(widths, update_mode, **options):
    algorithm = small_algorithm(update_mode=update_mode, **options)
    wrapper = sgd(algorithm, lr=0.01, momentum=0.0, regularise=True)
    data, _ = naive.batch(images=IMAGES)
    counter = SavedBytes(algorithm)
    with torch.autograd.graph.saved_tensors_hooks(
            counter.pack, lambda holder: holder.tensor):
        log = train_step(algorithm, data, wrapper, widths)
    assert counter.alive == 0, 'a graph outlives the step'
    assert not any(getattr(v, 'requires_grad', False) for v in log.values())
    return counter.peak


@pytest.mark.parametrize('update_mode, options',
                         [('sequential', dict()), ('accumulate', dict()),
                          ('accumulate', dict(distill_from='online')),
                          ('sequential', dict(distill_from=None))], ids=str)
def test_three_widths_need_no_more_than_the_full_one(update_mode, options):
    alone = peak_of_a_step([1.0], update_mode, **options)
    assert alone > 5 * naive.batch(
        images=IMAGES)[1][0].nbytes  # a real graph was seen
    sandwich = peak_of_a_step([1.0, 0.6, 0.25], update_mode, **options)
    assert sandwich <= 1.01 * alone


def test_the_count_notices_graphs_that_are_kept():
    algorithm, (_, views) = small_algorithm(), naive.batch(images=IMAGES)
    targets = [(None, torch.randn(IMAGES, 12).double())] * 2
    pass_ = Pass(Subnet(), 'max')
    batch = Batch(views, Plan((pass_, )), targets={pass_: targets})
    counter, kept, alive = SavedBytes(algorithm), [], []
    with torch.autograd.graph.saved_tensors_hooks(
            counter.pack, lambda holder: holder.tensor):
        for width in (1.0, 1.0, 0.5):
            with at_width(algorithm, width):
                kept.append(algorithm(batch, mode='loss', pass_=pass_))
            alive.append(counter.alive)
    assert alive[1] == pytest.approx(2 * alive[0], rel=0.01)
    assert 2.3 * alive[0] < alive[2] == counter.peak < 2.7 * alive[0]
    kept.clear()
    assert counter.alive == 0
