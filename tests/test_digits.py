# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from us3l_mm.datasets import RenderDigit, RenderedDigits
from us3l_mm.models.augmentation.draws import uniforms


def load(**kwargs):
    data = RenderedDigits(pipeline=[], **kwargs)
    samples = [data.get_data_info(i) for i in range(len(data))]
    return (np.stack([s['img'] for s in samples]),
            np.array([s['gt_label'] for s in samples]))


def test_images_are_a_function_of_the_arguments():
    images, labels = load(split='train', num_images=50)
    np.random.rand(3)  # no global state takes part
    again, _ = load(split='train', num_images=50)
    other, same_labels = load(split='train', num_images=50, seed=1)
    assert images.shape == (50, 32, 32, 3) and images.dtype == np.uint8
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)
    assert np.array_equal(labels, same_labels)
    assert (images == images[..., :1]).all()


def test_no_digit_is_in_both_splits():
    parts = [load(split=split, render=False) for split in ('train', 'test')]
    digits = load_digits().data
    assert sum(len(images) for images, _ in parts) == len(digits) == 1797
    train, test = ({image.tobytes() for image in images}
                   for images, _ in parts)
    assert not train & test
    counts = np.bincount(parts[1][1])
    assert len(counts) == 10 and counts.min() > 20


def test_the_whole_digit_is_visible():
    renderer = RenderDigit(digit_size=(12, 24), lean=0, shear=0,
                           brightness=(1, 1))
    digit = np.full((8, 8), 255, np.uint8)
    for seed in range(50):
        image = renderer.render(digit, np.random.default_rng(seed))[..., 0]
        rows, columns = np.nonzero(image > 127)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 11 <= height <= 25 and abs(height - width) <= 1
        # All of the square, its corners rounded off by the interpolation.
        assert (image > 127).sum() > height * width - height - width


class Numbers:
    """Gives seven uniform numbers to the transform."""

    def __init__(self, numbers):
        self.numbers = numbers

    def uniform(self, low=0., high=1., size=None):
        count = size or len(low)
        given, self.numbers = np.split(self.numbers, [count])
        return low + (np.asarray(high) - low) * given


def test_digits_that_are_rendered_together_are_those_of_the_transform():
    renderer = RenderDigit(brightness=(0.3, 1.0), digit_size=(8, 30))
    digits = load_digits().images[:60]
    digits = (digits * (255 / 16)).astype(np.uint8)
    batched = renderer.batched_form()
    numbers = uniforms(np.arange(60), batched.num_draws)
    drawn = batched.draw(numbers, np.full((60, 2), 8))
    rows = torch.from_numpy(digits).float()[:, :, None]
    images = batched.apply(rows, *drawn)
    assert batched.size((8, 8)) == (32, 32)
    assert images.shape == (60, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 2])
    for digit, row, image in zip(digits, numbers, images[:, 0].numpy()):
        theirs = renderer.render(digit, Numbers(row))[..., 0]
        # OpenCV rounds places to 1/32 of a pixel, where a neighbour may be
        # 255 levels away, and the result.
        off = np.abs(image - theirs)
        assert off.max() < 9 and off.mean() < 0.8


@pytest.mark.parametrize('kwargs, message', [
    (dict(split='val'), "one of .*train.*, got 'val'"),
    (dict(split='train', num_images=0), 'at least 1, got 0'),
    (dict(split='train', rendering=dict(digit_size=(12, 40))),
     r'within the image of 32 pixels, got \(12, 40\)'),
    (dict(split='train', rendering=dict(brightness=(0, 2))), r'got \(0, 2\)'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RenderedDigits(pipeline=[], **kwargs)
