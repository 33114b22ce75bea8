"""Other ways to give pictures codes than `tue protect` has: trials for `unseen.py`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from benchmarks.command import run_protect
from tue_cli.images import codec
from tue_cli.weights import Weights, build, load, pack

TESTED = 500
"""Pictures a forward pass."""


def mix_codes(weights: Weights, path: Path) -> Path:
    """Write weights that have a code for each pair of codes of others, and return their path.

    A mixed code is the mean of two: of their rows in the surrogate's last layer, and of their
    embeddings in the score network.
    """
    names = weights.card.classes
    pairs = list(combinations(range(len(names)), 2))
    tensors = {
        name: array[pairs].mean(1) if _has_row_per_code(name) else array
        for name, array in weights.tensors.items()
    }
    mixed = tuple(f"{names[first]}+{names[second]}" for first, second in pairs)
    part = path.with_suffix(".part")
    part.write_bytes(pack(replace(weights.card, classes=mixed), tensors))
    part.replace(path)
    return path


def _has_row_per_code(name: str) -> bool:
    return name.startswith("surrogate.head.") or name.endswith(".film.weight")


def protect_by_content(
    source: Path,
    output: Path,
    *,
    rank: int,
    weights: str,
    device: str,
    threads: int,
    options: Sequence[str] = (),
) -> None:
    """Protect a folder of class folders as if nobody knew the classes.

    The code of a picture is the one that the surrogate finds likeliest in it; with `rank` 2 the
    second likeliest, and so on. An output that is there already stays.
    """
    if output.is_dir():
        return
    for code, files in _sort_by_content(source, rank, load(weights)).items():
        place = output.with_name(f"{output.name}-{code}")
        for file in files:
            linked = place / file.relative_to(source)
            linked.parent.mkdir(parents=True, exist_ok=True)
            if not linked.exists():
                os.link(file, linked)
        run_protect(
            place,
            place.with_name(f"{place.name}-copies"),
            weights=weights,
            device=device,
            threads=threads,
            options=[*options, "--labels", "single", "--key", code],
        )
    part = output.with_name(f"{output.name}-part")
    for folder in sorted(output.parent.glob(f"{output.name}-*-copies")):
        for file in folder.glob("*/*"):
            if file.suffix.lower() in codec.SUFFIXES:
                (part / file.parent.name).mkdir(parents=True, exist_ok=True)
                file.replace(part / file.parent.name / file.name)
    part.replace(output)


def _sort_by_content(source: Path, rank: int, weights: Weights) -> dict[str, list[Path]]:
    """Return the pictures of each code."""
    import torch

    from tue_cli.train.data import load_images

    classes, pictures, _ = load_images(source, weights.card.size)
    files = [file for name in classes for file in sorted((source / name).iterdir())]
    surrogate = build(weights, ("surrogate",))["surrogate"].eval()
    with torch.no_grad():
        logits = [
            surrogate(pictures.take_batch(part)[0])
            for part in torch.split(torch.arange(len(pictures)), TESTED)
        ]
    codes = torch.cat(logits).argsort(1, descending=True)[:, rank - 1].tolist()
    found: dict[str, list[Path]] = {}
    for file, code in zip(files, codes, strict=True):
        found.setdefault(weights.card.classes[code], []).append(file)
    return found
