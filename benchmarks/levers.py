"""What each way of making the noise buys against each attacker, beside the same controls.

    python benchmarks/levers.py --data DIR/tiny-imagenet-50b --arms ARM,ARM,...

An arm is TITLE=WEIGHTS[@nearest][+OPTION of tue protect]..., as in `published=cifar10`,
`near=cifar10@nearest` or `bare=cifar10+--score=0`; what is not said is as the command has it by
default. Ten classes (`--ten`) are protected by `tue protect`, with `@nearest` each class by itself
under the key that is nearest to what the surrogate sees in it; victims are `tue verify`'s.
`clean` and `random` are there without being asked for. `unseen.py` measures more of one set of
weights; this compares. In a minute, to try it:
`--per-class 20 --seen 300 --attacks std --results DIR`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
from unseen import TEN, score, ten_of

from tue_cli.attacks import attacks_named
from tue_cli.engine import machine
from tue_cli.jobs.evidence import Arms, Levels
from tue_cli.jobs.request import victim_name, victims_named
from tue_cli.jobs.train import load_pictures
from tue_cli.jobs.trials import groups_of
from tue_cli.jobs.trying import tried
from tue_cli.settings import VerifySettings
from tue_cli.weights import Weights, build, load

CONTROLS = ("clean", "random")


def nearest(weights: Weights, pixels: Levels, labels: np.ndarray[Any, Any]) -> list[str]:
    """Return each class's key such that all are as near as can be to what the surrogate sees."""
    import torch
    from scipy.optimize import linear_sum_assignment

    surrogate = build(weights, ("surrogate",))["surrogate"].eval()
    rows = []
    with torch.no_grad():
        for number in range(TEN):
            few = torch.from_numpy(pixels[labels == number][:64]).float() / 255
            rows.append(surrogate(few).log_softmax(1).mean(0).numpy())
    return [
        weights.card.classes[key] for key in linear_sum_assignment(np.stack(rows), maximize=True)[1]
    ]


def copies_of(
    source: Path, arm: str, pixels: Levels, labels: Any, args: argparse.Namespace
) -> Path:
    """Protect the ten classes as an arm says; a second call finds it done."""
    said, *options = arm.partition("=")[2].split("+")
    name, _, keys = said.partition("@")
    weights = load(name)
    output = source.with_name(f"{source.name}-{arm.partition('=')[0]}-{weights.sha256[:12]}")
    parts: list[tuple[Path, Path, list[str]]] = [(source, output, [])]
    if keys:
        chosen = nearest(weights, pixels, labels)
        folders = sorted(p for p in source.iterdir() if p.is_dir())
        parts = [
            (folder, output / folder.name, ["--labels", "single", "--key", key])
            for folder, key in zip(folders, chosen, strict=True)
        ]
    for folder, place, more in parts:
        record.run_protect(
            folder,
            place,
            weights=name,
            device=args.device,
            threads=args.threads,
            options=["--backend", "torch", *more, *options],
        )
    return output


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a folder with train/CLASS/ and val/CLASS/")
    add("--arms", required=True, help="TITLE=WEIGHTS[@nearest][+OPTION]..., with commas between")
    add("--ten", type=int, default=0, help="which ten classes, by name")
    add("--attacks", default="std,gray,jpeg10,at2,at4", help="of tue verify")
    add("--victim", default="resnet18:0.125", help="whom every attacker trains")
    add("--size", type=int, default=32, help="pixels a side that victims see")
    add("--per-class", type=int, default=500)
    add("--seen", type=int, default=60_000, help="pictures that a victim is shown")
    add("--adversary-steps", type=int, default=3)
    add("--seeds", type=int, default=1, help="victims of each kind")
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--name", default="levers", help="of the results file")
    add("--results", type=Path, default=record.RESULTS, help="where the results file lies")
    add("--work", type=Path, help="where pictures and copies are kept; default a temporary folder")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> None:
    """Train every victim that the results do not hold yet, the arms of an attacker together."""
    import torch

    torch.set_num_threads(args.threads)
    results = record.Results(args.results, args.name)
    results.put(benchmark="levers")
    source, held_out = ten_of(args.data, args.ten, args.per_class, args.work)
    classes, train, _ = load_pictures(source, args.size)
    _, test, _ = load_pictures(held_out, args.size)
    pixels, labels = train.pixels.numpy(), train.labels.numpy()
    noise = np.random.default_rng(0).integers(-8, 9, pixels.shape)
    noisy = (pixels + noise).clip(0, 255).astype(np.uint8)
    arms: dict[str, Levels] = {"clean": pixels, "random": noisy}
    given = {arm.partition("=")[0]: arm for arm in args.arms.split(",")}
    computer = machine(args.device)
    budget = VerifySettings(
        victims=victims_named(args.victim),
        attacks=attacks_named(args.attacks.split(",")),
        seen=args.seen,
        adversary_steps=args.adversary_steps,
        seeds=args.seeds,
    )
    cells: dict[tuple[str, str], list[record.Facts]] = {}
    for group in groups_of(budget, len(labels)):
        for title in (*CONTROLS, *given):
            said = given.get(title, "").partition("=")[2]
            weights = load(said.partition("+")[0].partition("@")[0]) if said else None
            for trial in group.trials["protected"]:
                settings = {
                    "data": args.data.resolve().name,
                    "ten": args.ten,
                    "size": args.size,
                    "per_class": args.per_class,
                    "arm": said or title,
                    "weights_sha256": weights and weights.sha256,
                    "attack": group.name,
                    "victim": victim_name(trial.victim),
                    "steps": trial.steps,
                    "adversary_steps": args.adversary_steps,
                    "seed": trial.seed,
                }
                if (known := results.find(settings)) is None:
                    if title not in arms:
                        copies = copies_of(source, given[title], pixels, labels, args)
                        arms[title] = load_pictures(copies, args.size)[1].pixels.numpy()
                    began = time.monotonic()
                    shown = Arms(
                        classes,
                        pixels,
                        noisy,
                        arms[title],
                        labels,
                        test.pixels.numpy(),
                        test.labels.numpy(),
                    )
                    found = drained(tried(trial, shown, computer))
                    figures = {
                        "title": title,
                        "accuracy": round(found["curve"][-1], 5),
                        "curve": found["curve"],
                        "train": found["train"],
                        "fitted": found["attacked"],
                        "rms": round(
                            float(((arms[title] - pixels.astype(float)) ** 2).mean() ** 0.5), 3
                        ),
                        "command": record.command_line(),
                        "hardware": record.hardware(
                            threads=args.threads,
                            dtype=str(computer.dtype).removeprefix("torch."),
                            device=args.device,
                        ),
                        "seconds": round(time.monotonic() - began, 1),
                    }
                    known = results.add(settings, figures)
                    record.note(f"{title}, {group.name}: {100 * known['accuracy']:.1f} %")
                cells.setdefault((title, group.name), []).append(known)
    record.say(tabled(cells) + "\n")


def drained(trying: Iterator[Any]) -> dict[str, Any]:
    """Run a victim's training to its end and return what became of it."""
    while True:
        try:
            next(trying)
        except StopIteration as end:
            results: dict[str, Any] = end.value[0]
            return results


def tabled(cells: dict[tuple[str, str], list[record.Facts]]) -> str:
    """Return accuracies, and in brackets how much of what could be learned was not, by arm."""
    titles = list(dict.fromkeys(title for title, _ in cells))
    attacks = list(dict.fromkeys(attack for _, attack in cells))
    means = {
        place: float(np.mean([cell["accuracy"] for cell in found]))
        for place, found in cells.items()
    }
    lines = []
    for title in titles:
        line = [title]
        for attack in attacks:
            row = {"clean": means["clean", attack], "protected": means[title, attack]}
            own = "" if title == "clean" else f" ({score(row):.0f} %)"
            line.append(f"{100 * means[title, attack]:.1f}{own}")
        lines.append(line)
    return record.table(["noise", *attacks], lines)


if __name__ == "__main__":
    record.in_work(parsed(), measure)
