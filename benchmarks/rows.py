"""Results as rows: one JSON object a line for each trained net, timing or check.

A row says what was measured: `cell`, the `settings` that were asked for, the figures, and where and
when: hardware, commit, seconds. It is written as soon as it is known, so a run that is cut off
keeps what it has.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import record

Row = dict[str, Any]


def commit() -> str:
    """Return the checkout's commit, `-dirty` where files differ; outside of git, `TUE_COMMIT`."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            [*command, "--exclude=*", "--abbrev=40"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TUE_COMMIT", "unknown")
    return found.stdout.strip()


def read(path: Path) -> Iterator[Row]:
    """Yield a file's rows; lines that are not JSON objects, such as one cut off, are skipped."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


class Rows:
    """The rows of one run, in one file, and those of earlier runs that need not be made again."""

    def __init__(self, path: Path, *, done: Path | None, facts: Mapping[str, Any]) -> None:
        """`done` is a folder of earlier rows; `facts` are told in every row of this run."""
        self.path = path
        self.made: list[Row] = []
        files = sorted(done.glob("*.jsonl")) if done else []
        self.earlier = [row for file in files for row in read(file)]
        self._facts = {**facts, "commit": commit(), "sources": record.sources()}

    def find(self, cell: str, settings: Mapping[str, Any]) -> Row | None:
        """Return the row of a cell with these settings, of this run or an earlier one."""
        key = record.key_of({"cell": cell, **settings})
        rows = (*self.made, *self.earlier)
        return next((row for row in rows if row["key"] == key and "failed" not in row), None)

    def lacks(self, cell: str, settings: Mapping[str, Any]) -> bool:
        """Say whether there is no row of a cell with these settings yet."""
        return self.find(cell, settings) is None

    def add(self, cell: str, settings: Mapping[str, Any], **figures: Any) -> Row:
        """Write a row and return it."""
        row = {
            "key": record.key_of({"cell": cell, **settings}),
            "cell": cell,
            "settings": dict(settings),
            **figures,
            "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
            **self._facts,
        }
        self.made.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        return row
