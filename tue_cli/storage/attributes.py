"""Extended attributes, such as the tags of a file manager, where the system has them (Linux)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 4096
"""Of one attribute: a larger one may hold a view of the picture."""
_OWN: Final = "user."
"""What the attributes begin with that belong to people and programs, not to the system."""
_PICTURE: Final = re.compile(
    rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|/9j/|iVBORw0KGgo|UklGR", re.DOTALL
)
"""How JPEG, PNG and WebP begin, as they are or in base64."""


def read_attributes(path: Path) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the attributes of a file that a copy should have, and a note on those left out.

    Left out are those that may hold the picture itself, such as a resource fork. Both are empty
    where the file system has none.
    """
    kept: dict[str, bytes] = {}
    left_out: list[str] = []
    if sys.platform == "linux":
        try:
            names = [name for name in sorted(os.listxattr(path)) if name.startswith(_OWN)]
            for name in names:
                value = os.getxattr(path, name)
                if len(value) > MOST_BYTES or _PICTURE.search(value):
                    left_out.append(name)
                else:
                    kept[name] = value
        except OSError:
            return {}, ()
    note = f"left out extended attributes that may hold the original picture: {', '.join(left_out)}"
    return kept, (note,) if left_out else ()


def write_attributes(opened: int, attributes: Mapping[str, bytes]) -> bool:
    """Give attributes to an open file; say whether the file system took all of them."""
    is_whole = True
    for name, value in attributes.items():
        if sys.platform == "linux":
            try:
                os.setxattr(opened, name, value)
            except OSError:  # also where there is no room for this one, which ENOSPC says too
                is_whole = False
    return is_whole
