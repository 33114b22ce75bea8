"""The proof that a graph does what torch does: the same pictures through both, torch in float64.

Two batches of random pictures, of two sizes, one and two moves a step. It says how far they are
apart; `within` says how far they may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tue_cli.core import sampling
from tue_cli.core.batches import convert_to_grayscale
from tue_cli.engine.onnx import SURROGATE_OUTPUTS
from tue_cli.nets.classifiers import Classifier
from tue_cli.weights import Weights, build

Run = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""The graph: its inputs by name to all its outputs by name."""

RADIUS, STEP, GRAY_STEP, SCORE_STEP = 8 / 255, 1.6 / 255, 0.8 / 255, 0.4 / 255
NEXTS = ("alone", "norm", "ascent")
"""The outputs that are a next delta."""
MOST_APART = 1e-2
MOST_UNEQUAL = 1e-3
"""99.9 % agree, but for what float32 itself turns over."""


@dataclass(frozen=True)
class Distance:
    """How far outputs are from those of torch in float64: the worst of all cases and outputs."""

    apart: float
    """Norm of the difference over the norm, of fields, features and logits."""
    signs: float
    """Share of signs of the fields that differ."""
    steps: float
    """Share of entries of the next delta that differ by more than 1e-6."""


@dataclass(frozen=True)
class Parity:
    """How far a graph is from torch in float64, and how far torch in float32 is."""

    graph: Distance
    torch: Distance

    @property
    def within(self) -> bool:
        """Whether the graph may be kept: near float64, or as near as torch's own float32.

        Where a ReLU or the largest of a pool turns over between two precisions, a gradient jumps,
        whoever computes it. A value that is no number is not within.
        """
        graph, other = self.graph, self.torch
        return (
            graph.apart <= max(MOST_APART, 2 * other.apart)
            and graph.signs <= max(MOST_UNEQUAL, 2 * other.signs)
            and graph.steps <= max(MOST_UNEQUAL, 2 * other.steps)
        )


def measure_parity(run: Run, weights: Weights) -> Parity:
    """Hold a graph against the nets of its weights."""
    size = weights.card.size
    roles = ("surrogate", "score") if _has_score(weights) else ("surrogate",)
    single = {role: net.eval() for role, net in build(weights, roles).items()}
    double = {role: net.eval().double() for role, net in build(weights, roles).items()}
    graph, other = [], []
    for seed, (count, side, samples) in enumerate([(1, size, 1), (3, size + size // 8 * 4, 2)]):
        values, moves = _draw_case(seed, count, side, samples, len(weights.card.classes))
        expected = _compute_by_torch(double, values, moves, torch.float64)
        graph.append(_measure_distance(run(values), expected))
        other.append(
            _measure_distance(_compute_by_torch(single, values, moves, torch.float32), expected)
        )
    return Parity(_find_worst(graph), _find_worst(other))


def _measure_distance(
    found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]
) -> Distance:
    if found.keys() != expected.keys():
        return Distance(np.inf, 1.0, 1.0)
    apart, signs, steps = [0.0], [0.0], [0.0]
    for name, wanted in expected.items():
        got = found[name].astype(np.float64)
        if name in NEXTS:
            steps.append(float((~(np.abs(got - wanted) <= 1e-6)).mean()))
            continue
        # Fresh nets may be 0 everywhere, and so must their graph be.
        norm = float(np.linalg.norm(wanted)) or 1.0
        apart.append(float(np.linalg.norm(got - wanted)) / norm)
        if name not in SURROGATE_OUTPUTS:
            signs.append(float((np.sign(got) != np.sign(wanted)).mean()))
    return Distance(float(np.max(apart)), max(signs), max(steps))


def _find_worst(distances: list[Distance]) -> Distance:
    return Distance(
        float(np.max([d.apart for d in distances])),
        max(d.signs for d in distances),
        max(d.steps for d in distances),
    )


def _has_score(weights: Weights) -> bool:
    return any(name.startswith("score.") for name in weights.tensors)


def _draw_case(
    seed: int, count: int, side: int, samples: int, classes: int
) -> tuple[dict[str, NDArray[Any]], list[sampling.Move]]:
    """Return random inputs of the graph, and the moves that they hold."""
    random = np.random.default_rng(seed)
    pixels = random.random((count, 3, side, side), np.float32)
    start = sampling.draw_starts(pixels.shape, [seed + place for place in range(count)], RADIUS)
    moves = sampling.draw_moves(seed, samples)
    there, back = sampling.locate_pixels(moves, side, side)
    values: dict[str, NDArray[Any]] = {
        "pixels": pixels,
        "delta": np.clip(start, -pixels, 1 - pixels),
        "keys": random.integers(classes, size=count),
        "there": there,
        "back": back,
        "step": np.array(STEP, np.float32),
        "gray_step": np.array(GRAY_STEP, np.float32),
        "score_step": np.array(SCORE_STEP, np.float32),
        "radius": np.array(RADIUS, np.float32),
    }
    return values, moves


def _compute_by_torch(
    nets: Mapping[str, nn.Module],
    values: Mapping[str, NDArray[Any]],
    moves: list[sampling.Move],
    dtype: torch.dtype,
) -> dict[str, NDArray[Any]]:
    """Return what every output of the graph should be."""
    inputs = {name: torch.from_numpy(array).to(dtype) for name, array in values.items()}
    pixels, radius, step = inputs["pixels"], inputs["radius"], inputs["step"]
    keys = torch.from_numpy(values["keys"])
    leaf = (pixels + inputs["delta"]).requires_grad_()
    surrogate = nets["surrogate"]
    assert isinstance(surrogate, Classifier)
    moved = torch.cat([_apply_move(leaf, move) for move in moves])
    logits = surrogate(moved)

    def compute_pull(seen: Tensor) -> Tensor:
        loss = F.cross_entropy(seen, keys.repeat(len(moves)), reduction="sum")
        return torch.autograd.grad(loss, leaf, retain_graph=True)[0]

    pull, gray_pull = compute_pull(logits), compute_pull(surrogate(convert_to_grayscale(moved)))
    features = surrogate.features(moved)
    results = {
        "surrogate_gradient": pull,
        "gray_gradient": gray_pull,
        "features": features,
        "logits": logits,
    }
    alone = inputs["delta"] - step * pull.sign() - inputs["gray_step"] * gray_pull.sign()
    nexts = {"alone": alone}
    if "score" in nets:
        score: Tensor = nets["score"](leaf, keys)
        gradient = torch.autograd.grad(0.5 * score.square().sum(), leaf)[0]
        results |= {"score": score, "score_gradient": gradient}
        nexts["norm"] = alone - inputs["score_step"] * gradient.sign()
        nexts["ascent"] = alone + inputs["score_step"] * score.sign()
    lower, upper = (-pixels).maximum(-radius), (1 - pixels).minimum(radius)
    results |= {name: delta.maximum(lower).minimum(upper) for name, delta in nexts.items()}
    return {name: value.detach().numpy() for name, value in results.items()}


def _apply_move(pixels: Tensor, move: sampling.Move) -> Tensor:
    top, left, flip = move
    height, width = pixels.shape[-2:]
    frame = F.pad(pixels, (sampling.PADDING,) * 4)[..., top : top + height, left : left + width]
    return frame.flip(-1) if flip else frame
