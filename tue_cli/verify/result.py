"""What `tue verify` tells: its plan, and what it found, as rows to judge, a record and a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from tue_cli.events import AMONG, OPTIONAL, Table
from tue_cli.verify.dataset import VictimDataset
from tue_cli.verify.request import Provenance, describe_victim
from tue_cli.verify.stats import CERTAIN_ZERO, Accuracy, Estimate, Row, Verdict
from tue_cli.verify.trials import Group, Trial


@dataclass(frozen=True)
class VerifyPlan:
    """How victims are trained, for people."""

    measured: str
    victims: str
    attackers: str
    picture_size: str = field(metadata={"name": "picture size"})
    memory: str
    training_pictures: int = field(metadata={"name": "training pictures"})
    held_out_pictures: int = field(metadata={"name": "held-out pictures"})
    classes: int
    epochs: str
    adversary_steps: int = field(metadata={"name": "adversary steps"})
    seeds: int
    folds: int
    seed: int
    device: str


@dataclass(frozen=True)
class VerifySetup:
    """How a verification was made, for people; without a plan where nothing could be trained."""

    plan: VerifyPlan | None = field(metadata=AMONG)
    time: str | None = field(metadata=OPTIONAL)
    made: Provenance = field(metadata=AMONG)


@dataclass(frozen=True)
class ArmAccuracy:
    """Accuracy on clean pictures, 0 to 1, with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class OthersAccuracy:
    """Mean accuracy on the other classes, 0 to 1, where the recall of one is measured."""

    clean: float
    protected: float
    random: float


@dataclass(frozen=True)
class AttackResult:
    """One attacker on one kind of victim."""

    name: str
    title: str
    victim: str
    floor: float
    """Accuracy of what learned nothing from the copies."""
    floor_name: str
    clean: ArmAccuracy
    protected: ArmAccuracy
    random: ArmAccuracy
    protection: Estimate | None
    """In percent; None where it is inconclusive."""
    inconclusive: str
    """Why no number may be given; empty where one is."""
    fitted: float | None
    """Of adversarial training: accuracy on its own attacked training pictures."""
    epochs: int
    curves: Mapping[str, tuple[tuple[float, ...], ...]]
    """Arm -> a curve of accuracies for each fold of each seed."""
    seconds: float
    others: OthersAccuracy | None = field(metadata=OPTIONAL)


@dataclass(frozen=True)
class WeakestAttack:
    """The attacker against which the copies protect least; its protection, in percent."""

    value: float
    low: float
    high: float
    attack: str
    title: str
    victim: str


@dataclass(frozen=True)
class VerifyResult:
    """What may be said of the protection."""

    headline: str
    status: str
    """conclusive or inconclusive."""
    reasons: tuple[str, ...]
    """Why a number is missing, or what to mind about one."""
    failed: int
    """Pictures that could not be paired or read."""
    standard: Estimate | None
    """Protection against standard training, in percent."""
    weakest: WeakestAttack | None
    attacks: tuple[AttackResult, ...]
    chance: float | None = field(metadata=OPTIONAL)
    """Accuracy of guessing; None where nothing could be trained."""
    setup: VerifySetup

    def is_below(self, percent: float) -> bool:
        """Say whether the lowest protection that was measured is below, or none could be measured.

        Single attackers that are inconclusive count neither for nor against the copies.
        """
        return self.weakest is None or self.weakest.value < percent


def describe_input(arms: VictimDataset) -> str:
    """Return at which size victims see pictures and how they are cropped, for people."""
    kept, size = arms.clean.shape[-1], arms.get_input_size()
    if kept == size:
        return f"{size} × {size}"
    return f"{size} × {size}, random resized crops of squares of {kept} × {kept}"


def describe(judged: Verdict) -> tuple[str, ...]:
    """Return a verdict in sentences."""
    said = (judged.headline, *(f"{reason[0].upper()}{reason[1:]}." for reason in judged.reasons))
    # The headline of an inconclusive one is its first reason.
    return said if judged.is_conclusive else said[:1] + said[2:]


def summarize(
    judged: Verdict,
    setup: VerifySetup,
    *,
    failed: int,
    attacks: Sequence[AttackResult] = (),
    chance: float | None = None,
) -> VerifyResult:
    """Return the result: for `--json`, for the report, and for who asked."""
    worst, estimate = judged.weakest_row, _round(judged.weakest)
    weakest = None
    if worst is not None and estimate is not None:
        weakest = WeakestAttack(
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            attack=worst.attack,
            title=worst.title,
            victim=worst.victim,
        )
    return VerifyResult(
        headline=judged.headline,
        status="conclusive" if judged.is_conclusive else "inconclusive",
        reasons=judged.reasons,
        failed=failed,
        standard=_round(judged.standard),
        weakest=weakest,
        attacks=tuple(attacks),
        chance=chance,
        setup=setup,
    )


def describe_attack(
    row: Row,
    group: Group,
    results: Mapping[Trial, Mapping[str, Any]],
    *,
    chance: float,
    epochs: int,
) -> AttackResult:
    """Return one attacker's part of the result."""
    doubt = row.explain_doubt(chance)
    curves = {
        arm: tuple(tuple(results[trial]["curve"]) for trial in trials)
        for arm, trials in group.trials.items()
    }
    seconds = sum(results[trial]["seconds"] for trials in group.trials.values() for trial in trials)
    return AttackResult(
        name=row.attack,
        title=row.title,
        victim=row.victim,
        floor=round(row.floor.mean, 5),
        floor_name=row.floor_name,
        clean=_describe_arm(row.clean),
        protected=_describe_arm(row.protected),
        random=_describe_arm(row.random),
        protection=None if doubt else _round(row.estimate_protection()),
        inconclusive=doubt,
        fitted=row.fitted,
        epochs=epochs,
        curves=curves,
        seconds=round(seconds, 1),
        others=_average_others(group, results),
    )


def _average_others(
    group: Group, results: Mapping[Trial, Mapping[str, Any]]
) -> OthersAccuracy | None:
    """Return what victims know of the other classes; None where all classes count."""
    means = []
    for arm in ("clean", "protected", "random"):
        known = [results[trial]["others"] for trial in group.trials[arm]]
        if None in known:
            return None
        means.append(round(fmean(known), 5))
    return OthersAccuracy(*means)


def _describe_arm(accuracy: Accuracy) -> ArmAccuracy:
    estimate = accuracy.estimate()
    return ArmAccuracy(round(accuracy.mean, 5), round(estimate.low, 5), round(estimate.high, 5))


def _round(estimate: Estimate | None) -> Estimate | None:
    if estimate is None:
        return None
    return Estimate(round(estimate.value, 2), round(estimate.low, 2), round(estimate.high, 2))


def make_row(
    group: Group,
    results: Mapping[Trial, Mapping[str, Any]],
    *,
    tested: float,
    chance: float,
    pictures: tuple[int, str],
) -> Row:
    """Return one attacker on one kind of victim, to be judged.

    `tested` is as in `Accuracy.from_folds`; `pictures` are how many there are, and their name.
    """

    def collect_accuracy(arm: str) -> Accuracy:
        of_seeds: dict[int, list[float]] = defaultdict(list)
        for trial in group.trials[arm]:
            curve = results[trial]["curve"]
            best = max(curve) if group.attack.best_epoch else curve[-1]
            of_seeds[trial.seed].append(best)
        return Accuracy.from_folds(list(of_seeds.values()), tested)

    known = [
        results[trial]["attacked"]
        for arm in ("clean", "protected")
        for trial in group.trials[arm]
        if trial.radius
    ]
    has_floor = "floor" in group.trials
    clean, others = collect_accuracy("clean"), _average_others(group, results)
    return Row(
        attack=group.name,
        title=group.title,
        victim=describe_victim(group.victim),
        clean=clean,
        protected=collect_accuracy("protected"),
        random=collect_accuracy("random"),
        floor=collect_accuracy("floor") if has_floor else replace(CERTAIN_ZERO, mean=chance),
        floor_name="the clean part alone" if has_floor else "chance",
        fitted=min(known) if known else None,
        pictures=pictures[0],
        counted=pictures[1],
        pretrained=bool(group.victim.start),
        overall=None if others is None else chance * clean.mean + (1 - chance) * others.clean,
    )


def describe_question(attack: AttackResult, classes: int) -> str:
    """Return what was measured where it is the recall of one class, as a reason of a verdict."""
    assert attack.others is not None
    return (
        f"your class is one of {classes}, and its recall is what counts: after {attack.title}, "
        f"victims trained on the originals recognize {attack.clean.mean:.0%} of its pictures, "
        f"those trained on the copies {attack.protected.mean:.0%}. Of the other "
        "classes' pictures, they recognize "
        f"{attack.others.clean:.0%} and {attack.others.protected:.0%}"
    )


def make_table(rows: Sequence[Row], chance: float, *, recall: bool) -> Table:
    """Return the result as people read it; `recall` of one class, or accuracy."""

    def format_percent(accuracy: Accuracy) -> str:
        estimate = accuracy.estimate()
        return f"{accuracy.mean:.1%} ± {(estimate.high - estimate.low) / 2:.1%}"

    lines = []
    for row in rows:
        doubt = row.explain_doubt(chance)
        protection = row.estimate_protection()
        lines.append(
            (
                row.title,
                row.victim,
                format_percent(row.clean),
                format_percent(row.random),
                format_percent(row.protected),
                f"{row.floor.mean:.1%}",
                "inconclusive"
                if doubt
                else f"{protection.value:.0f} % ({protection.low:.0f} to {protection.high:.0f})",
            )
        )
    title = "Accuracy of victims on clean pictures that they never saw"
    if recall:
        title = "Recall of your class: the share of its clean pictures that victims recognize"
    floor = "chance" if all(row.floor_name == "chance" for row in rows) else "floor"
    columns = ("attacker", "victim", "originals", "random noise", "copies", floor, "protection")
    return Table(title, columns, tuple(lines))
