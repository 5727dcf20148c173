# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""MobileNets hold the weights of their file, or training does not begin."""
import pytest
import torch
from mmpretrain.models import MobileNetV2

from us3l_mm.evaluation import calibrate
from us3l_mm.export import slice_backbone
from us3l_mm.models import SlimmableMobileNetV2
from us3l_mm.models.backbones.pretrained import check_weights


@pytest.fixture(scope='module')
def full():
    network = SlimmableMobileNetV2()
    calibrate(network, [torch.randn(4, 3, 32, 32)], [0.5])
    return network


@pytest.fixture(scope='module')
def states(full):
    return {'full': full.state_dict(), 'w050': slice_backbone(full, 0.5)}


@pytest.fixture(scope='module')
def files(states, tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    for name, state in states.items():
        torch.save(
            dict(state_dict={
                f'backbone.{key}': value
                for key, value in state.items()}), folder / f'{name}.pth')
    return {
        name: (str(folder / f'{name}.pth'), 'backbone.') for name in states}


def test_both_ways_to_a_width_pass_the_check(states, files):
    cutting = SlimmableMobileNetV2(width=0.5)
    cutting.load_state_dict(dict(states['full']), strict=False)
    check_weights(cutting, *files['full'])
    stock = MobileNetV2(0.5)
    stock.load_state_dict(states['w050'])
    check_weights(stock, *files['w050'])
    stock.layer3[0].conv[1].conv.weight.data[3] += 1e-3
    with pytest.raises(ValueError, match=r'1 of the \d+ tensors.*layer3\.0'):
        check_weights(stock, *files['w050'])


def test_the_full_file_in_a_narrow_stock_network_is_refused(files):
    with pytest.raises(
            ValueError, match=r'(?s)\(32, 3, 3, 3\) in the f.*give '
            r'us3l_mm\.SlimmableMobileNetV2\(width=W\) the file'):
        check_weights(MobileNetV2(0.5), *files['full'])
