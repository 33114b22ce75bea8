"""Results as rows: one JSON object a line for each trained net, timing or check.

A row says what was measured: `cell`, the `settings` that were asked for, the figures, and where and
when: seed, n, seconds, hardware, commit. It is written as soon as it is known, so a run that is cut
off keeps what it has, and the next one finds it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tue_cli

RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]


def make_key(settings: Mapping[str, Any]) -> str:
    """Return a short name for settings: the same for the same."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield a file's rows; lines that are not JSON objects, such as one cut off, are skipped."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


class Rows:
    """The rows of one file, which several processes may fill, and those of earlier runs."""

    def __init__(
        self, path: Path, *, facts: Mapping[str, Any] | None = None, done: Path | None = None
    ) -> None:
        """`facts` are told in every row added here; `done` is a folder of earlier rows."""
        self.path = path
        files = sorted(done.glob("*.jsonl")) if done else []
        self._earlier = _index_rows(row for file in files for row in read_rows(file))
        self.facts = {**(facts or {}), "commit": find_commit(), "sources": hash_sources()}
        self._size = -1
        self._written: list[Row] = []
        self._found: dict[str, Row] = {}

    def read_written(self) -> list[Row]:
        """Return the file's rows, those that another process has added since as well."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._size:
            self._written = list(read_rows(self.path)) if size else []
            self._found = self._earlier | _index_rows(self._written)
            self._size = size
        return self._written

    def find(self, cell: str, settings: Mapping[str, Any]) -> Row | None:
        """Return the last row of a cell with these settings, of this file or an earlier one."""
        self.read_written()
        return self._found.get(make_key({"cell": cell, **settings}))

    def is_missing(self, cell: str, settings: Mapping[str, Any]) -> bool:
        """Say whether there is no row of a cell with these settings yet."""
        return self.find(cell, settings) is None

    def add(
        self,
        cell: str,
        settings: Mapping[str, Any],
        *,
        seed: int,
        n: int,
        seconds: float,
        **figures: Any,
    ) -> Row:
        """Write a row, which is on disk when this returns, and return it."""
        row = {
            "key": make_key({"cell": cell, **settings}),
            "cell": cell,
            "settings": dict(settings),
            **figures,
            "seed": seed,
            "n": n,
            "seconds": seconds,
            "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
            **self.facts,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row, sort_keys=True) + "\n"
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            line = "\n" + line  # the last line was cut off
        # One call of the system, so that processes do not write into each other's lines.
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
        return row


def _index_rows(rows: Iterator[Row] | list[Row]) -> dict[str, Row]:
    return {row["key"]: row for row in rows if "key" in row and "failed" not in row}


def find_commit() -> str:
    """Return the checkout's commit, `-dirty` where files differ; outside of git, `TUE_COMMIT`."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            [*command, "--exclude=*", "--abbrev=40"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("TUE_COMMIT", "unknown")
    return found.stdout.strip()


def hash_sources() -> str:
    """Return a short digest of the package's own code, whatever its version says."""
    state = hashlib.sha256()
    folder = Path(tue_cli.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        state.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


def identify_machine(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells kinds of machines apart, for rows that are compared with each other."""
    hardware = row["hardware"]
    return tuple(str(hardware[name]) for name in ("cpu", "cores", "bfloat16_by", "device"))


def describe_hardware(*, threads: int, dtype: str, device: str = "cpu") -> Row:
    """Return what the figures were measured on, and how busy that was."""
    processor = {"model name": platform.processor() or platform.machine(), "flags": ""}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            processor[name.strip()] = value.strip()
    return {
        "bfloat16_by": [i for i in ("avx512_bf16", "amx_bf16") if i in processor["flags"].split()],
        "cpu": processor["model name"],
        "cores": os.cpu_count(),
        "device": device,
        "dtype": dtype,
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "torch": version("torch"),
        "tue": tue_cli.__version__,
    }


def format_command() -> str:
    """Return this process's command, without the machine's own paths."""
    script = Path(sys.argv[0])
    name = script.parent.name if script.stem == "__main__" else script.stem
    arguments = [re.sub(r"(^|(?<=[:,=]))/[^\s:,=]*/", "", word) for word in sys.argv[1:]]
    return shlex.join(["python", "-m", f"benchmarks.{name}", *arguments])
