# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Which images two data sets have in common.

An image is identified by its content, as the network sees it, and by the path
of its file. Either is enough: a copy of a file has the same content, and a
file that is augmented at random has the same path.
"""
import hashlib
import os
import os.path as osp
from typing import Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

Identities = Tuple[np.ndarray, np.ndarray]


def identify(images: Tensor, paths: Sequence[Optional[str]]) -> np.ndarray:
    """Numbers that tell images apart.

    Args:
        images (Tensor): Preprocessed images (N, 3, H, W).
        paths (sequence[str or None]): Their files, if they have any.

    Returns:
        np.ndarray: int64 (N, 2): hashes of the content and of the path; the
        content again where there is no path.
    """
    bits = images.float().flatten(1).contiguous().view(torch.int32)
    # A random linear function of the bits, modulo 2**64.
    factors = torch.randint(-2**63, 2**63 - 1, bits.shape[1:],
                            generator=torch.Generator().manual_seed(0)).to(
                                bits.device)
    content = (bits * factors).sum(dim=1).cpu().numpy()
    named = [
        value if path is None else _hash(path)
        for value, path in zip(content, paths)]
    return np.column_stack([content, np.array(named, np.int64)])


def copies(bank: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """How many images of ``bank`` each of ``queries`` is.

    Args:
        bank (np.ndarray): int64 (n, 2), see :func:`identify`.
        queries (np.ndarray): int64 (m, 2).

    Returns:
        np.ndarray: int64 (m, ).
    """
    content, path = (_count(bank[:, i], queries[:, i]) for i in range(2))
    both = _count(*(ids[:, 0] + 31 * ids[:, 1] for ids in (bank, queries)))
    return content + path - both


def _count(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How often each of ``wanted`` is among ``values``."""
    known, counts = np.unique(values, return_counts=True)
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[place] == wanted, counts[place], 0)


def _hash(path: str) -> int:
    digest = hashlib.blake2b(os.fsencode(osp.realpath(path)), digest_size=8)
    return int.from_bytes(digest.digest(), 'little', signed=True)
