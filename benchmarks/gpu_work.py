"""Counts each step's FLOPs on the nets themselves, and predicts its time from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.noise import make_published_noise
from tue_cli.config import AdversarySettings, TrainSettings
from tue_cli.core.losses import cross_entropy, score_matching, score_norm
from tue_cli.core.pgd import make_gradient
from tue_cli.nets.classifiers import build_classifier
from tue_cli.nets.frozen import FrozenClassifier, FrozenScore
from tue_cli.nets.score import ScoreNet
from tue_cli.noise import EmNoise, RemNoise, SampledNoise, TueNoise

RATES = (150.0, 220.0)
"""TFLOP/s in bfloat16 between which such nets are expected to run on an H100."""
LEAST = 0.0015
"""Seconds that a training step takes at least, however little it computes."""


@dataclass(frozen=True)
class Budget:
    """Sizes of a run: the whole one, or a toy of it."""

    training: TrainSettings
    em_steps: int
    """Training steps of the surrogate of EM, and of others that are for comparison alone."""
    batch: int
    """Batch size of a victim."""
    epochs: int
    """Of a standard victim."""
    adversarial_epochs: int
    adversary_steps: int
    """Of the adversary of adversarial victims."""
    noise_batch: int
    noise_steps: int
    batches: tuple[int, ...]
    widths: tuple[int, ...]
    """Steps, batches and widths of the noise that is timed."""
    seconds: float
    """A timing goes on for so long."""
    side: int
    """Of the matrices by whose product the card is measured."""
    per_class: int | None = None
    """At most so many training pictures of each class."""


FULL = Budget(
    training=TrainSettings(),
    em_steps=1000,
    batch=128,
    epochs=15,
    adversarial_epochs=20,
    adversary_steps=5,
    noise_batch=500,
    noise_steps=10,
    batches=(128, 512),
    widths=(16, 64),
    seconds=0.4,
    side=8192,
)
TOY = Budget(
    training=TrainSettings(
        width=4,
        score_width=8,
        score_steps=4,
        steps=4,
        batch=8,
        noise=make_published_noise(steps=2),
        adversary=AdversarySettings(steps=1),
    ),
    em_steps=2,
    batch=8,
    epochs=1,
    adversarial_epochs=1,
    adversary_steps=1,
    noise_batch=8,
    noise_steps=2,
    batches=(4,),
    widths=(4,),
    seconds=0.0,
    side=64,
    per_class=8,
)


@cache
def count_flops(width: int, score_width: int, size: int = 32) -> dict[str, float]:
    """Return the operations a picture, of a ResNet-18 and of a score network.

    The gradients are with respect to pixels, the updates with respect to weights.
    """
    with torch.device("meta"):  # shapes alone
        net = build_classifier("resnet18", classes=10, width=width, size=size)
        score = ScoreNet(classes=10, width=score_width, sigma=0.1)
        pixels, labels = torch.empty(2, 3, size, size), torch.empty(2, dtype=torch.int64)
    frozen, field = FrozenClassifier(net, torch.float32), FrozenScore(score, torch.float32)

    def update() -> None:
        net(pixels).sum().backward()

    def update_score() -> None:
        noise = torch.randn_like(pixels)
        score_matching(score, pixels, labels, sigma=0.1, noise=noise).sum().backward()  # type: ignore[no-untyped-call]

    counted: dict[str, Callable[[], object]] = {
        "gradient": lambda: make_gradient(cross_entropy(frozen, labels))(pixels),
        "score gradient": lambda: make_gradient(score_norm(field, labels))(pixels),
        "update": update,
        "score update": update_score,
    }
    found = {}
    for name, run in counted.items():
        with FlopCounterMode(display=False) as counter:
            run()
        found[name] = counter.get_total_flops() / len(pixels)
    return found


def count_noise_flops(settings: TrainSettings) -> float:
    """Return the operations of making one picture's noise."""
    cost, noise = count_flops(settings.width, settings.score_width), settings.noise
    assert isinstance(noise, SampledNoise)
    a_step = noise.samples * cost["gradient"]
    if isinstance(noise, TueNoise):
        a_step *= 1 + bool(noise.gray_ratio)
        a_step += cost["score gradient"] if noise.score_ratio else 0.0
    if isinstance(noise, RemNoise):
        a_step *= 1 + noise.inner_steps
    return noise.steps * a_step


def count_training_flops(settings: TrainSettings, role: str) -> float:
    """Return the operations of training a net of a recipe to its end."""
    cost = count_flops(settings.width, settings.score_width)
    if role == "score":
        return settings.score_steps * settings.batch * cost["score update"]
    a_picture = cost["update"] + count_noise_flops(settings)
    if settings.method in ("tue", "rem"):
        a_picture += settings.adversary.steps * cost["gradient"]
    return settings.steps * settings.batch * a_picture


def count_victim_flops(width: int, seen: int, adversary_steps: int) -> float:
    """Return the operations of training a victim that is shown so many pictures."""
    cost = count_flops(width, 64)
    return seen * (cost["update"] + adversary_steps * cost["gradient"])


def predict_steps(pictures: int, budget: Budget = FULL) -> list[tuple[str, float, float, float]]:
    """Return the steps of a run: name, PFLOP, and seconds at the faster and the slower rate."""
    tue = budget.training
    em, rem = make_settings(budget, "EM"), make_settings(budget, "REM-lite")
    no_score = make_settings(budget, "TUE without score")
    noise = pictures * count_noise_flops(tue)
    standard = count_victim_flops(tue.width, budget.epochs * pictures, 0)
    seen = budget.adversarial_epochs * pictures
    steps: list[tuple[str, float, int]] = [
        ("starting, reading the archive, right", 0.0, 0),
        ("score network of A", count_training_flops(tue, "score"), tue.score_steps),
        ("surrogate A", count_training_flops(tue, "surrogate"), tue.steps),
        ("noise of TUE", noise, 0),
        ("surrogate of EM", count_training_flops(em, "surrogate"), em.steps),
        ("noise of EM", pictures * count_noise_flops(em), 0),
        ("a standard victim (three of them)", standard, budget.epochs * pictures // budget.batch),
        (
            "an adversarial victim (three of them)",
            count_victim_flops(tue.width, seen, budget.adversary_steps),
            seen // budget.batch,
        ),
        ("fast", 0.0, 0),
        ("TUE without score", count_training_flops(no_score, "surrogate"), tue.steps),
        ("REM-lite", count_training_flops(rem, "surrogate"), rem.steps),
        (
            "surrogate B, 25,000 pictures, four views",
            count_training_flops(tue, "surrogate"),
            tue.steps,
        ),
    ]
    fixed = {"starting, reading the archive, right": 50.0, "fast": 80.0}
    slow, fast = RATES

    def predict_seconds(name: str, work: float, count: int, rate: float) -> float:
        return fixed.get(name) or max(work / rate / 1e12, LEAST * count)

    return [
        (
            step[0],
            step[1] / 1e15,
            predict_seconds(*step, rate=fast),
            predict_seconds(*step, rate=slow),
        )
        for step in steps
    ]


def make_settings(budget: Budget, name: str) -> TrainSettings:
    """Return how the surrogate of a name is trained.

    TUE without score is all of TUE but the score network's pull. REM-lite is REM in an affordable
    form: half the steps, one sample, an adversary of five steps.
    """
    tue = budget.training
    assert isinstance(tue.noise, TueNoise)
    few = min(5, tue.noise.steps)
    em = EmNoise(radius=tue.noise.radius, steps=tue.noise.steps)
    rem = RemNoise(radius=em.radius, steps=em.steps, samples=1, inner_steps=few)
    return {
        "TUE": tue,
        "B": tue,
        "EM": replace(tue, method="em", steps=budget.em_steps, noise=em),
        "TUE without score": replace(tue, noise=replace(tue.noise, score_ratio=0.0)),
        "REM-lite": replace(
            tue,
            method="rem",
            steps=max(1, tue.steps // 2),
            noise=rem,
            adversary=replace(tue.adversary, steps=min(5, tue.adversary.steps)),
        ),
    }[name]


def measure_bf16_rate(
    side: int, device: torch.device, timed: Callable[[Callable[[], object]], float]
) -> float:
    """Return the TFLOP/s of a product of two square matrices in bfloat16, of random numbers."""
    generator = torch.Generator(device=device).manual_seed(0)
    one, other = (
        torch.randn(side, side, generator=generator, device=device).bfloat16() for _ in range(2)
    )

    def multiply() -> Tensor:
        return one @ other

    return 2 * side**3 / timed(multiply) / 1e12
