# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The memory that autograd graphs need, on any device."""
import weakref
from dataclasses import dataclass

import torch


class SavedBytes:
    """Bytes that autograd graphs keep alive for the backward pass.

    Each storage counts once, from the moment that a graph saves it until its
    last graph lets go of it. Parameters are left out: they live anyway.
    """

    def __init__(self, model):
        self.known = {
            p.untyped_storage().data_ptr() for p in model.parameters()}
        self.holders = {}
        self.alive = self.peak = 0

    def pack(self, tensor):
        storage, holder = tensor.untyped_storage(), Holder(tensor.detach())
        pointer, size = storage.data_ptr(), storage.nbytes()
        if pointer not in self.known:
            if not self.holders.get(pointer):
                self.alive += size
                self.peak = max(self.peak, self.alive)
            self.holders[pointer] = self.holders.get(pointer, 0) + 1
            weakref.finalize(holder, self.release, pointer, size)
        return holder

    def release(self, pointer, size):
        self.holders[pointer] -= 1
        if not self.holders[pointer]:
            self.alive -= size


@dataclass(eq=False)
class Holder:
    """What a graph keeps in place of a tensor."""

    tensor: torch.Tensor
