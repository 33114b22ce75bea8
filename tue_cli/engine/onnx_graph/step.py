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
    write_layer,
    write_pixel_mean,
    write_relu,
    write_shuffle,
    write_unshuffle,
)
from tue_cli.nets.classifiers import Classifier
from tue_cli.nets.score import ResidualBlock, ScoreNet
from tue_cli.weights import Weights, draw_nets

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


def build_step_graph(weights: Weights) -> onnx.ModelProto:
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
        [
            *sheet.constants.values(),
            *(_declare_tensor(name, weights.tensors) for name in sheet.weights),
        ],
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
    nets = draw_nets(weights.card, roles, seed=0)
    at = sheet.add_node("Add", "pixels", "delta")
    moved = _write_moves(sheet, at)
    wanted = _write_one_hot(sheet, len(weights.card.classes))
    surrogate = nets["surrogate"]
    seen, features, logits = _write_surrogate(sheet, surrogate, moved, wanted)
    pull = _write_moves_back(sheet, seen)
    gray_pull = sheet.add_branch(
        sheet.add_node("Greater", "gray_step", sheet.add_constant(0)),
        lambda inner: _write_grayscale(inner, surrogate, moved, wanted),
        sheet.add_node("Sub", "pixels", "pixels"),
    )
    results = {
        "surrogate_gradient": pull,
        "gray_gradient": gray_pull,
        "features": features,
        "logits": logits,
    }
    alone = _write_update(
        sheet, _write_update(sheet, "delta", pull, "step"), gray_pull, "gray_step"
    )
    nexts = {"alone": alone}
    if "score" in nets:
        score, gradient = _write_score(sheet, nets["score"], at)
        results |= {"score": score, "score_gradient": gradient}
        nexts["norm"] = _write_update(sheet, alone, gradient, "score_step")
        nexts["ascent"] = _write_update(sheet, alone, sheet.add_node("Neg", score), "score_step")
    return results | _write_projection(sheet, nexts)


def _write_one_hot(sheet: GraphBuilder, classes: int) -> str:
    """Write 1 at each picture's key and 0 elsewhere, (samples * N, K)."""
    numbers = sheet.add_constant(np.arange(classes), np.int64)
    keys = sheet.add_node("Unsqueeze", "keys", sheet.add_integers(1))
    ones = sheet.add_node("Cast", sheet.add_node("Equal", keys, numbers), to=TensorProto.FLOAT)
    samples = sheet.add_node("Shape", "there", start=0, end=1)
    every = sheet.add_node("Concat", samples, sheet.add_integers(1), axis=0)
    return sheet.add_node("Tile", ones, every)


def _write_surrogate(sheet: GraphBuilder, net: Any, x: str, wanted: str) -> tuple[str, str, str]:
    """Write the gradient of l(f'(x), y) by x, and what is seen: features and logits."""
    assert isinstance(net, Classifier)
    centred = sheet.add_node("Sub", x, sheet.add_constant(0.5))
    body, body_back = write_layer(sheet, net.body, "surrogate.body", centred)
    features, mean_back = write_pixel_mean(sheet, body)
    logits, head_back = write_layer(sheet, net.head, "surrogate.head", features)
    # The gradient of the cross-entropy: the odds, less 1 at the key.
    wrong = sheet.add_node("Sub", sheet.add_node("Softmax", logits), wanted)
    return body_back(mean_back(head_back(wrong))), features, logits


def _write_grayscale(sheet: GraphBuilder, net: Any, moved: str, wanted: str) -> str:
    """Write the gradient, by the pixels, of the loss of the moved pictures without colours."""
    luma = sheet.add_constant(np.array(LUMA, np.float32)[:, None, None])
    plane = sheet.add_node(
        "ReduceSum", sheet.add_node("Mul", moved, luma), sheet.add_integers(1), keepdims=1
    )
    gray = sheet.add_node("Expand", plane, sheet.add_node("Shape", moved))
    gradient, _, _ = _write_surrogate(sheet, net, gray, wanted)
    total = sheet.add_node("ReduceSum", gradient, sheet.add_integers(1), keepdims=1)
    return _write_moves_back(sheet, sheet.add_node("Mul", total, luma))


def _write_moves(sheet: GraphBuilder, x: str) -> str:
    """Write every sample's move of every picture, (samples * N, 3, H, W); behind the last place of
    a picture lies one of black.
    """
    flat = sheet.add_node("Reshape", x, sheet.add_integers(0, 0, -1))
    fringed = sheet.add_node("Pad", flat, sheet.add_integers(0, 1), "", sheet.add_integers(2))
    moved = sheet.add_node("Gather", fringed, "there", axis=2)
    first = sheet.add_node("Transpose", moved, perm=[2, 0, 1, 3])
    shape = sheet.add_node("Concat", sheet.add_integers(-1, 3), sheet.add_size(x), axis=0)
    return sheet.add_node("Reshape", first, shape)


def _write_moves_back(sheet: GraphBuilder, gradient: str) -> str:
    """Write the sum over the samples of their gradients, each where its picture's pixel was."""
    samples = sheet.add_node("Shape", "there", start=0, end=1)
    places = sheet.add_node("Shape", "there", start=1, end=2)
    shape = sheet.add_node("Concat", samples, sheet.add_integers(-1), places, axis=0)
    flat = sheet.add_node("Reshape", gradient, shape)
    rows = sheet.add_node("Shape", flat, start=1, end=2)
    fringed = sheet.add_node("Pad", flat, sheet.add_integers(0, 1), "", sheet.add_integers(2))
    back = sheet.add_node("Unsqueeze", "back", sheet.add_integers(1))
    all_rows = sheet.add_node("Concat", sheet.add_integers(1), rows, sheet.add_integers(1), axis=0)
    indices = sheet.add_node("Expand", back, all_rows)
    moved = sheet.add_node("GatherElements", fringed, indices, axis=2)
    total = sheet.add_node("ReduceSum", moved, sheet.add_integers(0), keepdims=0)
    return sheet.add_node("Reshape", total, sheet.add_node("Shape", "pixels"))


def _write_score(sheet: GraphBuilder, net: Any, at: str) -> tuple[str, str]:
    """Write s(x, y), and the gradient of half its squared norm by x."""
    assert isinstance(net, ScoreNet)

    def write_conv(place: str, x: str) -> tuple[str, Backward]:
        return write_layer(sheet, net.get_submodule(place), f"score.{place}", x)

    x = write_unshuffle(sheet, sheet.add_node("Sub", at, sheet.add_constant(0.5)), 3)
    x, enter_back = write_conv("enter", x)
    fine, fine_back = _write_residual_block(sheet, net.fine[0], "score.fine.0", x)
    x, down_back = write_conv("down", fine)
    backs = []
    for place, block in enumerate(net.coarse):
        x, back = _write_residual_block(sheet, block, f"score.coarse.{place}", x)
        backs.append(back)
    x, up_back = write_conv("up", x)
    x, last_back = _write_residual_block(
        sheet, net.fine[1], "score.fine.1", sheet.add_node("Add", fine, write_shuffle(sheet, x))
    )
    x, leave_back = write_conv("leave", x)
    scale = sheet.add_constant(-1 / net.sigma)
    score = sheet.add_node("Mul", write_shuffle(sheet, x), scale)

    joined = last_back(leave_back(write_unshuffle(sheet, sheet.add_node("Mul", score, scale), 3)))
    gradient = up_back(write_unshuffle(sheet, joined, net.up.out_channels // 4))
    for back in reversed(backs):
        gradient = back(gradient)
    gradient = fine_back(sheet.add_node("Add", joined, down_back(gradient)))
    return score, write_shuffle(sheet, enter_back(gradient))


def _write_residual_block(
    sheet: GraphBuilder, block: Any, name: str, x: str
) -> tuple[str, Backward]:
    """Write a block of the score network, scaled and shifted by the key."""
    assert isinstance(block, ResidualBlock)
    film = sheet.add_node("Gather", sheet.add_weight(f"{name}.film.weight"), "keys")
    film = sheet.add_node("Unsqueeze", film, sheet.add_integers(2, 3))
    both = sheet.add_node("Split", film, outputs=2, axis=1, num_outputs=2)
    scale, shift = sheet.add_node("Add", both, sheet.add_constant(1)), f"{both}:1"
    inner, first_back = write_layer(sheet, block.first, f"{name}.first", x)
    inner, relu_back = write_relu(
        sheet, sheet.add_node("Add", sheet.add_node("Mul", inner, scale), shift)
    )
    inner, second_back = write_layer(sheet, block.second, f"{name}.second", inner)

    def backward(gradient: str) -> str:
        pulled = sheet.add_node("Mul", relu_back(second_back(gradient)), scale)
        return sheet.add_node("Add", gradient, first_back(pulled))

    return sheet.add_node("Add", x, inner), backward


def _write_update(sheet: GraphBuilder, delta: str, gradient: str, step: str) -> str:
    return sheet.add_node(
        "Sub", delta, sheet.add_node("Mul", sheet.add_node("Sign", gradient), step)
    )


def _write_projection(sheet: GraphBuilder, deltas: Mapping[str, str]) -> dict[str, str]:
    """Write each delta back into the ball and the pictures' range: one pair of bounds for both."""
    lower = sheet.add_node("Max", sheet.add_node("Neg", "pixels"), sheet.add_node("Neg", "radius"))
    upper = sheet.add_node("Min", sheet.add_node("Sub", sheet.add_constant(1), "pixels"), "radius")
    return {
        name: sheet.add_node("Min", sheet.add_node("Max", delta, lower), upper)
        for name, delta in deltas.items()
    }


def _declare_tensor(name: str, tensors: Mapping[str, Any]) -> onnx.TensorProto:
    """Return a tensor of which only name, type and shape are known."""
    tensor = TensorProto(name=name, dims=tensors[name].shape)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(tensors[name].dtype)
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def embed_weights(model: onnx.ModelProto, weights: Weights) -> None:
    """Put the weights into the graph, which needs no other file then."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(weights.tensors[tensor.name], tensor.name))


def reference_weights(model: onnx.ModelProto, file: Path) -> None:
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
