"""What `tue verify` judges by: the arms, held in memory at about the victims' input size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tue_cli.attacks.filters import CLASS_FILTERS, LEARNED, Levels, apply_filter, filter_picture
from tue_cli.core.clustering import cluster
from tue_cli.errors import BadSetting, ImageProblem
from tue_cli.events import Failed
from tue_cli.images import codec, resize
from tue_cli.images.deep import Pixels, reduce_to_8_bits
from tue_cli.text import escape
from tue_cli.verify.pairs import Pair, shuffle_by_class

Views = tuple[Levels, Levels, Levels]
"""One picture (3, S, S): clean, protected, and with random noise."""
KEPT_BYTES = 250_000_000
"""Of pictures that were filtered at their own size, at most."""
CROPPED_FROM = 96
"""Victims whose input is as large as this learn from random resized crops, as on ImageNet."""


@dataclass(frozen=True)
class OwnSize:
    """Training pictures at their own size, in their files, for filters that are applied there."""

    pairs: tuple[Pair, ...]
    size: int
    """Of a picture in memory."""
    crop: bool
    radius: float
    seed: int
    held: tuple[Path, ...] = ()
    """The files of the test pictures, in their order."""
    kept: dict[tuple[str, str, Pair], Levels] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Filtered pictures that other folds and seeds want again, by arm and filter."""

    @property
    def most_kept(self) -> int:
        """How many pictures `kept` takes."""
        return KEPT_BYTES // (3 * self.size**2)

    def resize(self, pixels: Pixels) -> Levels:
        """Return a picture (H, W, C) as it is in memory, (3, S, S)."""
        return _resize(pixels, self)

    def filter_arm(self, arm: str, name: str) -> Levels:
        """Return an arm after a filter, a key of `FILTERS`, and then resized.

        Raises:
            BadSetting: a file can no longer be read.
        """
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(lambda pair: self._filter(pair, arm, name), self.pairs)))

    def _filter(self, pair: Pair, arm: str, name: str) -> Levels:
        arm = "clean" if pair.copy is None else arm
        if (levels := self.kept.get((arm, name, pair))) is not None:
            return levels
        place = (arm == "protected" and pair.copy) or pair.original
        try:
            picture = codec.decode(codec.read(place))
        except ImageProblem as problem:
            raise BadSetting(
                f"{escape(place)} can no longer be read: {problem.message}",
                "Leave the pictures in place while tue verify runs, and use --resume.",
            ) from None
        if arm == "random":
            picture = _add_random_noise(picture, pair, self)
        levels = _resize(filter_picture(reduce_to_8_bits(picture.shown), name), self)
        if len(self.kept) < self.most_kept:
            self.kept[arm, name, pair] = levels
        return levels


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
    input_size: int | None = None
    """Width and height at which victims see the pictures; None: as they are in memory."""
    own: OwnSize | None = None
    """The pictures at their own size; None: as they are in memory."""
    restore: Callable[[Levels], Levels] | None = None
    """The filter `LEARNED`, where a net has learned it."""

    def get_input_size(self) -> int:
        """Return the width and height at which victims see the pictures."""
        return self.input_size or self.clean.shape[-1]

    def count_bytes(self) -> int:
        """Return how much memory the pictures take."""
        parts = (self.clean, self.protected, self.random, self.test)
        return sum(part.nbytes for part in parts) + (self.others[0].nbytes if self.others else 0)

    others: tuple[Levels, NDArray[np.int64]] | None = None
    """Clean pictures of the other classes and their labels, where only one class is tested."""

    def focus(self, name: str) -> VictimDataset:
        """Return the dataset with test pictures of one class; the accuracy is then its recall."""
        own = self.test_labels == self.classes.index(name)
        return replace(self.choose_tests(own), others=(self.test[~own], self.test_labels[~own]))

    def choose_tests(self, chosen: NDArray[np.bool_]) -> VictimDataset:
        """Return the dataset with some of the test pictures."""
        own = self.own
        if own is not None:
            own = replace(own, held=tuple(own.held[place] for place in np.flatnonzero(chosen)))
        return replace(self, test=self.test[chosen], test_labels=self.test_labels[chosen], own=own)

    def take(self, train: NDArray[np.bool_], test: NDArray[np.bool_]) -> VictimDataset:
        """Return some of the training pictures, and some of those that are tested."""
        tested = self.choose_tests(test)
        own = tested.own
        if own is not None:
            own = replace(own, pairs=tuple(own.pairs[place] for place in np.flatnonzero(train)))
        return replace(
            tested,
            clean=self.clean[train],
            protected=self.protected[train],
            random=self.random[train],
            labels=self.labels[train],
            own=own,
        )

    def select_training(
        self,
        arm: str,
        *,
        part: float = 1.0,
        alone: bool = False,
        degrade: str = "",
        own_size: bool = False,
    ) -> tuple[Levels, NDArray[np.int64]]:
        """Return an arm's training pictures and labels.

        `arm` is clean, protected or random. Of each class the first `part` is of that arm and the
        rest is clean; `alone` leaves that first part out. `degrade` is a filter, which `own_size`
        applies before pictures are resized.
        """

        def read(arm: str) -> Levels:
            if own_size and self.own is not None:
                return self.own.filter_arm(arm, degrade)
            levels: Levels = getattr(self, arm)
            return levels

        first = np.zeros(len(self.labels), bool)
        for number in range(len(self.classes)):
            places = np.flatnonzero(self.labels == number)
            first[places[: round(part * len(places))]] = True
        # The whole arm as it is, where that is asked for: a copy would take as much memory again.
        pixels = read(arm)
        if not first.all():
            pixels = np.where(first[:, None, None, None], pixels, read("clean"))
        if alone:
            pixels = pixels[~first]
        labels = self.labels[~first] if alone else self.labels
        if degrade == LEARNED:
            assert self.restore is not None
            pixels = self.restore(pixels)
        elif degrade in CLASS_FILTERS:
            pixels = CLASS_FILTERS[degrade](pixels, labels)
        elif degrade and not (own_size and self.own is not None):
            pixels = apply_filter(pixels, degrade)
        return pixels, labels

    def digest(self) -> str:
        """Return a name that is the same for equal pictures and labels."""
        state = hashlib.sha256(repr((self.classes, self.clean.shape)).encode())
        pixels = (self.clean, self.protected, self.random, self.test)
        for array in (*pixels, self.labels, self.test_labels):
            state.update(np.ascontiguousarray(array).data)
        for array in self.others or ():
            state.update(np.ascontiguousarray(array).data)
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
        return replace(
            self,
            classes=tuple(f"cluster-{number:02d}" for number in range(int(labels.max()) + 1)),
            labels=labels[: len(self.clean)],
            test_labels=labels[len(self.clean) :],
        )


def choose_kept_size(size: int) -> int:
    """Return the side of pictures in memory, a multiple of 4, for victims with an input of `size`.

    It is an eighth more if they learn from random resized crops: 144 for 128.
    """
    return size if size < CROPPED_FROM else 4 * round(size * 9 / 32)


def make_form(size: int, radius: float, seed: int) -> OwnSize:
    """Return how pictures are resized for victims with an input of `size`; it has none yet."""
    return OwnSize((), choose_kept_size(size), size >= CROPPED_FROM, radius, seed)


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
    """Decode every picture and resize it for victims whose input is `size` x `size`.

    Below 96, the whole picture is resized to that square. From 96, the largest square in its
    middle is resized to `choose_kept_size`.

    Random noise is uniform at the size in memory, enlarged as protective noise is, and added to
    the picture's own pixels within the radius, in smooth areas as well; finer noise would be lost
    when they are resized.

    Args:
        train: pictures to learn from, in any order.
        held: pictures to be tested on.
        size: pixels a side of the victims' input, a multiple of 4.
        radius: of the random noise, in the pixels' unit.
        seed: with a picture's content it decides its random noise and its place.
        pool: threads that decode.
        failed: told of every picture that cannot be decoded; the others go on.
    """
    form = make_form(size, radius, seed)
    learned = list(_load_pairs(train, form, pool, failed))
    tested = list(_load_pairs([_replace_copy(pair) for pair in held], form, pool, failed))
    classes = tuple(sorted({pair.label for pair, _ in learned} & {p.label for p, _ in tested}))
    number = {name: place for place, name in enumerate(classes)}
    learned = [one for one in learned if one[0].label in number]
    tested = [one for one in tested if one[0].label in number]
    if not learned:
        raise BadSetting(
            "No class has enough different pictures to be learned and tested.",
            "Every class needs at least two different pictures.",
        )
    pairs = tuple(pair for pair, _ in learned)
    test_labels = np.array([number[pair.label] for pair, _ in tested], np.int64)
    clean, protected, random = _stack_views(learned)
    return VictimDataset(
        classes,
        clean,
        protected,
        random,
        np.array([number[pair.label] for pair in pairs], np.int64),
        np.stack([levels[0] for _, levels in tested]),
        test_labels,
        size,
        replace(form, pairs=pairs, held=tuple(pair.original for pair, _ in tested)),
    )


def _load_pairs(
    pairs: Sequence[Pair], form: OwnSize, pool: ThreadPoolExecutor, failed: Callable[[Failed], None]
) -> Iterator[tuple[Pair, Views]]:
    """Load every picture, in the order that seed and content decide."""
    classes = shuffle_by_class(pairs, form.seed).values()
    ordered = [pair for groups in classes for group in groups for pair in group]
    loaded = pool.map(lambda pair: _load_views(pair, form), ordered)
    for pair, views in zip(ordered, loaded, strict=True):
        if isinstance(views, Failed):
            failed(views)
        else:
            yield pair, views


def _stack_views(learned: list[tuple[Pair, Views]]) -> tuple[Levels, ...]:
    """Return the arms. The list is emptied on the way, so that memory holds a picture once."""
    shape = (len(learned), *learned[0][1][0].shape)
    arms = tuple(np.empty(shape, np.uint8) for _ in range(3))
    while learned:
        _, views = learned.pop()
        for arm, view in zip(arms, views, strict=True):
            arm[len(learned)] = view
    return arms


def _load_views(pair: Pair, form: OwnSize) -> Views | Failed:
    """Return a picture as each arm has it: clean, protected, and with random noise."""
    place = pair.original
    try:
        original = codec.decode(codec.read(place))
        clean = _resize(original.shown, form)
        if pair.copy is None:
            return clean, clean, clean
        random = _resize(_add_random_noise(original, pair, form).shown, form)
        place = pair.copy
        return clean, _resize(codec.decode(codec.read(place)).shown, form), random
    except ImageProblem as problem:
        return Failed(place, problem.reason, problem.message)


def _add_random_noise(picture: codec.DecodedImage, pair: Pair, form: OwnSize) -> codec.DecodedImage:
    digest = hashlib.sha256(f"{form.seed}/{pair.sha256}/random".encode()).digest()
    draws = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    noise = draws.uniform(-form.radius, form.radius, (3, form.size, form.size)).astype(np.float32)
    return replace(picture, pixels=resize.add_upsampled(noise, picture.pixels, form.radius))


def _resize(pixels: Pixels, form: OwnSize) -> Levels:
    if form.crop:
        pixels = resize.crop_to_square(pixels)
    return np.rint(resize.resize_to_square(pixels, form.size) * 255).astype(np.uint8)


def _replace_copy(pair: Pair) -> Pair:
    return Pair(pair.original, None, pair.label, pair.sha256)
