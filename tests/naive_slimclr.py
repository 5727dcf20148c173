# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""SlimCLR written out from its definition, on dictionaries of tensors.

One joint backward pass over all widths, no line of the package, and explicit
sums where the package has fused calls.
"""
import naive
import torch
import torch.nn.functional as F

# Of each method: the temperature of the contrast, that of the distillation,
# the layers of the projector that have norms, and whether it predicts.
METHODS = dict(moco_v2=(0.2, 5.0, False, False),
               moco_v3=(1.0, 1.0, True, True), simclr=(0.1, 5.0, True, False))
# a_i of widths 1, 0.5 and 0.25, worked out by hand from the formulas.
WEIGHTS = {
    'equal': [1, 1, 1],
    'share of widths': [1 / 1.75, 0.5 / 1.75, 0.25 / 1.75],
    'width': [1, 0.5, 0.25],
    'width, mean 1': [3 / 1.75, 1.5 / 1.75, 0.75 / 1.75],
    'full plus all': [1.75, 1, 1],
    'narrower sum, mean 1': [3 * 1.75 / 4, 3 * 1.25 / 4, 3 / 4],
    'full plus widest': [1.5, 1, 1], }


def private(params, width):
    """The whole weights, with the norms of ``width`` under plain names."""
    key = f'w{round(width * 1e6):07d}'
    result = {}
    for name, value in params.items():
        *owner, leaf = name.split('.')
        if owner and owner[-1][:2] in ('w0', 'w1'):
            continue
        theirs = '.'.join([*owner, key, leaf])
        result[name] = params.get(theirs, value)
    return result


def mlp(x, params, prefix, width, norms, slice_in=True, last_norm=False):
    """Two linear layers; the hidden features narrow, the output does not."""
    for i in range(2):
        weight = params[f'{prefix}fc{i}.weight']
        rows = weight.shape[0]
        if i == 0:
            rows = naive.channels(rows, width)
        weight = weight[:rows, :x.shape[1]]
        x = x @ weight.T
        if f'{prefix}fc{i}.bias' in params:
            x = x + params[f'{prefix}fc{i}.bias'][:rows]
        if norms if i == 0 else last_norm:
            x = naive.norm(x, params, f'{prefix}bn{i}')
        if i == 0:
            x = F.relu(x)
    return x


def rows_of(x):
    return x / (x * x).sum(1, keepdim=True).sqrt()


def cross_entropy(cosines, own, temperature):
    scores = (cosines / temperature).exp()
    return torch.stack([
        -(row[i] / row.sum()).log() for row, i in zip(scores, own)]).mean()


def divergence(student, teacher, temperature):
    """T^2 KL(teacher || student), the mean over rows."""
    s, t = ((x / temperature).exp() for x in (student, teacher))
    s, t = (x / x.sum(1, keepdim=True) for x in (s, t))
    return temperature**2 * (t * (t.log() - s.log())).sum() / len(t)


class NaiveSlimCLR:
    """Student, momentum encoder, queue, and an SGD with weight decay."""

    def __init__(self, params, method, beta=0.5, keep=0.99, queue=None,
                 lr=0.05, momentum=0.9, decay=1e-3, larger=False):
        self.params = {k: v.detach().clone() for k, v in params.items()}
        (self.tau, self.tau_distill, self.norms,
         self.predicts) = METHODS[method]
        self.method, self.beta, self.keep = method, beta, keep
        self.queue = None if queue is None else queue.clone()
        self.lr, self.momentum, self.decay = lr, momentum, decay
        self.larger, self.buffers = larger, {}
        self.teacher, self.pointer = self.full_encoder(), 0

    def full_encoder(self):
        return {
            k: v.clone() for k, v in self.params.items()
            if '.w0' not in k and not k.startswith('head.')}

    def encode(self, params, images, width):
        maps = naive.resnet18(images, params, width)
        return mlp(maps[-1].mean((2, 3)), params, 'neck.', width, self.norms,
                   last_norm=self.norms)

    def queries(self, params, views, width):
        if self.method == 'simclr':
            both = self.encode(params, torch.cat(views), width)
            zs = both[:len(views[0])], both[len(views[0]):]
        else:
            zs = [self.encode(params, view, width) for view in views]
        if self.predicts:
            zs = [mlp(z, params, 'head.predictor.', width, True) for z in zs]
        return [rows_of(z) for z in zs]

    def cosines(self, queries, keys):
        n = len(queries[0])
        if self.method == 'moco_v2':
            own = [[q @ k] for q, k in zip(queries[0], keys[0])]
            others = [[q @ k for k in self.queue] for q in queries[0]]
            table = [torch.stack(a + b) for a, b in zip(own, others)]
            return [(torch.stack(table), [0] * n)]
        if self.method == 'moco_v3':
            return [(q @ k.T, range(n)) for q, k in zip(queries, keys)]
        rows = [*queries[0], *queries[1]]
        table, own = [], []
        for i, row in enumerate(rows):
            others = [j for j in range(2 * n) if j != i]
            table.append(torch.stack([row @ rows[j] for j in others]))
            own.append(others.index((i + n) % (2 * n)))
        return [(torch.stack(table), own)]

    def losses(self, views, widths, weights):
        """(contrast, distillation) of each width, and the weighted total."""
        leaves = {
            k: v.clone().requires_grad_() for k, v in self.params.items()}
        student = views[:1] if self.method == 'moco_v2' else views
        with torch.no_grad():
            keys = [
                rows_of(self.encode(self.teacher, view, 1.0))
                for view in views[::-1][:len(student)]]
        total, parts, wider = 0, [], []
        for width, weight in zip(widths, weights):
            queries = self.queries(private(leaves, width), student, width)
            cosines = self.cosines(queries, keys)
            contrast = sum(
                cross_entropy(c, own, self.tau) for c, own in cosines)
            if self.method == 'moco_v3':
                contrast = 2 * self.tau * contrast
            distill = 0
            if wider and self.beta:
                terms = [
                    sum(
                        divergence(c, t, self.tau_distill)
                        for (c, _), t in zip(cosines, teacher))
                    for teacher in wider]
                distill = sum(terms) / len(terms)
                total = total + weight * (
                    (1 - self.beta) * contrast + self.beta * distill)
            else:
                total = total + weight * contrast
            if self.larger or not wider:
                wider.append([c.detach() for c, _ in cosines])
            parts.append((contrast.item(), float(distill)))
        return leaves, parts, total, keys

    def step(self, views, widths, weights, first):
        if not first:
            for name, value in self.teacher.items():
                value.mul_(self.keep).add_((1 - self.keep) * self.params[name])
        leaves, parts, total, keys = self.losses(views, widths, weights)
        grads = torch.autograd.grad(total, [*leaves.values()],
                                    allow_unused=True)
        grads = {k: g for k, g in zip(leaves, grads) if g is not None}
        for name, grad in grads.items():
            grad = grad + self.decay * self.params[name]
            self.buffers[name] = (self.momentum * self.buffers[name] +
                                  grad if name in self.buffers else grad)
            self.params[name] -= self.lr * self.buffers[name]
        if self.queue is not None:
            for key in keys[0]:
                self.queue[self.pointer] = key
                self.pointer = (self.pointer + 1) % len(self.queue)
        return parts, float(total), grads
