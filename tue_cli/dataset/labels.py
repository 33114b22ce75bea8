"""Which class every picture has."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tue_cli.dataset.discover import Found, Item, make_absolute, normalize_name
from tue_cli.errors import BadSetting
from tue_cli.storage.reading import MOST_LIST, explain_error, is_name, read_file
from tue_cli.text import escape, format_count

OWNER = "owner"
"""The class of pictures that lie in no subfolder: that of their owner, whatever the folder's name,
so that it gets the same code in every folder."""


CLUSTER = "cluster-"
"""What the name of a class begins with that a run found by itself."""


def describe_scope(classes: Collection[str]) -> tuple[str, ...]:
    """Return whom copies without true classes hinder, and what helps; nothing for true classes.

    No class at all means that a run is to find them.
    """
    remedy = (
        "To hinder those too, sort the pictures into subfolders by what they show, or list their "
        "classes in a CSV file (--labels FILE.csv)."
    )
    hardly = "hardly hinder models that sort your pictures by what they show."
    if len(classes) == 1:
        return (
            "All pictures are one class: the copies hinder models that learn to tell you, or your "
            f"work, from others. They {hardly}",
            remedy,
        )
    if all(name.startswith(CLUSTER) for name in classes):
        return (f"The classes were found automatically: the copies {hardly}", remedy)
    return ()


def list_top_folders(places: Iterable[Path]) -> set[str]:
    """Return the folders directly below the input that places lie in, named as classes are."""
    return {normalize_name(place.parts[0]) for place in places if len(place.parts) > 1}


def assign_labels(
    found: Found, mode: str, note: Callable[[str], None] = lambda _: None
) -> tuple[Item, ...]:
    """The items with their classes; names that differ in Unicode form alone are one class.

    `mode` is `folders` (the first folder below the input is the class; what lies above those is of
    the class `OWNER`), `single` (all are), `auto` (`folders` where there are
    at least two such folders, else `single`) or a CSV file of the columns `path,class`, with or
    without a header; a path counts from the input folder, is absolute, or is a unique file name.
    Rows that name no item are counted in a `note`. Raises BadSetting where an item has no row.
    """
    items = found.items
    if mode == "auto":
        # What --include leaves out now may be protected later, into the same output.
        places = (*(item.relative for item in items), *found.not_included)
        tops = list_top_folders(places)
        mode = "folders" if len(tops) > 1 else "single"
    if mode == "single":
        return tuple(replace(item, label=OWNER) for item in items)
    if mode == "folders":
        tiers = [item.relative.parts for item in items]
        names = [normalize_name(parts[0]) if len(parts) > 1 else OWNER for parts in tiers]
        return tuple(replace(i, label=label) for i, label in zip(items, names, strict=True))
    if mode.lower().endswith(".csv") or os.path.lexists(mode):
        return _read_label_table(Path(mode), items, note)
    raise BadSetting(
        f"--labels {escape(mode)} is neither a way to make classes nor a file that exists.",
        "Choose auto, folders, single, cluster:N or a CSV file with the columns path,class.",
    )


def _read_label_table(
    table: Path, items: Sequence[Item], note: Callable[[str], None]
) -> tuple[Item, ...]:
    """The items with the classes that a CSV file gives them."""
    # The later spelling wins: a path from the input folder before one from the working folder.
    spellings: dict[str, Item] = {}
    spellings |= {normalize_name(item.source.as_posix()): item for item in items}
    spellings |= {normalize_name(make_absolute(item.source).as_posix()): item for item in items}
    spellings |= {normalize_name(item.relative.as_posix()): item for item in items}
    counts = Counter(item.source.name for item in items)
    for item in items:
        if counts[item.source.name] == 1:
            spellings.setdefault(normalize_name(item.source.name), item)
    classes: dict[Item, str] = {}
    unknown = 0
    for path, label in _read_rows(table):
        named = spellings.get(normalize_name(Path(path).as_posix()))
        if named is None:
            unknown += 1
        elif classes.setdefault(named, label) != label:
            raise BadSetting(
                f"{escape(table)} puts {escape(path)} into two classes, "
                f"{escape(classes[named])} and {escape(label)}.",
                "Keep one of the two rows.",
            )
    if missing := [escape(item.relative) for item in items if item not in classes]:
        few = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise BadSetting(
            f"{len(missing)} of {format_count(len(items), 'picture')} "
            f"{'has' if len(missing) == 1 else 'have'} no row in {escape(table)}: {few}.",
            "Add a row `path,class` for each, with its path inside the input folder.",
        )
    if unknown:
        rows = f"{format_count(unknown, 'row')} of {escape(table)}"
        note(f"{rows} {'names' if unknown == 1 else 'name'} no picture in the input.")
    return tuple(replace(item, label=classes[item]) for item in items)


def _read_rows(table: Path) -> Iterator[tuple[str, str]]:
    """Path and class of every row that is not blank."""
    path_at, class_at = 0, 1
    for number, (line, row) in enumerate(_read_cells(table)):
        header = [cell.strip().lower() for cell in row] if number == 0 else []
        if "path" in header and "class" in header:
            path_at, class_at = header.index("path"), header.index("class")
            continue
        if len(row) <= max(path_at, class_at) or not row[class_at].strip():
            raise BadSetting(
                f"Line {line} of {escape(table)} has no class.",
                "Write every row as `path,class`, separated by a comma.",
            )
        if not is_name(row[class_at]):
            raise BadSetting(
                f"Line {line} of {escape(table)} names a class that cannot be a folder name: "
                f"{escape(row[class_at].strip()[:80])}.",
                "Choose a name without a NUL character.",
            )
        yield row[path_at], normalize_name(row[class_at].strip())


def _read_cells(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of every row that is not blank."""
    try:
        text = read_file(table, MOST_LIST).decode("utf-8-sig", "surrogateescape")
        reader = csv.reader(io.StringIO(text, newline=""))
        yield from ((reader.line_num, row) for row in reader if any(row))
    except (OSError, csv.Error) as error:
        raise BadSetting(
            f"--labels {escape(table)} cannot be read: {explain_error(error)}.",
            "Name a CSV file with the columns path,class.",
        ) from error
