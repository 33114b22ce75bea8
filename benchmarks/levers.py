"""What each way of making the noise buys against each attacker, beside the same controls.

    python benchmarks/levers.py --data DIR/tiny-imagenet-50b --arms ARM,ARM,...

An arm is TITLE=WEIGHTS[@farthest][+OPTION of tue protect]..., as in `now=cifar10`,
`far=cifar10@farthest` or `bare=cifar10+--score=0`; what is not said is as the command has it by
default. Ten classes (`--ten`) are protected by `tue protect`, with `@farthest` each class by itself
under the key that is farthest from what the surrogate sees in it; victims are `tue verify`'s.
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
from unseen import score, ten_of

from tue_cli.attacks import attacks_named
from tue_cli.engine import machine
from tue_cli.jobs.evidence import Arms
from tue_cli.jobs.request import victim_name, victims_named
from tue_cli.jobs.train import load_pictures
from tue_cli.jobs.trials import groups_of
from tue_cli.jobs.trying import tried
from tue_cli.settings import VerifySettings
from tue_cli.weights import load

CONTROLS = ("clean", "random")


def copies_of(source: Path, said: str, args: argparse.Namespace) -> Path:
    """Protect the ten classes as an arm says; a second call finds it done."""
    named, *options = said.split("+")
    name, _, keys = named.partition("@")
    weights = load(name)
    told = record.key_of({"arm": said, "weights": weights.sha256})
    output = source.with_name(f"{source.name}-{told[:12]}")
    parts: list[tuple[Path, Path, list[str]]] = [(source, output, [])]
    if keys:
        folders = sorted(p for p in source.iterdir() if p.is_dir())
        parts = [
            (folder, output / folder.name, ["--labels", "single", "--key", key])
            for folder, key in zip(folders, record.farthest(weights, source), strict=True)
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


def arms_of(text: str) -> dict[str, str]:
    """Return what each arm is, by its title, the controls first."""
    given = dict(arm.partition("=")[::2] for arm in text.split(","))
    if wrong := [title for title, said in given.items() if not said or title in CONTROLS]:
        raise SystemExit(f"{wrong[0]!r} is no arm: write TITLE=WEIGHTS, and no title of a control.")
    return {**dict.fromkeys(CONTROLS, ""), **given}


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a folder with train/CLASS/ and val/CLASS/")
    add("--arms", required=True, help="TITLE=WEIGHTS[@farthest][+OPTION]..., with commas between")
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
    arms = {"clean": pixels, "random": noisy}
    given = arms_of(args.arms)
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
        for title, said in given.items():
            weights = load(said.partition("+")[0].partition("@")[0]) if said else None
            for trial in group.trials["protected"]:
                settings = {
                    "data": args.data.resolve().name,
                    "ten": args.ten,
                    "size": args.size,
                    "per_class": args.per_class,
                    "title": title,
                    "arm": said,
                    "weights_sha256": weights and weights.sha256,
                    "attack": group.name,
                    "victim": victim_name(trial.victim),
                    "steps": trial.steps,
                    "adversary_steps": args.adversary_steps,
                    "seed": trial.seed,
                }
                if (known := results.find(settings)) is None:
                    if title not in arms:
                        copies = copies_of(source, said, args)
                        arms[title] = load_pictures(copies, args.size)[1].pixels.numpy()
                    began = time.monotonic()
                    shown = Arms(
                        classes=classes,
                        clean=pixels,
                        protected=arms[title],
                        random=noisy,
                        labels=labels,
                        test=test.pixels.numpy(),
                        test_labels=test.labels.numpy(),
                    )
                    found = drained(tried(trial, shown, computer))
                    figures = {
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
    attacks = list(dict.fromkeys(attack for _, attack in cells))
    means = {
        place: float(np.mean([cell["accuracy"] for cell in found]))
        for place, found in cells.items()
    }
    # The controls first, then the worst against the first attacker; names decide between equals.
    given = {title for title, _ in cells} - set(CONTROLS)
    titles = [*CONTROLS, *sorted(given, key=lambda title: (-means[title, attacks[0]], title))]
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
