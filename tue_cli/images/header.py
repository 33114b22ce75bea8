"""What the beginning of a picture's file tells: its size, its format, or why it is refused.

A few kilobytes tell nearly always; where they do not, the whole file is read. Pixels are `codec`'s.
"""

from __future__ import annotations

import io
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from tue_cli.errors import ImageProblem
from tue_cli.images import codec, metadata, sniff
from tue_cli.images.coding import choose_kind, refuse_unfit
from tue_cli.storage import reading

BEGINNING: Final = 1 << 17
"""Bytes that are read first. EXIF with its thumbnail, at most half of this, stands before the size
of a JPEG."""

_COLOURED: Final = frozenset({"PNG", "BMP", "AVIF", "HEIF"})
"""Formats that can say, without a profile, what another cannot."""


@dataclass(frozen=True)
class Header:
    """What a picture's header tells."""

    size: tuple[int, int]
    """Width and height, as stored."""
    format: str
    """In Pillow's word: JPEG, PNG, WEBP, TIFF, BMP or AVIF."""
    bytes: int
    """Of the file."""


def read_header(path: Path, format: str = "keep", place: Path | None = None) -> Header:
    """Return what a file's header tells; of a sound file, the beginning alone is read.

    Args:
        path: the file.
        format: of its copy, as `--format` has it.
        place: of its copy, if there is to be one.

    Raises:
        ImageProblem: what `codec.read` and `codec.read_dimensions` say of the whole file, or, for
            a copy, `refuse_unfit`.
    """
    try:
        with reading.open_regular(path, codec.MAX_BYTES) as file:
            start, length = file.read(BEGINNING), os.fstat(file.fileno()).st_size
        sniff.refuse_raw(path.suffix, start)
    except OSError:
        start = codec.read(path)  # says what is wrong
        length = len(start)
    try:
        return _parse(start, length, format, place)
    except ImageProblem as problem:
        # What is cut off here looks damaged, and a GIF's second frame lies anywhere.
        is_decided = problem.reason != "unreadable" and not start.startswith(b"GIF8")
        if is_decided or len(start) >= length:
            raise
    source = codec.read(path)
    return _parse(source, len(source), format, place)


def _parse(source: bytes, length: int, format: str, place: Path | None) -> Header:
    size = codec.read_dimensions(source)
    kind = sniff.sniff_format(source)
    if place is not None and (target := choose_kind(kind, format)) != kind:
        has_ink, has_alpha, info = _tell_mode(source, kind)
        refuse_unfit(kind, target, place, has_ink=has_ink, has_alpha=has_alpha)
        if kind in _COLOURED:
            metadata.refuse_other_look(metadata.read_metadata(kind, source, info)[0], kind, target)
    return Header(size, kind, length)


def _tell_mode(source: bytes, kind: str) -> tuple[bool, bool, dict[Any, Any]]:
    """Say whether pixels are in CMYK and can be transparent, and what Pillow knows of the file.

    False and nothing where Pillow cannot tell.
    """
    with suppress(Exception), Image.open(io.BytesIO(source), formats=[kind]) as image:
        return image.mode == "CMYK", image.has_transparency_data, dict(image.info)
    return False, False, {}
