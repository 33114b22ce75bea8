"""Which pictures, which crops and which shifts: all of it a function of a seed and a step."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tue_cli.core.batches import (
    Images,
    crop_and_flip,
    crop_and_resize,
    crop_middle,
    draw_batch,
    make_generator,
    sample_moves,
    shift_and_flip,
    shift_and_flip_by_index,
)
from tue_cli.core.sampling import PADDING, derive_seed, draw_moves, locate_pixels

CPU = torch.device("cpu")


def naive(picture: Tensor, top: int, left: int, flip: bool) -> Tensor:
    """Return one picture (C, H, W) over black, shifted and perhaps flipped, pixel by pixel."""
    _, height, width = picture.shape
    result = torch.zeros_like(picture)
    for row in range(height):
        for column in range(width):
            there = row + top - PADDING, column + left - PADDING
            if 0 <= there[0] < height and 0 <= there[1] < width:
                goal = width - 1 - column if flip else column
                result[:, row, goal] = picture[:, there[0], there[1]]
    return result


def views(picture: Tensor) -> dict[tuple[int, int, bool], Tensor]:
    """Return every view that a crop and a flip can give."""
    shifts = range(2 * PADDING + 1)
    return {
        (top, left, flip): naive(picture, top, left, flip)
        for top in shifts
        for left in shifts
        for flip in (False, True)
    }


@given(count=st.integers(1, 40), size=st.integers(1, 50), epoch=st.integers(0, 3))
def test_an_epoch_covers_every_picture(count: int, size: int, epoch: int) -> None:
    a_epoch = -(-count // size)
    batches = [
        draw_batch(count, size, seed=3, step=epoch * a_epoch + place) for place in range(a_epoch)
    ]
    assert all(len(batch) == size for batch in batches)
    drawn = torch.cat(batches)
    assert set(drawn.tolist()) == set(range(count))
    assert sorted(drawn[:count].tolist()) == list(range(count))


@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**6))
def test_a_batch_is_a_function_of_seed_and_step(seed: int, step: int) -> None:
    first = draw_batch(97, 10, seed=seed, step=step)
    torch.rand(3)
    assert torch.equal(first, draw_batch(97, 10, seed=seed, step=step))


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return draw_batch(50, 50, seed=seed, step=number).tolist()

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1), list(range(50))]
    assert len({tuple(order) for order in orders}) == 5


def test_a_generator_is_one_step_of_one_stream_of_one_seed() -> None:
    def draw(seed: int, stream: str, step: int) -> float:
        return float(torch.rand((), generator=make_generator(seed, stream, step, CPU)))

    places = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", 10), (0, "a1", 0)]
    assert len({draw(*place) for place in places}) == len(places)
    assert draw(0, "a", 0) == draw(0, "a", 0)


def test_a_batch_is_float_in_the_unit_range_and_leaves_the_set_alone() -> None:
    raw = torch.arange(256, dtype=torch.uint8)[:240].reshape(5, 3, 4, 4)
    raw[0, 0, 0, 0] = 255
    pictures = Images(raw.clone(), torch.arange(5))
    pixels, labels = pictures.take_batch(torch.tensor([4, 0, 0]))
    assert len(pictures) == 5
    assert pixels.dtype == torch.float32
    assert torch.equal((pixels * 255).round().to(torch.uint8), raw[[4, 0, 0]])
    assert float(pixels.max()) == 1.0
    assert labels.tolist() == [4, 0, 0]
    assert torch.equal(pictures.pixels, raw)


def test_every_crop_is_one_a_naive_loop_would_make() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in [(3, 5, 7), (1, 6, 3), (3, 1, 1)]:
        picture = 0.1 + 0.9 * torch.rand(shape)
        possible = torch.stack(list(views(picture).values()))
        moved = crop_and_flip(picture.expand(40, *shape), generator)
        same = (moved[:, None] == possible[None]).flatten(2).all(2)
        assert moved.shape == (40, *shape)
        assert same.any(1).all()


def test_crops_differ_by_picture_and_reach_every_shift_and_both_flips() -> None:
    picture = 0.1 + 0.9 * torch.rand(1, 5, 6)
    possible = views(picture)
    moved = crop_and_flip(picture.expand(2000, 1, 5, 6), torch.Generator().manual_seed(0))
    same = (moved[:, None] == torch.stack(list(possible.values()))[None]).flatten(2).all(2)
    drawn = [list(possible)[place] for place in same.int().argmax(1).tolist()]
    assert len(set(drawn)) == len(possible)
    assert 0.45 < sum(flip for _, _, flip in drawn) / len(drawn) < 0.55


def test_a_crop_is_a_function_of_its_generator() -> None:
    pixels = torch.rand(6, 3, 8, 8)
    first = crop_and_flip(pixels, make_generator(1, "crop", 2, CPU))
    assert torch.equal(first, crop_and_flip(pixels, make_generator(1, "crop", 2, CPU)))
    assert not torch.equal(first, crop_and_flip(pixels, make_generator(1, "crop", 3, CPU)))


def test_resized_crops_are_parts_of_their_picture_and_half_are_flipped() -> None:
    # A pixel's colour is its place, so that a crop tells where it was cut.
    place = (torch.arange(36) + 0.5) / 36
    picture = torch.stack([place.expand(36, 36), place[:, None].expand(36, 36)])
    crops = crop_and_resize(picture.expand(2000, 2, 36, 36), 32, make_generator(0, "crop", 0, CPU))
    assert crops.shape == (2000, 2, 32, 32)
    assert float(crops.min()) >= 0 and float(crops.max()) <= 1
    # Between its first and last pixel a crop has 31 of its 32 steps; what is at the very edge of
    # the picture is repeated.
    across = (crops[:, 0, 16, 31] - crops[:, 0, 16, 0]) * 32 / 31
    down = (crops[:, 1, 31, 16] - crops[:, 1, 0, 16]) * 32 / 31
    assert 0.45 < float((across < 0).float().mean()) < 0.55 and bool((down > 0).all())
    area = across.abs() * down
    assert float(area.min()) > 0.32 and float(area.max()) < 1.01
    assert 0.62 < float(area.mean()) < 0.7
    assert bool(((across.abs() / down).log().abs() < math.log(4 / 3) + 0.05).all())
    middle = crops[:, :, 15:17, 15:17].mean((2, 3))
    assert bool((middle.std(0) > 0.05).all())


def test_the_middle_of_pictures_is_a_view_of_them() -> None:
    pictures = Images(torch.arange(2 * 3 * 6 * 8).reshape(2, 3, 6, 8).byte(), torch.zeros(2).long())
    middle = crop_middle(pictures, 4)
    assert torch.equal(middle.pixels, pictures.pixels[..., 1:5, 2:6])
    assert middle.pixels.untyped_storage().data_ptr() == pictures.pixels.data_ptr()


def one_move(seed: int) -> Tensor:
    return sample_moves(1, torch.Generator().manual_seed(seed))[0]


@pytest.mark.slow
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(1, 9))
def test_a_sampled_shift_is_one_naive_view_for_the_whole_batch(
    seed: int, height: int, width: int
) -> None:
    move = one_move(seed)
    pictures = 0.1 + 0.9 * torch.rand(3, 3, height, width)
    moved = shift_and_flip(pictures, move)
    fitting = [
        {place for place, view in views(picture).items() if torch.equal(view, result)}
        for picture, result in zip(pictures, moved, strict=True)
    ]
    assert set.intersection(*fitting)
    assert torch.equal(moved, shift_and_flip(pictures, move))
    # A GPU gathers what the CPU slices.
    assert torch.equal(moved, shift_and_flip_by_index(F.pad(pictures, (4,) * 4), move))


def by_index(pixels: Tensor, move: Tensor) -> Tensor:
    return shift_and_flip_by_index(F.pad(pixels, (4,) * 4), move)


@pytest.mark.parametrize("shift", [shift_and_flip, by_index])
def test_a_sampled_shift_is_undone_by_autograd(shift: Callable[[Tensor, Tensor], Tensor]) -> None:
    size = 9
    places = torch.arange(1, size * size + 1, dtype=torch.float32).reshape(1, 1, size, size)
    seen = 0
    for seed in range(30):
        move = one_move(seed)
        pixels = torch.rand(1, 1, size, size, requires_grad=True)
        # A net that reads one pixel: its gradient belongs where that pixel came from.
        (gradient,) = torch.autograd.grad(shift(pixels, move)[0, 0, 2, 3], pixels)
        origin = int(shift(places, move)[0, 0, 2, 3])
        expected = torch.zeros(size * size)
        if origin:
            expected[origin - 1] = 1
            seen += 1
        assert torch.equal(gradient.flatten(), expected)
    assert seen > 10


def test_a_sampled_shift_passes_gradcheck() -> None:
    move = one_move(4)
    pixels = torch.rand(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: F.softplus(shift_and_flip(p, move)), (pixels,))


def test_sampled_shifts_reach_every_shift_and_both_flips() -> None:
    picture = 0.1 + 0.9 * torch.rand(1, 5, 6)
    possible = views(picture)
    stacked = torch.stack(list(possible.values()))
    generator = torch.Generator().manual_seed(0)
    drawn = set()
    for move in sample_moves(1500, generator):
        moved = shift_and_flip(picture[None], move)[0]
        drawn.add(int((stacked == moved).flatten(1).all(1).int().argmax()))
    assert drawn == set(range(len(possible)))


@given(seed=st.integers(0, 2**63 - 1), count=st.integers(1, 12))
def test_moves_are_drawn_without_torch_as_torch_draws_them(seed: int, count: int) -> None:
    drawn = sample_moves(count, make_generator(seed, "perturb", 0, CPU)).tolist()
    assert draw_moves(derive_seed(seed, "perturb", 0), count) == [
        (*move[:2], bool(move[2])) for move in drawn
    ]


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_places_move_a_picture_as_torch_does_and_its_gradient_back(
    height: int, width: int, seed: int
) -> None:
    picture = torch.rand((1, 3, height, width), requires_grad=True)
    moved = shift_and_flip(picture, sample_moves(1, make_generator(seed, "perturb", 0, CPU))[0])
    there, back = locate_pixels(draw_moves(derive_seed(seed, "perturb", 0), 1), height, width)

    def taken(values: Tensor, where: Tensor) -> Tensor:
        flat = F.pad(values.flatten(2), (0, 1))
        return flat[:, :, where].reshape(values.shape)

    assert torch.equal(taken(picture, torch.from_numpy(there[0])), moved)
    pull = torch.rand(moved.shape)
    gradient = torch.autograd.grad((moved * pull).sum(), picture)[0]
    assert torch.equal(taken(pull, torch.from_numpy(back[0])), gradient)
