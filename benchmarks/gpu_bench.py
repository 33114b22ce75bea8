"""What the steps of a GPU run share: the clock, the data, the way of running, and timing."""

from __future__ import annotations

import hashlib
import os
import signal
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.archives import Split
from benchmarks.command import build_environment as environment_of
from benchmarks.gpu_work import Budget
from benchmarks.rows import Rows
from benchmarks.script import note
from tue_cli.core.batches import Images
from tue_cli.core.capture import Record, record_call, record_graph, use_recorder
from tue_cli.engine.torch import ComputeDevice
from tue_cli.nets.frozen import Frozen

WAYS: dict[str, Record] = {"eager": record_call, "captured": record_graph}
"""Execution modes. `eager` copies inputs and results, as a graph does."""


class Clock:
    """The time of a run, which no step may pass."""

    def __init__(self, minutes: float, *, began: float) -> None:
        self._end = began + 60 * minutes

    def count_left(self) -> float:
        """Return the seconds left."""
        return self._end - time.monotonic()


@dataclass
class Bench:
    """One run."""

    archive: Path
    read: Split | None
    """The archive's pictures, where they are needed in memory."""
    out: Path
    done: Path | None
    work: Path
    """For what need not come back."""
    clock: Clock
    rows: Rows
    budget: Budget
    computer: ComputeDevice
    rehearse: bool
    way: str = "captured"
    """Execution mode; if a capture fails, a warning says so and it runs eagerly."""
    children: list[subprocess.Popen[str]] = field(default_factory=list)
    nets: dict[str, dict[str, Frozen]] = field(default_factory=dict)
    """The frozen nets of each surrogate that there is, by role."""
    arms: dict[str, Images] = field(default_factory=dict)
    """The training pictures as they are and as they were protected."""

    @cached_property
    def split(self) -> Split:
        """The data set at the nets' size, on the device."""
        assert self.read is not None
        data = self.read
        train, most = data.train, self.budget.per_class
        if most is not None:
            places = [(train.labels == n).nonzero()[:most, 0] for n in range(len(data.classes))]
            chosen = torch.cat(places)
            train = Images(train.pixels[chosen], train.labels[chosen])
        device = self.computer.device
        test = data.test if most is None else Images(data.test.pixels[:40], data.test.labels[:40])
        return Split(data.classes, train.to(device), test.to(device))

    @cached_property
    def data_name(self) -> str:
        """A name for the training pictures, the same for the same ones."""
        pixels = self.split.train.pixels.cpu().numpy().tobytes()
        return f"{self.archive.name.partition('.')[0]}, {hashlib.sha256(pixels).hexdigest()[:12]}"

    def use_way(self) -> AbstractContextManager[None]:
        """Return a context in which functions run in the way that was found to be right."""
        return use_recorder(WAYS[self.way])

    def attempt(self, name: str, step: Callable[[], object]) -> None:
        """Do a step; where it fails, write a row that says so, and let the run go on."""
        began = time.monotonic()
        try:
            step()
        except Exception as error:
            note(traceback.format_exc())
            told = f"{type(error).__name__}: {str(error)[:300]}"
            seconds = round(time.monotonic() - began, 2)
            self.rows.add("failed", {"step": name}, failed=told, seed=0, n=1, seconds=seconds)
            if self.computer.device.type == "cuda":
                torch.cuda.empty_cache()

    def call(
        self, command: Sequence[str], seconds: float, **environment: str
    ) -> tuple[int | None, str, str]:
        """Run a command with a time limit; return exit code (None at the limit), stdout, stderr."""
        child = subprocess.Popen(
            list(command),
            env={**environment_of(min(16, os.cpu_count() or 1)), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.children.append(child)
        try:
            said, noted = child.communicate(timeout=seconds)
            return child.returncode, said, noted
        except subprocess.TimeoutExpired:
            self.end_children()
            return None, "", f"not over after {seconds:.0f} s"

    def end_children(self) -> None:
        """End every command that is still running, with all that it has started."""
        for child in self.children:
            if child.poll() is None:
                with suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.computer.device.type == "cuda":
            torch.cuda.synchronize(self.computer.device)

    def time_run(self, run: Callable[[], object]) -> tuple[float, int]:
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
