# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""tools/detect_image.py and tools/get_flops.py."""
import importlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detection_stack import need_detection
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny_coco import (CLASSES, NARROW, SMALL, SMALL_MASKS, coco_options,
                       write_coco)

from us3l_mm.evaluation.parts import count_config
from us3l_mm.models.layers import Subnet
from us3l_mm.registry import MODELS

need_detection()
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs/us3l/detection'
CONFIG = FOLDER / 'mask-rcnn_r50_fpn_ms-1x_coco.py'


@pytest.fixture
def tool(monkeypatch):
    """``main()`` of a tool with arguments, in this process."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    monkeypatch.setenv('LOCAL_RANK', '0')

    def main(name, *argv):
        importlib.import_module(name).main([str(word) for word in argv])

    return main


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """Images, a detector's checkpoint as training leaves it, its options."""
    folder = write_coco(tmp_path_factory.mktemp('coco'))
    options = [*coco_options(folder), *SMALL, *SMALL_MASKS, *NARROW]
    from train import parse_args

    from us3l_mm.apis.launching import load_config
    cfg = load_config(str(CONFIG),
                      parse_args(['x', '--cfg-options', *options]).cfg_options)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    # Norms that pass something on, and classes that differ
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.bias[:3] = torch.tensor([2., 3., 1.])
    torch.save(
        dict(state_dict=model.state_dict(),
             meta=dict(dataset_meta=dict(classes=CLASSES))),
        folder / 'epoch_1.pth')
    return folder, options


@pytest.fixture(autouse=True, scope='module')
def tools_beside():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools'))
        yield


def test_boxes_in_a_table_and_pictures_in_a_folder(detector, tool, tmp_path,
                                                   capsys):
    folder, options = detector
    images = [folder / 'images/0.png', folder / 'images/1.png']
    (tmp_path / 'other').mkdir()
    same_name = tmp_path / 'other/0.png'
    same_name.write_bytes(images[1].read_bytes())
    tool('detect_image', CONFIG, folder / 'epoch_1.pth', *images, same_name,
         '--out-dir', tmp_path / 'out', '--score-thr', '0.2', '--cfg-options',
         *options)
    text = capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
        '0.png', '0_2.png', '1.png']
    for image, name in zip([*images, same_name],
                           ['0.png', '1.png', '0_2.png']):
        before = cv2.imread(str(image))
        after = cv2.imread(str(tmp_path / 'out' / name))
        assert after.shape == before.shape and (after != before).any()
    *tables, _ = text.split('drawn into')
    scores = [[
        float(row.split('│')[2]) for row in table.splitlines()
        if row.startswith('│')] for table in tables]
    assert len(scores) == 3 and scores[0]
    assert all(s == sorted(s, reverse=True) and min(s) >= 0.2 for s in scores)
    assert scores[1] == scores[2]  # the same image
    assert {name for name in CLASSES if name in text}


def test_what_is_detected_is_what_the_detector_predicts(detector):
    from mmengine.dataset import Compose

    from us3l_mm.apis.inference import detect, load_detector
    from us3l_mm.apis.launching import load_config
    from train import parse_args
    folder, options = detector
    cfg = load_config(str(CONFIG),
                      parse_args(['x', '--cfg-options', *options]).cfg_options)
    model = load_detector(cfg, str(folder / 'epoch_1.pth'))
    path = str(folder / 'images/0.png')
    by_path, by_array = detect(model, [path, cv2.imread(path)])
    packed = Compose(cfg.test_dataloader.dataset.pipeline)(dict(
        img_path=path, img_id=0, instances=[]))
    with torch.no_grad():
        [expected] = model.test_step(
            dict(inputs=[packed['inputs']], data_samples=[
                packed['data_samples']]))
    for sample in (by_path, by_array):
        for name in ('bboxes', 'scores', 'labels', 'masks'):
            np.testing.assert_array_equal(
                np.asarray(sample.pred_instances[name]),
                np.asarray(expected.pred_instances[name]))
    assert by_path.pred_instances.masks.shape[1:] == (48, 64)


@pytest.mark.parametrize('config, checkpoint, extra, says', [
    ('faster-rcnn_r50', 'epoch_1.pth', [], 'does not fit this '
     'detector of the config: .* have another shape.*(.|\n)*its training'),
    ('mask-rcnn_r50', 'gone.pth', [], 'There is no checkpoint .*gone'),
    ('mask-rcnn_r50', 'bare.pth', [], 'does not name the classes'),
    ('mask-rcnn_r50', 'code.pth', [], 'would execute code'),
    ('mask-rcnn_r50', 'epoch_1.pth', [
        '--width', '0.5'], 'has one width, so it cannot run at w0.50'), ])
def test_what_cannot_be_used_is_refused(detector, tool, tmp_path, config,
                                        checkpoint, extra, says):
    folder, options = detector

    class Code:

        def __reduce__(self):
            return open, (str(tmp_path / 'executed'), 'w')

    torch.save(dict(state_dict=dict(a=torch.ones(1))), folder / 'bare.pth')
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta=Code()),
               folder / 'code.pth')
    if 'faster' in config:
        options = coco_options(folder, masks=False)
    with pytest.raises(SystemExit, match=f'(?s){says}'):
        tool('detect_image', FOLDER / f'{config}_fpn_ms-1x_coco.py',
             folder / checkpoint, folder / 'images/0.png', *extra,
             '--cfg-options', *options)
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('content, says',
                         [(None, 'There is no image'),
                          (b'', 'cannot be read as an image'),
                          (b'text', 'cannot be read as an image')])
def test_what_is_no_image_is_named(detector, tool, tmp_path, content, says):
    if content is not None:
        (tmp_path / 'a.jpg').write_bytes(content)
    with pytest.raises(SystemExit, match=says):
        tool('detect_image', CONFIG, detector[0] / 'epoch_1.pth',
             tmp_path / 'a.jpg')


# Parameters and multiply-accumulates of a ResNet-50 at 224 pixels: the sizes
# published for it less its classifier, and the widths of it.
BACKBONE = {
    1.0: (23_508_032, 4.0872e9),
    0.75: (13_234_992, 2.3212e9),
    0.5: (5_892_640, 1.0513e9),
    0.25: (1_480_976, 0.2776e9)}


def config_of(name) -> Config:
    init_default_scope('mmdet')
    return Config.fromfile(FOLDER / f'{name}_fpn_ms-1x_coco.py')


@pytest.mark.parametrize('name, widths', [('mask-rcnn_r50', [1.0, 0.75, 0.25]),
                                          ('mask-rcnn_r50-any-width', [0.5])])
def test_parts_of_a_detector_at_every_width(name, widths):
    counted = count_config(config_of(name), (224, 224), widths)
    assert [*counted] == [Subnet(width) for width in widths]
    for subnet, parts in counted.items():
        width = subnet.width
        parts = {part.name: part for part in parts}
        params, macs = BACKBONE[width]
        assert parts['backbone'].params == params
        assert parts['backbone'].macs == pytest.approx(macs, rel=1e-4)
        # Pyramid: 1x1 and 3x3 convolutions to 256 channels, without biases,
        # but with norms, on maps of 56, 28, 14 and 7 pixels.
        channels = [int(c * width) for c in (256, 512, 1024, 2048)]
        sides = [56, 28, 14, 7]
        assert parts['neck'].params == (256 * sum(channels) + 4 * 9 * 256**2 +
                                        8 * 2 * 256)
        assert parts['neck'].macs == sum((256 * c + 9 * 256**2) * side**2
                                         for c, side in zip(channels, sides))
        # Proposals: 3x3, then 3 scores and 12 offsets, on five maps.
        assert parts['proposals'].macs == sum(
            side**2 for side in [*sides, 4]) * (9 * 256**2 + 256 * 15)
        # Boxes: four 3x3 convolutions on 7x7, two linear layers, 1000 times
        assert parts['box head'].times == 1000
        assert parts['box head'].macs == 1000 * (4 * 9 * 256**2 * 49 +
                                                 256 * 49 * 1024 + 1024 *
                                                 (81 + 320))
        # Masks: four on 14x14, a 2x2 deconvolution, 1x1 on 28x28, 100 times
        assert parts['mask head'].times == 100
        assert parts['mask head'].macs == 100 * (
            4 * 9 * 256**2 * 196 + 256**2 * 4 * 196 + 256 * 80 * 784)


def test_widths_of_the_config_itself_and_those_it_cannot_have():
    narrow = config_of('mask-rcnn_r50')
    narrow.model.backbone.update(base_channels=16, stem_channels=16)
    narrow.model.neck.in_channels = [64, 128, 256, 512]
    assert [*count_config(narrow, (64, 64))] == [Subnet(0.25)]
    with pytest.raises(ValueError,
                       match=r'multiples of 1/8, got 0\.3\. Use us3l'):
        count_config(narrow, (64, 64), [0.3])
    with pytest.raises(ValueError, match='0.1'):
        count_config(config_of('mask-rcnn_r50-any-width'), (64, 64), [0.1])


@pytest.mark.parametrize(
    'name, parts', [('us3l_resnet50_8xb60-coslr-100e_in1k', [
        'backbone', 'neck', 'head', 'distill head']),
                    ('benchmarks/linear_resnet50_8xb256-coslr-60e_in1k', [
                        'backbone', 'head'])])
def test_other_kinds_of_config_have_parts_too(tool, capsys, name, parts):
    cfg = Config.fromfile(ROOT / f'configs/us3l/{name}.py')
    counted = count_config(cfg, (224, 224), [1.0, 0.5])
    for subnet, found in counted.items():
        width = subnet.width
        assert [part.name for part in found] == parts
        assert found[0].params == BACKBONE[width][0]
        assert found[0].macs == pytest.approx(BACKBONE[width][1], rel=1e-4)
    if 'linear' in name:
        assert counted[Subnet(0.5)][1].params == 1024 * 1000 + 1000
        assert counted[Subnet(0.5)][1].macs == 1024 * 1000
        tool('get_flops', ROOT / f'configs/us3l/{name}.py', '--widths', '0.5')
        text = capsys.readouterr().out
        assert '5.893' in text and '1.051' in text and '6.918' in text
        assert '224 x 224 pixels' in text and 'not of norms' in ' '.join(
            text.split())
