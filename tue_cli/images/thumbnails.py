"""A picture, its copy and what was changed, as three small views that a page can hold.

Of a large picture they show the part whose change is seen most, at 100 %, for scaling down hides
what is to be judged. The views carry pixels and a colour profile, no other metadata. Their
orientation is applied, as a viewer does, although `codec.decode` keeps the stored order.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tue_cli.errors import ImageProblem
from tue_cli.images import codec
from tue_cli.images.codec import DecodedImage
from tue_cli.images.deep import Pixels, reduce_to_8_bits
from tue_cli.images.orientation import apply_orientation, make_image, read_orientation
from tue_cli.images.visibility import find_worst_tile
from tue_cli.text import escape

Part = tuple[slice, slice]

SIDE: Final = 360
"""Longest side of a view, in pixels; of a larger picture it is a part, not scaled."""
GAIN: Final = 10
"""How many times the difference is enlarged."""
MIDDLE: Final = 128
"""The level that stands for no change."""
LARGE_PNG: Final = 90_000
"""Bytes from which a view is written as JPEG instead."""
LARGE_PROFILE: Final = 64_000
"""Bytes from which a colour profile, such as a printer's, is left out."""
ROWS: Final = 256
"""Rows that the difference is worked out in at a time."""


@dataclass(frozen=True)
class Thumbnails:
    """One picture in three views: PNG, or JPEG of quality 92 where a PNG would be large."""

    name: str
    """Where the copy lies below the output, as a sentence can hold it."""
    before: bytes
    after: bytes
    difference: bytes
    """The change times `GAIN` around mid-grey, clipped: grey all over means no change."""
    note: str
    """What was measured, such as `largest change 8 levels, PSNR 34.1 dB`."""


def make_thumbnails(original: Path, copy: Path, record: dict[str, Any]) -> Thumbnails:
    """Return the views of a picture and its copy; `record` is the copy's entry in the manifest.

    Raises:
        ImageProblem: one of the two cannot be read, or `other-size`: they are not of one size.
    """
    before = codec.decode(codec.read(original))
    after = codec.decode(codec.read(copy))
    old = apply_orientation(before.shown, read_orientation(before))
    new = apply_orientation(after.shown, read_orientation(after))
    if old.shape[:2] != new.shape[:2]:
        raise ImageProblem(
            "other-size",
            f"It has {old.shape[1]} × {old.shape[0]} pixels, its copy {new.shape[1]} × "
            f"{new.shape[0]}.",
        )
    part = find_worst_tile(old, new).surround(old.shape, SIDE)
    return Thumbnails(
        name=escape(record.get("path") or copy.name),
        before=_render_view(before, part),
        after=_render_view(after, part),
        difference=_encode_image(_enlarge(_draw_difference(old[part], new[part]))),
        note=_describe_copy(record),
    )


def render_difference(original: Path, copy: Path) -> bytes:
    """Return the difference of a picture and its copy at full size, as a viewer shows it, as PNG.

    Raises:
        ImageProblem: one of the two cannot be read.
    """
    before, after = codec.decode(codec.read(original)), codec.decode(codec.read(copy))
    changed = apply_orientation(
        _draw_difference(before.shown, after.shown), read_orientation(before)
    )
    file = io.BytesIO()
    make_image(changed).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read_size(view: bytes) -> tuple[int, int]:
    """Return a view's width and height."""
    with Image.open(io.BytesIO(view)) as coded:
        return coded.size


def render_dots(view: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """Return a view as (H, W, 3) that fits into width x height square dots, H even.

    A terminal draws two of them, one above the other, in each cell.
    """
    with Image.open(io.BytesIO(view)) as coded:
        image = coded.convert("RGB")
    scale = min(width / image.width, height / image.height)
    columns = max(1, min(width, round(image.width * scale)))
    rows = max(2, min(height, round(image.height * scale)) // 2 * 2)
    return np.asarray(image.resize((columns, rows), Image.Resampling.BOX))


def _draw_difference(before: Pixels, after: Pixels) -> NDArray[np.uint8]:
    """Return mid-grey plus `GAIN` times the change, (H, W, C), clipped to 0..255."""
    before, after = reduce_to_8_bits(before), reduce_to_8_bits(after)
    if before.shape[2] != after.shape[2]:
        before, after = (np.broadcast_to(p, (*p.shape[:2], 3)) for p in (before, after))
    amplified = np.empty(after.shape, np.uint8)
    for top in range(0, len(after), ROWS):
        rows = slice(top, top + ROWS)
        change = (after[rows].astype(np.int16) - before[rows]) * GAIN + MIDDLE
        amplified[rows] = change.clip(0, 255)
    return amplified


def _render_view(picture: DecodedImage, part: Part) -> bytes:
    """Return the view of a picture in its colours, on white where it is transparent."""
    turn = read_orientation(picture)
    small = _enlarge(apply_orientation(picture.shown, turn)[part])
    if picture.alpha is not None:
        mask = _enlarge(apply_orientation(picture.alpha[..., None], turn)[part])
        small = Image.composite(small, Image.new(small.mode, small.size, "white"), mask)
    # A profile of ink does not fit the view, which is RGB.
    return _encode_image(small, picture.metadata.icc if picture.black is None else b"")


def _enlarge(pixels: Pixels) -> Image.Image:
    """Enlarge pixels by the largest whole factor that fits into a square of `SIDE`."""
    image = make_image(pixels)
    times = SIDE // max(image.size)
    size = (image.width * times, image.height * times)
    return image.resize(size, Image.Resampling.NEAREST)


def _encode_image(image: Image.Image, icc: bytes = b"") -> bytes:
    profile = {"icc_profile": icc} if 0 < len(icc) < LARGE_PROFILE else {}
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, **profile)
    if file.tell() < LARGE_PNG:
        return file.getvalue()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, subsampling=0, optimize=True, **profile)
    return file.getvalue()


def _describe_copy(record: dict[str, Any]) -> str:
    """Return what a manifest's entry says of a copy, in one line; what it lacks is left out."""
    parts = [
        text.format(record[name])
        for name, text in (
            ("format", "{}"),
            ("largest", "largest change {} levels"),
            ("psnr", "PSNR {:.1f} dB"),
            ("ssim", "SSIM {:.3f}"),
            ("delta_e", "CIEDE2000 {:.1f} where it shows most"),
        )
        if record.get(name) is not None
    ]
    return ", ".join(parts)
