"""k-means: what is apart is told apart, the same way every time."""

from __future__ import annotations

import numpy as np

from tue_cli.core.clustering import cluster, find_centres, find_nearest


def test_clusters_that_are_apart_are_told_apart_and_numbered_by_appearance() -> None:
    random = np.random.default_rng(3)
    order = np.array([1, 1, 0, 2, 0, 1, 2, 2, 0] * 5)
    centres = np.eye(3) * 50
    features = (centres[order] + random.normal(size=(len(order), 3))).astype(np.float32)
    numbers = np.array([1, 0, 2])
    for seed in range(5):
        assert np.array_equal(cluster(features, 3, seed), numbers[order])


def test_clusters_are_at_most_as_many_as_distinct_points() -> None:
    features = np.array([[0.0], [0.0], [7.0]], np.float32)
    assert cluster(features, 5, 0).tolist() == [0, 0, 1]
    assert cluster(features, 1, 0).tolist() == [0, 0, 0]
    assert cluster(features[:0], 2, 0).tolist() == []


def test_no_picture_is_nearer_to_another_cluster_s_centre() -> None:
    features = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    numbers = cluster(features, 6, 0)
    assert np.array_equal(numbers, cluster(features, 6, 0))
    assert sorted(set(numbers.tolist())) == list(range(6))
    centres = np.stack([features[numbers == number].mean(0) for number in range(6)])
    away = np.square(features[:, None] - centres).sum(-1)
    assert np.array_equal(away.argmin(1), numbers)


def test_what_comes_later_goes_to_the_nearest_centre_and_moves_none() -> None:
    features = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
    centres = find_centres(features, 6, 0)
    assert np.array_equal(find_nearest(features, centres), cluster(features, 6, 0))
    later = np.random.default_rng(1).normal(size=(40, 7)).astype(np.float32)
    away = np.square(later[:, None] - centres).sum(-1)
    assert np.array_equal(find_nearest(later, centres), away.argmin(1))
    assert np.array_equal(find_nearest(later[7:8], centres), find_nearest(later, centres)[7:8])
