"""What needs a GPU, in one short run: is it right, the paper's table at full width, how fast.

    python benchmarks/gpu.py DATA --out DIR --minutes 9 [--done DIR] [--rehearse]

DATA is an archive; its name decides what is run, the most informative steps first:

- cifar-10.tar.xz: every way of running held against float64 (`right`); surrogate A, the paper's
  own, with its score network; noise for all images by TUE and EM, and victims at full width (the
  paper's Table 1): TUE and clean by standard and adversarial training, EM by standard training;
  timings (`fast`); then, as time allows, EM by adversarial training, random noise, 2/255, TUE
  without score, REM-lite (half the steps, one sample, an adversary of five steps), a second seed,
  PGD-10.
- tiny-imagenet-50a.tar.xz: surrogate B, trained through grayscale, resizing and JPEG.
- tiny-imagenet-50b.tar.xz: `unseen.py`, with victims of full width, for the packaged weights and
  for A and B, where these lie in --done.

A run never passes --minutes. Before a training starts, a few steps tell how long it will take; one
that does not fit is shortened, and its row says so. Rows are written to DIR/rows.jsonl as they are
known, weights in half precision and in parts (`--join NAME` puts them together). A cell that
--done has complete is skipped, and a step that fails leaves a row that says why. `--rehearse` does
the same at toy size, on any machine, in a minute; `--predict` says what each step should take.

A machine with torch and CUDA needs no installing; what it may lack is one small wheel:

    pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl platformdirs
    pip install --no-index --no-deps --target /tmp/site .whl/*.whl
    export TUE_COMMIT=$(git rev-parse HEAD) PYTHONPATH=.:/tmp/site
    python benchmarks/gpu.py cifar-10.tar.xz --out DIR --minutes 9

(TUE_COMMIT names the commit where the checkout comes without its history.)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()  # loading torch takes of the time too

import torch

from benchmarks import gpu_table as full
from benchmarks.archives import read_split
from benchmarks.gpu_bench import Bench, Clock
from benchmarks.gpu_fast import measure_speed
from benchmarks.gpu_right import check_ways
from benchmarks.gpu_work import FULL, RATES, TOY, predict_steps
from benchmarks.rows import Row, Rows, describe_hardware
from benchmarks.script import note, say
from benchmarks.summary import format_table
from tue_cli.engine.torch import choose_device
from tue_cli.errors import DeviceUnavailable

SCORE = 35.0
"""Seconds for a score network, at most."""
SURROGATES = ("TUE", "EM", "TUE without score", "REM-lite")
"""Arms whose noise comes from a surrogate of their own."""
FAST = 80.0
"""Seconds that are kept for the timings."""
LINES = 40
FIGURES = (
    "within",
    "apart",
    "repeats_to_the_bit",
    "apart_from_eager",
    "waits_for_the_device",
    "tflops",
    "pictures_a_second",
    "share_of_product",
    "recorded",
    "fell_back",
    "code",
    "failed",
)
"""What the summary tells of checks and timings."""


def measure_cifar(bench: Bench) -> None:
    """Do what is done on CIFAR-10."""
    if bench.computer.device.type == "cuda":
        warm_compiler(bench)
    bench.attempt("right", lambda: check_ways(bench))

    def list_cells(names: str, radius: int, **more: int) -> list[dict[str, Any]]:
        return [full.describe_cell(bench, name, radius, **more) for name in names.split(", ")]

    steps: list[tuple[str, Callable[[], object]]] = [
        ("surrogate A", lambda: train_surrogate_a(bench)),
        ("standard victims", lambda: train_victims(bench, list_cells("TUE, clean", 0), keep=FAST)),
        (
            "adversarial victims",
            lambda: train_victims(bench, list_cells("TUE, clean", 4), keep=FAST),
        ),
        ("EM", lambda: train_victims(bench, list_cells("EM", 0), keep=FAST)),
        ("fast", lambda: measure_speed(bench, FAST)),
        (
            "EM, adversarial",
            lambda: train_victims(bench, list_cells("EM", 4), like=list_cells("TUE", 4)),
        ),
        ("random noise", lambda: train_victims(bench, list_cells("random noise", 0))),
        ("2/255", lambda: train_victims(bench, list_cells("TUE, clean, EM", 2))),
        ("TUE without score", lambda: train_control(bench, "TUE without score")),
        ("REM-lite", lambda: train_control(bench, "REM-lite")),
        ("second seed", lambda: train_victims(bench, list_cells("TUE, clean, EM", 0, seed=1))),
        (
            "second seed, adversarial",
            lambda: train_victims(bench, list_cells("TUE, clean, EM", 4, seed=1)),
        ),
        (
            "PGD-10",
            lambda: train_victims(bench, list_cells("TUE, clean, EM", 4, adversary_steps=10)),
        ),
    ]
    if bench.rehearse:
        steps = steps[:-3]  # the same code again, with other seeds and more steps
    for name, step in steps:
        if bench.clock.count_left() > full.SPARE:
            bench.attempt(name, step)


def warm_compiler(bench: Bench) -> None:
    """Compile in a process beside the run what `fast` will compile: the cache is shared."""
    width, batch = max(bench.budget.widths), min(bench.budget.batches)
    code = f"from benchmarks import gpu_fast; gpu_fast.warm_up({width}, {batch})"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": build_import_path()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    bench.children.append(child)


def train_surrogate_a(bench: Bench) -> None:
    """Train the paper's own surrogate with its score network."""
    seconds = {"score": SCORE, "surrogate": 0.42 * bench.clock.count_left()}
    full.train_surrogate(bench, "TUE", seconds, keep="A")


def train_victims(
    bench: Bench,
    cells: list[dict[str, Any]],
    *,
    keep: float = 0.0,
    like: list[dict[str, Any]] | None = None,
) -> None:
    """Train the victims that have no row yet, all for as many epochs, `keep` seconds left over.

    If some of them, or of those that they are to be compared with (`like`), have been trained, the
    rest get as many epochs; otherwise the time left decides. Where not even half of what is wanted
    fits, the last ones are left to another run.
    """
    found = [full.find_finished(bench, cell) for cell in (*cells, *(like or []))]
    missing = [cell for cell in cells if full.find_finished(bench, cell) is None]
    for name in {cell["arm"] for cell in missing} - set(bench.arms):
        if name in SURROGATES:
            make_arm(bench, name)
    if not missing:
        return
    an_epoch = full.estimate_epoch(bench, missing[0])
    wanted = min([cells[0]["epochs"], *(row["epochs"] for row in found if row)])
    left = bench.clock.count_left() - full.SPARE - (0.0 if bench.rehearse else keep)

    def count_fitting() -> int:
        return int((left / len(missing) - full.ENDING * (not bench.rehearse)) / an_epoch)

    while missing and count_fitting() < wanted / 2:
        missing.pop()
    if not missing:
        note(f"victims at {cells[0]['radius']}/255 do not fit: {an_epoch:.1f} s an epoch")
        return
    epochs = max(1, min(wanted, count_fitting()))
    for cell in missing:
        full.train_victim(bench, cell, epochs)


def make_arm(bench: Bench, name: str) -> None:
    """Make the noise of an arm and, where it is not there, the surrogate that it comes from."""
    if name not in bench.nets:
        full.train_surrogate(
            bench, name, {"score": SCORE, "surrogate": 0.6 * bench.clock.count_left()}
        )
    full.protect_all(bench, name)


def train_control(bench: Bench, name: str) -> None:
    """Train another surrogate and victims of its noise, if half of its training fits."""
    if bench.clock.count_left() < 0.5 * estimate_seconds(name) and not bench.rehearse:
        note(f"no time for {name}")
        return
    for radius in (0, 4):
        like = [full.describe_cell(bench, "TUE", radius)]
        train_victims(bench, [full.describe_cell(bench, name, radius)], like=like)


def estimate_seconds(name: str) -> float:
    """Return the seconds that a step is expected to take at the slower rate."""
    return next(slow for step, _, _, slow in predict_steps(50_000) if step == name)


def train_wide(bench: Bench) -> None:
    """Train surrogate B, of many classes, through what attackers do."""
    bench.attempt("right", lambda: check_ways(bench))
    seconds = {"score": SCORE, "surrogate": bench.clock.count_left() - SCORE}
    bench.attempt("surrogate B", lambda: full.train_surrogate(bench, "B", seconds, keep="B"))


def measure_unseen(bench: Bench) -> None:
    """Measure protection on classes that no weights saw, by `unseen.py`, while there is time."""
    data = bench.work / bench.archive.name.partition(".")[0]
    with tarfile.open(bench.archive, "r|*") as archive:
        archive.extractall(data, filter="data")
    (data,) = [place.parent for place in data.rglob("train")]
    own = [name for name in ("A", "B") if full.find_weights(bench, name)]
    command = [sys.executable, "-m", "benchmarks.unseen", "--data", str(data)]
    command += ["--arms", ",".join([*own, "cifar10"]), "--device", bench.computer.device.type]
    command += ["--results", str(bench.out), "--name", bench.rows.path.stem]
    command += ["--done", str(bench.done)] if bench.done else []
    command += ["--work", str(bench.work), "--threads", str(min(16, os.cpu_count() or 1))]
    if bench.rehearse:
        command += ["--victim", "resnet18:0.0625", "--per-class", "4", "--seen", "40"]
        command += ["--columns", "std", "--tens", "0", "--seeds", "0"]
    else:
        columns = "std,gray,jpeg10,jpeg50,resize,blur,std/64,at2,at4"
        command += ["--victim", "resnet18:1", "--seeds", "0", "--columns", columns]
    seconds = bench.clock.count_left() - full.SPARE
    code, _, noted = bench.call(
        command, seconds, TUE_WEIGHTS=str(bench.work), PYTHONPATH=build_import_path()
    )
    note(f"unseen.py ended with {code}: {noted[-2000:]}")


def build_import_path() -> str:
    """Return the PYTHONPATH of a process that imports what this one can."""
    return os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])


PLANS: dict[str, Callable[[Bench], None]] = {
    "cifar-10": measure_cifar,
    "tiny-imagenet-50a": train_wide,
    "tiny-imagenet-50b": measure_unseen,
}
"""What is done, by the archive's name."""


def summarize(rows: list[Row]) -> str:
    """Return the rows as a table of at most `LINES` lines, the most telling kept."""
    order = ("failed", "victim", "surrogate", "unseen", "right", "timing", "noise")
    ranked = sorted(rows, key=lambda row: next(n for n, k in enumerate(order) if k in row["cell"]))
    shown = ranked[: LINES - 4]
    text = format_table(["cell", "what", "figures", "seconds"], [format_line(row) for row in shown])
    missing = len(ranked) - len(shown)
    return text + (f"\n\n{missing} more rows are in rows.jsonl." if missing else "")


def format_line(row: Row) -> list[object]:
    """Return a row as a line of the summary."""
    cell, asked = row["cell"], row["settings"]
    if cell == "victim":
        what = f"{asked['arm']} at {asked['radius']}/255, {row['epochs']} epochs"
        figures = f"{format_percent(row['accuracy'])} [{row['paper_percent'] or '-'}]"
        if asked["radius"]:
            figures += f", robust training accuracy {format_percent(row['robust_train'])}"
    elif cell == "surrogate":
        what = asked["name"]
        figures = ", ".join(
            f"{role} {made['steps']} of {made['wanted']} steps, {made['tflops']} TFLOP/s"
            for role, made in row["trained"].items()
        )
    elif cell == "unseen":
        what = f"{asked['arm']}, {asked['attack']}, {asked['size']} px, ten {asked['ten']}"
        figures = format_percent(row["accuracy"])
    else:
        what = ", ".join(str(value) for value in asked.values())
        told = [name for name in FIGURES if row.get(name) is not None]
        figures = ", ".join(f"{name} {row[name]}" for name in told)
    return [cell, what[:60], figures[:120], row.get("seconds", "")]


def format_percent(share: float | None) -> str:
    """Return a share in percent, or a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


def forecast() -> str:
    """Return what each step is expected to take, as a table."""
    lines = [
        [name, f"{work:.1f}" if work else "-", f"{fast_:.0f}-{slow:.0f}"]
        for name, work, fast_, slow in predict_steps(50_000)
    ]
    low, high = RATES
    return format_table(["step", "PFLOP", f"seconds at {high:.0f}-{low:.0f} TFLOP/s"], lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add(
        "data", type=Path, nargs="?", help=f"an archive whose name begins with {' or '.join(PLANS)}"
    )
    add("--out", type=Path, help="where rows and weights are written")
    add("--minutes", type=float, default=9.0, help="the run never takes longer")
    add("--done", type=Path, help="what earlier runs wrote; its cells are skipped")
    add("--rehearse", action="store_true", help="at toy size, on any machine")
    add("--device", default=None, help="cuda, or cpu in a rehearsal")
    add("--predict", action="store_true", help="say what each step will take, and stop")
    add("--join", metavar="NAME", help="write OUT/NAME.safetensors from its parts in --done")
    return parser.parse_args()


def main() -> None:
    """Do what the command line says."""
    args = parse_arguments()
    if args.predict:
        say(forecast())
        return
    if args.out is None:
        raise SystemExit("Say where to write with --out DIR.")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.join:
        data = full.join_weights(args.done or args.out, args.join)
        if data is None:
            raise SystemExit(
                f"There are no parts of {args.join}.safetensors; say where with --done."
            )
        (args.out / f"{args.join}.safetensors").write_bytes(data)
        return
    if args.data is None or not args.data.is_file():
        raise SystemExit(f"There is no archive {args.data}." if args.data else "Name an archive.")
    plan = next((run for name, run in PLANS.items() if args.data.name.startswith(name)), None)
    if plan is None:
        names = ", ".join(PLANS)
        raise SystemExit(f"The archive's name must begin with one of {names}; see --help.")
    budget = TOY if args.rehearse else FULL
    # Before CUDA is, for processes are forked to read it.
    pictures = None if plan is measure_unseen else read_split(args.data, budget.training.size)
    note(f"{args.data.name} is read, {time.monotonic() - BEGAN:.0f} s from the start")
    try:
        computer = choose_device(args.device or ("cpu" if args.rehearse else "cuda"))
    except DeviceUnavailable:
        raise SystemExit("No CUDA GPU can be used here. --rehearse needs none.") from None
    facts = describe_hardware(
        threads=torch.get_num_threads(),
        dtype=str(computer.dtype).removeprefix("torch."),
        device=computer.description,
    )
    warnings.simplefilter("default")
    with tempfile.TemporaryDirectory(prefix="tue-gpu-") as work:
        rows = Rows(args.out / "rows.jsonl", facts={"hardware": facts}, done=args.done)
        bench = Bench(
            archive=args.data,
            read=pictures,
            out=args.out,
            done=args.done,
            work=Path(work),
            clock=(clock := Clock(args.minutes, began=BEGAN)),
            rows=rows,
            budget=budget,
            computer=computer,
            rehearse=args.rehearse,
        )
        end = threading.Timer(clock.count_left(), stop, [bench])
        end.daemon = True
        end.start()
        try:
            plan(bench)
        finally:
            end.cancel()
            bench.end_children()
            say(summarize(rows.read_written()))


def stop(bench: Bench) -> None:
    """End the run where it is: its time is over, and what it has is written."""
    bench.end_children()
    say(summarize(bench.rows.read_written()))
    say("Stopped at the time limit; the unfinished step is lost.")
    os._exit(0)


if __name__ == "__main__":
    main()
