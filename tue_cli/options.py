"""Options that several commands share, and what the words given to them mean."""

from __future__ import annotations

import math
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tue_cli.config import (
    METHODS,
    RECIPES,
    TRAININGS,
    NoiseSettings,
    ProtectSettings,
    TrainSettings,
)
from tue_cli.errors import BadSetting
from tue_cli.storage.reading import MOST_LIST

NAMES = ", ".join(METHODS)
PROTECT, TRAIN = ProtectSettings(), TrainSettings()

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Name every file.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Device = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda, cuda:N or mps; a device named here is used or it fails."),
]

Score = Annotated[
    float | None,
    typer.Option(help="tue: part of the score network, alpha_s / alpha_u; 0 leaves it out."),
]
Gray = Annotated[
    float | None,
    typer.Option(
        help="tue: part of the surrogate's term in grey; 0 leaves it out, as in the paper."
    ),
]
ScoreMode = Annotated[str | None, typer.Option(help="tue: norm (the paper's line 9) or ascent.")]
Samples = Annotated[
    int | None, typer.Option(help="Random shifts and flips a step; default: 5 for rem, else 1.")
]
InnerRadius = Annotated[
    float | None, typer.Option(help="rem: radius of its inner adversary, in levels of 255.")
]
InnerSteps = Annotated[
    int | None, typer.Option(help="rem: steps of its inner adversary; 0 is the method sem.")
]


def noise_of(
    method: str,
    *,
    radius: float | None,
    steps: int | None,
    score: float | None,
    score_mode: str | None,
    gray: float | None,
    samples: int | None,
    inner_radius: float | None,
    inner_steps: int | None,
) -> NoiseSettings:
    """Return a method's noise, but for what was given; radii in levels of 255.

    Raises:
        BadSetting: a radius was given for a method that has none.
    """
    # An unknown method is refused by the job.
    known = METHODS.get(method, METHODS["tue"])
    if known.bound == "none" and radius is not None:
        raise BadSetting(f"{method} is a filter, which has no radius.", "Leave out --radius.")
    given = {
        "radius": None if radius is None else radius / 255,
        "steps": steps,
        "score_ratio": score,
        "score_mode": score_mode,
        "gray_ratio": gray,
        "samples": samples,
        "inner_radius": None if inner_radius is None else inner_radius / 255,
        "inner_steps": inner_steps,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(known.noise, **changes)


def recipe_of(method: str | None, recipe: str | None) -> str:
    """Return the recipe that was asked for, by its name or by the method that takes its weights.

    Raises:
        BadSetting: a method that has no net, or takes no weights of that recipe.
    """
    if recipe is not None:
        fits = method is None or (method in METHODS and recipe in METHODS[method].recipes)
        if not fits and recipe in RECIPES:
            raise BadSetting(
                f"{method} takes no weights of the recipe {recipe}.", "Leave one of the two out."
            )
        return recipe
    method = method or TRAIN.method
    if method not in METHODS:
        return method  # which the job refuses, where there is no such recipe either
    if not METHODS[method].recipes:
        raise BadSetting(f"{method} has no net to train.", "Run `tue protect` at once.")
    return METHODS[method].recipes[0]


def training_of(preset: str, sizes: dict[str, int | None]) -> TrainSettings:
    """Return a preset's training, but for the sizes that were given.

    Raises:
        BadSetting: there is no such preset.
    """
    if preset not in TRAININGS:
        raise BadSetting(
            f"There is no preset {preset!r}.", f"Choose one of {', '.join(TRAININGS)}."
        )
    given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    return replace(TRAININGS[preset], **given)


def folder_of(text: str) -> Path:
    """Return the folder that -o names.

    Raises:
        BadSetting: an empty name, which would be the folder that one is in.
    """
    if not text:
        raise BadSetting("The output folder -o is empty.", "Write . for the folder you are in.")
    return Path(text)


def paths_of(paths: list[str]) -> tuple[Path, ...]:
    """Replace - by the paths that stdin lists.

    Raises:
        BadSetting: an empty path, or no path in the list.
    """
    result: list[Path] = []
    for path in paths:
        if not path:
            raise BadSetting("A path is empty.", "Write . for the folder you are in.")
        if path != "-":
            result.append(Path(path))
            continue
        if sys.stdin is None:
            raise BadSetting("There is no stdin to read a list from.", "Name the pictures.")
        data = sys.stdin.buffer.read(MOST_LIST + 1)
        if len(data) > MOST_LIST:
            raise BadSetting(
                f"The list on stdin has more than {MOST_LIST:,} bytes, the most that is read.",
                "Write one path a line, or name the folder that holds the pictures.",
            )
        lines = data.split(b"\0") if b"\0" in data else data.splitlines()
        result += [Path(os.fsdecode(line)) for line in lines if line]
    if not result:
        raise BadSetting("The list on stdin names no path.", "Write one path a line.")
    return tuple(result)


def lasting(arguments: list[str]) -> str:
    """Return the command that trains the same weights from the start, in one go."""
    kept = [a for a in arguments if a != "--resume" and not a.startswith("--max-time=")]
    if "--max-time" in kept:
        place = kept.index("--max-time")
        del kept[place : place + 2]
    return shlex.join(["tue", *kept])


def seconds_of(text: str) -> float:
    """Read a length of time as people write it: 90s, 30m or 2h.

    Raises:
        BadSetting: it is none.
    """
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        value = float(text[:-1]) * (unit or 0)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise BadSetting(f"{text!r} is no length of time.", "Write 90s, 30m or 2h.")
    return value
