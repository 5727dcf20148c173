# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""US3L written out from its definition, on dictionaries of tensors.

Slow and plain on purpose, and without a line of the package: this is what the
tests compare it with. The network is a ResNet-18 with a CIFAR stem.
"""
import math

import torch
import torch.nn.functional as F


def channels(full, width):
    """``full * width`` to the nearest 8, up where that loses over 10 %."""
    exact = full * width
    nearest = max(8, 8 * math.floor(exact / 8 + 0.5))
    return min(full, nearest + 8 if nearest < 0.9 * exact else nearest)


# The network: x is a tensor, params a dictionary of whole parameters ---------


def norm(x, params, name):
    """Batch norm by the statistics of the batch, on as many channels as x."""
    rest = [0, *range(2, x.dim())]
    shape = [1, x.shape[1]] + [1] * (x.dim() - 2)
    mean = x.mean(rest, keepdim=True)
    var = ((x - mean)**2).mean(rest, keepdim=True)
    y = (x - mean) / (var + 1e-5).sqrt()
    if f'{name}.weight' not in params:
        return y
    c = x.shape[1]
    return (y * params[f'{name}.weight'][:c].view(shape) +
            params[f'{name}.bias'][:c].view(shape))


def conv(x, params, name, width, stride=1):
    """Leading output channels, as many input channels as x; no bias."""
    weight = params[f'{name}.weight']
    c_out = channels(weight.shape[0], width)
    weight = weight[:c_out, :x.shape[1]]
    return F.conv2d(x, weight, None, stride, weight.shape[2] // 2)


def resnet18(x, params, width, prefix='backbone.'):
    """The maps of the stages, at most four."""
    x = conv(x, params, f'{prefix}conv1', width)
    x = F.relu(norm(x, params, f'{prefix}bn1'))
    maps = []
    for stage in range(1, 5):
        if f'{prefix}layer{stage}.0.conv1.weight' not in params:
            break
        for block in range(2):
            name = f'{prefix}layer{stage}.{block}'
            stride = 2 if stage > 1 and block == 0 else 1
            y = conv(x, params, f'{name}.conv1', width, stride)
            y = F.relu(norm(y, params, f'{name}.bn1'))
            y = norm(conv(y, params, f'{name}.conv2', width), params,
                     f'{name}.bn2')
            if f'{name}.downsample.0.weight' in params:
                x = norm(
                    conv(x, params, f'{name}.downsample.0', width, stride),
                    params, f'{name}.downsample.1')
            x = F.relu(x + y)
        maps.append(x)
    return maps


def mlp(x, params, prefix, layers, last_norm=False):
    """Linear layers with norm and ReLU between; the first cuts its input."""
    for i in range(layers):
        weight = params[f'{prefix}fc{i}.weight'][:, :x.shape[1]]
        x = x @ weight.T
        if f'{prefix}fc{i}.bias' in params:
            x = x + params[f'{prefix}fc{i}.bias']
        if i < layers - 1 or last_norm:
            x = norm(x, params, f'{prefix}bn{i}')
        if i < layers - 1:
            x = F.relu(x)
    assert f'{prefix}fc{layers}.weight' not in params
    return x


# Losses, of a prediction and a target, both (N, d) ---------------------------


def cosine(p, t):
    """Minus the cosine, averaged over rows."""
    return -sum((a @ b) / (a.norm() * b.norm()) for a, b in zip(p, t)) / len(p)


def mse(p, t):
    """Squared differences, averaged over all elements."""
    return sum(((a - b)**2).sum() for a, b in zip(p, t)) / p.numel()


def info_nce(p, t, temperature=0.5):
    """Rows of both halves, each against all others: a loop over pairs."""
    rows, n = [v / v.norm() for v in (*p, *t)], len(p)
    total = 0
    for i, row in enumerate(rows):
        others = sum(
            torch.exp(row @ rows[j] / temperature) for j in range(2 * n)
            if j != i)
        partner = rows[i + n if i < n else i - n]
        total = total - torch.log(
            torch.exp(row @ partner / temperature) / others)
    return total / (2 * n)


def moco_v3(p, t, temperature=0.2):
    """Each prediction against all targets, times twice the temperature."""
    p, t = [v / v.norm() for v in p], [v / v.norm() for v in t]
    total = 0
    for i, row in enumerate(p):
        scores = [torch.exp(row @ other / temperature) for other in t]
        total = total - torch.log(scores[i] / sum(scores))
    return 2 * temperature * total / len(p)


LOSSES = dict(cosine=cosine, mse=mse, info_nce=info_nce, moco_v3=moco_v3)

# Of each base method: base loss, whether the base pass has a predictor, a
# momentum teacher, and whether projector and predictors end in a norm.
METHODS = dict(simclr_momentum=('info_nce', False, True, False, False),
               byol=('cosine', True, True, False,
                     False), simsiam=('cosine', True, False, True, False),
               simsiam_momentum=('cosine', True, True, True,
                                 False), moco_v3=('moco_v3', True, True, True,
                                                  True))

# Training --------------------------------------------------------------------


class NaiveTrainer:
    """A student, its teacher and an SGD with momentum, in dictionaries.

    ``reg`` maps (parameters, is_base) to a loss term, ``keep`` is the share
    of itself that the teacher keeps per update (a paper's m), a number or a
    function of the progress that :meth:`step` is told.
    """

    def __init__(self, params, base_method, base_loss=None, distill_loss=None,
                 share_head=False, distill_from='default',
                 update_mode='sequential', keep=0.99, features=None, reg=None,
                 lr=0.1, momentum=0.9, clip_norm=None):
        self.params = {k: v.detach().clone() for k, v in params.items()}
        # It starts as a copy of the student.
        self.teacher = {
            k: v.clone() for k, v in self.params.items()
            if k.startswith(('backbone.', 'neck.'))}
        (loss, self.predicts, self.has_teacher, self.last_norm,
         self.last_predictor_norm) = METHODS[base_method]
        self.base_loss = LOSSES[base_loss or loss]
        self.distill_loss = LOSSES[distill_loss or (
            'moco_v3' if base_method == 'moco_v3' else 'cosine')]
        self.share_head = share_head
        self.source = distill_from
        if distill_from == 'default':
            self.source = 'teacher' if self.has_teacher else 'online'
        self.accumulates = update_mode == 'accumulate'
        self.keep, self.features, self.reg = keep, features, reg
        self.lr, self.momentum, self.clip_norm = lr, momentum, clip_norm
        self.buffers = {}

    def encode(self, params, view, width):
        """The maps, and the embedding."""
        maps = resnet18(view, params, width)
        return maps, mlp(maps[-1].mean((2, 3)), params, 'neck.', 3,
                         self.last_norm)

    def head(self, params, z, distils):
        """The prediction that is compared with the target."""
        last = self.last_predictor_norm
        if distils and not self.share_head:
            return mlp(z, params, 'distill_head.predictor.', 2, last)
        return (mlp(z, params, 'head.predictor.', 2, last)
                if self.predicts else z)

    def match_features(self, params, maps, target_maps):
        """Lift each map by a 1x1 convolution, compare with the teacher's."""
        total = 0
        for i, output in enumerate(self.features):
            weight = params[f'feature_distiller.projections.{i}.weight']
            bias = params.get(f'feature_distiller.projections.{i}.bias')
            c = maps[output].shape[1]
            lifted = torch.einsum('nchw,oc->nohw', maps[output], weight[:, :c,
                                                                        0, 0])
            if bias is not None:
                lifted = lifted + bias.view(1, -1, 1, 1)
            total = total + ((lifted - target_maps[output])**2).mean()
        return total / len(self.features)

    def step(self, views, widths, progress=0.0):
        """One batch; a list of (width, losses, gradients) of each pass."""
        passes, summed = self.passes(views, widths, progress)
        if self.accumulates:
            self.sgd(summed)
        return passes

    def update(self, batches, widths, progress=0.0):
        """One step for the mean loss of several batches.

        Returns what :meth:`step` returns of each. The teacher moves once.
        """
        found, total = [], {}
        for index, views in enumerate(batches):
            passes, summed = self.passes(views, widths, progress,
                                         moves=index == 0)
            found.append(passes)
            total = {
                k: total.get(k, 0) + summed.get(k, 0) / len(batches)
                for k in {*total, *summed}}
        self.sgd(total)
        return found

    def passes(self, views, widths, progress, moves=True):
        """The passes of one batch, and the sum of their gradients.

        Each pass makes its step, unless the trainer accumulates.
        """
        keep = self.keep(progress) if callable(self.keep) else self.keep
        passes, summed, fixed = [], {}, {}
        for width in sorted(widths, reverse=True):
            is_base = not passes
            leaves = {
                k: v.detach().requires_grad_() for k, v in self.params.items()}
            (maps1, z1), (maps2, z2) = (self.encode(leaves, v, width)
                                        for v in views)
            own = [([m.detach() for m in maps], z.detach())
                   for maps, z in ((maps1, z1), (maps2, z2))]
            if is_base:
                for k, v in self.teacher.items() if moves else ():
                    self.teacher[k] = (keep * v + (1 - keep) * self.params[k])
                fixed = dict(online=own, teacher=self.teach(views, width))
                targets = fixed['teacher'] if self.has_teacher else own
            elif self.source is not None:
                targets = fixed[self.source]
            else:
                targets = (self.teach(views, width)
                           if self.has_teacher else own)
            distils = self.source is not None and not is_base
            criterion = self.distill_loss if distils else self.base_loss
            p1, p2 = (self.head(leaves, z, distils) for z in (z1, z2))
            losses = {
                'distill' if distils else 'base':
                (criterion(p1, targets[1][1]) + criterion(p2, targets[0][1])) /
                2}
            if distils and self.features:
                losses['feature'] = (
                    self.match_features(leaves, maps1, targets[1][0]) +
                    self.match_features(leaves, maps2, targets[0][0])) / 2
            if self.reg is not None:
                losses['reg'] = self.reg(leaves, is_base)
            grads = dict(
                zip(
                    leaves,
                    torch.autograd.grad(sum(losses.values()),
                                        list(leaves.values()),
                                        allow_unused=True)))
            grads = {k: g for k, g in grads.items() if g is not None}
            passes.append((width, {
                k: v.item() for k, v in losses.items()}, grads))
            if self.accumulates:
                summed = {
                    k: summed.get(k, 0) + grads.get(k, 0)
                    for k in {*summed, *grads}}
            else:
                self.sgd(grads)
        return passes, summed

    def teach(self, views, width):
        """The teacher's maps and embedding of each view."""
        return [self.encode(self.teacher, view, width) for view in views]

    def sgd(self, grads):
        """Torch's: buffer = momentum * buffer + gradient."""
        scale = 1.0
        if self.clip_norm is not None:
            total = sum((g**2).sum() for g in grads.values())**0.5
            scale = min(1.0, float(self.clip_norm / (total + 1e-6)))
        for k, g in grads.items():
            self.buffers[k] = (self.momentum * self.buffers[k] +
                               scale * g if k in self.buffers else scale * g)
            self.params[k] = self.params[k] - self.lr * self.buffers[k]


# What to feed both ----------------------------------------------------------


def batch(seed=0, images=5, pixels=12):
    """Two views as a loader gives them, and as the network sees them."""
    generator = torch.Generator().manual_seed(seed)
    views = [
        torch.randint(0, 256, (images, 3, pixels, pixels), generator=generator,
                      dtype=torch.uint8) for _ in range(2)]
    return (dict(inputs=views, data_samples=[None] * images), [
        (view.double() - 120) / 60 for view in views])
