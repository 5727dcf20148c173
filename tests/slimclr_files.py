# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The authors' SlimCLR networks, as far as keys and results of files go.

Written from the specification: plain modules hold the whole tensors under
their names, and every layer is sliced by hand.
"""
import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = [1.0, 0.75, 0.5, 0.25]
STAGES = {50: (3, 4, 6, 3), 18: (2, 2, 2, 2), 20: (3, 3, 3)}


class Norms(nn.Module):
    """A batch norm of each width, from wide to narrow."""

    def __init__(self, kind, channels, widths, narrows=True, affine=True):
        super().__init__()
        self.bn = nn.ModuleList(
            kind(int(channels * w) if narrows else channels, affine=affine)
            for w in widths)


class Block(nn.Module):

    def __init__(self, before, middle, stride, bottleneck, widths):
        super().__init__()
        after = 4 * middle if bottleneck else middle
        shapes = ([(before, middle, 1), (middle, middle, 3),
                   (middle, after, 1)] if bottleneck else [(before, middle, 3),
                                                           (middle, after, 3)])
        self.strides = [1, stride, 1] if bottleneck else [stride, 1]
        for i, (c_in, c_out, kernel) in enumerate(shapes, 1):
            self.add_module(f'conv{i}',
                            nn.Conv2d(c_in, c_out, kernel, bias=False))
            self.add_module(f'bn{i}', Norms(nn.BatchNorm2d, c_out, widths))
        self.stride, self.after = stride, after
        if stride > 1 or before != after:
            self.shortcut = nn.ModuleList([
                nn.Conv2d(before, after, 1, bias=False),
                Norms(nn.BatchNorm2d, after, widths)])


class Encoder(nn.Module):

    def __init__(self, depth, base, widths, fc, cifar=False):
        super().__init__()
        self.widths, self.cifar = widths, cifar
        self.conv1 = nn.Conv2d(3, base, 3 if cifar else 7, bias=False)
        self.bn1 = Norms(nn.BatchNorm2d, base, widths)
        blocks, before = [], base
        for stage, count in enumerate(STAGES[depth]):
            for i in range(count):
                stride = 2 if stage and not i else 1
                blocks.append(
                    Block(before, base * 2**stage, stride, depth >= 50,
                          widths))
                before = blocks[-1].after
        self.features = nn.ModuleList(blocks)
        self.fc = fc(before)

    def maps(self, x, i):
        """The maps of the i-th width."""

        def conv(layer, norms, x, stride):
            norm = norms.bn[i]
            weight = layer.weight[:norm.num_features, :x.shape[1]]
            padding = (weight.shape[2] - 1) // 2
            return norm(F.conv2d(x, weight, None, stride, padding))

        x = conv(self.conv1, self.bn1, x, 1 if self.cifar else 2).relu()
        if not self.cifar:
            x = F.max_pool2d(x, 3, 2, 1)
        for block in self.features:
            y, layers = x, len(block.strides)
            for n, stride in enumerate(block.strides, 1):
                y = conv(getattr(block, f'conv{n}'), getattr(block, f'bn{n}'),
                         y, stride)
                y = y.relu() if n < layers else y
            if hasattr(block, 'shortcut'):
                x = conv(*block.shortcut, x, block.stride)
            x = (x + y).relu()
        return x

    def embed(self, x, i):
        """The embedding of the i-th width."""
        return run_mlp(self.fc, self.maps(x, i).mean((2, 3)), i, self.widths)


def run_mlp(layers, x, i, widths):
    last = max(n for n, m in enumerate(layers) if isinstance(m, nn.Linear))
    for n, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            out = layer.out_features
            out = out if n == last else int(out * widths[i])
            bias = None if layer.bias is None else layer.bias[:out]
            x = F.linear(x, layer.weight[:out, :x.shape[1]], bias)
        else:
            x = layer.bn[i](x) if isinstance(layer, Norms) else layer(x)
    return x


def projector(method, hidden, out, widths):
    """From the number of features to the layers of ``fc``."""

    def norms(channels, **kwargs):
        return Norms(nn.BatchNorm1d, channels, widths, **kwargs)

    def build(features):
        biased = method != 'mocov3'
        layers = [nn.Linear(features, hidden, biased)]
        if method != 'mocov2':
            layers.append(norms(hidden))
        layers += [nn.ReLU(), nn.Linear(hidden, out, method == 'mocov2')]
        if method != 'mocov2':
            layers.append(norms(out, narrows=False, affine=method == 'simclr'))
        return nn.ModuleList(layers)

    return build


class Classifiers(nn.Module):
    """Linear classifiers of each width."""

    def __init__(self, features, classes, widths):
        super().__init__()
        self.linear = nn.ModuleList(
            nn.Linear(int(features * w), classes) for w in widths)


class Theirs(nn.Module):
    """An algorithm with random tensors under the keys of the authors."""

    def __init__(self, method, depth=50, base=32, widths=WIDTHS, hidden=64,
                 out=24, queue=40, cifar=False):
        super().__init__()
        self.widths = widths
        names = dict(mocov2=('encoder_q', 'encoder_k'),
                     mocov3=('base_encoder', 'momentum_encoder'),
                     simclr=('encoder_q', ))[method]
        for name in names:
            self.add_module(
                name,
                Encoder(depth, base, widths,
                        projector(method, hidden, out, widths), cifar))
        self.student, *teacher = (getattr(self, name) for name in names)
        self.teacher = teacher[0] if teacher else None
        if method == 'mocov2':
            self.register_buffer('queue', torch.zeros(out, queue))
            self.register_buffer('queue_ptr', torch.tensor([8]))
        if method == 'mocov3':
            self.predictor = projector(method, hidden, out, widths)(out)[:-1]
        randomise(self)

    def file(self, wrapper='module.', without=()):
        """The content of a file."""
        state = {
            wrapper + key: value for key, value in self.state_dict().items()
            if not key.startswith(('student.', 'teacher.'))
            and not key.endswith(tuple(without))}
        return dict(epoch=3, arch='resnet50', state_dict=state, optimizer=dict(
            state={}, param_groups=[]))


class Probe(Encoder):
    """A network with its classifiers."""

    def __init__(self, shared, classes=7, widths=WIDTHS, **kwargs):

        def classifiers(features):
            if shared:
                return nn.Linear(features, classes)
            return Classifiers(features, classes, widths)

        super().__init__(50, 32, widths, classifiers, **kwargs)
        randomise(self)

    def scores(self, x, i):
        """The scores of the i-th width."""
        x = self.maps(x, i).mean((2, 3))
        if isinstance(self.fc, nn.Linear):
            return x @ self.fc.weight[:, :x.shape[1]].T + self.fc.bias
        return self.fc.linear[i](x)


def randomise(module):
    """No tensor at 0 or 1, where a wrong one could hide."""
    generator = torch.Generator().manual_seed(4)
    for value in module.state_dict().values():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator,
                               dtype=value.dtype)
            value.copy_(0.5 + noise if value.ndim == 1 else (noise - 0.5) *
                        (12 / value[0].numel())**0.5)
