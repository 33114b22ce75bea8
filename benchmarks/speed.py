"""How fast the engine and the command are, how much memory they take, and how soon help is there.

    python benchmarks/speed.py --weights NAME --photos DIR [--only engine,gray,rem]

Sections, all unless some are named:

- engine: noise for one batch of 64 pictures in 10 steps, by `TorchEngine` and by the plain loop
  (float32, NCHW, nets as they were trained in eval mode, `loss.backward()` with the gradients of
  all parameters), for the surrogate's term alone and for the paper's whole step; and the engine's
  two terms alone. Turns are taken (ABAB…), so that what else the machine does falls on all alike.
- gray: the engine's whole step with the term in grey, as it is by default, against that without.
- rem: the noise of rem likewise, by `TorchEngine` and by the published loop written plainly:
  float32, NCHW, the net in eval mode with its weights frozen, shifts and flips of each picture's
  own, for each of the samples an adversary, and the gradient there sent back through the shift.
  The engine's shift and the adversary's start are one draw a batch, and it has bfloat16 where the
  processor has; that is part of the ratio.
- photos: `tue protect --gray 0 --smooth 1` on the photographs in DIR, and the share of its time
  outside the engine.
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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import record

from tue_cli.config import AdversarySettings
from tue_cli.images.codec import SUFFIXES
from tue_cli.noise import RemNoise, TueNoise
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

Run = Callable[[], object]


def in_turns(runs: dict[str, Run], repeats: int) -> dict[str, list[float]]:
    """Return seconds of each run, by name, run in turns after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - began)
        record.note(f"turn {turn} of {repeats}")
    return seconds


def engine(arguments: argparse.Namespace, weights: Weights) -> record.Facts:
    """Measure the engine against the plain loop on the same nets, pictures and starts."""
    import torch
    from torch import Tensor, nn

    from tue_cli.core.batches import generator_at, sample_moves, shift_and_flip
    from tue_cli.core.losses import cross_entropy, score_norm
    from tue_cli.core.pgd import Objective, Term, pgd
    from tue_cli.engine.torch import TorchEngine, draw_starts, machine
    from tue_cli.methods.surrogate import surrogate_term
    from tue_cli.methods.tue import score_term
    from tue_cli.nets.frozen import FrozenClassifier, FrozenScore

    torch.set_num_threads(arguments.threads)
    computer = machine("cpu")
    batch, card = arguments.batch, weights.card
    whole = TueNoise(steps=arguments.steps, gray_ratio=0.0)
    alone = TueNoise(steps=arguments.steps, score_ratio=0.0, gray_ratio=0.0)
    seeds = list(range(batch))
    random = np.random.default_rng(0)
    pixels = random.random((batch, 3, card.size, card.size), np.float32)
    keys = np.arange(batch, dtype=np.int64) % len(card.classes)
    tensor, labels = torch.from_numpy(pixels), torch.from_numpy(keys)

    plain = {role: net.eval() for role, net in build(weights, ("score", "surrogate")).items()}
    for net in plain.values():
        net.requires_grad_(True)

    def backward(objective: Objective, net: nn.Module) -> Callable[[Tensor], Tensor]:
        def gradient(at: Tensor) -> Tensor:
            net.zero_grad()
            with torch.enable_grad():
                leaf = at.detach().requires_grad_()
                objective(leaf).sum().backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None
            return leaf.grad

        return gradient

    def plainly(noise: TueNoise) -> object:
        generator = generator_at(0, "perturb", 0, computer.device)
        loss = cross_entropy(plain["surrogate"], labels)

        def moved(at: Tensor) -> Tensor:
            return loss(shift_and_flip(at, sample_moves(1, generator)[0]))

        terms = [Term(backward(moved, plain["surrogate"]), noise.step)]
        if noise.score_ratio:
            norm = score_norm(plain["score"], labels)
            terms.append(Term(backward(norm, plain["score"]), noise.score_ratio * noise.step))
        start = torch.from_numpy(draw_starts(pixels.shape, seeds, noise.radius))
        return pgd(tensor, terms, radius=noise.radius, steps=noise.steps, start=start)

    def engine_for(noise: TueNoise) -> Run:
        made = TorchEngine(weights, "tue", noise, seed=0, machine=computer, batch=batch)
        return lambda: made.perturb(pixels, keys, seeds)

    nets = build(weights, ("score", "surrogate"))
    surrogate = FrozenClassifier(nets["surrogate"], computer.dtype)  # type: ignore[arg-type]
    score = FrozenScore(nets["score"], computer.dtype)  # type: ignore[arg-type]

    def one_term(name: str) -> object:
        generator = generator_at(0, "perturb", 0, computer.device)
        term = (
            score_term(score, labels, whole)
            if name == "score"
            else surrogate_term(surrogate, labels, whole, sample_moves(whole.steps, generator))
        )
        start = torch.from_numpy(draw_starts(pixels.shape, seeds, whole.radius))
        return pgd(tensor, [term], radius=whole.radius, steps=whole.steps, start=start)

    seconds = in_turns(
        {
            "plain, surrogate's term": lambda: plainly(alone),
            "engine, surrogate's term": engine_for(alone),
            "plain, whole step": lambda: plainly(whole),
            "engine, whole step": engine_for(whole),
            "score term only": lambda: one_term("score"),
            "surrogate term only": lambda: one_term("surrogate"),
        },
        arguments.repeats,
    )

    return paces(
        seconds,
        batch,
        {
            "engine over plain, surrogate's term": (
                "plain, surrogate's term",
                "engine, surrogate's term",
            ),
            "engine over plain, whole step": ("plain, whole step", "engine, whole step"),
            "score term's time over surrogate term's": ("score term only", "surrogate term only"),
        },
    )


def paces(
    seconds: Mapping[str, Sequence[float]], batch: int, ratios: Mapping[str, tuple[str, str]]
) -> record.Facts:
    """Return pictures a second by run, and ratios of seconds, turn by turn: slow over fast."""
    return {
        "pictures_a_second": {
            name: record.spread((batch / value for value in values), digits=2)
            for name, values in seconds.items()
        },
        "ratios": {
            name: record.spread(
                (a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)), digits=3
            )
            for name, (slow, fast) in ratios.items()
        },
    }


def gray(arguments: argparse.Namespace, weights: Weights) -> record.Facts:
    """Measure what the term in grey adds to a whole step of the engine."""
    import torch

    from tue_cli.engine.torch import TorchEngine, machine

    torch.set_num_threads(arguments.threads)
    batch, card = arguments.batch, weights.card
    pixels = np.random.default_rng(0).random((batch, 3, card.size, card.size), np.float32)
    keys = np.arange(batch, dtype=np.int64) % len(card.classes)
    whole = TueNoise(steps=arguments.steps)

    def run_of(noise: TueNoise) -> Run:
        made = TorchEngine(weights, "tue", noise, seed=0, machine=machine("cpu"), batch=batch)
        return lambda: made.perturb(pixels, keys, list(range(batch)))

    seconds = in_turns(
        {"with grey": run_of(whole), "without grey": run_of(replace(whole, gray_ratio=0.0))},
        arguments.repeats,
    )
    return paces(seconds, batch, {"time with grey over without": ("with grey", "without grey")})


def rem_noise(arguments: argparse.Namespace) -> RemNoise:
    """Return the published noise of rem, in as many steps as asked: each costs the same."""
    return RemNoise(steps=arguments.steps)


def rem(arguments: argparse.Namespace, weights: Weights) -> record.Facts:
    """Measure rem's noise against its published loop (Fu et al. 2022), at equal settings."""
    import torch
    import torch.nn.functional as F

    from tue_cli.core.batches import crop_and_flip, generator_at
    from tue_cli.core.pgd import uniform_start
    from tue_cli.engine.torch import TorchEngine, draw_starts, machine

    torch.set_num_threads(arguments.threads)
    computer = machine("cpu")
    batch, card = arguments.batch, weights.card
    noise = rem_noise(arguments)
    inner = AdversarySettings(radius=noise.inner_radius, steps=noise.inner_steps)
    seeds = list(range(batch))
    pixels = np.random.default_rng(0).random((batch, 3, card.size, card.size), np.float32)
    keys = np.arange(batch, dtype=np.int64) % len(card.classes)
    clean, labels = torch.from_numpy(pixels), torch.from_numpy(keys)
    net = build(weights, ("surrogate",))["surrogate"].eval().requires_grad_(False)

    def gradient(at: torch.Tensor) -> torch.Tensor:
        leaf = at.detach().requires_grad_()
        F.cross_entropy(net(leaf), labels).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad

    def plainly() -> object:
        generator = generator_at(0, "perturb", 0, computer.device)
        delta = torch.from_numpy(draw_starts(pixels.shape, seeds, noise.radius))
        for _ in range(noise.steps):
            delta.requires_grad_()
            for _ in range(noise.samples):
                moved = crop_and_flip((clean + delta).clamp(0, 1), generator)
                fixed = moved.detach()
                attacked = fixed + uniform_start(fixed, inner.radius, generator)
                for _ in range(inner.steps):
                    attacked = attacked + inner.step * gradient(attacked).sign()
                    attacked = fixed + (attacked - fixed).clamp(-inner.radius, inner.radius)
                    attacked = attacked.clamp(0, 1)
                (moved * gradient(attacked)).sum().backward()  # type: ignore[no-untyped-call]
            assert delta.grad is not None
            delta = (delta.detach() - noise.step * delta.grad.sign()).clamp(
                -noise.radius, noise.radius
            )
        return delta

    ours = TorchEngine(weights, "rem", noise, seed=0, machine=computer, batch=batch)
    seconds = in_turns(
        {"plain, rem": plainly, "engine, rem": lambda: ours.perturb(pixels, keys, seeds)},
        arguments.rem_repeats,
    )
    return paces(seconds, batch, {"engine over plain, rem": ("plain, rem", "engine, rem")})


def photographs(folder: Path, count: int, place: Path) -> Path:
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


def protect_once(arguments: argparse.Namespace, count: int, turn: int, *more: str) -> record.Facts:
    """Run `tue protect` on so many photographs into a fresh folder, with `more` options."""
    source = photographs(arguments.photos, count, arguments.work / f"photos-{count}")
    output = arguments.work / f"photos-{count}-protected"
    shutil.rmtree(output, ignore_errors=True)
    # What the term in grey adds is a section of its own.
    options = [*record.PAPERS]
    if arguments.jobs is not None:
        options += ["--jobs", str(arguments.jobs)]
    figures = record.run_protect(
        source,
        output,
        weights=arguments.weights,
        device="cpu",
        threads=arguments.threads,
        options=[*options, *more],
    )
    shutil.rmtree(output)
    record.note(f"{count} photographs, run {turn + 1}: {figures}")
    return figures


def photos(arguments: argparse.Namespace) -> record.Facts:
    """Measure the command from end to end, and its time outside the engine."""
    runs = [
        protect_once(arguments, arguments.count, turn) for turn in range(arguments.command_repeats)
    ]

    def outside(name: str) -> record.Facts:
        return record.spread(1 - run["engine_seconds"] / run[name] for run in runs)

    return {
        "engine_seconds": record.spread((run["engine_seconds"] for run in runs), 3),
        "job_seconds": record.spread((run["job_seconds"] for run in runs), 3),
        "outside_engine_of_job": outside("job_seconds"),
        "outside_engine_of_process": outside("wall_seconds"),
        "pictures_a_second": record.spread(
            (run["protected"] / run["wall_seconds"] for run in runs), 3
        ),
        "protected": runs[0]["protected"],
        "wall_seconds": record.spread((run["wall_seconds"] for run in runs), 3),
    }


def memory(arguments: argparse.Namespace) -> record.Facts:
    """Measure peak memory for few and for many photographs, each engine against itself.

    Left to itself the command takes ONNX Runtime for few and torch, which is larger, for many.
    """
    few, many = arguments.count, arguments.many
    facts: record.Facts = {}
    for backend in BACKENDS:
        peaks: dict[int, list[float]] = {few: [], many: []}
        for turn in range(arguments.memory_repeats):
            for count, values in peaks.items():
                figures = protect_once(arguments, count, turn, "--backend", backend)
                values.append(figures["peak_mib"])
        facts[backend] = {
            "peak_mib": {str(count): record.spread(values, 1) for count, values in peaks.items()},
            "ratio": record.spread((b / a for a, b in zip(*peaks.values(), strict=True)), 3),
        }
    return {"backends": facts}


def tue_command() -> list[str]:
    """Return `tue` as it is installed beside this Python, else as a module."""
    installed = Path(sys.executable).with_name("tue")
    return [str(installed)] if installed.exists() else list(record.TUE)


def help_page(arguments: argparse.Namespace) -> record.Facts:
    """Measure `tue --help` in fresh processes, after two that are not counted."""
    environment = record.environment(arguments.threads)
    command, seconds, busy = [*tue_command(), "--help"], [], []
    for turn in range(arguments.help_repeats + 2):
        began, used = time.perf_counter(), _cpu_seconds()
        subprocess.run(command, env=environment, capture_output=True, check=True)
        if turn >= 2:
            seconds.append(time.perf_counter() - began)
            busy.append(_cpu_seconds() - used)
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE.replace("HEAVY", repr(HEAVY))],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    code, imported = json.loads(probe.stderr.splitlines()[-1])
    if code:
        raise SystemExit(f"tue --help ended with {code}.")
    bare = statistics.median(_bare_seconds(environment) for _ in range(5))
    return {
        "bare_python_seconds": round(bare, 4),
        "cpu_seconds": record.spread(busy, 4),
        "measured": " ".join([Path(command[0]).name, *command[1:]]),
        "forbidden_imports": [name for name in imported if name in FORBIDDEN],
        "heavy_imports": imported,
        "seconds": record.spread(seconds, 4),
    }


def _cpu_seconds() -> float:
    """Return what all processes that were waited for have used, whatever else the machine did."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _bare_seconds(environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], env=environment, check=True)
    return time.perf_counter() - began


def settings_of(section: str, arguments: argparse.Namespace, weights: Weights) -> record.Facts:
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
        settings["noise"] = asdict(rem_noise(arguments))
    if section in ("photos", "memory"):
        settings["photos"] = arguments.photos.resolve().name
    if section != "help":
        settings["weights_sha256"] = weights.sha256
    return {"section": section, **settings}


def rows(cells: Sequence[record.Facts]) -> list[list[str]]:
    """Return the table's lines of all sections that were measured."""
    lines: list[list[str]] = []

    def line(section: str, what: str, figures: record.Facts, unit: str = "", by: float = 1) -> None:
        values = [f"{by * figures[name]:.4g}{unit}" for name in ("median", "min", "max")]
        lines.append([section, what, *values, str(figures["n"])])

    for cell in cells:
        section, threads = cell["settings"]["section"], cell["settings"]["threads"]
        title = f"{section}, {threads} thread{'s' * (threads > 1)}"
        if "ratios" in cell:
            for name, figures in cell["pictures_a_second"].items():
                line(title, f"{name}, pictures/s", figures)
            for name, figures in cell["ratios"].items():
                line(title, name, figures, " ×")
        elif section == "photos":
            line(title, f"{cell['protected']} photographs", cell["wall_seconds"], " s")
            line(title, "job alone", cell["job_seconds"], " s")
            line(title, "outside the engine, process", cell["outside_engine_of_process"], " %", 100)
            line(title, "outside the engine, job", cell["outside_engine_of_job"], " %", 100)
        elif section == "memory":
            for backend, facts in cell["backends"].items():
                for count, figures in facts["peak_mib"].items():
                    line(title, f"{backend}, peak memory, {count} photographs", figures, " MiB")
                line(title, f"{backend}, many over few", facts["ratio"], " ×")
        else:
            line(title, f"`{cell['measured']}`", cell["seconds"], " s")
            line(title, "its processor time", cell["cpu_seconds"], " s")
            forbidden = ", ".join(cell["forbidden_imports"]) or "none"
            lines.append([title, f"imports of {', '.join(FORBIDDEN)}", forbidden, "", "", "1"])
    return lines


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--weights", required=True, help="name or file, trained for the method tue")
    add("--photos", type=Path, help="a folder of photographs")
    add("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    add("--threads", type=int, default=1, help="of torch")
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
    add("--name", default="speed", help="of the results file")
    add("--results", type=Path, default=record.RESULTS, help="where the results file lies")
    add("--work", type=Path, help="where copies are made; default a temporary folder")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> None:
    """Measure the sections that are asked for and not in the results yet."""
    sections = arguments.only.split(",")
    if unknown := set(sections) - set(SECTIONS):
        raise SystemExit(f"There is no section {', '.join(sorted(unknown))}.")
    if arguments.photos is None and {"photos", "memory"} & set(sections):
        raise SystemExit("The sections photos and memory need --photos DIR.")
    weights = load(arguments.weights)
    results = record.Results(arguments.results, arguments.name, replacing=_REPLACING)
    results.put(benchmark="speed", weights=record.weights_facts(weights))
    measured: dict[str, Callable[[], record.Facts]] = {
        "engine": lambda: engine(arguments, weights),
        "gray": lambda: gray(arguments, weights),
        "rem": lambda: rem(arguments, weights),
        "photos": lambda: photos(arguments),
        "memory": lambda: memory(arguments),
        "help": lambda: help_page(arguments),
    }
    # What runs in this process comes last: it makes it large and warm.
    for section in sorted(sections, key=lambda name: name in ("engine", "gray", "rem")):
        settings = settings_of(section, arguments, weights)
        if results.find(settings):
            continue
        record.note(f"section {section}")
        where: dict[str, Any] = record.hardware(threads=arguments.threads, dtype=_dtype())
        began = time.monotonic()
        figures = measured[section]()
        results.add(
            settings,
            {
                **figures,
                "command": record.command_line(),
                "hardware": where,
                "seconds_in_all": round(time.monotonic() - began, 1),
                "seeds": [0],
            },
        )
    cells = sorted(results.cells(), key=lambda cell: SECTIONS.index(cell["settings"]["section"]))
    record.say(record.table(["section", "what", "median", "min", "max", "n"], rows(cells)))


_REPLACING = (
    *("weights_sha256", "batch", "steps", "repeats", "photos", "count", "many", "jobs"),
    *("noise", "rem_repeats", "command_repeats", "memory_repeats", "help_repeats"),
)
"""A section has one cell for every number of threads."""


def _dtype() -> str:
    """Return the precision that the engine chooses here, found out in a process of its own."""
    code = "from tue_cli.engine.torch import machine; print(machine('cpu').dtype)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    return found.strip().removeprefix("torch.")


if __name__ == "__main__":
    record.in_work(parsed(), measure)
