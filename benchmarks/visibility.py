"""How visible is the noise? Of photographs and illustrations, by figures and by eye.

    python -m benchmarks.visibility --photos DIR/photos-100/photos [--sheets FOLDER]

A folder of photographs, and the drawings of `benchmarks.illustrations`, are protected by
`tue protect` at each strength. `--sheets` draws, of every picture, the tile in which the change is
easiest to see, at 100 %, the original beside its copy: what anyone has to look at before a
strength is called invisible.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks import script
from benchmarks.command import run_protect
from benchmarks.illustrations import write_illustrations
from benchmarks.rows import Row
from benchmarks.summary import format_table, summarize
from tue_cli.images import codec
from tue_cli.images.deep import Pixels, reduce_to_8_bits
from tue_cli.images.visibility import Tile
from tue_cli.weights import load

ARMS = ("--strength subtle", "", "--strength strong", "--radius 8 --smooth 1")
SETS = ("photographs", "illustrations")
SEEN = (1.0, 2.0, 4.0)
"""Differences, as `find_worst_tile` measures them, above which copies are counted."""
CROP, COLUMNS, ROWS = 200, 3, 5
"""Pixels a side of what a sheet shows of a picture, and pairs in a sheet."""
HEAD = 14


def read_copies(output: Path) -> list[dict[str, Any]]:
    """Return what the manifest of a folder says of its copies."""
    copies: list[dict[str, Any]] = json.loads((output / "tue-manifest.json").read_text("utf-8"))[
        "pictures"
    ]
    return copies


def measure_figures(output: Path) -> Row:
    """Return how visible the copies are."""
    copies = read_copies(output)
    return {
        "psnr": summarize((entry["psnr"] for entry in copies), 2),
        "ssim": summarize((entry["ssim"] for entry in copies), 4),
        "delta_e": summarize((entry["delta_e"] for entry in copies), 2),
        "seen": [sum(entry["delta_e"] > limit for entry in copies) for limit in SEEN],
        "n": len(copies),
    }


def draw_sheets(source: Path, output: Path, folder: Path, name: str) -> None:
    """Draw the worst tiles of all copies, those that are seen most first."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = sorted(read_copies(output), key=lambda entry: -float(entry["delta_e"]))
    pairs = COLUMNS * ROWS
    for number, start in enumerate(range(0, len(copies), pairs)):
        sheet = Image.new("RGB", (COLUMNS * (2 * CROP + 10), ROWS * (CROP + HEAD)), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
        for place, entry in enumerate(copies[start : start + pairs]):
            left = place % COLUMNS * (2 * CROP + 10)
            top = place // COLUMNS * (CROP + HEAD)
            title = f"{start + place + 1}: {entry['path'][-44:]}, {entry['delta_e']:.1f}"
            draw.text((left, top), title, "black", font)
            for column, file in enumerate((source / entry["source"], output / entry["path"])):
                shown = codec.decode(codec.read(file)).shown
                crop = Image.fromarray(
                    cut_tile(shown, Tile(entry["delta_e"], *entry["worst_tile"]))
                )
                sheet.paste(crop, (left + column * CROP, top + HEAD))
        sheet.save(folder / f"{name}-{number:02}.png")


def cut_tile(pixels: Pixels, tile: Tile) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) around a tile."""
    part = reduce_to_8_bits(pixels[tile.surround(pixels.shape, CROP)])
    return np.ascontiguousarray(np.broadcast_to(part, (*part.shape[:2], 3)))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = script.make_parser(__doc__, "visibility")
    add = parser.add_argument
    add("--photos", type=Path, required=True, help="a folder of photographs")
    add("--weights", default="cifar10")
    add("--sheets", type=Path, help="a folder for sheets of what is seen most")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> None:
    """Protect both sets in every way that the results do not hold yet, and print the table."""
    rows = script.open_rows(args, dtype="float32")
    weights = load(args.weights)
    drawn = args.work / "drawn"
    write_illustrations(drawn)
    found = []
    for kind, source in zip(SETS, (args.photos, drawn), strict=True):
        for arm in ARMS:
            settings = {"set": kind, "options": arm, "weights_sha256": weights.sha256}
            row = rows.find("visibility", settings)
            if row is None or args.sheets is not None:
                began = time.monotonic()
                name = f"{kind}{arm.replace(' ', '')}"
                run_protect(
                    source,
                    args.work / name,
                    weights=args.weights,
                    device=args.device,
                    threads=args.threads,
                    options=["--labels", "single", *arm.split()],
                )
                if args.sheets is not None:
                    draw_sheets(source, args.work / name, args.sheets, name)
            if row is None:
                seconds = round(time.monotonic() - began, 1)
                figures = measure_figures(args.work / name)
                row = rows.add("visibility", settings, **figures, seed=0, seconds=seconds)
            found.append(row)
    script.say(format_ways(found))


def format_ways(rows: Sequence[Row]) -> str:
    """Return the ways side by side as a Markdown table."""
    head = ["pictures", "`tue protect`", "PSNR, dB", "SSIM", "CIEDE2000 of the worst tile"]
    head += [f"above {limit:g}" for limit in SEEN]
    order = [(kind, arm) for kind in SETS for arm in ARMS]
    placed = {(row["settings"]["set"], row["settings"]["options"]): row for row in rows}
    lines = []
    for kind, arm in order:
        row = placed[kind, arm]
        lines.append(
            [
                f"{row['n']} {kind}",
                f"`{arm}`" if arm else "defaults",
                "{median:.1f} ({min:.1f}–{max:.1f})".format(**row["psnr"]),
                "{median:.3f} ({min:.3f}–{max:.3f})".format(**row["ssim"]),
                "{median:.1f} ({min:.1f}–{max:.1f})".format(**row["delta_e"]),
                *(f"{count}" for count in row["seen"]),
            ]
        )
    return format_table(head, lines)


if __name__ == "__main__":
    script.run(parse_arguments(), measure)
