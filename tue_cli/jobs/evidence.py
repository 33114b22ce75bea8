"""What `tue verify` judges by: copies paired with their originals, split, and held in memory."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tue_cli.errors import BadSetting, PictureProblem
from tue_cli.events import Failed
from tue_cli.files import images, scale
from tue_cli.files.degrade import degraded
from tue_cli.files.folders import nfc
from tue_cli.files.labels import cluster_labels
from tue_cli.files.manifest import sha256, shown

Levels = NDArray[np.uint8]
"""Pictures (N, 3, S, S)."""
BACKGROUND = "/background"
"""The background's class; no folder has such a name."""
SIZES_LOOKED_AT = 25
"""Pictures that decide at which size victims work."""


@dataclass(frozen=True)
class Pair:
    """A copy and its original, or a picture that has no copy and stays as it is."""

    original: Path
    copy: Path | None
    label: str
    sha256: str
    """Of the original's file: its content, by which pictures are split and drawn."""


@dataclass(frozen=True)
class Arms:
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

    def training(
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
        return (degraded(pixels, degrade) if degrade else pixels), labels

    def digest(self) -> str:
        """Return a name that is the same for equal pictures and labels."""
        state = hashlib.sha256(repr((self.classes, self.clean.shape)).encode())
        pixels = (self.clean, self.protected, self.random, self.test)
        for array in (*pixels, self.labels, self.test_labels):
            state.update(array.tobytes())
        return state.hexdigest()[:20]

    def tested(self) -> float:
        """Return how many test pictures, in equal classes, would make a mean over the classes as
        sure: fewer than there are where classes are unequal, for the smallest one decides.
        """
        counts = np.bincount(self.test_labels, minlength=len(self.classes))
        return float(len(self.classes) ** 2 / (1 / counts).sum())

    def relabelled(self, seed: int) -> Arms:
        """Return the same pictures with labels that only their coarse colours decide.

        Somebody else's labels are not ours: as many groups as there are classes, by k-means on
        each original at 4x4 pixels.
        """
        every = np.concatenate([self.clean, self.test])
        count, _, size, _ = every.shape
        coarse = every.reshape(count, 3, 4, size // 4, 4, size // 4).mean((3, 5)).reshape(count, -1)
        names = cluster_labels((coarse / 255).astype(np.float32), len(self.classes), seed)
        groups = {name: number for number, name in enumerate(dict.fromkeys(names))}
        labels = np.array([groups[name] for name in names], np.int64)
        return Arms(
            tuple(groups),
            self.clean,
            self.protected,
            self.random,
            labels[: len(self.clean)],
            self.test,
            labels[len(self.clean) :],
        )


def original_of(record: dict[str, Any], original: Path) -> Path | None:
    """Return where the original of a manifest's picture lies below `original`; None where the
    manifest points out of that folder, or out of its own.
    """
    source = str(record.get("source", record["path"]))
    return original / source if _is_below(source) and _is_below(record["path"]) else None


def paired(
    protected: Path, original: Path, manifest: dict[str, Any], pool: ThreadPoolExecutor
) -> tuple[list[Pair], list[Failed], int]:
    """Pair each copy with its original through the manifest, whatever has become of the copy since.

    Returns the pairs, what could not be paired and why, and how many copies are no longer the
    bytes that tue wrote.

    Raises:
        BadSetting: not one original is where the manifest says.
    """

    def one(record: dict[str, Any]) -> tuple[Pair, bool] | Failed:
        copy, clean = protected / record["path"], original_of(record, original)
        if clean is None:
            return Failed(copy, "outside", "The manifest points outside the folder.")
        try:
            digest = sha256(images.read(clean))
        except PictureProblem as problem:
            return Failed(clean, "no-original", problem.message)
        if digest != record["source_sha256"]:
            return Failed(clean, "changed", "The original has changed since it was protected.")
        try:
            same = sha256(images.read(copy)) == record["sha256"]
        except PictureProblem as problem:
            return Failed(copy, "no-copy", problem.message)
        return Pair(clean, copy, nfc(record["label"]), digest), same

    pairs: list[Pair] = []
    failures: list[Failed] = []
    others = 0
    for result in pool.map(one, manifest["pictures"]):
        if isinstance(result, Failed):
            failures.append(result)
            continue
        pair, same = result
        pairs.append(pair)
        others += not same
    if not pairs and failures:
        raise BadSetting(
            f"None of the {len(failures)} copies in {shown(protected)} could be paired: "
            f"{failures[0].message}",
            "Give --original the folder that was given to `tue protect`.",
        )
    return pairs, failures, others


def others_pictures(folder: Path, pool: ThreadPoolExecutor, *, classes: bool) -> list[Pair]:
    """Return clean pictures below a folder: one class a subfolder, or all of them background.

    Raises:
        BadSetting: it is no folder, or holds no picture.
    """
    if not folder.is_dir():
        raise BadSetting(f"{shown(folder)} is no folder.", "Give a folder of pictures.")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in images.SUFFIXES
        and (not classes or len(path.relative_to(folder).parts) > 1)
    ]

    def one(path: Path) -> Pair | None:
        label = nfc(path.relative_to(folder).parts[0]) if classes else BACKGROUND
        try:
            return Pair(path, None, label, sha256(images.read(path)))
        except PictureProblem:
            return None

    pairs = [pair for pair in pool.map(one, found) if pair is not None]
    if not pairs:
        raise BadSetting(
            f"{shown(folder)} holds no picture{' in a subfolder' if classes else ''}.",
            "Give a folder with one subfolder a class." if classes else "Give another folder.",
        )
    return pairs


def drawn(pairs: Iterable[Pair], seed: int) -> dict[str, list[list[Pair]]]:
    """Return each class's pictures in an order that only seed and content decide.

    Pictures of one content stand together, as one group: a split must not part them.
    """
    groups: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.label, pair.sha256].append(pair)

    def order(key: tuple[str, str]) -> bytes:
        return hashlib.sha256(f"{seed}/{key[1]}".encode()).digest()

    classes: dict[str, list[list[Pair]]] = defaultdict(list)
    for key in sorted(groups, key=order):
        classes[key[0]].append(sorted(groups[key], key=lambda pair: pair.original.as_posix()))
    return {name: classes[name] for name in sorted(classes)}


def split(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return the pictures to train on and those held out, by content, `share` of every class.

    A content that is in two classes is not learned in one where it is held out in the other.
    Classes with a single content are left out: they cannot be both learned and tested.
    """
    train: list[Pair] = []
    held: list[Pair] = []
    for groups in drawn(pairs, seed).values():
        if len(groups) < 2:
            continue
        count = min(len(groups) - 1, max(1, round(share * len(groups))))
        held += [pair for group in groups[:count] for pair in group]
        train += [pair for group in groups[count:] for pair in group]
    contents = {pair.sha256 for pair in held}
    return [pair for pair in train if pair.sha256 not in contents], held


def limited(pairs: Sequence[Pair], most: int, seed: int) -> list[Pair]:
    """Return about `most` pictures, each class in its proportion but never gone."""
    if len(pairs) <= most:
        return list(pairs)
    kept: list[Pair] = []
    for groups in drawn(pairs, seed).values():
        every = [pair for group in groups for pair in group]
        kept += every[: max(1, round(most * len(every) / len(pairs)))]
    return kept


def working_size(pairs: Sequence[Pair]) -> int:
    """Return at how many pixels a side victims see pictures: 32 or 64, as the pictures are."""
    sides = []
    for pair in pairs[:SIZES_LOOKED_AT]:
        try:
            sides.append(min(images.decode(images.read(pair.original)).pixels.shape[:2]))
        except PictureProblem:
            continue
    return 32 if sides and float(np.median(sides)) <= 48 else 64


def loaded(
    train: Sequence[Pair],
    held: Sequence[Pair],
    *,
    size: int,
    radius: float,
    seed: int,
    pool: ThreadPoolExecutor,
    failed: Callable[[Failed], None],
) -> Arms:
    """Decode every picture and squash it to `size` x `size`; random noise is added at full size.

    Args:
        train: pictures to learn from, in any order.
        held: pictures to be tested on.
        size: pixels a side, a multiple of 4.
        radius: of the random noise, in the pixels' unit.
        seed: with a picture's content it decides its random noise and its place.
        pool: threads that decode.
        failed: told of every picture that cannot be decoded; the others go on.
    """
    # As protective noise, which never exceeds its radius.
    bound = math.floor(radius * 255 + 1e-6)

    def small(pixels: NDArray[np.uint8]) -> Levels:
        return np.rint(scale.shrink(pixels, size) * 255).astype(np.uint8)

    def views(pair: Pair) -> tuple[Levels, Levels, Levels] | Failed:
        place = pair.original
        try:
            pixels = images.decode(images.read(place)).pixels
            clean = small(pixels)
            if pair.copy is None:
                return clean, clean, clean
            digest = hashlib.sha256(f"{seed}/{pair.sha256}/random".encode()).digest()
            random = small(_noisy(pixels, bound, int.from_bytes(digest[:8], "big")))
            place = pair.copy
            return clean, small(images.decode(images.read(place)).pixels), random
        except PictureProblem as problem:
            return Failed(place, problem.reason, problem.message)

    def decoded(pairs: Sequence[Pair]) -> Iterator[tuple[str, tuple[Levels, Levels, Levels]]]:
        ordered = [p for groups in drawn(pairs, seed).values() for group in groups for p in group]
        for pair, result in zip(ordered, pool.map(views, ordered), strict=True):
            if isinstance(result, Failed):
                failed(result)
            else:
                yield pair.label, result

    learned, tested = list(decoded(train)), list(decoded([_as_original(pair) for pair in held]))
    classes = tuple(sorted({label for label, _ in learned} & {label for label, _ in tested}))
    number = {name: place for place, name in enumerate(classes)}
    learned = [one for one in learned if one[0] in number]
    tested = [one for one in tested if one[0] in number]
    if not learned:
        raise BadSetting(
            "No class is left that can be both learned and tested.",
            "Give pictures of the same classes, two or more of each.",
        )
    clean, protected, random = (
        np.stack([levels[arm] for _, levels in learned]) for arm in range(3)
    )
    return Arms(
        classes,
        clean,
        protected,
        random,
        np.array([number[label] for label, _ in learned], np.int64),
        np.stack([levels[0] for _, levels in tested]),
        np.array([number[label] for label, _ in tested], np.int64),
    )


def _as_original(pair: Pair) -> Pair:
    return Pair(pair.original, None, pair.label, pair.sha256)


def _noisy(pixels: NDArray[np.uint8], bound: int, seed: int) -> NDArray[np.uint8]:
    """Return a picture (H, W, C) with uniform noise of up to `bound` levels, made in strips: at 200
    megapixels a whole one would fill the memory.
    """
    random, noisy = np.random.default_rng(seed), np.empty_like(pixels)
    for top in range(0, len(pixels), scale.STRIP):
        rows = pixels[top : top + scale.STRIP]
        noise = random.integers(-bound, bound + 1, rows.shape, np.int16)
        noisy[top : top + scale.STRIP] = np.clip(rows + noise, 0, 255)
    return noisy


def _is_below(path: str) -> bool:
    return not Path(path).anchor and ".." not in Path(path).parts
