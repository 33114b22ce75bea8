"""Many values in a few, and tables of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def summarize(values: Iterable[float], digits: int = 5) -> dict[str, Any]:
    """Return n, mean, median, smallest, largest and the sample's standard deviation, if it has one.

    Values that are not finite are left out.
    """
    kept = [value for value in values if math.isfinite(value)]
    if not kept:
        return {"n": 0}
    return {
        "n": len(kept),
        "mean": round(statistics.fmean(kept), digits),
        "median": round(statistics.median(kept), digits),
        "min": round(min(kept), digits),
        "max": round(max(kept), digits),
        "std": round(statistics.stdev(kept), digits) if len(kept) > 1 else None,
    }


def format_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
