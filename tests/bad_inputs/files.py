# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files of weights that no tool can use, by name."""
from pathlib import Path
from typing import Dict

import torch

from us3l_mm.models import SlimmableResNet_CIFAR
from us3l_mm.models.backbones.slicing import slice_network

SMALL = dict(depth=18, base_channels=16, stem_channels=16)
# What the message about each of the damaged files has to say.
DAMAGED = {
    'cut.pth': 'is damaged or was not copied',
    'flipped.pth': 'is damaged: the checksum of its part',
    'empty.pth': 'it is empty',
    'text.pth': "not a PyTorch checkpoint: it begins with b'some'",
    'folder.pth': 'It is a folder',
    'none.pth': 'There is no checkpoint',
    'script.pth': 'is a TorchScript archive',
    'list.pth': 'holds no weights',
    'no_weights.pth': 'holds no weights',
    'integers.pth': 'Weights are real numbers',
    'nan.pth': 'are NaN or infinite',
    'code.pth': 'pass --trust-pickle', }


class Code:
    """What would be executed when the file is read."""

    def __reduce__(self):
        return eval, ('1 + 1', )


def write_files(folder: Path) -> Dict[str, Path]:
    """Write all files into ``folder``; ``good.pth`` is a whole one."""
    network = SlimmableResNet_CIFAR(**SMALL).eval()
    weights = {
        f'backbone.{key}': value
        for key, value in network.state_dict().items()}
    model = dict(backbone=dict(type='us3l_mm.SlimmableResNet_CIFAR', **SMALL))
    meta = dict(cfg=f"default_scope = 'mmpretrain'\nmodel = {model!r}\n")

    def save(name: str, weights: dict, **content) -> None:
        torch.save(dict(dict(state_dict=weights, meta=meta), **content),
                   folder / name)

    def changed(change) -> dict:
        return dict(
            weights, **{
                'backbone.layer1.0.conv1.weight':
                change(weights['backbone.layer1.0.conv1.weight'])})

    save('good.pth', weights)
    save('code.pth', weights, more=Code())
    save('integers.pth', changed(lambda value: (100 * value).int()))
    save('nan.pth', changed(lambda value: value * float('nan')))
    save('shape.pth', changed(lambda value: value[:3]))
    save('missing.pth', dict(list(weights.items())[:20]))
    save('headless.pth', {'head.fc.weight': torch.ones(3, 4)})
    save('no_config.pth', weights, meta={})
    save('config_with_code.pth', weights, meta=dict(cfg='model = exec("1")'))
    save('plain_config.pth', weights,
         meta=dict(cfg="model = dict(backbone=dict(type='ResNet', depth=18))"))
    save(
        'sliced.pth',
        slice_network(network, 0.5, True).state_dict(),
        meta=dict(cfg="model = dict(backbone=dict(type="
                  "'us3l_mm.SlimmableResNet_CIFAR', depth=18, width=0.5))"))
    torch.save([torch.ones(3)], folder / 'list.pth')
    torch.save(dict(epoch=3), folder / 'no_weights.pth')
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), folder / 'script.pth')
    content = (folder / 'good.pth').read_bytes()
    (folder / 'cut.pth').write_bytes(content[:-300])
    flipped = bytearray(content)
    flipped[content.index(
        weights['backbone.layer1.0.conv1.weight'].numpy().tobytes()) + 5] ^= 4
    (folder / 'flipped.pth').write_bytes(flipped)
    (folder / 'empty.pth').write_bytes(b'')
    (folder / 'text.pth').write_text('some text')
    (folder / 'folder.pth').mkdir()
    return {
        name: folder / name
        for name in [*DAMAGED, *(path.name for path in folder.iterdir())]}


def fill(argv: list, files: Dict[str, Path]) -> list:
    """``argv`` with the paths of the files that it names in brackets."""
    for name, path in files.items():
        argv = [str(word).replace(f'<{name}>', str(path)) for word in argv]
    return argv
