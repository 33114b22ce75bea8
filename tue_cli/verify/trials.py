"""The victims that `tue verify` trains, and the cache of those that are finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import platformdirs

from tue_cli.attacks.registry import ATTACKS, WAYS, Attack
from tue_cli.config import BUDGETS, PHOTO_ATTACKS, VerifySettings, VictimSettings
from tue_cli.errors import OutputProblem, is_installed
from tue_cli.storage.atomic import Folder
from tue_cli.storage.lines import LineFile, read_lines

MOST_EPOCHS = 60
FEWEST_EPOCHS = 8
"""Training pictures that could not come up so often are left out."""
POINTS = 20
"""At most so many times a victim is tested on its way."""
TUNED_SHARE = 0.25
TUNED_EPOCHS = 12
"""Pretrained victims are shown this share of what others are, and at most for so many epochs."""


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
    own_size: bool = False
    """Apply `degrade` to pictures at their own size."""
    fold: int = 0
    """Which part of the pictures it is tested on, where each is in its turn."""

    @property
    def kind(self) -> tuple[VictimSettings, bool, str]:
        """What decides how long an update takes."""
        return self.victim, bool(self.radius), self.mixing

    def make_plain(self) -> dict[str, Any]:
        """Return all of it as JSON has it, without what is not asked for.

        So a victim from fresh weights says nothing of others, and results that are older than a
        field still belong to the trials without it.
        """
        plain = asdict(self)
        plain["victim"] = {name: value for name, value in plain["victim"].items() if value != ""}
        return {n: value for n, value in plain.items() if value or n not in ("own_size", "fold")}

    def make_key(self) -> str:
        """Return a name that is the same for equal trials."""
        text = json.dumps(self.make_plain(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


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
    epochs: int
    """How often each training picture comes up."""

    @property
    def title(self) -> str:
        """How the victims are trained."""
        way = WAYS.get(self.victim.start)
        if way is None or self.name == "std":
            return way or self.attack.title
        return f"{way}, {self.attack.title}"


def count_epochs(pictures: int, seen: int, victim: VictimSettings) -> int:
    """Return how often each of the training pictures comes up."""
    if victim.start == "probe":
        return 2  # as it is, and flipped
    share, most = (TUNED_SHARE, TUNED_EPOCHS) if victim.start else (1, MOST_EPOCHS)
    return max(1, min(most, round(share * seen / max(1, pictures))))


def is_tried(name: str, victim: VictimSettings, victims: Iterable[VictimSettings]) -> bool:
    """Say whether an attacker is tried with one of these victims.

    Beside victims from fresh weights, pretrained ones are trained in the standard way alone. A
    probe sees each picture once, so nothing can be done to its batches.
    """
    attack = ATTACKS[name]
    if victim.start and not all(other.start for other in victims):
        return name == "std"
    return victim.start != "probe" or not (attack.radius or attack.augmentation)


def find_missing(attacks: Iterable[str]) -> list[str]:
    """Return those of some attackers that this installation lacks a package for."""
    return [name for name in attacks if (p := ATTACKS[name].package) and not is_installed(p)]


def adapt_to_photographs(settings: VerifySettings) -> VerifySettings:
    """Return settings with the attackers that a budget has for photographs.

    Attackers that are no budget's were asked for by name, and stay.
    """
    for name, budget in BUDGETS.items():
        missing = find_missing(budget.attacks)
        if settings.attacks == tuple(one for one in budget.attacks if one not in missing):
            wanted = PHOTO_ATTACKS[name]
            missing = find_missing(wanted)
            attacks = tuple(one for one in wanted if one not in missing)
            return replace(settings, attacks=attacks)
    return settings


def build_groups(settings: VerifySettings, pictures: int) -> list[Group]:
    """Return every attacker on every kind of victim; groups may share trials.

    Args:
        settings: what was asked for, attackers by their keys in `ATTACKS`.
        pictures: how many training pictures there are.
    """
    groups = []
    for victim in settings.victims:
        epochs = count_epochs(pictures, settings.seen, victim)
        # A probe's result does not depend on a seed.
        count = 1 if victim.start == "probe" else settings.seeds or 1
        seeds = [settings.seed + number for number in range(count)]
        for name in settings.attacks:
            if not is_tried(name, victim, settings.victims):
                continue
            attack = ATTACKS[name]
            trial = Trial(
                arm="clean",
                victim=victim,
                seed=0,
                steps=epochs * attack.times * -(-pictures // victim.batch),
                points=1 if victim.start == "probe" else min(epochs, POINTS),
                degrade=attack.filter,
                own_size=attack.own_size,
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
            trials = {
                arm: tuple(
                    replace(trial, seed=seed, fold=fold)
                    for seed in seeds
                    for fold in range(settings.folds)
                )
                for arm, trial in arms.items()
            }
            groups.append(Group(name, attack, victim, trials, epochs * attack.times))
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
