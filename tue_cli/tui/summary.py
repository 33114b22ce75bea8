"""What was found, in the words and colours of the app."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.table import Table
from rich.text import Text
from textual.content import Content

from tue_cli.dataset.labels import describe_scope
from tue_cli.errors import REASONS, TueError
from tue_cli.protect.scan import ScanSummary
from tue_cli.text import escape, format_count, format_size

Part = Content | str | tuple[str, str]


def join_lines(*rows: tuple[Part, ...]) -> Content:
    """Join rows of styled text."""
    parts: list[Part] = []
    for row in rows:
        parts += [*row, "\n"]
    return Content.assemble(*parts[:-1])


def shorten_path(path: Path | str) -> str:
    """Return a path as a person calls it who is in this folder, or at home."""
    path = Path(path)
    with suppress(OSError, RuntimeError):  # the one may be removed, the other unknown
        if (here := Path.cwd()) in path.parents:
            return escape(path.relative_to(here))
        if (home := Path.home()) in path.parents:
            return escape("~" / path.relative_to(home))
    return escape(path)


def format_row(name: str, value: Part, width: int = 0) -> tuple[Part, ...]:
    """Return a row that gives a value its name."""
    return (f"{name:<{width}}  ", "$foreground-muted"), value


def tabulate(facts: Mapping[str, str]) -> Table:
    """Return names and their values in two columns."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    return table


def format_scan(found: ScanSummary) -> Content:
    """Return what a scan found."""
    formats = ", ".join(f"{count:,} {name}" for name, count in found.formats.items())
    rows: list[tuple[Part, ...]] = [
        (
            (format_count(found.pictures, "picture"), "bold $accent"),
            f"   {format_size(found.bytes)}",
        ),
        (formats,),
        *_format_range(found.sizes),
    ]
    if (former := found.former) is not None and not former.is_finished:
        rows.append(
            (
                (
                    f"A run was stopped here after {format_count(former.done, 'picture')}. ",
                    "$warning",
                ),
                ("Press r to continue.", "bold $warning"),
            )
        )
    elif former is not None:
        rows.append(((f"Already protected: {format_count(former.done, 'picture')}.", "$success"),))
    if refused := found.refused:
        words = [f"{REASONS.get(reason, reason)} ({count:,})" for reason, count in refused.items()]
        rows.append(((f"Cannot be protected: {', '.join(words)}", "$warning"),))
    if ignored := found.ignored:
        words = [f"{why.removeprefix('folder: ')} ({n:,})" for why, n in ignored.items()]
        rows.append(((f"Skipped: {', '.join(words)}", "$foreground-muted"),))
    rows += [(), _format_classes(found.classes)]
    rows += [((line, "$warning"),) for line in describe_scope(found.classes)]
    rows.append((("Copies go to ", "$foreground-muted"), shorten_path(found.output)))
    return join_lines(*rows)


def _format_range(sizes: Sequence[tuple[int, int]]) -> list[tuple[Part, ...]]:
    if not sizes:
        return []
    smallest, largest = (f"{width} × {height}" for width, height in (sizes[0], sizes[-1]))
    text = smallest if smallest == largest else f"{smallest} to {largest}"
    return [((f"{text} pixels", "$foreground-muted"),)]


def _format_classes(classes: Mapping[str, int]) -> tuple[Part, ...]:
    if not classes:
        return (("Classes ", "$foreground-muted"), "pictures that look alike, found during the run")
    shown = [f"{escape(name)} {count:,}" for name, count in list(classes.items())[:8]]
    more = [f"and {len(classes) - 8} more"] if len(classes) > 8 else []
    title = format_count(len(classes), "class")
    return ((f"{title}  ", "bold"), ", ".join([*shown, *more]))


def format_problem(error: TueError) -> Content:
    """Return an error and its remedy."""
    rows: list[tuple[Part, ...]] = [((escape(error.message), "bold $error"),)]
    if error.remedy:
        rows += [(), (escape(error.remedy),)]
    return join_lines(*rows)
