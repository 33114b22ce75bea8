"""One step of the noise as an ONNX graph: all terms' gradients, their signs, one projection.

What is descended is what `methods/` descends (Fang et al., Eq. 6; Algorithm 1, lines 8 to 10). A
graph names its weights, which lie in the file beside it, or holds them itself.
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
from tue_cli.engine.onnx import SURROGATE_OUTPUTS
from tue_cli.engine.onnx_graph.layers import (
    Backward,
    GraphBuilder,
    write_layer,
    write_pixel_mean,
    write_relu,
    write_shuffle,
    write_unshuffle,
)
from tue_cli.mask import LUMA
from tue_cli.nets.classifiers import Classifier
from tue_cli.nets.score import ResidualBlock, ScoreNet
from tue_cli.weights import Weights, draw_nets

OPSET, IR = 20, 10
"""What ONNX Runtime 1.17 and later read."""

_IMAGES = ["batch", 3, "height", "width"]
INPUTS: dict[str, tuple[int, list[Any]]] = {
    "pixels": (TensorProto.FLOAT, _IMAGES),
    "delta": (TensorProto.FLOAT, _IMAGES),
    "keys": (TensorProto.INT64, ["batch"]),
    "there": (TensorProto.INT64, ["samples", "places"]),
    "back": (TensorProto.INT64, ["samples", "places"]),
    "step": (TensorProto.FLOAT, []),
    "gray_step": (TensorProto.FLOAT, []),
    "score_step": (TensorProto.FLOAT, []),
    "radius": (TensorProto.FLOAT, []),
}
"""Pixels in [0, 1]; delta, steps and radius in their unit. `there` and `back` apply the EoT
samples, as `core/sampling.py` says."""


def build_step_graph(weights: Weights) -> onnx.ModelProto:
    """Return the graph for a weights file, which names its weights and does not hold them.

    Its outputs: the next delta by the surrogate's terms `alone`, with the score's `norm`, or with
    its `ascent`; the fields whose signs these take, `surrogate_gradient`, `gray_gradient`,
    `score_gradient` and `score`; and the surrogate's `features`, (samples * N, D), and `logits`,
    (samples * N, K), of the moved pictures. The grayscale term is computed where `gray_step` is
    more than 0, and 0 elsewhere. Without a score network, what needs it is left out.

    Raises:
        BadSetting: a net with a layer that cannot be written.
    """
    graph = GraphBuilder()
    results = _write_step(graph, weights)
    outputs = []
    for name, value in results.items():
        graph.nodes.append(helper.make_node("Identity", [value], [name]))
        shape: list[Any] = ["rows", f"{name}_depth"] if name in SURROGATE_OUTPUTS else _IMAGES
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    proto = helper.make_graph(
        graph.nodes,
        "step",
        [helper.make_tensor_value_info(name, *kind) for name, kind in INPUTS.items()],
        outputs,
        [
            *graph.constants.values(),
            *(_declare_tensor(name, weights.tensors) for name in graph.weights),
        ],
    )
    model = helper.make_model(
        proto,
        producer_name="tue",
        producer_version=__version__,
        ir_version=IR,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, {"card": weights.card.to_json(), "weights": weights.sha256})
    return model


def _write_step(graph: GraphBuilder, weights: Weights) -> dict[str, str]:
    """Write one step, and return the graph's outputs by name."""
    roles = tuple(
        role
        for role in ("surrogate", "score")
        if any(name.startswith(f"{role}.") for name in weights.tensors)
    )
    nets = draw_nets(weights.card, roles, seed=0)
    at = graph.add_node("Add", "pixels", "delta")
    moved = _write_moves(graph, at)
    wanted = _write_one_hot(graph, len(weights.card.classes))
    surrogate = nets["surrogate"]
    seen, features, logits = _write_surrogate(graph, surrogate, moved, wanted)
    pull = _write_moves_back(graph, seen)
    gray_pull = graph.add_branch(
        graph.add_node("Greater", "gray_step", graph.add_constant(0)),
        lambda inner: _write_grayscale(inner, surrogate, moved, wanted),
        graph.add_node("Sub", "pixels", "pixels"),
    )
    results = {
        "surrogate_gradient": pull,
        "gray_gradient": gray_pull,
        "features": features,
        "logits": logits,
    }
    alone = _write_update(
        graph, _write_update(graph, "delta", pull, "step"), gray_pull, "gray_step"
    )
    nexts = {"alone": alone}
    if "score" in nets:
        score, gradient = _write_score(graph, nets["score"], at)
        results |= {"score": score, "score_gradient": gradient}
        nexts["norm"] = _write_update(graph, alone, gradient, "score_step")
        nexts["ascent"] = _write_update(graph, alone, graph.add_node("Neg", score), "score_step")
    return results | _write_projection(graph, nexts)


def _write_one_hot(graph: GraphBuilder, classes: int) -> str:
    """Write 1 at each picture's key and 0 elsewhere, (samples * N, K)."""
    numbers = graph.add_constant(np.arange(classes), np.int64)
    keys = graph.add_node("Unsqueeze", "keys", graph.add_integers(1))
    ones = graph.add_node("Cast", graph.add_node("Equal", keys, numbers), to=TensorProto.FLOAT)
    samples = graph.add_node("Shape", "there", start=0, end=1)
    every = graph.add_node("Concat", samples, graph.add_integers(1), axis=0)
    return graph.add_node("Tile", ones, every)


def _write_surrogate(graph: GraphBuilder, net: Any, x: str, wanted: str) -> tuple[str, str, str]:
    """Write the gradient of l(f'(x), y) by x, and its features and logits."""
    assert isinstance(net, Classifier)
    centred = graph.add_node("Sub", x, graph.add_constant(0.5))
    body, body_back = write_layer(graph, net.body, "surrogate.body", centred)
    features, mean_back = write_pixel_mean(graph, body)
    logits, head_back = write_layer(graph, net.head, "surrogate.head", features)
    # The gradient of the cross-entropy: the odds, less 1 at the key.
    wrong = graph.add_node("Sub", graph.add_node("Softmax", logits), wanted)
    return body_back(mean_back(head_back(wrong))), features, logits


def _write_grayscale(graph: GraphBuilder, net: Any, moved: str, wanted: str) -> str:
    """Write the gradient, by the pixels, of the loss of the moved pictures in grayscale."""
    luma = graph.add_constant(np.array(LUMA, np.float32)[:, None, None])
    plane = graph.add_node(
        "ReduceSum", graph.add_node("Mul", moved, luma), graph.add_integers(1), keepdims=1
    )
    gray = graph.add_node("Expand", plane, graph.add_node("Shape", moved))
    gradient, _, _ = _write_surrogate(graph, net, gray, wanted)
    total = graph.add_node("ReduceSum", gradient, graph.add_integers(1), keepdims=1)
    return _write_moves_back(graph, graph.add_node("Mul", total, luma))


def _write_moves(graph: GraphBuilder, x: str) -> str:
    """Write every sample's move of every picture, (samples * N, 3, H, W); behind the last place of
    a picture lies one of black.
    """
    flat = graph.add_node("Reshape", x, graph.add_integers(0, 0, -1))
    fringed = graph.add_node("Pad", flat, graph.add_integers(0, 1), "", graph.add_integers(2))
    moved = graph.add_node("Gather", fringed, "there", axis=2)
    first = graph.add_node("Transpose", moved, perm=[2, 0, 1, 3])
    shape = graph.add_node("Concat", graph.add_integers(-1, 3), graph.add_size(x), axis=0)
    return graph.add_node("Reshape", first, shape)


def _write_moves_back(graph: GraphBuilder, gradient: str) -> str:
    """Write the sum over the samples of their gradients, each where its picture's pixel was."""
    samples = graph.add_node("Shape", "there", start=0, end=1)
    places = graph.add_node("Shape", "there", start=1, end=2)
    shape = graph.add_node("Concat", samples, graph.add_integers(-1), places, axis=0)
    flat = graph.add_node("Reshape", gradient, shape)
    rows = graph.add_node("Shape", flat, start=1, end=2)
    fringed = graph.add_node("Pad", flat, graph.add_integers(0, 1), "", graph.add_integers(2))
    back = graph.add_node("Unsqueeze", "back", graph.add_integers(1))
    all_rows = graph.add_node("Concat", graph.add_integers(1), rows, graph.add_integers(1), axis=0)
    indices = graph.add_node("Expand", back, all_rows)
    moved = graph.add_node("GatherElements", fringed, indices, axis=2)
    total = graph.add_node("ReduceSum", moved, graph.add_integers(0), keepdims=0)
    return graph.add_node("Reshape", total, graph.add_node("Shape", "pixels"))


def _write_score(graph: GraphBuilder, net: Any, at: str) -> tuple[str, str]:
    """Write s(x, y), and the gradient of half its squared norm by x."""
    assert isinstance(net, ScoreNet)

    def write_conv(place: str, x: str) -> tuple[str, Backward]:
        return write_layer(graph, net.get_submodule(place), f"score.{place}", x)

    x = write_unshuffle(graph, graph.add_node("Sub", at, graph.add_constant(0.5)), 3)
    x, enter_back = write_conv("enter", x)
    fine, fine_back = _write_residual_block(graph, net.fine[0], "score.fine.0", x)
    x, down_back = write_conv("down", fine)
    backs = []
    for place, block in enumerate(net.coarse):
        x, back = _write_residual_block(graph, block, f"score.coarse.{place}", x)
        backs.append(back)
    x, up_back = write_conv("up", x)
    x, last_back = _write_residual_block(
        graph, net.fine[1], "score.fine.1", graph.add_node("Add", fine, write_shuffle(graph, x))
    )
    x, leave_back = write_conv("leave", x)
    scale = graph.add_constant(-1 / net.sigma)
    score = graph.add_node("Mul", write_shuffle(graph, x), scale)

    joined = last_back(leave_back(write_unshuffle(graph, graph.add_node("Mul", score, scale), 3)))
    gradient = up_back(write_unshuffle(graph, joined, net.up.out_channels // 4))
    for back in reversed(backs):
        gradient = back(gradient)
    gradient = fine_back(graph.add_node("Add", joined, down_back(gradient)))
    return score, write_shuffle(graph, enter_back(gradient))


def _write_residual_block(
    graph: GraphBuilder, block: Any, name: str, x: str
) -> tuple[str, Backward]:
    """Write a block of the score network, scaled and shifted by the key."""
    assert isinstance(block, ResidualBlock)
    film = graph.add_node("Gather", graph.add_weight(f"{name}.film.weight"), "keys")
    film = graph.add_node("Unsqueeze", film, graph.add_integers(2, 3))
    both = graph.add_node("Split", film, outputs=2, axis=1, num_outputs=2)
    scale, shift = graph.add_node("Add", both, graph.add_constant(1)), f"{both}:1"
    inner, first_back = write_layer(graph, block.first, f"{name}.first", x)
    inner, relu_back = write_relu(
        graph, graph.add_node("Add", graph.add_node("Mul", inner, scale), shift)
    )
    inner, second_back = write_layer(graph, block.second, f"{name}.second", inner)

    def backward(gradient: str) -> str:
        pulled = graph.add_node("Mul", relu_back(second_back(gradient)), scale)
        return graph.add_node("Add", gradient, first_back(pulled))

    return graph.add_node("Add", x, inner), backward


def _write_update(graph: GraphBuilder, delta: str, gradient: str, step: str) -> str:
    return graph.add_node(
        "Sub", delta, graph.add_node("Mul", graph.add_node("Sign", gradient), step)
    )


def _write_projection(graph: GraphBuilder, deltas: Mapping[str, str]) -> dict[str, str]:
    """Write each delta back into the ball and the pictures' range: one pair of bounds for both."""
    lower = graph.add_node("Max", graph.add_node("Neg", "pixels"), graph.add_node("Neg", "radius"))
    upper = graph.add_node("Min", graph.add_node("Sub", graph.add_constant(1), "pixels"), "radius")
    return {
        name: graph.add_node("Min", graph.add_node("Max", delta, lower), upper)
        for name, delta in deltas.items()
    }


def _declare_tensor(name: str, tensors: Mapping[str, Any]) -> onnx.TensorProto:
    """Return a tensor of which only name, type and shape are known."""
    tensor = TensorProto(name=name, dims=tensors[name].shape)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(tensors[name].dtype)
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def embed_weights(model: onnx.ModelProto, weights: Weights) -> None:
    """Embed the weights in the graph, which then needs no other file."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(weights.tensors[tensor.name], tensor.name))


def reference_weights(model: onnx.ModelProto, file: Path) -> None:
    """Point the graph to its weights in a safetensors file that will lie beside it."""
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
