"""k-means, for classes of pictures that nobody labelled; NumPy and SciPy alone."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

ROUNDS: Final = 100
"""At most so many; it settles in far fewer."""


def cluster(features: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int64]:
    """Return the cluster (N,) of each row of `features` (N, D), by k-means.

    At most `count` of them, numbered from 0 in order of appearance; deterministic.
    """
    if not len(features):
        return np.empty(0, np.int64)
    return find_nearest(features, find_centres(features, count, seed))


def find_centres(features: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float64]:
    """Return the centres (K, D) of the clusters of `features` (N, D), one row or more, by k-means.

    At most `count` of them, in the order in which their clusters appear; deterministic.
    """
    points = features.astype(np.float64)
    centres = _choose_centres(points, count, np.random.default_rng(seed))
    nearest = np.full(len(points), -1)
    # Not kmeans2, which runs every round to the end and warns where a cluster is left empty.
    for _ in range(ROUNDS):
        former, nearest = nearest, find_nearest(points, centres)
        if np.array_equal(former, nearest):
            break
        for number in np.unique(nearest):
            centres[number] = points[nearest == number].mean(axis=0)
    return centres[list(dict.fromkeys(nearest.tolist()))]


def find_nearest(features: NDArray[np.floating], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return which of `centres` (K, D) is nearest to each row of `features` (N, D): (N,)."""
    from scipy.cluster.vq import vq

    nearest, _ = vq(features.astype(np.float64), centres)
    return np.asarray(nearest, np.int64)


def _choose_centres(
    points: NDArray[np.float64], count: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Choose centres to begin with by k-means++ (Arthur and Vassilvitskii 2007), all distinct.

    The farther a point is from those chosen before, the likelier it becomes one.
    """
    chosen = [int(random.integers(len(points)))]
    gaps = np.square(points - points[chosen[-1]]).sum(axis=1)
    while len(chosen) < count and gaps.any():
        chosen.append(int(random.choice(len(points), p=gaps / gaps.sum())))
        gaps = np.minimum(gaps, np.square(points - points[chosen[-1]]).sum(axis=1))
    return points[chosen]
