"""What ONNX Runtime makes of the noise against torch: the same noise, how soon and how fast.

    python -m benchmarks.runtimes --weights NAME --data DIR/cifar-10 --photo FILE.jpg --threads 1

- agreement: on pictures of `--data`, after one step and after `--steps`: equal entries, levels
  within one of each other, and the surrogate's loss on the written pictures.
- start: `tue protect --radius 8 --gray 0 --smooth 1` of one photograph by either engine, as whole
  processes, in turns.
- speed: pictures a second at `--steps` steps at the weights' width and at 64 (fresh nets), by the
  ONNX engine, the torch engine in float32 and in its own precision, and torch eager with frozen
  parameters and nothing else (float32, NCHW, batch norms as they are). Turns are taken.

Ratios are of one run; a section that is in the results with the same settings is not run again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import script
from benchmarks.command import PAPERS, build_environment, build_protect_command
from benchmarks.noise import make_published_noise
from benchmarks.plain import perturb_plainly
from benchmarks.rows import Row
from benchmarks.summary import format_table, summarize
from benchmarks.turns import compute_paces, compute_ratio, time_in_turns
from tue_cli.core.losses import cross_entropy
from tue_cli.core.pgd import make_gradient
from tue_cli.engine.onnx import OnnxEngine
from tue_cli.engine.onnx_graph.step import build_step_graph
from tue_cli.engine.torch import ComputeDevice, Engine, TorchEngine, choose_device
from tue_cli.images import codec, resize
from tue_cli.noise import TueNoise
from tue_cli.weights import Weights, build, draw_nets, load

SECTIONS = ("agreement", "start", "speed")
BATCH = 32
CPU = torch.device("cpu")
FLOAT32 = ComputeDevice(CPU, torch.float32, "CPU, float32")


def open_onnx(weights: Weights, noise: TueNoise) -> Engine:
    graph = build_step_graph(weights).SerializeToString()
    return OnnxEngine(weights, graph, "tue", noise, seed=0, device="cpu", batch=BATCH)


def open_torch(weights: Weights, noise: TueNoise, computer: ComputeDevice) -> Engine:
    return TorchEngine(weights, "tue", noise, seed=0, machine=computer, batch=BATCH)


def load_pixels(
    folder: Path, count: int, size: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return pictures of a folder with a subfolder a class, evenly from all, and their classes."""
    files = [sorted(c.iterdir()) for c in sorted(folder.iterdir()) if c.is_dir()]
    chosen = [(files[n % len(files)][n // len(files)], n % len(files)) for n in range(count)]
    small = [resize.resize_to_square(codec.decode(codec.read(p)).pixels, size) for p, _ in chosen]
    return np.stack(small), np.array([label for _, label in chosen])


def measure_agreement(arguments: argparse.Namespace, weights: Weights) -> Row:
    """Compare the noise of both engines in float32."""
    pixels, keys = load_pixels(arguments.data / "test", arguments.count, weights.card.size)
    seeds = list(range(len(pixels)))
    whole = make_published_noise(steps=arguments.steps)
    # One step as long as one of many: a longer one would end at the ball's wall, right or wrong.
    one = replace(whole, steps=1, travel=whole.travel / arguments.steps)
    first, last = (
        [engine.perturb(pixels, keys, seeds) for engine in engines]
        for engines in (
            (open_onnx(weights, one), open_torch(weights, one, FLOAT32)),
            (open_onnx(weights, whole), open_torch(weights, whole, FLOAT32)),
        )
    )
    levels = [np.rint(delta * 255) for delta in last]
    surrogate = build(weights, ("surrogate",))["surrogate"].eval()

    def loss(snapped: NDArray[np.float32]) -> float:
        at = torch.from_numpy((pixels + snapped / 255).astype(np.float32))
        with torch.no_grad():
            return float(cross_entropy(surrogate, torch.from_numpy(keys))(at).mean())

    losses = [loss(snapped) for snapped in levels]
    return {
        "one_step_equal": round(float((np.abs(first[0] - first[1]) < 1e-6).mean()), 6),
        "levels_equal": round(float((levels[0] == levels[1]).mean()), 5),
        "levels_within_one": round(float((np.abs(levels[0] - levels[1]) <= 1).mean()), 5),
        "loss": {
            "clean": round(loss(np.zeros_like(pixels)), 5),
            "onnx": round(losses[0], 5),
            "torch": round(losses[1], 5),
            "onnx_over_torch": round(losses[0] / losses[1], 4),
        },
    }


def measure_start(arguments: argparse.Namespace, weights: Weights) -> Row:
    """Time `tue protect` of one photograph from its start to its end, by either engine."""
    seconds: dict[str, list[float]] = {"onnx": [], "torch": []}
    size = ""
    with tempfile.TemporaryDirectory(prefix="tue-start-") as folder:
        source = Path(folder) / "in" / arguments.photo.name
        source.parent.mkdir()
        shutil.copy2(arguments.photo, source)
        shape = codec.decode(codec.read(source)).pixels.shape
        size = f"{shape[1]} x {shape[0]}"
        for turn in range(arguments.repeats + 1):
            for backend, values in seconds.items():
                output = Path(folder) / backend
                steps = ("--steps", str(arguments.steps))
                options = ("--backend", backend, *steps, *PAPERS)
                command = build_protect_command(
                    source, output, weights=arguments.weights, device="cpu", options=options
                )
                began = time.perf_counter()
                subprocess.run(
                    command,
                    env=build_environment(arguments.threads),
                    capture_output=True,
                    check=True,
                )
                if turn:
                    values.append(time.perf_counter() - began)
                shutil.rmtree(output)
            script.note(f"start: turn {turn} of {arguments.repeats}")
    pairs = zip(seconds["onnx"], seconds["torch"], strict=True)
    return {
        "photograph": size,
        "command_seconds": {name: summarize(values, 3) for name, values in seconds.items()},
        "onnx_over_torch": summarize((a / b for a, b in pairs), 3),
    }


def make_frozen_eager(weights: Weights, noise: TueNoise) -> Callable[..., object]:
    """Return noise by torch as it comes, but for parameters that need no gradient."""
    nets = {role: net.eval() for role, net in build(weights, ("score", "surrogate")).items()}
    for net in nets.values():
        net.requires_grad_(False)

    def perturb(pixels: NDArray[np.float32], keys: NDArray[np.int64], seeds: list[int]) -> object:
        return perturb_plainly(
            nets, pixels, keys, seeds, noise, lambda objective, _: make_gradient(objective)
        )

    return perturb


def measure_speed(arguments: argparse.Namespace, weights: Weights) -> Row:
    """Time whole steps of one batch at two widths."""
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    noise = make_published_noise(steps=arguments.steps)
    own = choose_device("cpu")
    widths = {}
    for width in dict.fromkeys((*arguments.widths, weights.card.width)):
        these = weights if width == weights.card.width else make_width(weights, width)
        size, count = these.card.size, len(these.card.classes)
        pixels = np.random.default_rng(0).random((BATCH, 3, size, size), np.float32)
        keys, seeds = np.arange(BATCH, dtype=np.int64) % count, list(range(BATCH))
        runs = {
            "onnx, float32": open_onnx(these, noise).perturb,
            "torch engine, float32": open_torch(these, noise, FLOAT32).perturb,
            "torch frozen, float32": make_frozen_eager(these, noise),
            f"torch engine, {str(own.dtype).removeprefix('torch.')}": open_torch(
                these, noise, own
            ).perturb,
        }
        script.note(f"speed, width {width}")
        seconds = time_in_turns(
            {name: partial(run, pixels, keys, seeds) for name, run in runs.items()},
            arguments.repeats,
        )
        ours = seconds["onnx, float32"]
        widths[str(width)] = {
            "score_width": these.card.score_width,
            "pictures_a_second": {
                name: compute_paces(values, BATCH) for name, values in seconds.items()
            },
            "onnx_over": {
                name: compute_ratio(values, ours)
                for name, values in seconds.items()
                if values is not ours
            },
        }
    return {"widths": widths}


def make_width(weights: Weights, width: int) -> Weights:
    """Return fresh nets of another width, the score network in the same proportion: speed does
    not depend on what was learned.
    """
    card = replace(
        weights.card,
        width=width,
        score_width=weights.card.score_width * width // weights.card.width,
    )
    tensors = {
        f"{role}.{name}": value.numpy()
        for role, net in draw_nets(card, ("score", "surrogate"), 0).items()
        for name, value in net.state_dict().items()
    }
    return replace(weights, card=card, tensors=tensors)


def make_settings(section: str, arguments: argparse.Namespace, weights: Weights) -> Row:
    """Return all that a section's figures depend on, but for the machine."""
    names = {
        "agreement": ("count", "steps"),
        "start": ("repeats", "steps", "threads"),
        "speed": ("repeats", "steps", "threads", "widths"),
    }[section]
    settings = {name: getattr(arguments, name) for name in names}
    return {"weights_sha256": weights.sha256, **settings}


def list_lines(rows: Sequence[Row]) -> list[list[str]]:
    """Return the table's lines."""
    lines: list[list[str]] = []
    for row in rows:
        section = row["cell"].removeprefix("runtimes: ")
        title = f"{section}, {row['hardware']['threads']} thread(s)"
        if section == "agreement":
            figures = {name: row[name] for name in row if name.startswith(("one", "levels"))}
            figures |= {f"loss, {name}": value for name, value in row["loss"].items()}
            lines += [[section, name, str(value), ""] for name, value in figures.items()]
        elif section == "start":
            runs = [*row["command_seconds"].items(), ("ratio", row["onnx_over_torch"])]
            for name, figures in runs:
                lines.append([title, name, str(figures["median"]), str(figures["n"])])
        else:
            for width, facts in row["widths"].items():
                for name, figures in facts["pictures_a_second"].items():
                    what = f"width {width}: {name}, pictures/s"
                    lines.append([title, what, str(figures["median"]), str(figures["n"])])
                for name, figures in facts["onnx_over"].items():
                    what = f"width {width}: onnx over {name}"
                    lines.append([title, what, str(figures["median"]), str(figures["n"])])
    return lines


def describe_runtime() -> Row:
    """Return which ONNX Runtime is installed."""
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return {"package": name, "version": version(name)}
        except PackageNotFoundError:
            continue
    return {}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = script.make_parser(__doc__, "runtimes")
    add = parser.add_argument
    add("--weights", required=True, help="name or file, trained for the method tue")
    add("--data", type=Path, help="a folder with test/, a subfolder a class; for agreement")
    add("--photo", type=Path, help="one photograph; for start")
    add("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    add("--steps", type=int, default=10)
    add("--count", type=int, default=100, help="pictures of agreement")
    add("--widths", type=script.parse_numbers, default=[16, 64])
    add("--repeats", type=int, default=5)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> None:
    """Measure what is not in the results yet, and print the table."""
    weights = load(arguments.weights)
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    rows = script.open_rows(arguments, dtype="float32")
    sections = {
        "agreement": (measure_agreement, arguments.count),
        "start": (measure_start, arguments.repeats),
        "speed": (measure_speed, arguments.repeats),
    }
    found = []
    for section in arguments.only.split(","):
        settings, cell = make_settings(section, arguments, weights), f"runtimes: {section}"
        row = rows.find(cell, settings)
        if row is None:
            began, (run, n) = time.monotonic(), sections[section]
            figures = {**run(arguments, weights), "runtime": describe_runtime()}
            seconds = round(time.monotonic() - began, 1)
            row = rows.add(cell, settings, **figures, seed=0, n=n, seconds=seconds)
        found.append(row)
    script.say(format_table(["section", "what", "median", "n"], list_lines(found)))


if __name__ == "__main__":
    script.run(parse_arguments(), measure)
