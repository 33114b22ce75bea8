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
from typing import Any

from benchmarks import script
from benchmarks.rows import RESULTS, Row, identify_machine, read_rows
from benchmarks.summary import format_table

PICTURES = 10_000_000
SHARD = 10_000
"""Pictures of a shard, about a gigabyte of photographs."""
WORKERS = (8, 64, 512)
DOLLARS = {"cpu": 0.05, "cuda": 2.50}
"""An hour of one processor, or of one GPU with its processors: assumed."""
BESIDE = 8
"""Processors of a GPU's worker, which decode and encode: assumed."""
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
    engine = parts["seconds_each"]["engine"]["mean"]
    limit = "the GPUs" if device != "cpu" and engine > each / 2 else "the processors"
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


def find_fixed(parts: Row, rows: Iterable[Row]) -> float:
    """Return the seconds of a run through Ray beside its workers.

    It is a run on the kind of machine on which the parts were measured, or else the newest.
    """
    trials = list_trials(rows)
    same = [row for row in trials if identify_machine(row) == identify_machine(parts)]
    found = (same or trials)[0]
    return float(
        found["wall_seconds"] - found["workers_busy_seconds"] / found["settings"]["workers"]
    )


def list_estimates(rows: list[Row]) -> list[tuple[Row, Estimate]]:
    """Return the estimates for every size of pictures and kind of machine that was measured.

    Where no GPU was, they are for GPUs that make noise in no time: no GPU can be faster.
    """
    parts = [row for row in rows if row["cell"] == "shards: parts"]
    fixed = find_fixed(parts[0], rows)
    if all(row["hardware"]["device"] == "cpu" for row in parts):
        parts += [imagine_gpu(row) for row in parts]
    return [(row, estimate(row, workers, fixed=fixed)) for row in parts for workers in WORKERS]


def imagine_gpu(parts: Row) -> Row:
    """Return what a picture takes where a GPU makes noise in no time."""
    each = parts["seconds_each"]
    spent = {name: {"mean": each[name]["mean"] / BESIDE} for name in ("decode", "encode")}
    return {
        **parts,
        "seconds_each": {**spent, "engine": {"mean": 0.0}},
        "hardware": {**parts["hardware"], "device": "cuda"},
        "imagined": True,
    }


def _describe_worker(parts: Row) -> str:
    hardware = parts["hardware"]
    if hardware["device"] == "cpu":
        return "one processor"
    if "imagined" in parts:
        return f"an infinitely fast GPU with {BESIDE} processors"
    return f"a GPU with {hardware['cores']} processors"


def write_scale() -> str:
    """Return the model as a table, with what it assumes."""
    rows = read_latest()
    estimates = list_estimates(rows)
    lines = [
        (
            f"{row['settings']['side']} × {row['settings']['side']}",
            _describe_worker(row),
            f"{found.workers:,}",
            f"{found.hours:,.1f}" if found.hours >= 1 else f"{found.hours:.2f}",
            f"{found.dollars:,.0f}",
            f"{100 * found.busy:.0f} %",
            found.limit,
        )
        for row, found in estimates
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
    fixed, shards = find_fixed(parts[0], rows), math.ceil(PICTURES / SHARD)
    least = [estimate(row, shards, fixed=fixed).hours for row in parts]
    ends = " and ".join(
        f"{hours:.2f} hours at {row['settings']['side']} pixels"
        for row, hours in zip(parts, least, strict=True)
    )
    bounds = ""
    if any("imagined" in row for row, _ in estimates):
        bounds = (
            " No GPU was measured. The GPU rows are a bound: what a run takes if the noise takes "
            "no time at all, and the processors beside a GPU only decode and encode."
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
            f"which workers make shards.{bounds}",
            "",
            f"It scales until there are as many workers as shards: {shards:,} workers take {ends}, "
            "and any more would be idle, since a shard is made by one worker. With smaller "
            "shards, the limit is higher. To measure a GPU, run "
            "`python -m benchmarks.shards --only parts --device cuda` on a machine with one.",
        ]
    )


def read_latest() -> list[Row]:
    """Return the last row of each kind, of each kind of machine."""
    rows = read_rows(RESULTS / "shards.jsonl")
    return list({(row["key"], identify_machine(row)): row for row in rows}.values())


def list_trials(rows: Iterable[Row]) -> list[Row]:
    """Return the last of the largest runs through Ray on each kind of machine, the newest first."""
    trials: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["cell"] == "shards: ray":
            former = trials.get(identify_machine(row), row)
            if row["settings"]["pictures"] >= former["settings"]["pictures"]:
                trials[identify_machine(row)] = row
    return sorted(trials.values(), key=lambda row: str(row["when"]), reverse=True)


def find_local(trial: Row, rows: Iterable[Row]) -> Row | None:
    """Return the last `local` row with a trial's settings on its kind of machine, or None."""
    same = [
        row
        for row in rows
        if (row["cell"], row["settings"]) == ("shards: local", trial["settings"])
        and identify_machine(row) == identify_machine(trial)
    ]
    return same[-1] if same else None


def describe_trial(found: Row, local: Row | None) -> tuple[str, ...]:
    """Return a line of the table of speeds; `local` is the run without S3 and Ray, if any."""
    hardware, memory, speed = found["hardware"], found["memory"], found["pictures_a_second"]
    beside = "not measured"
    if local is not None:
        other = local["pictures_a_second"]
        beside = f"{other:.1f} ({speed / other:.2f})"
    return (
        f"{hardware['cores']} of an {hardware['cpu']}, "
        f"{'bfloat16' if hardware['bfloat16_by'] else 'no bfloat16'}, "
        f"load {hardware['load_before'][0]:.1f} before",
        f"{speed:.1f}",
        beside,
        f"{found['plain']['pictures_a_second']:.1f} ({found['over_plain']:.2f})",
        f"{memory['peak_mib']:.0f} MiB, {memory['late_over_early']:.2f}",
        f"{found['equal_shards']} of {found['settings']['shards']}",
    )


def write_shards() -> str:
    """Return how fast Ray is, and how often a kill lost nothing."""
    rows = read_latest()
    trials = list_trials(rows)
    asked = trials[0]["settings"]
    head = (
        "processors",
        "with S3 and Ray",
        "without",
        "a bare loop",
        "memory of a worker",
        "equal shards",
    )
    lines = [
        f"The table has pictures a second, starting included, for {asked['pictures']:,} pictures "
        f"of {asked['side']} × {asked['side']} pixels in {asked['shards']} shards with "
        f"{asked['workers']} workers (n = 1 each). The S3 server is on the same machine. *Without* "
        "is the same command without S3 and Ray. A bare loop measures no copy and writes no "
        "manifest. In parentheses is the speed with S3 and Ray, divided by that speed.",
        "",
        format_table(head, [describe_trial(row, find_local(row, rows)) for row in trials]),
        "",
        "*Memory* is a worker's peak, and its peak in the last quarter of its life, divided by "
        "that in the second quarter. *Equal shards* are, byte for byte, those of one machine "
        "without Ray.",
        "",
    ]
    for kind in ("worker", "driver"):
        kills = [
            row
            for row in rows
            if row["cell"] == "shards: kill"
            and row["killed"]
            and row["after_shards"] < row["settings"]["shards"]
        ]
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
