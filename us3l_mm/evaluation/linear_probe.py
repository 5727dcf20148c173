# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""A linear classifier on the features of one sub-network."""
from typing import Optional, Sequence, Tuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import resample

from .knn import check_finite
from .overlap import Identities, copies

DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
HELD_OUT = 0.2


def linear_probe(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray,
                 test_labels: np.ndarray, decays: Sequence[float] = DECAYS,
                 seed: int = 0, identities: Optional[Identities] = None
                 ) -> Tuple[float, float]:
    """Accuracy in percent of a linear classifier, and the decay chosen for it.

    This is scikit-learn's ``LogisticRegression`` on features standardised by
    the training images. It solves the convex problem exactly, so that of the
    usual grid of learning rates and weight decays only the decay has to be
    chosen, by the accuracy on a held-out fifth of the *training* images. The
    classifier with this decay is fitted on all training images and evaluated
    on the test images.

    Args:
        train (np.ndarray): Features of training images, (n, c).
        train_labels (np.ndarray): Their labels, (n, ).
        test (np.ndarray): Features of test images, (m, c).
        test_labels (np.ndarray): Their labels, (m, ).
        decays (sequence[float]): Factors of half the squared norm of the
            weights, which is added to the mean cross-entropy over images;
            scikit-learn's C is ``1 / (decay * n)``. Of equally good ones the
            first is taken. Defaults to 1, 0.1, ..., 0.0001.
        seed (int): Seed of the choice of held-out images. Defaults to 0.
        identities (tuple[np.ndarray, np.ndarray], optional): What
            :func:`~us3l_mm.evaluation.overlap.identify` returns for training
            and test images. Training images that are also test images are
            then left out. Defaults to None: all are used.

    Returns:
        tuple: Accuracy in percent and decay.
    """
    train, train_labels = _usable(train, train_labels, test, identities)
    fit, held_out = train_test_split(np.arange(len(train)), test_size=HELD_OUT,
                                     random_state=seed)
    scores = [
        _fitted(train[fit], train_labels[fit], decay).score(
            train[held_out], train_labels[held_out]) for decay in decays]
    decay = decays[int(np.argmax(scores))]
    probe = _fitted(train, train_labels, decay)
    return 100 * float(probe.score(test, test_labels)), decay


def linear_run(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray,
               test_labels: np.ndarray, decay: float, run: int,
               identities: Optional[Identities] = None) -> float:
    """Accuracy in percent of a classifier on training images drawn at random.

    As many images of each class as there are, drawn with replacement. The
    classifier of :func:`linear_probe` is the optimum, which depends on no
    initial weights and on no order of the images, so that several fits on the
    same images would be equal. The deviation of several runs says how much
    the accuracy depends on the training images. It is not the one that papers
    report of repeated training by SGD, which is smaller as a rule; for that,
    repeat a linear evaluation of ``configs/*/benchmarks`` with other
    ``randomness.seed``.

    Args:
        train, train_labels, test, test_labels, identities: As of
            :func:`linear_probe`.
        decay (float): The decay that it has chosen.
        run (int): The number of the run, which is the seed of the draw.
    """
    train, train_labels = _usable(train, train_labels, test, identities)
    drawn = resample(np.arange(len(train)), random_state=run,
                     stratify=train_labels)
    probe = _fitted(train[drawn], train_labels[drawn], decay)
    return 100 * float(probe.score(test, test_labels))


def _usable(train: np.ndarray, labels: np.ndarray, test: np.ndarray,
            identities: Optional[Identities]) -> Tuple[np.ndarray, np.ndarray]:
    """The training images that are no test images, and their labels."""
    check_finite(train, test)
    own = np.zeros(len(train), bool) if identities is None else (copies(
        *identities[::-1]) > 0)
    train, labels = train[~own], labels[~own]
    if len(np.unique(labels)) < 2:
        raise ValueError(
            'A linear classifier needs training images of at least two classes'
            + (f'; {own.sum()} training images are left out because they are '
               "test images too. Use splits: dataset.split='train' and 'val' "
               'of us3l_mm.ImageFolder.' if own.any() else '.'))
    return train, labels


def _fitted(features: np.ndarray, labels: np.ndarray,
            decay: float) -> Pipeline:
    probe = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=1 / (decay * len(features)), max_iter=1000))
    return probe.fit(features, labels)
