# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

WEIGHTS = ('uniform', 'distance')


def knn_accuracy(bank: np.ndarray, bank_labels: np.ndarray,
                 queries: np.ndarray, query_labels: np.ndarray, k: int = 20,
                 weights: str = 'distance') -> float:
    """Accuracy in percent of the k nearest neighbours among ``bank``.

    scikit-learn's ``KNeighborsClassifier`` on L2-normalised features, whose
    Euclidean order is that of the cosine.

    Args:
        bank (np.ndarray): Features of labelled training images, (n, c).
        bank_labels (np.ndarray): Their labels, (n, ).
        queries (np.ndarray): Features of the images to classify, (m, c).
        query_labels (np.ndarray): Their labels, (m, ).
        k (int): Number of neighbours that vote. Defaults to 20.
        weights (str): 'uniform', or 'distance' for votes of one over the
            distance. Defaults to 'distance'.

    Raises:
        ValueError: If k is not a number from 1 to n, or features are not
            finite.
    """
    check_k(k, len(bank), 'labelled images of the bank')
    if weights not in WEIGHTS:
        raise ValueError(f'weights is one of {WEIGHTS}, got {weights!r}.')
    check_finite(bank, queries)
    classifier = KNeighborsClassifier(n_neighbors=k, weights=weights,
                                      algorithm='brute')
    classifier.fit(normalize(bank), bank_labels)
    return 100 * float(classifier.score(normalize(queries), query_labels))


def check_k(k: int, size: int, bank: str) -> None:
    """Raise ValueError unless ``size`` images of ``bank`` include ``k``."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise ValueError(
            f'k is a number of neighbours from 1 to the {size} {bank}, got '
            f'k={k!r}. Choose a smaller k or a larger bank.')


def chance_accuracy(query_labels: np.ndarray) -> float:
    """Accuracy in percent of always predicting the most frequent class."""
    return 100 * float(
        np.unique(query_labels, return_counts=True)[1].max() /
        len(query_labels))


def check_finite(*features: np.ndarray) -> None:
    """Raise ValueError unless all features are finite."""
    for rows in features:
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise ValueError(
                f'The features of {bad.sum()} of {len(rows)} images are not '
                'finite: the weights have probably diverged in training. See '
                'the loss in the training log, and lower the learning rate.')
