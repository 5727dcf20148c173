# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Other people's checkpoints, compared with what they compute there."""
import importlib.util
import os
from pathlib import Path

import mmpretrain.models as mmpretrain
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from us3l_mm.apis import at_width, load_backbone
from us3l_mm.models import SlimmableResNet_CIFAR
from us3l_mm.models.layers import FULL, Subnet

TOOLS = Path(__file__).parent.parent / 'tools' / 'model_converters'
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0))


def tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def randomised(network):
    for value in network.state_dict().values():
        if value.ndim == 1:
            nn.init.uniform_(value, 0.5, 1.5)
    network.eval()  # MMPretrain's returns None
    return network


def authors_file(path, statistics):
    """A CIFAR ResNet-18 of a quarter of the channels, with their keys."""
    torch.manual_seed(0)
    network = randomised(
        mmpretrain.ResNet_CIFAR(18, base_channels=16, stem_channels=16))
    weights = {
        f'module.encoder_q.{key}': value
        for key, value in network.state_dict().items()
        if statistics or not key.endswith(('running_mean', 'running_var',
                                           'num_batches_tracked'))}
    weights.update({
        'module.encoder_q.fc.0.weight':
        torch.zeros(8, 128), 'module.encoder_q.fc.1.running_mean':
        torch.zeros(8), 'module.encoder_k.layer1.0.conv1.weight':
        torch.zeros(16, 16, 3, 3), 'module.predictor.0.weight':
        torch.zeros(8, 8), 'module.predictor_new.0.weight':
        torch.zeros(8, 8)})
    torch.save(
        dict(epoch=400, arch='us_cifar_resnet18', state_dict=weights,
             optimizer=dict(state={}, param_groups=[])), path)
    return {
        key.removeprefix('module.encoder_q.'): value
        for key, value in weights.items()}


def authors_forward(weights, x, width):
    """Their sub-network, step by step: leading slices, eval-mode norms."""

    def conv(x, name, stride=1):
        weight = weights[f'{name}.weight']
        rows = max(8, int(weight.shape[0] * width + 4) // 8 * 8)
        weight = weight[:rows, :x.shape[1]]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def norm(x, name):
        mean, var, scale, shift = (weights[f'{name}.{part}'][:x.shape[1]]
                                   for part in ('running_mean', 'running_var',
                                                'weight', 'bias'))
        return F.batch_norm(x, mean, var, scale, shift)

    x = norm(conv(x, 'conv1'), 'bn1').relu()
    for stage in range(1, 5):
        for block in range(2):
            name = f'layer{stage}.{block}.'
            stride = 2 if stage > 1 and block == 0 else 1
            y = norm(conv(x, name + 'conv1', stride), name + 'bn1').relu()
            y = norm(conv(y, name + 'conv2'), name + 'bn2')
            if stride == 2:
                x = norm(conv(x, name + 'downsample.0', 2),
                         name + 'downsample.1')
            x = (x + y).relu()
    return x


def test_the_authors_network_computes_the_same(tmp_path, capsys):
    source, calibrated = tmp_path / 'a.pth.tar', tmp_path / 'b.pth.tar'
    authors_file(source, statistics=False)
    weights = authors_file(calibrated, statistics=True)
    out = str(tmp_path / 'ours.pth')
    tool('us3l_to_ours')([
        str(source), out, '--backbone-only', '--statistics',
        f'0.5={calibrated}'])
    printed = capsys.readouterr().out
    assert ('Left out: module.encoder_k, module.encoder_q.fc, '
            'module.predictor, module.predictor_new') in printed
    network = load_backbone(out)
    assert isinstance(network, SlimmableResNet_CIFAR)
    assert network.bn1.measured_subnets() == [Subnet(0.5)]
    with torch.no_grad(), at_width(network, 0.5):
        torch.testing.assert_close(
            network(IMAGES)[0], authors_forward(weights, IMAGES, 0.5))


def test_the_authors_statistics_must_fit(tmp_path):
    source, other = tmp_path / 'a.pth.tar', tmp_path / 'b.pth.tar'
    weights = authors_file(source, statistics=False)
    changed = {
        f'module.encoder_q.{key}': value + (value.ndim == 4)
        for key, value in weights.items() if 'module' not in key}
    torch.save(dict(state_dict=changed), other)
    convert, out = tool('us3l_to_ours'), str(tmp_path / 'ours.pth')
    for argument, message in [
        (f'0.5={other}', 'is of another network: its conv1.weight'),
        (f'0.5={source}', 'has no running statistics of bn1'),
        (f'0.1={source}', 'outside the range')]:
        with pytest.raises(SystemExit, match=message):
            convert([
                str(source), out, '--backbone-only', '--statistics', argument])
    assert not os.path.exists(out)


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.'])
@pytest.mark.parametrize('depth, cls', [(18, mmpretrain.ResNet),
                                        (50, mmpretrain.ResNet_CIFAR),
                                        (50, mmpretrain.ResNetV1d)])
def test_an_ordinary_resnet_is_the_full_width(tmp_path, depth, cls, prefix):
    plain = randomised(cls(depth=depth, base_channels=16, stem_channels=32))
    torch.save(
        dict(
            state_dict={
                **{
                    prefix + key: value for key, value in plain.state_dict().items(
                    )}, 'head.fc.weight': torch.zeros(10, 128)}),
        tmp_path / 'plain.pth')
    out = str(tmp_path / 'ours.pth')
    tool('plain_to_ours')([str(tmp_path / 'plain.pth'), out])
    network = load_backbone(out)
    assert network.layer1[0].bn1.measured_subnets() == [FULL]
    with torch.no_grad():
        assert torch.equal(network(IMAGES)[-1], plain(IMAGES)[-1])


def test_torchvisions_resnet_is_the_full_width(tmp_path, capsys):
    plain = randomised(torchvision.models.resnet18())
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    out = str(tmp_path / 'ours.pth')
    tool('plain_to_ours')([str(tmp_path / 'plain.pth'), out])
    assert 'Left out: fc' in capsys.readouterr().out
    plain.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(
            load_backbone(out)(IMAGES)[-1].mean(dim=(2, 3)), plain(IMAGES))


def test_what_is_no_resnet_is_refused(tmp_path):
    source, out = str(tmp_path / 'a.pth'), str(tmp_path / 'ours.pth')
    plain = mmpretrain.ResNet(18, base_channels=8, stem_channels=8)
    keys = plain.state_dict()
    cases = [
        ({'features.0.weight': torch.zeros(2)}, 'There is no ResNet in the '),
        ({f'{p}.{k}': v for k, v in keys.items() for p in 'ab'},
         r"several ResNets .* prefixes \['a.', 'b.'\]: .*--prefix"),
        ({k: v for k, v in keys.items() if 'layer4.1' not in k},
         r'No ResNet has \[2, 2, 2, 1\] blocks without bottleneck'),
        ({k: v for k, v in keys.items()
          if 'layer4.1.conv2' not in k}, 'missing: layer4.1.conv2.weight'), ]
    for weights, message in cases:
        torch.save(weights, source)
        with pytest.raises(SystemExit, match=message):
            tool('plain_to_ours')([source, out])
    with pytest.raises(
            SystemExit, match=r'There is no student \(encoder_q or '
            r'base_encoder\) in the file'):
        tool('us3l_to_ours')([source, out])
    assert os.listdir(tmp_path) == ['a.pth']


def test_converters_refuse_code(tmp_path):

    class Runs:

        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'trace'), )

    torch.save(dict(state_dict={'a': torch.zeros(2)}, extra=Runs()),
               tmp_path / 'a.pth')
    for name in ('plain_to_ours', 'us3l_to_ours'):
        with pytest.raises(SystemExit, match='would execute code .*'
                           '--trust-pickle'):
            tool(name)([str(tmp_path / 'a.pth'), str(tmp_path / 'out.pth')])
    assert os.listdir(tmp_path) == ['a.pth']
