"""Is `tue verify` right, and how fast is it? Four questions, each answered side by side in one run.

    python -m benchmarks.verification trainer --data DIR/cifar-10 --per-class 1000 --seeds 0,1,2
    python -m benchmarks.verification throughput [--adversary-steps 5]
    python -m benchmarks.verification quick --data DIR/cifar-10 --per-class 500
    python -m benchmarks.verification nothing --data DIR/cifar-10 --per-class 500

`trainer`: the clean control against a plain loop that shares no line with it, and random noise of
8/255, per seed. `throughput`: adversarial training against the bare PGD loop. `quick`: the command
`tue verify --budget quick` on copies that `tue protect` made, twice, for its time and its sameness.
`nothing`: plain copies, and copies whose noise has another class's key, which must be found weak.
In seconds, to try it: `--per-class 30 --seen 500 --threads 1`. DIR/... holds train/<class>/*.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import script
from benchmarks.command import TUE, build_environment, read_summary, run_protect
from benchmarks.rows import Row, Rows
from benchmarks.summary import summarize
from tue_cli.config import AdversarySettings, VictimSettings
from tue_cli.core.batches import Images
from tue_cli.dataset.manifest import MANIFEST, sha256
from tue_cli.engine.torch import choose_device
from tue_cli.noise import TueNoise
from tue_cli.verify.dataset import VictimDataset, load_victim_dataset
from tue_cli.verify.pairs import list_clean_images, split
from tue_cli.verify.victim import Attacker, Victim
from tue_cli.weights import load

PLAIN_BATCH = 64
KINDS = ("plain loop", "clean", "random")
"""Victims of `trainer`: of other code, and of `tue verify` on two of its arms."""


def copy_pictures(data: Path, per_class: int, work: Path) -> Path:
    """Copy the first pictures of each class to a folder below `work`; return it."""
    place = work / f"{data.resolve().name}-{per_class}"
    if not (place / ".whole").exists():
        for folder in sorted(p for p in (data / "train").iterdir() if p.is_dir()):
            (place / folder.name).mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.iterdir())[:per_class]:
                shutil.copy2(path, place / folder.name / path.name)
        (place / ".whole").touch()
    return place


def make_arms(source: Path, size: int) -> VictimDataset:
    """Return clean pictures and random noise, as `tue verify` holds them."""
    with ThreadPoolExecutor() as pool:
        pairs = list_clean_images(source, pool, classes=True)
        # Each is its own copy, so that random noise is drawn for it too.
        pairs = [type(p)(p.original, p.original, p.label, p.sha256) for p in pairs]
        train, held = split(pairs, 0.2, 0)
        return load_victim_dataset(
            train, held, size=size, radius=8 / 255, seed=0, pool=pool, failed=print
        )


class PlainBlock(nn.Module):
    """A basic block of ResNet, from He et al. 2016."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.skip = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features to features."""
        y = F.relu(self.norm_one(self.one(x)))
        return F.relu(self.norm_two(self.two(y)) + self.skip(x))


def measure_plain_accuracy(arms: VictimDataset, *, epochs: int, seed: int, rate: float) -> float:
    """Train a ResNet-18 of width 16 in float32 as a tutorial does, and return its test accuracy."""
    torch.manual_seed(seed)
    blocks, channels = [], 16
    for stage in range(4):
        for block in range(2):
            outputs = 16 << stage
            blocks.append(PlainBlock(channels, outputs, 2 if stage and not block else 1))
            channels = outputs
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, len(arms.classes)),
    )
    pixels = torch.from_numpy(arms.clean).float() / 255 - 0.5
    labels = torch.from_numpy(arms.labels)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    steps = epochs * math.ceil(len(labels) / PLAIN_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    for _ in range(epochs):
        order = torch.randperm(len(labels))
        for few in torch.split(order, PLAIN_BATCH):
            padded = F.pad(pixels[few], (4, 4, 4, 4), value=-0.5)
            views = []
            for picture in padded:
                top, left = (int(v) for v in torch.randint(0, 9, (2,)))
                size = pixels.shape[-1]
                view = picture[:, top : top + size, left : left + size]
                views.append(view.flip(-1) if torch.rand(()) < 0.5 else view)
            loss = F.cross_entropy(net(torch.stack(views)), labels[few])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    net.eval()
    test = torch.from_numpy(arms.test).float() / 255 - 0.5
    with torch.no_grad():
        guesses = torch.cat([net(few).argmax(1) for few in torch.split(test, 500)])
    right = guesses == torch.from_numpy(arms.test_labels)
    return float(right.float().mean())


def measure_our_accuracy(
    arms: VictimDataset, arm: str, *, epochs: int, seed: int, device: str
) -> float:
    """Train the victim that `tue verify` trains, and return its test accuracy."""
    computer = choose_device(device)
    settings = VictimSettings()
    pixels, labels = arms.select_training(arm)
    victim = Victim(
        settings,
        classes=len(arms.classes),
        size=pixels.shape[-1],
        steps=epochs * math.ceil(len(labels) / settings.batch),
        seed=seed,
        computer=computer,
    )
    pictures = Images(torch.from_numpy(pixels), torch.from_numpy(labels))
    test = Images(torch.from_numpy(arms.test), torch.from_numpy(arms.test_labels))
    return list(victim.train(pictures, test, points=1))[-1]


def compare_trainers(arguments: argparse.Namespace, rows: Rows) -> None:
    """Compare the clean control with the plain loop, and with random noise."""
    arms = make_arms(copy_pictures(arguments.data, arguments.per_class, arguments.work), 32)
    count = len(arms.labels)
    epochs = max(1, round(arguments.seen / count))
    for seed in arguments.seeds:
        for kind in KINDS:
            settings = {"kind": kind, "seed": seed, "epochs": epochs, "pictures": count}
            if not rows.is_missing("verify: trainer", settings):
                continue
            began = time.monotonic()
            if kind == "plain loop":
                rate = VictimSettings().rate
                accuracy = measure_plain_accuracy(arms, epochs=epochs, seed=seed, rate=rate)
            else:
                accuracy = measure_our_accuracy(
                    arms, kind, epochs=epochs, seed=seed, device=arguments.device
                )
            seconds = round(time.monotonic() - began, 1)
            script.note(f"{kind}, seed {seed}: {accuracy:.1%} in {seconds} s")
            rows.add(
                "verify: trainer",
                settings,
                accuracy=round(accuracy, 5),
                seed=seed,
                n=1,
                seconds=seconds,
            )


def compare_throughput(arguments: argparse.Namespace, rows: Rows) -> None:
    """Compare adversarial training with the bare PGD loop, in turns."""
    began, computer = time.monotonic(), choose_device(arguments.device)
    settings = VictimSettings()
    ratios: list[float] = []
    bare: list[float] = []
    full: list[float] = []
    adversary = AdversarySettings(radius=4 / 255, steps=arguments.adversary_steps)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (settings.batch, 3, 32, 32), generator=generator)
    labels = torch.arange(settings.batch) % 10
    pictures = Images(pixels.to(torch.uint8), labels).to(computer.device)
    rounds, steps = 9, 4
    victim = Victim(
        settings,
        classes=10,
        size=32,
        steps=(rounds + 1) * steps,
        seed=0,
        computer=computer,
        adversary=adversary,
    )
    attack = Attacker(victim.freeze_net(), adversary)
    updates = victim.run_updates(pictures)
    batch = pictures.take_batch(torch.arange(settings.batch))
    draws = torch.Generator(device=computer.device).manual_seed(0)
    for turn in range(rounds + 1):
        times = [time.perf_counter()]
        for _ in range(steps):
            attack(*batch, draws)
        times.append(time.perf_counter())
        for _ in range(steps):
            next(updates)
        times.append(time.perf_counter())
        if turn:  # the first warms up
            bare.append(steps * settings.batch / (times[1] - times[0]))
            full.append(steps * settings.batch / (times[2] - times[1]))
            ratios.append(full[-1] / bare[-1])
    rows.add(
        "verify: throughput",
        {"adversary_steps": arguments.adversary_steps},
        ratio=summarize(ratios, 3),
        bare_pgd_pictures_a_second=summarize(bare, 1),
        adversarial_training_pictures_a_second=summarize(full, 1),
        seed=0,
        n=rounds,
        seconds=round(time.monotonic() - began, 1),
    )
    script.note(f"adversarial training runs at {statistics.median(ratios):.0%} of the bare loop")


def run_verify(
    protected: Path, original: Path, attacks: str | None, arguments: argparse.Namespace
) -> tuple[dict[str, Any], float]:
    """Run the command and return its last event and its wall time."""
    command = [
        *TUE,
        "verify",
        str(protected),
        "--original",
        str(original),
        "--budget",
        "quick",
        "--device",
        arguments.device,
        "--json",
        "-q",
        *(["--attacks", attacks] if attacks else []),
    ]
    began = time.monotonic()
    finished = subprocess.run(
        command,
        env=build_environment(arguments.threads),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    facts = read_summary(finished.stdout)
    if finished.returncode or not facts:
        raise SystemExit(f"{command} ended with {finished.returncode}:\n{finished.stderr}")
    return facts, round(seconds, 1)


def get_figures(facts: dict[str, Any]) -> Row:
    """Return what a verification says, without what the clock says."""
    return {
        "headline": facts["headline"],
        "reasons": facts["reasons"],
        "attacks": {
            row["name"]: {
                **{name: row[name]["mean"] for name in ("clean", "random", "protected")},
                "fitted": row["fitted"],
                "protection": row["protection"],
                "inconclusive": row["inconclusive"],
            }
            for row in facts.get("attacks", ())
        },
    }


def protect_once(source: Path, output: Path, options: list[str], args: argparse.Namespace) -> Path:
    """Protect a folder with the shipped weights, once."""
    if not (output / MANIFEST).exists():
        run_protect(
            source,
            output,
            weights=args.weights,
            device=args.device,
            threads=args.threads,
            options=options,
        )
    return output


def time_quick(arguments: argparse.Namespace, rows: Rows) -> None:
    """Time `tue verify --budget quick`, as often as asked, and compare its figures."""
    work = arguments.work
    source = copy_pictures(arguments.data, arguments.per_class, work)
    copies = protect_once(source, work / f"{source.name}-protected", [], arguments)
    said, seconds = [], []
    for _ in range(arguments.repeat):
        facts, took = run_verify(copies, source, arguments.attacks, arguments)
        script.note(f"{facts['headline']} {took} s")
        said.append(get_figures(facts))
        seconds.append(took)
    rows.add(
        "verify: quick",
        {
            "pictures": arguments.per_class * 10,
            "gray_ratio": TueNoise().gray_ratio,
            "attacks": arguments.attacks,
            "weights_sha256": load(arguments.weights).sha256,
        },
        same_figures=all(one == said[0] for one in said) if len(said) > 1 else None,
        setup={k: v for k, v in facts["setup"].items() if k != "time"},
        verdict=said[0],
        seed=0,
        n=len(seconds),
        seconds=round(statistics.median(seconds), 1),
    )


def verify_nothing(arguments: argparse.Namespace, rows: Rows) -> None:
    """Verify copies that are no protection: the originals themselves, and shuffled keys."""
    work = arguments.work
    source = copy_pictures(arguments.data, arguments.per_class, work)
    copies = protect_once(source, work / f"{source.name}-protected", [], arguments)
    folders = {
        "plain copies": copy_originals(source, copies, work),
        "shuffled keys": shuffle_keys(source, arguments),
    }
    for kind, folder in folders.items():
        facts, seconds = run_verify(folder, source, "std", arguments)
        script.note(f"{kind}: {facts['headline']} {seconds} s")
        count = len(json.loads((folder / MANIFEST).read_text())["pictures"])
        settings = {
            "kind": kind,
            "pictures": count,
            "weights_sha256": load(arguments.weights).sha256,
        }
        rows.add(
            "verify: nothing", settings, verdict=get_figures(facts), seed=0, n=1, seconds=seconds
        )


def copy_originals(source: Path, copies: Path, work: Path) -> Path:
    """Return a folder of the originals themselves, with a manifest that calls them copies."""
    plain = work / f"{source.name}-plain"
    shutil.rmtree(plain, ignore_errors=True)
    manifest = json.loads((copies / MANIFEST).read_text())
    for entry in manifest["pictures"]:
        place = plain / entry["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / entry["source"], place)
        entry["sha256"] = entry["source_sha256"]
    (plain / MANIFEST).write_text(json.dumps(manifest))
    return plain


def shuffle_keys(source: Path, arguments: argparse.Namespace) -> Path:
    """Return copies of which each has a key drawn anew: its noise says nothing of its class."""
    names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*.*") if p.is_file())
    names = [name for name in names if "/" in name]
    classes = sorted({name.split("/")[0] for name in names})
    drawn = np.random.default_rng(0).integers(0, len(classes), len(names))
    table = arguments.work / f"{source.name}-shuffled.csv"
    with table.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "class"])
        lines.writerows((n, classes[i]) for n, i in zip(names, drawn, strict=True))
    shuffled: Path = arguments.work / f"{source.name}-shuffled-{sha256(table)[:8]}"
    protect_once(source, shuffled, ["--labels", str(table)], arguments)
    manifest = json.loads((shuffled / MANIFEST).read_text())
    for entry in manifest["pictures"]:
        entry["label"] = entry["path"].split("/")[0]
    (shuffled / MANIFEST).write_text(json.dumps(manifest))
    return shuffled


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = script.make_parser(__doc__, "verification", threads=2)
    add = parser.add_argument
    add("question", choices=tuple(QUESTIONS))
    add("--data", type=Path, help="holds train/<class>/*")
    add("--per-class", type=int, default=500)
    add("--seeds", type=script.parse_numbers, default=[0])
    add("--seen", type=int, default=80_000, help="pictures that a victim of `trainer` is shown")
    add("--adversary-steps", type=int, default=10, help="of `throughput`; quick takes 5")
    add("--attacks", help="of `quick`; default the budget's")
    add("--repeat", type=int, default=2, help="runs of `quick`")
    add("--weights", default="cifar10")
    return parser.parse_args()


QUESTIONS = {
    "trainer": compare_trainers,
    "throughput": compare_throughput,
    "quick": time_quick,
    "nothing": verify_nothing,
}


def measure(arguments: argparse.Namespace) -> None:
    """Answer one question."""
    torch.set_num_threads(arguments.threads)
    computer = choose_device(arguments.device)
    dtype = str(computer.dtype).removeprefix("torch.")
    rows = script.open_rows(arguments, dtype=dtype, device=computer.description)
    QUESTIONS[arguments.question](arguments, rows)


if __name__ == "__main__":
    script.run(parse_arguments(), measure)
