"""The filters do what their names say, to every picture alike, and none is a no-op in disguise."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from tue_cli.attacks.filters import CLASS_FILTERS, FILTERS, Levels, apply_filter
from tue_cli.attacks.registry import ATTACKS


@pytest.fixture(scope="module")
def pictures() -> Levels:
    """Five pieces of a photograph, 32x32."""
    photo = data.astronaut()  # type: ignore[no-untyped-call]
    pieces = [photo[k : k + 32, 2 * k : 2 * k + 32] for k in range(60, 185, 25)]
    return np.stack(pieces).transpose(0, 3, 1, 2).copy()


def test_every_filter_belongs_to_an_attacker() -> None:
    assert {attack.filter for attack in ATTACKS.values()} - {""} == {*FILTERS, *CLASS_FILTERS}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_changes_every_picture_by_itself(name: str, pictures: Levels) -> None:
    before = pictures.copy()
    result = apply_filter(pictures, name)
    assert result.shape == pictures.shape and result.dtype == np.uint8
    assert np.array_equal(pictures, before)
    assert (np.abs(result.astype(int) - pictures).mean((1, 2, 3)) > 0.5).all()
    alone = [apply_filter(pictures[place : place + 1], name)[0] for place in range(len(pictures))]
    assert np.array_equal(result, np.stack(alone))


def test_blur_spreads_a_point_over_its_neighbours() -> None:
    point = np.zeros((1, 3, 9, 9), np.uint8)
    point[..., 4, 4] = 255
    blurred = apply_filter(point, "blur")[0, 0].astype(float) / 255
    # A Gaussian of one pixel: 0.16 in the middle, e^-1/2 of that beside it.
    assert blurred[4, 4] == pytest.approx(0.16, abs=0.04)
    assert blurred[4, 5] / blurred[4, 4] == pytest.approx(np.exp(-0.5), abs=0.15)
    assert blurred.sum() == pytest.approx(1, abs=0.1)


def test_gray_has_three_equal_channels(pictures: Levels) -> None:
    gray = apply_filter(pictures, "gray")
    assert (gray == gray[:, :1]).all()
    luma = np.tensordot(pictures, [0.299, 0.587, 0.114], axes=(1, 0))
    assert np.abs(gray[:, 0] - luma).max() <= 1


def test_bits_leaves_four_levels_a_channel(pictures: Levels) -> None:
    assert np.array_equal(apply_filter(pictures, "bits"), pictures & 0b1100_0000)


@pytest.mark.parametrize("quality", [10, 50, 75])
def test_jpeg_is_what_pillow_writes_at_that_quality(quality: int, pictures: Levels) -> None:
    file = io.BytesIO()
    Image.fromarray(pictures[0].transpose(1, 2, 0).copy()).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file)).transpose(2, 0, 1)
    assert np.array_equal(apply_filter(pictures, f"jpeg{quality}")[0], expected)


def test_half_size_and_back_removes_what_half_the_pixels_cannot_hold() -> None:
    board = np.indices((16, 16)).sum(0) % 2 * 255
    pixels = np.broadcast_to(board, (1, 3, 16, 16)).astype(np.uint8)
    assert np.ptp(apply_filter(pixels, "resize")[..., 2:-2, 2:-2].astype(int)) <= 2
