"""The distances are those of the textbook and of scikit-image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import metrics

from tue_cli.images.quality import compare, luma

# scikit-image has no types.
structural_similarity: Any = metrics.structural_similarity
peak_signal_noise_ratio: Any = metrics.peak_signal_noise_ratio


def pair(height: int, width: int, channels: int, reach: int = 8) -> tuple[NDArray[np.uint8], ...]:
    random = np.random.default_rng(height * 1000 + width)
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2) % 256
    before = np.repeat(ramp[..., None], channels, axis=2).astype(np.uint8)
    moved = before + random.integers(-reach, reach + 1, before.shape)
    return before, np.clip(moved, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 500), (70, 33), (200, 131)])
def test_ssim_is_that_of_scikit_image(height: int, width: int, channels: int) -> None:
    before, after = pair(height, width, channels)
    expected = structural_similarity(luma(before), luma(after), data_range=255)
    assert compare(before, after).ssim == pytest.approx(expected, abs=1e-6)


def test_ssim_is_exact_where_it_is_lowest() -> None:
    random = np.random.default_rng(1)
    before = random.integers(0, 256, (64, 64, 1), dtype=np.uint8)
    expected = structural_similarity(before[..., 0], 255 - before[..., 0], data_range=255)
    assert compare(before, 255 - before).ssim == pytest.approx(expected, abs=1e-6)


def test_psnr_is_that_of_scikit_image() -> None:
    before, after = pair(40, 50, 3)
    expected = peak_signal_noise_ratio(before, after, data_range=255)
    assert compare(before, after).psnr == pytest.approx(expected)


def test_largest_and_mean_are_in_levels() -> None:
    before = np.zeros((2, 2, 1), np.uint8)
    after = np.array([0, 0, 4, 255], np.uint8).reshape(2, 2, 1)
    quality = compare(before, after)
    assert (quality.largest, quality.mean) == (255, 64.75)


def test_equal_pictures_have_the_capped_psnr_and_ssim_one() -> None:
    before, _ = pair(30, 30, 3)
    quality = compare(before, before)
    assert (quality.largest, quality.mean, quality.psnr) == (0, 0.0, 100.0)
    assert quality.ssim == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (3, 500), (6, 6)])
def test_a_picture_smaller_than_the_window_is_measured(height: int, width: int) -> None:
    quality = compare(*pair(height, width, 3))
    assert all(math.isfinite(value) for value in (quality.mean, quality.psnr, quality.ssim))
    assert quality.ssim <= 1 + 1e-6


def test_two_shapes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="one shape"):
        compare(np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2, 3), np.uint8))
