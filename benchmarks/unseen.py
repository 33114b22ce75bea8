"""Does the protection hold on classes, sizes and attackers that the weights never met?

    python benchmarks/unseen.py --data DIR/tiny-imagenet-50b --weights NAME [--tens 0,1]

Ten classes at a time (`--tens`: which tens, by name) are protected by the `tue protect` command
with its defaults, on torch; then `tue verify`'s own job trains victims on the originals, on random
noise and on the copies, at each of `--sizes`, and tests them on DIR/val. Weights whose training saw
any of these classes prove nothing here: those of CIFAR-10 and of tiny-imagenet-50a saw none.

A column's score is (clean - protected) / (clean - chance), of accuracies averaged over tens and
seeds (where half is protected, the clean half alone teaches much of that); the lowest column is the
figure to raise and is printed last. A column whose adversarial victims know less than half of their
own attacked training pictures says nothing and is marked *. In seconds, to try it:
`--per-class 20 --seen 300 --sizes 32 --seeds 1 --attacks std,gray --results DIR`.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import record

from tue_cli.attacks import attacks_named
from tue_cli.engine import machine
from tue_cli.events import Advanced, Done
from tue_cli.files.manifest import MANIFEST
from tue_cli.jobs.request import VerifySpec, victim_name, victims_named
from tue_cli.jobs.verify import verify
from tue_cli.settings import BUDGETS, VictimSettings
from tue_cli.weights import load

ATTACKS = "std,gray,jpeg10,jpeg50,jpeg75,resize,blur,ueraser,part50,at2,at4"
ARMS = ("clean", "random", "protected")
TEN = 10


def ten_of(data: Path, number: int, per_class: int, work: Path) -> tuple[Path, Path]:
    """Copy ten classes below `work`, so many training pictures of each; return train and test."""
    part = next(name for name in ("val", "test") if (data / name).is_dir())
    classes = sorted(p.name for p in (data / "train").iterdir())[TEN * number : TEN * (number + 1)]
    if len(classes) < TEN:
        raise SystemExit(f"{data} has no ten number {number}.")
    place = work / f"{data.resolve().name}-{number}-{per_class}"
    for kind, most in (("train", per_class), (part, None)):
        for name in classes:
            target = place / kind / name
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted((data / kind / name).iterdir())[:most]:
                if not (target / path.name).exists():
                    shutil.copy2(path, target / path.name)
    return place / "train", place / part


def copies_of(source: Path, arguments: argparse.Namespace, sha256: str) -> Path:
    """Protect a folder by the command, as it is by default, once.

    Another run would change the time in the manifest, and `tue verify` knows its victims by that.
    """
    output = source.with_name(f"{source.name}-{sha256[:12]}")
    if (output / MANIFEST).exists():
        return output
    record.run_protect(
        source,
        output,
        weights=arguments.weights,
        device=arguments.device,
        threads=arguments.threads,
        options=["--backend", "torch"],
    )
    return output


def measured(
    spec: VerifySpec, victims: Sequence[VictimSettings], attacks: Sequence[str], title: str
) -> list[record.Facts]:
    """Return the rows of `tue verify`: n victims an arm for each attacker and kind of victim."""
    spec = replace(
        spec, settings=replace(spec.settings, victims=tuple(victims), attacks=tuple(attacks))
    )
    facts: record.Facts = {}
    for event in verify(spec):
        if isinstance(event, Advanced):
            record.note(
                f"{title}: {event.done} of {event.total} victims, {event.seconds_left:.0f} s left"
            )
        if isinstance(event, Done):
            facts = event.facts
    if not facts.get("attacks"):
        raise SystemExit(f"{title}: {facts.get('headline')}")
    return [
        {
            "attack": row["name"],
            "victim": row["victim"],
            **{arm: row[arm]["mean"] for arm in ARMS},
            "floor": row["floor"],
            "fitted": row["fitted"],
            "inconclusive": row["inconclusive"],
            "curves": row["curves"],
            "epochs": row["epochs"],
            "seconds": row["seconds"],
        }
        for row in facts["attacks"]
    ]


def score(row: Mapping[str, float]) -> float:
    """Return how much of what could be learned was not, in percent; 0 where nothing could be."""
    learnable = row["clean"] - 1 / TEN
    return 100 * (row["clean"] - row["protected"]) / learnable if learnable > 0 else 0.0


def columns(cells: Sequence[record.Facts]) -> dict[str, record.Facts]:
    """Return each column's accuracies, means over the tens, and its score in percent."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for cell in cells:
        for row in cell["rows"]:
            name = (
                f"{row['attack']}, {row['victim'].partition(':')[0]}, {cell['settings']['size']} px"
            )
            found.setdefault(name, []).append(row)
    result: dict[str, record.Facts] = {}
    for name, rows in found.items():
        known = [row["fitted"] for row in rows if row["fitted"] is not None]
        means = {arm: round(fmean(row[arm] for row in rows), 5) for arm in ARMS}
        result[name] = {
            **means,
            "score": round(score(means), 2),
            "scores_of_tens": record.spread((score(row) for row in rows), 1),
            "doubt": any(row["inconclusive"] for row in rows),
            "fitted": min(known, default=None),
        }
    return dict(sorted(result.items(), key=lambda item: -item[1]["score"]))


def tabled(found: Mapping[str, record.Facts]) -> str:
    """Return the columns as a Markdown table, the lowest last."""
    lines = []
    for name, row in found.items():
        of = row["scores_of_tens"]
        spread = f" ({of['min']:.0f} to {of['max']:.0f})" if of["n"] > 1 else ""
        knew = "" if row["fitted"] is None else f"{100 * row['fitted']:.0f}"
        mark = "*" if row["doubt"] else ""
        lines.append(
            [
                name,
                *(f"{100 * row[arm]:.1f}" for arm in ARMS),
                knew,
                f"{row['score']:.0f} %{spread}{mark}",
            ]
        )
    head = ["attacker, victim, size", *ARMS, "knew under attack", "score"]
    return record.table(head, lines)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a folder with train/CLASS/ and val/CLASS/")
    add("--weights", required=True, help="name or file")
    add("--tens", default="0,1", help="which tens of classes, by name")
    add("--sizes", default="32,64", help="pixels a side that victims see")
    add("--attacks", default=ATTACKS, help="of tue verify, against the first victim")
    add("--victim", default="resnet18:0.25", help="whom every attacker trains")
    add("--others", default="vgg16:0.25,densenet121:0.25", help="trained standardly only")
    add("--per-class", type=int, default=500)
    add("--seen", type=int, default=60_000, help="pictures that a victim is shown")
    add("--seeds", type=int, default=2)
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--name", default="unseen", help="of the results file")
    add("--results", type=Path, default=record.RESULTS, help="where the results file lies")
    add("--work", type=Path, help="where pictures and copies are kept; default a temporary folder")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> None:
    """Measure every ten at every size that the results do not hold yet."""
    import torch

    torch.set_num_threads(arguments.threads)
    weights = load(arguments.weights)
    results = record.Results(arguments.results, arguments.name)
    results.put(benchmark="unseen", weights=record.weights_facts(weights))
    kinds = [
        (victims_named(arguments.victim), attacks_named(arguments.attacks.split(",")), "attackers"),
    ]
    if arguments.others:
        kinds.append((victims_named(arguments.others), ("std",), "others"))
    cells: list[record.Facts] = []
    for number in map(int, arguments.tens.split(",")):
        source, held_out = ten_of(arguments.data, number, arguments.per_class, arguments.work)
        for size in map(int, arguments.sizes.split(",")):
            for victims, attacks, part in kinds:
                settings = {
                    "data": arguments.data.resolve().name,
                    "ten": number,
                    "size": size,
                    "part": part,
                    "victims": [victim_name(victim) for victim in victims],
                    "attacks": list(attacks),
                    "per_class": arguments.per_class,
                    "seen": arguments.seen,
                    "seeds": arguments.seeds,
                    "weights_sha256": weights.sha256,
                }
                if known := results.find(settings):
                    cells.append(known)
                    continue
                computer = machine(arguments.device)
                where = record.hardware(
                    threads=arguments.threads,
                    dtype=str(computer.dtype).removeprefix("torch."),
                    device=arguments.device,
                )
                began = time.monotonic()
                copies = copies_of(source, arguments, weights.sha256)
                budget = replace(
                    BUDGETS["quick"], seen=arguments.seen, seeds=arguments.seeds, size=size
                )
                spec = VerifySpec(
                    copies, source, budget, holdout=held_out, device=arguments.device, resume=True
                )
                rows = measured(spec, victims, attacks, f"ten {number}, {size} px, {part}")
                figures = {
                    "rows": rows,
                    "command": record.command_line(),
                    "hardware": where,
                    "seconds_in_all": round(time.monotonic() - began, 1),
                    "seeds": list(range(arguments.seeds)),
                }
                cells.append(results.add(settings, figures))
    found = columns(cells)
    results.put(columns=found)
    record.say(f"{tabled(found)}\n")
    sure = {name: row for name, row in found.items() if not row["doubt"]}
    for told, rows in (("The lowest that says something", sure), ("The lowest column", found)):
        if rows:
            name, row = next(reversed(rows.items()))
            record.say(f"{told}: {row['score']:.0f} % ({name}).")


if __name__ == "__main__":
    record.in_work(parsed(), measure)
