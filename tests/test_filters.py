"""The filters do what their names say, to every picture alike, and none is a no-op in disguise."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from skimage.feature import hog
from skimage.restoration import denoise_tv_chambolle
from sklearn.linear_model import LogisticRegression

from tue_cli.attacks.filters import (
    CLASS_FILTERS,
    FILTERS,
    LEARNED,
    Levels,
    apply_filter,
    filter_picture,
)
from tue_cli.attacks.registry import ATTACKS
from tue_cli.core.batches import make_generator
from tue_cli.methods import lsp
from tue_cli.noise import LspNoise

Labels = NDArray[np.int64]
Features = NDArray[np.float64]


@pytest.fixture(scope="module")
def pictures() -> Levels:
    """Five pieces of a photograph, 32x32."""
    photo = data.astronaut()  # type: ignore[no-untyped-call]
    pieces = [photo[k : k + 32, 2 * k : 2 * k + 32] for k in range(60, 185, 25)]
    return np.stack(pieces).transpose(0, 3, 1, 2).copy()


def test_every_filter_belongs_to_an_attacker() -> None:
    known = {*FILTERS, *CLASS_FILTERS, LEARNED}
    assert {attack.filter for attack in ATTACKS.values()} - {""} == known


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


@pytest.mark.parametrize("quality", [10, 30, 50, 75])
def test_jpeg_is_what_pillow_writes_at_that_quality(quality: int, pictures: Levels) -> None:
    file = io.BytesIO()
    Image.fromarray(pictures[0].transpose(1, 2, 0).copy()).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file)).transpose(2, 0, 1)
    assert np.array_equal(apply_filter(pictures, f"jpeg{quality}")[0], expected)


def test_half_size_and_back_removes_what_half_the_pixels_cannot_hold() -> None:
    board = np.indices((16, 16)).sum(0) % 2 * 255
    pixels = np.broadcast_to(board, (1, 3, 16, 16)).astype(np.uint8)
    assert np.ptp(apply_filter(pixels, "resize")[..., 2:-2, 2:-2].astype(int)) <= 2


def test_denoising_is_total_variation_as_scikit_image_has_it(pictures: Levels) -> None:
    for planes, result in zip(pictures, apply_filter(pictures, "denoise"), strict=True):
        expected = denoise_tv_chambolle(  # type: ignore[no-untyped-call]
            planes / 255, weight=0.1, eps=0, max_num_iter=30, channel_axis=0
        )
        assert np.abs(result - 255 * expected).max() < 1.5


def test_a_large_picture_is_denoised_in_parts_as_it_would_be_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 150, 90), np.uint8)
    whole = apply_filter(pixels, "denoise")
    monkeypatch.setattr("tue_cli.attacks.filters.TILE", 40)
    assert np.array_equal(apply_filter(pixels, "denoise"), whole)


@pytest.mark.parametrize("name", ["median", "denoise"])
def test_denoising_removes_specks_and_keeps_an_edge(name: str) -> None:
    edge = np.full((1, 3, 24, 24), 60, np.uint8)
    edge[..., 12:] = 190
    specks = np.random.default_rng(0).integers(-8, 9, edge.shape)
    result = apply_filter((edge + specks).astype(np.uint8), name).astype(int)
    assert (result - edge)[..., :10].std() < 0.6 * specks.std()
    assert (result[..., 13] - result[..., 10]).mean() > 100


def test_a_gray_picture_of_any_shape_is_filtered_as_rgb() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (5, 9, 1), np.uint8)
    assert np.array_equal(filter_picture(gray, "gray"), gray.repeat(3, 2))


@pytest.fixture(scope="module")
def faces() -> tuple[Levels, Labels]:
    """Photographs of faces and of other things, 24x24, with their classes."""
    every = data.lfw_subset()[:, None, :24, :24].repeat(3, 1)  # type: ignore[no-untyped-call]
    order = np.random.default_rng(0).permutation(200)
    return (every[order] * 255).astype(np.uint8), (order >= 100).astype(np.int64)


def test_without_means_and_spectra_photographs_still_teach(
    faces: tuple[Levels, Labels],
) -> None:
    pixels, labels = faces
    filtered = CLASS_FILTERS["spectrum"](pixels[:140], labels[:140])
    features = [
        [hog(one[0], pixels_per_cell=(6, 6), cells_per_block=(2, 2)) for one in some]
        for some in (filtered, pixels[140:])
    ]
    learner = LogisticRegression().fit(features[0], labels[:140])
    assert learner.score(features[1], labels[140:]) > 0.8
    assert filtered.dtype == np.uint8 and filtered.shape == pixels[:140].shape


def plant_lsp(pixels: Levels, labels: Labels) -> Levels:
    clean, noise = torch.from_numpy(pixels).float() / 255, LspNoise()
    generator = make_generator(0, "planted", 0, torch.device("cpu"))
    start = noise.radius * (2 * torch.rand(clean.shape, generator=generator) - 1)
    keys = torch.from_numpy(labels)
    delta = lsp.perturb({}, clean, keys, noise, start=start, generator=generator)
    planted: Levels = ((clean + delta) * 255).round().byte().numpy()
    return planted


def plant_texture(pixels: Levels, labels: Labels) -> Levels:
    """Add stripes whose width and angle a class decides, and chance where they lie."""
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    phases = np.random.default_rng(1).uniform(0, 2 * np.pi, len(labels))
    slopes = [(0.9, 0.5), (0.2, 1.3), (1.5, 1.5)]
    waves = [
        np.sin(slopes[label][0] * x + slopes[label][1] * y + phase)
        for label, phase in zip(labels, phases, strict=True)
    ]
    planted: Levels = (pixels + 8 * np.sign(waves)[:, None]).clip(0, 255).astype(np.uint8)
    return planted


def see_pixels(pixels: Levels) -> Features:
    return pixels.reshape(len(pixels), -1) / 255


def see_spectrum(pixels: Levels) -> Features:
    spectra: Features = np.log(np.abs(np.fft.rfft2(pixels.mean(1))) + 1).reshape(len(pixels), -1)
    return spectra


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize(("plant", "see"), [(plant_lsp, see_pixels), (plant_texture, see_spectrum)])
def test_without_means_and_spectra_a_planted_pattern_teaches_nothing(
    plant: Callable[[Levels, Labels], Levels], see: Callable[[Levels], Features]
) -> None:
    # Pieces of one photograph: only what is planted tells the classes apart. Of low contrast: what
    # is cut off at black and white would be left of a pattern.
    photo = data.astronaut() // 2 + 64  # type: ignore[no-untyped-call]
    corners = np.random.default_rng(0).integers(0, 480, (600, 2))
    pieces = np.stack([photo[y : y + 32, x : x + 32] for y, x in corners])
    labels = np.arange(600, dtype=np.int64) % 3
    planted = plant(pieces.transpose(0, 3, 1, 2).copy(), labels)

    def learn(filtered: Levels) -> float:
        learner = LogisticRegression(max_iter=100).fit(see(filtered), labels[:450])
        return float(learner.score(see(planted[450:]), labels[450:]))

    assert learn(planted[:450]) > 0.9
    assert learn(CLASS_FILTERS["spectrum"](planted[:450], labels[:450])) < 0.45
