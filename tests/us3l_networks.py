# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The authors' networks and files, written from their keys and shapes.

Plain layers of PyTorch, whose names give the keys of the authors' files, and
without a line of the package.
"""
import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from naive import LOSSES, channels
from naive_mobilenet import STAGES
from torch import nn

HIDDEN, DIMS = 24, 12  # of small projectors and predictors


def conv(layer, x, c_out):
    """Leading output channels, as many input channels as ``x`` has."""
    groups = x.shape[1] if layer.groups > 1 else 1
    weight = layer.weight[:c_out, :x.shape[1] // groups]
    return F.conv2d(x, weight, None, layer.stride, layer.padding, 1, groups)


def norm(layer, x):
    """By the statistics of the batch, or by the running ones."""
    c = x.shape[1]
    weight, bias = ((layer.weight[:c], layer.bias[:c]) if layer.affine else
                    (None, None))
    if layer.training:
        return F.batch_norm(x, None, None, weight, bias, True)
    return F.batch_norm(x, layer.running_mean[:c], layer.running_var[:c],
                        weight, bias)


class Block(nn.Module):
    """Of a ResNet; ``kernels`` (3, 3), or (1, 3, 1) of a bottleneck."""

    def __init__(self, c_in, c_mid, c_out, stride, kernels):
        super().__init__()
        self.depth = len(kernels)
        for i, kernel in enumerate(kernels, 1):
            last = i == self.depth
            c = c_out if last else c_mid
            step = stride if i == self.depth - 1 else 1
            setattr(
                self, f'conv{i}',
                nn.Conv2d(c_in if i == 1 else c_mid, c, kernel, step,
                          kernel // 2, bias=False))
            setattr(self, f'bn{i}', nn.BatchNorm2d(c))
        self.downsample = None
        if stride > 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False),
                nn.BatchNorm2d(c_out))

    def forward(self, x, width):
        y = x
        for i in range(1, self.depth + 1):
            layer = getattr(self, f'conv{i}')
            y = norm(getattr(self, f'bn{i}'),
                     conv(layer, y, channels(layer.out_channels, width)))
            if i < self.depth:
                y = y.relu()
            if i == 2:
                self.inner = y  # feature distillation reads it
        if self.downsample is not None:
            layer = self.downsample[0]
            x = norm(self.downsample[1],
                     conv(layer, x, channels(layer.out_channels, width)))
        return (x + y).relu()


class ResNet(nn.Module):

    projector = 'fc'

    def __init__(self, depth=18, base=16, cifar=True):
        super().__init__()
        bottleneck = depth == 50
        blocks = (3, 4, 6, 3) if bottleneck else (2, 2, 2, 2)
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        kernel, stride = (3, 1) if cifar else (7, 2)
        self.cifar = cifar
        self.conv1 = nn.Conv2d(3, base, kernel, stride, kernel // 2,
                               bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        c_in = base
        for stage, count in enumerate(blocks):
            c_mid = base * 2**stage
            c_out = c_mid * (4 if bottleneck else 1)
            layers = []
            for i in range(count):
                layers.append(
                    Block(c_in, c_mid, c_out, 2 if stage and not i else 1,
                          kernels))
                c_in = c_out
            setattr(self, f'layer{stage + 1}', nn.Sequential(*layers))
        self.features_out = c_in

    def maps(self, x, width):
        x = norm(self.bn1,
                 conv(self.conv1, x, channels(self.conv1.out_channels,
                                              width))).relu()
        if not self.cifar:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            for block in getattr(self, f'layer{stage}'):
                x = block(x, width)
        return x


class InvertedResidual(nn.Module):

    def __init__(self, c_in, c_out, stride, expand):
        super().__init__()
        hidden = c_in * expand
        layers = [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out)]
        if expand > 1:
            layers = [
                nn.Conv2d(c_in, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(), *layers]
        self.body = nn.Sequential(*layers)
        self.expand, self.adds = expand, stride == 1 and c_in == c_out

    def forward(self, x, width):
        y = x
        for i in range(0, len(self.body), 3):
            layer, last = self.body[i], i + 3 > len(self.body)
            ratio = 1 if last else self.expand
            c_out = ratio * channels(layer.out_channels // ratio, width)
            y = norm(self.body[i + 1], conv(layer, y, c_out))
            y = y if last else y.clamp(0, 6)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):

    projector = 'fc'

    def __init__(self, cifar=True):
        super().__init__()
        step = 1 if cifar else 2

        def simple(c_in, c_out, kernel, stride):
            return nn.Sequential(
                nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2,
                          bias=False), nn.BatchNorm2d(c_out), nn.ReLU6())

        layers, c_in = [simple(3, 32, 3, step)], 32
        for stage, (expand, c_out, count, stride) in enumerate(STAGES):
            for i in range(count):
                first = step if stage == 1 else stride
                layers.append(
                    InvertedResidual(c_in, c_out, 1 if i else first, expand))
                c_in = c_out
        self.features = nn.Sequential(*layers, simple(320, 1280, 1, 1))
        self.features_out = 1280

    def maps(self, x, width):
        stem, *blocks, last = self.features
        x = norm(stem[1], conv(stem[0], x, channels(32, width))).clamp(0, 6)
        for block in blocks:
            x = block(x, width)
        return norm(last[1], conv(last[0], x, 1280)).clamp(0, 6)


def leading(layer, x, width):
    """A linear layer that reads the leading features of ``x``."""
    c = channels(layer.in_features, width)
    return x[..., :c] @ layer.weight[:, :c].T + layer.bias


class ViTBlock(nn.Module):

    def __init__(self, dims, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dims, eps=1e-6)
        self.attn = nn.ModuleDict(
            dict(qkv=nn.Linear(dims, 3 * dims), proj=nn.Linear(dims, dims)))
        self.norm2 = nn.LayerNorm(dims, eps=1e-6)
        self.mlp = nn.ModuleDict(
            dict(fc1=nn.Linear(dims, 4 * dims), fc2=nn.Linear(4 * dims, dims)))

    def forward(self, x, width):
        n, length, dims = x.shape
        qkv = leading(self.attn['qkv'], self.norm1(x), width)
        q, k, v = qkv.view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        share = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        z = (share @ v).transpose(1, 2).reshape(n, length, dims)
        x = x + leading(self.attn['proj'], z, width)
        y = F.gelu(leading(self.mlp['fc1'], self.norm2(x), width))
        return x + leading(self.mlp['fc2'], y, width)


class ViT(nn.Module):

    projector = 'head'

    def __init__(self, dims=192, heads=6, depth=2, pixels=32, patch=16):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims))
        self.pos_embed = nn.Parameter(
            torch.zeros(1, 1 + (pixels // patch)**2, dims),
            requires_grad=False)
        self.patch_embed = nn.ModuleDict(
            dict(proj=nn.Conv2d(3, dims, patch, patch)))
        self.patch_embed.requires_grad_(False)
        self.blocks = nn.ModuleList(
            ViTBlock(dims, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dims, eps=1e-6)
        self.features_out = dims

    def maps(self, x, width):
        x = self.patch_embed['proj'](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x, width)
        return self.norm(x)[:, 0]


def mlp(sizes, biases, last_norm):
    """Linear layers with norm and ReLU between."""
    layers = []
    for i, bias in enumerate(biases):
        layers.append(nn.Linear(sizes[i], sizes[i + 1], bias=bias))
        if i < len(biases) - 1:
            layers += [nn.BatchNorm1d(sizes[i + 1]), nn.ReLU()]
    if last_norm:
        layers.append(nn.BatchNorm1d(sizes[-1], affine=False))
    return nn.Sequential(*layers)


def run_mlp(layers, x):
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight[:, :x.shape[1]].T
            x = x if layer.bias is None else x + layer.bias
        else:
            x = norm(layer, x) if isinstance(layer,
                                             nn.BatchNorm1d) else x.relu()
    return x


class Theirs(nn.Module):
    """Student, momentum encoder and predictors of a base method."""

    def __init__(self, backbone, method, hidden=HIDDEN, dims=DIMS,
                 projector_biases=(True, True, True),
                 predictor_biases=(False, True), projections=(), has_two=None):
        super().__init__()
        is_vit = method == 'mocov3'
        if has_two is None:
            has_two = method in ('byol', 'mocov3', 'simsiam-momentum')
        if is_vit:
            projector_biases, predictor_biases = [False] * 3, [False] * 2
        setattr(
            backbone, backbone.projector,
            mlp((backbone.features_out, hidden, hidden, dims),
                projector_biases, is_vit or method == 'simsiam'))
        if method == 'simsiam':  # the norm behind it takes it away
            backbone.fc[6].bias.requires_grad_(False)
        self.method = method
        self.names = (('base_encoder', 'momentum_encoder') if is_vit else
                      ('encoder_q', 'encoder_k'))
        setattr(self, self.names[0], backbone)
        self.predictor = mlp((dims, hidden, dims), predictor_biases, is_vit)
        if has_two:
            self.predictor_new = mlp((dims, hidden, dims), predictor_biases,
                                     is_vit)
        if projections:
            self.distill_convs = nn.ModuleList(
                nn.Conv2d(c, c, 1, bias=False) for c in projections)
        randomise(self)
        teacher = randomise(deepcopy(backbone)).requires_grad_(False)
        if is_vit:
            teacher.pos_embed.copy_(backbone.pos_embed)
            teacher.patch_embed.load_state_dict(
                backbone.patch_embed.state_dict())
        if method != 'simsiam':
            setattr(self, self.names[1], teacher)

    @property
    def student(self):
        return getattr(self, self.names[0])

    @property
    def teacher(self):
        return getattr(self, self.names[1])

    def embed(self, encoder, x, width):
        features = encoder.maps(x, width)
        if features.ndim == 4:
            features = features.mean((2, 3))
        return run_mlp(getattr(encoder, encoder.projector), features)

    def inner_maps(self, encoder):
        """Of stages 2 to 4, from the last call of ``encoder.maps``."""
        if not hasattr(self, 'distill_convs'):
            return []
        return [
            getattr(encoder, f'layer{stage}')[-1].inner for stage in (2, 3, 4)]

    def match_maps(self, maps, targets):
        """Mean squared errors behind convolutions with narrow inputs."""
        return sum(
            F.mse_loss(F.conv2d(x, layer.weight[:, :x.shape[1]]), target)
            for layer, x, target in zip(self.distill_convs, maps,
                                        targets)) / len(maps)

    def predict(self, z, is_base):
        if is_base and self.method == 'simclr-momentum':
            return z
        if not is_base and hasattr(self, 'predictor_new'):
            return run_mlp(self.predictor_new, z)
        return run_mlp(self.predictor, z)

    def iterate(self, views, widths, optimizer, keep=0.99):
        """The losses of the passes over one batch; each makes a step."""
        losses = []
        base, distil = {
            'simclr-momentum': ('info_nce', 'cosine'),
            'simsiam-momentum': ('cosine', 'info_nce'),
            'mocov3': ('moco_v3', 'moco_v3')}.get(self.method,
                                                  ('cosine', 'cosine'))
        for width in sorted(widths, reverse=True):
            is_base = not losses
            optimizer.zero_grad()
            z, maps = [], []
            for view in views:
                z.append(self.embed(self.student, view, width))
                maps.append(self.inner_maps(self.student))
            p = [self.predict(each, is_base) for each in z]
            if is_base and self.method == 'simsiam':
                t = [each.detach() for each in z]
            elif is_base:
                with torch.no_grad():
                    for old, new in zip(self.teacher.parameters(),
                                        self.student.parameters()):
                        old.copy_(keep * old + (1 - keep) * new)
                    t, fixed = [], []
                    for view in views:
                        t.append(self.embed(self.teacher, view, width))
                        fixed.append(self.inner_maps(self.teacher))
            match = LOSSES[base if is_base else distil]
            loss = match(p[0], t[1]) + match(p[1], t[0])
            if self.method != 'mocov3':  # which sums the two
                loss = loss / 2
            if not is_base and maps[0]:
                loss = loss + (self.match_maps(maps[0], fixed[1]) +
                               self.match_maps(maps[1], fixed[0])) / 2
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def file(self, calibrated=False):
        """The state dict that their code writes.

        Norms of the backbone that narrow have running statistics in
        calibrated files only.
        """
        kept = ('fc.', 'head.', 'predictor', 'features.18.1.')
        return {
            f'module.{key}': value for key, value in self.state_dict().items()
            if calibrated or not key.endswith(('running_mean', 'running_var',
                                               'num_batches_tracked')) or any(
                                                   name in key
                                                   for name in kept)}


@torch.no_grad()
def randomise(module):
    """Weights of a usual size; affine parameters and statistics as well."""
    for value in module.state_dict().values():
        if value.ndim > 1:
            nn.init.normal_(value, std=(2 / value[0].numel())**0.5)
        elif value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)
    return module
