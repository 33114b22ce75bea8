"""What `tue train` and `tue export` tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
