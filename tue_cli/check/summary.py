"""What `tue check` makes of all copies together: counts, tables, sentences and advice."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tue_cli.events import Checked, Note, Table

STATES = (
    "missing",
    "unreadable",
    "resized",
    "recompressed",
    "changed",
    "metadata-gone",
    "rewritten",
    "intact",
)
"""Worst first. `changed`: the manifest is too old to tell more. `rewritten`: other bytes that hold
the same pixels and metadata."""
TOUCHED = STATES[2:5]
"""States of a picture whose pixels are others than they were."""


def counts(checked: Sequence[Checked]) -> dict[str, Any]:
    """Return how many copies are in which state, and what is left of the noise in them.

    `survival` is the median over the changed pictures in which it could be measured.
    """
    states = Counter(result.state for result in checked)
    survivals = _survivals(checked)
    return {
        "checked": len(checked),
        "mismatches": len(checked) - states["intact"],
        "states": {state: states[state] for state in reversed(STATES) if states[state]},
        "measured": len(survivals),
        "survival": round(statistics.median(survivals), 3) if survivals else None,
        "lowest_survival": min(survivals, default=None),
    }


def tables(checked: Sequence[Checked], listed: int | None) -> Iterator[Table]:
    """Yield the table of states and that of the `listed` worst copies, or of all where None."""
    wrong = [result for result in checked if result.state != "intact"]
    if wrong:
        yield _states(checked)
    if listed is None:
        yield _copies("All copies, the worst first", sorted(checked, key=_worst_first))
    elif wrong:
        some = f"The {listed} worst copies; -v lists all" if listed < len(wrong) else "Copies"
        yield _copies(some, sorted(wrong, key=_worst_first)[:listed])


def describe_counts(counts: Mapping[str, Any], extra: int) -> Iterator[str]:
    """Yield the result in sentences."""
    copies, wrong = _number(counts["checked"], "copy", "copies"), counts["mismatches"]
    if wrong:
        yield f"Of {copies}, {_number(wrong, 'differs', 'differ')} from the manifest."
    else:
        yield f"Of {copies}, all are intact."
    if counts["measured"]:
        yield (
            f"Noise left in {_number(counts['measured'], 'changed copy', 'changed copies')}: "
            f"{_share(counts['survival'])} (median), {_share(counts['lowest_survival'])} (lowest)."
        )
    if extra:
        yield f"{_number(extra, 'other file', 'other files')} beside them; -v names each."


def suggest_next_steps(checked: Sequence[Checked], *, has_originals: bool) -> Iterator[Note]:
    """Yield what a person could do to learn more."""
    touched = [result for result in checked if result.state in TOUCHED]
    if touched and not has_originals:
        yield Note(
            "To learn what is left of the noise in the changed copies, name the folder that was "
            "protected with --original, and the folder of intact copies with --manifest."
        )
    originals = Counter(result.facts.get("original") for result in touched)
    if originals["missing"]:
        yield Note(
            f"{_number(originals['missing'], 'original was', 'originals were')} not found; "
            "--original is the folder that was given to tue protect, or the parent of several."
        )
    if originals["changed"]:
        yield Note(
            f"{_number(originals['changed'], 'original has', 'originals have')} changed since "
            "they were protected and cannot be compared with."
        )
    if any("mean" in result.facts and "survival" not in result.facts for result in touched):
        yield Note(
            "Without the intact copies it is only known what is left of the noise at most. If "
            "another folder has them, name it with --manifest; tue protect makes them again from "
            "the originals, with the settings that the manifest tells."
        )


def _survivals(checked: Sequence[Checked]) -> list[float]:
    return [r.facts["survival"] for r in checked if r.state in TOUCHED and "survival" in r.facts]


def _states(checked: Sequence[Checked]) -> Table:
    rows = []
    for state in reversed(STATES):
        these = [result for result in checked if result.state == state]
        if these:
            left = _survivals(these)
            cells = (_share(statistics.median(left)), _share(min(left))) if left else ("", "")
            rows.append((state, str(len(these)), *cells))
    return _table("States", ("state", "copies", "noise left, median", "lowest"), rows, words=1)


def _copies(title: str, results: Sequence[Checked]) -> Table:
    columns = ("picture", "state", "notes", "noise left", "mean change (was)")
    rows = [
        (
            result.facts["picture"],
            result.state,
            "; ".join(result.facts.get("notes", ())),
            _left(result.facts),
            _change(result.facts),
        )
        for result in results
    ]
    return _table(title, columns, rows, words=3)


def _table(
    title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, words: int
) -> Table:
    """Return a table without the columns that say nothing."""
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return Table(
        title,
        tuple(columns[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
        words=sum(place < words for place in kept),
    )


def _share(part: float) -> str:
    return f"{round(100 * part)}%"


def _left(facts: Mapping[str, Any]) -> str:
    if "survival" in facts:
        return _share(facts["survival"])
    return f"at most {_share(facts['at_most'])}" if "at_most" in facts else ""


def _change(facts: Mapping[str, Any]) -> str:
    """Return the mean change in levels and, in brackets, that of the intact copy."""
    if "mean" not in facts or "survival" in facts:
        return ""
    recorded = facts["recorded_mean"]
    return f"{facts['mean']:.1f}" + ("" if recorded is None else f" ({recorded:.1f})")


def _worst_first(result: Checked) -> tuple[int, float, str]:
    facts = result.facts
    left = facts.get("survival", facts.get("at_most", 1.0))
    return STATES.index(result.state), left, facts["picture"]


def _number(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
