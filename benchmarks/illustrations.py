"""Illustrations that anyone can draw again: line art, cartoons, screens, pixel art, gradients.

    python -m benchmarks.illustrations FOLDER

Twenty PNG files of 512 x 384 pixels. What is drawn is invented; each kind is one in which noise is
easy to see: flat colours, outlines, white paper, gradients, few colours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.script import say

WIDTH, HEIGHT = 512, 384
FINE = 3
"""Times that a drawing is larger while it is drawn, so that its outlines are antialiased."""
PALETTE = ("#e8503a", "#f2b134", "#2a9d8f", "#264653", "#8ab17d", "#b56576", "#5e60ce", "#f7ede2")

Draw = Callable[[ImageDraw.ImageDraw, np.random.Generator], None]


def draw_flat(paper: str, draw: Draw, seed: int) -> Image.Image:
    """Draw on paper of one colour, with smooth outlines."""
    image = Image.new("RGB", (FINE * WIDTH, FINE * HEIGHT), paper)
    draw(ImageDraw.Draw(image), np.random.default_rng(seed))
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def pick_box(random: np.random.Generator, most: int = 500) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a box within the picture."""
    left, top = random.integers(0, FINE * WIDTH - 150), random.integers(0, FINE * HEIGHT - 150)
    width, height = random.integers(100, most, 2)
    return int(left), int(top), int(left + width), int(top + height)


def draw_lines(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """Draw curves and outlines of ink."""
    for _ in range(14):
        draw.ellipse(pick_box(random), outline="black", width=9)
    for _ in range(6):
        points = random.uniform((0, 0), (FINE * WIDTH, FINE * HEIGHT), (5, 2))
        draw.line([tuple(point) for point in points], fill="black", width=7, joint="curve")


def draw_cartoon(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """Draw flat shapes with black outlines."""
    for number in range(12):
        colour = PALETTE[number % len(PALETTE)]
        shape = (draw.ellipse, draw.rectangle)[number % 2]
        shape(pick_box(random, 700), fill=colour, outline="black", width=12)


def draw_logo(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """Draw a few large flat shapes and a word."""
    for number in range(3):
        left = 350 + 220 * number
        draw.ellipse((left, 200, left + 400, 600), fill=PALETTE[int(random.integers(0, 7))])
    draw.text((380, 700), "Harbour", fill="#222222", font=ImageFont.load_default(200))


def draw_text(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """Draw a page of text."""
    words = ["harbour", "of", "the", "quiet", "island", "boats", "and", "red", "lights"]
    for row in range(22):
        line = " ".join(random.choice(words, 9))
        draw.text((90, 60 + 48 * row), line, fill="black", font=ImageFont.load_default(40))


def draw_screen(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """Draw a window with a bar, a list and buttons."""
    draw.rectangle((0, 0, 1536, 90), fill="#3b3f46")
    draw.rectangle((0, 90, 380, 1152), fill="#f3f4f6")
    for row in range(12):
        draw.text((40, 130 + 80 * row), "Folder", fill="#333333", font=ImageFont.load_default(44))
        shade = "#ffffff" if row % 2 else "#eef2ff"
        draw.rectangle((380, 90 + 80 * row, 1536, 170 + 80 * row), fill=shade)
        size = int(random.integers(100, 900))
        draw.rectangle((430, 120 + 80 * row, 430 + size, 140 + 80 * row), fill="#9ca3af")


def draw_chart(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """Draw bars and axes."""
    for place in range(10):
        height = int(random.integers(150, 850))
        left = 160 + 130 * place
        draw.rectangle((left, 1000 - height, left + 90, 1000), fill=PALETTE[place % 7])
    draw.line((120, 100, 120, 1000, 1480, 1000), fill="#444444", width=6)


def draw_mosaic(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """Draw triangles of flat colours side by side."""
    for row in range(0, FINE * HEIGHT, 128):
        for left in range(0, FINE * WIDTH, 128):
            for corners in (((0, 0), (128, 0), (0, 128)), ((128, 0), (128, 128), (0, 128))):
                points = [(left + x, row + y) for x, y in corners]
                draw.polygon(points, fill=PALETTE[int(random.integers(0, 8))])


def draw_hills(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """Draw a landscape of flat layers."""
    draw.ellipse((1050, 120, 1290, 360), fill="#fff3b0")
    across = np.linspace(0, FINE * WIDTH, 60)
    for layer, colour in enumerate(("#a2d2ff", "#74a57f", "#52796f", "#354f52", "#2f3e46")):
        phase, tall = random.uniform(0, 6), 300 + 150 * layer
        ridge = tall + 70 * np.sin(across / 190 + phase)
        points = [*zip(across, ridge, strict=True), (FINE * WIDTH, 1152), (0, 1152)]
        draw.polygon([(float(x), float(y)) for x, y in points], fill=colour)


def draw_faces(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    """Draw round heads of a comic."""
    for place in range(3):
        left = 100 + 470 * place
        skin = ("#f6d3b3", "#c68642", "#8d5524")[place]
        draw.ellipse((left, 250, left + 380, 800), fill=skin, outline="black", width=10)
        for eye in (90, 230):
            draw.ellipse((left + eye, 430, left + eye + 60, 500), fill="white", outline="black")
            draw.ellipse((left + eye + 20, 450, left + eye + 40, 480), fill="black")
        draw.arc((left + 90, 520, left + 290, 700), 20, 160, fill="black", width=10)
        draw.pieslice((left - 10, 220, left + 390, 640), 180, 360, fill=PALETTE[place + 3])
    draw.rectangle((0, 900, 1536, 1152), fill=PALETTE[int(random.integers(0, 8))])


def make_pixel_art(seed: int) -> Image.Image:
    """Return a picture of large square pixels of eight colours."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 8, (24, 32)).astype(np.uint8))
    small = small.filter(ImageFilter.ModeFilter(5))
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in PALETTE]
    levels = np.array(colours, np.uint8)[np.asarray(small)]
    return Image.fromarray(levels).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)


def make_gradient(first: str, last: str) -> Image.Image:
    """Return a sky that goes from one colour to another, with a flat sun."""
    ends = [np.array(tuple(bytes.fromhex(colour[1:])), float) for colour in (first, last)]
    share = np.linspace(0, 1, HEIGHT)[:, None, None]
    levels = np.broadcast_to((1 - share) * ends[0] + share * ends[1], (HEIGHT, WIDTH, 3))
    image = Image.fromarray(np.rint(levels).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((330, 60, 430, 160), fill="#fff1d0")
    return image


def make_shaded(seed: int) -> Image.Image:
    """Return balls with soft light, as programs for painting draw them."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    levels = np.full((HEIGHT, WIDTH, 3), 235.0)
    for number in range(5):
        x, y, radius = random.uniform((60, 60, 40), (450, 320, 100))
        distance = np.hypot(across - x, down - y)
        light = np.clip(
            1.15 - np.hypot(across - x + radius / 3, down - y + radius / 3) / radius, 0.2, 1
        )
        colour = np.array(tuple(bytes.fromhex(PALETTE[number][1:])), float)
        cover = np.clip(radius - distance, 0, 1)[..., None]
        levels = cover * light[..., None] * colour + (1 - cover) * levels
    return Image.fromarray(np.rint(levels).astype(np.uint8))


def make_halftone(seed: int) -> Image.Image:
    """Return a comic's dots over flat colours."""
    image = draw_flat("#fdf6e3", draw_cartoon, seed)
    draw = ImageDraw.Draw(image)
    for top in range(0, HEIGHT, 8):
        for left in range(top // 8 % 2 * 4, WIDTH // 2, 8):
            draw.ellipse((left, top, left + 3, top + 3), fill="#d62828")
    return image


def make_scan(seed: int) -> Image.Image:
    """Return line art as a scanner sees it: gray paper with grain, soft ink."""
    random = np.random.default_rng(seed)
    image = draw_flat("white", draw_lines, seed).filter(ImageFilter.GaussianBlur(0.8))
    levels: NDArray[np.float64] = np.asarray(image, float) * 0.9 + 12
    return Image.fromarray((levels + random.normal(0, 1.5, levels.shape)).clip(0, 255).astype("u1"))


def make_illustrations() -> Iterator[tuple[str, Image.Image]]:
    """Yield all, with their names."""
    yield "line-art", draw_flat("white", draw_lines, 1)
    yield "line-art-cream", draw_flat("#fbf3e0", draw_lines, 2)
    yield "line-art-gray", draw_flat("white", draw_lines, 3).convert("L")
    yield "line-art-scan", make_scan(4)
    yield "cartoon", draw_flat("#bde0fe", draw_cartoon, 5)
    yield "cartoon-dark", draw_flat("#1d2433", draw_cartoon, 6)
    yield "faces", draw_flat("#ffe8d6", draw_faces, 7)
    yield "logo", draw_flat("white", draw_logo, 8)
    yield "logo-dark", draw_flat("#101820", draw_logo, 9)
    yield "text", draw_flat("white", draw_text, 10)
    yield "screen", draw_flat("white", draw_screen, 11)
    yield "chart", draw_flat("#fafafa", draw_chart, 12)
    yield "mosaic", draw_flat("white", draw_mosaic, 13)
    yield "hills", draw_flat("#cfe8ff", draw_hills, 14)
    yield "pixel-art", make_pixel_art(15)
    yield "sunset", make_gradient("#355c7d", "#f67280")
    yield "dawn", make_gradient("#dfe9f3", "#ffffff")
    yield "shaded", make_shaded(18)
    yield "shaded-more", make_shaded(19)
    yield "halftone", make_halftone(20)


def write_illustrations(folder: Path) -> None:
    """Write all into a folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in make_illustrations():
        image.save(folder / f"{name}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python -m benchmarks.illustrations FOLDER")
    write_illustrations(Path(sys.argv[1]))
    say(f"20 illustrations in {sys.argv[1]}")
