"""How fast the card makes noise and trains, by every way of running, and the two commands on it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from gpu_bench import WAYS, Bench
from gpu_table import PROBE, seconds_a_step
from gpu_work import bf16_rate, flops
from PIL import Image
from torch import Tensor, nn

from tue_cli.engine import TorchEngine
from tue_cli.jobs.train import trainings_of
from tue_cli.methods import RECIPES
from tue_cli.methods.tue import perturb
from tue_cli.nets.classifiers import classifier
from tue_cli.nets.frozen import FrozenClassifier, FrozenScore, channels_last
from tue_cli.nets.score import ScoreNet
from tue_cli.numerics.batches import generator_at
from tue_cli.numerics.capture import Captured, record_call, record_graph, recorded_by
from tue_cli.numerics.losses import cross_entropy
from tue_cli.numerics.pgd import gradient_of
from tue_cli.settings import NoiseSettings
from tue_cli.weights import Card, Weights, fresh

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
TERMS = {
    "surrogate": {"score_ratio": 0.0, "gray_ratio": 0.0},
    "surrogate, score": {"gray_ratio": 0.0},
    "surrogate, grey": {"score_ratio": 0.0},
    "all": {},
}
"""Which terms the noise has, by what is changed of its settings."""
COMPILED = 45.0
"""Seconds that must be left for compiling, which cannot be broken off."""


def fast(bench: Bench, seconds: float) -> None:
    """Write a row a timing: noise, trainings, `tue protect`, compiled noise, `tue verify`."""
    end = min(seconds, bench.clock.left()) + time.monotonic()

    def left() -> float:
        return end - time.monotonic()

    rate = bf16_rate(bench.budget.side, bench.computer.device, lambda run: bench.timed(run)[0])
    bench.rows.add(
        "timing: bf16 product", {"side": bench.budget.side}, tflops=round(rate, 2), seed=0, n=1
    )
    # The most telling first: the width and batch of training, then what changes with either.
    for width in sorted(bench.budget.widths, reverse=True):
        for batch in bench.budget.batches:
            for terms in ("all", "surrogate", "surrogate, score", "surrogate, grey"):
                ways = WAYS if batch == min(bench.budget.batches) else {"captured": record_graph}
                for way in ways:
                    if left() > 0:
                        _noise(bench, width, batch, terms, way, rate)
    if left() > 0:
        _trainings(bench)
    if left() > 0:
        _engine(bench)
    copies = _protect(bench) if left() > 0 else None
    if left() > COMPILED or bench.rehearse:
        _compiled(bench, rate)
    if copies is not None and left() > 0:
        _verify(bench, copies, max(left(), 1.0))


def _nets(bench: Bench, width: int) -> dict[str, Any]:
    torch.manual_seed(0)
    device, dtype = bench.computer.device, bench.computer.dtype
    score = ScoreNet(classes=10, width=bench.budget.training.score_width, sigma=0.1)
    nn.init.normal_(score.leave.weight, std=0.05)
    net = classifier("resnet18", classes=10, width=width)
    return {
        "surrogate": FrozenClassifier(channels_last(net.to(device)), dtype),
        "score": FrozenScore(channels_last(score.to(device)), dtype),
    }


def _noise(
    bench: Bench,
    width: int,
    batch: int,
    terms: str,
    way: str,
    rate: float,
    nets: dict[str, Any] | None = None,
    recorder: Any = None,
) -> None:
    """Time the noise of one batch, in ten steps, on the device alone."""
    nets = nets or _nets(bench, width)
    noise = replace(NoiseSettings(steps=bench.budget.noise_steps), **TERMS[terms])
    device = bench.computer.device
    generator = torch.Generator(device=device).manual_seed(0)
    pixels = torch.rand((batch, 3, 32, 32), generator=generator, device=device)
    labels = torch.arange(batch, device=device) % 10
    start = torch.zeros_like(pixels)
    with recorded_by(recorder or WAYS[way]):
        run = Captured(device)

    def once() -> Tensor:
        draws = generator_at(0, "perturb", 0, device)
        return perturb(nets, pixels, labels, noise, start=start, generator=draws, run=run)

    seconds, n = bench.timed(once)
    cost = flops(width, bench.budget.training.score_width)
    a_step = cost["gradient"] * (1 + bool(noise.gray_ratio))
    a_step += cost["score gradient"] * bool(noise.score_ratio)
    reached = noise.steps * batch * a_step / seconds / 1e12
    bench.rows.add(
        "timing: noise",
        {"width": width, "batch": batch, "terms": terms, "way": way, "steps": noise.steps},
        pictures_a_second=round(batch / seconds, 1),
        tflops=round(reached, 2),
        share_of_product=round(reached / rate, 4),
        recorded=run.recorded,
        n=n,
        seed=0,
        seconds=seconds,
    )


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    former = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = former


def _trainings(bench: Bench) -> None:
    """Time steps of the surrogate's training: captured and eager, cuDNN deterministic or not."""
    chosen, classes = bench.budget.training, bench.split.classes
    card = Card("tue", "resnet18", chosen.width, 32, classes, chosen.score_width, 0.1, {})
    score = ScoreNet(classes=len(classes), width=chosen.score_width, sigma=chosen.sigma)
    score = channels_last(score.to(bench.computer.device))
    nets = {"score": FrozenScore(score, bench.computer.dtype)}
    chosen_way = bench.way
    for way, exact in (("captured", True), ("eager", True), ("captured", False)):
        few = replace(chosen, steps=PROBE)
        training = trainings_of(card, ("surrogate",), few, bench.computer)["surrogate"]
        bench.way = way
        with _deterministic(exact):
            updates = RECIPES["tue"](
                "surrogate", training, nets, bench.split.train, few, bench.computer.dtype
            )
            seconds = seconds_a_step(bench, updates)
        bench.rows.add(
            "timing: training step of the surrogate",
            {"width": chosen.width, "batch": chosen.batch, "way": way, "deterministic": exact},
            pictures_a_second=round(chosen.batch / seconds, 1),
            n=PROBE // 2,
            seed=0,
            seconds=seconds,
        )
    bench.way = chosen_way


def _engine(bench: Bench) -> None:
    """Time the product's engine, whose pictures come from the host and whose noise goes back."""
    for width in bench.budget.widths:
        card = Card("tue", "resnet18", width, 32, tuple("abcdefghij"), 8, 0.1, {})
        nets = fresh(card, ("score", "surrogate"), seed=0)
        tensors = {
            f"{role}.{name}": value.numpy()
            for role, net in nets.items()
            for name, value in net.state_dict().items()
        }
        batch = max(bench.budget.batches)
        with bench.recorded():
            engine = TorchEngine(
                Weights("timed", card, tensors, ""),
                "tue",
                NoiseSettings(),
                seed=0,
                machine=bench.computer,
                batch=batch,
            )
        pixels = np.random.default_rng(0).random((batch, 3, 32, 32), np.float32)
        keys, seeds = np.arange(batch) % 10, list(range(batch))
        seconds, n = bench.timed(lambda: engine.perturb(pixels, keys, seeds))  # noqa: B023
        bench.rows.add(
            "timing: engine",
            {"width": width, "batch": batch, "way": bench.way, "score_width": 8},
            pictures_a_second=round(batch / seconds, 1),
            n=n,
            seed=0,
            seconds=seconds,
        )


def _protect(bench: Bench) -> tuple[Path, Path] | None:
    """Run `tue protect` on the six photographs, and on some of the data as files."""
    originals, copies = bench.work / "originals", bench.work / "copies"
    train, each = bench.split.train, bench.budget.per_class or 100
    for number, name in enumerate(bench.split.classes[:10]):
        (originals / name).mkdir(parents=True, exist_ok=True)
        places = (train.labels == number).nonzero()[:each, 0]
        for place, levels in enumerate(train.pixels[places].cpu().numpy()):
            Image.fromarray(levels.transpose(1, 2, 0)).save(originals / name / f"{place}.png")
    device = bench.computer.device.type
    made = True
    for source, output in ((ROOT / "assets/photos", bench.work / "photos"), (originals, copies)):
        told = {"source": source.name, "device": device}
        try:
            figures = record.run_protect(
                source,
                output,
                weights="cifar10",
                device=device,
                threads=min(16, os.cpu_count() or 1),
                options=["--backend", "torch", *(["--steps", "1"] if bench.rehearse else [])],
            )
        except SystemExit as error:
            bench.rows.add("timing: tue protect", told, failed=str(error)[-500:], n=1, seed=0)
            made = False
        else:
            bench.rows.add("timing: tue protect", told, **figures, n=1, seed=0)
    return (originals, copies) if made else None


def _verify(bench: Bench, folders: tuple[Path, Path], seconds: float) -> None:
    """Run `tue verify` on what was protected, as long as there is time."""
    originals, copies = folders
    device = bench.computer.device.type
    budget = "1s" if bench.rehearse else "quick"
    command = [*record.TUE, "verify", str(copies), "--original", str(originals)]
    command += ["--budget", budget, "--device", device, "--json"]
    command += ["--attacks", "std", "--victim", "resnet18:0.0625"] if bench.rehearse else []
    environment = record.environment(min(16, os.cpu_count() or 1))
    environment["XDG_CACHE_HOME"] = str(bench.work / "cache")
    began = time.monotonic()
    told = {
        "budget": budget,
        "device": device,
        "pictures": sum(1 for _ in originals.rglob("*.png")),
    }
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        figures = {
            "code": done.returncode,
            "said": done.stderr[-300:],
            "verdict": events[-1].get("verdict") if events else None,
        }
    except subprocess.TimeoutExpired:
        figures = {"code": None, "said": f"not over after {seconds:.0f} s"}
    spent = round(time.monotonic() - began, 1)
    bench.rows.add("timing: tue verify", told, **figures, n=1, seed=0, seconds=spent)


def _compiled(bench: Bench, rate: float) -> None:
    """Compile the surrogate, hold it against itself, and time its noise, called and captured."""
    width, batch = max(bench.budget.widths), min(bench.budget.batches)
    nets = _nets(bench, width)
    began = time.monotonic()
    failed, apart = compile_net(nets["surrogate"], bench.computer.device, batch)
    bench.rows.add(
        "timing: compiling",
        {"width": width, "batch": batch},
        apart_from_eager=apart,
        failed=failed,
        n=1,
        seed=0,
        seconds=round(time.monotonic() - began, 1),
    )
    if failed is None:
        for way, recorder in (("compiled", record_call), ("compiled, captured", record_graph)):
            _noise(bench, width, batch, "all", way, rate, nets, recorder)


def compile_net(
    frozen: FrozenClassifier, device: torch.device, batch: int, backend: str | None = None
) -> tuple[str | None, float | None]:
    """Compile a frozen net in place; return why it could not be, and how its gradient changed.

    Where it cannot be compiled, or computes something else, it stays as it was.
    """
    plain = frozen.net
    # On a CPU inductor takes minutes; what goes before it is the same.
    backend = backend or ("inductor" if device.type == "cuda" else "aot_eager")
    generator = torch.Generator(device=device).manual_seed(1)
    pixels = torch.rand((batch, 3, 32, 32), generator=generator, device=device)
    loss = cross_entropy(frozen, torch.arange(batch, device=device) % 10)
    before = gradient_of(loss)(pixels)
    try:
        frozen.net = torch.compile(plain, backend=backend)
        after = gradient_of(loss)(pixels)
        apart = float((after - before).norm() / before.norm())
        if not apart <= 0.1:
            raise RuntimeError(f"the gradient is {apart:.3g} apart")
    except Exception as error:  # a compiler fails in a hundred ways
        frozen.net = plain
        return f"{type(error).__name__}: {str(error)[:300]}", None
    return None, float(f"{apart:.3g}")
