"""Timings taken in turns (ABAB…), so that what else the machine does falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks.rows import Row
from benchmarks.script import note
from benchmarks.summary import summarize

Run = Callable[[], object]


def time_in_turns(runs: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
    """Return seconds of each run, by name, run in turns after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - began)
        note(f"turn {turn} of {repeats}")
    return seconds


def compute_ratio(slow: Sequence[float], fast: Sequence[float]) -> Row:
    """Return how many times longer the one took, turn by turn."""
    return summarize((a / b for a, b in zip(slow, fast, strict=True)), 3)


def compute_paces(seconds: Sequence[float], batch: int) -> Row:
    """Return pictures a second, of runs of so many."""
    return summarize((batch / value for value in seconds), 2)
