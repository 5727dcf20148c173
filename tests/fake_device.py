# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""What a program would move between a host and a device, without a device.

PyTorch's meta device, whose tensors have no values, takes its place.
"""
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = 'meta'
READ = torch.ops.aten._local_scalar_dense.default
CONSTANTS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class _Transfers(TorchDispatchMode):

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is READ:  # before it fails, as there is no value
            self.found.append(str(func))
        copies = func in COPIES
        given = self.devices((args, kwargs), copies)
        if copies and 'device' in kwargs:
            given.add(torch.device(kwargs['device']).type)
        if len(given) > 1:
            self.found.append(str(func))
        return func(*args, **kwargs)

    @staticmethod
    def devices(values, copies):
        """Where tensors are; a number may be an argument of a kernel."""
        return {
            x.device.type for x in tree_leaves(values)
            if isinstance(x, torch.Tensor) and (
                copies or x.ndim or x.device.type == DEVICE)}


class _Constants(TorchFunctionMode):
    """Numbers of the program that become tensors of the device."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in CONSTANTS and result.device.type == DEVICE:
            self.found.append(func.__name__)
        return result


def transfers(call) -> list:
    """The transfers of ``call()``, which may end at the first read value."""
    autocast = torch.autocast  # does not know the device
    with _Transfers() as mode, _Constants(mode.found), mock.patch.object(
            torch, 'autocast', lambda _, **kwargs: autocast('cpu', **kwargs)):
        try:
            call()
        except RuntimeError:
            if not mode.found:
                raise
    return mode.found
