"""Writes an ONNX graph: each layer of our nets twice, once forward and once as the gradient with
respect to its input.

ONNX Runtime has no autograd. Our nets are made of a dozen kinds of layers, so their gradients are
written out by hand; `train/export.py` holds every graph against torch before it is kept.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tue_cli.errors import BadSetting
from tue_cli.nets.classifiers import ConvNorm, Dense, Residual

Backward = Callable[[str], str]
"""The name of the gradient with respect to a layer's output, to that with respect to its input."""


class GraphBuilder:
    """An ONNX graph being written; a value in it is a name, as text."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.weights: dict[str, None] = {}
        """The tensors of the weights file that are used, in order."""
        self._names = itertools.count(1)

    def add_node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Write one node and return the name of its (first) output; `name:1` is the second's."""
        name = f"{kind}_{next(self._names)}"
        names = [name, *(f"{name}:{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return name

    def add_branch(self, condition: str, write: Callable[[GraphBuilder], str], other: str) -> str:
        """Write a branch: what `write` writes if the condition holds, else the other value.

        ONNX Runtime computes every node of a graph, except in a branch that is not taken.
        """
        branches = {}
        for name, way in (("then_branch", write), ("else_branch", lambda graph: other)):
            inner = copy.copy(self)  # the same constants, weights and names
            inner.nodes = []
            value = inner.add_node("Identity", way(inner))
            made = helper.make_tensor_value_info(value, TensorProto.FLOAT, None)
            branches[name] = helper.make_graph(inner.nodes, name, [], [made])
        return self.add_node("If", condition, **branches)

    def add_constant(self, value: object, kind: type[np.generic] = np.float32) -> str:
        """Return the name of a constant; equal constants are kept once."""
        array = np.asarray(value, kind)
        name = f"{array.dtype}{list(array.shape)}:{array.ravel().tolist()}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def add_integers(self, *values: int) -> str:
        """Return the name of a vector of int64."""
        return self.add_constant(values, np.int64)

    def add_weight(self, name: str) -> str:
        """Return the name of a tensor of the weights file."""
        self.weights[name] = None
        return name

    def add_rows(self, values: str, count: int) -> str:
        """Return a vector as (C, 1, …) with `count` dimensions behind the first."""
        return self.add_node("Unsqueeze", values, self.add_integers(*range(1, count + 1)))

    def add_size(self, values: str) -> str:
        """Return the height and width of (N, C, H, W), as a vector."""
        return self.add_node("Shape", values, start=2, end=4)


def write_layer(graph: GraphBuilder, module: nn.Module, name: str, x: str) -> tuple[str, Backward]:
    """Write a layer, or layers in a row, and return its output and how to write its gradient.

    Args:
        graph: the graph to write to.
        module: the layer, as it is in eval mode; only its shape is read.
        name: its place in the weights file, for instance `surrogate.body.0`.
        x: name of its input.

    Raises:
        BadSetting: a kind of layer that is not in `LAYERS`.
    """
    for kind, write in LAYERS.items():
        if type(module) is kind:
            return write(graph, module, name, x)
    raise BadSetting(
        f"A network with a {type(module).__name__} layer cannot be exported.",
        "Use --backend torch with these weights.",
    )


def write_convolution(
    graph: GraphBuilder, conv: nn.Conv2d, weight: str, bias: str | None, x: str
) -> tuple[str, Backward]:
    """Write a convolution with the kernel and bias of these names."""
    stride, padding, kernel = (
        cast(tuple[int, int], t) for t in (conv.stride, conv.padding, conv.kernel_size)
    )
    y = graph.add_node(
        "Conv", x, weight, *([bias] if bias else []), strides=stride, pads=[*padding, *padding]
    )

    def backward(gradient: str) -> str:
        if stride == (1, 1):
            # The same kernel, turned round; the runtime turns it when it loads.
            ends = graph.add_integers(-(2**31), -(2**31))
            turned = graph.add_node(
                "Slice",
                graph.add_node("Transpose", weight, perm=[1, 0, 2, 3]),
                graph.add_integers(-1, -1),
                ends,
                graph.add_integers(2, 3),
                graph.add_integers(-1, -1),
            )
            around = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
            return graph.add_node("Conv", gradient, turned, pads=[*around, *around])
        # As large as the largest input of this stride, then cut to the size that it was.
        whole = graph.add_node(
            "ConvTranspose",
            gradient,
            weight,
            strides=stride,
            pads=[*padding, *padding],
            output_padding=[s - 1 for s in stride],
        )
        return graph.add_node(
            "Slice", whole, graph.add_integers(0, 0), graph.add_size(x), graph.add_integers(2, 3)
        )

    return y, backward


def _write_conv(graph: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    bias = None if module.bias is None else graph.add_weight(f"{name}.bias")
    return write_convolution(graph, module, graph.add_weight(f"{name}.weight"), bias, x)


def _write_affine(graph: GraphBuilder, norm: nn.BatchNorm2d, name: str) -> tuple[str, str]:
    """Write a batch norm in eval mode as a scale and a shift, each (C,)."""
    weight, bias, mean, variance = (
        graph.add_weight(f"{name}.{part}")
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    deviation = graph.add_node(
        "Sqrt", graph.add_node("Add", variance, graph.add_constant(norm.eps))
    )
    scale = graph.add_node("Div", weight, deviation)
    return scale, graph.add_node("Sub", bias, graph.add_node("Mul", mean, scale))


def _write_conv_norm(graph: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    scale, shift = _write_affine(graph, module[1], f"{name}.1")
    weight = graph.add_node("Mul", graph.add_weight(f"{name}.0.weight"), graph.add_rows(scale, 3))
    return write_convolution(graph, module[0], weight, shift, x)


def _write_norm(graph: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    scale, shift = (graph.add_rows(values, 2) for values in _write_affine(graph, module, name))
    y = graph.add_node("Add", graph.add_node("Mul", x, scale), shift)
    return y, lambda gradient: graph.add_node("Mul", gradient, scale)


def write_relu(graph: GraphBuilder, x: str) -> tuple[str, Backward]:
    """Write a ReLU; its gradient is 0 where its output is."""
    y = graph.add_node("Relu", x)

    def backward(gradient: str) -> str:
        # A comparison and a cast: a tenth of a step faster than Sign, or than Where.
        above = graph.add_node("Greater", y, graph.add_constant(0))
        return graph.add_node("Mul", gradient, graph.add_node("Cast", above, to=TensorProto.FLOAT))

    return y, backward


def _write_sequence(graph: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    backwards = []
    for place, layer in module.named_children():
        x, backward = write_layer(graph, layer, f"{name}.{place}", x)
        backwards.append(backward)

    def pass_back(gradient: str) -> str:
        for backward in reversed(backwards):
            gradient = backward(gradient)
        return gradient

    return x, pass_back


def _write_identity(_: GraphBuilder, __: Any, ___: str, x: str) -> tuple[str, Backward]:
    return x, lambda gradient: gradient


def _write_residual(graph: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    left, left_back = write_layer(graph, module.branch, f"{name}.branch", x)
    right, right_back = write_layer(graph, module.shortcut, f"{name}.shortcut", x)
    y, relu_back = write_relu(graph, graph.add_node("Add", left, right))

    def backward(gradient: str) -> str:
        gradient = relu_back(gradient)
        return graph.add_node("Add", left_back(gradient), right_back(gradient))

    return y, backward


def _write_dense(graph: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    new, back = write_layer(graph, module.branch, f"{name}.branch", x)
    inputs = module.branch[0].num_features
    first, rest, axis = graph.add_integers(0), graph.add_integers(inputs), graph.add_integers(1)

    def backward(gradient: str) -> str:
        old = graph.add_node("Slice", gradient, first, rest, axis)
        grown = graph.add_node("Slice", gradient, rest, graph.add_integers(2**31), axis)
        return graph.add_node("Add", old, back(grown))

    return graph.add_node("Concat", x, new, axis=1), backward


def _write_linear(graph: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    weight, bias = graph.add_weight(f"{name}.weight"), graph.add_weight(f"{name}.bias")
    y = graph.add_node("Gemm", x, weight, bias, transB=1)
    return y, lambda gradient: graph.add_node("Gemm", gradient, weight)


def _write_max_pool(graph: GraphBuilder, module: Any, _: str, x: str) -> tuple[str, Backward]:
    kernel, stride, padding = (
        [int(n)] * 2 for n in (module.kernel_size, module.stride, module.padding)
    )
    y = graph.add_node(
        "MaxPool", x, outputs=2, kernel_shape=kernel, strides=stride, pads=[*padding, *padding]
    )

    def backward(gradient: str) -> str:
        """Add each gradient up where its largest value was."""
        all_ = graph.add_integers(-1)
        shape = graph.add_node("Shape", x)
        none = graph.add_node("Reshape", graph.add_node("Mul", x, graph.add_constant(0)), all_)
        places = graph.add_node("Reshape", f"{y}:1", all_)
        flat = graph.add_node("Reshape", gradient, all_)
        added = graph.add_node("ScatterElements", none, places, flat, reduction="add")
        return graph.add_node("Reshape", added, shape)

    return y, backward


def _write_average_pool(graph: GraphBuilder, module: Any, _: str, x: str) -> tuple[str, Backward]:
    """Write an average over squares that do not overlap."""
    side = int(module.kernel_size)
    y = graph.add_node("AveragePool", x, kernel_shape=[side] * 2, strides=[side] * 2)

    def backward(gradient: str) -> str:
        share = graph.add_node("Mul", gradient, graph.add_constant(1 / side**2))
        scales = graph.add_constant([1, 1, side, side])
        spread = graph.add_node(
            "Resize",
            share,
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        # A last row or column that no square covered has no part in the average.
        missing = graph.add_node("Sub", graph.add_size(x), graph.add_size(spread))
        pads = graph.add_node("Concat", graph.add_integers(0, 0), missing, axis=0)
        return graph.add_node("Pad", spread, pads, "", graph.add_integers(2, 3))

    return y, backward


LAYERS: dict[type[nn.Module], Callable[[GraphBuilder, Any, str, str], tuple[str, Backward]]] = {
    nn.Conv2d: _write_conv,
    ConvNorm: _write_conv_norm,
    nn.BatchNorm2d: _write_norm,
    nn.ReLU: lambda graph, _, __, x: write_relu(graph, x),
    nn.Sequential: _write_sequence,
    nn.Identity: _write_identity,
    nn.Dropout: _write_identity,
    Residual: _write_residual,
    Dense: _write_dense,
    nn.Linear: _write_linear,
    nn.MaxPool2d: _write_max_pool,
    nn.AvgPool2d: _write_average_pool,
}
"""The layers that can be written, each with its gradient."""


def write_pixel_mean(graph: GraphBuilder, x: str) -> tuple[str, Backward]:
    """Write the average over a picture, (N, C, H, W) to (N, C)."""
    axes = graph.add_integers(2, 3)
    y = graph.add_node("ReduceMean", x, axes, keepdims=0)

    def backward(gradient: str) -> str:
        places = graph.add_node("ReduceProd", graph.add_size(x), keepdims=0)
        share = graph.add_node(
            "Div", gradient, graph.add_node("Cast", places, to=TensorProto.FLOAT)
        )
        return graph.add_node(
            "Expand", graph.add_node("Unsqueeze", share, axes), graph.add_node("Shape", x)
        )

    return y, backward


def write_unshuffle(graph: GraphBuilder, x: str, channels: int) -> str:
    """Write torch's pixel_unshuffle by 2, of so many channels: (N, C, H, W) to (N, 4C, …)."""
    order: NDArray[np.int64] = np.arange(4 * channels).reshape(4, channels).T.ravel()
    deep = graph.add_node("SpaceToDepth", x, blocksize=2)
    return graph.add_node("Gather", deep, graph.add_constant(order, np.int64), axis=1)


def write_shuffle(graph: GraphBuilder, x: str) -> str:
    """Write torch's pixel_shuffle by 2."""
    return graph.add_node("DepthToSpace", x, blocksize=2, mode="CRD")
