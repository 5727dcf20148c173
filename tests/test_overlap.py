# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""An image does not vote for itself, however bank and queries overlap."""
from collections import Counter

import numpy as np
import pytest
import torch

from us3l_mm.evaluation import knn_accuracy, linear_probe
from us3l_mm.evaluation.overlap import copies, identify


def noise(count, classes=3, seed=0):
    """Features that say nothing about their labels."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 5)).astype(np.float32),
            rng.integers(0, classes, count))


def ids_of(values):
    """Identities of images without paths."""
    return np.column_stack([np.array(values)] * 2)


def accuracy_without_oneself(features, labels, ids, k):
    """Leave-one-out by the definition, in a double loop."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    right = 0
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if ids[j] != ids[i]]
        distances = {j: np.linalg.norm(unit[i] - unit[j]) for j in others}
        votes = Counter()
        for j in sorted(others, key=distances.get)[:k]:
            votes[labels[j]] += 1 / distances[j]
        most = max(votes.values())
        right += labels[i] == min(c for c, v in votes.items() if v == most)
    return 100 * right / len(unit)


@pytest.mark.parametrize('table_size', [2**24, 40])
@pytest.mark.parametrize('ids', [list(range(40)), [0] * 7 + [*range(33)]])
@pytest.mark.parametrize('k', [1, 5])
def test_an_image_is_left_out_of_its_own_neighbours(monkeypatch, ids, k,
                                                    table_size):
    monkeypatch.setattr('us3l_mm.evaluation.knn.TABLE_SIZE', table_size)
    features, labels = noise(40)
    features[:7] = features[0] if ids[1] == 0 else features[:7]
    identities = ids_of(ids), ids_of(ids)
    expected = accuracy_without_oneself(features, labels, ids, k)
    assert knn_accuracy(features, labels, features, labels, k,
                        identities=identities) == pytest.approx(expected)
    # What a bank of the same images would report otherwise.
    assert ids[1] == 0 or knn_accuracy(features, labels, features, labels,
                                       k) == 100 > expected


def test_the_query_itself_does_not_count_for_k():
    features, labels = noise(10)
    identities = ids_of(range(10)), ids_of(range(10))
    args = features, labels, features, labels
    knn_accuracy(*args, k=9, identities=identities)
    with pytest.raises(ValueError, match='1 to the 9 .*without the query'):
        knn_accuracy(*args, k=10, identities=identities)


def test_images_without_an_overlap_all_vote():
    bank, queries = noise(30), noise(20, seed=1)
    identities = ids_of(range(30)), ids_of(range(50, 70))
    assert knn_accuracy(*bank, *queries, 5,
                        identities=identities) == knn_accuracy(
                            *bank, *queries, 5)


def test_training_images_of_the_linear_classifier_are_no_test_images():
    train, labels = noise(60, classes=2)
    test = train[:20], labels[:20]
    identities = ids_of(range(60)), ids_of(range(20))
    assert linear_probe(train, labels, *test,
                        identities=identities) == linear_probe(
                            train[20:], labels[20:], *test)
    everything = ids_of(range(60))
    with pytest.raises(
            ValueError, match='60 training images .* test images '
            r"too\. Use splits: dataset.split='train'"):
        linear_probe(train, labels, train, labels,
                     identities=(everything, everything))


def test_images_are_known_by_content_or_by_path(tmp_path):
    images = torch.rand(4, 3, 8, 8)
    (tmp_path / 'a').touch()
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    link, a = str(tmp_path / 'link'), str(tmp_path / 'a')
    bank = identify(images, [a, 'b', None, 'd'])
    # The content of the third; another content of the first and the last.
    queries = identify(torch.cat([images[2:3], images[:2] + 1]),
                       ['other', link, 'new'])
    assert copies(bank, queries).tolist() == [1, 1, 0]
    assert copies(bank, bank).tolist() == [1] * 4
    twice = np.concatenate([bank, bank[:1]])
    assert copies(twice, bank).tolist() == [2, 1, 1, 1]


def test_a_content_does_not_depend_on_its_batch():
    images = torch.randint(0, 256, (9, 3, 16, 16)).float()
    whole = identify(images, [None] * 9)
    parts = [identify(part, [None] * len(part)) for part in images.split(4)]
    assert (whole == np.concatenate(parts)).all()
    assert len(np.unique(whole)) == 9
    nearly = images.clone()
    nearly[:, 2, 15, 15] += 1
    assert not (identify(nearly, [None] * 9) == whole).any()
