"""Tables of what was measured, in Markdown, the paper's own figures beside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.rows import Row
from tue_cli.verify.stats import FITTED

Results = Mapping[str, Mapping[str, Any]]
"""What became of the cells that were begun, by key; `summarize` says what is in one."""


@dataclass(frozen=True)
class TableCell:
    """One place of a table."""

    key: str
    """Of the cell that is shown there."""
    published: float | None = None
    """What the paper says, in percent."""


@dataclass(frozen=True)
class ResultTable:
    """One table, measured or not."""

    name: str
    """For its files."""
    title: str
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    places: Mapping[tuple[str, str], TableCell]
    """By row and column."""


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Return n, mean and spread of a cell's victims; accuracies from 0 to 1.

    `spread` is the standard deviation, None for one victim. `robust_train` is the least that an
    adversarial victim knew of its own attacked training pictures, None for standard training.
    """
    last = [row["accuracy"] for row in rows]
    robust = [row["robust_train"] for row in rows if row["robust_train"] is not None]
    return {
        "n": len(last),
        "mean": fmean(last),
        "spread": stdev(last) if len(last) > 1 else None,
        "robust_train": min(robust) if robust else None,
        "learned": not robust or min(robust) >= FITTED,
    }


@cache
def _read_published() -> dict[str, Any]:
    text = Path(__file__).with_name("published.json").read_text(encoding="utf-8")
    figures: dict[str, Any] = json.loads(text)
    return figures


def get_published(*coordinates: str) -> float | None:
    """Return a figure of the paper's tables, in percent, or None where it has none.

    The coordinates: table (`1` to `6`), dataset, surrogate, method, victim, radius in levels.
    """
    found: Any = _read_published()
    for name in coordinates:
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return float(found)


def format_cell(place: TableCell | None, results: Results) -> str:
    """Return a cell as it is printed; `NOTE` explains it."""
    if place is None:
        return ""
    paper = "" if place.published is None else f" [{place.published:.2f}]"
    result = results.get(place.key)
    if result is None:
        return f"–{paper}"
    spread = "" if result["spread"] is None else f" ± {100 * result['spread']:.1f}"
    robust = result["robust_train"]
    knew = "" if robust is None else f" ({100 * robust:.0f})"
    mark = "" if result["learned"] else "*"
    return f"{100 * result['mean']:.1f}{spread}{knew}{mark}{paper}"


def make_grid(table: ResultTable, results: Results) -> tuple[tuple[str, ...], ...]:
    """Return the rows of a table, each with its name first."""
    return tuple(
        (row, *(format_cell(table.places.get((row, column)), results) for column in table.columns))
        for row in table.rows
    )


NOTE = (
    "Test accuracy in percent on clean pictures, mean and standard deviation over the seeds; in "
    "parentheses how many of its own training pictures an adversarially trained victim knew under "
    "attack; in brackets what the paper reports. \\* It knew less than "
    f"{FITTED:.0%}: it has not learned enough, shortcut or feature, for the cell to say anything "
    "about protection."
)


def format_markdown(table: ResultTable, results: Results) -> str:
    """Return a table in Markdown, with what its marks mean."""
    lines = [
        f"### {table.title}",
        "",
        f"| {' | '.join((table.corner, *table.columns))} |",
        f"|{'---|' * (1 + len(table.columns))}",
        *(
            f"| {' | '.join(row).replace('*', chr(92) + '*')} |"
            for row in make_grid(table, results)
        ),
        "",
        NOTE,
    ]
    return "\n".join(lines) + "\n"
