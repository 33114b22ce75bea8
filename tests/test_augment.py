"""What victims do to their batches: targets say what the pixels hold, and draws are repeatable."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import mark_slow
from torch import Tensor

from tue_cli.attacks.augment import (
    AUGMENTATIONS,
    Augmentation,
    cutmix,
    cutout,
    mixup,
    randaugment,
    ueraser,
)

COUNT, SIZE = 12, 32


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def flat() -> tuple[Tensor, Tensor]:
    """Pictures of one level each, all different, and a class for each."""
    levels = torch.arange(1, COUNT + 1) / (COUNT + 1)
    return levels[:, None, None, None].expand(-1, 3, SIZE, SIZE).clone(), torch.eye(COUNT)


@pytest.fixture
def noise() -> tuple[Tensor, Tensor]:
    pixels = torch.rand((COUNT, 3, SIZE, SIZE), generator=generator(7))
    return pixels, F.one_hot(torch.arange(COUNT) % 3, 3).float()


@pytest.mark.parametrize("name", mark_slow(AUGMENTATIONS, but={"cutout", "cutmix", "mixup"}))
def test_pixels_stay_pictures_and_targets_stay_shares(
    name: str, noise: tuple[Tensor, Tensor]
) -> None:
    for seed in range(6):
        pixels, targets = AUGMENTATIONS[name](*noise, generator(seed))
        assert pixels.shape == noise[0].shape and pixels.dtype == torch.float32
        assert pixels.min() >= 0 and pixels.max() <= 1
        assert targets.min() >= 0
        torch.testing.assert_close(targets.sum(1), torch.ones(COUNT))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_draw_is_its_generators_alone(name: str, noise: tuple[Tensor, Tensor]) -> None:
    before = noise[0].clone()
    first = AUGMENTATIONS[name](*noise, generator(3))
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    again = AUGMENTATIONS[name](*noise, generator(3))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    others = [AUGMENTATIONS[name](*noise, generator(seed))[0] for seed in range(4, 12)]
    assert any(not torch.equal(first[0], other) for other in others)
    assert torch.equal(noise[0], before)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_global_generator_is_left_alone(name: str, noise: tuple[Tensor, Tensor]) -> None:
    state = torch.get_rng_state()
    AUGMENTATIONS[name](*noise, generator(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_cutout_blackens_a_square_of_half_the_side(flat: tuple[Tensor, Tensor]) -> None:
    largest = 0
    for seed in range(10):
        pixels, targets = cutout(*flat, generator(seed))
        assert torch.equal(targets, flat[1])
        black = pixels == 0
        assert torch.equal(pixels[~black], flat[0][~black])
        assert (black.any(1) == black.all(1)).all()
        for hole in black[:, 0]:
            rows, columns = hole.any(1).sum(), hole.any(0).sum()
            assert hole.sum() == rows * columns > 0
            assert max(rows, columns) <= SIZE // 2
            largest = max(largest, int(hole.sum()))
    assert largest == (SIZE // 2) ** 2


def test_cutmix_targets_weigh_the_pasted_area(flat: tuple[Tensor, Tensor]) -> None:
    mixed = 0
    for seed in range(20):
        pixels, targets = cutmix(*flat, generator(seed))
        for number in range(COUNT):
            own = (pixels[number, 0] == flat[0][number, 0]).float().mean()
            torch.testing.assert_close(targets[number, number], own)
            strange = set(pixels[number, 0].flatten().tolist())
            others = [k for k in range(COUNT) if float(flat[0][k, 0, 0, 0]) in strange]
            assert set(targets[number].nonzero().flatten().tolist()) == set(others)
        mixed += bool((targets != flat[1]).any())
    assert 4 <= mixed <= 16  # half of the batches


def test_mixup_blends_pixels_as_it_blends_targets(flat: tuple[Tensor, Tensor]) -> None:
    levels, mixed = flat[0][:, 0, 0, 0], 0
    for seed in range(20):
        pixels, targets = mixup(*flat, generator(seed))
        torch.testing.assert_close(pixels[:, 0, 0, 0], targets @ levels)
        mixed += bool((targets != flat[1]).any())
    assert 4 <= mixed <= 16


@pytest.mark.parametrize("strong", [ueraser, randaugment])
def test_strong_augmentation_changes_every_picture_and_no_target(
    strong: Augmentation, noise: tuple[Tensor, Tensor]
) -> None:
    pixels, targets = strong(*noise, generator(0))
    assert torch.equal(targets, noise[1])
    assert ((pixels - noise[0]).abs().flatten(1).mean(1) > 0.01).all()
