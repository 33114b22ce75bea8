"""The question that pictures can answer: which are learned and tested, and in how many folds.

With pictures of one class, it is how well a model recognizes that class among others. With few
pictures, every one is tested in its turn by a victim that never saw it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tue_cli.config import FEWEST_OF_CLASS, FOLDS, MORE_SEEDS, SPLIT_FROM, VerifySettings
from tue_cli.dataset.discover import normalize_name
from tue_cli.errors import BadSetting, ImageProblem
from tue_cli.events import Event, Failed, Note
from tue_cli.images import codec
from tue_cli.text import escape, format_count
from tue_cli.verify.dataset import VictimDataset, load_victim_dataset
from tue_cli.verify.pairs import (
    BACKGROUND,
    Pair,
    limit_pairs,
    list_clean_images,
    pair_copies,
    shuffle_by_class,
    split,
)
from tue_cli.verify.request import VerifySpec

SIZES_LOOKED_AT = 25
"""Pictures that decide the victims' input size."""


@dataclass(frozen=True)
class Split:
    """The pictures of a verification; with folds, all are to be learned and all to be tested."""

    pairs: Sequence[Pair]
    """The copies with their originals."""
    train: Sequence[Pair]
    held: Sequence[Pair]
    folds: int = 1
    mine: str = ""
    """The class of which the recall is measured; empty: the accuracy over all classes."""

    def drop_failed(self, failures: Sequence[Failed]) -> Split:
        """Return it without the pictures of which a file failed."""
        lost = {failure.path for failure in failures}
        parts = (
            [pair for pair in some if not {pair.original, pair.copy} & lost]
            for some in (self.pairs, self.train, self.held)
        )
        pairs, train, held = parts
        return replace(self, pairs=pairs, train=train, held=held)

    def limit(self, most: int, seed: int) -> Split:
        """Return it with about `most` training pictures, and tests in proportion."""
        train = limit_pairs(self.train, most, seed)
        if self.folds > 1:
            return replace(self, train=train, held=train)
        tested = max(1000, round(len(self.held) * most / len(self.train)))
        return replace(self, train=train, held=limit_pairs(self.held, tested, seed))

    def count_pictures(self) -> tuple[int, str]:
        """Return how many different pictures decide how sure the result is, and their name."""
        if not self.mine:
            return count_different([*self.train, *self.held]), "pictures"
        own = [pair for pair in (*self.train, *self.held) if pair.label == self.mine]
        return count_different(own), "pictures of your class"


def split_pairs(
    spec: VerifySpec, manifest: dict[str, Any], pool: ThreadPoolExecutor, failures: list[Failed]
) -> Generator[Event, None, Split]:
    """Return the copies with their originals, and all pictures to train on and to test on."""
    settings = spec.settings
    assert spec.original is not None
    pairs, unpaired, others = pair_copies(spec.protected, spec.original, manifest, pool)
    yield from unpaired
    failures += unpaired
    if others:
        yield Note(
            f"{others:,} of {format_count(len(pairs), 'copy')} changed since tue wrote "
            f"{'it' if others == 1 else 'them'}; the changed files are measured."
        )
    every, mine = list(pairs), ""
    copies = {record["sha256"] for record in manifest["pictures"]}
    if spec.background is not None:
        labels = {pair.label for pair in pairs}
        mine = labels.pop() if len(labels) == 1 else ""
        every += _list_background(spec, pairs, copies, mine, pool)
    folds = FOLDS if spec.holdout is None and count_different(pairs) < SPLIT_FROM else 1
    if folds > 1 or mine:
        every = yield from _leave_out_small(every)
    if folds > 1:
        return Split(pairs, every, every, folds, mine)
    train, held = split(every, settings.held_out, settings.seed)
    if spec.holdout is not None:
        train, held = yield from _hold_out(spec, pairs, every, held, copies, pool)
    # To be tested on a picture twice tells no more.
    held = list({(pair.label, pair.sha256): pair for pair in held}.values())
    return Split(pairs, train, held, 1, mine)


def _list_background(
    spec: VerifySpec,
    pairs: Sequence[Pair],
    copies: set[str],
    mine: str,
    pool: ThreadPoolExecutor,
) -> list[Pair]:
    """Return other people's pictures: one class or, beside `mine`, one for each subfolder.

    None of these classes has more pictures than the largest one of the copies.
    """
    folder, seed = spec.background, spec.settings.seed
    assert folder is not None
    known = {pair.sha256 for pair in pairs} | copies
    found = list_clean_images(folder, pool, classes=False)
    found = [pair for pair in found if pair.sha256 not in known]
    if not found:
        raise BadSetting(
            f"--background {escape(folder)} has the same pictures as the copies.",
            "Name a folder of other people's pictures.",
        )

    def choose_class(pair: Pair) -> str:
        top, *below = pair.original.relative_to(folder).parts
        if not below or not mine:
            return BACKGROUND
        name = normalize_name(top)
        return f"{BACKGROUND}/{name}" if name == mine else name

    largest = max(Counter(pair.label for pair in pairs).values(), default=1)
    named = [replace(pair, label=choose_class(pair)) for pair in found]
    return [
        pair
        for label in sorted({pair.label for pair in named})
        for pair in limit_pairs([pair for pair in named if pair.label == label], largest, seed)
    ]


def _leave_out_small(pairs: Sequence[Pair]) -> Generator[Event, None, list[Pair]]:
    """Return the pictures of the classes that have enough."""
    counts = Counter(label for label, _ in {(pair.label, pair.sha256) for pair in pairs})
    small = sorted(label for label, count in counts.items() if count < FEWEST_OF_CLASS)
    if small and len(counts) - len(small) >= 2:
        yield Note(
            f"Classes with fewer than {FEWEST_OF_CLASS} different pictures are omitted: "
            f"{_few([escape(label) for label in small])}."
        )
    return [pair for pair in pairs if pair.label not in small]


def _hold_out(
    spec: VerifySpec,
    pairs: Sequence[Pair],
    every: Sequence[Pair],
    held: Sequence[Pair],
    copies: set[str],
    pool: ThreadPoolExecutor,
) -> Generator[Event, None, tuple[list[Pair], list[Pair]]]:
    """Return what is learned and tested where the test pictures of the copies' classes are given.

    Of the background, whatever was held out stays so.
    """
    assert spec.holdout is not None
    tested = list_clean_images(spec.holdout, pool, classes=True)
    labels = {pair.label for pair in pairs}
    strange = sorted({pair.label for pair in tested} - labels)
    if strange:
        yield Note(
            f"--holdout has classes that the copies lack; they are ignored: {_few(strange)}."
        )
    if lacking := sorted(labels - {pair.label for pair in tested}):
        yield Note(f"--holdout lacks classes of the copies; they are not tested: {_few(lacking)}.")
    contents = {pair.sha256 for pair in tested}
    if contents & copies - {pair.sha256 for pair in pairs}:
        raise BadSetting(
            f"--holdout {escape(spec.holdout)} contains protected copies.",
            "Name a folder of clean pictures: victims are tested on these.",
        )
    kept = [pair for pair in every if pair.sha256 not in contents]
    if len(kept) < len(every):
        both = format_count(len(every) - len(kept), "picture")
        yield Note(f"{both} found in --holdout too and therefore not used for training.")
    background = [pair for pair in held if pair.copy is None]
    out = {id(pair) for pair in background}
    train = [pair for pair in kept if id(pair) not in out]
    return train, [pair for pair in tested if pair.label in labels] + background


def explain_shortage(pictures: Split) -> str | None:
    """Return why these pictures cannot tell anything, if they cannot."""
    classes = {pair.label for pair in pictures.pairs}
    learned, tested = ({pair.label for pair in some} for some in (pictures.train, pictures.held))
    if len(classes) == 1 and not pictures.mine:
        return (
            "all pictures are of one class; to measure how well a model recognizes it, "
            "--background DIR is required, with other people's pictures in one subfolder per class"
        )
    lacks_mine = bool(pictures.mine) and pictures.mine not in learned
    if pictures.folds > 1 and (len(learned) < 2 or lacks_mine):
        return (
            f"at least two classes must have {FEWEST_OF_CLASS} different pictures or more"
            f"{', and yours must be one of them' if pictures.mine else ''}; add pictures"
        )
    if len(learned & tested) < 2:
        return "fewer than two classes have enough pictures to train and to test with; add pictures"
    return None


def choose_working_size(pairs: Sequence[Pair]) -> int:
    """Return the side of the victims' input: 32, 64 or 128 pixels, as the pictures are."""
    sides = []
    for pair in pairs[:SIZES_LOOKED_AT]:
        try:
            sides.append(min(codec.decode(codec.read(pair.original)).pixels.shape[:2]))
        except ImageProblem:
            continue
    median = float(np.median(sides)) if sides else 0.0
    return 128 if median >= 160 else 32 if 0 < median <= 48 else 64


def adapt_settings(
    settings: VerifySettings, pictures: Split
) -> Generator[Event, None, VerifySettings]:
    """Return the settings for the question: the folds, the seeds, and the attackers that it has."""
    seeds = settings.seeds or (MORE_SEEDS if pictures.mine or pictures.folds > 1 else 1)
    attacks = settings.attacks
    if pictures.folds > 1:
        yield Note(
            f"There are fewer than {SPLIT_FROM} pictures. So victims of each kind are trained "
            f"{pictures.folds} times. Each time, a different part of the pictures is left out, on "
            "which they are then tested."
        )
    if pictures.mine and "labels" in attacks:
        yield Note(
            "The attacker labels is omitted: it forms other classes, and yours is not among them."
        )
        attacks = tuple(name for name in attacks if name != "labels")
    if pictures.mine and "early" in attacks:
        yield Note(
            "The attacker early is omitted: at the epoch with the best recall, a victim may take "
            "every picture for your class."
        )
        attacks = tuple(name for name in attacks if name != "early")
    return replace(settings, seeds=seeds, folds=pictures.folds, attacks=attacks)


def load_datasets(
    pictures: Split,
    *,
    size: int,
    radius: float,
    seed: int,
    pool: ThreadPoolExecutor,
    failures: list[Failed],
) -> tuple[VictimDataset, ...] | str:
    """Return what victims are trained and tested on, one dataset for each fold; or why not.

    What cannot be decoded is added to `failures`. The other arguments are those of
    `load_victim_dataset`.
    """
    spoiled: list[Failed] = []

    def load() -> VictimDataset:
        return load_victim_dataset(
            pictures.train,
            pictures.held,
            size=size,
            radius=radius,
            seed=seed,
            pool=pool,
            failed=spoiled.append,
        )

    whole = load()
    failures += dict.fromkeys(spoiled)
    if spoiled:
        pictures = pictures.drop_failed(spoiled)
        if (reason := explain_shortage(pictures)) is not None:
            return reason
        if pictures.folds > 1:  # its rows must be those of the pictures that are left
            whole = load()
    parts = _cut(whole, pictures, seed) if pictures.folds > 1 else (whole,)
    if pictures.mine:
        parts = tuple(part.focus(pictures.mine) for part in parts)
    return parts


def _cut(whole: VictimDataset, pictures: Split, seed: int) -> tuple[VictimDataset, ...]:
    """Return the folds of a dataset in which every picture is learned and tested."""
    classes = shuffle_by_class(pictures.train, seed).values()
    ordered = [pair for groups in classes for group in groups for pair in group]
    folds = assign_folds(pictures.train, pictures.folds, seed)
    fold = np.array([folds[pair.sha256] for pair in ordered])
    seen = Counter[tuple[str, str]]()
    first = np.zeros(len(ordered), bool)
    for place, pair in enumerate(ordered):
        first[place] = not seen[pair.label, pair.sha256]
        seen[pair.label, pair.sha256] += 1
    return tuple(whole.take(fold != one, (fold == one) & first) for one in range(pictures.folds))


def assign_folds(pairs: Sequence[Pair], folds: int, seed: int) -> dict[str, int]:
    """Return which fold each content is tested in; every class has as many in each as it can."""
    assigned: dict[str, int] = {}
    for groups in shuffle_by_class(pairs, seed).values():
        sizes = Counter(dict.fromkeys(range(folds), 0))
        for group in groups:
            # A content that another class has too stays where it is.
            fold = assigned.setdefault(group[0].sha256, min(sizes, key=lambda one: sizes[one]))
            sizes[fold] += 1
    return assigned


def count_different(pairs: Sequence[Pair]) -> int:
    """Return how many different contents there are."""
    return len({pair.sha256 for pair in pairs})


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
