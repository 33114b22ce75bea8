"""The report's charts: figures turned into coordinates, from which `report.html` draws.

Ours, not matplotlib's: these follow the reader's colours, font and window, say in words what they
show, and are a third as large. It would add 77 MB, to the light installation too, and the words and
intervals below would stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any, Final

from tue_cli.images.quality import PSNR_CAP

Figures = Mapping[str, Any]
"""Part of a manifest or of a result, as JSON holds it."""

TRAINED_ON: Final = {"clean": "originals", "protected": "copies", "random": "random noise"}
"""What victims are trained on: its word in a result, and on the page."""
PANEL: Final = (320, 190)
"""Width and height of a small chart, in its own units."""
MAP: Final = 360
"""Side of a map of features, in its own units."""
COLOURS: Final = 10
"""Colours of classes in `report.html`; after the last the first comes again."""
TOP, BOTTOM, LEFT, RIGHT = 14, 160, 36, 228
"""The plot inside a small chart; to its right the lines are named."""


def describe_interval(
    figure: Figures, value: str = "value", times: int = 1, digits: int = 0
) -> dict[str, Any]:
    """Return a figure that is in percent after `times`, and its 95 % interval where it has one.

    As places on a line of 0..100, and as words.
    """
    middle = times * figure[value]
    place, text = clip(middle), f"{middle:.{digits}f}\N{NO-BREAK SPACE}%"
    if figure.get("low") is None or figure.get("high") is None:
        return {"value": place, "low": None, "high": None, "text": text}
    low, high = times * figure["low"], times * figure["high"]
    between = "–" if low >= 0 else " to "
    text += f" ({low:.{digits}f}{between}{high:.{digits}f})".replace("-", "\N{MINUS SIGN}")
    return {"value": place, "low": clip(low), "high": clip(high), "text": text}


def lay_out_curves(result: Figures) -> list[dict[str, Any]]:
    """Return a panel for each attacker whose accuracies by epoch are known, on one scale.

    Of what was tested only once, as a linear probe is, there is no curve.
    """
    known = []
    for attack in result["attacks"]:
        curves = attack.get("curves") or {}
        runs = {kind: [run for run in curves.get(kind) or () if run] for kind in TRAINED_ON}
        if any(len(run) > 1 for arm in runs.values() for run in arm):
            known.append((attack, runs))
    every = [max(run) for _, curves in known for runs in curves.values() for run in runs]
    top = min(1.0, math.ceil(max([0.4, *every]) * 5) / 5)
    return [_lay_out_curve(attack, runs, top) for attack, runs in known]


def _lay_out_curve(attack: Figures, curves: Mapping[str, Any], top: float) -> dict[str, Any]:
    """Return lines, one for each seed, and where their names go; `top` is the highest accuracy."""

    def place_y(accuracy: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * min(max(accuracy / top, 0), 1), 1)

    tests = max(len(run) for runs in curves.values() for run in runs)
    epochs = attack.get("epochs") or tests
    lines, names, last = [], [], []
    for kind, runs in curves.items():
        for run in runs:
            across = (RIGHT - LEFT) / max(tests - 1, 1)
            points = [(round(LEFT + across * i, 1), place_y(value)) for i, value in enumerate(run)]
            lines.append({"kind": kind, "points": points})
        if runs:
            name, end = TRAINED_ON[kind], fmean(run[-1] for run in runs)
            names.append({"kind": kind, "text": name, "x": RIGHT + 7, "y": place_y(end)})
            last.append(f"{name} {format_percent(end)}")
    ticks = [(place_y(share * top), format_percent(share * top)) for share in (0, 0.5, 1)]
    return {
        "title": attack["title"],
        "victim": attack["victim"],
        "lines": lines,
        "names": _space_out(names),
        "ticks": ticks,
        "epochs": (max(1, round(epochs / tests)), epochs),
        "floor": place_y(attack["floor"]),
        "summary": f"Accuracy by epoch, {attack['title']} of {attack['victim']}. At the end: "
        + f"{', '.join(last)}.",
    }


def _space_out(names: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Move names down until none lies on another; a letter is about 7 wide, a line 13 high."""
    placed: list[dict[str, Any]] = []
    for name in sorted(names, key=lambda name: name["y"]):
        for other in placed:
            reach = 3.5 * (len(name["text"]) + len(other["text"]))
            if abs(name["x"] - other["x"]) < reach and name["y"] - other["y"] < 13:
                name["y"] = round(other["y"] + 13, 1)
        placed.append(name)
    return placed


def lay_out_maps(embedding: Figures) -> dict[str, Any]:
    """Return the two maps of features on the same axes, each class one path of dots."""
    places = [place for kind in ("clean", "protected") for place in embedding[kind]]
    left, low = (min(place[axis] for place in places) for axis in (0, 1))
    right, high = (max(place[axis] for place in places) for axis in (0, 1))
    scale = (MAP - 32) / (max(right - left, high - low) or 1)
    across, up = (left + right) / 2, (low + high) / 2
    classes = [str(name) for name in embedding["classes"]]

    def lay_out_panel(kind: str, title: str) -> dict[str, Any]:
        dots: dict[int, list[tuple[float, float]]] = {}
        for x, y, index in embedding[kind]:
            place = round(MAP / 2 + (x - across) * scale, 1), round(MAP / 2 - (y - up) * scale, 1)
            dots.setdefault(int(index), []).append(place)
        paths = [
            {"index": index % COLOURS, "d": "".join(f"M{x:g} {y:g}h.01" for x, y in dots[index])}
            for index in sorted(dots)
        ]
        names = [
            {"text": classes[index], "x": median(x for x, _ in at), "y": median(y for _, y in at)}
            for index, at in dots.items()
            if len(classes) <= COLOURS
        ]
        count = len(embedding[kind])
        return {"title": title, "paths": paths, "names": _space_out(names), "count": count}

    return {
        "title": embedding["title"],
        "panels": [
            lay_out_panel("clean", "Originals"),
            lay_out_panel("protected", "Protected copies"),
        ],
        "classes": [(index % COLOURS, name) for index, name in enumerate(classes)],
    }


def lay_out_histograms(records: Sequence[Figures]) -> list[dict[str, Any]]:
    """Return how PSNR and SSIM are spread over the copies; an unchanged one has no PSNR."""
    spreads = []
    for name, unit, digits in (("psnr", " dB", 1), ("ssim", "", 3)):
        found = (record.get(name) for record in records)
        values = [value for value in found if value is not None and value < PSNR_CAP]
        if values:
            spreads.append({"name": name.upper(), **_lay_out_histogram(values, unit, digits)})
    return spreads


def _lay_out_histogram(values: Sequence[float], unit: str, digits: int) -> dict[str, Any]:
    """Return a histogram's bars, its ends and its median."""
    low, middle, high = min(values), median(values), max(values)
    bins = min(24, max(7, math.isqrt(len(values)) * 2))
    left, reach = (low, high - low) if high > low else (low - 0.5, 1.0)
    counts = [0] * bins
    for value in values:
        counts[min(int((value - left) / reach * bins), bins - 1)] += 1
    width, height = (PANEL[0] - 20) / bins, BOTTOM - 2 * TOP - 20
    bars = [
        {
            "x": round(10 + place * width + 1, 1),
            "width": round(width - 2, 1),
            "height": round(height * count / max(counts), 1),
        }
        for place, count in enumerate(counts)
    ]
    return {
        "bars": bars,
        "most": max(counts),
        "lowest": f"{low:.{digits}f}{unit}",
        "highest": f"{high:.{digits}f}{unit}",
        "median": f"{middle:.{digits}f}{unit}",
        "median_x": round(10 + (middle - left) / reach * (PANEL[0] - 20), 1),
        "count": len(values),
    }


def format_percent(share: float) -> str:
    """Return a share of 0..1 in percent, in three figures at most."""
    return f"{100 * share:.3g}\N{NO-BREAK SPACE}%"


def clip(percent: float) -> float:
    """Return a place on a line of 0..100."""
    return round(min(max(percent, 0), 100), 2)
