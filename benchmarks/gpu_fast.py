"""How fast the card makes noise and trains, by every way of running, and the two commands on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.command import TUE, build_protect_command, read_summary
from benchmarks.gpu_bench import WAYS, Bench
from benchmarks.gpu_table import PROBE, measure_step
from benchmarks.gpu_work import count_flops, measure_bf16_rate
from tue_cli.core.batches import make_generator
from tue_cli.core.capture import Captured, record_call, record_graph, use_recorder
from tue_cli.core.losses import cross_entropy
from tue_cli.core.pgd import make_gradient
from tue_cli.engine.torch import TorchEngine
from tue_cli.methods.tue import FITS, perturb
from tue_cli.nets.classifiers import Classifier, build_classifier
from tue_cli.nets.frozen import FrozenClassifier, FrozenScore, convert_to_channels_last
from tue_cli.nets.score import ScoreNet
from tue_cli.noise import TueNoise
from tue_cli.train.run import begin_trainings
from tue_cli.weights import Card, Weights, draw_nets

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
TERMS: dict[str, dict[str, Any]] = {
    "surrogate": {"score_ratio": 0.0, "gray_ratio": 0.0},
    "surrogate, score": {"gray_ratio": 0.0},
    "surrogate, grey": {"score_ratio": 0.0},
    "all": {},
}
"""Which terms the noise has, by what is changed of its settings."""
COMPILED = 25.0
"""Seconds that must be left for compiling, which cannot be broken off."""


def measure_speed(bench: Bench, seconds: float) -> None:
    """Write one row for each timing, the most telling first, as long as there is time.

    That is noise and training at full width, the two commands, compiled noise; then noise at other
    widths, batches and terms, and the product's engine.
    """
    end = min(seconds, bench.clock.count_left()) + time.monotonic()

    def count_left() -> float:
        return end - time.monotonic()

    began = time.monotonic()
    rate = measure_bf16_rate(
        bench.budget.side, bench.computer.device, lambda run: bench.time_run(run)[0]
    )
    asked = {"side": bench.budget.side}
    if bench.rows.is_missing("timing: bf16 product", asked):
        seconds = round(time.monotonic() - began, 2)
        bench.rows.add(
            "timing: bf16 product", asked, tflops=round(rate, 2), seed=0, n=1, seconds=seconds
        )
    width, batch = max(bench.budget.widths), min(bench.budget.batches)
    for way in WAYS:
        _time_noise(bench, width, batch, "all", way, rate)
    steps: list[Callable[[], object]] = [
        lambda: _time_training(bench),
        lambda: _protect(bench, count_left()),
        lambda: _time_compiled(bench, rate) if count_left() > COMPILED or bench.rehearse else None,
        lambda: _verify(bench, count_left()),
        *(
            lambda w=w, b=b, terms=terms, way=way: _time_noise(bench, w, b, terms, way, rate)
            for w in sorted(bench.budget.widths, reverse=True)
            for b in bench.budget.batches
            for terms in TERMS
            for way in (WAYS if b == batch else ("captured",))
        ),
        lambda: _time_engine(bench),
    ]
    for step in steps:
        if count_left() > 0:
            bench.attempt("fast", step)


def _build_nets(bench: Bench, width: int) -> dict[str, Any]:
    torch.manual_seed(0)
    device, dtype = bench.computer.device, bench.computer.dtype
    score = ScoreNet(classes=10, width=bench.budget.training.score_width, sigma=0.1)
    nn.init.normal_(score.leave.weight, std=0.05)
    net = build_classifier("resnet18", classes=10, width=width)
    return {
        "surrogate": FrozenClassifier(convert_to_channels_last(net.to(device)), dtype),
        "score": FrozenScore(convert_to_channels_last(score.to(device)), dtype),
    }


def _time_noise(
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
    noise = TueNoise(steps=bench.budget.noise_steps, **TERMS[terms])
    asked = {"width": width, "batch": batch, "terms": terms, "way": way, "steps": noise.steps}
    if not bench.rows.is_missing("timing: noise", asked):
        return
    nets = nets or _build_nets(bench, width)
    device = bench.computer.device
    generator = torch.Generator(device=device).manual_seed(0)
    pixels = torch.rand((batch, 3, 32, 32), generator=generator, device=device)
    labels = torch.arange(batch, device=device) % 10
    start = torch.zeros_like(pixels)
    with use_recorder(recorder or WAYS[way]):
        run = Captured(device)

    def run_once() -> Tensor:
        draws = make_generator(0, "perturb", 0, device)
        return perturb(nets, pixels, labels, noise, start=start, generator=draws, run=run)

    seconds, n = bench.time_run(run_once)
    cost = count_flops(width, bench.budget.training.score_width)
    a_step = cost["gradient"] * (1 + bool(noise.gray_ratio))
    a_step += cost["score gradient"] * bool(noise.score_ratio)
    reached = noise.steps * batch * a_step / seconds / 1e12
    bench.rows.add(
        "timing: noise",
        asked,
        pictures_a_second=round(batch / seconds, 1),
        tflops=round(reached, 2),
        share_of_product=round(reached / rate, 4),
        recorded=run.recorded,
        n=n,
        seed=0,
        seconds=seconds,
    )


@contextmanager
def _set_deterministic(wanted: bool) -> Iterator[None]:
    former = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = former


def _time_training(bench: Bench) -> None:
    """Time steps of the surrogate's training: captured and eager, cuDNN deterministic or not."""
    chosen, classes = bench.budget.training, bench.split.classes
    card = Card("tue", "resnet18", chosen.width, 32, classes, chosen.score_width, 0.1, {})
    score = ScoreNet(classes=len(classes), width=chosen.score_width, sigma=chosen.sigma)
    score = convert_to_channels_last(score.to(bench.computer.device))
    nets = {"score": FrozenScore(score, bench.computer.dtype)}
    chosen_way = bench.way
    for way, exact in (("captured", True), ("eager", True), ("captured", False)):
        asked = {"width": chosen.width, "batch": chosen.batch, "way": way, "deterministic": exact}
        if not bench.rows.is_missing("timing: training step of the surrogate", asked):
            continue
        few = replace(chosen, steps=PROBE)
        training = begin_trainings(card, {"surrogate": FITS["surrogate"]}, few, bench.computer)[
            "surrogate"
        ]
        bench.way = way
        with _set_deterministic(exact):
            updates = FITS["surrogate"].fit(
                training, nets, bench.split.train, few, bench.computer.dtype
            )
            seconds = measure_step(bench, updates)
        bench.rows.add(
            "timing: training step of the surrogate",
            asked,
            pictures_a_second=round(chosen.batch / seconds, 1),
            n=PROBE // 2,
            seed=0,
            seconds=seconds,
        )
    bench.way = chosen_way


def _time_engine(bench: Bench) -> None:
    """Time the product's engine, whose pictures come from the host and whose noise goes back."""
    for width in bench.budget.widths:
        card = Card("tue", "resnet18", width, 32, tuple("abcdefghij"), 8, 0.1, {})
        nets = draw_nets(card, ("score", "surrogate"), seed=0)
        tensors = {
            f"{role}.{name}": value.numpy()
            for role, net in nets.items()
            for name, value in net.state_dict().items()
        }
        batch = max(bench.budget.batches)
        asked = {"width": width, "batch": batch, "way": bench.way, "score_width": 8}
        if not bench.rows.is_missing("timing: engine", asked):
            continue
        with bench.use_way():
            engine = TorchEngine(
                Weights("timed", card, tensors, ""),
                "tue",
                TueNoise(),
                seed=0,
                machine=bench.computer,
                batch=batch,
            )
        pixels = np.random.default_rng(0).random((batch, 3, 32, 32), np.float32)
        keys, seeds = np.arange(batch) % 10, list(range(batch))
        seconds, n = bench.time_run(lambda: engine.perturb(pixels, keys, seeds))  # noqa: B023
        bench.rows.add(
            "timing: engine",
            asked,
            pictures_a_second=round(batch / seconds, 1),
            n=n,
            seed=0,
            seconds=seconds,
        )


def _protect(bench: Bench, seconds: float) -> None:
    """Run `tue protect` on the six photographs, and on some of the data as files."""
    originals = bench.work / "originals"
    train, each = bench.split.train, bench.budget.per_class or 100
    for number, name in enumerate(bench.split.classes[:10]):
        (originals / name).mkdir(parents=True, exist_ok=True)
        places = (train.labels == number).nonzero()[:each, 0]
        for place, levels in enumerate(train.pixels[places].cpu().numpy()):
            Image.fromarray(levels.transpose(1, 2, 0)).save(originals / name / f"{place}.png")
    device, end = bench.computer.device.type, time.monotonic() + seconds
    options = ["--backend", "torch", *(["--steps", "1"] if bench.rehearse else [])]
    for source in (ROOT / "assets/photos", originals):
        output = bench.work / f"{source.name}-protected"
        command = build_protect_command(
            source, output, weights="cifar10", device=device, options=options
        )
        began = time.monotonic()
        code, said, noted = bench.call(command, max(1.0, end - began))
        summary = read_summary(said)
        figures = {name: summary.get(name) for name in ("protected", "failed", "engine_seconds")}
        bench.rows.add(
            "timing: tue protect",
            {"source": source.name, "device": device},
            code=code,
            figures=figures,
            said=noted[-300:],
            n=1,
            seed=0,
            seconds=round(time.monotonic() - began, 2),
        )


def _verify(bench: Bench, seconds: float) -> None:
    """Run `tue verify` on what was protected, as long as there is time."""
    originals, copies = bench.work / "originals", bench.work / "originals-protected"
    device = bench.computer.device.type
    budget = "1s" if bench.rehearse else "quick"
    command = [*TUE, "verify", str(copies), "--original", str(originals)]
    command += ["--budget", budget, "--device", device, "--json"]
    command += ["--attacks", "std", "--victim", "resnet18:0.0625"] if bench.rehearse else []
    began = time.monotonic()
    code, said, noted = bench.call(command, seconds, XDG_CACHE_HOME=str(bench.work / "cache"))
    count = sum(1 for _ in originals.rglob("*.png"))
    bench.rows.add(
        "timing: tue verify",
        {"budget": budget, "device": device, "pictures": count},
        code=code,
        verdict=read_summary(said).get("verdict"),
        said=noted[-300:],
        n=1,
        seed=0,
        seconds=round(time.monotonic() - began, 1),
    )


def _time_compiled(bench: Bench, rate: float) -> None:
    """Compile the surrogate, hold it against itself, and time its noise, called and captured."""
    width, batch = max(bench.budget.widths), min(bench.budget.batches)
    asked = {"width": width, "batch": batch}
    if not bench.rows.is_missing("timing: compiling", asked):
        return
    nets = _build_nets(bench, width)
    began = time.monotonic()
    failed, apart = compile_net(nets["surrogate"], bench.computer.device, batch)
    bench.rows.add(
        "timing: compiling",
        asked,
        apart_from_eager=apart,
        **({} if failed is None else {"failed": failed}),
        n=1,
        seed=0,
        seconds=round(time.monotonic() - began, 1),
    )
    if failed is None:
        for way, recorder in (("compiled", record_call), ("compiled, captured", record_graph)):
            _time_noise(bench, width, batch, "all", way, rate, nets, recorder)


def warm_up(width: int, batch: int) -> None:
    """Compile once, in a process beside the run, for the compiler's cache: it takes half a minute
    of the processor, which the run has to spare.
    """
    device = torch.device("cuda")
    torch.manual_seed(0)
    net = convert_to_channels_last(build_classifier("resnet18", classes=10, width=width).to(device))
    compile_net(FrozenClassifier(net, torch.bfloat16), device, batch)


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
    before = make_gradient(loss)(pixels)
    try:
        frozen.net = cast(Classifier, torch.compile(plain, backend=backend))
        after = make_gradient(loss)(pixels)
        apart = float((after - before).norm() / before.norm())
        if not apart <= 0.1:
            raise RuntimeError(f"the gradient is {apart:.3g} apart")
    except Exception as error:  # a compiler fails in a hundred ways
        frozen.net = plain
        return f"{type(error).__name__}: {str(error)[:300]}", None
    return None, float(f"{apart:.3g}")
