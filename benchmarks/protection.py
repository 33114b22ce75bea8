"""How little a net learns from protected pictures: clean, random-noise and protected arms.

The training pictures are protected by the `tue protect` command itself; a victim is trained on the
copies, squashed to each size, and tested on the clean pictures that it never saw. Same seed, same
budget and same order of pictures in every arm. Run it again with, for example,

    python benchmarks/protection.py --data DIR/tiny-imagenet-50a --classes 10 --per-class 500 \
        --sizes 32,64 --weights NAME --seeds 0,1 --name protection-tiny
    python benchmarks/protection.py --data DIR/cifar-10 --classes 10 --per-class 5000 --sizes 32 \
        --weights NAME --adversary 0,4 --name protection-cifar

where DIR/... holds train/<class>/* and val/<class>/* or test/<class>/*. In seconds, to try it:
`--classes 3 --per-class 20 --epochs 1 --width 4 --sizes 32`. A run that was cut off goes on where
it stopped; a protected folder is kept in --work and used again.

An arm is `clean`, `random` (uniform whole levels in [-8, 8] at the picture's own size, in memory),
or `protected`, with a method and options of `tue protect` behind colons: `protected:em`,
`protected:score=0`, `protected:em:weights=FILE:format=png`. `protected:keys=in-order` protects the
class folders one by one, the n-th with the n-th key, instead of leaving the choice to the command;
on CIFAR-10 that is each class's own key. With `keys=farthest` each gets the key that is farthest
from what the surrogate sees in it. The noise is the paper's, without a term in grey and
as much in smooth places, unless an arm says `gray=1` or `smooth=0.25`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import record
import torch
import torch.nn.functional as F
from torch import Tensor

from tue_cli.core.batches import Pictures, crop_and_flip, generator_at
from tue_cli.core.loop import Plan, Training, accuracy, fit
from tue_cli.core.losses import cross_entropy
from tue_cli.core.pgd import Term, gradient_of, pgd, uniform_start
from tue_cli.engine.torch import ComputeDevice, machine
from tue_cli.images import codec, resize
from tue_cli.nets.classifiers import Classifier, build_classifier
from tue_cli.nets.frozen import FrozenClassifier, channels_last
from tue_cli.train.data import load_pictures
from tue_cli.weights import load

BATCH, RATE = 32, 0.05
LEVELS = 8
"""Radius of the random control, in levels of 255."""
TRAVEL = 2.0
"""An adversary's whole way in radii: 10 steps of radius / 5 (METHODS.md, 5.1)."""
ATTACKED = 2000
"""On at most this many of its training pictures a victim is attacked at the end."""


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
    """`in-order`, `farthest`, or nothing for the command's own choice."""


def arm_of(text: str, weights: str) -> Arm:
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
            if value not in ("in-order", "farthest"):
                raise SystemExit(f"There is no choice of keys {value!r}: in-order or farthest.")
            keys = value
        else:
            options += [f"--{name}", value]
    shown = [p if not p.startswith("weights=") else f"weights={Path(p).stem}" for p in parts]
    return Arm(kind, ":".join([kind, *shown]), weights, tuple(options), keys)


def victim_settings(
    arguments: argparse.Namespace, classes: tuple[str, ...], dtype: torch.dtype
) -> record.Facts:
    """Return all that decides a victim but for the arm, the size, the adversary and the seed."""
    return {
        "batch": BATCH,
        "classes": list(classes),
        "data": arguments.data.resolve().name,
        "dtype": str(dtype).removeprefix("torch."),
        "epochs": arguments.epochs,
        "net": arguments.net,
        "per_class": arguments.per_class,
        "rate": RATE,
        "test_per_class": arguments.test_per_class,
        "width": arguments.width,
    }


def chosen_classes(data: Path, wanted: str) -> tuple[str, ...]:
    """Return the first N class folders, or those of a comma list."""
    names = sorted(p.name for p in (data / "train").iterdir() if p.is_dir())
    if wanted.isdigit():
        return tuple(names[: int(wanted)])
    listed = tuple(sorted(wanted.split(",")))
    if missing := set(listed) - set(names):
        raise SystemExit(f"{data / 'train'} has no class {', '.join(sorted(missing))}.")
    return listed


def copied(
    data: Path, classes: tuple[str, ...], per_class: int, test: int | None, work: Path
) -> Path:
    """Copy the chosen pictures to `train` and `test` of one folder below `work`; return it."""
    settings = [data.resolve().name, classes, per_class, test]
    place = work / f"pictures-{record.key_of({'pictures': settings})}"
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


def protected(arm: Arm, pictures: Path, arguments: argparse.Namespace) -> tuple[Path, record.Facts]:
    """Run `tue protect` on the training pictures, once; return its output and what it cost."""
    sha256 = load(arm.weights).sha256
    # The paper's noise, if the arm does not say otherwise: the later option counts.
    options = [*record.PAPERS, *arm.options, "--seed", str(arguments.protect_seed)]
    decided = {
        "pictures": pictures.name,
        "weights": sha256,
        "options": [*options, arm.keys],
        "on": arguments.device,
    }
    key = record.key_of(decided)
    if arguments.jobs is not None:
        options += ["--jobs", str(arguments.jobs)]
    output, facts = arguments.work / f"protected-{key}", arguments.work / f"protected-{key}.json"
    if not facts.exists():
        record.note(f"{arm.name}: tue protect")

        def run(source: Path, place: Path, *more: str) -> record.Facts:
            return record.run_protect(
                source,
                place,
                weights=arm.weights,
                device=arguments.device,
                threads=arguments.threads,
                options=[*options, *more],
            )

        if arm.keys:
            figures = {}
            folders = sorted(p for p in (pictures / "train").iterdir() if p.is_dir())
            names = load(arm.weights).card.classes
            if arm.keys == "farthest":
                names = record.keys_of(load(arm.weights), pictures / "train", "farthest")
            for folder, name in zip(folders, names, strict=False):
                cost = run(folder, output / folder.name, "--labels", "single", "--key", name)
                figures = {k: v + figures.get(k, 0) for k, v in cost.items() if k != "peak_mib"}
        else:
            figures = run(pictures / "train", output)
        figures |= {
            "options": options,
            "hardware": record.hardware(
                threads=arguments.threads, dtype="chosen by tue", device=arguments.device
            ),
            "pictures_a_second": round(figures["protected"] / figures["job_seconds"], 2),
            "weights": record.weights_facts(load(arm.weights)),
            **_quality(output),
        }
        facts.write_text(json.dumps(figures, sort_keys=True), encoding="utf-8")
    figures = dict(json.loads(facts.read_text(encoding="utf-8")))
    if figures["hardware"]["tue_sources"] != record.sources():
        record.note(f"{arm.name}: the copies in --work were made by another state of tue's code")
    return output, figures


def _quality(output: Path) -> record.Facts:
    manifests = [json.loads(p.read_text("utf-8")) for p in output.rglob("tue-manifest.json")]
    names = ("largest", "mean", "psnr", "ssim", "survival")
    pictures = [picture for manifest in manifests for picture in manifest["pictures"]]
    values = {name: [picture.get(name) for picture in pictures] for name in names}
    return {
        "keys": {name: key for manifest in manifests for name, key in manifest["keys"].items()},
        "quality": {
            name: record.spread(float(v) for v in values[name] if v is not None) for name in names
        },
    }


def with_random_noise(train: Path, size: int) -> Pictures:
    """Decode pictures as `load_pictures` does, with uniform whole levels added at full size."""
    names = sorted(p.name for p in train.iterdir() if p.is_dir())
    files = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((train / name).rglob("*"))
        if path.suffix.lower() in codec.SUFFIXES
    ]

    def noisy(path: Path) -> Any:
        source = codec.read(path)
        pixels = codec.decode(source).pixels
        seed = int.from_bytes(hashlib.sha256(source).digest()[:8], "big")
        levels = np.random.default_rng(seed).integers(-LEVELS, LEVELS + 1, pixels.shape)
        moved = np.clip(pixels + levels, 0, 255).astype(np.uint8)
        return np.rint(resize.resize_to_square(moved, size) * 255).astype(np.uint8)

    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(noisy, (path for path, _ in files))))
    return Pictures(torch.from_numpy(pixels), torch.tensor([label for _, label in files]))


def ascent(
    net: FrozenClassifier, pixels: Tensor, labels: Tensor, radius: float, generator: Any, steps: int
) -> Tensor:
    """Return pixels moved within `radius` so that the net's loss grows (PGD, random start)."""
    term = Term(gradient_of(cross_entropy(net, labels)), -TRAVEL * radius / steps)
    start = uniform_start(pixels, radius, generator)
    return pixels + pgd(pixels, [term], radius=radius, steps=steps, start=start)


def train_victim(
    pictures: Pictures,
    test: Pictures,
    computer: ComputeDevice,
    arguments: argparse.Namespace,
    *,
    classes: int,
    size: int,
    adversary: float,
    seed: int,
) -> Iterator[record.Facts]:
    """Train one victim; yield the accuracy after every epoch, then all figures.

    `adversary` is a radius in levels; 0 is standard training. Accuracies are those of the net in
    eval mode and float32; nets attacked are in the computer's precision.
    """
    device, dtype, radius = computer.device, computer.dtype, adversary / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build_classifier(arguments.net, classes=classes, width=arguments.width, size=size)
    channels_last(net.to(device))
    an_epoch = -(-len(pictures) // BATCH)
    plan = Plan(
        steps=an_epoch * arguments.epochs,
        batch=BATCH,
        rate=RATE,
        optimizer="sgd",
        seed=seed,
        stream="victim",
    )
    training = Training(net, plan)
    pictures, test = pictures.to(device), test.to(device)

    def prepare(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        pixels = crop_and_flip(pixels, generator)
        if radius:
            surrogate, steps = FrozenClassifier(net, dtype), arguments.adversary_steps
            pixels = ascent(surrogate, pixels, labels, radius, generator, steps)
        return pixels, labels

    def loss(pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = net(pixels.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), labels)

    began, spent, curve, losses = time.monotonic(), 0.0, [], []
    for value in fit(training, pictures, loss=loss, prepare=prepare):
        losses.append(float(value))
        if training.step % an_epoch:
            continue
        spent += time.monotonic() - began
        curve.append(round(accuracy(FrozenClassifier(net, torch.float32), test), 5))
        yield {"curve": curve, "loss": sum(losses[-an_epoch:]) / an_epoch}
        began = time.monotonic()
    yield {
        "accuracy": curve[-1],
        "curve": curve,
        "loss": round(sum(losses[-an_epoch:]) / an_epoch, 5),
        "peak": max(curve),
        "peak_epoch": 1 + curve.index(max(curve)),
        "seconds": round(spent, 1),
        "test_pictures": len(test),
        "train_accuracy": round(accuracy(FrozenClassifier(net, torch.float32), pictures), 5),
        "train_adversarial_accuracy": attacked(
            net, pictures, computer, radius, arguments.adversary_steps
        )
        if radius
        else None,
        "train_pictures": len(pictures),
    }


def attacked(
    net: Classifier, pictures: Pictures, computer: ComputeDevice, radius: float, steps: int
) -> float:
    """Return the share of (some of) the training pictures that are still right under attack."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:ATTACKED]
    order = order.to(computer.device)
    sample = Pictures(pictures.pixels[order], pictures.labels[order])
    victim, right = FrozenClassifier(net, computer.dtype), 0
    for place in range(0, len(sample), BATCH):
        pixels, labels = sample.batch(torch.arange(place, min(place + BATCH, len(sample))))
        generator = generator_at(0, "attack", place, computer.device)
        moved = ascent(victim, pixels, labels, radius, generator, steps)
        with torch.no_grad():
            right += int((victim(moved).argmax(1) == labels).sum())
    return round(right / len(sample), 5)


def summary(cells: list[record.Facts]) -> list[record.Facts]:
    """Return each arm's figures over its seeds, by size and adversary."""
    groups: dict[str, list[record.Facts]] = {}
    for cell in cells:
        settings = {name: v for name, v in cell["settings"].items() if name != "seed"}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(cell)
    rows = []
    for text, members in groups.items():
        settings = json.loads(text)
        adversarial = [m["train_adversarial_accuracy"] for m in members]
        rows.append(
            {
                **{name: settings[name] for name in ("arm", "size", "adversary", "epochs", "data")},
                "seeds": sorted(m["settings"]["seed"] for m in members),
                "accuracy": record.spread(m["accuracy"] for m in members),
                "peak": record.spread(m["peak"] for m in members),
                "seconds": record.spread((m["seconds"] for m in members), 1),
                "train_accuracy": record.spread(m["train_accuracy"] for m in members),
                "train_adversarial_accuracy": record.spread(
                    value for value in adversarial if value is not None
                ),
            }
        )
    order = {"clean": 0, "random": 1}
    return sorted(rows, key=lambda r: (r["size"], r["adversary"], order.get(r["arm"], 2), r["arm"]))


def markdown(rows: list[record.Facts]) -> str:
    """Return the summary as a table, in percent."""

    def percent(figures: record.Facts) -> str:
        if not figures["n"]:
            return "–"
        std = f" ± {100 * figures['std']:.1f}" if figures["std"] is not None else ""
        return f"{100 * figures['mean']:.1f}{std}"

    def ends(figures: record.Facts) -> str:
        return f"{100 * figures['min']:.1f}–{100 * figures['max']:.1f}"

    return record.table(
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
                percent(row["accuracy"]),
                ends(row["accuracy"]),
                percent(row["peak"]),
                percent(row["train_accuracy"]),
                percent(row["train_adversarial_accuracy"]),
                ", ".join(str(seed) for seed in row["seeds"]),
            ]
            for row in rows
        ),
    )


def numbers(text: str) -> list[int]:
    """Read `32,64`."""
    return [int(part) for part in text.split(",")]


def levels(text: str) -> list[float]:
    """Read `0,4`."""
    return [float(part) for part in text.split(",")]


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="holds train/ and val/ or test/")
    add("--classes", default="10", help="the first N class folders, or a comma list")
    add("--per-class", type=int, default=500, help="training pictures of each class")
    add("--test-per-class", type=int, help="test pictures of each class; default all")
    add("--sizes", type=numbers, default=[32, 64])
    add("--weights", required=True, help="name or file")
    add("--seeds", type=numbers, default=[0])
    add("--epochs", type=int, default=12)
    add("--width", type=int, default=16)
    add("--net", default="resnet18")
    add("--adversary", type=levels, default=[0.0], help="radii/255 of adversarial training")
    add("--adversary-steps", type=int, default=10)
    add("--arms", default="clean,random,protected")
    add("--name", default="protection", help="of the results file")
    add("--results", type=Path, default=record.RESULTS, help="where the results file lies")
    add("--work", type=Path, help="where copies are kept; default a temporary folder")
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--jobs", type=int, help="of tue protect")
    add("--protect-seed", type=int, default=0)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> None:
    """Train all victims that are not in the results yet."""
    torch.set_num_threads(arguments.threads)
    computer = machine(arguments.device)
    arms = [arm_of(text, arguments.weights) for text in arguments.arms.split(",")]
    classes = chosen_classes(arguments.data, arguments.classes)
    pictures = copied(
        arguments.data, classes, arguments.per_class, arguments.test_per_class, arguments.work
    )
    fixed = victim_settings(arguments, classes, computer.dtype)
    results = record.Results(
        arguments.results, arguments.name, replacing=("weights_sha256", "options")
    )
    weights = load(arguments.weights)
    where = record.hardware(
        threads=arguments.threads, dtype=fixed["dtype"], device=computer.description
    )
    results.put(
        benchmark="protection",
        classes_that_the_weights_saw=sorted(set(classes) & set(weights.card.classes)),
        command=record.command_line(),
        hardware=where,
        weights=record.weights_facts(weights),
    )
    outputs: dict[str, Path] = {}
    for arm in arms:
        if arm.kind == "protected":
            outputs[arm.name], cost = protected(arm, pictures, arguments)
            former = results.read().get("protect", {})
            results.put(protect={**former, arm.name: cost})

    for size in arguments.sizes:
        loaded: dict[str, Pictures] = {}

        def pictures_of(arm: Arm, size: int = size, loaded: dict[str, Pictures] = loaded) -> Any:
            if arm.name not in loaded:
                if arm.kind == "random":
                    loaded[arm.name] = with_random_noise(pictures / "train", size)
                else:
                    _, loaded[arm.name], failed = load_pictures(
                        outputs.get(arm.name, pictures / "train"), size
                    )
                    if failed:
                        raise SystemExit(f"{len(failed)} pictures cannot be read: {failed[0]}")
            return loaded[arm.name]

        _, test, _ = load_pictures(pictures / "test", size)
        for adversary in arguments.adversary:
            for seed in arguments.seeds:
                for arm in arms:
                    settings = {
                        **fixed,
                        "adversary": adversary,
                        "adversary_steps": arguments.adversary_steps if adversary else None,
                        "arm": arm.name,
                        "seed": seed,
                        "size": size,
                    }
                    if arm.kind == "protected":
                        settings["weights_sha256"] = load(arm.weights).sha256
                        settings["options"] = [*arm.options, str(arguments.protect_seed)]
                        settings["keys"] = arm.keys or "chosen"
                    if results.find(settings):
                        continue
                    title = f"{arm.name}, {size} px, adversary {adversary:g}, seed {seed}"
                    record.note(title)
                    figures: record.Facts = {}
                    began = time.monotonic()
                    for figures in train_victim(
                        cast(Pictures, pictures_of(arm)),
                        test,
                        computer,
                        arguments,
                        classes=len(classes),
                        size=size,
                        adversary=adversary,
                        seed=seed,
                    ):
                        if "accuracy" not in figures:
                            epoch, last = len(figures["curve"]), figures["curve"][-1]
                            record.note(f"  epoch {epoch}: {100 * last:.1f} %")
                    wall = round(time.monotonic() - began, 1)
                    results.add(settings, {**figures, "hardware": where, "wall_seconds": wall})
                    results.put(summary=summary(results.cells()))
    rows = summary(results.cells())
    results.put(summary=rows)
    record.say(markdown(rows))


if __name__ == "__main__":
    record.in_work(parsed(), measure)
