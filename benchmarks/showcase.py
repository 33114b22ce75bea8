"""Draw assets/before-after.png: original, copy and difference times ten of the demo's photographs,
not scaled, each where the change is easiest to see.

python -m benchmarks.showcase
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tue_cli.images.visibility import Tile, find_worst_tile

ROOT = Path(__file__).parent.parent
PHOTOS = ("space/astronaut.jpg", "everyday/cat.png", "everyday/coffee.jpg")
SIDE, GAP, HEAD = 300, 8, 28


def cut_square(pixels: np.ndarray, tile: Tile) -> np.ndarray:
    """Cut SIDE x SIDE pixels out around a tile, not scaled."""
    height, width, _ = pixels.shape
    top = min(max(0, tile.top + (tile.side - SIDE) // 2), height - SIDE)
    left = min(max(0, tile.left + (tile.side - SIDE) // 2), width - SIDE)
    return pixels[top : top + SIDE, left : left + SIDE]


def main() -> None:
    """Protect the demo's photographs at the defaults and lay three of them side by side."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tue_cli", "protect", str(ROOT / "assets" / "photos")]
        subprocess.run([*command, "-o", folder, "-q"], check=True)
        rows = []
        for name in PHOTOS:
            before = np.asarray(Image.open(ROOT / "assets" / "photos" / name).convert("RGB"))
            after = np.asarray(Image.open(Path(folder) / name).convert("RGB"))
            change = 128 + 10 * (after.astype(int) - before)
            tile = find_worst_tile(before, after)
            views = (before, after, change.clip(0, 255).astype(np.uint8))
            rows.append([cut_square(view, tile) for view in views])
    width, height = 3 * SIDE + 2 * GAP, HEAD + len(rows) * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("original", "protected copy", "difference, ten times")):
        place = (column * (SIDE + GAP) + SIDE // 2, HEAD // 2)
        draw.text(place, title, "black", ImageFont.load_default(16), anchor="mm")
    for row, pictures in enumerate(rows):
        for column, pixels in enumerate(pictures):
            place = (column * (SIDE + GAP), HEAD + row * (SIDE + GAP))
            sheet.paste(Image.fromarray(pixels), place)
    sheet.save(ROOT / "assets" / "before-after.png", optimize=True)


if __name__ == "__main__":
    main()
