# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A method of another kind, to see that one takes a single file.

The full network learns to tell its two views of an image from those in a
queue; a narrow one matches what the full network has just put out.
"""
import torch
import torch.nn.functional as F
from mmengine.dist import all_gather

from us3l_mm.models import MultiPassSSL
from us3l_mm.models.selfsup import encode, spread
from us3l_mm.registry import MODELS


@MODELS.register_module()
class ToyAlgorithm(MultiPassSSL):

    def __init__(self, *args, queue_length=12, **kwargs):
        super().__init__(*args, **kwargs)
        keys = torch.randn(queue_length, self.neck.fc1.out_features)
        self.register_buffer('queue', F.normalize(keys))

    def loss(self, batch, pass_):
        z1, z2 = (F.normalize(z)
                  for _, z in encode(self.backbone, self.neck, batch.views))
        log = {f'spread_{pass_.name}': spread(z1)}
        if pass_.role == 'distil':
            loss = self.head.loss(z1, batch.carried['full'])
            return dict(losses={f'loss_{pass_.name}': loss}, log=log)
        own = (z1 * z2.detach()).sum(1, keepdim=True)
        logits = torch.cat([own, z1 @ self.queue.T], dim=1) / 0.2
        loss = F.cross_entropy(logits, logits.new_zeros(len(z1)).long())
        return dict(losses=dict(loss_base=loss), log=log,
                    carried=dict(full=z2.detach()))

    def end(self, batch):
        keys = torch.cat(all_gather(batch.carried['full']))
        self.queue = torch.cat([self.queue, keys])[-len(self.queue):]
