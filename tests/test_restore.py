"""An attacker that learns from pairs takes noise out of copies that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from tue_cli.attacks.filters import Levels
from tue_cli.attacks.restore import COPIES, Recipe, Restoration, make_pairs
from tue_cli.config import ProtectSettings
from tue_cli.engine.torch import ComputeDevice
from tue_cli.images import resize
from tue_cli.images.deep import Pixels
from tue_cli.noise import LspNoise, TueNoise
from tue_cli.weights import Weights, make_netless

SETTINGS = ProtectSettings(noise=TueNoise(steps=2), smooth=1.0)
CPU = ComputeDevice(torch.device("cpu"), torch.float32, "CPU")


def see(pixels: Pixels) -> Levels:
    return np.rint(255 * resize.resize_to_square(pixels, 32)).astype(np.uint8)


def write_pieces(folder: Path, photos: Sequence[str], count: int) -> list[Path]:
    """Write pieces of photographs of scikit-image, 32x32, in turns."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for number in range(count):
        photo = getattr(data, photos[number % len(photos)])()
        y, x = draws.integers(0, np.array(photo.shape[:2]) - 32)
        Image.fromarray(photo[y : y + 32, x : x + 32]).save(folder / f"{number:03d}.png")
    return sorted(folder.iterdir())


def measure_error(pixels: Levels, originals: Levels) -> float:
    return float(np.square(pixels.astype(float) - originals).mean())


@pytest.fixture
def recipe(tiny: Weights) -> Recipe:
    return Recipe(SETTINGS, tiny, CPU)


@pytest.fixture
def easy() -> Recipe:
    """Noise of patches, which a net learns in seconds."""
    settings = ProtectSettings("lsp", LspNoise(), smooth=1.0)
    return Recipe(settings, make_netless("lsp", ("a", "b", "c"), 32), CPU)


def learn(files: Sequence[Path], recipe: Recipe, steps: int) -> Restoration:
    restoration = Restoration(CPU, 32, seed=1, steps=steps)
    for _ in restoration.learn(*make_pairs(files, see, recipe, seed=1)):
        pass
    return restoration


@pytest.mark.slow
def test_copies_of_other_pictures_under_another_secret_come_closer_to_their_originals(
    tmp_path: Path, easy: Recipe
) -> None:
    others = write_pieces(tmp_path / "others", ("astronaut", "coffee", "rocket"), 96)
    unseen = write_pieces(tmp_path / "unseen", ("chelsea",), 16)
    originals, copies = make_pairs(unseen, see, easy, seed=2)
    restoration = learn(others, easy, 250)
    noise = measure_error(copies, originals)
    assert noise > 10
    left, harm = (
        measure_error(restoration(some), originals) / noise for some in (copies, originals)
    )
    # What has no noise stays nearly as it is.
    assert left < 0.75 and harm < 0.35, (left, harm)


@pytest.mark.slow
def test_the_same_pictures_and_seed_restore_to_the_same_bytes(tmp_path: Path, easy: Recipe) -> None:
    files = write_pieces(tmp_path / "others", ("coffee",), 5)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), np.uint8)
    torch.manual_seed(5)
    first = learn(files, easy, 6)(pixels)
    torch.manual_seed(6)
    second = learn(files, easy, 6)(pixels)
    assert np.array_equal(first, second)
    assert first.dtype == np.uint8 and (first != pixels).any()


@pytest.mark.parametrize("size", [32, 36, 64, 92, 108, 144, 252])
def test_a_net_that_has_not_learned_changes_nothing(size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, size, size), np.uint8)
    assert np.array_equal(Restoration(CPU, size, seed=0)(pixels), pixels)


def test_each_picture_gets_copies_of_several_codes_within_the_radius(
    tmp_path: Path, recipe: Recipe
) -> None:
    files = write_pieces(tmp_path / "others", ("astronaut",), 3)
    originals, copies = make_pairs(files, see, recipe, seed=0)
    assert originals.shape == copies.shape == (3 * COPIES, 3, 32, 32)
    first = np.asarray(Image.open(files[0])).transpose(2, 0, 1)
    assert all(np.array_equal(originals[3 * turn], first) for turn in range(COPIES))
    noise = np.abs(copies.astype(int) - originals)
    assert noise.max() == 8 and len(np.unique(copies[::3], axis=0)) == COPIES


def test_pictures_of_any_kind_make_pairs(tmp_path: Path, recipe: Recipe) -> None:
    photo = Image.fromarray(data.chelsea())  # type: ignore[no-untyped-call]
    files = [tmp_path / name for name in ("gray.png", "large.jpg", "ink.jpg", "few.gif")]
    photo.convert("L").resize((90, 40)).save(files[0])
    photo.resize((400, 300)).save(files[1])
    photo.convert("CMYK").resize((40, 50)).save(files[2])
    photo.resize((33, 70)).quantize(16).save(files[3])
    originals, copies = make_pairs(files, see, recipe, seed=0)
    for turn in range(0, len(copies), len(files)):
        noise = np.abs(copies[turn : turn + 4].astype(int) - originals[turn : turn + 4])
        assert (noise.mean((1, 2, 3)) > 0.5).all() and noise.max() <= 40
