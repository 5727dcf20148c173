# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""mmcv's ops by torchvision: the same numbers, and only where they lack."""
import importlib
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import pytest
import torch
from detection_stack import need_detection
from mmcv.ops import RoIAlign, batched_nms, nms, roi_align, sigmoid_focal_loss
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from torch.nn import functional as F

from us3l_mm import mmcv_ops
from us3l_mm.registry import MODELS

EXT = importlib.import_module(mmcv_ops.NAME)
COMPILED = getattr(EXT, '__file__', None) is not None
needs_compiled = pytest.mark.skipif(
    not COMPILED, reason='mmcv is installed without compiled ops')
DEVICES = [
    'cpu',
    pytest.param(
        'cuda', marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(),
                               reason='no GPU')])]


@pytest.fixture
def by_torchvision(monkeypatch):
    """Calls something with mmcv.ops by torchvision, and restores them."""
    stand_in = importlib.util.module_from_spec(
        mmcv_ops.LastResort.find_spec(mmcv_ops.NAME))
    mmcv_ops.LastResort.exec_module(stand_in)

    def call(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            for name, module in list(sys.modules.items()):
                if name.startswith('mmcv.ops.') and hasattr(
                        module, 'ext_module'):
                    patch.setattr(module, 'ext_module', stand_in)
            return function(*args, **kwargs)

    return call


def random_boxes(count, size=40):
    """Of whole pixels, so that IoUs and scores are often equal."""
    corner = torch.randint(0, size, (count, 2)).float()
    return (torch.cat([corner, corner + torch.randint(1, 20, (count, 2))], 1),
            torch.randint(0, 20, (count, )) / 20)


def naive_nms(boxes, scores, threshold, offset):
    """The definition, in 64 bits."""
    boxes, kept = boxes.double().numpy(), []
    for i in np.argsort(-scores.numpy()):
        for j in kept:
            low = np.maximum(boxes[i, :2], boxes[j, :2])
            high = np.minimum(boxes[i, 2:], boxes[j, 2:])
            shared = np.prod(np.maximum(high - low + offset, 0))
            areas = [
                np.prod(boxes[k, 2:] - boxes[k, :2] + offset) for k in (i, j)]
            if shared / (sum(areas) - shared) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('device', DEVICES)
def test_nms_is_the_definition(by_torchvision, device, offset):
    boxes, _ = random_boxes(80)
    scores = (torch.randperm(80) + 1) / 80  # all differ
    # No IoU of so small boxes is so close to this that rounding matters.
    threshold = 0.45 + 1e-5
    dets, kept = by_torchvision(nms, boxes.to(device), scores.to(device),
                                threshold, offset=offset)
    assert kept.tolist() == naive_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets.cpu(),
                       torch.cat([boxes, scores[:, None]], 1)[kept.cpu()])


@needs_compiled
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7, 1 / 3])
@pytest.mark.parametrize('options', [{},
                                     dict(offset=1),
                                     dict(max_num=5),
                                     dict(score_threshold=.4)], ids=str)
def test_nms_equals_the_compiled_one(by_torchvision, threshold, options):
    """Also where an IoU is the threshold up to rounding."""
    for count in (0, 1, 300):
        boxes, scores = random_boxes(count)
        ours = by_torchvision(nms, boxes, scores, threshold, **options)
        assert all(
            map(torch.equal, ours, nms(boxes, scores, threshold, **options)))
        arrays = boxes.numpy(), scores.numpy()
        ours = by_torchvision(nms, *arrays, threshold, **options)
        assert all(
            map(np.array_equal, ours, nms(*arrays, threshold, **options)))


@needs_compiled
@pytest.mark.parametrize('agnostic', [False, True])
@pytest.mark.parametrize('split', [10000, 50])
def test_batched_nms_equals_the_compiled_one(by_torchvision, agnostic, split):
    for count in (1, 300):
        boxes, scores = random_boxes(count)
        arguments = (boxes, scores, torch.randint(0, 4, (count, )),
                     dict(type='nms', iou_threshold=.5,
                          split_thr=split), agnostic)
        ours = by_torchvision(batched_nms, *arguments)
        assert all(map(torch.equal, ours, batched_nms(*arguments)))


def test_batched_nms_of_nothing(by_torchvision):
    boxes, scores = random_boxes(0)
    dets, kept = by_torchvision(batched_nms, boxes, scores, kept_of(0),
                                dict(iou_threshold=.5), True)
    assert dets.shape == (0, 5) and torch.equal(kept, kept_of(0))


def kept_of(count):
    return torch.arange(count)


def test_types_may_differ_as_in_mixed_precision(by_torchvision):
    boxes, _ = random_boxes(50)
    scores = torch.randperm(50)  # exact in any of the types
    kept = by_torchvision(nms, boxes, scores.float(), 0.5)[1]
    assert 0 < len(kept) < 50
    for one, other in ((torch.float16, torch.float32), (torch.float32,
                                                        torch.bfloat16)):
        mixed = by_torchvision(nms, boxes.to(one), scores.to(other), 0.5)[1]
        assert torch.equal(mixed, kept)


def regions(count=6, images=2):
    corner = torch.rand(count, 2) * 20 - 2  # some begin outside
    return torch.cat([
        torch.randint(0, images, (count, 1)).float(), corner,
        corner + torch.rand(count, 2) * 20], 1)


def aligned_and_gradient(layer, features, rois, weights):
    features = features.clone().requires_grad_()
    output = layer(features, rois)
    output.backward(weights)
    return output.detach(), features.grad


@needs_compiled
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('count', [0, 6])
def test_roi_align_is_the_compiled_one_to_the_bit(by_torchvision, aligned,
                                                  ratio, count):
    layer = RoIAlign((7, 5), spatial_scale=.5, sampling_ratio=ratio,
                     aligned=aligned)
    given = (layer, torch.randn(2, 3, 12, 16), regions(count),
             torch.randn(count, 3, 7, 5))
    ours = by_torchvision(aligned_and_gradient, *given)
    assert all(map(torch.equal, ours, aligned_and_gradient(*given)))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_averages_and_its_gradient_is_the_adjoint(
        by_torchvision, device, dtype):
    # A plane's average over a bin is its value in the centre of the bin.
    plane = torch.arange(16.)[None] + 3 * torch.arange(12.)[:, None]
    features = plane.expand(1, 1, 12, 16).to(device, dtype)
    rois = torch.tensor([[0., 4., 6., 12., 14.]]).to(device, dtype)
    weights = torch.tensor([[[[1., -2.], [.5, 4.]]]]).to(device, dtype)
    output, gradient = by_torchvision(aligned_and_gradient,
                                      RoIAlign(2, spatial_scale=.5), features,
                                      rois, weights)
    assert output.dtype == gradient.dtype == dtype
    x, y = torch.tensor([2.5, 4.5]), torch.tensor([3.5, 5.5])
    assert torch.equal(output[0, 0].cpu().float(), x[None] + 3 * y[:, None])
    # <weights, A features> = <A' weights, features>, exact in so few bits.
    assert (weights * output).sum() == (gradient.float() * features).sum()


def test_pooling_by_maximum_is_refused(by_torchvision):
    with pytest.raises(
            NotImplementedError, match="roi_align with pool_mode='"
            "max' needs the compiled ops of mmcv.*pip install"):
        by_torchvision(roi_align, torch.zeros(1, 1, 4, 4), regions(1), 2, 1.0,
                       0, 'max')


def focal_definition(logits, target, gamma, alpha, weight):
    """Equation 5 of the paper, in 64 bits."""
    p = logits.double().sigmoid()
    hit = F.one_hot(target, logits.size(1) + 1)[:, :-1].double()
    losses = (-hit * alpha * (1 - p)**gamma * p.log() - (1 - hit) *
              (1 - alpha) * p**gamma * (1 - p).log())
    return losses if weight is None else losses * weight.double()[target, None]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss_is_the_definition(by_torchvision, device, reduction,
                                      weighted):
    logits = (4 * torch.randn(30, 5, device=device)).requires_grad_()
    # Class 5 is the background.
    target = torch.randint(0, 5 + (not weighted), (30, ), device=device)
    weight = torch.rand(5, device=device) if weighted else None

    def with_gradient(losses):
        # The gradient of 'none' needs one of the losses.
        losses.sum().backward()
        gradient, logits.grad = logits.grad, None
        return losses.detach().double(), gradient

    losses = focal_definition(logits, target, 1.5, .3, weight)
    expected = with_gradient({
        'none': losses,
        'mean': losses.sum() / 30,
        'sum': losses.sum()}[reduction])

    def run(*args):
        return with_gradient(sigmoid_focal_loss(*args))

    ours = by_torchvision(run, logits, target, 1.5, .3, weight, reduction)
    for one, other in zip(ours, expected):
        # Ten times the precision of 32 bits, relative to the largest.
        torch.testing.assert_close(one, other, rtol=1e-6,
                                   atol=1e-6 * float(other.abs().max()))


DETECTORS = [
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco', 'faster_rcnn/'
    'faster-rcnn_r50_fpn_1x_coco', 'retinanet/retinanet_r50_fpn_1x_coco',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco']


def small(name):
    """A detector of MMDetection, with few channels and classes."""
    init_default_scope('mmdet')
    cfg = get_config(f'mmdet::{name}.py').model
    cfg.backbone.update(depth=18, base_channels=4, stem_channels=4,
                        init_cfg=None, frozen_stages=-1)
    cfg.neck.update(in_channels=[4, 8, 16, 32], out_channels=32)
    for head in ('rpn_head', 'bbox_head'):
        if head in cfg:
            cfg[head].update(in_channels=32, feat_channels=32)
    if 'bbox_head' in cfg:
        cfg.bbox_head.num_classes = 10
    if 'roi_head' in cfg:
        cfg.roi_head.bbox_roi_extractor.out_channels = 32
        cfg.roi_head.bbox_head.update(in_channels=32, fc_out_channels=32,
                                      num_classes=10)
        cfg.test_cfg.rcnn.score_thr = 0.0
        if 'mask_head' in cfg.roi_head:
            cfg.roi_head.mask_roi_extractor.out_channels = 32
            cfg.roi_head.mask_head.update(in_channels=32, conv_out_channels=32,
                                          num_classes=10)
    else:
        cfg.test_cfg.score_thr = 0.0
    return MODELS.build(cfg)


def step_and_detect(name):
    """Losses, gradients and detections of the same scenes every time."""
    from small_detectors import scenes
    torch.manual_seed(1)
    detector, batch = small(name), scenes(2, size=96)
    detector.init_weights()
    batch = {key: [scene[key] for scene in batch] for key in batch[0]}
    detector.train()
    data = detector.data_preprocessor(batch, True)
    total, log = detector.parse_losses(detector(**data, mode='loss'))
    total.backward()
    detector.eval()
    with torch.no_grad():
        found = detector.test_step(batch)[0].pred_instances
    return log, [p.grad for p in detector.parameters()], found


@pytest.mark.parametrize('name', DETECTORS,
                         ids=lambda name: name.split('/')[0])
def test_detectors_train_and_detect(by_torchvision, name):
    need_detection()
    losses, gradients, found = by_torchvision(step_and_detect, name)
    assert all(value.isfinite() for value in losses.values())
    assert all(g.isfinite().all() for g in gradients if g is not None)
    assert gradients[0].any()  # of the first convolution
    assert len(found) > 1 and found.bboxes.isfinite().all()
    if COMPILED:
        others = step_and_detect(name)
        assert losses == others[0]
        for one, other in zip(gradients, others[1]):
            assert one is other is None or torch.equal(one, other)
        assert torch.equal(found.bboxes, others[2].bboxes)


@needs_compiled
def test_compiled_ops_are_used_where_they_are():
    finders = sys.meta_path
    assert finders.index(mmcv_ops.LastResort) > finders.index(PathFinder)
    assert EXT.__file__.endswith('.so')
    for name in ('nms', 'roi_align', 'focal_loss'):
        assert sys.modules[f'mmcv.ops.{name}'].ext_module is EXT


# As if mmcv had been installed without its ops.
WITHOUT = '''
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: None if name == {name!r} else (
    find(name, *args))

try:
    import mmcv.ops
except ModuleNotFoundError as error:
    assert error.name == {name!r}
else:
    raise AssertionError('mmcv has ops')
torchvision = 'torchvision' in sys.modules
import us3l_mm
assert torchvision or 'torchvision' not in sys.modules
import numpy as np
from mmcv.ops import nms, soft_nms
from mmcv.utils import collect_env
assert collect_env()['MMCV Compiler'] == 'not compiled'
boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 5], [8, 8, 9, 9]], np.float32)
scores = np.array([.9, .8, .7], np.float32)
print('imported')
for _ in range(2):
    assert nms(boxes, scores, iou_threshold=.5)[1].tolist() == [0, 2]
try:
    soft_nms(boxes, scores)
except NotImplementedError as error:
    print(error)
'''


def test_without_compiled_ops(tmp_path):
    """After an import of mmcv.ops that failed, too."""
    done = subprocess.run([
        sys.executable, '-W', 'ignore', '-c',
        WITHOUT.format(name=mmcv_ops.NAME)], cwd=Path(__file__).parents[1],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split('imported')
    assert 'torchvision' not in before
    assert after.count('those of torchvision are used') == 1
    assert ('softnms needs the compiled ops of mmcv, and mmcv is installed '
            'without them.') in after and mmcv_ops.COMPILE in after
