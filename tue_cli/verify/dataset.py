"""What `tue verify` judges by: the arms, held in memory at the victims' input size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tue_cli.attacks.filters import apply_filter
from tue_cli.core.clustering import cluster
from tue_cli.errors import BadSetting, ImageProblem
from tue_cli.events import Failed
from tue_cli.images import codec, resize
from tue_cli.images.deep import Pixels
from tue_cli.verify.pairs import Pair, shuffle_by_class

Levels = NDArray[np.uint8]
"""Pictures (N, 3, S, S)."""
Views = tuple[Levels, Levels, Levels]
"""One picture (3, S, S): clean, protected, and with random noise."""
SIZES_LOOKED_AT = 25
"""Pictures that decide the victims' input size."""


@dataclass(frozen=True)
class VictimDataset:
    """The same training pictures three times, and the clean ones that victims are tested on.

    Pictures stand in an order that only the seed and their content decide.
    """

    classes: tuple[str, ...]
    clean: Levels
    protected: Levels
    random: Levels
    labels: NDArray[np.int64]
    test: Levels
    test_labels: NDArray[np.int64]
    others: tuple[Levels, NDArray[np.int64]] | None = None
    """Clean pictures of the other classes and their labels, where only one class is tested."""

    def focus(self, name: str) -> VictimDataset:
        """Return the dataset with test pictures of one class; the accuracy is then its recall."""
        own = self.test_labels == self.classes.index(name)
        return replace(
            self,
            test=self.test[own],
            test_labels=self.test_labels[own],
            others=(self.test[~own], self.test_labels[~own]),
        )

    def take(self, train: NDArray[np.bool_], test: NDArray[np.bool_]) -> VictimDataset:
        """Return some of the training pictures, and some of those that are tested."""
        return replace(
            self,
            clean=self.clean[train],
            protected=self.protected[train],
            random=self.random[train],
            labels=self.labels[train],
            test=self.test[test],
            test_labels=self.test_labels[test],
        )

    def select_training(
        self, arm: str, *, part: float = 1.0, alone: bool = False, degrade: str = ""
    ) -> tuple[Levels, NDArray[np.int64]]:
        """Return an arm's training pictures and labels.

        `arm` is clean, protected or random. Of each class the first `part` is of that arm and the
        rest is clean; `alone` leaves that first part out. `degrade` is a filter.
        """
        first = np.zeros(len(self.labels), bool)
        for number in range(len(self.classes)):
            places = np.flatnonzero(self.labels == number)
            first[places[: round(part * len(places))]] = True
        pixels = np.where(first[:, None, None, None], getattr(self, arm), self.clean)
        if alone:
            pixels = pixels[~first]
        labels = self.labels[~first] if alone else self.labels
        return (apply_filter(pixels, degrade) if degrade else pixels), labels

    def digest(self) -> str:
        """Return a name that is the same for equal pictures and labels."""
        state = hashlib.sha256(repr((self.classes, self.clean.shape)).encode())
        pixels = (self.clean, self.protected, self.random, self.test)
        for array in (*pixels, self.labels, self.test_labels):
            state.update(array.tobytes())
        for array in self.others or ():
            state.update(array.tobytes())
        return state.hexdigest()[:20]

    def count_tested(self, *folds: VictimDataset) -> float:
        """Return how many test pictures, in equal classes, would make a mean over the classes as
        sure: fewer than there are where classes are unequal, for the smallest one decides.

        The test pictures of other folds are counted too.
        """
        labels = np.concatenate([part.test_labels for part in (self, *folds)])
        counts = np.bincount(labels)
        counts = counts[counts > 0]
        return float(len(counts) ** 2 / (1 / counts).sum())

    def relabel(self, seed: int) -> VictimDataset:
        """Return the same pictures with labels that only their coarse colours decide.

        Somebody else's labels are not ours: as many groups as there are classes, by k-means on
        each original at 4x4 pixels.
        """
        every = np.concatenate([self.clean, self.test])
        count, _, size, _ = every.shape
        coarse = every.reshape(count, 3, 4, size // 4, 4, size // 4).mean((3, 5)).reshape(count, -1)
        labels = cluster((coarse / 255).astype(np.float32), len(self.classes), seed)
        return VictimDataset(
            tuple(f"cluster-{number:02d}" for number in range(int(labels.max()) + 1)),
            self.clean,
            self.protected,
            self.random,
            labels[: len(self.clean)],
            self.test,
            labels[len(self.clean) :],
        )


def choose_working_size(pairs: Sequence[Pair]) -> int:
    """Return the side of the victims' input: 32 or 64 pixels, as the pictures are."""
    sides = []
    for pair in pairs[:SIZES_LOOKED_AT]:
        try:
            sides.append(min(codec.decode(codec.read(pair.original)).pixels.shape[:2]))
        except ImageProblem:
            continue
    return 32 if sides and float(np.median(sides)) <= 48 else 64


def load_victim_dataset(
    train: Sequence[Pair],
    held: Sequence[Pair],
    *,
    size: int,
    radius: float,
    seed: int,
    pool: ThreadPoolExecutor,
    failed: Callable[[Failed], None],
) -> VictimDataset:
    """Decode every picture and resize it to `size` x `size`.

    Random noise is uniform at `size` x `size`, enlarged as protective noise is, and added to the
    picture's own pixels within the radius, in smooth areas as well; finer noise would be lost when
    they are resized.

    Args:
        train: pictures to learn from, in any order.
        held: pictures to be tested on.
        size: pixels a side, a multiple of 4.
        radius: of the random noise, in the pixels' unit.
        seed: with a picture's content it decides its random noise and its place.
        pool: threads that decode.
        failed: told of every picture that cannot be decoded; the others go on.
    """

    def load(pairs: Sequence[Pair]) -> Iterator[tuple[str, Views]]:
        classes = shuffle_by_class(pairs, seed).values()
        ordered = [pair for groups in classes for group in groups for pair in group]
        loaded = pool.map(lambda pair: _load_views(pair, size, radius, seed), ordered)
        for pair, views in zip(ordered, loaded, strict=True):
            if isinstance(views, Failed):
                failed(views)
            else:
                yield pair.label, views

    learned, tested = list(load(train)), list(load([_replace_copy(pair) for pair in held]))
    classes = tuple(sorted({label for label, _ in learned} & {label for label, _ in tested}))
    number = {name: place for place, name in enumerate(classes)}
    learned = [one for one in learned if one[0] in number]
    tested = [one for one in tested if one[0] in number]
    if not learned:
        raise BadSetting(
            "No class has enough different pictures to be learned and tested.",
            "Every class needs at least two different pictures.",
        )
    clean, protected, random = (
        np.stack([levels[arm] for _, levels in learned]) for arm in range(3)
    )
    return VictimDataset(
        classes,
        clean,
        protected,
        random,
        np.array([number[label] for label, _ in learned], np.int64),
        np.stack([levels[0] for _, levels in tested]),
        np.array([number[label] for label, _ in tested], np.int64),
    )


def _load_views(pair: Pair, size: int, radius: float, seed: int) -> Views | Failed:
    """Return a picture as each arm has it: clean, protected, and with random noise."""
    place = pair.original
    try:
        original = codec.decode(codec.read(place))
        clean = _resize(original.shown, size)
        if pair.copy is None:
            return clean, clean, clean
        digest = hashlib.sha256(f"{seed}/{pair.sha256}/random".encode()).digest()
        draws = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        noise = draws.uniform(-radius, radius, (3, size, size)).astype(np.float32)
        noisy = replace(original, pixels=resize.add_upsampled(noise, original.pixels, radius))
        random = _resize(noisy.shown, size)
        place = pair.copy
        return clean, _resize(codec.decode(codec.read(place)).shown, size), random
    except ImageProblem as problem:
        return Failed(place, problem.reason, problem.message)


def _resize(pixels: Pixels, size: int) -> Levels:
    return np.rint(resize.resize_to_square(pixels, size) * 255).astype(np.uint8)


def _replace_copy(pair: Pair) -> Pair:
    return Pair(pair.original, None, pair.label, pair.sha256)
