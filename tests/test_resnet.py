# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A slimmable ResNet is MMPretrain's ResNet, at every width a narrower one."""
import copy
import math
import random

import pytest
import torch
from algorithms import model_cfg, sgd, train_step
from mmengine.runner.checkpoint import load_checkpoint
from mmpretrain.models import ResNet, ResNet_CIFAR
from torch.nn.modules.batchnorm import _BatchNorm

from us3l_mm.models.backbones import SlimmableResNet, SlimmableResNet_CIFAR
from us3l_mm.models.layers import (SlimmableBatchNorm, SlimmableConv2d,
                                   SlimmableLayer, Subnet, at_width)
from us3l_mm.registry import MODELS

PAIRS = [(SlimmableResNet, ResNet), (SlimmableResNet_CIFAR, ResNet_CIFAR)]
STEMS = pytest.mark.parametrize('ours, theirs', PAIRS, ids=[
    'imagenet', 'cifar'])
SMALL = dict(base_channels=16, stem_channels=16)


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def images(size=32, batch=4):
    return torch.randn(batch, 3, size, size,
                       generator=torch.Generator().manual_seed(7))


def randomised(net):
    """No parameter at 0 or 1, where a wrong slice could hide."""
    g = torch.Generator().manual_seed(3)
    for p in net.parameters():
        noise = torch.randn(p.shape, generator=g)
        p.data = (noise * (2 / p[0].numel())**0.5 if p.dim() > 1 else 0.5 +
                  noise.abs())
    return net


def all_stages(kind, **kwargs):
    return kind(**{**SMALL, 'out_indices': (0, 1, 2, 3), **kwargs})


def backward(outputs):
    """A scalar that every element of every map moves differently."""
    sum((out * out.detach().roll(1)).mean() for out in outputs).backward()


# The full width is the plain network -----------------------------------------


@STEMS
@pytest.mark.parametrize('depth', [18, 34, 50, 101])
def test_keys_and_shapes_are_those_of_the_plain_network(ours, theirs, depth):
    actual, expected = ours(depth, **SMALL), theirs(depth, **SMALL)
    assert {
        k: v.shape for k, v in actual.state_dict().items()} == {
            k: v.shape for k, v in expected.state_dict().items()}
    assert list(actual.state_dict()) == list(expected.state_dict())
    assert ([name for name, _ in actual.named_parameters()] == [
        name for name, _ in expected.named_parameters()])


@STEMS
@pytest.mark.parametrize('options', [
    dict(depth=18),
    dict(depth=50),
    dict(depth=50, zero_init_residual=False),
    dict(depth=50, avg_down=True)], ids=str)
def test_initial_weights_are_those_of_the_plain_network(ours, theirs, options):
    states = []
    for kind in (ours, theirs):
        torch.manual_seed(11)
        net = kind(**SMALL, **options)
        net.init_weights()
        states.append(net.state_dict())
    for key, value in states[1].items():
        equal(states[0][key], value)
    last = [
        v for k, v in states[0].items()
        if k.endswith('bn3.weight' if options['depth'] == 50 else 'bn2.weight')
    ]
    assert all((v == 0).all()
               for v in last) == options.get('zero_init_residual', True)


@STEMS
@pytest.mark.parametrize('depth', [18, 34, 50, 101])
def test_full_width_equals_the_plain_network(ours, theirs, depth):
    net, plain = all_stages(ours, depth=depth), all_stages(theirs, depth=depth)
    randomised(plain)
    net.load_state_dict(plain.state_dict())
    x = images()
    net.train(), plain.train()
    actual, expected = net(x), plain(x)
    equal(actual, expected)
    backward(actual)
    backward(expected)
    for p, q in zip(net.parameters(), plain.parameters()):
        equal(p.grad, q.grad)
    plain.eval()  # its running statistics are those of the step above
    net.load_state_dict(plain.state_dict())
    assert net.eval() is net
    equal(net(x), plain(x))


# A narrow width is a narrower plain network ----------------------------------


def cut(state, shapes):
    return {
        key: state[key][tuple(slice(s) for s in value.shape)]
        for key, value in shapes.items()}


def give_statistics(net, width, plain):
    """Take over the running statistics of the plain network of one width."""
    norms = dict(plain.named_modules())
    for name, norm in net.named_modules():
        if isinstance(norm, SlimmableBatchNorm):
            norm.set_statistics(width, norms[name].running_mean,
                                norms[name].running_var)


@pytest.fixture(scope='module')
def full_size():
    """Of each depth and stem a network of 64 channels, built once."""
    nets = {}
    for ours, theirs in PAIRS:
        for depth in (18, 50):
            net = ours(depth, width_range=(0.125, 1.0),
                       out_indices=(0, 1, 2, 3))
            nets[depth, theirs] = randomised(net).train()
    return nets


@pytest.mark.parametrize('depth, theirs, k', [
    *((18, ResNet, k) for k in range(1, 9)),
    *((50, ResNet, k) for k in (1, 2, 5, 6, 8)), *((18, ResNet_CIFAR, k)
                                                   for k in (2, 3, 8))])
def test_k_eighths_equal_a_narrower_plain_network(full_size, depth, theirs, k):
    net, x = full_size[depth, theirs], images(16)
    plain = theirs(depth, base_channels=8 * k, stem_channels=8 * k,
                   out_indices=(0, 1, 2, 3))
    plain.load_state_dict(cut(net.state_dict(), plain.state_dict()))
    plain.train()
    with at_width(net, k / 8), torch.no_grad():
        equal(net(x), plain(x))
        plain.eval()
        give_statistics(net, k / 8, plain)
        net.eval()
        equal(net(x), plain(x))
        net.train()
    assert net.feature_channels(k / 8) == tuple(
        8 * k * 2**i * (4 if depth == 50 else 1) for i in range(4))


def with_plain_layers(net, width):
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SlimmableLayer):
                setattr(parent, name, child.plain(width))
    assert not any(isinstance(m, SlimmableLayer) for m in net.modules())
    return net


WIDTHS = [random.Random(0).uniform(0.1, 1.0) for _ in range(4)] + [0.1, 0.999]
VARIANTS = [
    (SlimmableResNet, dict(depth=18)),
    (SlimmableResNet, dict(depth=50, deep_stem=True, avg_down=True)),
    (SlimmableResNet,
     dict(depth=34, style='caffe', strides=(1, 2, 1, 1),
          dilations=(1, 1, 2, 4))),
    (SlimmableResNet_CIFAR, dict(depth=50)),
    (SlimmableResNet_CIFAR, dict(depth=18, divisor=4)), ]


@pytest.mark.parametrize('kind, options', VARIANTS, ids=[
    str(options) for _, options in VARIANTS])
def test_any_width_equals_a_network_of_plain_layers(kind, options):
    net = randomised(
        all_stages(kind, base_channels=24, stem_channels=32,
                   width_range=(0.1, 1.0), **options)).train()
    x = images(16)
    for width in WIDTHS:
        plain = with_plain_layers(net, width)
        net.zero_grad()
        with at_width(net, width):
            actual = net(x)
            backward(actual)
        expected = plain(x)
        backward(expected)
        equal(actual, expected)
        assert net.feature_channels(width) == tuple(out.shape[1]
                                                    for out in actual)
        of_plain = dict(plain.named_parameters())
        for name, p in net.named_parameters():
            inside = tuple(slice(s) for s in of_plain[name].shape)
            equal(p.grad[inside], of_plain[name].grad)
            assert p.grad.count_nonzero() == p.grad[inside].count_nonzero()


def test_switchable_norms_equal_a_network_of_plain_layers():
    widths = [1.0, 0.75, 0.5]
    net = all_stages(
        SlimmableResNet, depth=18, norm_cfg=dict(type='SwitchableBN',
                                                 widths=widths, eps=1e-3))
    net.init_weights()
    assert all((norm.weight == 0).all()
               for name, module in net.named_modules() if name.endswith('bn2')
               for norm in (module, *module.children()))
    assert all((norm.weight == 1).all()
               for name, module in net.named_modules() if name.endswith('bn1')
               for norm in (module, *module.children()))
    randomised(net).train()
    for mode in (True, False):
        for width in widths:
            plain = with_plain_layers(net.train(mode), width).train(mode)
            with at_width(net, width):
                equal(net(images(32)), plain(images(32)))


# Sizes -----------------------------------------------------------------------

# Width: parameters and GMACs of ResNet-50 with a 1000-way linear layer.
SIZES = {
    1.0: (25_557_032, 4.089),
    0.75: (14_771_992, 2.323),
    0.5: (6_917_640, 1.052),
    0.25: (1_993_976, 0.278)}


def test_sizes_of_resnet_50_are_those_of_the_specification():
    net, pixels = SlimmableResNet(50).train(), {}
    for layer in net.modules():
        if isinstance(layer, SlimmableConv2d):
            layer.register_forward_hook(lambda layer, _, out: pixels.update(
                {layer: out.shape[2] * out.shape[3]}))
    with torch.no_grad():
        net(torch.rand(1, 3, 224, 224))
    for width, (parameters, gmacs) in SIZES.items():
        plain = ResNet(50, base_channels=int(64 * width),
                       stem_channels=int(64 * width))
        features = net.feature_channels(width)[-1]
        assert features == 2048 * width
        classifier = 1000 * features + 1000
        assert parameters == classifier + sum(p.numel()
                                              for p in plain.parameters())
        active, macs = classifier, 1000 * features
        for layer in net.modules():
            if isinstance(layer, SlimmableConv2d):
                c_in, c_out = layer.active(width)
                kernel = c_in * c_out * math.prod(layer.kernel_size)
                active += kernel
                macs += kernel * pixels[layer]
            elif isinstance(layer, SlimmableLayer):
                active += 2 * layer.active(width)
        assert active == parameters
        assert round(macs / 1e9, 3) == gmacs


# Arguments of MMPretrain's ResNet --------------------------------------------


def test_out_indices_choose_the_outputs():
    net = all_stages(SlimmableResNet, depth=18, out_indices=(1, 3)).train()
    every = all_stages(SlimmableResNet, depth=18).train()
    every.load_state_dict(net.state_dict())
    assert net.feature_channels(0.5) == (16, 64)
    with at_width([net, every], 0.5):
        equal(net(images()), tuple(every(images())[i] for i in (1, 3)))


@STEMS
def test_frozen_stages_and_norm_eval_as_in_the_plain_network(ours, theirs):
    for options in (dict(frozen_stages=2), dict(norm_eval=True),
                    dict(frozen_stages=0, norm_eval=True)):
        net = all_stages(ours, depth=18, **options)
        plain = all_stages(theirs, depth=18, **options)
        assert net.train() is net
        plain.train()
        modes = {
            name: m.training for name, m in plain.named_modules()
            if isinstance(m, _BatchNorm)}
        assert False in modes.values()
        assert {
            name: m.training for name, m in net.named_modules()
            if isinstance(m, _BatchNorm)} == modes
        frozen = {
            name: p.requires_grad for name, p in plain.named_parameters()}
        assert {
            name: p.requires_grad
            for name, p in net.named_parameters()} == frozen


def test_frozen_stages_train_the_rest_at_a_narrow_width():
    net = randomised(all_stages(SlimmableResNet, depth=18, frozen_stages=1))
    net.train()
    for norm in net.modules():
        if isinstance(norm, SlimmableBatchNorm):
            c = norm.active(0.5)
            norm.set_statistics(0.5, torch.rand(c), torch.rand(c) + 0.5)
    with at_width(net, 0.5):
        backward(net(images()))
    assert net.layer1[0].conv1.weight.grad is None
    assert net.layer2[0].conv1.weight.grad.count_nonzero() > 0
    # Only the norms that train have forgotten their statistics.
    assert net.layer1[0].bn1.measured_subnets() == [Subnet(0.5)]
    assert net.layer2[0].bn1.measured_subnets() == []


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
def test_activation_checkpointing_changes_no_gradient(update_mode):
    states = []
    for with_cp in (False, True):
        torch.manual_seed(2)
        backbone = dict(type='us3l_mm.SlimmableResNet_CIFAR', depth=18,
                        with_cp=with_cp, **SMALL)
        algorithm = MODELS.build(
            model_cfg('simclr_momentum', backbone, hid=16, out=8,
                      update_mode=update_mode))
        algorithm.init_weights()
        randomised(algorithm.backbone)
        algorithm.double().train()
        algorithm.views = lambda data: data['inputs']
        views = [images(8).double(), images(8).double().flip(3)]
        train_step(algorithm, dict(inputs=views),
                   sgd(algorithm, lr=0.1, momentum=0.0), [1.0, 0.6, 0.25])
        states.append(algorithm.state_dict())
    for key, value in states[0].items():
        # The gradients of the two views may be added in the other order.
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=1e-12)


# Bad input -------------------------------------------------------------------


@STEMS
@pytest.mark.parametrize('options, message', [
    (dict(depth=19), r'has the depths \[18, .*101.*152\], got depth=19'),
    (dict(depth='50'), "got depth='50'"),
    (dict(depth=18, conv_cfg=dict(type='Conv2d')),
     'brings its own convolutions.*leave it out'),
    (dict(depth=18, norm_cfg=dict(type='GN', num_groups=8)),
     "norm_cfg.type is one of.*BN.*SwitchableBN.*got 'GN'"),
    (dict(depth=18, norm_cfg=dict(type='GN', num_groups=2)), "got 'GN'"),
    (dict(depth=18, norm_cfg=dict(type='SyncBN')),
     'single width: set width=0.5, say.*by model.sync_norms=True'), ], ids=str)
def test_arguments_that_cannot_work_are_refused(ours, theirs, options,
                                                message):
    with pytest.raises(ValueError, match=message):
        ours(**options)


def saved(net, path):
    torch.save(dict(state_dict=net.state_dict(), meta={}), path)
    return str(path)


@pytest.mark.parametrize('depth, other', [(18, 34), (34, 18), (50, 101),
                                          (101, 50), (18, 50), (50, 18)])
def test_a_checkpoint_of_another_depth_is_refused(tmp_path, depth, other):
    file = saved(ResNet(other, **SMALL), tmp_path / 'other.pth')
    net = SlimmableResNet(depth, **SMALL)
    with pytest.raises(
            ValueError, match=rf'SlimmableResNet\(depth={depth}\)'
            r'[\s\S]*Use the checkpoint of a network of the same'
            r' depth'):
        load_checkpoint(net, file, strict=False)
    load_checkpoint(net, saved(ResNet(depth, **SMALL), tmp_path / 'right.pth'),
                    strict=False)


def test_a_checkpoint_of_other_channels_or_norms_is_refused(tmp_path):
    net = SlimmableResNet(18, **SMALL)
    file = saved(ResNet(18, base_channels=32, stem_channels=32),
                 tmp_path / 'wide.pth')
    with pytest.raises(
            ValueError, match=r'0 are not in the file, 60 have another '
            r'shape[\s\S]*\n  shape: bn1.bias is \(32,\) in the file, '
            r'\(16,\) in the model'):
        load_checkpoint(net, file, strict=False)
    switchable = SlimmableResNet(
        18, **SMALL, norm_cfg=dict(type='SwitchableBN', widths=[1.0, 0.5]))
    with pytest.raises(
            ValueError, match=r'batch norms for \[w1\.00\], and .* built '
            r'for \[w1\.00, w0\.50\]'):
        load_checkpoint(switchable, saved(net, tmp_path / 'plain.pth'),
                        strict=False)
    with pytest.raises(
            ValueError, match=r'20 of the file belong[\s\S]*not in the '
            r'model: bn1\.w0500000\.weight'):
        load_checkpoint(net, saved(switchable, tmp_path / 'private.pth'),
                        strict=False)


def test_weights_of_another_type_are_refused():
    state = ResNet(18, **SMALL).state_dict()
    SlimmableResNet(18, **SMALL).load_state_dict(  # any precision fits
        {
            key: value.half() if value.ndim else value
            for key, value in state.items()})
    state['conv1.weight'] = (100 * state['conv1.weight']).to(torch.int8)
    with pytest.raises(
            ValueError, match=r'1 have another type[\s\S]*type: conv1.weight '
            r'is torch.int8 in the file, torch.float32 in the model'):
        SlimmableResNet(18, **SMALL).load_state_dict(state)


def small_algorithm(depth):
    backbone = dict(type='us3l_mm.SlimmableResNet', depth=depth, **SMALL)
    return MODELS.build(model_cfg(backbone=backbone, hid=16, out=8))


def test_a_checkpoint_with_another_prefix_is_refused(tmp_path):
    file = saved(small_algorithm(18), tmp_path / 'algorithm.pth')
    with pytest.raises(
            ValueError, match=r"60 are not in the file[\s\S]*below the "
            r"prefix ''; the file begins with \['backbone\."):
        load_checkpoint(SlimmableResNet(18, **SMALL), file, strict=False)
    file = saved(ResNet(18, **SMALL), tmp_path / 'plain.pth')
    with pytest.raises(
            ValueError, match=r"60 are not in the file[\s\S]*below the "
            r"prefix 'backbone\.'"):
        load_checkpoint(small_algorithm(18), file, strict=False)


@pytest.mark.parametrize('depth, other', [(18, 34), (34, 18)])
def test_a_pre_training_checkpoint_of_another_depth_is_refused(
        tmp_path, depth, other):
    file = saved(small_algorithm(other), tmp_path / 'other.pth')
    with pytest.raises(ValueError,
                       match='Use the checkpoint of a network of the'):
        load_checkpoint(small_algorithm(depth), file, strict=False)


def test_pretrained_weights_load_by_init_cfg_and_are_checked(tmp_path):
    net = small_algorithm(18)
    file = saved(net, tmp_path / 'algorithm.pth')
    init_cfg = dict(type='Pretrained', checkpoint=file, prefix='backbone.')
    ours = SlimmableResNet(18, init_cfg=init_cfg, **SMALL)
    ours.init_weights()
    equal(ours.state_dict(), net.backbone.state_dict())
    with pytest.raises(ValueError, match='depth=34'):
        SlimmableResNet(34, init_cfg=init_cfg, **SMALL).init_weights()


def test_a_checkpoint_without_a_teacher_is_accepted(tmp_path):
    algorithm = small_algorithm(18)
    state = {
        key: value for key, value in algorithm.state_dict().items()
        if not key.startswith('teacher.')}
    torch.save(state, tmp_path / 'student.pth')
    other = small_algorithm(18)
    load_checkpoint(other, str(tmp_path / 'student.pth'), strict=False)
    equal(other.backbone.state_dict(), algorithm.backbone.state_dict())
    other.teacher.update()
    for p, q in zip(other.teacher.backbone.parameters(),
                    algorithm.backbone.parameters()):
        equal(p.data, q.data)


def test_weights_of_the_stem_are_not_sliced_by_the_image_channels():
    net = SlimmableResNet(18, in_channels=16, **SMALL)
    assert isinstance(net.conv1, SlimmableConv2d)
    with at_width(net, 0.25):
        out = net.train()(torch.rand(2, 16, 32, 32))[-1]
    assert out.shape == (2, 32, 1, 1)
