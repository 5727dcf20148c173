# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Dense + gated SSL written out from its definition, on dictionaries.

No line of the package, and explicit sums where the package has fused calls.
The network is a ResNet-18 with a CIFAR stem of padding 2.
"""
import math

import naive
import torch
import torch.nn.functional as F

TAU = 2 / 3


def norm(x, params, name, mode):
    """Batch norm of the statistics of the batch, private where there is one.
    """
    if mode == 'gated' and f'{name}.gated.weight' in params:
        name = f'{name}.gated'
    return naive.norm(x, params, name)


def conv(x, params, name, stride=1, padding=None):
    weight = params[f'{name}.weight']
    return F.conv2d(x, weight, None, stride,
                    weight.shape[2] // 2 if padding is None else padding)


def gate(x, params, name, noise):
    """The mask (N, C), its value hard and its gradient that of the soft one.
    """
    x = x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
    hidden = F.relu(
        naive.norm(conv(x, params, f'{name}.conv1'), params, f'{name}.norm'))
    logits = conv(hidden, params, f'{name}.conv2')[:, :, 0, 0]
    soft = 1 / (1 + torch.exp(-(logits + noise) / TAU))
    hard = (soft >= 0.5).double()
    return (hard - soft).detach() + soft, 1 / (1 + torch.exp(-logits))


def resnet18(x, params, mode, noises):
    """The last map, and for each gate: mask, probability, shapes and costs."""
    x = conv(x, params, 'backbone.conv1', padding=2)
    fixed = dense = 27 * 16 * x.shape[2] * x.shape[3]
    x = F.relu(norm(x, params, 'backbone.bn1', 'dense'))
    gates = []
    for stage in range(1, 3):
        for block in range(2):
            name = f'backbone.layer{stage}.{block}'
            stride = 2 if stage > 1 and block == 0 else 1
            c_in = x.shape[1]
            y = conv(x, params, f'{name}.conv1', stride)
            c_out, pixels = y.shape[1], y.shape[2] * y.shape[3]
            y = F.relu(norm(y, params, f'{name}.bn1', mode))
            per_channel = 9 * pixels * (c_in + c_out)
            dense += per_channel * c_out
            if mode == 'gated':
                mask, probability = gate(x, params, f'{name}.gate1',
                                         next(noises))
                y = y * mask[:, :, None, None]
                gates.append((mask, probability, per_channel))
                fixed += c_in * (c_in // 4) + (c_in // 4) * c_out
            y = norm(conv(y, params, f'{name}.conv2'), params, f'{name}.bn2',
                     mode)
            if f'{name}.downsample.0.weight' in params:
                x = norm(conv(x, params, f'{name}.downsample.0', stride),
                         params, f'{name}.downsample.1', 'dense')
                fixed += pixels * c_in * c_out
                dense += pixels * c_in * c_out
            x = F.relu(x + y)
    return x, gates, fixed, dense


def vicreg(a, b):
    n, d = a.shape
    loss = 25 * ((a - b)**2).sum() / (n * d)
    for z in (a, b):
        z = z - z.sum(0) / n
        cov = sum(torch.outer(row, row) for row in z) / (n - 1)
        spread = [F.relu(1 - (cov[j, j] + 1e-4).sqrt()) for j in range(d)]
        loss = loss + 25 * sum(spread) / d
        loss = loss + sum(cov[i, j]**2 for i in range(d)
                          for j in range(d) if i != j) / d
    return loss


def barlow_twins(a, b):
    n, d = a.shape
    a, b = (torch.stack([(column - column.mean()) /
                         (((column - column.mean())**2).mean() + 1e-5).sqrt()
                         for column in z.T]) for z in (a, b))
    loss = 0
    for i in range(d):
        for j in range(d):
            c = a[i] @ b[j] / n
            loss = loss + ((c - 1)**2 if i == j else 0.0051 * c**2)
    return 0.024 * loss


def simsiam(a, b, params):
    p, q = (naive.mlp(z, params, 'head.predictor.', 2) for z in (a, b))
    return (naive.cosine(p, b.detach()) + naive.cosine(q, a.detach())) / 2


def simclr(a, b):
    return naive.info_nce(a, b, 0.2)


def rotation(x, params, turns):
    x = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    for i in (1, 2, 3):
        name = f'rotation.fc{i}'
        x = x @ params[f'{name}.weight'].T + params[f'{name}.bias']
        if i < 3:
            x = x - x.mean(1, keepdim=True)
            x = x / ((x**2).mean(1, keepdim=True) + 1e-5).sqrt()
            x = x * params[f'rotation.ln{i}.weight']
            x = F.relu(x + params[f'rotation.ln{i}.bias'])
    shares = [row.exp()[k] / row.exp().sum() for row, k in zip(x, turns)]
    return 0.2 * -torch.stack(shares).log().mean()


LOSSES = dict(vicreg=vicreg, barlow_twins=barlow_twins, simclr=simclr)


class NaiveDenseGated:
    """The shared weights and an SGD with momentum."""

    def __init__(self, params, head, target=0.5, weight=5.0, gamma=1.0,
                 anneal=10.0, expected=False, bound='sqrt', lr=0.05,
                 momentum=0.9):
        self.params = {k: v.detach().clone() for k, v in params.items()}
        self.head, self.target, self.weight = head, target, weight
        self.gamma, self.anneal, self.expected = gamma, anneal, expected
        self.bound = bound
        self.lr, self.momentum, self.buffers = lr, momentum, {}

    def step(self, views, modes, progress, noises, turns=None):
        leaves = {
            k: v.clone().requires_grad_() for k, v in self.params.items()}
        losses, embeddings, noises = {}, [], iter(noises)
        for view, mode in zip(views, modes):
            own = leaves
            if mode == 'dense' and 'dense_network.neck.fc0.weight' in leaves:
                own = {
                    k.removeprefix('dense_network.'): v
                    for k, v in leaves.items()
                    if k.startswith('dense_network.')}
            if mode == 'dense' and turns is not None:
                view = torch.stack([
                    torch.rot90(image, int(k), (1, 2))
                    for image, k in zip(view, turns)])
            x, gates, fixed, dense = resnet18(view, own, mode, noises)
            if mode == 'dense' and turns is not None:
                losses['loss_rotation'] = rotation(x, leaves, turns)
            embeddings.append(naive.mlp(x.mean((2, 3)), own, 'neck.', 3))
            if mode == 'gated':
                for name, value in self.budget(gates, fixed, dense,
                                               progress).items():
                    losses[name] = losses.get(name, 0) + value
        losses['loss_ssl'] = (simsiam(*embeddings, leaves) if self.head
                              == 'simsiam' else LOSSES[self.head](*embeddings))
        grads = torch.autograd.grad(sum(losses.values()), [*leaves.values()],
                                    allow_unused=True)
        grads = {k: g for k, g in zip(leaves, grads) if g is not None}
        for name, grad in grads.items():
            self.buffers[name] = (self.momentum * self.buffers[name] +
                                  grad if name in self.buffers else grad)
            self.params[name] -= self.lr * self.buffers[name]
        return {k: v.item() for k, v in losses.items()}, grads

    def budget(self, gates, fixed, dense, progress):
        on = [
            probability if self.expected else mask
            for mask, probability, _ in gates]
        images = len(on[0])
        real = sum(cost * channels[i].sum() for i in range(images)
                   for channels, (_, _, cost) in zip(on, gates)) / images
        ratio = (real + fixed) / dense
        if self.bound == 'sqrt':
            s = math.sqrt(self.target)
        else:  # the density, equal everywhere, that has this cost
            s = (self.target * dense - fixed) / sum(cost * mask.shape[1]
                                                    for mask, _, cost in gates)
        p = math.exp(-self.anneal * progress)
        penalty = 0
        for channels in on:
            d = channels.sum() / channels.numel()
            penalty = penalty + F.relu(p * s - d)**2 + F.relu(d - (1 - p *
                                                                   (1 - s)))**2
        return dict(loss_budget=self.weight * (ratio - self.target)**2,
                    loss_bound=self.gamma * penalty / len(on))
