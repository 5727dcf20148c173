# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A GPU without values, which shows what a program asks of a real one."""
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import (DataDependentOutputException,
                                           FakeTensorMode)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = 'cuda'


class Transfers(TorchDispatchMode):
    """Collects the operations that move values between host and device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = self._devices((args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default:
            self.found.append(str(func))
        result = func(*args, **kwargs)
        moved = self._devices(result) | given
        copies = ('_to_copy', 'copy_', '_pin_memory')
        if len(moved) > 1 and func.__name__.split('.')[0] in copies:
            self.found.append(str(func))
        return result

    @staticmethod
    def _devices(values):
        return {
            x.device.type for x in tree_leaves(values)
            if isinstance(x, torch.Tensor)}


@contextmanager
def fake_gpu():
    """Tensors that are made in the block have no values."""
    with FakeTensorMode(), torch.device(DEVICE):
        yield


def transfers(call) -> list:
    """The transfers of ``call()``, which may end at the first read value."""
    with Transfers() as mode:
        try:
            call()
        except DataDependentOutputException as error:
            mode.found.append(str(error.func))
    return mode.found
