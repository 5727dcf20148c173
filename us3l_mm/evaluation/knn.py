# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional, Union

import numpy as np
import torch

from .neighbours import TABLE_SIZE, nearest
from .overlap import Identities, copies

METRICS = ('cosine', 'euclidean')
WEIGHTS = ('uniform', 'distance')


def knn_accuracy(bank: np.ndarray, bank_labels: np.ndarray,
                 queries: np.ndarray, query_labels: np.ndarray, k: int = 20,
                 weights: str = 'distance',
                 identities: Optional[Identities] = None,
                 metric: str = 'cosine',
                 device: Union[str, torch.device] = 'cpu') -> float:
    """Accuracy in percent of the k nearest neighbours among ``bank``.

    Neighbours are those that :func:`~us3l_mm.evaluation.neighbours.nearest`
    finds, and vote as in scikit-learn's ``KNeighborsClassifier``. Where there
    are neighbours at distance 0, only these vote; of classes with equally
    many votes, the first is predicted.

    Args:
        bank (np.ndarray): Features of labelled training images, (n, c).
        bank_labels (np.ndarray): Their labels, (n, ).
        queries (np.ndarray): Features of the images to classify, (m, c).
        query_labels (np.ndarray): Their labels, (m, ).
        k (int): Number of neighbours that vote. Defaults to 20.
        weights (str): 'uniform', or 'distance' for votes of one over the
            distance. Defaults to 'distance'.
        identities (tuple[np.ndarray, np.ndarray], optional): What
            :func:`~us3l_mm.evaluation.overlap.identify` returns for the bank
            and for the queries. An image is then left out of its own
            neighbours. Defaults to None: all images of the bank may vote.
        metric (str): 'cosine', which is the Euclidean distance of
            L2-normalised features, or 'euclidean' for that of the features as
            they are. Dense + gated SSL, arXiv 2301.09164, reports the latter
            with k = 1. Defaults to 'cosine'.
        device (str or torch.device): Where distances are computed. Defaults
            to 'cpu'.

    Raises:
        ValueError: If k is not a number from 1 to n, features are not finite,
            or there is no such metric.
    """
    same = np.zeros(len(queries), int) if identities is None else (copies(
        *identities))
    most = int(same.max(initial=0))
    check_k(
        k,
        len(bank) - most, 'labelled images of the bank' +
        (', without the query itself' if most else ''))
    if weights not in WEIGHTS:
        raise ValueError(f'weights is one of {WEIGHTS}, got {weights!r}.')
    check_metric(metric)
    check_finite(bank, queries)
    found = nearest(bank, queries, k + most, metric, device, TABLE_SIZE)
    classes, labels = np.unique(bank_labels, return_inverse=True)
    step = max(TABLE_SIZE // max(k + most, len(classes)), 1)
    right = 0
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        distances, index = (table[part] for table in found)
        if identities is not None and most:
            bank_ids, query_ids = identities
            own = (bank_ids[index] == query_ids[part, None]).any(axis=2)
            others = np.argsort(own, axis=1, kind='stable')[:, :k]
            distances, index = (np.take_along_axis(table, others, axis=1)
                                for table in (distances, index))
        votes = np.zeros((len(index), len(classes)))
        np.add.at(votes, (np.arange(len(index))[:, None], labels[index]),
                  _weigh(distances, weights))
        right += int(
            (classes[votes.argmax(axis=1)] == query_labels[part]).sum())
    return 100 * right / len(queries)


def _weigh(distances: np.ndarray, weights: str) -> np.ndarray:
    """The weight of each vote; at distance 0 the others do not count."""
    if weights == 'uniform':
        return np.ones_like(distances)
    zero = distances == 0
    return np.where(zero.any(axis=1, keepdims=True), zero,
                    1 / np.where(zero, 1, distances))


def check_k(k: int, size: int, bank: str) -> None:
    """Raise ValueError unless ``size`` images of ``bank`` include ``k``."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise ValueError(
            f'k is a number of neighbours from 1 to the {size} {bank}, got '
            f'k={k!r}. Choose a smaller k or a larger bank.')


def check_metric(metric: str) -> None:
    """Raise ValueError unless there is such a metric."""
    if metric not in METRICS:
        raise ValueError(f'metric is one of {METRICS}, got {metric!r}.')


def chance_accuracy(query_labels: np.ndarray) -> float:
    """Accuracy in percent of always predicting the most frequent class."""
    return 100 * float(
        np.unique(query_labels, return_counts=True)[1].max() /
        len(query_labels))


def check_finite(*features: np.ndarray) -> None:
    """Raise ValueError unless all features are finite."""
    for rows in features:
        step = max(TABLE_SIZE // rows.shape[1], 1)
        bad = sum(
            int((~np.isfinite(rows[start:start + step]).all(axis=1)).sum())
            for start in range(0, len(rows), step))
        if bad:
            raise ValueError(
                f'The features of {bad} of {len(rows)} images are not '
                'finite: the weights have probably diverged in training. See '
                'the loss in the training log, and lower the learning rate.')
