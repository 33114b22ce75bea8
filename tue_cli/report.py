"""The report: what was done to pictures and what models learn from them, as one HTML page.

The page needs nothing but itself: no network, no script, no font. Here the figures' geometry is
worked out; `report.html` holds every word and every mark. Names of files and classes are hostile
until escaped.
"""

from __future__ import annotations

import base64
import errno
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tue_cli.errors import OutputProblem
from tue_cli.files.encode import SURVIVAL_FLOOR
from tue_cli.files.images import write_whole
from tue_cli.files.manifest import shown
from tue_cli.files.quality import PSNR_CAP
from tue_cli.files.showing import GAIN, Shown

Figures = Mapping[str, Any]
"""Part of a manifest or of a result, as JSON holds it."""

TRAINED_ON: Final = {"clean": "originals", "protected": "protected", "random": "random noise"}
"""What victims are trained on: its word in a result, and on the page."""
BAR: Final = 24
"""Height of a bar with its gap, in CSS pixels."""
PANEL: Final = (320, 190)
"""Width and height of a small chart, in its own units."""
MAP: Final = 360
"""Side of a map of features, in its own units."""
COLOURS: Final = 10
"""Colours of classes in `report.html`; after the last the first comes again."""
LISTED: Final = 20
"""Failures that are listed by name."""
TOP, BOTTOM, LEFT, RIGHT = 14, 160, 36, 228
"""The plot inside a small chart; to its right the lines are named."""


def page(
    *,
    manifest: Figures,
    pictures: Sequence[Shown],
    result: Figures | None = None,
    embedding: Figures | None = None,
    command: str = "",
) -> str:
    """Return the page; without a result only what was done to the pictures.

    `manifest` is what `read_manifest` returns. In `result` accuracies are of 0..1, protections of
    0..100; in `embedding` `clean` and `protected` hold points (x, y, class).
    """
    source = resources.files("tue_cli").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_spelt,
    )
    environment.filters["data"] = _data
    attacks = [_attack(attack) for attack in (result or {}).get("attacks", ())]
    return environment.from_string(source).render(
        attacks=attacks,
        headline=result and _headline(result),
        curves=_curves(result) if result else [],
        maps=_maps(embedding) if embedding and embedding["clean"] else None,
        pictures=pictures,
        copies=_copies(manifest),
        spreads=_spreads(manifest["pictures"]),
        copy_facts=_copy_facts(manifest),
        setup=[(_words(name), _value(v)) for name, v in (result or {}).get("setup", {}).items()],
        command=command,
        trained_on=TRAINED_ON,
        bar=BAR,
        gain=GAIN,
        panel=PANEL,
        plot={"top": TOP, "bottom": BOTTOM, "left": LEFT, "right": RIGHT},
        map_side=MAP,
    )


def write(html: str, path: Path) -> None:
    """Write the page so that it appears whole or not at all.

    Raises:
        OutputProblem: the folder is missing or not writable, the disk is full.
    """
    try:
        scratch = path.with_name(f".tue-report-{os.getpid()}")
        write_whole(html.encode("utf-8"), path, scratch)
    except (OSError, ValueError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputProblem(
            f"The report {shown(path)} cannot be written: {why}.",
            "Free some space and try again." if full else "Name a file in a folder that is there.",
        ) from error


def _spelt(value: Any) -> Any:
    """Spell out what text must not hold: control characters, undecodable bytes, turned writing."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in value)


def _data(picture: bytes) -> str:
    """Return a PNG or JPEG as an address that holds the picture itself."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _headline(result: Figures) -> dict[str, Any]:
    """Return the answer; what is inconclusive carries no number."""
    conclusive = result["status"] == "conclusive"
    weakest, standard = result.get("weakest"), result.get("standard")
    marks = []
    if conclusive and weakest and weakest.get("value") is not None:
        name = f"weakest attack: {weakest['title']} ({weakest['victim']})"
        marks.append({"name": name, **_figure(weakest)})
    if conclusive and standard and not (weakest and weakest["attack"] == "std"):
        marks.append({"name": "standard training", **_figure(standard)})
    return {
        "conclusive": conclusive,
        "text": result["headline"] if conclusive else "Inconclusive",
        "reasons": [_sentence(reason) for reason in result.get("reasons", ())],
        "marks": marks,
        "chance": _percent(result["chance"]) if conclusive else "",
    }


def _attack(attack: Figures) -> dict[str, Any]:
    """Return one group of bars, in percent, with the words that stand beside it."""
    bars = []
    for kind, name in TRAINED_ON.items():
        accuracy = attack.get(kind)
        if accuracy and accuracy["mean"] is not None:
            bars.append({"kind": kind, "name": name, **_figure(accuracy, "mean", 100, 1)})
    floor = f"{attack['floor_name']} {_percent(attack['floor'])}"
    protection = attack.get("protection")
    doubt = attack.get("inconclusive") or ("" if protection else "not measured")
    return {
        "title": attack["title"],
        "victim": attack["victim"],
        "bars": bars,
        "cells": {bar["kind"]: bar["text"] for bar in bars},
        "floor": _inside(100 * attack["floor"]),
        "floor_text": floor,
        "doubt": doubt,
        "protection": _figure(protection)["text"] if protection and not doubt else "",
        "summary": f"Accuracy after {attack['title']} of {attack['victim']}: "
        + ", ".join(f"{bar['name']} {bar['text']}" for bar in bars)
        + f"; {floor}.",
    }


def _figure(
    figure: Figures, value: str = "value", times: int = 1, digits: int = 0
) -> dict[str, Any]:
    """Return a figure that is in percent after `times`, and its 95 % interval where it has one.

    As places on a line of 0..100, and as words.
    """
    middle = times * figure[value]
    place, text = _inside(middle), f"{middle:.{digits}f}\N{NO-BREAK SPACE}%"
    if figure.get("low") is None or figure.get("high") is None:
        return {"value": place, "low": None, "high": None, "text": text}
    low, high = times * figure["low"], times * figure["high"]
    between = "–" if low >= 0 else " to "
    text += f" ({low:.{digits}f}{between}{high:.{digits}f})".replace("-", "\N{MINUS SIGN}")
    return {"value": place, "low": _inside(low), "high": _inside(high), "text": text}


def _curves(result: Figures) -> list[dict[str, Any]]:
    """Return a panel for each attacker whose accuracies by epoch are known, on one scale."""
    known = []
    for attack in result["attacks"]:
        curves = attack.get("curves") or {}
        runs = {kind: [run for run in curves.get(kind) or () if run] for kind in TRAINED_ON}
        if any(runs.values()):
            known.append((attack, runs))
    every = [max(run) for _, curves in known for runs in curves.values() for run in runs]
    top = min(1.0, math.ceil(max([0.4, *every]) * 5) / 5)
    return [_curve(attack, runs, top) for attack, runs in known]


def _curve(attack: Figures, curves: Mapping[str, Any], top: float) -> dict[str, Any]:
    """Return lines, one for each seed, and where their names go; `top` is the highest accuracy."""

    def y(accuracy: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * min(max(accuracy / top, 0), 1), 1)

    tests = max(len(run) for runs in curves.values() for run in runs)
    epochs = attack.get("epochs") or tests
    lines, names, last = [], [], []
    for kind, runs in curves.items():
        for run in runs:
            across = (RIGHT - LEFT) / max(tests - 1, 1)
            points = [(round(LEFT + across * i, 1), y(value)) for i, value in enumerate(run)]
            lines.append({"kind": kind, "points": points})
        if runs:
            name, end = TRAINED_ON[kind], fmean(run[-1] for run in runs)
            names.append({"kind": kind, "text": name, "x": RIGHT + 7, "y": y(end)})
            last.append(f"{name} {_percent(end)}")
    ticks = [(y(share * top), _percent(share * top)) for share in (0, 0.5, 1)]
    return {
        "title": attack["title"],
        "victim": attack["victim"],
        "lines": lines,
        "names": _apart(names),
        "ticks": ticks,
        "epochs": (max(1, round(epochs / tests)), epochs),
        "floor": y(attack["floor"]),
        "summary": f"Accuracy by epoch, {attack['title']} of {attack['victim']}. At the end: "
        + f"{', '.join(last)}.",
    }


def _apart(names: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Move names down until none lies on another; a letter is about 7 wide, a line 13 high."""
    placed: list[dict[str, Any]] = []
    for name in sorted(names, key=lambda name: name["y"]):
        for other in placed:
            reach = 3.5 * (len(name["text"]) + len(other["text"]))
            if abs(name["x"] - other["x"]) < reach and name["y"] - other["y"] < 13:
                name["y"] = round(other["y"] + 13, 1)
        placed.append(name)
    return placed


def _maps(embedding: Figures) -> dict[str, Any]:
    """Return the two maps of features on the same axes, each class one path of dots."""
    places = [place for kind in ("clean", "protected") for place in embedding[kind]]
    left, low = (min(place[axis] for place in places) for axis in (0, 1))
    right, high = (max(place[axis] for place in places) for axis in (0, 1))
    scale = (MAP - 32) / (max(right - left, high - low) or 1)
    classes = [str(name) for name in embedding["classes"]]

    def panel(kind: str, title: str) -> dict[str, Any]:
        dots: dict[int, list[tuple[float, float]]] = {}
        for x, y, index in embedding[kind]:
            place = (round(16 + (x - left) * scale, 1), round(MAP - 16 - (y - low) * scale, 1))
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
        return {"title": title, "paths": paths, "names": _apart(names), "count": count}

    return {
        "title": embedding["title"],
        "panels": [panel("clean", "Originals"), panel("protected", "Protected copies")],
        "classes": [(index % COLOURS, name) for index, name in enumerate(classes)],
    }


def _spreads(records: Sequence[Figures]) -> list[dict[str, Any]]:
    """Return how PSNR and SSIM are spread over the copies; an unchanged one has no PSNR."""
    spreads = []
    for name, unit, digits in (("psnr", " dB", 1), ("ssim", "", 3)):
        found = (record.get(name) for record in records)
        values = [value for value in found if value is not None and value < PSNR_CAP]
        if values:
            spreads.append({"name": name.upper(), **_spread(values, unit, digits)})
    return spreads


def _spread(values: Sequence[float], unit: str, digits: int) -> dict[str, Any]:
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


def _copies(manifest: Figures) -> dict[str, Any]:
    """Return how many copies there are, how many are weak, and what could not be protected."""
    records, failed = manifest["pictures"], manifest.get("summary", {}).get("failed", ())
    survivals = (record.get("survival") for record in records)
    return {
        "count": len(records),
        "weak": sum(survival is not None and survival < SURVIVAL_FLOOR for survival in survivals),
        "floor": _percent(SURVIVAL_FLOOR),
        "failed": len(failed),
        "failures": [(entry["path"], entry["message"]) for entry in failed[:LISTED]],
    }


def _copy_facts(manifest: Figures) -> list[tuple[str, str]]:
    """Return how the copies were made; what an older manifest does not say is left out."""
    run, keys = manifest["run"], list(manifest["keys"])
    settings, weights = run.get("settings", {}), run.get("weights", {})
    noise = settings.get("noise", {})
    radius = noise.get("radius")
    classes = ", ".join(keys[:LISTED]) + (", …" if len(keys) > LISTED else "")
    facts = {
        "Copies": len(manifest["pictures"]),
        "Classes": f"{len(keys)}: {classes}" if keys else None,
        "Method": settings.get("method"),
        "Radius": radius and f"{radius * 255:g} of 255 levels",
        "Steps": noise.get("steps"),
        "Seed": str(settings.get("seed", "")) or None,
        "Weights": weights.get("name"),
        "SHA-256 of the weights": weights.get("sha256"),
        "Engine": run.get("engine"),
        "Version of tue": run.get("tool", {}).get("version"),
        "Finished": manifest.get("finished"),
    }
    return [(name, _value(fact)) for name, fact in facts.items() if fact is not None]


def _value(value: Any) -> str:
    """Return a plain fact as a person reads it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_value(part) for part in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else f"{value:,}" if type(value) is int else str(value)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _words(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")


def _percent(share: float) -> str:
    """Return a share of 0..1 in percent, in three figures at most."""
    return f"{100 * share:.3g}\N{NO-BREAK SPACE}%"


def _inside(percent: float) -> float:
    """Return a place on a line of 0..100."""
    return round(min(max(percent, 0), 100), 2)
