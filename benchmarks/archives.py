"""Data sets read from their archives into memory, as they are: no unpacking to a disk."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tue_cli.files.scale import shrink
from tue_cli.numerics.batches import Pictures

PARTS = {"train": "train", "test": "test", "val": "test"}


class Split(NamedTuple):
    """A data set in two parts."""

    classes: tuple[str, ...]
    train: Pictures
    test: Pictures


def read_split(path: Path, size: int, *, part: slice = slice(None)) -> Split:
    """Return the pictures of an archive of train/CLASS/ and test/ or val/CLASS/, squashed to size.

    Args:
        path: a tar archive, compressed or not.
        size: pixels a side.
        part: which classes, by name.
    """
    found: dict[str, list[tuple[str, str, Future[NDArray[np.uint8]]]]] = {"train": [], "test": []}
    with ThreadPoolExecutor() as pool, tarfile.open(path, "r|*") as archive:
        for member in archive:
            place = PurePosixPath(member.name)
            if not member.isfile() or len(place.parts) < 3 or place.parts[-3] not in PARTS:
                continue
            file = archive.extractfile(member)
            assert file is not None
            decoded = pool.submit(_decoded, file.read(), size)
            found[PARTS[place.parts[-3]]].append((place.parts[-2], place.name, decoded))
    classes = tuple(sorted({name for name, _, _ in found["train"]})[part])
    if not classes:
        raise SystemExit(f"{path} holds no train/CLASS/ folders.")
    train, test = (_pictures(found[kind], classes) for kind in ("train", "test"))
    return Split(classes, train, test)


def _decoded(data: bytes, size: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape[:2] == (size, size):
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return np.rint(shrink(pixels, size) * 255).astype(np.uint8)


def _pictures(
    found: list[tuple[str, str, Future[NDArray[np.uint8]]]], classes: tuple[str, ...]
) -> Pictures:
    """Stack a part's pictures, class by class, by name."""
    kept = sorted((entry for entry in found if entry[0] in classes), key=lambda entry: entry[:2])
    pixels = np.stack([decoded.result() for _, _, decoded in kept])
    labels = [classes.index(name) for name, _, _ in kept]
    return Pictures(torch.from_numpy(pixels), torch.tensor(labels))
