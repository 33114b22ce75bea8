"""Data sets read from their archives into memory, as they are: no unpacking to a disk."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import tarfile
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tue_cli.core.batches import Images
from tue_cli.images.resize import resize_to_square

PARTS = {"train": "train", "test": "test", "val": "test"}
TOGETHER = 1000
"""Pictures that a process decodes at a time."""

Entry = tuple[str, str, str, bytes]
"""Part, class, name and content of a file."""


class Split(NamedTuple):
    """A data set in two parts."""

    classes: tuple[str, ...]
    train: Images
    test: Images


def read_split(path: Path, size: int, *, part: slice = slice(None)) -> Split:
    """Return an archive's pictures, of train/CLASS/ and test/ or val/CLASS/, as squares.

    Args:
        path: a tar archive, compressed or not.
        size: pixels a side.
        part: which classes, by name.
    """
    with _open_pool() as pool, tarfile.open(path, "r|*") as archive:
        entries, waiting = _read_entries(archive), []
        names: list[tuple[str, str, str]] = []
        while some := list(itertools.islice(entries, TOGETHER)):
            names += [entry[:3] for entry in some]
            waiting.append(pool.submit(_decode, [entry[3] for entry in some], size))
        pixels = np.concatenate([some.result() for some in waiting]) if waiting else None
    classes = tuple(sorted({name for kind, name, _ in names if kind == "train"})[part])
    if not classes or pixels is None:
        raise SystemExit(f"{path} holds no train/CLASS/ folders.")
    train, test = (_collect_images(pixels, names, kind, classes) for kind in ("train", "test"))
    return Split(classes, train, test)


def _open_pool() -> Executor:
    """Return a pool on all cores; where processes cannot be forked, of threads."""
    if "fork" in multiprocessing.get_all_start_methods():
        return ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork"))
    return ThreadPoolExecutor()


def _read_entries(archive: tarfile.TarFile) -> Iterator[Entry]:
    for member in archive:
        place = PurePosixPath(member.name)
        if member.isfile() and len(place.parts) >= 3 and place.parts[-3] in PARTS:
            file = archive.extractfile(member)
            assert file is not None
            yield PARTS[place.parts[-3]], place.parts[-2], place.name, file.read()


def _decode(files: list[bytes], size: int) -> NDArray[np.uint8]:
    pixels = np.empty((len(files), 3, size, size), np.uint8)
    for place, data in enumerate(files):
        with Image.open(io.BytesIO(data)) as image:
            levels = np.asarray(image.convert("RGB"))
        if levels.shape[:2] == (size, size):
            pixels[place] = levels.transpose(2, 0, 1)
        else:
            pixels[place] = np.rint(resize_to_square(levels, size) * 255)
    return pixels


def _collect_images(
    pixels: NDArray[np.uint8],
    names: list[tuple[str, str, str]],
    kind: str,
    classes: tuple[str, ...],
) -> Images:
    """Return a part's pictures, class by class, by name."""
    numbers = {name: number for number, name in enumerate(classes)}
    chosen = [place for place, (of, name, _) in enumerate(names) if of == kind and name in numbers]
    chosen.sort(key=lambda place: names[place][1:])
    labels = [numbers[names[place][1]] for place in chosen]
    return Images(torch.from_numpy(pixels[chosen]), torch.tensor(labels))
