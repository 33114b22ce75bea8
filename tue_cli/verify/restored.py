"""What the attacker `pairs` has: other pictures, the public weights, and what it learns of them.

Its pictures are those of the background that victims are trained on or, without a background, a
third of the test pictures, on which its victims are then not tested.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tue_cli.attacks.filters import LEARNED, Levels
from tue_cli.attacks.restore import (
    BATCH,
    COPIES,
    FEWEST_PICTURES,
    MOST_PICTURES,
    STEPS,
    Recipe,
    Restoration,
    View,
    learn_to_restore,
)
from tue_cli.config import METHODS, ProtectSettings, VerifySettings
from tue_cli.engine.torch import ComputeDevice
from tue_cli.errors import BadSetting, ImageProblem, WeightsProblem
from tue_cli.events import Event, Note
from tue_cli.protect.context import choose_weights
from tue_cli.protect.request import ProtectSpec
from tue_cli.verify.dataset import OwnSize, VictimDataset, choose_kept_size
from tue_cli.weights import load

PROBED = 4
"""Steps that tell how long one takes; the first is not counted."""


@dataclass(frozen=True)
class Learned:
    """The filter that a net learns from the attacker's pictures when it is first applied."""

    files: tuple[Path, ...]
    see: View
    recipe: Recipe
    seed: int

    def __call__(self, pixels: Levels) -> Levels:
        """Return restored pictures, (N, 3, S, S)."""
        return self._restoration(pixels)

    @cached_property
    def _restoration(self) -> Restoration:
        try:
            return learn_to_restore(self.files, self.see, self.recipe, seed=self.seed)
        except ImageProblem as problem:
            raise BadSetting(
                f"A picture can no longer be read: {problem.message}",
                "Leave the pictures in place while tue verify runs, and use --resume.",
            ) from None

    def make_key(self) -> str:
        """Return a name for all that decides it, but for the pictures' content."""
        recipe = self.recipe
        text = f"{len(self.files)}, {self.seed}, {recipe.settings}, {recipe.weights.sha256}"
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def choose_recipe(manifest: dict[str, Any], machine: ComputeDevice) -> Recipe:
    """Return the copies' own method, radius and weights, or tue's defaults where no such weights
    are found.
    """
    told, named = manifest["run"]["settings"], manifest["run"]["weights"]
    noise = METHODS[told["method"]].noise
    if "radius" in vars(noise):
        radius = {"radius": float(told["noise"]["radius"])}
        noise = replace(noise, **radius)
    smooth = told.get("smooth")
    if type(smooth) not in (int, float) or not 0 <= smooth <= 1:
        smooth = ProtectSettings().smooth
    settings = ProtectSettings(told["method"], noise, smooth)
    for name in (Path(str(named["name"])).name, None):
        with suppress(WeightsProblem):
            weights = choose_weights(ProtectSpec((), settings=settings, weights=name))
            if weights.sha256 == named["sha256"]:
                return Recipe(settings, weights, machine)
    return Recipe(ProtectSettings(), load(), machine)


@dataclass(frozen=True)
class Restorer:
    """The attacker: how it makes copies, and how many seconds it learns from them at most."""

    recipe: Recipe | None
    """None where it is not tried."""
    seconds: float

    def reserve_time(self, seconds: float, folds: int) -> Generator[Event, None, float]:
        """Return how many of a budget's seconds are left for victims."""
        left = seconds - folds * self.seconds
        if left < 0:
            yield Note(
                f"The attacker {LEARNED} alone takes longer than the budget, so victims are shown "
                "as few pictures as possible. Leave it out, or choose a larger --budget."
            )
        return max(0.0, left)


def plan_restorer(
    settings: VerifySettings, manifest: dict[str, Any], size: int, machine: ComputeDevice
) -> Restorer:
    """Return the attacker on victims whose input is `size`, after a few steps that are timed."""
    if LEARNED not in settings.attacks:
        return Restorer(None, 0.0)
    recipe = choose_recipe(manifest, machine)
    draws, side, kept = np.random.default_rng(0), recipe.weights.card.size, choose_kept_size(size)
    engine = recipe.make_engine()
    pixels = draws.random((BATCH, 3, side, side), np.float32)
    began = time.monotonic()
    engine.perturb(pixels, np.zeros(BATCH, np.int64), list(range(BATCH)))
    noise = time.monotonic() - began
    levels = draws.integers(0, 256, (BATCH, 3, kept, kept), np.uint8)
    times = []
    for _ in Restoration(machine, kept, seed=0, steps=PROBED).learn(levels, levels):
        times.append(time.monotonic())
    step = (times[-1] - times[0]) / (PROBED - 1)
    return Restorer(recipe, STEPS * step + COPIES * -(-MOST_PICTURES // BATCH) * noise)


@dataclass(frozen=True)
class Restored:
    """A fold of the pictures as the attacker has it."""

    arms: VictimDataset
    """Without the test pictures that the attacker learns from."""
    learned: Learned

    def describe(self) -> str:
        """Return what the attacker learned from, as a reason of a verdict."""
        pictures, weights = len(self.learned.files), self.learned.recipe.weights.name
        return (
            f"the attacker {LEARNED} learned from {COPIES * pictures:,} pairs, {COPIES} of each of "
            f"{pictures:,} pictures that are not among the copies, with the weights {weights}"
        )


def prepare_restored(
    settings: VerifySettings, folds: Sequence[VictimDataset], restorer: Restorer
) -> Generator[Event, None, tuple[VerifySettings, tuple[Restored, ...]]]:
    """Return each fold as the attacker `pairs` has it; or none, and the settings without it, where
    there are too few pictures to learn from.
    """
    if restorer.recipe is None:
        return settings, ()
    restored = []
    for arms in folds:
        assert arms.own is not None
        files, tested = choose_pictures(arms, arms.own)
        learned = Learned(files, arms.own.resize, restorer.recipe, settings.seed)
        restored.append(Restored(replace(arms.choose_tests(tested), restore=learned), learned))
    fewest = min(len(one.learned.files) for one in restored)
    if fewest >= FEWEST_PICTURES:
        return settings, tuple(restored)
    yield Note(
        f"The attacker {LEARNED} is omitted. It needs {FEWEST_PICTURES} pictures to learn from: "
        f"those of --background, or else a third of the test pictures. There "
        f"{'is' if fewest == 1 else 'are'} {fewest}."
    )
    kept = tuple(name for name in settings.attacks if name != LEARNED)
    return replace(settings, attacks=kept), ()


def choose_pictures(
    arms: VictimDataset, own: OwnSize
) -> tuple[tuple[Path, ...], NDArray[np.bool_]]:
    """Return the attacker's pictures, and which test pictures its victims are tested on."""
    tested = np.ones(len(arms.test_labels), bool)
    if others := [pair.original for pair in own.pairs if pair.copy is None]:
        return tuple(_choose_evenly(others)), tested
    places: list[int] = []
    for label in np.unique(arms.test_labels):
        of_class = np.flatnonzero(arms.test_labels == label).tolist()
        places += of_class[: len(of_class) // 3]
    places = _choose_evenly(places)
    tested[places] = False
    return tuple(own.held[place] for place in places), tested


def _choose_evenly(every: list[Any]) -> list[Any]:
    """Return at most `MOST_PICTURES`, some of each class, for classes stand one after another."""
    count = min(len(every), MOST_PICTURES)
    return [every[number * len(every) // count] for number in range(count)]
