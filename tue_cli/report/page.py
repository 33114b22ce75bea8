"""The report: what was done to pictures and what models learn from them, as one HTML page.

The page needs nothing but itself: no network, no script, no font. `charts` works out
the geometry; `report.html` holds every word and every mark. Names of files and classes are hostile
until escaped.
"""

from __future__ import annotations

import base64
import errno
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeGuard

from jinja2 import Environment, StrictUndefined, Template

from tue_cli.config import METHODS
from tue_cli.dataset.labels import describe_scope
from tue_cli.errors import OutputProblem
from tue_cli.images.encode import SURVIVAL_FLOOR
from tue_cli.images.thumbnails import GAIN, Thumbnails
from tue_cli.report.answer import SLOWED, STOPPED, describe_answer
from tue_cli.report.charts import (
    BOTTOM,
    LEFT,
    MAP,
    PANEL,
    RIGHT,
    TOP,
    TRAINED_ON,
    Figures,
    clip,
    describe_interval,
    format_percent,
    lay_out_curves,
    lay_out_histograms,
    lay_out_maps,
)
from tue_cli.storage.atomic import write_atomically
from tue_cli.text import escape

BAR: Final = 24
"""Height of a bar with its gap, in CSS pixels."""
ROW: Final = 22
"""Height of an attacker's row on the first screen, in CSS pixels."""
LISTED: Final = 20
"""Failures that are listed by name."""


def render_page(
    *,
    manifest: Figures,
    pictures: Sequence[Thumbnails],
    result: Figures | None = None,
    embedding: Figures | None = None,
    command: str = "",
) -> str:
    """Return the page; without a result only what was done to the pictures.

    `manifest` is what `read_manifest` returns. In `result` accuracies are of 0..1, protections of
    0..100; in `embedding` `clean` and `protected` hold points (x, y, class).
    """
    attacks = [_describe_attack(attack) for attack in (result or {}).get("attacks", ())]
    return _load_template().render(
        attacks=attacks,
        headline=result and describe_answer(result),
        curves=lay_out_curves(result) if result else [],
        maps=lay_out_maps(embedding) if embedding and embedding["clean"] else None,
        pictures=pictures,
        copies=_count_copies(manifest),
        spreads=lay_out_histograms(manifest["pictures"]),
        copy_facts=_describe_copies(manifest),
        setup=[
            (_format_name(name), _format_value(v))
            for name, v in (result or {}).get("setup", {}).items()
            if name not in ("method", "radius", "weights")  # they stand among the copies' facts
        ],
        command=command,
        trained_on=TRAINED_ON,
        bar=BAR,
        row=ROW,
        limits=(SLOWED, STOPPED),
        gain=GAIN,
        panel=PANEL,
        plot={"top": TOP, "bottom": BOTTOM, "left": LEFT, "right": RIGHT},
        map_side=MAP,
    )


def write_page(html: str, path: Path, mode: int = 0o666) -> None:
    """Write the page so that it appears whole or not at all, with a mode less the umask.

    Raises:
        OutputProblem: the folder is missing or not writable, the disk is full.
    """
    try:
        write_atomically(html.encode("utf-8"), path, mode)
    except (OSError, ValueError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputProblem(
            f"The report {escape(path)} cannot be written: {why}.",
            "Free some space and try again." if full else "Name a file in a folder that exists.",
        ) from error


@cache
def _load_template() -> Template:
    """Return the page's template, compiled once a process."""
    source = resources.files("tue_cli.report").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escape_text,
    )
    environment.filters["data"] = _encode
    return environment.from_string(source)


def _escape_text(value: Any) -> Any:
    """Spell out what text must not hold: control characters, undecodable bytes, turned writing."""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # what a macro drew is done
        return value
    if value.isprintable():  # fast for a picture's address, which is long
        return value
    return "".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in value)


def _encode(picture: bytes) -> str:
    """Return a PNG or JPEG as an address that holds the picture itself."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _describe_attack(attack: Figures) -> dict[str, Any]:
    """Return one group of bars, in percent, with the words that stand beside it."""
    bars = []
    for kind, name in TRAINED_ON.items():
        accuracy = attack.get(kind)
        if accuracy and accuracy["mean"] is not None:
            bars.append({"kind": kind, "name": name, **describe_interval(accuracy, "mean", 100, 1)})
    floor = f"{attack['floor_name']} {format_percent(attack['floor'])}"
    protection = attack.get("protection")
    doubt = attack.get("inconclusive") or ("" if protection else "protection was not measured")
    return {
        "title": attack["title"],
        "victim": attack["victim"],
        "bars": bars,
        "cells": {bar["kind"]: bar["text"] for bar in bars},
        "floor": clip(100 * attack["floor"]),
        "floor_text": floor,
        "doubt": doubt,
        "others": _describe_others(attack.get("others")),
        "protection": describe_interval(protection)["text"] if protection and not doubt else "",
        "summary": f"Accuracy after {attack['title']} of {attack['victim']}: "
        + ", ".join(f"{bar['name']} {bar['text']}" for bar in bars)
        + f"; {floor}.",
    }


def _describe_others(others: Figures | None) -> str:
    """Return what victims know of the other classes; nothing where all classes count."""
    if not others:
        return ""
    before, after = (format_percent(round(others[arm], 2)) for arm in ("clean", "protected"))
    return f"Other classes: {before} after originals, {after} after copies"


def _count_copies(manifest: Figures) -> dict[str, Any]:
    """Return how many copies there are, how many are weak, and what could not be protected."""
    records, failed = manifest["pictures"], manifest.get("summary", {}).get("failed", ())
    survivals = (record.get("survival") for record in records)
    return {
        "count": len(records),
        "weak": sum(survival is not None and survival < SURVIVAL_FLOOR for survival in survivals),
        "floor": format_percent(SURVIVAL_FLOOR),
        "failed": len(failed),
        "failures": [(entry["path"], entry["message"]) for entry in failed[:LISTED]],
    }


def _describe_copies(manifest: Figures) -> list[tuple[str, str]]:
    """Return how the copies were made; what an older manifest does not say is left out."""
    run, keys = manifest["run"], list(manifest["keys"])
    settings, weights, tool = (_read_part(run, name) for name in ("settings", "weights", "tool"))
    noise, smooth = _read_part(settings, "noise"), settings.get("smooth")
    classes = ", ".join(keys[:LISTED]) + (", …" if len(keys) > LISTED else "")
    facts = {
        "Copies": len(manifest["pictures"]),
        "Classes": f"{len(keys)}: {classes}" if keys else None,
        "Scope": " ".join(describe_scope(keys)) or None if keys else None,
        "Method": settings.get("method"),
        "Radius": _describe_bound(str(settings.get("method")), noise),
        "Steps": noise.get("steps"),
        "Noise in smooth areas": format_percent(smooth) if _is_number(smooth) else smooth,
        "Seed": str(settings.get("seed", "")) or None,
        "Weights": weights.get("name"),
        "SHA-256 of the weights": weights.get("sha256"),
        "Engine": run.get("engine"),
        "Version of tue": tool.get("version"),
        "Finished": str(manifest.get("finished", "")).replace("T", " ").replace("+00:00", " UTC")
        or None,
    }
    return [(name, _format_value(fact)) for name, fact in facts.items() if fact is not None]


def _describe_bound(name: str, noise: Figures) -> str | None:
    """Return how far pixels may move, as far as the manifest tells; a filter's noise tells none."""
    method = METHODS.get(name)
    if method is None:
        return None
    radius = method.noise.radius if method.bound == "none" else noise.get("radius")
    return method.describe_bound(radius) if _is_number(radius) else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float)


def _read_part(facts: Figures, name: str) -> Figures:
    """Return the facts under a name; none where it has none."""
    inner = facts.get(name)
    return inner if isinstance(inner, Mapping) else {}


def _format_value(value: Any) -> str:
    """Return a plain fact as a person reads it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format_value(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_format_value(part) for part in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else f"{value:,}" if type(value) is int else str(value)


def _format_name(name: str) -> str:
    if name == "tue":
        return "Version of tue"
    return name[:1].upper() + name[1:].replace("_", " ")
