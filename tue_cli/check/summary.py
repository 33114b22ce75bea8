"""What `tue check` makes of all copies together: counts, tables, sentences and advice."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
"""States in which the pixels have changed."""


@dataclass(frozen=True)
class CheckPlan:
    """What copies are checked against."""

    manifest: Path
    """The folder of the manifest."""


@dataclass(frozen=True)
class CheckSummary:
    """How many copies are in which state, and what is left of the noise in them."""

    checked: int
    mismatches: int
    """Copies that are not intact."""
    states: Mapping[str, int]
    """Those that occur, the best first."""
    measured: int
    """Changed copies in which what is left of the noise could be measured."""
    survival: float | None
    """The median over these."""
    lowest_survival: float | None
    extra: int
    """Files that the manifest does not mention."""
    folder: Path
    manifest: Path
    """The folder of the manifest."""
    seconds: float


def summarize(
    checked: Sequence[Checked], *, extra: int, folder: Path, manifest: Path, seconds: float
) -> CheckSummary:
    """Return what became of all copies together."""
    states = Counter(result.state for result in checked)
    survivals = _list_survivals(checked)
    return CheckSummary(
        checked=len(checked),
        mismatches=len(checked) - states["intact"],
        states={state: states[state] for state in reversed(STATES) if states[state]},
        measured=len(survivals),
        survival=round(statistics.median(survivals), 3) if survivals else None,
        lowest_survival=min(survivals, default=None),
        extra=extra,
        folder=folder,
        manifest=manifest,
        seconds=seconds,
    )


def build_tables(checked: Sequence[Checked], listed: int | None) -> Iterator[Table]:
    """Yield the table of states and that of the `listed` worst copies, or of all where None."""
    wrong = [result for result in checked if result.state != "intact"]
    if wrong:
        yield _tabulate_states(checked)
    if listed is None:
        yield _tabulate_copies(
            "All copies, the worst first" if wrong else "All copies",
            sorted(checked, key=_rank_damage),
        )
    elif wrong:
        some = f"The {listed} worst copies (-v lists all)" if listed < len(wrong) else "Copies"
        yield _tabulate_copies(some, sorted(wrong, key=_rank_damage)[:listed])


def describe(result: CheckSummary, *, lists_all: bool) -> Iterator[str]:
    """Yield the result in sentences; `lists_all`: every file was named."""
    copies, wrong = _count(result.checked, "copy", "copies"), result.mismatches
    if wrong:
        yield f"{wrong:,} of {copies} {'differs' if wrong == 1 else 'differ'} from the manifest."
    else:
        yield f"{copies} checked: {'intact' if result.checked == 1 else 'all intact'}."
    if result.survival is not None and result.lowest_survival is not None:
        yield (
            f"Noise left in {_count(result.measured, 'changed copy', 'changed copies')}: "
            f"{_format_share(result.survival)} (median), "
            f"{_format_share(result.lowest_survival)} (lowest)."
        )
    if result.extra:
        extra = _count(result.extra, "other file is", "other files are")
        more = "" if lists_all else "; -v lists the names"
        yield f"{extra} in the folder but not in the manifest{more}."


def suggest_next_steps(checked: Sequence[Checked], *, has_originals: bool) -> Iterator[Note]:
    """Yield what a person could do to learn more."""
    touched = [result for result in checked if result.state in TOUCHED]
    if touched and not has_originals:
        yield Note(
            "To see how much noise is left in the changed copies, add --original FOLDER (the "
            "originals) and, if you have the intact copies elsewhere, --manifest FOLDER."
        )
    originals = Counter(result.original for result in touched)
    if originals["missing"]:
        yield Note(
            f"{_count(originals['missing'], 'original was', 'originals were')} not found. Give "
            "--original the folder that was given to `tue protect`; if there were several, their "
            "parent folder."
        )
    if originals["changed"]:
        yield Note(
            f"{_count(originals['changed'], 'original has', 'originals have')} changed since "
            "protecting and cannot be compared."
        )
    if any(result.mean is not None and result.survival is None for result in touched):
        yield Note(
            "Without the intact copies, tue can only tell how much noise is left at most. If you "
            "have them, name their folder with --manifest. If not, protect the originals again, "
            "with the settings in the manifest: that makes the same copies."
        )


def _list_survivals(checked: Sequence[Checked]) -> list[float]:
    """Return what is left of the noise in the changed copies where it could be measured."""
    touched = (result for result in checked if result.state in TOUCHED)
    return [result.survival for result in touched if result.survival is not None]


def _tabulate_states(checked: Sequence[Checked]) -> Table:
    rows = []
    for state in reversed(STATES):
        these = [result for result in checked if result.state == state]
        if these:
            left = _list_survivals(these)
            cells = (
                (_format_share(statistics.median(left)), _format_share(min(left)))
                if left
                else ("", "")
            )
            rows.append((state, str(len(these)), *cells))
    return _build_table(
        "States", ("state", "copies", "noise left, median", "lowest"), rows, words=1
    )


def _tabulate_copies(title: str, results: Sequence[Checked]) -> Table:
    columns = ("picture", "state", "notes", "noise left", "mean change (when written)")
    rows = [
        (
            result.picture,
            result.state,
            "; ".join(result.notes),
            _format_residual(result),
            _format_change(result),
        )
        for result in results
    ]
    return _build_table(title, columns, rows, words=3)


def _build_table(
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


def _format_share(part: float) -> str:
    return f"{round(100 * part)}%"


def _format_residual(result: Checked) -> str:
    """Return what is left of the noise."""
    if result.survival is not None:
        return _format_share(result.survival)
    return "" if result.at_most is None else f"at most {_format_share(result.at_most)}"


def _format_change(result: Checked) -> str:
    """Return the mean change in levels and, in brackets, that of the intact copy."""
    if result.mean is None or result.survival is not None:
        return ""
    recorded = result.recorded_mean
    return f"{result.mean:.1f}" + ("" if recorded is None else f" ({recorded:.1f})")


def _rank_damage(result: Checked) -> tuple[int, float, str]:
    bounds = (result.survival, result.at_most, 1.0)
    left = next(bound for bound in bounds if bound is not None)
    return STATES.index(result.state), left, result.picture


def _count(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
