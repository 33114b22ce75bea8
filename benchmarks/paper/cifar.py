"""CIFAR-10 and CIFAR-100 as they come, pickled, where torchvision keeps them: written out as
folders of pictures.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tue_cli.dataset.output import explain_output_error
from tue_cli.errors import BadSetting
from tue_cli.events import Event, Note
from tue_cli.storage.reading import MOST_STATE, explain_error, is_name, read_file
from tue_cli.text import escape


@dataclass(frozen=True)
class CifarLayout:
    """How a dataset lies on the disk."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    """The file that holds the names of the classes."""
    labels: str
    """Under which word a picture's class is found; `<labels without s>_names` are the names."""


CIFAR_LAYOUTS = {
    "cifar-10": CifarLayout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        "labels",
    ),
    "cifar-100": CifarLayout("cifar-100-python", ("train",), ("test",), "meta", "fine_labels"),
}


class _Arrays(pickle.Unpickler):
    """Reads arrays, lists and words, and nothing that could do anything."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ("_reconstruct", "ndarray", "dtype") and module.partition(".")[0] == "numpy":
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a dataset")


def detect_cifar(folder: Path) -> str | None:
    """Return which of them lies in a folder, `cifar-10` or `cifar-100`, or None."""
    return next(
        (name for name, kept in CIFAR_LAYOUTS.items() if (folder / kept.folder).is_dir()), None
    )


def extract_images(folder: Path, target: Path) -> Iterator[Event]:
    """Write train/<class>/ and test/<class>/ to `target`, unless they are there.

    Raises:
        BadSetting: the files are not whole.
        OutputProblem: the target cannot be written.
    """
    if (target / "test").is_dir():
        return
    name = detect_cifar(folder)
    assert name is not None
    kept = CIFAR_LAYOUTS[name]
    yield Note(f"Writing {name} out as pictures.")
    names = _read_names(
        _read(folder / kept.folder / kept.names).get(f"{kept.labels[:-1]}_names", [])
    )
    for part, files in (("train", kept.train), ("test", kept.test)):
        if (target / part).is_dir():
            continue
        begun = target / f"{part}-begun"
        try:
            for file in files:
                _write(_read(folder / kept.folder / file), file, kept, names, begun)
            begun.replace(target / part)
        except OSError as error:
            raise explain_output_error(error, target) from None
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BadSetting(
                f"{escape(folder / kept.folder)} does not hold {name}: {escape(str(error))}.",
                "Download the dataset again.",
            ) from None


def _read_names(found: Any) -> list[str]:
    """Return the names of the classes, each of which can be a folder's.

    Raises:
        BadSetting: one of them is another place than a folder of its own.
    """
    names = found if isinstance(found, list) else []
    for name in names:
        if not is_name(name) or name in ("", ".", "..") or set(name) & set("\\/:"):
            raise BadSetting(
                f"The dataset has a class {escape(repr(name)[:80])}, which cannot be a folder.",
                "Download the dataset again.",
            )
    return names


def _write(
    batch: dict[str, Any], file: str, kept: CifarLayout, names: list[str], begun: Path
) -> None:
    pixels = np.asarray(batch["data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for number, (levels, label) in enumerate(zip(pixels, batch[kept.labels], strict=True)):
        place = begun / names[label] / f"{file}-{number:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(levels)).save(place)


def _read(path: Path) -> dict[str, Any]:
    try:
        file = io.BytesIO(read_file(path, MOST_STATE))
        content: dict[str, Any] = _Arrays(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise almost any
        raise BadSetting(
            f"{escape(path)} cannot be read: {escape(explain_error(error))}.",
            "Download the dataset again.",
        ) from None
    if not isinstance(content, dict):
        raise BadSetting(f"{escape(path)} is no part of a dataset.", "Download the dataset again.")
    return content
