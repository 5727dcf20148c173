# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Images as they come out of cameras, scanners, browsers and microscopes."""
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image, ImageOps
from test_image_folder import dataset

from us3l_mm.datasets import LoadImage
from us3l_mm.datasets.image_scan import MAX_RATIO, MIN_SIDE, find_defect

OWN_IMAGES = Path(__file__).parents[1].joinpath(
    'configs/us3l/us3l_resnet18_1xb64-coslr-400e_own-images.py')


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    init_default_scope('mmpretrain')


def photograph(size=(48, 64)):
    """A colour gradient, (W, H), with a red corner to see how it is turned."""
    x, y = np.meshgrid(*(np.linspace(0, 250, side) for side in size))
    pixels = np.stack([x, y, (x + y) / 2], axis=2)
    pixels[:16, :16] = 250, 10, 10
    return Image.fromarray(pixels.astype(np.uint8))


def transparent():
    image = photograph()
    image.putalpha(image.getchannel('R'))
    return image


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return dict(exif=exif)


def several(**options):
    pages = [ImageOps.flip(photograph()), ImageOps.mirror(photograph())]
    return dict(options, save_all=True, append_images=pages)


# File name: image, and how Pillow saves it.
KINDS = {
    f'turned_{orientation}.{suffix}': (photograph(), turned(orientation))
    for suffix in ('jpg', 'png', 'tif', 'webp', 'avif')
    for orientation in range(1, 9)}
KINDS.update({
    'with blanks.png': (photograph(), {}),
    'снимок 写真 🌷.jpg': (photograph(), {}),
    'grey.jpg': (photograph().convert('L'), {}),
    'cmyk.jpg': (photograph().convert('CMYK'), {}),
    'cmyk.tif': (photograph().convert('CMYK'), {}),
    'progressive.jpg': (photograph(), dict(progressive=True)),
    'phone.jpg': (photograph(), several(format='MPO')),
    'turned_grey.jpg': (photograph().convert('L'), turned(6)),
    'turned_cmyk.jpg': (photograph().convert('CMYK'), turned(6)),
    'turned_nonsense.jpg': (photograph(), turned(0)),
    'black_and_white.png': (photograph().convert('1'), {}),
    'palette.png': (photograph().quantize(16), {}),
    'palette.gif': (photograph().quantize(16), {}),
    'one_colour_clear.png': (photograph().quantize(16), dict(transparency=3)),
    'transparent.gif': (transparent(), {}),
    'transparent.png': (transparent(), {}),
    'transparent.tif': (transparent(), {}),
    'transparent.webp': (transparent(), dict(lossless=True)),
    'transparent_grey.png': (transparent().convert('LA'), {}),
    'animated.gif': (photograph(), several()),
    'animated.png': (photograph(), several()),
    'animated.webp': (photograph(), several(lossless=True)),
    'pages.tif': (photograph(), several()), })


@pytest.mark.parametrize('name', KINDS)
def test_pixels_are_those_of_pillow(tmp_path, name):
    image, options = KINDS[name]
    path = tmp_path / name
    image.save(path, **options)
    with Image.open(path) as file:
        file = ImageOps.exif_transpose(file)
        expected = np.asarray(file.convert('RGB'))
        opaque = np.asarray(file.convert('RGBA'))[..., 3] > 0
    if path.suffix != '.gif':  # where a transparent pixel has no colour
        opaque[:] = True
    assert find_defect(str(path)) is None
    pixels = LoadImage()(dict(img_path=str(path)))['img'][..., ::-1]
    # From CMYK, the two libraries round differently.
    assert pixels.shape == expected.shape
    np.testing.assert_allclose(pixels[opaque].astype(int), expected[opaque],
                               rtol=0, atol=1 if image.mode == 'CMYK' else 0)


@pytest.mark.parametrize('suffix', ['png', 'tif', 'jp2', 'pgm'])
def test_16_bits_become_8_and_keep_their_range(tmp_path, suffix):
    grey = np.asarray(photograph().convert('L'))
    path = tmp_path / f'x.{suffix}'
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    assert find_defect(str(path)) is None
    pixels = LoadImage()(dict(img_path=str(path)))['img']
    np.testing.assert_array_equal(pixels, np.stack([grey] * 3, axis=2))


def test_a_video_behind_a_photograph_does_not_matter(tmp_path):
    path = tmp_path / 'motion.jpg'
    photograph().save(path)
    expected = LoadImage()(dict(img_path=str(path)))['img']
    with open(path, 'ab') as file:
        file.write(b'\0\0\0\x18ftypmp42' + bytes(range(256)) * 10)
    assert find_defect(str(path)) is None
    np.testing.assert_array_equal(LoadImage()(dict(img_path=str(path)))['img'],
                                  expected)


@pytest.mark.parametrize('suffix', ['png', 'bmp'])
def test_what_shows_nothing_is_skipped(tmp_path, suffix):

    def defect(width, height):
        path = tmp_path / f'x.{suffix}'
        Image.new('RGB', (width, height)).save(path)
        return find_defect(str(path))

    assert defect(1, 1) == defect(
        5000, MIN_SIDE - 1) == ('with a side of less than 8 pixels')
    assert defect(8, 401) == 'more than 50 times as long as wide'
    assert defect(8, 400) is None


def test_pixels_of_32_bits_are_skipped_and_not_called_damaged(tmp_path):
    path = tmp_path / 'x.tif'
    Image.new('F', (20, 20)).save(path)
    assert find_defect(
        str(path)) == ('with pixels of 32 bits, which OpenCV does not read')


@pytest.mark.parametrize('pipeline', ['train_pipeline', 'test_pipeline'])
@pytest.mark.parametrize('size', [(MIN_SIDE, MIN_SIDE),
                                  (MIN_SIDE, MIN_SIDE * MAX_RATIO),
                                  (MIN_SIDE * MAX_RATIO, MIN_SIDE)])
def test_images_of_the_extreme_shapes_pass_the_recipe(tmp_path, pipeline,
                                                      size):
    path = tmp_path / 'x.png'
    photograph(size).save(path)
    transforms = [
        transform for transform in Config.fromfile(OWN_IMAGES)[pipeline]
        if transform.type != 'us3l_mm.SeedAugmentation']
    views = Compose(transforms)(dict(img_path=str(path)))['inputs']
    for view in views if isinstance(views, list) else [views]:
        assert view.shape == (3, 128, 128)


def test_the_log_names_a_few_of_many_skipped_files(tmp_path, capsys):
    photograph().save(tmp_path / 'good.png')
    for index in range(7):
        (tmp_path / f'{index}.x{index}').write_text('no image')
    with open(bytes(tmp_path) + b'/\xff.png', 'wb'):
        pass
    data = dataset(tmp_path, with_label=False)
    [line] = capsys.readouterr().out.splitlines()
    assert 'skipped: 8 (1 of no format that OpenCV reads (.x0), ' in line
    assert line.endswith(', 3 for other reasons: '
                         '0.x0, 1.x1, 2.x2, 3.x3, 4.x4, ...).')
    assert len(data) == 1 and len(data.skipped) == 8


def test_a_name_that_is_no_text_can_be_logged(tmp_path, capsys):
    photograph().save(tmp_path / 'good.png')
    with open(bytes(tmp_path) + b'/\xff.png', 'wb'):
        pass
    assert len(dataset(tmp_path, with_label=False)) == 1
    captured = capsys.readouterr()
    assert r'(1 empty: \xff.png)' in captured.out and not captured.err
