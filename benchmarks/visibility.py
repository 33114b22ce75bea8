"""How visible is the noise, and where? Of photographs, by PSNR, by SSIM and by eye.

    python -m benchmarks.visibility --photos DIR/photos-100/photos [--sheet FILE.png]

A folder is protected by `tue protect` at its defaults and with the options that are compared.
`smooth` and `rough` are the mean changes of a pixel, in levels of 255, where the picture hides less
than a quarter of the noise, as protecting judges it, and where it hides all. `--sheet` draws the
smoothest pictures beside their copies: what anyone has to look at before a strength is called
invisible.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import script
from benchmarks.command import run_protect
from benchmarks.rows import Row
from benchmarks.summary import format_table, summarize
from tue_cli.images import codec, resize
from tue_cli.weights import load

ARMS = ("", "--smooth 1", "--smooth 0.1", "--radius 4")
WANTED = 32.0
"""Decibels of PSNR that every copy is to have."""
PLAIN, FULL = 0.25, 0.999
"""Shares of the noise, by `compute_mask`, below and above which a place is smooth or rough."""
SHOWN, SIDE = 12, (320, 240)


class Pair(NamedTuple):
    """A photograph and its copy, (H, W, C) each, and how much noise it hides, (H, W) in [0, 1]."""

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    hides: NDArray[np.float32]


def read_pairs(source: Path, output: Path, size: int) -> list[Pair]:
    """Return what the manifest of `output` names, in its order."""
    found = []
    for entry in json.loads((output / "tue-manifest.json").read_text("utf-8"))["pictures"]:
        before, after = (
            codec.decode(codec.read(place)).pixels
            for place in (source / entry["source"], output / entry["path"])
        )
        hides = Image.fromarray(resize.compute_mask(resize.resize_to_square(before, size), 0.0)[0])
        large = hides.resize(before.shape[1::-1], Image.Resampling.NEAREST)
        found.append(Pair(before, after, np.asarray(large)))
    return found


def measure_figures(output: Path, pairs: list[Pair]) -> Row:
    """Return how visible the copies are."""
    manifest = json.loads((output / "tue-manifest.json").read_text("utf-8"))["pictures"]
    changes = [np.abs(p.after.astype(np.float32) - p.before).mean(2) for p in pairs]
    smooth = np.concatenate([c[p.hides < PLAIN] for c, p in zip(changes, pairs, strict=True)])
    rough = np.concatenate([c[p.hides > FULL] for c, p in zip(changes, pairs, strict=True)])
    return {
        "psnr": summarize((entry["psnr"] for entry in manifest), 2),
        "ssim": summarize((entry["ssim"] for entry in manifest), 4),
        "survival": summarize((entry["survival"] for entry in manifest), 3),
        "enough": sum(entry["psnr"] >= WANTED for entry in manifest),
        "smooth": round(float(smooth.mean()), 2),
        "rough": round(float(rough.mean()), 2),
    }


def draw_sheet(pairs: list[Pair]) -> Image.Image:
    """Draw the smoothest photographs beside their copies, two pairs a row."""
    chosen = sorted(pairs, key=lambda pair: float(pair.hides.mean()))[:SHOWN]
    page = Image.new("RGB", (4 * SIDE[0], SIDE[1] * -(-len(chosen) // 2)), "white")
    for number, pair in enumerate(chosen):
        for column, pixels in enumerate((pair.before, pair.after)):
            small = Image.fromarray(pixels.squeeze()).convert("RGB").resize(SIDE)
            page.paste(small, ((2 * (number % 2) + column) * SIDE[0], number // 2 * SIDE[1]))
    return page


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = script.make_parser(__doc__, "visibility")
    add = parser.add_argument
    add("--photos", type=Path, required=True, help="a folder of photographs")
    add("--weights", default="cifar10")
    add("--sheet", type=Path, help="a picture of the smoothest photographs and their copies")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> None:
    """Protect the folder in every way that the results do not hold yet, and print the table."""
    rows = script.open_rows(args, dtype="float32")
    weights = load(args.weights)
    found = []
    for arm in ARMS:
        settings = {
            "options": arm,
            "photos": args.photos.resolve().name,
            "weights_sha256": weights.sha256,
        }
        row = rows.find("visibility", settings)
        wants_sheet = args.sheet is not None and not arm
        if row is None or wants_sheet:
            began = time.monotonic()
            output = args.work / (arm.replace(" ", "") or "defaults")
            run_protect(
                args.photos,
                output,
                weights=args.weights,
                device=args.device,
                threads=args.threads,
                options=["--labels", "single", *arm.split()],
            )
            pairs = read_pairs(args.photos, output, weights.card.size)
            if wants_sheet:
                draw_sheet(pairs).save(args.sheet)
            figures = measure_figures(output, pairs)
            seconds = round(time.monotonic() - began, 1)
            row = rows.add("visibility", settings, **figures, seed=0, n=len(pairs), seconds=seconds)
        found.append(row)
    script.say(format_ways(found))


def format_ways(rows: Sequence[Row]) -> str:
    """Return the ways side by side as a Markdown table."""
    head = ["`tue protect`", "PSNR, dB", f"copies at {WANTED:g} dB or more", "SSIM"]
    lines = [
        [
            f"`{row['settings']['options']}`" if row["settings"]["options"] else "defaults",
            "{median:.1f} ({min:.1f}–{max:.1f})".format(**row["psnr"]),
            f"{row['enough']} of {row['n']}",
            "{median:.3f} ({min:.3f}–{max:.3f})".format(**row["ssim"]),
            f"{row['smooth']:.1f}",
            f"{row['rough']:.1f}",
        ]
        for row in sorted(rows, key=lambda row: ARMS.index(row["settings"]["options"]))
    ]
    return format_table([*head, "smooth areas", "textured areas"], lines)


if __name__ == "__main__":
    script.run(parse_arguments(), measure)
