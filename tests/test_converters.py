# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Other people's checkpoints, compared with what they compute there."""
import importlib.util
import os
from pathlib import Path

import mmpretrain.models as mmpretrain
import pytest
import torch
import torchvision
from torch import nn

from us3l_mm.apis import load_backbone
from us3l_mm.models.layers import FULL

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


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.'])
@pytest.mark.parametrize('depth, cls', [(18, mmpretrain.ResNet),
                                        (50, mmpretrain.ResNet_CIFAR),
                                        (50, mmpretrain.ResNetV1d)])
def test_an_ordinary_resnet_is_the_full_width(tmp_path, depth, cls, prefix):
    plain = randomised(cls(depth=depth, base_channels=16, stem_channels=32))
    weights = {
        prefix + key: value for key, value in plain.state_dict().items()}
    weights['head.fc.weight'] = torch.zeros(10, 128)
    torch.save(dict(state_dict=weights), tmp_path / 'plain.pth')
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
        ({
            'features.0.weight':
            torch.zeros(2)}, 'There is no ResNet in the '),
        ({
            f'{p}.{k}': v for k, v in keys.items() for p in 'ab'},
         r"several ResNets, .* prefixes \['a.', 'b.'\]. .*--prefix"),
        ({
            k: v for k, v in keys.items() if 'layer4.1' not in k},
         r'No ResNet has \[2, 2, 2, 1\] blocks without bottleneck'),
        ({
            k: v for k, v in keys.items()
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
