"""A model of a large data set: hours and cost on many workers, from what a picture was measured to
take.

    python -m benchmarks.scale

It computes from the rows of `benchmarks.shards`: what a worker spends on a picture (`parts`), and
what a run takes beside its workers (`ray`). Prices and the speed of a network are assumptions,
named with the result. `benchmarks.readme` writes the table into docs/scale.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import script
from benchmarks.rows import RESULTS, Row, read_rows
from benchmarks.summary import format_table

PICTURES = 10_000_000
FULL = 20_000
"""Pictures that `benchmarks.shards` measures unless told otherwise; with fewer, it is a trial."""
SHARD = 10_000
"""Pictures of a shard, about a gigabyte of photographs."""
WORKERS = (8, 64, 512)
DOLLARS = {"cpu": 0.05, "cuda": 2.50}
"""An hour of one processor, or of one GPU with its processors: assumed."""
NETWORK = 50e6
"""Bytes a second that a worker reads or writes: assumed."""


@dataclass(frozen=True)
class Estimate:
    """What a data set takes on so many workers."""

    workers: int
    hours: float
    dollars: float
    busy: float
    """The share of the time in which workers make shards."""
    limit: str
    """What keeps more workers from being faster."""


def estimate(parts: Row, workers: int, *, fixed: float, shards: int | None = None) -> Estimate:
    """Return what `PICTURES` take.

    Args:
        parts: a row of what a picture takes.
        workers: how many.
        fixed: seconds of a run beside its workers: starting, looking at classes, stopping.
        shards: how many there are; None for as many as have `SHARD` pictures each.
    """
    shards = shards or math.ceil(PICTURES / SHARD)
    each = sum(parts["seconds_each"][name]["mean"] for name in ("decode", "engine", "encode"))
    moved = (parts["bytes_in"] + parts["bytes_out"]) / NETWORK
    # The labels of tar files are read first, by all workers.
    scan = parts["bytes_in"] * (PICTURES / shards) / NETWORK
    shard = (each + moved) * (PICTURES / shards)
    rounds = math.ceil(shards / workers)
    seconds = fixed + rounds * (scan + shard)
    made = shards * (scan + shard)
    device = parts["hardware"]["device"].partition(":")[0]
    idle = 1 - shards / (rounds * workers)
    limit = "the processors" if device == "cpu" else "the GPUs"
    if moved > each:
        limit = "the network"
    if idle > 0.1:
        limit = f"the number of shards: {shards:,}"
    return Estimate(
        workers,
        seconds / 3600,
        seconds / 3600 * workers * DOLLARS[device],
        made / (seconds * workers),
        limit,
    )


def find_fixed(rows: Iterable[Row]) -> float:
    """Return the seconds of a run through Ray beside its workers, by the largest of `ray`."""
    found = [row for row in rows if row["cell"] == "shards: ray"]
    largest = max(found, key=lambda row: row["settings"]["pictures"])
    busy = largest["workers_busy_seconds"] / largest["settings"]["workers"]
    return float(largest["wall_seconds"] - busy)


def list_estimates(rows: list[Row]) -> list[tuple[Row, Estimate]]:
    """Return the estimates for every size of pictures and kind of machine that was measured."""
    fixed = find_fixed(rows)
    return [
        (row, estimate(row, workers, fixed=fixed))
        for row in rows
        if row["cell"] == "shards: parts"
        for workers in WORKERS
    ]


def write_scale() -> str:
    """Return the model as a table, with what it assumes."""
    rows = list({row["key"]: row for row in read_rows(RESULTS / "shards.jsonl")}.values())
    lines = [
        (
            f"{row['settings']['side']} × {row['settings']['side']}",
            "GPU" if row["hardware"]["device"] != "cpu" else "one processor",
            f"{found.workers:,}",
            f"{found.hours:,.1f}",
            f"{found.dollars:,.0f}",
            f"{100 * found.busy:.0f} %",
            found.limit,
        )
        for row, found in list_estimates(rows)
    ]
    head = ("pictures", "a worker is", "workers", "hours", "dollars", "busy", "limited by")
    parts = [row for row in rows if row["cell"] == "shards: parts"]
    spent = "; ".join(
        f"{row['settings']['side']} pixels: "
        + ", ".join(
            f"{name} {1000 * row['seconds_each'][name]['mean']:.1f} ms"
            for name in ("decode", "engine", "encode")
        )
        + f", {row['bytes_in'] / 1000:.0f} KB read, {row['bytes_out'] / 1000:.0f} KB written"
        for row in parts
    )
    hardware = parts[0]["hardware"]
    load = max(row["hardware"]["load_before"][0] for row in parts)
    fixed, shards = find_fixed(rows), math.ceil(PICTURES / SHARD)
    least = [estimate(row, shards, fixed=fixed).hours for row in parts]
    ends = " and ".join(
        f"{hours:.1f} hours at {row['settings']['side']} pixels"
        for row, hours in zip(parts, least, strict=True)
    )
    return "\n".join(
        [
            format_table(head, lines),
            "",
            f"Computed, not measured, for {PICTURES:,} pictures in tar shards of {SHARD:,}, from "
            f"what one picture takes on one thread of an {hardware['cpu']} (n = "
            f"{', '.join(str(row['n']) for row in parts)}; load {load:.1f} before, on "
            f"{hardware['cores']} processors; {spent}). Assumed: "
            f"{DOLLARS['cpu']:.2f} dollars for an hour of a processor, {DOLLARS['cuda']:.2f} for "
            f"one of a GPU, and {NETWORK / 1e6:.0f} MB per second for each worker. A run takes "
            f"{fixed:.0f} s to start and stop. *Busy* is the share of the paid time in "
            "which workers make shards.",
            "",
            f"It scales until there are as many workers as shards: {shards:,} workers take {ends}, "
            "and any more would be idle, since a shard is made by one worker. With smaller "
            "shards, the limit is higher. A row for GPUs appears once a machine with one has run "
            "`python -m benchmarks.shards --only parts --device cuda`.",
        ]
    )


def describe_trial(found: Row) -> str:
    """Return how little was measured, and what else the machine did."""
    hardware, asked = found["hardware"], found["settings"]
    small = "a small trial" if asked["pictures"] < FULL else "one run"
    load = hardware["load_before"][0]
    busy = load > 0.5
    return (
        f"These figures come from {small} with {asked['pictures']:,} pictures (n = 1) on a machine "
        f"with {hardware['cores']} processors"
        + (
            f" that was busy with other work: its load was {load:.1f} before the trial. They say "
            "little about the speed of an idle machine."
            if busy
            else "."
        )
    )


def write_shards() -> str:
    """Return how fast Ray is, and how often a kill lost nothing."""
    rows = list({row["key"]: row for row in read_rows(RESULTS / "shards.jsonl")}.values())
    found = max(
        (row for row in rows if row["cell"] == "shards: ray"),
        key=lambda row: row["settings"]["pictures"],
    )
    asked, memory = found["settings"], found["memory"]
    lines = [
        describe_trial(found),
        "",
        f"- {asked['pictures']:,} pictures of {asked['side']} × {asked['side']} pixels in "
        f"{asked['shards']} shards, through an S3 server on the same machine and Ray with "
        f"{asked['workers']} workers: {found['over_plain']:.2f} times the speed of as many plain "
        "processes without S3, starting included "
        f"({found['wall_seconds'] / 60:.1f} min; n = 1).",
        f"- {found['equal_shards']} of {asked['shards']} shards are, byte for byte, those that one "
        "machine writes without Ray.",
        f"- Memory of a worker: {memory['peak_mib']:.0f} MiB at most, and in the last quarter of "
        f"its life {memory['late_over_early']:.2f} times that of the second.",
    ]
    for kind in ("worker", "driver"):
        kills = [row for row in rows if row["cell"] == "shards: kill" and row["killed"]]
        cut = [row for row in kills if row["settings"]["kind"] == kind]
        kept = sum(r["equal"] and r["finished_stayed"] and not r["code"] for r in cut)
        again = ", and the command given again" if kind == "driver" else ""
        lines.append(
            f"- A {kind} killed with `kill -9`{again}: in {kept} of {len(cut)} runs the output is "
            "equal to that of a whole run, and no finished shard was made again."
        )
    return "\n".join(lines)


def main() -> None:
    """Print what was measured, and the model."""
    script.say(f"{write_shards()}\n\n{write_scale()}")


if __name__ == "__main__":
    main()
