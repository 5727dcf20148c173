# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The backbone of a detector holds exactly the sliced weights, or training
does not begin."""
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detection_stack import need_detection
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from mmpretrain.models import ResNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.apis import slice_checkpoint
from us3l_mm.engine import CheckPretrainedHook
from us3l_mm.models import SlimmableResNet
from us3l_mm.models.backbones.pretrained import check_weights
from us3l_mm.registry import MODELS

need_detection()
FOLDER = Path(__file__).parents[1] / 'configs/us3l/detection'
SLICED = (1.0, 0.75, 0.5, 0.25)
WRITTEN = (1.0, 0.5, 0.25)
ANY = 'mask-rcnn_r50-any-width'


def config_of(which, **options) -> Config:
    """The config of a slice of the width ``which``, or of that name."""
    init_default_scope('mmdet')
    name = which if which == ANY else 'mask-rcnn_r50'
    cfg = Config.fromfile(FOLDER / f'{name}_fpn_ms-1x_coco.py')
    if which != ANY:
        channels = int(64 * which)
        cfg.model.backbone.update(base_channels=channels,
                                  stem_channels=channels)
        cfg.model.neck.in_channels = [channels * 4 * 2**i for i in range(4)]
    cfg.merge_from_dict({
        f'model.backbone.{key}': value for key, value in options.items()})
    return cfg


def initial_backbone(cfg) -> nn.Module:
    """That of the built detector, after its weights were drawn and loaded."""
    detector = MODELS.build(cfg.model)
    logger = logging.getLogger('mmengine')
    logger.setLevel('ERROR')
    detector.backbone.init_weights()
    return detector.backbone


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    """A pre-trained ResNet-50 with statistics of four widths, and its file."""
    torch.manual_seed(1)
    network = SlimmableResNet(50)
    state = network.state_dict()
    draw = torch.Generator().manual_seed(2)
    for name, value in network.state_dict().items():
        if name.endswith('num_batches_tracked'):
            state[name] = torch.tensor(7)
        elif 'running' not in name:
            state[name] = torch.randn(value.shape, generator=draw) * .02
        for width in SLICED if 'running' in name else ():
            suffix = '' if width == 1 else f'_w{round(width * 1e6):07d}'
            channels = int(value.shape[0] * width)
            state[name + suffix] = torch.rand(channels, generator=draw) + .5
    path = tmp_path_factory.mktemp('full') / 'measured.pth'
    cfg = ("model = dict(type='us3l_mm.US3LAlgorithm', backbone=dict("
           "type='us3l_mm.SlimmableResNet', depth=50))")
    torch.save(
        dict(
            state_dict={
                f'backbone.{key}': value
                for key, value in state.items()}, meta=dict(cfg=cfg)), path)
    return state, path


@pytest.fixture(scope='module')
def slices(full, tmp_path_factory):
    """The files that tools/slice_checkpoint.py writes."""
    folder = tmp_path_factory.mktemp('slices')
    for width in WRITTEN:
        slice_checkpoint(str(full[1]), str(folder / f'{width}.pth'), width,
                         'mmdet', input_size=32)
    return folder


def naive_slice(full: dict, width: float) -> dict:
    """Leading channels, and the statistics of the width, by hand."""
    channels = int(64 * width)
    plain = ResNet(50, base_channels=channels, stem_channels=channels)
    suffix = '' if width == 1 else f'_w{round(width * 1e6):07d}'
    cut = {}
    for name, value in plain.state_dict().items():
        if name.endswith(('running_mean', 'running_var')):
            cut[name] = full[name + suffix]
        elif not name.endswith('num_batches_tracked'):
            cut[name] = full[name][tuple(map(slice, value.shape))]
    return cut


@pytest.mark.parametrize('way, width', [('slice', 1.0), ('slice', 0.25),
                                        ('any-width', 0.75),
                                        ('any-width', 0.5)])
def test_every_tensor_is_that_of_the_slice(full, slices, way, width):
    state, path = full
    if way == 'slice':
        file = slices / f'{width}.pth'
        cfg = config_of(width, **{'init_cfg.checkpoint': str(file)})
    else:
        file = path
        cfg = config_of(ANY, width=width, **{'init_cfg.checkpoint': str(file)})
    backbone = initial_backbone(cfg)
    own, expected = backbone.state_dict(), naive_slice(state, width)
    assert {name for name in own
            if not name.endswith('num_batches_tracked')} == expected.keys()
    assert len(expected) == 159 + 2 * 53
    for name, value in expected.items():
        assert torch.equal(own[name], value), name
    # The check says the same, and notices a single number.
    check_weights(backbone, str(file), 'backbone.')
    with torch.no_grad():
        backbone.layer3[2].bn2.bias[-1] += 1e-6
    with pytest.raises(ValueError, match='1 of the .* layer3.2.bn2.bias'):
        check_weights(backbone, str(file), 'backbone.')


def test_a_config_of_other_widths_takes_no_part_of_the_file(full, slices):
    # What MMEngine does by itself: no error, and nothing loaded.
    cfg = config_of(0.5, **{'init_cfg.checkpoint': str(full[1])})
    backbone = initial_backbone(cfg)
    wide = full[0]
    assert not any(
        torch.equal(value, wide[name][tuple(map(slice, value.shape))])
        for name, value in backbone.named_parameters() if value.ndim == 4)


def built(name, **options) -> nn.Module:
    """The backbone before anything is loaded."""
    return MODELS.build(config_of(name, **options).model.backbone)


@pytest.mark.parametrize('name, options, file, says', [
    (0.5, {}, 'full', r'159 have another shape.*conv1.weight is '
     r'\(64, 3, 7, 7\) in the file, \(32, 3, 7, 7\) in the model.*'
     r'slice_checkpoint.py \S+ OUT --width 0.5'),
    (0.25, {}, 0.5, r'file has 32 channels .*\(width 0.5\).*model 16 '
     r'\(width 0.25\).*slice_checkpoint.py measured.pth OUT --width 0.25'),
    (0.75, {}, 0.25, 'base_channels=16, backbone.stem_channels=16'),
    (0.5, dict(depth=101), 0.5, '153 are not in the file.*missing: '
     'backbone.layer3.6.conv1.weight.*different depth.*backbone.depth'),
    (0.5, dict(depth=34), 0.5, 'different depth'),
    (ANY, dict(width=0.25), 0.5, r'SlimmableResNet\(depth=50, width=0.25\).*'
     'have another shape'),
    (ANY, dict(width=0.3), 'full', 'no batch-norm statistics for w0.30; '
     'measured are: w0.25, w0.50, w0.75, w1.00'),
    (ANY, dict(width=0.5, depth=101), 'full', 'different depth'), ])
def test_another_network_is_refused(full, slices, name, options, file, says):
    path = full[1] if file == 'full' else slices / f'{file}.pth'
    with pytest.raises(ValueError, match=f'(?s){says}'):
        check_weights(built(name, **options), str(path), 'backbone.')


def test_fewer_layers_than_the_file_has_are_refused(slices, tmp_path):
    # All of a ResNet-50's tensors are in the file of a deeper one.
    content = torch.load(slices / '0.25.pth', weights_only=True)
    for key in list(content['state_dict']):
        if key.startswith('backbone.layer3.5.'):
            content['state_dict'][key.replace(
                '.5.', '.6.')] = content['state_dict'][key]
    torch.save(content, tmp_path / 'deeper.pth')
    with pytest.raises(
            ValueError, match=r'(?s)not in the model: backbone\.'
            r'layer3\.6\.conv1.*different depth'):
        check_weights(built(0.25), str(tmp_path / 'deeper.pth'), 'backbone.')


@pytest.mark.parametrize('prefix', ['encoder.', '', 'backbone.layer1'])
def test_another_prefix_is_refused(slices, prefix):
    with pytest.raises(
            ValueError, match=r"(?s)159 are not in the file.*below "
            f"the prefix '{prefix}.*begins with ..backbone.bn1"):
        check_weights(built(0.5), str(slices / '0.5.pth'), prefix)


def edited(slices, tmp_path, edit) -> str:
    content = torch.load(slices / '0.25.pth', weights_only=True)
    content['state_dict'] = edit(content['state_dict'])
    torch.save(content, tmp_path / 'edited.pth')
    return str(tmp_path / 'edited.pth')


@pytest.mark.parametrize('part, says', [
    ('layer2.1.conv2.weight', '1 are not in the file.*layer2.1.conv2.weight'),
    ('layer2.1.bn2.running_var',
     '1 are not in the file.*running_var.*need their statistics')])
def test_a_missing_tensor_is_named(slices, tmp_path, part, says):
    path = edited(
        slices, tmp_path, lambda state: {
            key: value for key, value in state.items() if part not in key})
    with pytest.raises(ValueError, match=f'(?s){says}'):
        check_weights(built(0.25), path, 'backbone.')


def test_files_of_elsewhere_may_have_a_classifier_and_lack_counters(
        slices, tmp_path):

    def edit(state):
        halves = {
            key.removeprefix('backbone.'): value.half()
            for key, value in state.items() if 'num_batches' not in key}
        return {**halves, 'fc.weight': torch.ones(10, 512)}

    path = edited(slices, tmp_path, edit)
    cfg = config_of(
        0.25, init_cfg=dict(type='Pretrained', checkpoint=path, _delete_=True))
    check_weights(initial_backbone(cfg), path, None)


def test_statistics_that_begin_anew_are_expected_so(full, tmp_path):
    state = {
        f'backbone.{key}': value for key, value in full[0].items()
        if 'running' not in key}
    torch.save(dict(state_dict=state), tmp_path / 'bare.pth')
    cfg = config_of(ANY, width=0.5, missing_statistics='reset', **{
        'init_cfg.checkpoint': str(tmp_path / 'bare.pth')})
    backbone = initial_backbone(cfg)
    file = str(tmp_path / 'bare.pth'), 'backbone.'
    check_weights(backbone, *file)
    assert all(
        (norm.running_mean == 0).all() and (norm.running_var == 1).all()
        for norm in backbone.modules() if isinstance(norm, _BatchNorm))
    backbone.bn1.running_var += 1
    with pytest.raises(ValueError, match='1 of the .* bn1.running_var'):
        check_weights(backbone, *file)


def test_files_of_a_model_zoo_are_compared_too(slices, monkeypatch):
    content = torch.load(slices / '0.25.pth', weights_only=True)
    bare = {
        key.removeprefix('backbone.'): value
        for key, value in content['state_dict'].items()}
    monkeypatch.setattr(CheckpointLoader, 'load_checkpoint',
                        lambda path, **kwargs: {'zoo://a': bare}[path])
    backbone = built(0.25)
    with pytest.raises(ValueError, match='of the 318 tensors'):
        check_weights(backbone, 'zoo://a', None)
    backbone.load_state_dict(bare)
    check_weights(backbone, 'zoo://a', None)


def runner_of(backbone, resume=False, load_from=None):
    """As much of a Runner as the hook looks at, with a log."""
    log = []
    return SimpleNamespace(model=SimpleNamespace(backbone=backbone),
                           _resume=resume, _load_from=load_from,
                           logger=SimpleNamespace(info=log.append)), log


def test_the_hook_says_what_it_compared(slices):
    cfg = config_of(0.25, **{'init_cfg.checkpoint': str(slices / '0.25.pth')})
    backbone = initial_backbone(cfg)
    runner, log = runner_of(backbone)
    CheckPretrainedHook().before_train(runner)
    assert 'All 318 tensors' in log[0] and '0.25.pth' in log[0]
    backbone.conv1.weight.data += 1
    with pytest.raises(ValueError, match='1 of the 318'):
        CheckPretrainedHook().before_train(runner)


def test_a_resumed_run_is_left_alone_once_it_found_its_checkpoint(slices):
    backbone = built(0.25)  # holds other weights than the file
    backbone.init_cfg['checkpoint'] = str(slices / '0.25.pth')
    runner, _ = runner_of(backbone, resume=True)
    hook = CheckPretrainedHook()
    with pytest.raises(ValueError, match='of the 318 tensors'):
        hook.before_train(runner)  # nothing was there to resume from
    hook.after_load_checkpoint(runner, {})
    hook.before_train(runner)


def test_weights_of_load_from_count_where_it_is_given(slices, tmp_path):
    backbone = built(0.25)
    backbone.init_cfg['checkpoint'] = str(slices / '0.25.pth')
    torch.save(
        dict(
            state_dict={
                f'backbone.{key}': value
                for key, value in backbone.state_dict().items()}),
        tmp_path / 'detector.pth')
    for path, fits in ((tmp_path / 'detector.pth', True), (slices / '0.5.pth',
                                                           False)):
        runner, log = runner_of(backbone, load_from=str(path))
        if fits:
            CheckPretrainedHook().before_train(runner)
            assert 'detector.pth' in log[0]
        else:
            with pytest.raises(ValueError, match='have another shape'):
                CheckPretrainedHook().before_train(runner)


def test_backbones_that_translate_their_files_are_named_in_the_log(slices):

    class Other(nn.Module):
        init_cfg = dict(type='Pretrained', checkpoint=str(slices / '0.5.pth'))

    runner, log = runner_of(Other())
    CheckPretrainedHook().before_train(runner)
    assert 'does not know Other: its weights were not compared' in log[0]


def test_a_network_that_runs_at_any_width_holds_the_full_weights(full):
    state, path = full
    backbone = SlimmableResNet(50)
    file = str(path), 'backbone.'
    with pytest.raises(ValueError, match='of the .* tensors'):
        check_weights(backbone, *file)
    backbone.load_state_dict(state)
    check_weights(backbone, *file)
    with pytest.raises(ValueError, match=r'\(64, 64, 1, 1\) in the file'):
        check_weights(SlimmableResNet(50, base_channels=32), *file)
