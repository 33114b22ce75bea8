"""The first step of a GPU run: is what it computes right, in every way of running?

Gradients with respect to pixels and weights, and one noise step, are compared with float64 on the
CPU; a captured training is compared with a repeat and with eager training.
"""

from __future__ import annotations

import copy
import math
import time
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu_bench import WAYS, Bench
from benchmarks.script import note
from tue_cli.core.batches import Images, make_generator
from tue_cli.core.capture import Captured, use_recorder
from tue_cli.core.loop import Plan, Training, fit
from tue_cli.core.losses import cross_entropy, score_norm
from tue_cli.core.pgd import make_gradient
from tue_cli.methods.surrogate import make_training_loss
from tue_cli.methods.tue import FITS, make_grayscale_loss, perturb
from tue_cli.nets.classifiers import Classifier, build_classifier
from tue_cli.nets.frozen import FrozenClassifier, FrozenScore, convert_to_channels_last
from tue_cli.nets.score import ScoreNet
from tue_cli.noise import TueNoise
from tue_cli.train.run import begin_trainings
from tue_cli.weights import Card

CPU = torch.device("cpu")
LIMITS = {torch.float32: 0.05, torch.bfloat16: 0.5}
"""Largest relative error against float64. A wrong computation has an error near 1; bfloat16,
computed right on a CPU, has 0.21 by pixels and 0.31 to 0.33 by weights, in nets of width 4, 16 and
64."""
PICTURES = 16

Parts = tuple[Classifier, ScoreNet, Tensor, Tensor]
"""Two nets, pixels (N, 3, S, S) and labels (N,), on the CPU."""


def check_ways(bench: Bench) -> None:
    """Write a row for each way of running and precision, and choose the way of the run."""
    began = time.monotonic()
    parts = _build_parts(bench)
    exact = _compute_fields(parts, CPU, torch.float64)
    good = dict.fromkeys(WAYS, True)
    eager: dict[torch.dtype, dict[str, float]] = {}
    for way, recorder in WAYS.items():
        for dtype in dict.fromkeys([torch.float32, bench.computer.dtype]):
            exactly = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
            with use_recorder(recorder), exactly, warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = _compute_fields(parts, bench.computer.device, dtype)
            apart = {
                name: _measure_distance(found[name], exact[name])
                for name in exact
                if name != "delta"
            }
            within = max(apart.values()) <= LIMITS[dtype]
            eager.setdefault(dtype, apart)
            # Captured is as right as eager is, whatever the precision leaves.
            good[way] &= all(apart[name] <= 2 * eager[dtype][name] + 1e-6 for name in apart)
            if bench.computer.device.type == "cuda":
                good[way] &= not said
            equal = (found["delta"] - exact["delta"]).abs() < 1e-6
            bench.rows.add(
                "right: against float64",
                {"way": way, "dtype": str(dtype).removeprefix("torch.")},
                apart={name: float(f"{value:.3g}") for name, value in apart.items()},
                noise_step_equal=round(float(equal.double().mean()), 4),
                within=within,
                fell_back=sorted({str(one.message) for one in said}),
                n=PICTURES,
                seed=0,
                seconds=round(time.monotonic() - began, 2),
            )
    good["captured"] &= _trains_alike(bench)
    bench.way = "captured" if good["captured"] else "eager"
    note(f"right: {good}; the run goes on {bench.way}")


def _build_parts(bench: Bench) -> Parts:
    """Return a net with statistics of its own, a score network that is not 0, and pictures."""
    train, chosen = bench.split.train, bench.budget.training
    count = len(bench.split.classes)
    torch.manual_seed(0)
    net = build_classifier("resnet18", classes=count, width=chosen.width)
    score = ScoreNet(classes=count, width=chosen.score_width, sigma=chosen.sigma)
    nn.init.normal_(score.leave.weight, std=0.05)
    places = torch.linspace(0, len(train) - 1, PICTURES).long()
    pixels, labels = (part.cpu() for part in train.take_batch(places))
    with torch.no_grad():
        for _ in range(20):
            net(pixels)
    return net, score, pixels, labels


def _compute_fields(parts: Parts, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return gradients by pixels and weights, and the noise after one step, on the CPU."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    net, score, pixels, labels = parts
    net = convert_to_channels_last(copy.deepcopy(net).to(device, wide))
    field = FrozenScore(copy.deepcopy(score).to(device, wide), dtype)
    surrogate = FrozenClassifier(net, dtype)
    x, y = pixels.to(device, wide), labels.to(device)

    def compute_pulls(at: Tensor, of: Tensor) -> tuple[Tensor, ...]:
        loss = cross_entropy(surrogate, of)
        every = (loss, make_grayscale_loss(loss), score_norm(field, of))
        return tuple(make_gradient(objective)(at) for objective in every)

    found = dict(
        zip(("colour", "grey", "score"), Captured(device)(compute_pulls, x, y), strict=True)
    )
    found["delta"] = perturb(
        {"surrogate": surrogate, "score": field},
        x,
        y,
        TueNoise(steps=1),
        start=torch.zeros_like(x),
        generator=make_generator(0, "perturb", 0, CPU),
        run=Captured(device),
    )

    def loss(at: Tensor, of: Tensor) -> Tensor:
        if wide == torch.float64:
            return F.cross_entropy(net(at.to(wide)), of)
        return make_training_loss(net, dtype)(at, of)

    fixed = Images((pixels * 255).round().to(torch.uint8), labels).to(device)
    update = Training(net, Plan(1, len(y), 0.1, "sgd", 0, "right"))
    list(fit(update, fixed, loss=loss, prepare=lambda at, of, _: (at, of)))
    grads = [parameter.grad for parameter in net.parameters()]
    found["weights"] = torch.cat([grad.flatten() for grad in grads if grad is not None])
    return {name: value.detach().cpu().double() for name, value in found.items()}


def _measure_distance(found: Tensor, exact: Tensor) -> float:
    """Return how far two fields are apart, in the norm of the second; infinite where not finite."""
    distance = float((found - exact).norm() / exact.norm())
    return distance if math.isfinite(distance) else math.inf


def _trains_alike(bench: Bench) -> bool:
    """Train a surrogate for three steps, twice captured and twice eagerly.

    Captured holds if it is no farther from eager than eager is from itself, or hardly.
    """
    began = time.monotonic()
    captured, waits = _train_three_steps(bench, "captured")
    captured_again, _ = _train_three_steps(bench, "captured")
    eager, _ = _train_three_steps(bench, "eager")
    eager_again, _ = _train_three_steps(bench, "eager")
    apart = _measure_distance(captured, eager)
    holds = apart <= max(2 * _measure_distance(eager_again, eager), 0.02)
    bench.rows.add(
        "right: a training captured",
        {"steps": 3, "dtype": str(bench.computer.dtype).removeprefix("torch.")},
        repeats_to_the_bit=torch.equal(captured, captured_again),
        eager_repeats_to_the_bit=torch.equal(eager, eager_again),
        apart_from_eager=float(f"{apart:.3g}"),
        waits_for_the_device=waits,
        within=holds,
        n=1,
        seed=0,
        seconds=round(time.monotonic() - began, 2),
    )
    return holds


def _train_three_steps(bench: Bench, way: str) -> tuple[Tensor, str | None]:
    """Return how three steps changed all weights, and what made the last of them wait."""
    chosen, device = bench.budget.training, bench.computer.device
    card = Card("tue", "resnet18", chosen.width, chosen.size, bench.split.classes, 8, 0.1, {})
    training = begin_trainings(card, {"surrogate": FITS["surrogate"]}, chosen, bench.computer)[
        "surrogate"
    ]
    training.plan = Plan(3, chosen.batch, 0.1, "sgd", 0, "surrogate")
    torch.manual_seed(0)
    score = ScoreNet(classes=len(card.classes), width=chosen.score_width, sigma=chosen.sigma)
    nn.init.normal_(score.leave.weight, std=0.05)
    nets = {"score": FrozenScore(convert_to_channels_last(score.to(device)), bench.computer.dtype)}
    before = torch.cat([parameter.detach().flatten() for parameter in training.net.parameters()])
    waits = None
    with use_recorder(WAYS[way]), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        losses = FITS["surrogate"].fit(
            training, nets, bench.split.train, chosen, bench.computer.dtype
        )
        next(losses)
        next(losses)
        try:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            next(losses)
        except RuntimeError as error:
            waits = str(error)[:200]
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    after = torch.cat([parameter.detach().flatten() for parameter in training.net.parameters()])
    return (after - before).cpu(), waits
