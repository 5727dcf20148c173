# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Views of whole batches: the parameters and pixels of the transforms."""
import colorsys
import itertools
import random
from collections import Counter

import mmcv
import numpy as np
import pytest
import torch
from fake_device import DEVICE, transfers
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from mmpretrain.registry import TRANSFORMS
from PIL import Image, ImageFilter
from scipy.stats import chisquare, ks_2samp
from test_configs import ROOT

from us3l_mm.datasets.seeded_augmentation import SampleIndex
from us3l_mm.models import BatchAugmentation
from us3l_mm.models.augmentation.batch_augmentation import BatchedViews
from us3l_mm.models.augmentation.blur import Blur
from us3l_mm.models.augmentation.colour_jitter import (HUE, Jitter, blend,
                                                       turn_hue)
from us3l_mm.models.augmentation.draws import uniforms
from us3l_mm.models.augmentation.resampling import Resampling
from us3l_mm.models.augmentation.tones import Grey, Solarise
from us3l_mm.models.augmentation.view import Sometimes, View
from us3l_mm.registry import MODELS

DATA = ROOT / 'configs/_base_/datasets'
CROP = dict(type='RandomResizedCrop', scale=(24, 17),
            crop_ratio_range=(.2, 1.))
JITTER = dict(type='ColorJitter', brightness=.4, contrast=.4, saturation=.2,
              hue=.1, backend='cv2')


@pytest.fixture(autouse=True)
def _scope():
    random.seed(0), np.random.seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def build(cfg, **changes):
    return TRANSFORMS.build(dict(cfg, **changes))


def photos(count=6, height=37, width=53) -> np.ndarray:
    """Images of all colours with soft and hard edges, (N, H, W, 3)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    images = np.stack([
        mmcv.imresize(each, (width, height)) for each in coarse])
    images[:, :, width // 2:] = 255 - images[:, :, width // 2:]
    return images


def planes(images, dtype=torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(
        0, 3, 1, 2).to(dtype).contiguous()


def pixels(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).double().numpy()


def draw(operation, count, seed=0, chosen=None):
    numbers = uniforms(np.arange(count) + (seed << 32), operation.num_draws)
    return operation.draw(numbers,
                          np.ones(count, bool) if chosen is None else chosen)


# Parameters ------------------------------------------------------------------


def splitmix64(state):
    """The generator of the paper, in python's integers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        yield z ^ z >> 31


def test_random_numbers_are_those_of_splitmix64():
    # A published value (Rosetta Code, Pseudo-random numbers/Splitmix64)
    assert next(splitmix64(1234567)) == 6457827717110365317
    seeds = [0, 1, 2**32 - 1, 2**64 - 1]
    for seed, row in zip(seeds, uniforms(np.array(seeds, np.uint64), 50)):
        numbers = splitmix64(next(splitmix64(seed)))
        assert row.tolist() == [(next(numbers) >> 11) / 2**53
                                for _ in range(50)]


def test_random_numbers_of_successive_seeds_are_independent():
    numbers = uniforms(np.arange(20000), 8)
    assert 0 <= numbers.min() and numbers.max() < 1
    for axis in (0, 1):
        assert np.abs(np.diff(numbers, axis=axis).mean()) < 5e-3
    correlation = np.corrcoef(numbers.T) - np.eye(8)
    assert np.abs(correlation).max() < 5 / 20000**.5
    lagged = np.corrcoef(numbers[1:].ravel(), numbers[:-1].ravel())[0, 1]
    assert abs(lagged) < 5 / numbers.size**.5
    for column in numbers.T:
        assert chisquare(np.histogram(column, 64, (0, 1))[0]).pvalue > 1e-4


class Attempts:
    """Gives the numbers of one image to a transform, four an attempt."""

    def __init__(self, monkeypatch, numbers):
        self.numbers, self.attempt, self.at = numbers, -1, 0
        monkeypatch.setattr(np.random, 'uniform', self.uniform)
        monkeypatch.setattr(np.random, 'randint', self.randint)

    def uniform(self, low, high):
        if self.at in (0, 2):
            self.attempt, self.at = self.attempt + 1, 0
        self.at += 1
        number = self.numbers[4 * self.attempt + self.at - 1]
        return low + (high - low) * number

    def randint(self, low, high):
        self.at += 1
        number = self.numbers[4 * self.attempt + self.at - 1]
        return low + int(number * (high - low))


@pytest.mark.parametrize('changes', [{},
                                     dict(max_attempts=2),
                                     dict(crop_ratio_range=(.8, 1.)),
                                     dict(max_attempts=0),
                                     dict(aspect_ratio_range=(.5, .6))])
@pytest.mark.parametrize('size', [(32, 32), (37, 53), (9, 80), (80, 9),
                                  (1, 1)])
def test_crops_are_those_of_the_transform(changes, size, monkeypatch):
    """The same, attempt by attempt, for the same random numbers."""
    crop = build(CROP, **changes)
    resampling = Resampling(crop, [])
    numbers = uniforms(np.arange(200), resampling.num_draws)
    boxes, flips = resampling.draw(numbers, np.full((200, 2), size))
    assert not flips.any()
    image = np.empty(size)
    for box, row in zip(boxes, numbers):
        with monkeypatch.context() as patch:
            Attempts(patch, row)
            assert box.tolist() == [*crop.rand_crop_params(image)]


@pytest.mark.parametrize('arguments', [
    dict(prob=.5),
    dict(prob=.5, direction=['horizontal', 'vertical', 'diagonal']),
    dict(prob=[.25, .3], direction=['horizontal', 'vertical'])])
def test_flips_have_the_shares_of_the_transform(arguments):
    flip = build(dict(type='RandomFlip', **arguments))
    resampling = Resampling(None, [flip])
    count = 20000
    _, flips = resampling.draw(uniforms(np.arange(count), 1),
                               np.ones((count, 2), int))
    axes = dict(vertical=(True, False), horizontal=(False, True),
                diagonal=(True, True))
    theirs = Counter(
        axes.get(flip._choose_direction(), (False, False))
        for _ in range(count))
    ours = Counter(map(tuple, flips.tolist()))
    assert ours.keys() == theirs.keys()
    for each, number in ours.items():
        # Four standard deviations of the difference of two shares
        assert abs(number - theirs[each]) < 4 * (.5 * count)**.5


def test_colours_have_the_distribution_of_the_transform():
    jitter = build(JITTER, brightness=(.3, 1.2))
    count = 20000
    drawn = draw(Jitter(jitter), count)
    theirs = [jitter._rand_params() for _ in range(count)]
    for i in range(4):
        values = np.array([each[1 + i] for each in theirs])
        if i == HUE:
            values = np.array([int(255 * v) for v in values]) / 256
        assert ks_2samp(drawn['factors'][:, i], values).pvalue > 1e-3
    orders = Counter(map(tuple, drawn['order'].tolist()))
    assert sorted(orders) == [*itertools.permutations(range(4))]
    assert chisquare([*orders.values()]).pvalue > 1e-3
    # Order and factors are independent of each other.
    first = drawn['factors'][drawn['order'][:, 0] == 0, 0]
    assert ks_2samp(first, drawn['factors'][:, 0]).pvalue > 1e-3


def test_probabilities_and_radii_are_those_of_the_transforms():
    count = 20000
    blur = build(
        dict(type='GaussianBlur', magnitude_range=(.1, 2.),
             magnitude_std='inf', prob=.3))
    drawn = draw(Blur(blur), count)
    theirs = [blur.random_magnitude() for _ in range(count)]
    assert ks_2samp(drawn['magnitudes'], theirs).pvalue > 1e-3
    grey = build(dict(type='RandomGrayscale', prob=.2, keep_channels=True))
    solarise = build(dict(type='Solarize', thr=128, prob=.1))
    sometimes = Sometimes(
        build(dict(type='RandomApply', transforms=[JITTER], prob=.8)))
    for rows, share in ((drawn['rows'], .3), (draw(Grey(grey), count), .2),
                        (draw(Solarise(solarise), count)['rows'], .1), (draw(
                            sometimes, count)[0]['rows'], .8)):
        assert len(rows) / count == pytest.approx(
            share, abs=4 * (share * (1 - share) / count)**.5)
    # What is not chosen by RandomApply is not touched.
    assert not len(draw(Grey(grey), 50, chosen=np.zeros(50, bool)))


def test_views_of_an_image_are_independent():
    view = [dict(CROP), JITTER]
    views = BatchedViews(
        build(dict(type='MultiView', num_views=[1, 1], transforms=[view,
                                                                   view])))
    images = planes(photos(), torch.uint8)
    first, second = views(images, range(6))
    assert all(not torch.equal(a, b) for a, b in zip(first, second))
    again = views(images.flip(0), [*range(6)][::-1])
    for one, other in zip((first, second), again):
        # Sums of a product of matrices may be in another order.
        torch.testing.assert_close(one, other.flip(0), rtol=0, atol=1e-3)


# Pixels, given the parameters ------------------------------------------------


@pytest.mark.parametrize('backend, interpolation', [('cv2', 'bilinear'),
                                                    ('pillow', 'bilinear'),
                                                    ('pillow', 'bicubic')])
@pytest.mark.parametrize('scale', [(24, 17), (60, 70), (5, 40)])
def test_resized_crops_are_those_of_the_transform(backend, interpolation,
                                                  scale):
    crop = build(CROP, scale=scale, backend=backend,
                 interpolation=interpolation)
    images = photos(8)
    resampling = Resampling(crop, [])
    boxes, flips = resampling.draw(uniforms(np.arange(8), 40),
                                   np.full((8, 2), (37, 53)))
    lines = planes(images).transpose(1, 2)
    ours = pixels(resampling.apply(lines, boxes, flips))
    for image, box, mine in zip(images, boxes, ours):
        crop.rand_crop_params = lambda _, box=box: box
        theirs = crop(dict(img=image))['img']
        off = np.abs(mine - theirs)
        # They round to 8 bits, Pillow after each axis, with weights of 11
        # bits in OpenCV.
        assert off.max() <= 1.1 and off.mean() < 0.45
    flips[:] = [(i % 2, i // 2 % 2) for i in range(8)]
    for i, mine in enumerate(pixels(resampling.apply(lines, boxes, flips))):
        theirs = ours[i][::-1] if i % 2 else ours[i]
        theirs = theirs[:, ::-1] if i // 2 % 2 else theirs
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


def naive_hue(image, turn):
    """By python's own conversion, (H, W, 3) of blue, green and red."""
    result = np.empty(image.shape)
    for place in np.ndindex(*image.shape[:2]):
        b, g, r = image[place] / 255
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        r, g, b = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
        result[place] = 255 * b, 255 * g, 255 * r
    return result


def ours_of(function, image, *factors):
    made = planes(image[None])
    function(made, *(torch.tensor([each]) for each in factors))
    return pixels(made)[0]


@pytest.mark.parametrize('factor', [.6, .93, 1.4])
def test_blends_are_those_of_mmcv(factor):
    for image in photos(3):
        rest = 1 - factor
        off = ours_of(blend, image, factor, 0., 0.) - mmcv.adjust_brightness(
            image, factor)
        # They round down.
        assert -1e-3 < off.min() and off.max() < 1
        off = ours_of(blend, image, factor, rest, 0.) - mmcv.adjust_contrast(
            image, factor)
        # They also round the mean, by half of a level at most.
        assert np.abs(off - .5).max() < .5 + .5 * abs(rest) + .01
        off = ours_of(blend, image, factor, 0., rest) - mmcv.adjust_color(
            image, factor)
        # They round the grey image and the result.
        assert np.abs(off).max() < .5 + .5 * abs(rest) + .01


@pytest.mark.parametrize('turn', [-127, -25, -1, 0, 3, 26, 127])
def test_hues_are_those_of_the_definition_and_of_mmcv(turn):
    image = photos(1, 12, 16)[0]
    image[:3, :3] = [[[0] * 3, [255] * 3, [77] * 3],
                     [[0, 0, 9], [9, 0, 9], [0, 9, 0]],
                     [[255, 0, 0], [0, 255, 255], [200, 200, 199]]]
    for backend, hues in (('cv2', 256), ('pillow', 255)):
        ours = ours_of(turn_hue, image, turn / hues)
        np.testing.assert_allclose(ours, naive_hue(image, turn / hues),
                                   atol=1e-2)
        # It turns by whole steps, towards 0.
        theirs = mmcv.adjust_hue(image, (turn + np.sign(turn) / 4) / 255,
                                 backend)
        # Of 256 hues, a step is 6 levels of a saturated channel. They round
        # hue and saturation, Pillow to the next lower number.
        off = np.abs(ours - theirs)
        assert off.max() < 10 and off.mean() < 1


def test_all_orders_of_the_four_changes():
    """Against the definition, one image after the other in float64."""
    images = photos(26, 6, 7)
    jitter = Jitter(build(JITTER, hue=.5, contrast=.9))
    drawn = draw(jitter, 26)
    drawn['rows'] = np.array([*range(5, 26), 0, 2, 3])  # two are left alone
    drawn['order'] = np.array([*itertools.permutations(range(4))])
    drawn['factors'] = drawn['factors'][:24]
    ours = pixels(jitter.apply(planes(images), drawn))
    expected = images.astype(float)
    for row, order, factors in zip(drawn['rows'], drawn['order'],
                                   drawn['factors']):
        image = expected[row]
        for kind in order:
            grey = image @ [.114, .587, .299]
            factor = factors[kind]
            if kind == HUE:
                image = naive_hue(image, factor)
                continue
            other = (0., grey.mean(), grey[..., None])[kind]
            image = np.clip(factor * image + (1 - factor) * other, 0, 255)
        expected[row] = image
    np.testing.assert_allclose(ours, expected, atol=1e-2)
    assert (ours[1] == images[1]).all()


def test_grey_images_are_those_of_the_transform():
    grey = build(
        dict(type='RandomGrayscale', prob=1., keep_channels=True,
             channel_weights=(.114, .587, .2989)))
    images = photos()
    ours = pixels(Grey(grey).apply(planes(images), np.array([0, 3])))
    for i, image in enumerate(images):
        theirs = grey(dict(img=image))['img'] if i in (0, 3) else image
        off = ours[i] - theirs
        assert -1e-3 < off.min() and off.max() < 1  # they round down


def test_solarised_images_are_those_of_the_transform():
    solarise = build(dict(type='Solarize', thr=128, prob=1.))
    images = photos()
    operation = Solarise(solarise)
    ours = pixels(operation.apply(planes(images), draw(operation, 6)))
    for mine, image in zip(ours, images):
        assert (mine == solarise(dict(img=image))['img']).all()


@pytest.mark.parametrize('size', [(37, 53), (4, 90), (1, 1)])
def test_blurred_images_are_pillows(size):
    operation = Blur(
        build(
            dict(type='GaussianBlur', magnitude_range=(.1, 2.),
                 magnitude_std='inf', prob=1.)))
    images, radii = photos(6, *size), np.array([.1, .5, 1., 1.5, 2., 5.])
    drawn = dict(rows=np.arange(1, 6), magnitudes=radii[1:])
    ours = pixels(operation.apply(planes(images), drawn))
    assert (ours[0] == images[0]).all()
    for mine, image, radius in [*zip(ours, images, radii)][1:]:
        theirs = np.asarray(
            Image.fromarray(image).filter(
                ImageFilter.GaussianBlur(float(radius))))
        off = np.abs(mine - theirs)
        # They round to 8 bits after each of six passes.
        assert off.max() < 2.5 and off.mean() < .5


@pytest.mark.parametrize('dtype, atol', [('float16', 1.), ('bfloat16', 8.)])
def test_images_of_half_precision(dtype, atol):
    """Numbers up to 255 are multiples of 1/8 in float16, of 1 in bfloat16.

    Hues of saturated pixels multiply such an error.
    """
    pipeline = [CROP, JITTER, dict(type='GaussianBlur', radius=1., prob=.5)]
    multi = build(dict(type='MultiView', num_views=[2], transforms=[pipeline]))
    images = planes(photos(), torch.uint8)
    single = BatchedViews(multi)(images, range(6))
    half = BatchedViews(multi, dtype)(images, range(6))
    for one, other in zip(single, half):
        assert other.dtype == getattr(torch, dtype)
        off = (one - other.float()).abs()
        assert off.mean() < atol / 4 and off.quantile(.99) < atol


# Whole views -----------------------------------------------------------------

RECIPES = ('cifar10_two-views', 'cifar100_vicreg-views',
           'cifar10_two-views_byol', 'imagenet_two-views_byol',
           'stl10_vicreg-views')


def multi_view_of(name, size=None):
    cfg = Config.fromfile(DATA / f'{name}.py')
    [multi] = [t for t in cfg.train_pipeline if t.type == 'MultiView']
    for view in multi.transforms:
        view[0].scale = size or view[0].scale
    return multi


@pytest.mark.parametrize('name', RECIPES)
def test_views_of_recipes_have_the_distribution_of_the_transforms(name):
    """Mean, contrast, chroma and sharpness over many views of one image."""
    multi = build(multi_view_of(name, 16))
    image, count = photos(1, 24, 24)[0], 400
    ours = BatchedViews(multi)(torch.from_numpy(image).permute(2, 0, 1).expand(
        count, -1, -1, -1), range(count))
    theirs = zip(*(multi(dict(img=image))['img'] for _ in range(count)))
    for one, other in zip(ours, theirs):
        for statistic in (lambda x: x.mean(
            (1, 2, 3)), lambda x: x[..., 0].mean((1, 2)), lambda x: x.std(
                (1, 2, 3)), lambda x: np.ptp(x, axis=3).mean(
                    (1, 2)), lambda x: np.abs(np.diff(x, axis=2)).mean(
                        (1, 2, 3)), lambda x: x[:, :, 8:].mean((1, 2, 3))):
            assert ks_2samp(statistic(pixels(one)),
                            statistic(
                                np.stack(other).astype(float))).pvalue > 1e-3


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_has_a_batched_form(name):
    views = BatchedViews(build(multi_view_of(name)))
    size = views.views[0].resampling.size((0, 0))
    made = views(planes(photos(2), torch.uint8), [1, 2])
    assert [tuple(v.shape) for v in made] == [(2, 3, *size)] * 2
    assert all(0 <= v.min() and v.max() <= 255.001 for v in made)


def test_views_without_a_crop_and_of_several_sizes():
    flip = dict(type='RandomFlip', prob=1.)
    plain = build(dict(type='MultiView', num_views=[1], transforms=[[flip]]))
    images = planes(photos(), torch.uint8)
    [made] = BatchedViews(plain)(images, range(6))
    assert torch.equal(made, images.flip(3).float())
    mixed = [images[0], images[1, :, :20], images[2], images[3, :, 5:, 9:]]
    with pytest.raises(ValueError, match=r'several sizes.*Begin the view'):
        BatchedViews(plain)(mixed, range(4))
    cropped = BatchedViews(
        build(
            dict(type='MultiView', num_views=[1], transforms=[[CROP,
                                                               JITTER]])))
    [made] = cropped(mixed, range(4))
    for i, image in enumerate(mixed):
        [alone] = cropped(image[None], [i])
        torch.testing.assert_close(made[i:i + 1], alone, rtol=0, atol=1e-3)


# The preprocessor ------------------------------------------------------------


def batch(count=4, **changes):
    data = dict(
        inputs=planes(photos(count), torch.uint8), data_samples=[
            BaseDataElement(metainfo=dict(sample_idx=SampleIndex(i, 7 + i)))
            for i in range(count)])
    return {**data, **changes}


def preprocessor(**changes) -> BatchAugmentation:
    return MODELS.build(
        dict(
            type='us3l_mm.BatchAugmentation', views=dict(
                num_views=[1, 1], transforms=[[CROP, JITTER], [CROP]]),
            preprocessor=dict(type='mmpretrain.SelfSupDataPreprocessor', mean=[
                120., 110., 100.], std=[60., 50., 40.],
                              to_rgb=True), **changes))


def test_views_are_preprocessed():
    augmentation = preprocessor()
    data = batch()
    made = augmentation(data, training=True)
    views = augmentation.views(data['inputs'], range(7, 11))
    assert made['data_samples'][2].sample_idx == 2
    for one, other in zip(made['inputs'], views):
        rgb = other.flip(1)
        mean, std = (torch.tensor(each).view(3, 1, 1)
                     for each in ([120., 110., 100.], [60., 50., 40.]))
        torch.testing.assert_close(one, (rgb - mean) / std)
    # An evaluation sees the plain images.
    plain = augmentation(data)['inputs']
    assert plain.shape == data['inputs'].shape
    torch.testing.assert_close(plain * augmentation.std + augmentation.mean,
                               data['inputs'].flip(1).float())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        again = augmentation(batch(), training=True)['inputs']
    assert all(torch.equal(a, b) for a, b in zip(made['inputs'], again))


@pytest.mark.parametrize('cfg, what', [
    (dict(type='Resize', scale=8), 'Resize has no batched form, there are '
     'those of ColorJitter, GaussianBlur, RandomApply, RandomFlip, '
     'RandomGrayscale, RandomResizedCrop, Solarize'),
    (dict(CROP, interpolation='area'), 'interpolation is one of .bilinear.'),
    (dict(CROP, interpolation='lanczos',
          backend='pillow'), 'interpolation is one of .bilinear., .bicubic.'),
    (dict(type='RandomGrayscale'), 'keep_channels is one of True'),
    (dict(type='GaussianBlur', magnitude_range=(0, 1),
          magnitude_std=1.), "magnitude_std is 'inf' or 0"),
    (dict(type='RandomApply', transforms=[dict(type='RandomFlip', prob=.5)]),
     'RandomFlip has a batched form, but not here')])
def test_what_has_no_batched_form_is_refused(cfg, what):
    transforms = [build(cfg)]
    with pytest.raises(ValueError, match=what) as error:
        View(transforms)
    assert 'default_hooks.augmentation=None' in str(error.value)
    with pytest.raises(ValueError, match='first transform of a view'):
        View([build(JITTER), build(CROP)])


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="dtype is one of .*got 'float64'"):
        preprocessor(dtype='float64')
    samples = [BaseDataElement(metainfo=dict(sample_idx=i)) for i in range(4)]
    for given in (samples, None):
        with pytest.raises(TypeError, match='us3l_mm.SeededSampler.*sample_'):
            preprocessor()(batch(data_samples=given), training=True)
    views = [batch()['inputs']] * 2
    with pytest.raises(ValueError, match='Remove MultiView'):
        preprocessor()(batch(inputs=views), training=True)


@pytest.fixture
def every_operation():
    return build(
        dict(
            type='MultiView', num_views=[2], transforms=[[
                CROP, JITTER,
                dict(type='RandomGrayscale', prob=.5, keep_channels=True),
                dict(type='GaussianBlur', radius=1., prob=.5),
                dict(type='Solarize', thr=128, prob=.5)]]))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_device_gets_parameters_and_is_not_waited_for(
        every_operation, dtype):
    """Without a device: nothing is read, and host and device do not mix."""
    views = BatchedViews(every_operation, dtype)
    images = planes(photos(), torch.uint8)
    on_device = images.to(DEVICE)
    found = transfers(lambda: views(on_device, range(6)))
    # All that is copied are parameters, fewer than twenty arrays a view.
    assert {*found} == {'aten._to_copy.default'} and len(found) < 40
    mixed = [*on_device[:3], *on_device[3:, :, :20]]
    assert {*transfers(lambda: views(mixed, range(6)))} == {*found}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(),
                    reason='no GPU: views on the device are not tested')
@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_a_gpu_makes_the_same_views_without_waiting(every_operation, dtype):
    images = planes(photos(), torch.uint8)
    views = BatchedViews(every_operation, dtype)
    expected = views(images, range(6))
    on_gpu = images.cuda()
    views(on_gpu, range(6))
    torch.cuda.set_sync_debug_mode('error')
    try:
        made = views(on_gpu, range(6))
    finally:
        torch.cuda.set_sync_debug_mode('default')
    for one, other in zip(expected, made):
        # Products of TF32 and half precision; solarisation is not continuous.
        off = (one - other.cpu()).abs().float()
        assert off.quantile(.98) < 2
