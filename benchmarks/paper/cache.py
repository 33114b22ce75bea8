"""What a bench keeps in its folder beside its rows, each thing under the hash of its settings: the
weights and the pictures of every arm. So one that was stopped goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from benchmarks.paper.cells import Arm, hash_settings
from benchmarks.paper.settings import BenchSettings
from tue_cli.config import METHODS
from tue_cli.core.sampling import derive_seed, draw_starts
from tue_cli.dataset.output import explain_output_error
from tue_cli.engine.torch import ComputeDevice, Floats, TorchEngine
from tue_cli.errors import BadSetting
from tue_cli.events import Event, Failed, Metric, Note
from tue_cli.images import resize
from tue_cli.protect.context import BATCH
from tue_cli.text import escape
from tue_cli.train.data import load_images
from tue_cli.train.run import TrainSpec, train
from tue_cli.verify.dataset import VictimDataset
from tue_cli.weights import Weights, make_netless, read

MAPPED = 300
"""Pictures of each kind in Figure 2."""
Levels = NDArray[np.uint8]
"""Pictures (N, 3, S, S)."""


@dataclass(frozen=True)
class Dataset:
    """The pictures of one folder, at the nets' input size, and where they lie."""

    name: str
    folder: Path
    """Of the training pictures, a subfolder a class."""
    limit: int | None
    """At most so many pictures of each class, the first by name."""
    classes: tuple[str, ...]
    pixels: Levels
    labels: NDArray[np.int64]
    test: Levels
    test_labels: NDArray[np.int64]

    def make_key(self) -> str:
        """Return a name that is the same for equal pictures and labels."""
        arrays = (self.pixels, self.labels, self.test, self.test_labels)
        return hash_settings(self.classes, [_digest(array) for array in arrays])

    def make_arms(self, protected: Levels) -> VictimDataset:
        """Return what a victim may be trained on, where the pictures were protected so."""
        return VictimDataset(
            self.classes,
            self.pixels,
            protected,
            protected,
            self.labels,
            self.test,
            self.test_labels,
        )


NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet100": "ImageNet subset",
}
"""Datasets as the paper's tables call them, by a folder's name without its marks."""


def load_dataset(folder: Path, settings: BenchSettings) -> tuple[Dataset, list[Failed]]:
    """Read a folder with train/<class>/ and test/<class>/ or val/<class>/, resized to the size.

    Raises:
        BadSetting: it has no such folders, or other classes to test than to train.
    """
    held_out = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if held_out is None or not (folder / "train").is_dir():
        raise BadSetting(
            f"{escape(folder)} has no folder train beside test or val.",
            "Give a folder with train/CLASS/ and test/CLASS/.",
        )
    classes, train, failures = load_images(folder / "train", settings.size, settings.per_class)
    tested, test, more = load_images(held_out, settings.size, settings.test_per_class)
    if classes != tested:
        raise BadSetting(
            f"The classes of {escape(folder / 'train')} and {escape(held_out)} differ.",
            "Give both the same subfolders.",
        )
    name = folder.resolve().name
    dataset = Dataset(
        NAMES.get("".join(filter(str.isalnum, name.lower())), name),
        folder / "train",
        settings.per_class,
        classes,
        train.pixels.numpy(),
        train.labels.numpy(),
        test.pixels.numpy(),
        test.labels.numpy(),
    )
    return dataset, failures + more


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _scale(levels: Levels) -> Floats:
    return np.asarray(levels, np.float32) / np.float32(255)


@contextmanager
def acquire_lock(folder: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Hold a name against other benches in a folder, and say whether it is held.

    Without `wait` it is not where another has it.

    Raises:
        OutputProblem: the folder cannot be written.
    """
    place = folder / "locks" / f"{name}.lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place, timeout=-1 if wait else 0).acquire()
    except Timeout:
        lock = None
    except OSError as error:
        raise explain_output_error(error, folder) from None
    with lock or nullcontext():
        yield lock is not None


class BenchCache:
    """The folder of one bench."""

    def __init__(
        self, folder: Path, dataset: Dataset, computer: ComputeDevice, device: str
    ) -> None:
        """`device` is the one that `computer` was opened by."""
        self.folder = folder
        self._dataset = dataset
        self._key = dataset.make_key()
        self._computer = computer
        self._device = device

    def make_name(self, arm: Arm) -> str:
        """Return under which name an arm's pictures are kept."""
        return arm.make_key(self._key)

    def has_images(self, arm: Arm) -> bool:
        """Say whether an arm's pictures are there already."""
        return not arm.method or self._locate_images(arm).exists()

    def _locate_images(self, arm: Arm) -> Path:
        return self.folder / "pictures" / f"{self.make_name(arm)}.npy"

    def make_weights(self, arm: Arm) -> Generator[Event, None, Weights]:
        """Return an arm's weights, trained now where they are not in the cache."""
        if arm.training is None:
            return make_netless(arm.method, self._dataset.classes, self._dataset.pixels.shape[-1])
        path = (
            self.folder
            / "weights"
            / f"{hash_settings(self._key, asdict(arm.training))}.safetensors"
        )
        if not path.exists() or path.with_suffix(".checkpoint").exists():
            yield Note(f"{arm.name}: training its weights.")
            spec = TrainSpec(
                self._dataset.folder,
                path,
                arm.training,
                device=self._device,
                resume=True,
                limit=self._dataset.limit,
            )
            for event in train(spec):
                if isinstance(event, Metric):
                    yield event
        return read(path, name=path.stem)

    def make_images(self, arm: Arm) -> Generator[Event, None, tuple[Levels, str | None]]:
        """Return an arm's training pictures and the hash of its weights, made where need be."""
        clean = self._dataset.pixels
        if not arm.method:
            return clean, None
        weights = None if arm.method == "random" else (yield from self.make_weights(arm))
        sha256 = weights.sha256 if weights is not None and arm.training is not None else None
        path = self._locate_images(arm)
        if not path.exists():
            yield Note(f"{arm.name}: making its noise.")
            yield from self._protect(arm, weights, path)
        return np.load(path), sha256

    def map_images(
        self, arm: Arm, kinds: Mapping[str, Levels]
    ) -> Generator[Event, None, dict[str, list[tuple[float, float]]]]:
        """Return a t-SNE of some pictures of each kind, by the features of the arm's surrogate."""
        from sklearn.manifold import TSNE

        weights = yield from self.make_weights(arm)
        engine = TorchEngine(
            weights, arm.method, arm.noise, seed=arm.seed, machine=self._computer, batch=BATCH
        )
        places = np.linspace(0, len(self._dataset.pixels) - 1, MAPPED).astype(int)
        places = np.unique(places)
        seen = [engine.features(_scale(pixels[places])) for pixels in kinds.values()]
        few = min(30.0, (len(kinds) * len(places) - 1) / 3)
        points = TSNE(perplexity=few, init="pca", random_state=0).fit_transform(
            np.concatenate(seen)
        )
        rows = [(float(x), float(y)) for x, y in points]
        return {
            name: rows[number * len(places) : (number + 1) * len(places)]
            for number, name in enumerate(kinds)
        }

    def _protect(
        self, arm: Arm, weights: Weights | None, path: Path
    ) -> Generator[Event, None, None]:
        """Make an arm's pictures, a few batches at a time; those made before are kept."""
        clean, labels = self._dataset.pixels, self._dataset.labels
        engine = None
        if weights is not None:
            engine = TorchEngine(
                weights, arm.method, arm.noise, seed=arm.seed, machine=self._computer, batch=BATCH
            )
        largest = METHODS[arm.method].find_reach(arm.noise) if weights else arm.noise.radius
        begun = path.with_suffix(".part")
        begun.parent.mkdir(parents=True, exist_ok=True)
        a_picture = clean[0].size
        done = begun.stat().st_size // a_picture // BATCH * BATCH if begun.exists() else 0
        try:
            with begun.open("r+b" if begun.exists() else "w+b") as file:
                file.seek(done * a_picture)
                file.truncate()
                for place in range(done, len(clean), BATCH):
                    part = clean[place : place + BATCH]
                    seeds = [derive_seed(arm.seed, _digest(picture), 0) for picture in part]
                    delta = (
                        draw_starts(part.shape, seeds, arm.noise.radius)
                        if engine is None
                        else engine.perturb(_scale(part), labels[place : place + BATCH], seeds)
                    )
                    for pixels, noise in zip(part, delta, strict=True):
                        moved = resize.add_upsampled(noise, pixels.transpose(1, 2, 0), largest)
                        file.write(moved.transpose(2, 0, 1).tobytes())
                    made = place + len(part)
                    yield Metric(f"{arm.name}, noise", made, len(clean), {"pictures": made})
            whole = np.fromfile(begun, np.uint8).reshape(clean.shape)
            with path.with_suffix(".whole").open("wb") as file:
                np.save(file, whole)
            path.with_suffix(".whole").replace(path)
            begun.unlink()
        except OSError as error:
            raise explain_output_error(error, self.folder) from None
