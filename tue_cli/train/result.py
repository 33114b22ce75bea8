"""What `tue train` and `tue export` tell."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tue_cli.config import TRAININGS, TrainSettings
from tue_cli.events import Note
from tue_cli.text import escape, format_count, format_duration

if TYPE_CHECKING:
    from tue_cli.engine.onnx_graph.parity import Parity


@dataclass(frozen=True)
class TrainPlan:
    """What a training begins with."""

    device: str
    pictures: int
    classes: int


@dataclass(frozen=True)
class TrainSummary:
    """What came of a training."""

    steps: Mapping[str, int]
    """Net -> steps that it has taken, those before a resume among them."""
    weights: Path | None
    """None where the time limit came before the last net."""
    failed: int
    """Pictures that could not be read."""
    seconds: float
    """Those before a resume among them."""


def warn_of_days(settings: TrainSettings, device: str) -> Iterator[Note]:
    """Yield a warning where a training on a CPU takes about as long as the paper's."""
    paper = TRAININGS["paper"]
    # Whole numbers: those of a mistyped option can be too large for a float.
    work, of_paper = (each.steps * each.width**2 for each in (settings, paper))
    if device == "cpu" and 10 * work >= of_paper:
        yield Note(
            "Without a GPU, the preset paper takes days: about five on one CPU core. --preset "
            "packaged takes about 45 minutes there. Ctrl-C stops the training."
        )


def describe(result: TrainSummary) -> Iterator[str]:
    """Yield what came of a training, in sentences, and what to do next."""
    steps = ", ".join(f"{role} {count:,}" for role, count in result.steps.items())
    yield f"Trained for {format_duration(result.seconds)}. Steps of each network: {steps}."
    if result.failed:
        yield f"Not read: {format_count(result.failed, 'picture')}."
    if result.weights is None:
        yield "There are no weights yet: the training of the last network has not begun."
    else:
        yield f"Weights: {escape(result.weights)}"
        yield f"Next: tue protect FOLDER --weights {shlex.quote(escape(result.weights))}"


@dataclass(frozen=True)
class ExportSummary:
    """A step graph, as it was written."""

    graph: Path
    weights: str
    """Their name."""
    sha256: str
    """Of the graph."""
    bytes: int
    holds_weights: bool
    """False where it reads them from the file beside it."""
    parity: Parity
    """How far it is from torch."""
