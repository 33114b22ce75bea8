"""What `tue verify` found, as rows to judge, as plain data, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from tue_cli.events import Done, Failed, Table
from tue_cli.verify.request import format_victim
from tue_cli.verify.stats import CERTAIN_ZERO, Accuracy, Estimate, Row, Verdict
from tue_cli.verify.trials import Group, Trial


def row_of(
    group: Group, results: Mapping[Trial, Mapping[str, Any]], tested: float, chance: float
) -> Row:
    """Return one attacker on one kind of victim, to be judged."""

    def accuracy(arm: str) -> Accuracy:
        curves = [results[trial]["curve"] for trial in group.trials[arm]]
        best = group.attack.best_epoch
        return Accuracy.of([max(curve) if best else curve[-1] for curve in curves], tested)

    known = [
        results[trial]["attacked"]
        for arm in ("clean", "protected")
        for trial in group.trials[arm]
        if trial.radius
    ]
    has_floor = "floor" in group.trials
    return Row(
        attack=group.name,
        title=group.attack.title,
        victim=format_victim(group.victim),
        clean=accuracy("clean"),
        protected=accuracy("protected"),
        random=accuracy("random"),
        floor=accuracy("floor") if has_floor else replace(CERTAIN_ZERO, mean=chance),
        floor_name="the clean part alone" if has_floor else "chance",
        fitted=min(known) if known else None,
    )


def facts_of(
    judged: Verdict,
    rows: Sequence[Row],
    groups: Sequence[Group],
    results: Mapping[Trial, Mapping[str, Any]],
    chance: float,
    epochs: int,
) -> dict[str, Any]:
    """Return the result as plain data: for `--json`, and for the report."""

    def arm(accuracy: Accuracy) -> dict[str, float]:
        estimate = accuracy.estimate()
        return {
            "mean": round(accuracy.mean, 5),
            "low": round(estimate.low, 5),
            "high": round(estimate.high, 5),
        }

    def part(estimate: Estimate | None) -> dict[str, float] | None:
        if estimate is None:
            return None
        return {name: round(value, 2) for name, value in asdict(estimate).items()}

    attacks = []
    for row, group in zip(rows, groups, strict=True):
        doubt = row.doubt(chance)
        attacks.append(
            {
                "name": row.attack,
                "title": row.title,
                "victim": row.victim,
                "floor": round(row.floor.mean, 5),
                "floor_name": row.floor_name,
                "clean": arm(row.clean),
                "protected": arm(row.protected),
                "random": arm(row.random),
                "protection": None if doubt else part(row.protection()),
                "inconclusive": doubt,
                "fitted": row.fitted,
                "epochs": epochs,
                "curves": {
                    name: [list(results[trial]["curve"]) for trial in trials]
                    for name, trials in group.trials.items()
                },
                "seconds": round(
                    sum(results[t]["seconds"] for trials in group.trials.values() for t in trials),
                    1,
                ),
            }
        )
    weakest = judged.weakest_row
    return {
        "standard": part(judged.standard),
        "weakest": weakest
        and {
            **(part(judged.weakest) or {}),
            "attack": weakest.attack,
            "title": weakest.title,
            "victim": weakest.victim,
        },
        "chance": chance,
        "attacks": attacks,
    }


def table_of(rows: Sequence[Row], chance: float) -> Table:
    """Return the result as people read it."""

    def percent(accuracy: Accuracy) -> str:
        estimate = accuracy.estimate()
        return f"{accuracy.mean:.1%} ± {(estimate.high - estimate.low) / 2:.1%}"

    lines = []
    for row in rows:
        doubt = row.doubt(chance)
        protection = row.protection()
        lines.append(
            (
                row.title,
                row.victim,
                percent(row.clean),
                percent(row.random),
                percent(row.protected),
                f"{row.floor.mean:.1%}",
                "inconclusive"
                if doubt
                else f"{protection.value:.0f} % ({protection.low:.0f} to {protection.high:.0f})",
            )
        )
    columns = ("attacker", "victim", "originals", "random noise", "copies", "floor", "protection")
    return Table("What victims know of clean pictures that they never saw", columns, tuple(lines))


def done(judged: Verdict, facts: dict[str, Any], failures: Sequence[Failed]) -> Done:
    """Return the last event of a verification."""
    said = (judged.headline, *(f"{reason[0].upper()}{reason[1:]}." for reason in judged.reasons))
    return Done(
        {
            "headline": judged.headline,
            "status": "conclusive" if judged.is_conclusive else "inconclusive",
            "reasons": list(judged.reasons),
            "failed": len(failures),
            "standard": None,
            "weakest": None,
            "attacks": [],
            **facts,
        },
        said if judged.is_conclusive else said[:1] + said[2:],
    )
