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

from tue_cli.images.visibility import find_worst_tile

ROOT = Path(__file__).parent.parent
PHOTOS = ("space/astronaut.jpg", "everyday/cat.png", "everyday/coffee.jpg")
SIDE, GAP, HEAD = 300, 8, 28


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
            part = find_worst_tile(before, after).surround(before.shape, SIDE)
            views = (before, after, change.clip(0, 255).astype(np.uint8))
            rows.append([view[part] for view in views])
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
