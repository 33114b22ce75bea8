"""A sheet of ONNX nodes being written, and how each layer of our nets is written on it twice:
once forward, once as the gradient with respect to its input.

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
    """Nodes, constants and the weights that they name; values are named, names are text."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.weights: dict[str, None] = {}
        """The tensors of the weights file that are used, in order."""
        self._names = itertools.count(1)

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Write one node and return the name of its (first) output; `name:1` is the second's."""
        name = f"{kind}_{next(self._names)}"
        names = [name, *(f"{name}:{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return name

    def either(self, condition: str, write: Callable[[GraphBuilder], str], other: str) -> str:
        """Write what `write` does behind a condition, where the other value stands if it is false.

        ONNX Runtime computes all that a graph holds, whatever is asked of it, but this.
        """
        branches = {}
        for name, way in (("then_branch", write), ("else_branch", lambda sheet: other)):
            inner = copy.copy(self)  # the same constants, weights and names
            inner.nodes = []
            value = inner.node("Identity", way(inner))
            made = helper.make_tensor_value_info(value, TensorProto.FLOAT, None)
            branches[name] = helper.make_graph(inner.nodes, name, [], [made])
        return self.node("If", condition, **branches)

    def constant(self, value: object, kind: type[np.generic] = np.float32) -> str:
        """Return the name of a constant; equal constants are kept once."""
        array = np.asarray(value, kind)
        name = f"{array.dtype}{list(array.shape)}:{array.ravel().tolist()}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        """Return the name of a vector of int64."""
        return self.constant(values, np.int64)

    def weight(self, name: str) -> str:
        """Return the name of a tensor of the weights file."""
        self.weights[name] = None
        return name

    def rows(self, values: str, count: int) -> str:
        """Return a vector as (C, 1, …) with `count` dimensions behind the first."""
        return self.node("Unsqueeze", values, self.integers(*range(1, count + 1)))

    def size(self, values: str) -> str:
        """Return the height and width of (N, C, H, W), as a vector."""
        return self.node("Shape", values, start=2, end=4)


def forward(sheet: GraphBuilder, module: nn.Module, name: str, x: str) -> tuple[str, Backward]:
    """Write a layer, or layers in a row, and return its output and how to write its gradient.

    Args:
        sheet: what is written on.
        module: the layer, as it is in eval mode; only its shape is read.
        name: its place in the weights file, for instance `surrogate.body.0`.
        x: name of its input.

    Raises:
        BadSetting: a kind of layer that is not in `LAYERS`.
    """
    for kind, write in LAYERS.items():
        if type(module) is kind:
            return write(sheet, module, name, x)
    raise BadSetting(
        f"A network with a {type(module).__name__} layer cannot be exported.",
        "Use --backend torch with these weights.",
    )


def convolve(
    sheet: GraphBuilder, conv: nn.Conv2d, weight: str, bias: str | None, x: str
) -> tuple[str, Backward]:
    """Write a convolution with the kernel and bias of these names."""
    stride, padding, kernel = (
        cast(tuple[int, int], t) for t in (conv.stride, conv.padding, conv.kernel_size)
    )
    y = sheet.node(
        "Conv", x, weight, *([bias] if bias else []), strides=stride, pads=[*padding, *padding]
    )

    def backward(gradient: str) -> str:
        if stride == (1, 1):
            # The same kernel, turned round; the runtime turns it when it loads.
            ends = sheet.integers(-(2**31), -(2**31))
            turned = sheet.node(
                "Slice",
                sheet.node("Transpose", weight, perm=[1, 0, 2, 3]),
                sheet.integers(-1, -1),
                ends,
                sheet.integers(2, 3),
                sheet.integers(-1, -1),
            )
            around = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
            return sheet.node("Conv", gradient, turned, pads=[*around, *around])
        # As large as the largest input of this stride, then cut to the size that it was.
        whole = sheet.node(
            "ConvTranspose",
            gradient,
            weight,
            strides=stride,
            pads=[*padding, *padding],
            output_padding=[s - 1 for s in stride],
        )
        return sheet.node("Slice", whole, sheet.integers(0, 0), sheet.size(x), sheet.integers(2, 3))

    return y, backward


def _conv(sheet: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    bias = None if module.bias is None else sheet.weight(f"{name}.bias")
    return convolve(sheet, module, sheet.weight(f"{name}.weight"), bias, x)


def _affine(sheet: GraphBuilder, norm: nn.BatchNorm2d, name: str) -> tuple[str, str]:
    """Write a batch norm in eval mode as a scale and a shift, each (C,)."""
    weight, bias, mean, variance = (
        sheet.weight(f"{name}.{part}") for part in ("weight", "bias", "running_mean", "running_var")
    )
    deviation = sheet.node("Sqrt", sheet.node("Add", variance, sheet.constant(norm.eps)))
    scale = sheet.node("Div", weight, deviation)
    return scale, sheet.node("Sub", bias, sheet.node("Mul", mean, scale))


def _conv_norm(sheet: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    scale, shift = _affine(sheet, module[1], f"{name}.1")
    weight = sheet.node("Mul", sheet.weight(f"{name}.0.weight"), sheet.rows(scale, 3))
    return convolve(sheet, module[0], weight, shift, x)


def _norm(sheet: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    scale, shift = (sheet.rows(values, 2) for values in _affine(sheet, module, name))
    y = sheet.node("Add", sheet.node("Mul", x, scale), shift)
    return y, lambda gradient: sheet.node("Mul", gradient, scale)


def relu(sheet: GraphBuilder, x: str) -> tuple[str, Backward]:
    """Write a ReLU; its gradient is 0 where its output is."""
    y = sheet.node("Relu", x)

    def backward(gradient: str) -> str:
        # A comparison and a cast: a tenth of a step faster than Sign, or than Where.
        above = sheet.node("Greater", y, sheet.constant(0))
        return sheet.node("Mul", gradient, sheet.node("Cast", above, to=TensorProto.FLOAT))

    return y, backward


def _sequence(sheet: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    backwards = []
    for place, layer in module.named_children():
        x, backward = forward(sheet, layer, f"{name}.{place}", x)
        backwards.append(backward)

    def back(gradient: str) -> str:
        for backward in reversed(backwards):
            gradient = backward(gradient)
        return gradient

    return x, back


def _identity(_: GraphBuilder, __: Any, ___: str, x: str) -> tuple[str, Backward]:
    return x, lambda gradient: gradient


def _residual(sheet: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    left, left_back = forward(sheet, module.branch, f"{name}.branch", x)
    right, right_back = forward(sheet, module.shortcut, f"{name}.shortcut", x)
    y, relu_back = relu(sheet, sheet.node("Add", left, right))

    def backward(gradient: str) -> str:
        gradient = relu_back(gradient)
        return sheet.node("Add", left_back(gradient), right_back(gradient))

    return y, backward


def _dense(sheet: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    new, back = forward(sheet, module.branch, f"{name}.branch", x)
    inputs = module.branch[0].num_features
    first, rest, axis = sheet.integers(0), sheet.integers(inputs), sheet.integers(1)

    def backward(gradient: str) -> str:
        old = sheet.node("Slice", gradient, first, rest, axis)
        grown = sheet.node("Slice", gradient, rest, sheet.integers(2**31), axis)
        return sheet.node("Add", old, back(grown))

    return sheet.node("Concat", x, new, axis=1), backward


def _linear(sheet: GraphBuilder, module: Any, name: str, x: str) -> tuple[str, Backward]:
    weight, bias = sheet.weight(f"{name}.weight"), sheet.weight(f"{name}.bias")
    y = sheet.node("Gemm", x, weight, bias, transB=1)
    return y, lambda gradient: sheet.node("Gemm", gradient, weight)


def _max_pool(sheet: GraphBuilder, module: Any, _: str, x: str) -> tuple[str, Backward]:
    kernel, stride, padding = (
        [int(n)] * 2 for n in (module.kernel_size, module.stride, module.padding)
    )
    y = sheet.node(
        "MaxPool", x, outputs=2, kernel_shape=kernel, strides=stride, pads=[*padding, *padding]
    )

    def backward(gradient: str) -> str:
        """Add each gradient up where its largest value was."""
        all_ = sheet.integers(-1)
        shape = sheet.node("Shape", x)
        none = sheet.node("Reshape", sheet.node("Mul", x, sheet.constant(0)), all_)
        places = sheet.node("Reshape", f"{y}:1", all_)
        flat = sheet.node("Reshape", gradient, all_)
        added = sheet.node("ScatterElements", none, places, flat, reduction="add")
        return sheet.node("Reshape", added, shape)

    return y, backward


def _average_pool(sheet: GraphBuilder, module: Any, _: str, x: str) -> tuple[str, Backward]:
    """Write an average over squares that do not overlap."""
    side = int(module.kernel_size)
    y = sheet.node("AveragePool", x, kernel_shape=[side] * 2, strides=[side] * 2)

    def backward(gradient: str) -> str:
        share = sheet.node("Mul", gradient, sheet.constant(1 / side**2))
        scales = sheet.constant([1, 1, side, side])
        spread = sheet.node(
            "Resize",
            share,
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        # A last row or column that no square covered has no part in the average.
        missing = sheet.node("Sub", sheet.size(x), sheet.size(spread))
        pads = sheet.node("Concat", sheet.integers(0, 0), missing, axis=0)
        return sheet.node("Pad", spread, pads, "", sheet.integers(2, 3))

    return y, backward


LAYERS: dict[type[nn.Module], Callable[[GraphBuilder, Any, str, str], tuple[str, Backward]]] = {
    nn.Conv2d: _conv,
    ConvNorm: _conv_norm,
    nn.BatchNorm2d: _norm,
    nn.ReLU: lambda sheet, _, __, x: relu(sheet, x),
    nn.Sequential: _sequence,
    nn.Identity: _identity,
    nn.Dropout: _identity,
    Residual: _residual,
    Dense: _dense,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
}
"""The layers that can be written, each with its gradient."""


def mean_over_pixels(sheet: GraphBuilder, x: str) -> tuple[str, Backward]:
    """Write the average over a picture, (N, C, H, W) to (N, C)."""
    axes = sheet.integers(2, 3)
    y = sheet.node("ReduceMean", x, axes, keepdims=0)

    def backward(gradient: str) -> str:
        places = sheet.node("ReduceProd", sheet.size(x), keepdims=0)
        share = sheet.node("Div", gradient, sheet.node("Cast", places, to=TensorProto.FLOAT))
        return sheet.node("Expand", sheet.node("Unsqueeze", share, axes), sheet.node("Shape", x))

    return y, backward


def unshuffle(sheet: GraphBuilder, x: str, channels: int) -> str:
    """Write torch's pixel_unshuffle by 2, of so many channels: (N, C, H, W) to (N, 4C, …)."""
    order: NDArray[np.int64] = np.arange(4 * channels).reshape(4, channels).T.ravel()
    deep = sheet.node("SpaceToDepth", x, blocksize=2)
    return sheet.node("Gather", deep, sheet.constant(order, np.int64), axis=1)


def shuffle(sheet: GraphBuilder, x: str) -> str:
    """Write torch's pixel_shuffle by 2."""
    return sheet.node("DepthToSpace", x, blocksize=2, mode="CRD")
