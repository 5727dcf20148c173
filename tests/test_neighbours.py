# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Neighbours found block by block are those that scikit-learn finds."""
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import normalize

from us3l_mm.evaluation import knn_accuracy
from us3l_mm.evaluation.neighbours import nearest

# Blocks of 4096, 10 and 3 rows.
TABLE_SIZES = [2**24, 100, 12]


def noise(count, channels=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, channels)).astype(np.float32)


def by_scikit_learn(bank, queries, count, metric):
    """Distances and indices in float64."""
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    if metric == 'cosine':
        bank, queries = normalize(bank), normalize(queries)
    # The tree subtracts features; brute force would multiply them.
    return NearestNeighbors(n_neighbors=count,
                            algorithm='kd_tree').fit(bank).kneighbors(queries)


@pytest.mark.parametrize('table_size', TABLE_SIZES)
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('count', [1, 20, 52, 53])
def test_neighbours_equal_scikit_learns(metric, count, table_size):
    bank, queries = noise(53), noise(31, seed=1)
    distances, index = nearest(bank, queries, count, metric,
                               table_size=table_size)
    expected = by_scikit_learn(bank, queries, count, metric)
    assert index.tolist() == expected[1].tolist()
    assert distances.dtype == np.float64
    np.testing.assert_allclose(distances, expected[0], rtol=1e-12)


@pytest.mark.parametrize('table_size', TABLE_SIZES)
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_equal_images_are_at_distance_0_and_the_first_ones_come_first(
        metric, table_size):
    bank = np.repeat(noise(5, channels=301), 40, axis=0)
    order = np.random.default_rng(2).permutation(200)
    queries = bank[::40].copy()
    bank = bank[order]
    # 40 are equal. Of 35 and the spare ones all of them are candidates.
    distances, index = nearest(bank, queries, 35, metric,
                               table_size=table_size)
    assert (distances == 0).all()
    for query, found in enumerate(index):
        equal = np.flatnonzero(order // 40 == query)
        assert found.tolist() == equal[:35].tolist()
    distances, index = nearest(bank, queries, 3, metric, table_size=table_size)
    assert (distances == 0).all() and (np.diff(index) > 0).all()
    distances, index = nearest(bank, queries, 60, metric,
                               table_size=table_size)
    expected, _ = by_scikit_learn(bank, queries, 60, metric)
    np.testing.assert_allclose(distances, expected, rtol=1e-12, atol=1e-12)
    assert ((distances == 0).sum(axis=1) == 40).all()
    assert all(len(set(row)) == 60 for row in index.tolist())


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_neighbours_among_features_that_hardly_differ(metric):
    """Of a network that collapses; products without a centre would fail."""
    bank, queries = (100 + 1e-2 * noise(*shape)
                     for shape in ((400, 64), (30, 64, 1)))
    distances, index = nearest(bank, queries, 10, metric)
    expected = by_scikit_learn(bank, queries, 10, metric)
    assert index.tolist() == expected[1].tolist()
    np.testing.assert_allclose(distances, expected[0], rtol=1e-9)


def test_products_are_precise_whatever_others_are_set_to(monkeypatch):
    """On a GPU they would be rounded to TF32."""
    seen, addmm = [], torch.addmm

    def watched(*arguments, **more):
        seen.append(torch.get_float32_matmul_precision())
        return addmm(*arguments, **more)

    monkeypatch.setattr(torch, 'addmm', watched)
    try:
        torch.set_float32_matmul_precision('medium')
        nearest(noise(30), noise(20, seed=1), 3)
        assert torch.get_float32_matmul_precision() == 'medium'
    finally:
        torch.set_float32_matmul_precision('highest')
    assert set(seen) == {'highest'}


@pytest.mark.parametrize('table_size', TABLE_SIZES)
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize('weights', ['uniform', 'distance'])
@pytest.mark.parametrize('k', [1, 9, 118])
def test_accuracy_equals_scikit_learns(monkeypatch, k, weights, metric,
                                       table_size):
    monkeypatch.setattr('us3l_mm.evaluation.knn.TABLE_SIZE', table_size)
    bank, queries = noise(120), noise(60, seed=1)
    labels, expected = (np.random.default_rng(i).integers(0, 3, len(rows))
                        for i, rows in enumerate((bank, queries)))
    bank[:, 0] += 2 * labels
    queries[:, 0] += 2 * expected
    queries[:9] = bank[5:14]  # at distance 0, some of them twice
    bank[20:23], labels[20:23] = bank[5:8], labels[5:8]
    data = (bank,
            queries) if metric == 'euclidean' else map(normalize,
                                                       (bank, queries))
    fitted_to, asked = (rows.astype(np.float64) for rows in data)
    classifier = KNeighborsClassifier(k, weights=weights, algorithm='kd_tree')
    score = classifier.fit(fitted_to, labels).score(asked, expected)
    assert 0.3 < score < 1
    assert knn_accuracy(bank, labels, queries, expected, k, weights,
                        metric=metric) == pytest.approx(100 * score)
