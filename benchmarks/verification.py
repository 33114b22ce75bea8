"""Is `tue verify` right, and how fast is it? Four questions, each answered side by side in one run.

    python benchmarks/verification.py trainer --data DIR/cifar-10 --per-class 1000 --seeds 0,1,2
    python benchmarks/verification.py throughput [--adversary-steps 5]
    python benchmarks/verification.py quick --data DIR/cifar-10 --per-class 500
    python benchmarks/verification.py nothing --data DIR/cifar-10 --per-class 500

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
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import record
import torch
import torch.nn.functional as F
from torch import nn

from tue_cli.config import AdversarySettings, VictimSettings
from tue_cli.core.batches import Pictures
from tue_cli.dataset.manifest import MANIFEST, sha256
from tue_cli.engine.torch import machine
from tue_cli.noise import TueNoise
from tue_cli.verify.dataset import VictimDataset, load_victim_dataset
from tue_cli.verify.pairs import list_clean_pictures, split
from tue_cli.verify.victim import Attacker, Victim

PLAIN_BATCH = 64


def chosen(data: Path, per_class: int, work: Path) -> Path:
    """Copy the first pictures of each class to a folder below `work`; return it."""
    place = work / f"{data.resolve().name}-{per_class}"
    if not (place / ".whole").exists():
        for folder in sorted(p for p in (data / "train").iterdir() if p.is_dir()):
            (place / folder.name).mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.iterdir())[:per_class]:
                shutil.copy2(path, place / folder.name / path.name)
        (place / ".whole").touch()
    return place


def arms_of(source: Path, size: int) -> VictimDataset:
    """Return clean pictures and random noise, as `tue verify` holds them."""
    with ThreadPoolExecutor() as pool:
        pairs = list_clean_pictures(source, pool, classes=True)
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


def plain_accuracy(arms: VictimDataset, *, epochs: int, seed: int, rate: float) -> float:
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
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    test = torch.from_numpy(arms.test).float() / 255 - 0.5
    with torch.no_grad():
        guesses = torch.cat([net(few).argmax(1) for few in torch.split(test, 500)])
    right = guesses == torch.from_numpy(arms.test_labels)
    return float(right.float().mean())


def our_accuracy(arms: VictimDataset, arm: str, *, epochs: int, seed: int, device: str) -> float:
    """Train the victim that `tue verify` trains, and return its test accuracy."""
    computer = machine(device)
    settings = VictimSettings()
    pixels, labels = arms.training(arm)
    victim = Victim(
        settings,
        classes=len(arms.classes),
        size=pixels.shape[-1],
        steps=epochs * math.ceil(len(labels) / settings.batch),
        seed=seed,
        computer=computer,
    )
    pictures = Pictures(torch.from_numpy(pixels), torch.from_numpy(labels))
    test = Pictures(torch.from_numpy(arms.test), torch.from_numpy(arms.test_labels))
    return list(victim.train(pictures, test, points=1))[-1]


def trainer(arguments: argparse.Namespace, work: Path, results: record.Results) -> None:
    """Compare the clean control with the plain loop, and with random noise."""
    arms = arms_of(chosen(arguments.data, arguments.per_class, work), 32)
    count = len(arms.labels)
    epochs = max(1, round(arguments.seen / count))
    for seed in arguments.seeds:
        for kind in ("plain loop", "clean", "random"):
            settings = {
                "question": "trainer",
                "kind": kind,
                "seed": seed,
                "epochs": epochs,
                "pictures": count,
            }
            if results.find(settings):
                continue
            began = time.monotonic()
            if kind == "plain loop":
                rate = VictimSettings().rate
                accuracy = plain_accuracy(arms, epochs=epochs, seed=seed, rate=rate)
            else:
                accuracy = our_accuracy(
                    arms, kind, epochs=epochs, seed=seed, device=arguments.device
                )
            seconds = round(time.monotonic() - began, 1)
            record.note(f"{kind}, seed {seed}: {accuracy:.1%} in {seconds} s")
            results.add(settings, {"accuracy": round(accuracy, 5), "seconds": seconds})
    cells = [c for c in results.cells() if c["settings"]["question"] == "trainer"]
    figures = {
        kind: record.spread(c["accuracy"] for c in cells if c["settings"]["kind"] == kind)
        for kind in ("plain loop", "clean", "random")
    }
    seconds = {
        kind: record.spread((c["seconds"] for c in cells if c["settings"]["kind"] == kind), 1)
        for kind in ("plain loop", "clean", "random")
    }
    means = {kind: figures[kind]["mean"] for kind in figures}
    results.put(
        trainer={
            "pictures": count,
            "epochs": epochs,
            "accuracy": figures,
            "seconds": seconds,
            "clean_minus_plain_points": round(100 * (means["clean"] - means["plain loop"]), 2),
            "random_costs_points": round(100 * (means["clean"] - means["random"]), 2),
        }
    )


def throughput(arguments: argparse.Namespace, results: record.Results) -> None:
    """Compare adversarial training with the bare PGD loop, in turns."""
    computer = machine(arguments.device)
    settings, ratios, bare, full = VictimSettings(), [], [], []
    adversary = AdversarySettings(radius=4 / 255, steps=arguments.adversary_steps)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (settings.batch, 3, 32, 32), generator=generator)
    labels = torch.arange(settings.batch) % 10
    pictures = Pictures(pixels.to(torch.uint8), labels).to(computer.device)
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
    attack = Attacker(victim.frozen(), adversary)
    updates = victim.updates(pictures)
    batch = pictures.batch(torch.arange(settings.batch))
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
    name = "throughput_of_quick" if arguments.adversary_steps < 10 else "throughput"
    facts = {
        name: {
            "adversary_steps": arguments.adversary_steps,
            "ratio": record.spread(ratios, 3),
            "bare_pgd_pictures_a_second": record.spread(bare, 1),
            "adversarial_training_pictures_a_second": record.spread(full, 1),
        }
    }
    results.put(**facts)
    record.note(f"adversarial training runs at {statistics.median(ratios):.0%} of the bare loop")


def verified(protected: Path, original: Path, attacks: str | None, arguments: argparse.Namespace):
    """Run the command and return its last event and its wall time."""
    command = [
        *record.TUE,
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
        env=record.environment(arguments.threads),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    facts = record.summary_of(finished.stdout)
    if finished.returncode or not facts:
        raise SystemExit(f"{command} ended with {finished.returncode}:\n{finished.stderr}")
    return facts, round(seconds, 1)


def figures_of(facts: record.Facts) -> record.Facts:
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
                "curves": row["curves"],
            }
            for row in facts.get("attacks", ())
        },
    }


def protected_of(source: Path, output: Path, options: list[str], args: argparse.Namespace) -> Path:
    """Protect a folder with the shipped weights, once."""
    if not (output / MANIFEST).exists():
        record.run_protect(
            source,
            output,
            weights=args.weights,
            device=args.device,
            threads=args.threads,
            options=options,
        )
    return output


def quick(arguments: argparse.Namespace, work: Path, results: record.Results) -> None:
    """Time `tue verify --budget quick`, as often as asked, and compare its figures."""
    source = chosen(arguments.data, arguments.per_class, work)
    copies = protected_of(source, work / f"{source.name}-protected", [], arguments)
    said, seconds = [], []
    for _ in range(arguments.repeat):
        facts, took = verified(copies, source, arguments.attacks, arguments)
        record.note(f"{facts['headline']} {took} s")
        said.append(figures_of(facts))
        seconds.append(took)
    results.put(
        quick={
            "pictures": arguments.per_class * 10,
            "gray_ratio": TueNoise().gray_ratio,
            "runs": len(seconds),
            "seconds": record.spread(seconds, 1),
            "same_figures": all(one == said[0] for one in said) if len(said) > 1 else None,
            "setup": {k: v for k, v in facts["setup"].items() if k != "time"},
            **said[0],
        }
    )


def nothing(arguments: argparse.Namespace, work: Path, results: record.Results) -> None:
    """Verify copies that are no protection: the originals themselves, and shuffled keys."""
    source = chosen(arguments.data, arguments.per_class, work)
    copies = protected_of(source, work / f"{source.name}-protected", [], arguments)

    plain = work / f"{source.name}-plain"
    shutil.rmtree(plain, ignore_errors=True)
    manifest = json.loads((copies / MANIFEST).read_text())
    for entry in manifest["pictures"]:
        place = plain / entry["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / entry["source"], place)
        entry["sha256"] = entry["source_sha256"]
    (plain / MANIFEST).write_text(json.dumps(manifest))

    # Every picture's key is drawn anew, so that the noise says nothing of its class.
    names = sorted(p.relative_to(source).as_posix() for p in source.rglob("*.*") if p.is_file())
    names = [name for name in names if "/" in name]
    classes = sorted({name.split("/")[0] for name in names})
    drawn = np.random.default_rng(0).integers(0, len(classes), len(names))
    table = work / f"{source.name}-shuffled.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "class"])
        rows.writerows((n, classes[i]) for n, i in zip(names, drawn, strict=True))
    shuffled = work / f"{source.name}-shuffled-{sha256(table)[:8]}"
    protected_of(source, shuffled, ["--labels", str(table)], arguments)
    manifest = json.loads((shuffled / MANIFEST).read_text())
    for entry in manifest["pictures"]:
        entry["label"] = entry["path"].split("/")[0]
    (shuffled / MANIFEST).write_text(json.dumps(manifest))

    for name, folder in (("plain_copies", plain), ("shuffled_keys", shuffled)):
        facts, seconds = verified(folder, source, "std", arguments)
        record.note(f"{name}: {facts['headline']} {seconds} s")
        results.put(**{name: {"pictures": len(names), "seconds": seconds, **figures_of(facts)}})


def main() -> None:
    """Answer one question."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("question", choices=("trainer", "throughput", "quick", "nothing"))
    add("--data", type=Path, help="holds train/<class>/*")
    add("--per-class", type=int, default=500)
    add("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0])
    add("--seen", type=int, default=80_000, help="pictures that a victim of `trainer` is shown")
    add("--adversary-steps", type=int, default=10, help="of `throughput`; quick takes 5")
    add("--attacks", help="of `quick`; default the budget's")
    add("--repeat", type=int, default=2, help="runs of `quick`")
    add("--weights", default="cifar10")
    add("--device", default="cpu")
    add("--threads", type=int, default=2)
    add("--name", default="verification", help="of the results file")
    add("--results", type=Path, default=record.RESULTS)
    add("--work", type=Path, help="where copies are kept; default a temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = record.Results(arguments.results, arguments.name)
    computer = machine(arguments.device)
    where = record.hardware(
        threads=arguments.threads,
        dtype=str(computer.dtype).removeprefix("torch."),
        device=computer.description,
    )
    results.put(**{f"{arguments.question}_hardware": where})
    results.put(**{f"{arguments.question}_command": record.command_line()})
    with tempfile.TemporaryDirectory(prefix="tue-verification-") as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if arguments.question == "trainer":
            trainer(arguments, work, results)
        elif arguments.question == "throughput":
            throughput(arguments, results)
        elif arguments.question == "quick":
            quick(arguments, work, results)
        else:
            nothing(arguments, work, results)


if __name__ == "__main__":
    main()
