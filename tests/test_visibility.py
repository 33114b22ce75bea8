"""Noise goes where it is not seen, and what is left of it pulls as hard as it can."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.color import deltaE_ciede2000, rgb2lab

from tue_cli.config import METHODS, ProtectSettings
from tue_cli.core.pgd import Term, make_gradient, pgd
from tue_cli.engine.canvas import make_canvas
from tue_cli.images import visibility
from tue_cli.images.resize import add_upsampled
from tue_cli.images.visibility import (
    Mask,
    describe_share,
    find_worst_tile,
    measure_share,
    reduce_mask,
)
from tue_cli.mask import LUMA, apply_mask, mask_gradient
from tue_cli.noise import TueNoise

RADIUS = 8 / 255
Levels = NDArray[np.uint8]


def draw_noise(seed: int, size: int = 32) -> NDArray[np.float32]:
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (3, size, size))
    return (signs * RADIUS).astype(np.float32)


def draw_texture(side: int, deviation: float, middle: int = 128) -> Levels:
    noise = np.random.default_rng(0).normal(middle, deviation, (side, side, 3))
    return noise.clip(0, 255).astype(np.uint8)


def draw_line_art() -> Levels:
    image = Image.new("RGB", (200, 160), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 20, 150, 140), outline="black", width=4)
    draw.line((0, 80, 199, 30), fill="black", width=3)
    draw.rectangle((150, 90, 190, 150), fill=(230, 60, 40))
    return np.asarray(image)


def compute_mask(pixels: Any, smooth: float) -> Mask:
    return visibility.compute_mask(pixels, 32, smooth, RADIUS * 255)


def change(pixels: Levels, smooth: float = 0.25) -> NDArray[np.int64]:
    mask = compute_mask(pixels, smooth)
    copy = add_upsampled(draw_noise(1), pixels, RADIUS, mask)
    return copy.astype(np.int64) - pixels


def test_texture_gets_all_of_the_noise_and_a_flat_area_none() -> None:
    pixels = draw_texture(128, 30)
    pixels[:64, :16] = 128
    mask = compute_mask(pixels, 0)
    assert not mask[:, :60, :12].any()
    assert mask[0, :, 22:].mean() > 250
    assert np.abs(change(pixels)[:, 22:]).max() == 8


def test_what_varies_at_the_scale_of_the_noise_hides_as_much_of_it() -> None:
    down, across = np.mgrid[:256, :256]
    waves = np.sin(down / 3) * np.sin(across / 3)
    grain = np.random.default_rng(0).normal(0, 0.8, (256, 256))
    for height in (4, 8):
        levels = (128 + height * waves + grain)[..., None].repeat(3, 2).astype(np.uint8)
        share = np.median(compute_mask(levels, 0)[0]) / 255
        # The waves' standard deviation is half of their height.
        assert share * RADIUS * 255 == pytest.approx(0.8 * height / 2, rel=0.25)


def test_a_gradient_hides_nothing() -> None:
    levels = np.linspace(60, 200, 256)[:, None, None]
    sky = (levels + np.random.default_rng(0).normal(0, 0.7, (256, 256, 3))).astype(np.uint8)
    assert compute_mask(sky, 0)[0, 20:-20, 20:-20].mean() < 16


def test_the_outlines_of_a_drawing_get_no_more_than_a_smooth_area() -> None:
    pixels = np.full((128, 128, 3), (90, 140, 200), np.uint8)
    pixels[:, 64:] = draw_texture(128, 30)[:, :64]
    assert compute_mask(pixels, 0.25)[0].max() == 63 and not compute_mask(pixels, 0.25)[1].any()
    pixels[:, 20:] = draw_texture(128, 30)[:, :108]
    assert compute_mask(pixels, 0.25)[0].max() == 255


@pytest.mark.parametrize("ground", [0, 255])
def test_a_photograph_on_black_or_white_is_not_taken_for_a_drawing(ground: int) -> None:
    pixels = draw_texture(128, 30)
    pixels[:, :96] = ground
    mask = compute_mask(pixels, 0.25)
    assert mask[:, :, 108:].mean() > 150 and not mask[:, :, :90].any()


def test_a_mask_has_no_seams_where_its_strips_meet() -> None:
    pixels = np.tile(draw_texture(160, 0.5), (4, 1, 1))
    whole, part = compute_mask(pixels, 0.9), compute_mask(pixels[100:], 0.9)
    assert whole[0].std() > 10
    assert np.abs(whole[:, 130:].astype(int) - part[:, 30:]).max() <= 1


def test_gray_pixels_of_a_picture_with_colours_get_no_noise_in_chroma() -> None:
    pixels = draw_texture(96, 30)
    pixels[:, 48:] = pixels[:, 48:, :1]
    mask = compute_mask(pixels, 0)
    assert mask[0, :, 60:].mean() > 200 and not mask[1, :, 48:].any()
    assert mask[1, :, :40].mean() > 200


def test_gray_pixels_among_colours_stay_gray_in_a_picture_that_is_judged_smaller() -> None:
    pixels = draw_texture(1100, 30)
    pixels[::3] = pixels[::3, :, :1]
    moved = change(pixels)
    assert np.ptp(moved[::3], axis=2).max() == 0
    assert np.ptp(moved[1::3], axis=2).max() > 4


def test_black_and_white_stay_so_in_a_drawing_that_is_judged_smaller() -> None:
    pixels = np.asarray(Image.fromarray(draw_line_art()).resize((2500, 2000)))
    moved = change(pixels)
    for level in (0, 255):
        assert not moved[(pixels == level).all(axis=2)].any()
    assert moved.any()


def test_a_larger_radius_gives_no_more_levels_where_contrast_hides_no_more() -> None:
    waves = 6 * np.sin(np.mgrid[:256, :256].sum(0) / 4)
    grain = np.random.default_rng(0).normal(128, 0.8, (256, 256))
    pixels = (waves + grain)[..., None].repeat(3, 2).astype(np.uint8)
    told = []
    for radius in (8 / 255, 16 / 255):
        settings = ProtectSettings(noise=TueNoise(radius=radius), smooth=0.0)
        share = measure_share(make_canvas(pixels, 32, settings).mask)
        told.append(share * radius * 255)
    assert told[0] == pytest.approx(told[1], rel=0.05) and told[0] > 1


@pytest.mark.parametrize(("method", "levels"), [("tue", 12), ("em", 8), ("lsp", 8), ("cuda", 8)])
def test_a_canvas_has_the_mask_of_its_method_s_noise_and_size(method: str, levels: int) -> None:
    pixels = draw_texture(300, 10)
    settings = ProtectSettings(method=method, noise=METHODS[method].noise, smooth=0.6)
    mask = make_canvas(pixels, 64, settings).mask
    assert mask is not None
    assert np.array_equal(mask, visibility.compute_mask(pixels, 64, 0.6, levels))
    assert make_canvas(pixels, 64, replace(settings, smooth=1.0)).mask is None


def test_a_black_and_white_picture_gets_no_noise_in_chroma() -> None:
    toned = draw_texture(96, 30)
    toned[:] = toned[..., :1]
    toned[..., 2] -= 5
    assert compute_mask(toned, 0)[0].mean() > 200 and not compute_mask(toned, 0)[1].any()


def test_the_worst_tile_is_where_a_stain_is_seen_and_not_where_texture_hides_it() -> None:
    before = np.full((400, 600, 3), (120, 140, 160), np.uint8)
    before[:, 300:] = draw_texture(400, 30)[:, :300]
    after = before.copy()
    after[40:140, 440:540, 0] += 12
    hidden = find_worst_tile(before, after)
    after[240:340, 60:160, 0] += 6
    seen = find_worst_tile(before, after)
    assert 0 < hidden.delta_e < seen.delta_e and seen.delta_e > 2
    assert 240 <= seen.top + seen.side // 2 <= 340 and 60 <= seen.left + seen.side // 2 <= 160
    assert find_worst_tile(before, before).delta_e == 0


def test_a_large_picture_s_tile_is_told_in_its_own_pixels() -> None:
    before = np.full((1600, 900, 3), 128, np.uint8)
    after = before.copy()
    after[1200:1500, 500:800] += 8
    tile = find_worst_tile(before, after)
    assert tile.side == 32 * 3
    assert 1200 <= tile.top <= 1404 and 500 <= tile.left <= 704


@pytest.mark.parametrize("shape", [(257, 301), (900, 1601)])
def test_the_worst_tile_lies_within_the_picture(shape: tuple[int, int]) -> None:
    before = np.full((*shape, 3), 128, np.uint8)
    after = before.copy()
    after[-40:, -40:] += 9
    tile = find_worst_tile(before, after)
    assert tile.top + tile.side == shape[0] and tile.left + tile.side == shape[1]


def test_grain_is_forgiven_and_a_stain_is_not() -> None:
    before = np.full((96, 96, 3), (120, 140, 160), np.uint8)
    stain, grain = before.copy(), before.copy()
    stain[24:48, 48:72, 0] += 6
    grain[..., 0] += np.uint8(12) * (np.indices((96, 96)).sum(0) % 2).astype(np.uint8)
    grain[..., 0] -= 6
    tile = find_worst_tile(before, stain)
    assert (tile.top, tile.left, tile.side) == (24, 48, 24)
    assert find_worst_tile(before, grain).delta_e < 0.5 * tile.delta_e


def test_what_is_left_of_the_noise_is_told() -> None:
    assert measure_share(np.stack([np.full((4, 4), k, np.uint8) for k in (255, 0)])) == 1
    assert [*describe_share(1.0, True)] == [*describe_share(0.15, True)] == []
    (little,) = describe_share(0.149, True)
    (least,) = describe_share(0.004, True)
    assert "only 15%" in little and "less than 1%" in least
    assert "--smooth 1" in next(describe_share(0.0, False))
    assert "--radius" in next(describe_share(0.3, False))


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 500, 1), (40, 5, 3)])
def test_pictures_of_any_shape_have_a_mask_and_a_worst_tile(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(60, 200, shape, np.uint8)
    assert compute_mask(pixels, 0.5).shape == (2, *shape[:2])
    assert find_worst_tile(pixels, pixels + np.uint8(9)).delta_e > 0


def test_a_smooth_area_of_a_photograph_gets_the_share_that_is_asked_for() -> None:
    sky = draw_texture(96, 0.8)
    assert np.median(compute_mask(sky, 0.2)[0]) == pytest.approx(51, abs=6)
    assert compute_mask(sky, 0)[:, 8:-8, 8:-8].mean() < 8
    assert (compute_mask(np.full((40, 40, 3), 128, np.uint8), 0.2) == 0).all()


def test_flat_colours_stay_flat_beside_outlines() -> None:
    pixels = draw_line_art()
    moved = np.abs(change(pixels)).max(2)
    assert not moved[(pixels == 255).all(2)].any()
    assert not moved[100:140, 160:180].any()
    assert (moved > 0).mean() < 0.005


@pytest.mark.parametrize("middle", [0, 255])
def test_what_is_nearly_black_or_white_is_left_alone(middle: int) -> None:
    pixels = draw_texture(64, 2, middle)
    assert np.abs(change(pixels)).max() <= 1


def test_what_is_gray_stays_gray() -> None:
    pixels = np.repeat(draw_texture(96, 30)[..., :1], 3, axis=2)
    moved = change(pixels)
    assert np.abs(moved).max() == 8
    assert np.ptp(moved, axis=2).max() == 0
    single = add_upsampled(draw_noise(1), pixels[..., :1], RADIUS, compute_mask(pixels[..., :1], 0))
    assert np.array_equal(single[..., 0] - pixels[..., 0], moved.astype(np.uint8)[..., 0])


def test_colour_gets_noise_in_colour() -> None:
    pixels = draw_texture(96, 30)
    pixels[..., 2] //= 4
    assert np.ptp(change(pixels), axis=2).mean() > 2


def test_a_large_picture_is_judged_at_a_smaller_size_in_strips_without_seams() -> None:
    pixels = np.tile(draw_texture(100, 30), (23, 13, 1))[:, :1280]
    mask = compute_mask(pixels, 0)
    assert mask.shape == (2, 2300 // 2, 1280 // 2)
    small = np.asarray(Image.fromarray(pixels).reduce(2))
    assert np.abs(compute_mask(small, 0).astype(int) - mask).max() <= 1
    assert add_upsampled(draw_noise(0), pixels, RADIUS, mask).shape == pixels.shape
    # The strips of a mask are those of the whole.
    top = compute_mask(small[:700], 0)
    assert np.array_equal(top[:, :660], compute_mask(small, 0)[:, :660])


def test_16_bits_have_the_mask_of_8_bits() -> None:
    pixels = draw_texture(64, 30)
    assert np.array_equal(compute_mask(pixels.astype(np.uint16) * 257, 0), compute_mask(pixels, 0))


def test_texture_finer_than_the_noise_hides_its_luma_and_not_its_chroma() -> None:
    fine = draw_texture(512, 10)
    coarse = np.asarray(Image.fromarray(draw_texture(32, 30)).resize((512, 512)))
    luma, chroma = compute_mask(fine, 0).mean((1, 2))
    assert chroma < 0.5 * luma
    luma, chroma = compute_mask(coarse, 0).mean((1, 2))
    assert chroma > 0.8 * luma > 0


def test_a_square_has_the_mean_share_of_what_it_covers() -> None:
    mask = np.zeros((2, 64, 64), np.uint8)
    mask[0, :, ::2] = 255
    small = reduce_mask(mask, 32)
    assert small.shape == (2, 32, 32)
    assert np.allclose(small[0], 0.5, atol=0.01) and not small[1].any()


def test_the_mask_makes_no_value_larger_but_green_by_a_little_which_the_radius_cuts() -> None:
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), -1).reshape(8, 3, 1, 1)
    for luma, chroma in ((1.0, 1.0), (0.6, 0.6), (0.5, 0.3), (0.4, 0.0)):
        mask = np.broadcast_to(np.array([luma, chroma]).reshape(2, 1, 1), (8, 2, 1, 1))
        left = np.abs(apply_mask(corners, mask)) / luma
        assert left[:, ::2].max() <= 1 + 1e-12 and left[:, 1].max() < 1.07
    pixels, whole = np.full((4, 4, 3), 128, np.uint8), np.full((2, 4, 4), 255, np.uint8)
    for corner in corners:
        copy = add_upsampled((corner * RADIUS).astype(np.float32), pixels, RADIUS, whole)
        assert np.abs(copy.astype(int) - 128).max() <= 8
    gray = np.random.default_rng(0).uniform(-1, 1, (4, 1, 8, 8)).repeat(3, 1)
    assert np.allclose(apply_mask(gray, np.ones((4, 2, 8, 8))), gray)


def test_a_cast_of_pink_or_green_is_seen_twice_as_well_as_a_blue_one() -> None:
    gray = np.full((1, 1, 3), 128.0)
    casts = ((8, -8, 8), (-8, 8, -8), (0, -8 * LUMA[2] / LUMA[1], 8))  # the last without luma
    measure: Any = deltaE_ciede2000
    seen = [measure(rgb2lab(gray / 255), rgb2lab((gray + cast) / 255)).item() for cast in casts]
    assert min(seen[:2]) > 1.9 * seen[2]


def test_a_cast_of_pink_or_green_gets_less_than_half_of_what_a_blue_one_gets() -> None:
    whole = np.ones((1, 2, 1, 1))
    blue, pink = np.zeros((1, 3, 1, 1)), np.zeros((1, 3, 1, 1))
    blue[0, 1:, 0, 0] = -LUMA[2] / LUMA[1], 1  # without luma
    pink[0, :2, 0, 0] = 1, -LUMA[0] / LUMA[1]
    assert np.allclose(apply_mask(blue, whole), blue)
    assert np.allclose(apply_mask(pink, whole), 0.4 * pink)


def test_gradients_are_taken_through_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.rand((2, 3, 8, 8), generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.rand((2, 2, 8, 8), generator=generator, dtype=torch.float64)
    field = torch.rand(delta.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad((apply_mask(delta, mask) * field).sum(), delta)
    assert torch.allclose(mask_gradient(field, mask), expected)
    assert np.allclose(mask_gradient(field.numpy(), mask.numpy()), expected.numpy())


def test_noise_made_under_the_mask_pulls_harder_than_noise_that_is_cut_to_it() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.full((8, 3, 16, 16), 0.5)
    mask = torch.rand((8, 2, 16, 16), generator=generator)
    mask[:, 1] = 0
    weights = torch.randn((3, 16, 16), generator=generator)
    term = Term(make_gradient(lambda seen: (seen * weights).sum((1, 2, 3))), RADIUS / 4)
    found = {}
    for name, given in (("within", mask), ("cut", None)):
        start = torch.zeros_like(pixels)
        delta = pgd(pixels, [term], radius=RADIUS, steps=8, start=start, mask=given)
        found[name] = float((apply_mask(delta, mask) * weights).sum())
    assert found["within"] < 1.1 * found["cut"] < 0
