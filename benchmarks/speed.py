"""How fast the engine and the command are, how much memory they take, and how soon help is there.

    python -m benchmarks.speed --weights NAME --photos DIR [--only engine,gray,rem]

Sections, all unless some are named:

- engine: noise for one batch of 64 pictures in 10 steps, by `TorchEngine` and by the plain loop
  (float32, NCHW, nets as they were trained in eval mode, `loss.backward()` with the gradients of
  all parameters), for the surrogate's term alone and for the paper's whole step; and the engine's
  two terms alone. Turns are taken (ABAB…), so that what else the machine does falls on all alike.
- gray: the engine's whole step with the grayscale term, as it is by default, against that without.
- rem: the noise of rem likewise, by `TorchEngine` and by the published loop written plainly:
  float32, NCHW, the net in eval mode with its weights frozen, EoT samples of each picture's own,
  for each of the samples an adversary, and the gradient there sent back through the shift. The
  engine's shift and the adversary's start are one draw a batch, and it has bfloat16 where the
  processor has; that is part of the ratio.
- photos: `tue protect --radius 8 --gray 0 --smooth 1` on the photographs in DIR, and the share of
  its time outside the engine.
- memory: peak resident memory for 1,000 photographs against that for 100.
- help: `tue --help` in a fresh process, and which heavy modules it imports.

A section that is in the results already, with the same settings, is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import script
from benchmarks.command import PAPERS, TUE, build_environment, run_protect
from benchmarks.noise import make_published_noise
from benchmarks.rows import Row
from benchmarks.summary import format_table, summarize
from benchmarks.turns import Run, compute_paces, compute_ratio, time_in_turns
from tue_cli.images.codec import SUFFIXES
from tue_cli.noise import Noise, RemNoise, TueNoise
from tue_cli.weights import Weights, build, load

SECTIONS = ("engine", "gray", "rem", "photos", "memory", "help")
HEAVY = ("torch", "torchvision", "onnxruntime", "textual", "PIL", "numpy", "rich", "safetensors")
"""Modules that are looked for when help is shown."""
BACKENDS = ("onnx", "torch")
FORBIDDEN = ("torch", "onnxruntime", "textual")

_PROBE = """
import json, sys
sys.argv = ["tue", "--help"]
from tue_cli.cli import main
try:
    main()
except SystemExit as ending:
    code = ending.code
print(json.dumps([code or 0, [name for name in HEAVY if name in sys.modules]]), file=sys.stderr)
"""

Batch = tuple[NDArray[np.float32], NDArray[np.int64], list[int]]
"""Pixels (N, 3, S, S), keys and seeds."""


def draw_batch(arguments: argparse.Namespace, weights: Weights) -> Batch:
    """Return one batch of random pictures."""
    count, card = arguments.batch, weights.card
    pixels = np.random.default_rng(0).random((count, 3, card.size, card.size), np.float32)
    return pixels, np.arange(count, dtype=np.int64) % len(card.classes), list(range(count))


def make_run(weights: Weights, method: str, noise: Noise, batch: Batch) -> Run:
    """Return a run of the engine on a batch."""
    from tue_cli.engine.torch import TorchEngine, choose_device

    count = len(batch[0])
    made = TorchEngine(weights, method, noise, seed=0, machine=choose_device("cpu"), batch=count)
    return lambda: made.perturb(*batch)


def measure_engine(arguments: argparse.Namespace, weights: Weights) -> Row:
    """Measure the engine against the plain loop on the same nets, pictures and starts."""
    from benchmarks.plain import backward_through, perturb_plainly

    batch = draw_batch(arguments, weights)
    whole = make_published_noise(steps=arguments.steps)
    alone = make_published_noise(steps=arguments.steps, score_ratio=0.0)
    nets = {role: net.eval() for role, net in build(weights, ("score", "surrogate")).items()}
    for net in nets.values():
        net.requires_grad_(True)
    seconds = time_in_turns(
        {
            "plain, surrogate's term": lambda: perturb_plainly(
                nets, *batch, alone, backward_through
            ),
            "engine, surrogate's term": make_run(weights, "tue", alone, batch),
            "plain, whole step": lambda: perturb_plainly(nets, *batch, whole, backward_through),
            "engine, whole step": make_run(weights, "tue", whole, batch),
            "score term only": make_term(weights, "score", whole, batch),
            "surrogate term only": make_term(weights, "surrogate", whole, batch),
        },
        arguments.repeats,
    )
    return compare_runs(
        seconds,
        arguments.batch,
        {
            "engine over plain, surrogate's term": (
                "plain, surrogate's term",
                "engine, surrogate's term",
            ),
            "engine over plain, whole step": ("plain, whole step", "engine, whole step"),
            "score term's time over surrogate term's": ("score term only", "surrogate term only"),
        },
    )


def make_term(weights: Weights, name: str, noise: TueNoise, batch: Batch) -> Run:
    """Return a run of one of the engine's two terms, alone."""
    import torch

    from tue_cli.core.batches import make_generator, sample_moves
    from tue_cli.core.pgd import pgd
    from tue_cli.core.sampling import draw_starts
    from tue_cli.engine.torch import choose_device
    from tue_cli.methods.surrogate import make_surrogate_term
    from tue_cli.methods.tue import make_score_term
    from tue_cli.nets.frozen import FrozenClassifier, FrozenScore

    computer, nets = choose_device("cpu"), build(weights, ("score", "surrogate"))
    pixels, labels = torch.from_numpy(batch[0]), torch.from_numpy(batch[1])
    surrogate = FrozenClassifier(nets["surrogate"], computer.dtype)  # type: ignore[arg-type]
    score = FrozenScore(nets["score"], computer.dtype)  # type: ignore[arg-type]

    def run() -> object:
        generator = make_generator(0, "perturb", 0, computer.device)
        term = (
            make_score_term(score, labels, noise)
            if name == "score"
            else make_surrogate_term(surrogate, labels, noise, sample_moves(noise.steps, generator))
        )
        start = torch.from_numpy(draw_starts(batch[0].shape, batch[2], noise.radius))
        return pgd(pixels, [term], radius=noise.radius, steps=noise.steps, start=start)

    return run


def compare_runs(
    seconds: Mapping[str, Sequence[float]], batch: int, ratios: Mapping[str, tuple[str, str]]
) -> Row:
    """Return pictures a second by run, and ratios of seconds, turn by turn: slow over fast."""
    return {
        "pictures_a_second": {
            name: compute_paces(values, batch) for name, values in seconds.items()
        },
        "ratios": {
            name: compute_ratio(seconds[slow], seconds[fast])
            for name, (slow, fast) in ratios.items()
        },
    }


def measure_gray(arguments: argparse.Namespace, weights: Weights) -> Row:
    """Measure what the grayscale term adds to a whole step of the engine."""
    batch, steps = draw_batch(arguments, weights), arguments.steps
    seconds = time_in_turns(
        {
            "with grey": make_run(weights, "tue", TueNoise(steps=steps), batch),
            "without grey": make_run(weights, "tue", make_published_noise(steps=steps), batch),
        },
        arguments.repeats,
    )
    ratios = {"time with grey over without": ("with grey", "without grey")}
    return compare_runs(seconds, arguments.batch, ratios)


def make_rem_noise(arguments: argparse.Namespace) -> RemNoise:
    """Return the published noise of rem, in as many steps as asked: each costs the same."""
    return RemNoise(steps=arguments.steps)


def measure_rem(arguments: argparse.Namespace, weights: Weights) -> Row:
    """Measure rem's noise against its published loop (Fu et al. 2022), at equal settings."""
    from benchmarks.plain import perturb_rem_plainly

    batch, noise = draw_batch(arguments, weights), make_rem_noise(arguments)
    net = build(weights, ("surrogate",))["surrogate"].eval().requires_grad_(False)
    seconds = time_in_turns(
        {
            "plain, rem": lambda: perturb_rem_plainly(net, *batch, noise),
            "engine, rem": make_run(weights, "rem", noise, batch),
        },
        arguments.rem_repeats,
    )
    return compare_runs(
        seconds, arguments.batch, {"engine over plain, rem": ("plain, rem", "engine, rem")}
    )


def fill_folder(folder: Path, count: int, place: Path) -> Path:
    """Fill a folder with `count` photographs: those of `folder`, again and again by new names."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise SystemExit(f"{folder} holds no photograph.")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for number, source in zip(range(count), itertools.cycle(found), strict=False):
        target = place / f"{number:05d}{source.suffix}"
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
    return place


def protect_once(arguments: argparse.Namespace, count: int, turn: int, *more: str) -> Row:
    """Run `tue protect` on so many photographs into a fresh folder, with `more` options."""
    source = fill_folder(arguments.photos, count, arguments.work / f"photos-{count}")
    output = arguments.work / f"photos-{count}-protected"
    shutil.rmtree(output, ignore_errors=True)
    # What the grayscale term adds is a section of its own.
    options = [*PAPERS]
    if arguments.jobs is not None:
        options += ["--jobs", str(arguments.jobs)]
    figures = run_protect(
        source,
        output,
        weights=arguments.weights,
        device="cpu",
        threads=arguments.threads,
        options=[*options, *more],
    )
    shutil.rmtree(output)
    script.note(f"{count} photographs, run {turn + 1}: {figures}")
    return figures


def measure_photos(arguments: argparse.Namespace) -> Row:
    """Measure the command from end to end, and its time outside the engine."""
    runs = [
        protect_once(arguments, arguments.count, turn) for turn in range(arguments.command_repeats)
    ]

    def measure_outside(name: str) -> Row:
        return summarize(1 - run["engine_seconds"] / run[name] for run in runs)

    return {
        "engine_seconds": summarize((run["engine_seconds"] for run in runs), 3),
        "job_seconds": summarize((run["job_seconds"] for run in runs), 3),
        "outside_engine_of_job": measure_outside("job_seconds"),
        "outside_engine_of_process": measure_outside("wall_seconds"),
        "pictures_a_second": summarize((run["protected"] / run["wall_seconds"] for run in runs), 3),
        "protected": runs[0]["protected"],
        "wall_seconds": summarize((run["wall_seconds"] for run in runs), 3),
    }


def measure_memory(arguments: argparse.Namespace) -> Row:
    """Measure peak memory for few and for many photographs, each engine against itself.

    Left to itself the command takes ONNX Runtime for few and torch, which is larger, for many.
    """
    few, many = arguments.count, arguments.many
    facts: Row = {}
    for backend in BACKENDS:
        peaks: dict[int, list[float]] = {few: [], many: []}
        for turn in range(arguments.memory_repeats):
            for count, values in peaks.items():
                figures = protect_once(arguments, count, turn, "--backend", backend)
                values.append(figures["peak_mib"])
        facts[backend] = {
            "peak_mib": {str(count): summarize(values, 1) for count, values in peaks.items()},
            "ratio": summarize((b / a for a, b in zip(*peaks.values(), strict=True)), 3),
        }
    return {"backends": facts}


def find_tue() -> list[str]:
    """Return `tue` as it is installed beside this Python, else as a module."""
    installed = Path(sys.executable).with_name("tue")
    return [str(installed)] if installed.exists() else list(TUE)


def measure_help(arguments: argparse.Namespace) -> Row:
    """Measure `tue --help` in fresh processes, after two that are not counted."""
    surroundings = build_environment(arguments.threads)
    command, seconds, busy = [*find_tue(), "--help"], [], []
    for turn in range(arguments.help_repeats + 2):
        began, used = time.perf_counter(), _read_cpu_seconds()
        subprocess.run(command, env=surroundings, capture_output=True, check=True)
        if turn >= 2:
            seconds.append(time.perf_counter() - began)
            busy.append(_read_cpu_seconds() - used)
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE.replace("HEAVY", repr(HEAVY))],
        env=surroundings,
        capture_output=True,
        text=True,
        check=True,
    )
    code, imported = json.loads(probe.stderr.splitlines()[-1])
    if code:
        raise SystemExit(f"tue --help ended with {code}.")
    bare = statistics.median(_time_bare_start(surroundings) for _ in range(5))
    return {
        "bare_python_seconds": round(bare, 4),
        "cpu_seconds": summarize(busy, 4),
        "measured": " ".join([Path(command[0]).name, *command[1:]]),
        "forbidden_imports": [name for name in imported if name in FORBIDDEN],
        "heavy_imports": imported,
        "help_seconds": summarize(seconds, 4),
    }


def _read_cpu_seconds() -> float:
    """Return what all processes that were waited for have used, whatever else the machine did."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _time_bare_start(surroundings: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], env=surroundings, check=True)
    return time.perf_counter() - began


def make_settings(section: str, arguments: argparse.Namespace, weights: Weights) -> Row:
    """Return all that a section's figures depend on, but for the machine."""
    names = {
        "engine": ("batch", "repeats", "steps"),
        "gray": ("batch", "repeats", "steps"),
        "rem": ("batch", "rem_repeats"),
        "photos": ("command_repeats", "count", "jobs"),
        "memory": ("count", "jobs", "many", "memory_repeats"),
        "help": ("help_repeats",),
    }[section]
    settings = {name: getattr(arguments, name) for name in (*names, "threads")}
    if section == "rem":
        settings["noise"] = asdict(make_rem_noise(arguments))
    if section in ("photos", "memory"):
        settings["photos"] = arguments.photos.resolve().name
    if section != "help":
        settings["weights_sha256"] = weights.sha256
    return settings


def list_lines(rows: Sequence[Row]) -> list[list[str]]:
    """Return the table's lines of the sections."""
    lines: list[list[str]] = []

    def add_line(section: str, what: str, figures: Row, unit: str = "", by: float = 1) -> None:
        values = [f"{by * figures[name]:.4g}{unit}" for name in ("median", "min", "max")]
        lines.append([section, what, *values, str(figures["n"])])

    for row in rows:
        section, threads = row["cell"].removeprefix("speed: "), row["settings"]["threads"]
        title = f"{section}, {threads} thread{'s' * (threads > 1)}"
        if "ratios" in row:
            for name, figures in row["pictures_a_second"].items():
                add_line(title, f"{name}, pictures/s", figures)
            for name, figures in row["ratios"].items():
                add_line(title, name, figures, " ×")
        elif section == "photos":
            add_line(title, f"{row['protected']} photographs", row["wall_seconds"], " s")
            add_line(title, "job alone", row["job_seconds"], " s")
            add_line(
                title, "outside the engine, process", row["outside_engine_of_process"], " %", 100
            )
            add_line(title, "outside the engine, job", row["outside_engine_of_job"], " %", 100)
        elif section == "memory":
            for backend, facts in row["backends"].items():
                for count, figures in facts["peak_mib"].items():
                    add_line(title, f"{backend}, peak memory, {count} photographs", figures, " MiB")
                add_line(title, f"{backend}, many over few", facts["ratio"], " ×")
        else:
            add_line(title, f"`{row['measured']}`", row["help_seconds"], " s")
            add_line(title, "its processor time", row["cpu_seconds"], " s")
            forbidden = ", ".join(row["forbidden_imports"]) or "none"
            lines.append([title, f"imports of {', '.join(FORBIDDEN)}", forbidden, "", "", "1"])
    return lines


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = script.make_parser(__doc__, "speed")
    add = parser.add_argument
    add("--weights", required=True, help="name or file, trained for the method tue")
    add("--photos", type=Path, help="a folder of photographs")
    add("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    add("--jobs", type=int, help="of tue protect")
    add("--batch", type=int, default=64)
    add("--steps", type=int, default=10)
    add("--repeats", type=int, default=7, help="turns of the engine's section")
    add("--rem-repeats", type=int, default=3, help="turns of the section rem")
    add("--count", type=int, default=100, help="photographs of a run")
    add("--many", type=int, default=1000, help="photographs of the large run")
    add("--command-repeats", type=int, default=3, help="runs of the command on the photographs")
    add("--memory-repeats", type=int, default=1)
    add("--help-repeats", type=int, default=11)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> None:
    """Measure the sections that are asked for and not in the results yet."""
    sections = arguments.only.split(",")
    if unknown := set(sections) - set(SECTIONS):
        raise SystemExit(f"There is no section {', '.join(sorted(unknown))}.")
    if arguments.photos is None and {"photos", "memory"} & set(sections):
        raise SystemExit("The sections photos and memory need --photos DIR.")
    weights = load(arguments.weights)
    measured: dict[str, tuple[Callable[[], Row], int]] = {
        "engine": (lambda: measure_engine(arguments, weights), arguments.repeats),
        "gray": (lambda: measure_gray(arguments, weights), arguments.repeats),
        "rem": (lambda: measure_rem(arguments, weights), arguments.rem_repeats),
        "photos": (lambda: measure_photos(arguments), arguments.command_repeats),
        "memory": (lambda: measure_memory(arguments), arguments.memory_repeats),
        "help": (lambda: measure_help(arguments), arguments.help_repeats),
    }
    rows = script.open_rows(arguments, dtype=find_dtype(arguments.threads))
    found = []
    # What runs in this process comes last: it makes it large and warm.
    for section in sorted(sections, key=lambda name: name in ("engine", "gray", "rem")):
        settings, cell = make_settings(section, arguments, weights), f"speed: {section}"
        row = rows.find(cell, settings)
        if row is None:
            script.note(f"section {section}")
            if section in ("engine", "gray", "rem"):
                limit_threads(arguments.threads)
            began, (run, n) = time.monotonic(), measured[section]
            figures = run()
            seconds = round(time.monotonic() - began, 1)
            row = rows.add(cell, settings, **figures, seed=0, n=n, seconds=seconds)
        found.append(row)
    found.sort(key=lambda row: SECTIONS.index(row["cell"].removeprefix("speed: ")))
    script.say(format_table(["section", "what", "median", "min", "max", "n"], list_lines(found)))


def limit_threads(threads: int) -> None:
    """Let torch, which is loaded here, have so many threads."""
    import torch

    torch.set_num_threads(threads)


def find_dtype(threads: int) -> str:
    """Return the precision that the engine chooses here, found out in a process of its own."""
    code = "from tue_cli.engine.torch import choose_device; print(choose_device('cpu').dtype)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=build_environment(threads),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return found.strip().removeprefix("torch.")


if __name__ == "__main__":
    script.run(parse_arguments(), measure)
