"""How little a net learns from protected pictures: clean, random-noise and protected arms.

The training pictures are protected by the `tue protect` command itself; a victim is trained on the
copies, resized to each size, and tested on clean pictures held out. Same seed, same budget and same
order of pictures in every arm. Run it again with, for example,

    python -m benchmarks.protection --data DIR/tiny-imagenet-50a --classes 10 --per-class 500 \
        --sizes 32,64 --weights NAME --seeds 0,1 --name protection-tiny
    python -m benchmarks.protection --data DIR/cifar-10 --classes 10 --per-class 5000 --sizes 32 \
        --weights NAME --adversary 0,4 --name protection-cifar

where DIR/... holds train/<class>/* and val/<class>/* or test/<class>/*. In seconds, to try it:
`--classes 3 --per-class 20 --epochs 1 --width 4 --sizes 32`. A run that was cut off goes on where
it stopped; a protected folder is kept in --work and used again.

An arm is `clean`, `random` (uniform whole levels in [-8, 8] at the picture's own size, in memory),
or `protected`, with a method and options of `tue protect` behind colons: `protected:em`,
`protected:score=0`, `protected:em:weights=FILE:format=png`. `protected:keys=in-order` protects the
class folders one by one, the n-th with the n-th key, instead of leaving the choice to the command;
on CIFAR-10 that is each class's own key. With `keys=farthest` each gets the key that is farthest
from its pictures by the surrogate. The noise is the paper's, without the grayscale term and as
strong in smooth areas, unless an arm says `gray=1` or `smooth=0.25`.

Victims are those of `tue verify`. The committed figures are of an earlier trainer, this script's
own: the same net, optimizer, crops and flips, but tested in float32, and attacked on 2,000 of its
training pictures where `tue verify` takes 1,000.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import script
from benchmarks.command import KEYS, PAPERS, protect_classes
from benchmarks.rows import Row, Rows, make_key
from benchmarks.summary import format_table, summarize
from benchmarks.victims import measure_victim
from tue_cli.attacks.filters import Levels
from tue_cli.config import VictimSettings
from tue_cli.engine.torch import ComputeDevice, choose_device
from tue_cli.images import codec, resize
from tue_cli.train.data import load_images
from tue_cli.verify.dataset import VictimDataset
from tue_cli.verify.trials import Trial
from tue_cli.weights import load

BATCH, RATE = 32, 0.05
LEVELS = 8
"""Radius of the random control, in levels of 255."""


@dataclass(frozen=True)
class Arm:
    """What is done to the training pictures."""

    kind: str
    """clean, random or protected."""
    name: str
    """For the table and the results; holds no path."""
    weights: str
    options: tuple[str, ...] = ()
    """Of `tue protect`."""
    keys: str = ""
    """`in-order`, `farthest`, `nearest`, or nothing for the command's own choice."""


def parse_arm(text: str, weights: str) -> Arm:
    """Read an arm as it is written on the command line."""
    kind, *parts = text.split(":")
    if kind not in ("clean", "random", "protected") or (parts and kind != "protected"):
        raise SystemExit(f"There is no arm {text!r}: choose clean, random or protected[:…].")
    options: list[str] = []
    keys = ""
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            options += ["--method", name]
        elif name == "weights":
            weights = value
        elif name == "keys":
            if value not in KEYS:
                raise SystemExit(f"There is no choice of keys {value!r}: {', '.join(KEYS)}.")
            keys = value
        else:
            options += [f"--{name}", value]
    shown = [p if not p.startswith("weights=") else f"weights={Path(p).stem}" for p in parts]
    return Arm(kind, ":".join([kind, *shown]), weights, tuple(options), keys)


def choose_classes(data: Path, wanted: str) -> tuple[str, ...]:
    """Return the first N class folders, or those of a comma list."""
    names = sorted(p.name for p in (data / "train").iterdir() if p.is_dir())
    if wanted.isdigit():
        return tuple(names[: int(wanted)])
    listed = tuple(sorted(wanted.split(",")))
    if missing := set(listed) - set(names):
        raise SystemExit(f"{data / 'train'} has no class {', '.join(sorted(missing))}.")
    return listed


def copy_pictures(
    data: Path, classes: tuple[str, ...], per_class: int, test: int | None, work: Path
) -> Path:
    """Copy the chosen pictures to `train` and `test` of one folder below `work`; return it."""
    settings = [data.resolve().name, classes, per_class, test]
    place = work / f"pictures-{make_key({'pictures': settings})}"
    if (place / "whole").exists():
        return place
    shutil.rmtree(place, ignore_errors=True)
    held_out = next((data / name for name in ("test", "val") if (data / name).is_dir()), None)
    if held_out is None:
        raise SystemExit(f"{data} has neither a folder test nor a folder val.")
    for source, part, limit in ((data / "train", "train", per_class), (held_out, "test", test)):
        for name in classes:
            folder = place / part / name
            folder.mkdir(parents=True)
            found = sorted(
                p for p in (source / name).rglob("*") if p.suffix.lower() in codec.SUFFIXES
            )
            for path in found[:limit]:
                shutil.copy2(path, folder / path.name)
    (place / "whole").touch()
    return place


def protect_pictures(arm: Arm, pictures: Path, arguments: argparse.Namespace) -> Path:
    """Return the copies of the training pictures, made by `tue protect` if they are not there."""
    # The paper's noise, if the arm does not say otherwise: the later option counts.
    paper = ("--smooth", "1") if "--method" in arm.options else PAPERS
    options = [*paper, *arm.options, "--seed", str(arguments.protect_seed)]
    decided = {
        "pictures": pictures.name,
        "weights": load(arm.weights).sha256,
        "options": [*options, arm.keys],
        "on": arguments.device,
    }
    output: Path = arguments.work / f"protected-{make_key(decided)}"
    script.note(f"{arm.name}: tue protect")
    protect_classes(
        pictures / "train",
        output,
        weights=arm.weights,
        keys=arm.keys,
        device=arguments.device,
        threads=arguments.threads,
        options=[*options, *(["--jobs", str(arguments.jobs)] if arguments.jobs else [])],
    )
    return output


def add_random_noise(train: Path, size: int) -> Levels:
    """Decode pictures as `load_images` does, with uniform whole levels added at full size."""
    names = sorted(p.name for p in train.iterdir() if p.is_dir())
    files = [
        path
        for name in names
        for path in sorted((train / name).rglob("*"))
        if path.suffix.lower() in codec.SUFFIXES
    ]

    def add_noise(path: Path) -> NDArray[np.uint8]:
        source = codec.read(path)
        pixels = codec.decode(source).pixels
        seed = int.from_bytes(hashlib.sha256(source).digest()[:8], "big")
        levels = np.random.default_rng(seed).integers(-LEVELS, LEVELS + 1, pixels.shape)
        moved = np.clip(pixels + levels, 0, 255).astype(np.uint8)
        return np.rint(resize.resize_to_square(moved, size) * 255).astype(np.uint8)

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(add_noise, files)))


class Data:
    """What victims are trained and tested on, each arm read once."""

    def __init__(self, arguments: argparse.Namespace, classes: tuple[str, ...]) -> None:
        """`classes` are the names of the folders."""
        self._pictures = copy_pictures(
            arguments.data, classes, arguments.per_class, arguments.test_per_class, arguments.work
        )
        self._read = cache(self._read_folder)
        self._copies = cache(lambda arm: protect_pictures(arm, self._pictures, arguments))

    def make_arms(self, arm: Arm, size: int) -> VictimDataset:
        """Return the pictures of an arm at a size."""
        classes, clean, labels = self._read(self._pictures / "train", size)
        _, test, test_labels = self._read(self._pictures / "test", size)
        changed = clean
        if arm.kind == "random":
            changed = add_random_noise(self._pictures / "train", size)
        elif arm.kind == "protected":
            changed = self._read(self._copies(arm), size)[1]
        return VictimDataset(classes, clean, changed, changed, labels, test, test_labels)

    def _read_folder(self, folder: Path, size: int) -> tuple[tuple[str, ...], Levels, Any]:
        classes, pictures, failed = load_images(folder, size)
        if failed:
            raise SystemExit(f"{len(failed)} pictures cannot be read: {failed[0]}")
        return tuple(classes), pictures.pixels.numpy(), pictures.labels.numpy()


def make_settings(
    arm: Arm, size: int, adversary: float, seed: int, arguments: argparse.Namespace
) -> Row:
    """Return all that decides a victim; `adversary` is a radius in levels, 0 standard training."""
    settings = {
        "adversary": adversary,
        "adversary_steps": arguments.adversary_steps if adversary else None,
        "arm": arm.name,
        "batch": BATCH,
        "classes": list(choose_classes(arguments.data, arguments.classes)),
        "data": arguments.data.resolve().name,
        "epochs": arguments.epochs,
        "net": arguments.net,
        "per_class": arguments.per_class,
        "rate": RATE,
        "seed": seed,
        "size": size,
        "test_per_class": arguments.test_per_class,
        "width": arguments.width,
    }
    if arm.kind == "protected":
        settings["weights_sha256"] = load(arm.weights).sha256
        settings["options"] = [*arm.options, str(arguments.protect_seed)]
        settings["keys"] = arm.keys or "chosen"
    return settings


def make_trial(arm: Arm, settings: Row, pictures: int) -> Trial:
    """Return the victim that settings ask for, where there are so many training pictures."""
    return Trial(
        arm=arm.kind,
        victim=VictimSettings(settings["net"], settings["width"], BATCH, RATE),
        seed=settings["seed"],
        steps=settings["epochs"] * -(-pictures // BATCH),
        points=settings["epochs"],
        degrade="",
        mixing="",
        radius=settings["adversary"] / 255,
        adversary_steps=settings["adversary_steps"] or 0,
        other_labels=False,
        part=1.0,
    )


def summarize_arms(rows: Sequence[Row]) -> list[Row]:
    """Return each arm's figures over its seeds, by size and adversary."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        settings = {name: v for name, v in row["settings"].items() if name != "seed"}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(row)
    lines = []
    for text, members in groups.items():
        settings = json.loads(text)
        robust = [m["robust_train"] for m in members]
        lines.append(
            {
                **{name: settings[name] for name in ("arm", "size", "adversary", "epochs", "data")},
                "seeds": sorted(m["settings"]["seed"] for m in members),
                "accuracy": summarize(m["accuracy"] for m in members),
                "peak": summarize(m["peak"] for m in members),
                "seconds": summarize((m["seconds"] for m in members), 1),
                "train": summarize(m["train"] for m in members),
                "robust_train": summarize(value for value in robust if value is not None),
            }
        )
    order = {"clean": 0, "random": 1}

    def place(line: Row) -> tuple[int, float, int, str]:
        arm = line["arm"]
        return line["size"], line["adversary"], order.get(arm, 2), arm

    return sorted(lines, key=place)


def format_markdown(rows: Sequence[Row]) -> str:
    """Return the summary as a table, in percent."""

    def format_percent(figures: Row) -> str:
        if not figures["n"]:
            return "–"
        std = f" ± {100 * figures['std']:.1f}" if figures["std"] is not None else ""
        return f"{100 * figures['mean']:.1f}{std}"

    def format_ends(figures: Row) -> str:
        return f"{100 * figures['min']:.1f}–{100 * figures['max']:.1f}"

    return format_table(
        [
            "size",
            "adversary /255",
            "training pictures",
            "test accuracy %",
            "min–max",
            "best epoch %",
            "training accuracy %",
            "training, attacked %",
            "seeds",
        ],
        (
            [
                row["size"],
                f"{row['adversary']:g}",
                row["arm"],
                format_percent(row["accuracy"]),
                format_ends(row["accuracy"]),
                format_percent(row["peak"]),
                format_percent(row["train"]),
                format_percent(row["robust_train"]),
                ", ".join(str(seed) for seed in row["seeds"]),
            ]
            for row in rows
        ),
    )


def parse_levels(text: str) -> list[float]:
    """Read `0,4`."""
    return [float(part) for part in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = script.make_parser(__doc__, "protection")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="holds train/ and val/ or test/")
    add("--classes", default="10", help="the first N class folders, or a comma list")
    add("--per-class", type=int, default=500, help="training pictures of each class")
    add("--test-per-class", type=int, help="test pictures of each class; default all")
    add("--sizes", type=script.parse_numbers, default=[32, 64])
    add("--weights", required=True, help="name or file")
    add("--seeds", type=script.parse_numbers, default=[0])
    add("--epochs", type=int, default=12)
    add("--width", type=int, default=16)
    add("--net", default="resnet18")
    add("--adversary", type=parse_levels, default=[0.0], help="radii/255 of adversarial training")
    add("--adversary-steps", type=int, default=10)
    add("--arms", default="clean,random,protected")
    add("--jobs", type=int, help="of tue protect")
    add("--protect-seed", type=int, default=0)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> None:
    """Train all victims that are not in the results yet, and print the table."""
    torch.set_num_threads(arguments.threads)
    computer = choose_device(arguments.device)
    rows = script.open_rows(
        arguments,
        dtype=str(computer.dtype).removeprefix("torch."),
        device=computer.description,
    )
    arms = [parse_arm(text, arguments.weights) for text in arguments.arms.split(",")]
    data = Data(arguments, choose_classes(arguments.data, arguments.classes))
    found = [
        _measure_one(
            arm, make_settings(arm, size, adversary, seed, arguments), data, rows, computer
        )
        for size in arguments.sizes
        for adversary in arguments.adversary
        for seed in arguments.seeds
        for arm in arms
    ]
    script.say(format_markdown(summarize_arms(found)))


def _measure_one(arm: Arm, settings: Row, data: Data, rows: Rows, computer: ComputeDevice) -> Row:
    """Return a victim's row, trained now where there is none."""
    if known := rows.find("protection", settings):
        return known
    script.note(
        f"{arm.name}, {settings['size']} px, adversary {settings['adversary']:g}, "
        f"seed {settings['seed']}"
    )
    arms = data.make_arms(arm, settings["size"])
    figures = measure_victim(make_trial(arm, settings, len(arms.labels)), arms, computer)
    return rows.add("protection", settings, **figures, n=1, seed=settings["seed"])


if __name__ == "__main__":
    script.run(parse_arguments(), measure)
