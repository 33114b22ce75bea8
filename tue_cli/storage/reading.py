"""Files that anybody may have written: opened without waiting, read to a limit, JSON to a depth."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

DEEPEST: Final = 50
"""Lists and objects within each other; what tue writes itself has six."""
MOST_STATE: Final = 256_000_000
"""Bytes of a manifest or a journal, which have about a thousand a picture."""
MOST_HEADER: Final = 1 << 24
"""Bytes of the names, shapes and card at the head of a weights file."""
MOST_LIST: Final = 64_000_000
"""Bytes of a table or list of paths: those of half a million pictures."""

_DTYPES: Final = (
    *("BOOL", "F16", "F32", "F64"),
    *(f"{kind}{bits}" for kind in "UI" for bits in (8, 16, 32, 64)),
)
"""The types of tensors that NumPy has, as safetensors calls them."""


class NotAFile(OSError):
    """A folder, a pipe, a socket or a device in the place of a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "it is not a regular file", str(path))


class TooLarge(OSError):
    """A file of more bytes than any that is meant to be here."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(
            errno.EFBIG, f"it is larger than {limit:,} bytes, the most that tue reads", str(path)
        )


@contextmanager
def open_regular(path: Path, limit: int) -> Iterator[BinaryIO]:
    """Open a regular file of at most `limit` bytes for reading, never waiting for a pipe.

    Raises:
        OSError: as the file system gave it, or `NotAFile` or `TooLarge`.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # a zero byte in the path
        raise OSError(errno.EINVAL, str(error)) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotAFile(path)
        if status.st_size > limit:
            raise TooLarge(path, limit)
        with open(descriptor, "rb", closefd=False) as file:  # noqa: PTH123 - it is a descriptor
            yield file
    finally:
        os.close(descriptor)


def read_file(path: Path, limit: int) -> bytes:
    """Return the bytes of a file that `open_regular` opens, which may not grow beyond the limit.

    Raises:
        OSError: as `open_regular` says.
    """
    with open_regular(path, limit) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise TooLarge(path, limit)
    return data


def parse_json(text: bytes | str) -> Any:
    """Parse JSON; NaN, Infinity and numbers too large for a float become None.

    Raises:
        ValueError: it is no JSON, or is nested deeper than `DEEPEST`.
    """
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_parse_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, dict | list)
        ]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def read_safetensors_header(file: BinaryIO) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the header of a safetensors file, and return it and what it says of the whole file.

    Raises:
        ValueError: it is none.
    """
    length = int.from_bytes(file.read(8), "little")
    header = None
    if 0 < length <= MOST_HEADER:
        with suppress(json.JSONDecodeError, UnicodeDecodeError):
            header = parse_json(file.read(length))
    if isinstance(header, dict):
        metadata = header.get("__metadata__", {})
        if isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()):
            return header, metadata
    raise ValueError("it is not a safetensors file")


def count_tensor_bytes(header: dict[str, Any], limit: int) -> int:
    """Return how many bytes of tensors follow a safetensors header.

    Raises:
        ValueError: it tells of a tensor that cannot be, or of more bytes than the limit.
    """
    ends = [0]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (
            isinstance(offsets, list)
            and len(offsets) == 2
            and all(type(offset) is int for offset in offsets)
            and 0 <= offsets[0] <= offsets[1] <= limit
            and entry.get("dtype") in _DTYPES
        ):
            raise ValueError("its header describes an impossible tensor")
        ends.append(offsets[1])
    return max(ends)


def is_name(text: Any) -> bool:
    """Say whether a file could be called so: text that the file system's encoding has, no NUL."""
    try:
        return isinstance(text, str) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def is_below(path: str) -> bool:
    """Say whether a relative path stays below any folder that it is put to."""
    place = Path(path)
    return bool(place.parts) and not place.anchor and ".." not in place.parts


def explain_error(error: Exception) -> str:
    """Return what is wrong, without the number and the path that Python puts beside it."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _parse_finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None
