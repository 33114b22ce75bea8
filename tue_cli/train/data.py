"""The pictures that nets are trained on, in memory: a folder with one subfolder a class."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tue_cli.errors import BadSetting, ImageProblem, NothingToDo
from tue_cli.events import Failed
from tue_cli.images import codec, resize
from tue_cli.text import format_count

if TYPE_CHECKING:
    from tue_cli.core.batches import Images


def load_images(
    data: Path, size: int, limit: int | None = None
) -> tuple[tuple[str, ...], Images, list[Failed]]:
    """Decode a folder with one subfolder a class into memory, resized to size x size.

    Returns:
        The classes, the pictures with their labels, and what could not be read.

    Raises:
        BadSetting: fewer than two classes, or one without a picture.
        NothingToDo: no picture could be read.
    """
    import torch

    from tue_cli.core.batches import Images

    names, files = _find_classes(data, limit)
    pixels = np.empty((len(files), 3, size, size), np.uint8)
    labels: list[int] = []
    failures: list[Failed] = []
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda file: _decode(file[0], size), files)
        for (_, label), result in zip(files, results, strict=True):
            if isinstance(result, Failed):
                failures.append(result)
            else:
                pixels[len(labels)] = result
                labels.append(label)
    if not labels:
        raise NothingToDo(
            f"No picture in {data} could be read.",
            "Name a folder with one subfolder of pictures per class.",
        )
    _refuse_empty(data, [name for number, name in enumerate(names) if number not in set(labels)])
    pictures = Images(torch.from_numpy(pixels[: len(labels)]), torch.tensor(labels))
    return names, pictures, failures


def _find_classes(data: Path, limit: int | None) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Return the classes' names, and at most `limit` files of each with the class's number."""
    if not data.is_dir():
        raise BadSetting(f"{data} is not a folder.", "Name a folder with one subfolder per class.")
    names = sorted(p.name for p in data.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise BadSetting(
            f"Training needs two classes or more, but {data} has "
            f"{'only one subfolder' if names else 'no subfolder'}.",
            "Name a folder with one subfolder per class.",
        )
    files: list[tuple[Path, int]] = []
    for number, name in enumerate(names):
        found = [p for p in sorted((data / name).rglob("*")) if p.suffix.lower() in codec.SUFFIXES]
        files += [(path, number) for path in found[:limit]]
    return tuple(names), files


def _decode(path: Path, size: int) -> NDArray[Any] | Failed:
    """Return a picture's levels, (3, size, size), or why it has none."""
    try:
        pixels = codec.decode(codec.read(path)).shown
    except ImageProblem as problem:
        return Failed(path, problem.reason, problem.message)
    return np.rint(resize.resize_to_square(pixels, size) * 255)


def _refuse_empty(data: Path, empty: Sequence[str]) -> None:
    """Raise BadSetting where there are classes without a picture."""
    if empty:
        raise BadSetting(
            f"{format_count(len(empty), 'subfolder')} of {data} without a readable picture: "
            f"{', '.join(empty[:5])}{', …' if len(empty) > 5 else ''}.",
            "Remove them, or add pictures.",
        )
