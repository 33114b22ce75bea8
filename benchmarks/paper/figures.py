"""The paper's two figures, drawn of what was measured."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks.paper.tables import Results, ResultTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]

INK, PALE = "#1c1c28", "#c9c9d4"
BARS = ("EM", "TAP", "NTGA", "REM", "TUE")
"""The methods of Figure 1."""
COLOURS = {"clean": "#3a9a5b", "TUE": "#cc3d3d", "REM": "#3566c4"}
"""Of Figure 2, as in the paper: clean green, ours red, REM's blue."""


def draw_effects(table: ResultTable, results: Results, row: str = "4/255") -> Figure:
    """Return Figure 1 of a table 1: a bar a method at 4/255, the paper's own behind it, paler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for name in BARS:
        place = table.places.get((row, name))
        if place is None:
            continue
        result = results.get(place.key)
        title = name + ("" if result is None or result["learned"] else "*")
        axes.bar(title, place.published or 0, width=0.8, color=PALE)
        if result is not None:
            axes.bar(title, 100 * result["mean"], width=0.5, color=COLOURS.get(name, INK))
    axes.set_ylim(0, 100)
    dataset = table.title[table.title.rfind(",") :]
    axes.set_title(f"Test accuracy at {row}, in percent{dataset}")
    axes.set_xlabel("Wide and pale: the paper's. * The victim has not learned enough.")
    return figure


def draw_map(points: Mapping[str, Sequence[Point]], title: str) -> Figure:
    """Return Figure 2: a map of pictures, a colour for each kind of them, a key of `COLOURS`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    for name, some in points.items():
        across, down = zip(*some, strict=True)
        axes.scatter(across, down, s=12, color=COLOURS[name], label=name)
    axes.set_axis_off()
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=len(points))
    return figure


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as `svg` or `png`."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=150)
    return file.getvalue()
