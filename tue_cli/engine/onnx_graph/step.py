"""One step of the noise as an ONNX graph: all terms' gradients, their signs, one projection.

What is descended is what `methods/` descends (Fang et al., Eq. 6; Algorithm 1, lines 8 to 10). A
graph names its weights; they lie in the weights file beside it, or are put in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tue_cli import __version__
from tue_cli.core.batches import LUMA
from tue_cli.engine.onnx import SEEN
from tue_cli.engine.onnx_graph.layers import (
    Backward,
    GraphBuilder,
    forward,
    mean_over_pixels,
    relu,
    shuffle,
    unshuffle,
)
from tue_cli.nets.classifiers import Classifier
from tue_cli.nets.score import ResidualBlock, ScoreNet
from tue_cli.weights import Weights, fresh

OPSET, IR = 20, 10
"""What ONNX Runtime 1.17 and later read."""

_PICTURES = ["batch", 3, "height", "width"]
INPUTS: dict[str, tuple[int, list[Any]]] = {
    "pixels": (TensorProto.FLOAT, _PICTURES),
    "delta": (TensorProto.FLOAT, _PICTURES),
    "keys": (TensorProto.INT64, ["batch"]),
    "there": (TensorProto.INT64, ["samples", "places"]),
    "back": (TensorProto.INT64, ["samples", "places"]),
    "step": (TensorProto.FLOAT, []),
    "gray_step": (TensorProto.FLOAT, []),
    "score_step": (TensorProto.FLOAT, []),
    "radius": (TensorProto.FLOAT, []),
}
"""Pixels in [0, 1]; delta, steps and radius in their unit. Of `there` and `back`, which move the
pictures for the surrogate, `core/sampling.py` tells."""


def step_graph(weights: Weights) -> onnx.ModelProto:
    """Return the graph for a weights file, with its weights named and not put in.

    Its outputs: the next delta by the surrogate's terms `alone`, with the score's `norm`, or with
    its `ascent`; the fields whose signs these take, `surrogate_gradient`, `gray_gradient`,
    `score_gradient` and `score`; and the surrogate's `features`, (samples * N, D), and `logits`,
    (samples * N, K), of the moved pictures. What is in grey is computed where `gray_step` is more
    than 0, and 0 elsewhere. Without a score network, what needs it is left out.

    Raises:
        BadSetting: a net with a layer that cannot be written.
    """
    sheet = GraphBuilder()
    results = _write_step(sheet, weights)
    outputs = []
    for name, value in results.items():
        sheet.nodes.append(helper.make_node("Identity", [value], [name]))
        shape: list[Any] = ["rows", f"{name}_depth"] if name in SEEN else _PICTURES
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        sheet.nodes,
        "step",
        [helper.make_tensor_value_info(name, *kind) for name, kind in INPUTS.items()],
        outputs,
        [*sheet.constants.values(), *(_named(name, weights.tensors) for name in sheet.weights)],
    )
    model = helper.make_model(
        graph,
        producer_name="tue",
        producer_version=__version__,
        ir_version=IR,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, {"card": weights.card.to_json(), "weights": weights.sha256})
    return model


def _write_step(sheet: GraphBuilder, weights: Weights) -> dict[str, str]:
    """Write one step, and return the graph's outputs by name."""
    roles = tuple(
        role
        for role in ("surrogate", "score")
        if any(name.startswith(f"{role}.") for name in weights.tensors)
    )
    nets = fresh(weights.card, roles, seed=0)
    at = sheet.node("Add", "pixels", "delta")
    moved = _apply_moves(sheet, at)
    wanted = _one_hot(sheet, len(weights.card.classes))
    surrogate = nets["surrogate"]
    seen, features, logits = _surrogate(sheet, surrogate, moved, wanted)
    pull = _undo_moves(sheet, seen)
    gray_pull = sheet.either(
        sheet.node("Greater", "gray_step", sheet.constant(0)),
        lambda inner: _in_gray(inner, surrogate, moved, wanted),
        sheet.node("Sub", "pixels", "pixels"),
    )
    results = {
        "surrogate_gradient": pull,
        "gray_gradient": gray_pull,
        "features": features,
        "logits": logits,
    }
    alone = _take_step(sheet, _take_step(sheet, "delta", pull, "step"), gray_pull, "gray_step")
    nexts = {"alone": alone}
    if "score" in nets:
        score, gradient = _score(sheet, nets["score"], at)
        results |= {"score": score, "score_gradient": gradient}
        nexts["norm"] = _take_step(sheet, alone, gradient, "score_step")
        nexts["ascent"] = _take_step(sheet, alone, sheet.node("Neg", score), "score_step")
    return results | _project(sheet, nexts)


def _one_hot(sheet: GraphBuilder, classes: int) -> str:
    """Write 1 at each picture's key and 0 elsewhere, (samples * N, K)."""
    numbers = sheet.constant(np.arange(classes), np.int64)
    keys = sheet.node("Unsqueeze", "keys", sheet.integers(1))
    ones = sheet.node("Cast", sheet.node("Equal", keys, numbers), to=TensorProto.FLOAT)
    samples = sheet.node("Shape", "there", start=0, end=1)
    every = sheet.node("Concat", samples, sheet.integers(1), axis=0)
    return sheet.node("Tile", ones, every)


def _surrogate(sheet: GraphBuilder, net: Any, x: str, wanted: str) -> tuple[str, str, str]:
    """Write the gradient of l(f'(x), y) by x, and what is seen: features and logits."""
    assert isinstance(net, Classifier)
    centred = sheet.node("Sub", x, sheet.constant(0.5))
    body, body_back = forward(sheet, net.body, "surrogate.body", centred)
    features, mean_back = mean_over_pixels(sheet, body)
    logits, head_back = forward(sheet, net.head, "surrogate.head", features)
    # The gradient of the cross-entropy: the odds, less 1 at the key.
    wrong = sheet.node("Sub", sheet.node("Softmax", logits), wanted)
    return body_back(mean_back(head_back(wrong))), features, logits


def _in_gray(sheet: GraphBuilder, net: Any, moved: str, wanted: str) -> str:
    """Write the gradient, by the pixels, of the loss of the moved pictures without colours."""
    luma = sheet.constant(np.array(LUMA, np.float32)[:, None, None])
    plane = sheet.node("ReduceSum", sheet.node("Mul", moved, luma), sheet.integers(1), keepdims=1)
    gray = sheet.node("Expand", plane, sheet.node("Shape", moved))
    gradient, _, _ = _surrogate(sheet, net, gray, wanted)
    total = sheet.node("ReduceSum", gradient, sheet.integers(1), keepdims=1)
    return _undo_moves(sheet, sheet.node("Mul", total, luma))


def _apply_moves(sheet: GraphBuilder, x: str) -> str:
    """Write every sample's move of every picture, (samples * N, 3, H, W); behind the last place of
    a picture lies one of black.
    """
    flat = sheet.node("Reshape", x, sheet.integers(0, 0, -1))
    fringed = sheet.node("Pad", flat, sheet.integers(0, 1), "", sheet.integers(2))
    moved = sheet.node("Gather", fringed, "there", axis=2)
    first = sheet.node("Transpose", moved, perm=[2, 0, 1, 3])
    shape = sheet.node("Concat", sheet.integers(-1, 3), sheet.size(x), axis=0)
    return sheet.node("Reshape", first, shape)


def _undo_moves(sheet: GraphBuilder, gradient: str) -> str:
    """Write the sum over the samples of their gradients, each where its picture's pixel was."""
    samples = sheet.node("Shape", "there", start=0, end=1)
    places = sheet.node("Shape", "there", start=1, end=2)
    shape = sheet.node("Concat", samples, sheet.integers(-1), places, axis=0)
    flat = sheet.node("Reshape", gradient, shape)
    rows = sheet.node("Shape", flat, start=1, end=2)
    fringed = sheet.node("Pad", flat, sheet.integers(0, 1), "", sheet.integers(2))
    back = sheet.node("Unsqueeze", "back", sheet.integers(1))
    all_rows = sheet.node("Concat", sheet.integers(1), rows, sheet.integers(1), axis=0)
    indices = sheet.node("Expand", back, all_rows)
    moved = sheet.node("GatherElements", fringed, indices, axis=2)
    total = sheet.node("ReduceSum", moved, sheet.integers(0), keepdims=0)
    return sheet.node("Reshape", total, sheet.node("Shape", "pixels"))


def _score(sheet: GraphBuilder, net: Any, at: str) -> tuple[str, str]:
    """Write s(x, y), and the gradient of half its squared norm by x."""
    assert isinstance(net, ScoreNet)

    def conv(place: str, x: str) -> tuple[str, Backward]:
        return forward(sheet, net.get_submodule(place), f"score.{place}", x)

    x = unshuffle(sheet, sheet.node("Sub", at, sheet.constant(0.5)), 3)
    x, enter_back = conv("enter", x)
    fine, fine_back = _block(sheet, net.fine[0], "score.fine.0", x)
    x, down_back = conv("down", fine)
    backs = []
    for place, block in enumerate(net.coarse):
        x, back = _block(sheet, block, f"score.coarse.{place}", x)
        backs.append(back)
    x, up_back = conv("up", x)
    x, last_back = _block(
        sheet, net.fine[1], "score.fine.1", sheet.node("Add", fine, shuffle(sheet, x))
    )
    x, leave_back = conv("leave", x)
    scale = sheet.constant(-1 / net.sigma)
    score = sheet.node("Mul", shuffle(sheet, x), scale)

    joined = last_back(leave_back(unshuffle(sheet, sheet.node("Mul", score, scale), 3)))
    gradient = up_back(unshuffle(sheet, joined, net.up.out_channels // 4))
    for back in reversed(backs):
        gradient = back(gradient)
    gradient = fine_back(sheet.node("Add", joined, down_back(gradient)))
    return score, shuffle(sheet, enter_back(gradient))


def _block(sheet: GraphBuilder, block: Any, name: str, x: str) -> tuple[str, Backward]:
    """Write a block of the score network, scaled and shifted by the key."""
    assert isinstance(block, ResidualBlock)
    film = sheet.node("Gather", sheet.weight(f"{name}.film.weight"), "keys")
    film = sheet.node("Unsqueeze", film, sheet.integers(2, 3))
    both = sheet.node("Split", film, outputs=2, axis=1, num_outputs=2)
    scale, shift = sheet.node("Add", both, sheet.constant(1)), f"{both}:1"
    inner, first_back = forward(sheet, block.first, f"{name}.first", x)
    inner, relu_back = relu(sheet, sheet.node("Add", sheet.node("Mul", inner, scale), shift))
    inner, second_back = forward(sheet, block.second, f"{name}.second", inner)

    def backward(gradient: str) -> str:
        pulled = sheet.node("Mul", relu_back(second_back(gradient)), scale)
        return sheet.node("Add", gradient, first_back(pulled))

    return sheet.node("Add", x, inner), backward


def _take_step(sheet: GraphBuilder, delta: str, gradient: str, step: str) -> str:
    return sheet.node("Sub", delta, sheet.node("Mul", sheet.node("Sign", gradient), step))


def _project(sheet: GraphBuilder, deltas: Mapping[str, str]) -> dict[str, str]:
    """Write each delta back into the ball and the pictures' range: one pair of bounds for both."""
    lower = sheet.node("Max", sheet.node("Neg", "pixels"), sheet.node("Neg", "radius"))
    upper = sheet.node("Min", sheet.node("Sub", sheet.constant(1), "pixels"), "radius")
    return {
        name: sheet.node("Min", sheet.node("Max", delta, lower), upper)
        for name, delta in deltas.items()
    }


def _named(name: str, tensors: Mapping[str, Any]) -> onnx.TensorProto:
    """Return a tensor of which only name, type and shape are known."""
    tensor = TensorProto(name=name, dims=tensors[name].shape)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(tensors[name].dtype)
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def put_in(model: onnx.ModelProto, weights: Weights) -> None:
    """Put the weights into the graph, which needs no other file then."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(weights.tensors[tensor.name], tensor.name))


def point_to(model: onnx.ModelProto, file: Path) -> None:
    """Say where in a safetensors file, which is to lie beside the graph, the weights are."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            first, end = header[tensor.name]["data_offsets"]
            where = {"location": file.name, "offset": 8 + length + first, "length": end - first}
            del tensor.external_data[:]
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
