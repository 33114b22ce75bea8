"""Victims of `tue verify`, trained one at a time, and what a row tells of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.script import note
from tue_cli.engine.torch import ComputeDevice
from tue_cli.events import Metric
from tue_cli.verify.dataset import VictimDataset
from tue_cli.verify.trainer import train_victim
from tue_cli.verify.trials import Trial


def measure_victim(trial: Trial, arms: VictimDataset, computer: ComputeDevice) -> dict[str, Any]:
    """Train one victim to its end and return its figures."""
    training = train_victim(trial, arms, computer)
    while True:
        try:
            event = next(training)
        except StopIteration as end:
            return list_figures(end.value[0])
        if isinstance(event, Metric):
            accuracy = event.values["accuracy"]
            note(f"  {event.phase}, {event.step} of {event.steps}: {100 * accuracy:.1f} %")


def list_figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row tells of a victim.

    That is its accuracy at the end and at its best, on its own training pictures and, where it was
    trained against an adversary, on those under attack; and the seconds of its training. Where one
    class is tested, its accuracy on the others is told too.
    """
    robust, others = result["attacked"], result["others"]
    return {
        **({} if others is None else {"others": round(others, 5)}),
        "accuracy": round(result["curve"][-1], 5),
        "peak": round(max(result["curve"]), 5),
        "train": round(result["train"], 5),
        "robust_train": None if robust is None else round(robust, 5),
        "seconds": round(result["seconds"], 1),
    }
