# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Scenes of digits: whose pixels are whose, and what COCO's tools read."""
import json
import multiprocessing

import cv2
import numpy as np
import pytest

from us3l_mm.datasets import (RenderDigit, RenderedDigits, SceneSettings,
                              write_digit_scenes)
from us3l_mm.datasets.coco import class_names
from us3l_mm.datasets.digit_scenes import (coco_annotations, render_scene,
                                           render_scenes)

SMALL = SceneSettings(num_train=3, num_val=4)


def digits_of(split):
    data = RenderedDigits(split, render=False, pipeline=[])
    samples = [data.get_data_info(i) for i in range(len(data))]
    return (np.stack([s['img'] for s in samples]),
            np.array([s['gt_label'] for s in samples]))


@pytest.mark.parametrize('seed', range(5))
def test_masks_are_what_was_painted_and_nothing_else_was(seed, monkeypatch):
    """Painted again, pixel by pixel, from what the renderer gave."""
    layers, render = [], RenderDigit.render

    def recorded(self, digit, rng):
        layers.append((digit, render(self, digit, rng)[..., 0]))
        return layers[-1][1][..., None]

    monkeypatch.setattr(RenderDigit, 'render', recorded)
    digits, labels = digits_of('test')
    settings = SceneSettings(num_digits=(9, 12), image_size=48)
    scene = render_scene(digits, labels, settings, np.random.default_rng(seed))
    painted = []  # (layer, its pixels)
    for digit, layer in layers:
        pixels = {(y, x) for y in range(48) for x in range(48)
                  if 0 < layer[y, x] >= layer.max() / 4}
        if all(
                len(own - pixels -
                    set().union(*(p
                                  for _, _, p, _ in later))) >= 0.7 * len(own)
                for own, later in ((painted[i][2], painted[i + 1:])
                                   for i in range(len(painted)))):
            painted.append((digit, layer, pixels, len(painted)))
    assert 1 < len(painted) < len(layers)  # some found no room
    assert len(scene.labels) == len(scene.masks) == len(painted)
    image = np.zeros((48, 48), np.uint8)
    for digit, layer, pixels, i in painted:
        hidden = set().union(set(), *(p for _, _, p, _ in painted[i + 1:]))
        found = {(int(y), int(x)) for y, x in np.argwhere(scene.masks[i])}
        assert found == pixels - hidden
        assert (digit == digits[labels == scene.labels[i]]).all((1, 2)).any()
        for y, x in found:
            image[y, x] = layer[y, x]
    assert np.array_equal(scene.image, image)
    assert (scene.masks.sum(0) <= 1).all()
    assert np.array_equal(scene.masks.any(0), scene.image > 0)


def test_scenes_are_a_function_of_the_settings():
    first = render_scenes('val', SMALL)
    np.random.rand(3)  # no global state takes part
    more = render_scenes('val', SceneSettings(num_train=9, num_val=6))
    other = render_scenes('val', SceneSettings(num_val=4, seed=1))
    assert len(first) == 4 and len(more) == 6
    for a, b, c in zip(first, more, other):
        assert np.array_equal(a.image, b.image) and a.labels == b.labels
        assert not np.array_equal(a.image, c.image)
    assert not np.array_equal(first[0].image,
                              render_scenes('train', SMALL)[0].image)


def test_training_and_validation_scenes_show_other_digits(monkeypatch):
    seen, render = set(), RenderDigit.render
    monkeypatch.setattr(
        RenderDigit, 'render', lambda self, digit, rng:
        (seen.add(digit.tobytes()), render(self, digit, rng))[1])
    shown = []
    for split in ('train', 'val'):
        seen.clear()
        render_scenes(split, SceneSettings(num_train=60, num_val=60))
        shown.append(set(seen))
    assert min(map(len, shown)) > 100 and not shown[0] & shown[1]


def test_files_hold_the_scenes_and_cocos_tools_read_them(tmp_path, capsys):
    coco = pytest.importorskip(
        'pycocotools.coco', reason='pycocotools, '
        'which MMDetection installs')
    folder = write_digit_scenes(str(tmp_path / 'deep' / 'scenes'), SMALL)
    for split in ('train', 'val'):
        file = coco.COCO(f'{folder}/annotations/instances_{split}.json')
        scenes = render_scenes(split, SMALL)
        assert [c['name']
                for c in file.dataset['categories']] == list('0123456789')
        assert file.getImgIds() == list(range(1, len(scenes) + 1))
        for number, scene in enumerate(scenes, 1):
            name = file.loadImgs(number)[0]['file_name']
            image = cv2.imread(f'{folder}/{split}/{name}')
            assert np.array_equal(image, scene.image[..., None].repeat(3, 2))
            annotations = file.loadAnns(file.getAnnIds(number))
            assert len(annotations) == len(scene.masks)
            for note, mask, label in zip(annotations, scene.masks,
                                         scene.labels):
                assert np.array_equal(file.annToMask(note), mask)
                assert note['category_id'] == label + 1
                assert note['area'] == mask.sum() and not note['iscrowd']
                x, y, width, height = note['bbox']
                inside = mask[y:y + height, x:x + width]
                assert inside.sum() == mask.sum()  # all of it is in the box
                assert all(edge.any() for edge in (  # and touches each side
                    inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    assert not list((tmp_path / 'deep').glob('.digit_scenes-*'))


def test_several_processes_may_render_at_once(tmp_path):
    pytest.importorskip('pycocotools')
    folder = tmp_path / 'scenes'
    context = multiprocessing.get_context('fork')
    workers = [
        context.Process(target=write_digit_scenes, args=(str(folder), SMALL))
        for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    found = json.loads(
        (folder / 'annotations/instances_train.json').read_text())
    assert found == json.loads(
        json.dumps(coco_annotations(render_scenes('train', SMALL), SMALL)))
    assert [p.name for p in tmp_path.iterdir()] == ['scenes']


def test_a_failed_rendering_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip('pycocotools')
    monkeypatch.setattr(cv2, 'imwrite', lambda *args: False)
    with pytest.raises(OSError, match='could not be written'):
        write_digit_scenes(str(tmp_path / 'scenes'), SMALL)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_else_is_refused(tmp_path):
    pytest.importorskip('pycocotools')
    (tmp_path / 'other').mkdir()
    with pytest.raises(
            ValueError, match='other exists and holds no digit '
            'scenes. Set another data_root'):
        write_digit_scenes(str(tmp_path / 'other'), SMALL)
    folder = write_digit_scenes(str(tmp_path / 'scenes'), SMALL)
    with pytest.raises(
            ValueError, match='rendered with num_train=3, but '
            'the config has num_train=5. Remove the folder'):
        write_digit_scenes(folder, SceneSettings(num_train=5, num_val=4))


@pytest.mark.parametrize('kwargs, message', [
    (dict(num_val=0), 'num_val is at least 1, got 0'),
    (dict(num_digits=(5, 2)), r'\(fewest, most\), at least 1, got \(5, 2\)'),
    (dict(image_size=16), 'within the image of 16 pixels'), ])
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SceneSettings(**kwargs)


def test_bad_split():
    with pytest.raises(ValueError, match=r"one of .*'train'.*, got 'test'"):
        render_scenes('test', SMALL)


def test_classes_are_those_of_the_annotation_file(tmp_path):
    path = tmp_path / 'file.json'
    with pytest.raises(FileNotFoundError,
                       match='no annotation file.*Set data_root'):
        class_names(str(path))
    for content, message in (([], 'not an annotation file'), ({
            'categories': []}, '"categories"'), ({
                'categories': [{
                    'name': 'a'}, {
                        'name': 'a'}]}, r"several categories called \['a'\]")):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            class_names(str(path))
    path.write_text(
        json.dumps({
            'categories': [{
                'id': 7,
                'name': 'zebra'}, {
                    'id': 2,
                    'name': 'ant'}]}))
    assert class_names(str(path)) == ['zebra', 'ant']
