# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files of the authors' US3L code, compared with what they compute there."""
import importlib.util
import re
from pathlib import Path

import naive
import pytest
import torch
from algorithms import sgd, student_parameters, train_step
from mmengine.config import Config
from us3l_networks import MobileNetV2, ResNet, Theirs, ViT

from us3l_mm.apis import load_backbone
from us3l_mm.export.architecture import stored_model
from us3l_mm.export.us3l_checkpoints import CONFIGS, from_us3l
from us3l_mm.fileio import load_weights
from us3l_mm.models import Subnet, at
from us3l_mm.registry import MODELS

ROOT = Path(__file__).parent.parent
KEYS = Path(__file__).parent / 'data' / 'us3l_keys'
# Network, base method, size of the images, further arguments.
CASES = {
    'CIFAR R-18, SimCLR': (ResNet, 'simclr-momentum', 12, {}),
    'CIFAR R-50, SimCLR': (
        lambda: ResNet(50, 8),
        'simclr-momentum',
        12,
        dict(projections=(16, 32, 64)),
    ),
    'CIFAR MobileNetV2, SimCLR': (MobileNetV2, 'simclr-momentum', 16, {}),
    'CIFAR R-18, BYOL': (
        ResNet,
        'byol',
        12,
        dict(projector_biases=(False, True, True),
             predictor_biases=(True, True)),
    ),
    'ImageNet R-18, BYOL': (lambda: ResNet(cifar=False), 'byol', 40, {}),
    'ImageNet R-50, BYOL':
    (lambda: ResNet(50, 8, cifar=False), 'byol', 40, {}),
    'ImageNet MobileNetV2, BYOL': (lambda: MobileNetV2(cifar=False), 'byol',
                                   40, {}),
    'CIFAR R-18, SimSiam': (ResNet, 'simsiam', 12, {}),
    'ImageNet R-18, SimSiam-momentum': (lambda: ResNet(cifar=False),
                                        'simsiam-momentum', 40, {}),
    'CIFAR R-18, SimSiam-momentum': (
        ResNet,
        'simsiam-momentum',
        12,
        dict(has_two=False),
    ),
    'ViT, MoCo v3': (ViT, 'mocov3', 32, {}), }
CNN = 'CIFAR R-18, SimCLR'


def theirs(case, **kwargs):
    """The authors' algorithm in float64."""
    build, method, pixels, arguments = CASES[case]
    torch.manual_seed(0)
    network = Theirs(build(), method, **{**arguments, **kwargs})
    return network.double().train(), pixels


@pytest.fixture
def in_double():
    """Networks are built in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def convert(network, method=None, **kwargs):
    return from_us3l(dict(state_dict=network.file()), method=method, **kwargs)


def build(converted):
    """Our algorithm, from what the checkpoint stores alone."""
    model = stored_model(converted.checkpoint({}))
    algorithm = MODELS.build(
        dict(model, data_preprocessor=dict(mean=[120.] * 3, std=[60.] * 3)))
    algorithm.load_state_dict(converted.weights, strict=True)
    return algorithm.train()


def without(*parts):
    return lambda state: {
        key: value for key, value in state.items()
        if not any(p in key for p in parts)}


def replaced(old, new):
    return lambda state: {
        key.replace(old, new): value for key, value in state.items()}


def method_of(case):
    """What must be said of files whose keys do not tell."""
    method = CASES[case][1]
    return method if method == 'simsiam-momentum' else None


def tool():
    path = ROOT / 'tools' / 'model_converters' / 'us3l_to_ours.py'
    spec = importlib.util.spec_from_file_location('us3l_to_ours', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def assert_equal(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('case', CASES)
def test_all_parts_compute_the_same(case, in_double):
    network, pixels = theirs(case)
    method = CASES[case][1]
    converted = convert(network, method_of(case))
    assert converted.method == method
    ours = build(converted)
    _, (images, _) = naive.batch(images=5, pixels=pixels)

    def encode(backbone, neck):
        maps = backbone(images)
        return maps[-1], neck(maps)[0]

    with torch.no_grad():
        for width in (1.0, 0.5, 0.25):
            with at(ours, width):
                maps, z = encode(ours.backbone, ours.neck)
                assert_equal(maps, network.student.maps(images, width))
                expected = network.embed(network.student, images, width)
                assert_equal(z, expected)
                for head, is_base in ((ours.head, True), (ours.distill_head,
                                                          False)):
                    p = (z if head.predictor is None else head.predictor(
                        (z, ))[0])
                    assert_equal(p, network.predict(expected, is_base))
        if method != 'simsiam':
            maps, z = encode(ours.teacher.backbone, ours.teacher.neck)
            assert_equal(maps, network.teacher.maps(images, 1.0))
            assert_equal(z, network.embed(network.teacher, images, 1.0))
        else:
            assert ours.teacher is None


def trained_alike(case):
    """Two iterations of three passes; the losses of both."""
    network, pixels = theirs(case)
    ours = build(convert(network, method_of(case)))
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.05, 0.9)
    wrapper, widths = sgd(ours), (1.0, 0.5, 0.25)
    assert sum(p.numel() for p in trained) == sum(
        p.numel() for p in student_parameters(ours).values())
    found, expected = [], []
    for iteration in range(2):
        data, views = naive.batch(iteration, images=4, pixels=pixels)
        log = train_step(ours, data, wrapper, widths)
        passes = {}
        for name, value in log.items():
            part = re.fullmatch('loss_(?:base|distill|feature)(.*)', name)
            if part:
                passes[part[1]] = passes.get(part[1], 0) + float(value)
        found.append(list(passes.values()))
        expected.append(network.iterate(views, widths, optimizer))
    return network, ours, found, expected


# Each network and each method, without two pairs of those: the parts of all
# cases are compared above.
@pytest.mark.parametrize('case', [
    case for case in CASES
    if case not in ('ImageNet MobileNetV2, BYOL', 'ImageNet R-50, BYOL')])
def test_two_iterations_equal_two_of_theirs(case, in_double):
    network, ours, found, expected = trained_alike(case)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    # Their weights afterwards, converted, are ours.
    after = convert(network, method_of(case)).weights
    for name, p in ours.named_parameters():
        torch.testing.assert_close(
            p, after[name], rtol=1e-9, atol=1e-9,
            msg=lambda text, name=name: f'{name}: {text}')


def listed(name):
    """Keys and shapes that were seen in a file of the authors."""
    found = re.findall(r'(\S+) \(([\d, ]*)\)',
                       (KEYS / f'{name}.txt').read_text())
    return {
        key: tuple(int(n) for n in re.findall(r'\d+', shape))
        for key, shape in found}


@pytest.mark.parametrize('name, network, method, calibrated', [
    ('mobilenet_v2', MobileNetV2, 'simclr-momentum', False),
    ('mobilenet_v2_width_0.5', MobileNetV2, 'simclr-momentum', True),
    ('vit_tiny', lambda: ViT(depth=12, pixels=224), 'mocov3', False)])
def test_the_files_have_the_keys_that_were_seen(name, network, method,
                                                calibrated):
    with torch.device('meta'):
        shapes = {
            key: tuple(value.shape) for key, value in Theirs(
                network(), method, 2048, 256).file(calibrated).items()}
    seen = listed(name)
    # The lists give some of the blocks in full, and the calibrated one only
    # the backbone.
    parts = {
        re.sub(r'(features|blocks)\.(\d+)\..*', r'\1.\2', key) for key in seen}
    assert seen == {
        key: shape for key, shape in shapes.items()
        if '_k.' not in key and 'momentum' not in key and (
            not calibrated or 'features' in key)
        and re.sub(r'(features|blocks)\.(\d+)\..*', r'\1.\2', key) in parts}


BYOL = dict(dims=2048, projector_biases=(True, False, True))


@pytest.mark.parametrize('network, method, arguments, config, parameters', [
    (lambda: ResNet(18, 64), 'simclr-momentum', {},
     'us3l_resnet18_4xb128-coslr-400e_cifar10.py', 18_001_472),
    (lambda: ResNet(50, 64), 'simclr-momentum',
     dict(projections=(128, 256, 512)),
     'us3l_resnet50_8xb64-coslr-400e_cifar10.py', None),
    (MobileNetV2, 'simclr-momentum', {},
     'us3l_mobilenet-v2_4xb128-coslr-400e_cifar10.py', None),
    (lambda: ResNet(18, 64), 'byol', BYOL,
     'us3l-byol_resnet18_4xb128-coslr-400e_cifar10.py', None),
    (lambda: ResNet(50, 64, cifar=False), 'byol', BYOL,
     'us3l_resnet50_8xb60-coslr-100e_in1k.py', 52_892_736),
    (lambda: ResNet(18, 64), 'simsiam', BYOL,
     'us3l-simsiam_resnet18_4xb128-coslr-400e_cifar10.py', None),
    (lambda: ViT(depth=12, pixels=224), 'mocov3', {},
     'us3l_vit-tiny_8xb64-coslr-300e_cifar10.py', None),
    (lambda: ViT(384, 12, 12, 224), 'mocov3', {},
     'us3l_vit-small_16xb256-coslr-300e_in1k.py', None), ])
def test_files_of_full_size_load_with_the_config_that_is_named(
        network, method, arguments, config, parameters):
    """Where given, ``parameters`` were counted in the authors' networks."""
    network = Theirs(network(), method, 2048, **{'dims': 256, **arguments})
    converted = from_us3l(dict(state_dict=network.file()))
    assert converted.config == config
    model = Config.fromfile(ROOT / 'configs' / 'us3l' / config).model
    for cfg in (model, stored_model(converted.checkpoint({}))):
        algorithm = MODELS.build(dict(cfg, _scope_='mmpretrain'))
        algorithm.load_state_dict(converted.weights, strict=True)
        count = sum(p.numel() for p in student_parameters(algorithm).values())
        assert parameters in (None, count)


def test_all_configs_exist():
    for name in CONFIGS.values():
        assert (ROOT / 'configs' / 'us3l' / name).is_file(), name


@pytest.mark.parametrize('case', [
    'CIFAR R-18, SimCLR', 'CIFAR MobileNetV2, SimCLR',
    'ImageNet MobileNetV2, BYOL'])
def test_calibrated_widths_compute_the_same(case, tmp_path, capsys):
    network, pixels = theirs(case)
    network.float()
    paths = {name: tmp_path / f'{name}.pth.tar' for name in ('a', 0.5, 0.25)}
    torch.save(
        dict(epoch=400, arch='us_cifar', state_dict=network.file(),
             optimizer=dict(state={}, param_groups=[])), paths['a'])
    expected = {}
    _, (images, _) = naive.batch(images=2, pixels=pixels)
    for seed, width in enumerate((0.5, 0.25)):
        torch.manual_seed(seed)
        for value in network.student.buffers():
            if value.is_floating_point():
                torch.nn.init.uniform_(value, 0.5, 1.5)
        torch.save(
            dict(
                arch='us_cifar', state_dict={
                    key: value
                    for key, value in network.file(calibrated=True).items()
                    if 'encoder_q' in key}), paths[width])
        network.eval()
        with torch.no_grad():
            expected[width] = network.student.maps(images.float(), width)
        network.train()
    out = str(tmp_path / 'ours.pth')
    stem = [] if 'ImageNet' not in case else ['--stem', 'imagenet']
    tool()([
        str(paths['a']), out, '--statistics', f'0.5={paths[0.5]}',
        f'0.25={paths[0.25]}', *stem])
    printed = capsys.readouterr().out
    assert 'Statistics: w0.50, w0.25' in printed
    assert ('The last norm (features.18.1)' in printed) == ('Mobile' in case)
    assert 'Left out: nothing' in printed
    backbone = load_backbone(out)
    for width, maps in expected.items():
        with torch.no_grad(), at(backbone, width):
            torch.testing.assert_close(backbone(images.float())[-1], maps)


def test_what_is_printed(tmp_path, capsys):
    network, _ = theirs('CIFAR MobileNetV2, SimCLR')
    extra = {
        'module.queue': torch.zeros(3),
        'module.encoder_q.projections.0.weight': torch.zeros(2, 2, 1, 1)}
    torch.save(dict(state_dict={
        **network.file(),
        **extra}), tmp_path / 'a.pth.tar')
    tool()([str(tmp_path / 'a.pth.tar'), str(tmp_path / 'ours.pth')])
    printed = capsys.readouterr().out
    for line in ('SimCLR with a momentum teacher.',
                 'Config: configs/us3l/us3l_mobilenet-v2_4xb128-coslr-400e_'
                 'cifar10.py', 'Statistics: none, calibrate',
                 'strides of the stem: they are those for cifar, ',
                 'the same keys. This one is assumed to be of simclr-momentum',
                 'Left out: module.encoder_q.projections, module.queue'):
        assert line in printed
    unused = re.search('Running statistics not used: (.*)', printed)[1]
    assert unused.split(', ') == [
        'module.encoder_k.fc.1', 'module.encoder_k.fc.4',
        'module.encoder_k.features.18.1', 'module.encoder_q.fc.1',
        'module.encoder_q.fc.4', 'module.encoder_q.features.18.1',
        'module.predictor.1']
    stored = load_weights(str(tmp_path / 'ours.pth'))
    model = stored_model(stored)
    assert model['neck']['with_bias'] and model['neck']['with_last_bias']
    predictor = model['distill_head']['predictor']
    assert (predictor['with_bias'], predictor['with_last_bias']) == (False,
                                                                     True)
    assert stored['meta']['source']['converted_by'] == 'us3l_to_ours'


def test_the_second_predictor_may_have_another_name():
    network, _ = theirs('CIFAR R-18, BYOL')
    renamed = replaced('predictor_new', 'auxiliary')(network.file())
    converted = from_us3l(dict(state_dict=renamed))
    for name, value in convert(network).weights.items():
        assert torch.equal(converted.weights[name], value)


def test_projections_of_feature_distillation_are_known_by_their_shapes():
    network, _ = theirs('CIFAR R-50, SimCLR')
    converted = convert(network)
    assert converted.model['feature_distiller']['modules'] == [
        'layer2.3.bn2', 'layer3.5.bn2', 'layer4.2.bn2']
    assert not converted.left_out
    assert 'distill_convs.0.weight, distill_convs.1' in converted.remarks[-1]
    # Within the student as well; other shapes are left out.
    state = network.file()
    inside = replaced('distill_convs', 'encoder_q.convs')(state)
    moved = from_us3l(dict(state_dict=inside)).weights
    for name, value in converted.weights.items():
        assert torch.equal(moved[name], value)
    other = convert(theirs('CIFAR R-50, SimCLR', projections=(8, 32, 64))[0])
    assert 'feature_distiller' not in other.model
    assert other.left_out == ['module.distill_convs']


def test_files_without_a_wrapper_are_read():
    network, _ = theirs('CIFAR R-18, SimSiam')
    bare = replaced('module.', '')(network.file())
    for state in (bare, replaced('encoder_q', 'encoder')(bare)):
        converted = from_us3l(dict(state_dict=state))
        assert converted.method == 'simsiam'
        for name, value in convert(network).weights.items():
            assert torch.equal(converted.weights[name], value)


def test_the_backbone_alone():
    network, _ = theirs(CNN)
    state = without('.fc.')(network.file())
    with pytest.raises(ValueError, match=r'no projector .encoder_q.fc.*'
                       '--backbone-only'):
        from_us3l(dict(state_dict=state))
    converted = from_us3l(dict(state_dict=network.file()), backbone_only=True)
    assert converted.left_out == [
        'module.encoder_k', 'module.encoder_q.fc', 'module.predictor']
    backbone = MODELS.build(converted.model['backbone'])
    backbone.load_state_dict({
        name.removeprefix('backbone.'): value
        for name, value in converted.weights.items()})
    torch.testing.assert_close(backbone.layer4[1].conv2.weight.double(),
                               network.student.layer4[1].conv2.weight)


@pytest.mark.parametrize('case, change, message', [
    (CNN, without('encoder_q'), 'no student .encoder_q or base'),
    (CNN, replaced('layer1', 'stage1'), 'no ResNet, MobileNetV2 or vision'),
    (CNN, without('encoder_q.layer4.1.conv2'), 'missing: layer4.1.conv2'),
    (CNN, without('encoder_q.conv1'), "incomplete: its student lacks 'conv1"),
    (CNN, without('encoder_q.layer4.1'), r'No ResNet has \[2, 2, 2, 1\]'),
    (CNN, without('encoder_k.layer4.1.bn1'), r'momentum encoder \(encoder_k\)'
     r'.*missing: layer4.1.bn1.weight'),
    (CNN, without('encoder_k.fc'),
     r'encoder_k.fc is not made of .*incomplete'),
    (CNN, without('encoder_k.fc.6.bias'), 'encoder_k.fc does not fit'),
    (CNN, without('encoder_q.fc.3'), 'encoder_q.fc is not made of linear'),
    (CNN, without('encoder_q.fc.1.weight'), 'encoder_q.fc does not fit'),
    (CNN, without('predictor'), r'cannot be recognised.*predictors \[\]'),
    ('CIFAR R-18, BYOL', replaced('predictor.', 'p.'),
     r"cannot be recognised.*\['p', 'predictor_new'\]"),
    ('ViT, MoCo v3', without('predictor_new'), 'a second one.*MoCo v3'),
    ('ViT, MoCo v3', without('predictor.4'), 'a second one.*MoCo v3'),
    ('ViT, MoCo v3', without('base_encoder.blocks.1.mlp.fc2'),
     'missing: layers.1.ffn.layers.1.weight'),
    (CNN, lambda state: {
        **state, 'module.encoder_q.layer1.0.conv1.bias': torch.zeros(16)},
     'another network: .* has no layer1.0.conv1.bias'),
    (CNN, lambda state: {
        **state, 'module.encoder_k.layer1.0.conv1.weight':
        torch.zeros(16, 8, 3, 3)},
     r'shape: layer1.0.conv1.weight is \(16, 8, 3, 3\)'), ])
def test_other_and_incomplete_files_are_refused(case, change, message):
    network, _ = theirs(case)
    with pytest.raises(ValueError, match=f'(?s){message}'):
        from_us3l(dict(state_dict=change(network.file())))


def test_wrong_arguments_are_refused(tmp_path):
    for case, kwargs, message in [
        (CNN, dict(method='byol'), 'of simclr-momentum or simsiam-momentum'),
        (CNN, dict(stem='cifar'), 'stem chooses the strides of a MobileNetV2'),
        ('CIFAR MobileNetV2, SimCLR', dict(stem='large'), 'stem is one of'),
        ('ViT, MoCo v3', dict(calibrated={0.5: None}), 'no batch norms')]:
        network, _ = theirs(case)
        if 'calibrated' in kwargs:
            kwargs = dict(calibrated={0.5: network.file()})
        with pytest.raises(ValueError, match=message):
            from_us3l(dict(state_dict=network.file()), **kwargs)
    network, _ = theirs(CNN)
    source, out = tmp_path / 'a.pth.tar', tmp_path / 'ours.pth'
    torch.save(dict(state_dict=network.file()), source)
    network.student.conv1.weight.data += 1
    torch.save(dict(state_dict=network.file(calibrated=True)),
               tmp_path / 'b.pth.tar')
    for argument, message in [
        (f'0.5={tmp_path / "b.pth.tar"}',
         'is of another network: its conv1.weight'),
        (f'0.5={source}', 'has no running statistics of bn1'),
        (f'0.1={source}', 'outside the range')]:
        with pytest.raises(SystemExit, match=message):
            tool()([str(source), str(out), '--statistics', argument])
    assert not out.exists()


def test_heads_of_transformers_are_known_by_size():
    network = Theirs(ViT(dims=96), 'mocov3', 24, 12)
    with pytest.raises(ValueError, match=r'96 features.*\[192, 384, 768\]'):
        convert(network)


def test_what_the_checkpoint_measures_is_kept(tmp_path):
    network, _ = theirs(CNN)
    network.float()
    state = network.file(calibrated=True)
    converted = from_us3l(dict(state_dict=network.file()), {'0.5': state})
    assert converted.measured == [Subnet(0.5)]
    ours = build(converted)
    mean, var = ours.backbone.bn1.statistics(0.5)
    torch.testing.assert_close(mean,
                               state['module.encoder_q.bn1.running_mean'][:8])
    torch.testing.assert_close(var,
                               state['module.encoder_q.bn1.running_var'][:8])
    assert not ours.neck.bn0.measured_subnets()
