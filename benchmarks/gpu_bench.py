"""What the steps of a GPU run share: the clock, the data, the way of running, and timing."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import record
import torch
from archives import Split, read_split
from gpu_work import Budget
from rows import Rows

from tue_cli.engine import Machine
from tue_cli.nets.frozen import Frozen
from tue_cli.numerics.batches import Pictures
from tue_cli.numerics.capture import Record, record_call, record_graph, recorded_by

WAYS: dict[str, Record] = {"eager": record_call, "captured": record_graph}
"""How what repeats is run. `eager` copies its inputs and results as a graph does."""


class Clock:
    """The time of a run, which no step may pass."""

    def __init__(self, minutes: float, *, began: float) -> None:
        self._end = began + 60 * minutes

    def left(self) -> float:
        """Return the seconds left."""
        return self._end - time.monotonic()


@dataclass
class Bench:
    """One run."""

    archive: Path
    out: Path
    done: Path | None
    work: Path
    """For what need not come back."""
    clock: Clock
    rows: Rows
    budget: Budget
    computer: Machine
    rehearse: bool
    way: str = "captured"
    nets: dict[str, dict[str, Frozen]] = field(default_factory=dict)
    """The frozen nets of each surrogate that there is, by role."""
    arms: dict[str, Pictures] = field(default_factory=dict)
    """The training pictures as they are and as they were protected."""

    @cached_property
    def split(self) -> Split:
        """The data set at the nets' size, on the device."""
        began = time.monotonic()
        data = read_split(self.archive, self.budget.training.size)
        train, most = data.train, self.budget.per_class
        if most is not None:
            places = [(train.labels == n).nonzero()[:most, 0] for n in range(len(data.classes))]
            chosen = torch.cat(places)
            train = Pictures(train.pixels[chosen], train.labels[chosen])
        record.note(f"{len(train)} pictures read in {time.monotonic() - began:.1f} s")
        device = self.computer.device
        test = data.test if most is None else Pictures(data.test.pixels[:40], data.test.labels[:40])
        return Split(data.classes, train.to(device), test.to(device))

    @cached_property
    def data(self) -> str:
        """A name for the training pictures, the same for the same ones."""
        pixels = self.split.train.pixels.cpu().numpy()
        return f"{self.archive.name.partition('.')[0]}, {hashlib.sha256(pixels).hexdigest()[:12]}"

    def recorded(self) -> AbstractContextManager[None]:
        """Return a context in which functions run in the way that was found to be right."""
        return recorded_by(WAYS[self.way])

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.computer.device.type == "cuda":
            torch.cuda.synchronize(self.computer.device)

    def timed(self, run: Callable[[], object]) -> tuple[float, int]:
        """Return a call's median seconds, and of how many calls, after three that do not count."""
        for _ in range(3):
            run()
        self.wait()
        seconds: list[float] = []
        until = time.perf_counter() + self.budget.seconds
        while len(seconds) < 3 or time.perf_counter() < until:
            began = time.perf_counter()
            run()
            self.wait()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds), len(seconds)
