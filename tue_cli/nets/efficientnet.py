"""EfficientNet-Lite0 (Tan 2020): EfficientNet-B0 without squeeze-and-excitation, with ReLU6.

Layers are padded as TensorFlow pads them, since the published weights were trained so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tue_cli.nets.classifiers import Classifier, ConvNorm

LEAST = 96
"""Smaller pictures are enlarged to this many pixels a side: the last layers then see 3 x 3."""
FEATURES = 1280
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel, stride of the first block, expansion and channels of each stage."""


class Prepare(nn.Module):
    """Pictures as a pretrained net wants them: not too small, and in its own scale."""

    def __init__(self, least: int, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        """Sides become `least` pixels or more, and pixels in [0, 1] (pixels - mean) / deviation,
        a value a channel.
        """
        super().__init__()
        self.least = least
        self.shift: Tensor
        self.deviation: Tensor
        shift, scale = 0.5 - torch.tensor(mean), torch.tensor(deviation)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        self.register_buffer("deviation", scale[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) less 0.5, as `Classifier` passes them on."""
        short = min(x.shape[-2:])
        if short < self.least:
            size = [round(side * self.least / short) for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return (x + self.shift) / self.deviation


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does it: with a stride, more below and on the right.

    In training on a CPU, those of single channels stay in float32: in bfloat16 their gradients
    take longer, and the whole update half as long again.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        if self.groups > 1 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self._convolve(x.float())
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        height, width = (max(kernel - (side % stride or stride), 0) for side in x.shape[-2:])
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


class SameConvNorm(ConvNorm):
    """`ConvNorm` with that padding, and TensorFlow's epsilon."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        conv = SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)
        nn.Sequential.__init__(self, conv, nn.BatchNorm2d(outputs, eps=1e-3))


class Inverted(nn.Module):
    """Expand, convolve each channel, project; the input is added where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [SameConvNorm(inputs, inner, 1), nn.ReLU6()] if expansion > 1 else []
        self.branch = nn.Sequential(
            *expand,
            SameConvNorm(inner, inner, kernel, stride, groups=inner),
            nn.ReLU6(),
            SameConvNorm(inner, outputs, 1),
        )
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        mapped = cast(Tensor, self.branch(x))
        return mapped + x if self.is_residual else mapped


def build_efficientnet_lite0(classes: int) -> Classifier:
    """Build the net with fresh weights, drawn from torch's default generator."""
    layers: list[nn.Module] = [
        Prepare(LEAST, (127 / 255,) * 3, (128 / 255,) * 3),
        SameConvNorm(3, 32, 3, 2),
        nn.ReLU6(),
    ]
    channels = 32
    for count, kernel, stride, expansion, outputs in STAGES:
        for block in range(count):
            layers.append(Inverted(channels, outputs, kernel, 1 if block else stride, expansion))
            channels = outputs
    layers += [SameConvNorm(channels, FEATURES, 1), nn.ReLU6()]
    return Classifier(nn.Sequential(*layers), nn.Linear(FEATURES, classes))


def map_published_names() -> dict[str, str]:
    """Return each layer's name in `efficientnet_lite_pytorch`, and the one that it has here."""
    places = {"_conv_stem": "body.1.0", "_bn0": "body.1.1", "_fc": "head"}
    number = 3
    for count, _, _, expansion, _ in STAGES:
        for _ in range(count):
            old, new = f"_blocks.{number - 3}", f"body.{number}.branch"
            pairs = [("_expand_conv", "_bn0")] if expansion > 1 else []
            pairs += [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            for place, (conv, norm) in enumerate(pairs):
                places[f"{old}.{conv}"] = f"{new}.{2 * place}.0"
                places[f"{old}.{norm}"] = f"{new}.{2 * place}.1"
            number += 1
    return places | {"_conv_head": f"body.{number}.0", "_bn1": f"body.{number}.1"}


def rename_layers(state: Mapping[str, Tensor], places: Mapping[str, str]) -> dict[str, Tensor]:
    """Return tensors by the names of their layers here; what has none keeps its own."""
    renamed = {}
    for name, tensor in state.items():
        layer, _, last = name.rpartition(".")
        renamed[f"{places.get(layer, layer)}.{last}"] = tensor
    return renamed
