"""`tue doctor`: whether this installation works, found by trying it; nothing is written."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from tue_cli import __version__, weights
from tue_cli.config import PRETRAINED_PACKAGE
from tue_cli.dataset.secret import SECRET, find_folder, read_secret
from tue_cli.engine.select import choose_engine
from tue_cli.errors import PackageMissing, TueError, is_installed
from tue_cli.events import Done, Job, Table
from tue_cli.noise import TueNoise
from tue_cli.storage.reading import explain_error
from tue_cli.text import escape

EXTRAS: dict[str, tuple[str, ...]] = {
    "verify": ("kornia", "sklearn"),
    "pretrained": (PRETRAINED_PACKAGE,),
    "export": ("onnx",),
    "heic": ("pillow_heif",),
    "jxl": ("pillow_jxl",),
    "ray": ("fsspec", "pyarrow", "ray", "s3fs"),
}
"""Extras of the package, and the modules that each brings."""
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml")
"""Packages of ONNX Runtime. All install into one folder, so that only one may be there."""
BACKENDS = {
    "torch": ("torch", ("cpu", "cuda", "mps")),
    "onnx": ("onnxruntime", ("cpu", "cuda", "mps", "directml")),
}
"""Backend -> its package, and the devices that it may have."""


@dataclass(frozen=True)
class DeviceTest:
    """What came of a step of the noise on one device."""

    backend: str
    device: str
    works: bool
    result: str
    """What computed it, or why nothing did."""


@dataclass(frozen=True)
class ExtraState:
    """One extra of the package."""

    name: str
    installed: bool
    install: str
    """The line that installs it."""


@dataclass(frozen=True)
class DoctorSummary:
    """What works here, and where tue keeps its files."""

    versions: Mapping[str, str | None]
    """Name -> version; None where it is not installed."""
    devices: tuple[DeviceTest, ...]
    extras: tuple[ExtraState, ...]
    data: Path | None
    """The user's data folder; None where it cannot be found."""
    has_secret: bool
    weights: Mapping[str, str]
    """Name -> file, of the packaged ones and the user's own."""
    problems: tuple[str, ...]
    """What must be mended, each with what to do."""


def examine() -> Job[DoctorSummary]:
    """Try every backend on every device, and tell what is installed and where files are kept."""
    problems = list(_find_clashes())
    devices = tuple(_try_devices(problems))
    if not any(one.works for one in devices) and not problems:
        problems.append(
            "No backend works, so no picture can be protected. Install ONNX Runtime or torch: "
            "pip install onnxruntime"
        )
    data, has_secret = _find_secret(problems)
    result = DoctorSummary(
        versions=dict(_list_versions()),
        devices=devices,
        extras=tuple(
            ExtraState(name, all(map(is_installed, modules)), f"pip install 'tue-cli[{name}]'")
            for name, modules in EXTRAS.items()
        ),
        data=data,
        has_secret=has_secret,
        weights=dict(_list_weights(problems)),
        problems=tuple(dict.fromkeys(problems)),
    )
    yield from _make_tables(result)
    yield Done(result, tuple(_describe(result)))


def _list_versions() -> Iterator[tuple[str, str | None]]:
    yield "tue", __version__
    yield "Python", platform.python_version()
    runtimes = [name for name in RUNTIMES if _find_version(name)] or RUNTIMES[:1]
    for name in ("torch", *runtimes, "Pillow"):
        yield name, _find_version(name)


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _find_clashes() -> Iterator[str]:
    found = [name for name in RUNTIMES if _find_version(name)]
    if len(found) > 1:
        yield (
            f"{' and '.join(found)} are both installed and overwrite each other's files, so ONNX "
            f"Runtime may not find the GPU, or fail. Keep one: pip uninstall -y {' '.join(found)}, "
            f"then pip install {found[-1]}"
        )


def _try_devices(problems: list[str]) -> Iterator[DeviceTest]:
    """Compute one step of noise with the packaged weights, by each backend on each device."""
    try:
        found = weights.load()
    except TueError as error:
        problems.append(str(error))
        return
    for backend, (package, names) in BACKENDS.items():
        if not is_installed(package):
            yield DeviceTest(backend, "cpu", False, str(PackageMissing(package)))
            continue
        for name in names:
            works, result = _try_step(found, backend, name)
            if name == "cpu" and not works:
                problems.append(f"{package} does not work: {result} Install it again.")
            yield DeviceTest(backend, name, works, result)


def _try_step(found: weights.Weights, backend: str, device: str) -> tuple[bool, str]:
    """Return whether a step of noise comes out of a device, and what computed it, or why not."""
    noise, side = TueNoise(steps=1, samples=1), found.card.size
    pixels = np.full((1, 3, side, side), 0.5, np.float32)
    try:
        engine = choose_engine(
            found, "tue", noise, seed=0, backend=backend, device=device, batch=1, pictures=1
        )
        delta = engine.perturb(pixels, np.zeros(1, np.int64), [0])
    except TueError as error:
        return False, error.message
    except Exception as error:  # a package that is half installed fails in any way
        return False, f"{type(error).__name__}: {str(error)[:200]}."
    is_noise = bool(np.isfinite(delta).all() and np.abs(delta).max() > 0)
    return is_noise, engine.description if is_noise else f"{engine.description}: it made no noise."


def _find_secret(problems: list[str]) -> tuple[Path | None, bool]:
    """Return the user's data folder, and whether a secret is kept there."""
    try:
        folder = find_folder()
    except OSError as error:
        problems.append(f"The data folder cannot be found: {explain_error(error)}. Set HOME.")
        return None, False
    if not os.path.lexists(folder / SECRET):
        problems.extend(_explain_unwritable(folder))
        return folder, False
    try:
        return folder, read_secret() is not None
    except TueError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(
            f"The secret in {escape(folder)} cannot be read: {explain_error(error)}. Make sure "
            "that you may read it."
        )
    return folder, os.path.lexists(folder / SECRET)


def _explain_unwritable(folder: Path) -> Iterator[str]:
    """Yield why a secret cannot be kept in a folder, or in the one where it would be made."""
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written" if there.is_dir() else "is not a folder"
        yield (
            f"The data folder {escape(folder)} cannot be used: {escape(there)} {why}. So each "
            "output gets a secret of its own. Make it writable, or set XDG_DATA_HOME."
        )


def _list_weights(problems: list[str]) -> Iterator[tuple[str, str]]:
    try:
        for name, entry in weights.index()["weights"].items():
            yield name, str(weights.SHIPPED / entry["file"])
    except TueError as error:
        problems.append(str(error))
    for folder in weights.list_folders():
        for path in sorted(folder.glob("*.safetensors")):
            yield path.stem, str(path)


def _make_tables(result: DoctorSummary) -> Iterator[Table]:
    rows = [(name, version or "not installed") for name, version in result.versions.items()]
    yield Table("Versions", ("package", "version"), tuple(rows), words=2)
    states = [
        (one.backend, one.device, "works" if one.works else "not available", one.result)
        for one in result.devices
    ]
    yield Table("Backends", ("backend", "device", "state", "result"), tuple(states), words=4)
    extras = [
        (one.name, "installed" if one.installed else f"not installed: {one.install}")
        for one in result.extras
    ]
    yield Table("Extras", ("extra", "state"), tuple(extras), words=2)


def _describe(result: DoctorSummary) -> Iterator[str]:
    if result.data is not None:
        yield f"Data folder: {escape(result.data)}"
    yield f"Secret: {'there' if result.has_secret else 'none yet; the first run makes one'}"
    for name, path in result.weights.items():
        yield f"Weights {escape(name)}: {escape(path)}"
    if not result.problems:
        yield "No problem was found."
    for problem in result.problems:
        yield f"Problem: {problem}"
