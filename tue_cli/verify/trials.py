"""The victims that `tue verify` trains, and the cache of those that are finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import platformdirs

from tue_cli.attacks.registry import ATTACKS, Attack
from tue_cli.config import VerifySettings, VictimSettings
from tue_cli.errors import OutputProblem
from tue_cli.storage.atomic import Folder
from tue_cli.storage.lines import LineFile, read_lines

MOST_EPOCHS = 60
FEWEST_EPOCHS = 8
"""Training pictures that could not come up so often are left out."""
POINTS = 20
"""At most so many times a victim is tested on its way."""


@dataclass(frozen=True)
class Trial:
    """One victim on one arm: all that decides its accuracy, beside the pictures and the machine."""

    arm: str
    """clean, protected or random."""
    victim: VictimSettings
    seed: int
    steps: int
    points: int
    degrade: str
    mixing: str
    radius: float
    adversary_steps: int
    other_labels: bool
    part: float
    alone: bool = False
    """Only the part of the pictures that stays clean."""
    fold: int = 0
    """Which part of the pictures it is tested on, where each is in its turn."""

    @property
    def kind(self) -> tuple[VictimSettings, bool, str]:
        """What decides how long an update takes."""
        return self.victim, bool(self.radius), self.mixing

    def make_key(self) -> str:
        """Return a name that is the same for equal trials."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class TrialProgress:
    """Which victim a measurement is of, in a word each."""

    arm: str
    """clean, protected or random."""
    attack: str
    """How it is trained."""
    seed: int
    fold: int | None = None
    """Number of the part of the pictures that it is tested on, from 1; None: there is one."""


@dataclass(frozen=True)
class Group:
    """One attacker on one kind of victim: for each arm, its trials."""

    name: str
    attack: Attack
    victim: VictimSettings
    trials: dict[str, tuple[Trial, ...]]
    """Arm -> trials, one for each fold of each seed; `floor` where it is not chance."""


def count_epochs(pictures: int, seen: int) -> int:
    """Return how often each of the training pictures comes up."""
    return max(1, min(MOST_EPOCHS, round(seen / max(1, pictures))))


def build_groups(settings: VerifySettings, pictures: int) -> list[Group]:
    """Return every attacker on every kind of victim; groups may share trials.

    Args:
        settings: what was asked for, attackers by their keys in `ATTACKS`.
        pictures: how many training pictures there are.
    """
    epochs = count_epochs(pictures, settings.seen)
    groups = []
    for victim in settings.victims:
        for name in settings.attacks:
            attack = ATTACKS[name]
            trial = Trial(
                arm="clean",
                victim=victim,
                seed=0,
                steps=epochs * -(-pictures // victim.batch),
                points=min(epochs, POINTS),
                degrade=attack.filter,
                mixing=attack.augmentation,
                radius=attack.radius,
                adversary_steps=settings.adversary_steps if attack.radius else 0,
                other_labels=attack.other_labels,
                part=1.0,
            )
            arms = {
                "clean": trial,
                "protected": replace(trial, arm="protected", part=attack.part),
                "random": replace(trial, arm="random", part=attack.part),
            }
            if attack.part < 1:
                arms["floor"] = replace(trial, part=attack.part, alone=True)
            seeds = [settings.seed + number for number in range(settings.seeds or 1)]
            trials = {
                arm: tuple(
                    replace(trial, seed=seed, fold=fold)
                    for seed in seeds
                    for fold in range(settings.folds)
                )
                for arm, trial in arms.items()
            }
            groups.append(Group(name, attack, victim, trials))
    return groups


def list_unique_trials(groups: Iterable[Group]) -> list[Trial]:
    """Return each trial once, in the order of work: all of the first seed before the next.

    Within a seed, all of the first fold come before the next.
    """
    every = dict.fromkeys(
        trial for group in groups for trials in group.trials.values() for trial in trials
    )
    return sorted(every, key=lambda trial: (trial.seed, trial.fold))


class TrialCache:
    """What finished trials said, a line each in one file of the user's cache."""

    def __init__(self, identity: str, *, resume: bool) -> None:
        """`identity` names the copies and the machine; without `resume` the cache begins empty.

        Raises:
            OutputProblem: the cache cannot be written.
        """
        name = hashlib.sha256(identity.encode()).hexdigest()[:20]
        self._path = platformdirs.user_cache_path("tue") / "verify" / f"{name}.jsonl"
        self._entries: dict[str, Any] = {}
        with self._translate_errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._path.unlink(missing_ok=True)
        if resume:
            with suppress(OSError):
                self._entries.update(read_lines(self._path, _parse_entry))
        self._append()

    def get(self, key: str) -> Any:
        """Return an entry, or None."""
        return self._entries.get(key)

    def put(self, key: str, entry: Any) -> None:
        """Keep an entry, on disk when this returns.

        Raises:
            OutputProblem: the cache cannot be written.
        """
        self._entries[key] = entry
        self._append({"key": key, "entry": entry})

    def _append(self, *lines: Any) -> None:
        with (
            self._translate_errors(),
            Folder(self._path.parent) as folder,
            LineFile(folder, self._path.name) as file,
        ):
            for line in lines:
                file.append(line)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputProblem(
                f"{self._path} cannot be written: {error.strerror or error}.",
                "Free some space there, or set XDG_CACHE_HOME to another folder.",
            ) from None


def _parse_entry(line: Any) -> tuple[str, Any] | None:
    if isinstance(line, dict) and isinstance(line.get("key"), str) and "entry" in line:
        return line["key"], line["entry"]
    return None
