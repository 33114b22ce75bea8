"""The five classifiers of the paper, at any width: surrogates and victims.

Pixels go in as they are, in [0, 1]; the normalisation (x - 0.5, as REM) is inside. Width 64 is the
published net; another width scales every layer in proportion.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, cat, nn

from tue_cli.errors import BadSetting

IMAGENET_STEM_FROM = 96
"""Pictures of this many pixels and more get the ImageNet stem (7x7, stride 2, pooled)."""

ONEDNN_BLOCK = 16
"""Channels that oneDNN takes at once, at most."""


class Pointwise(nn.Conv2d):
    """A convolution of one pixel; with a stride, of every second, third ... one.

    Laid out channels last, with a stride and fewer channels than its block, oneDNN writes beside
    the gradient of the weights: it crashes, or is wrong (uxlfoundation/oneDNN#6035). There the
    pixels between are left out before.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        if self.stride == (1, 1) or self.in_channels >= ONEDNN_BLOCK:
            return super().forward(x)
        return F.conv2d(F.avg_pool2d(x, 1, self.stride), self.weight, self.bias)


class ConvNorm(nn.Sequential):
    """A convolution without bias and its batch norm: the pair that `fold_batch_norms` joins."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            (Pointwise if kernel == 1 else nn.Conv2d)(
                inputs, outputs, kernel, stride, kernel // 2, bias=False
            ),
            nn.BatchNorm2d(outputs),
        )


class Residual(nn.Module):
    """ReLU(branch(x) + shortcut(x)); the shortcut is projected where the shape changes."""

    def __init__(self, branch: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return cast(Tensor, self.branch(x) + self.shortcut(x)).relu()


class Dense(nn.Module):
    """A DenseNet layer: `growth` new channels behind the old ones."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            ConvNorm(inputs, 4 * growth, 1),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, inputs + growth, H, W)."""
        return cat([x, self.branch(x)], dim=1)


class Classifier(nn.Module):
    """A body of convolutions, an average over the picture, and a head; any picture size."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features, the head's input, (N, D), of pixels (N, 3, H, W) in [0, 1]."""
        return cast(Tensor, self.body(pixels - 0.5)).mean((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, K) of pixels (N, 3, H, W) in [0, 1]."""
        return cast(Tensor, self.head(self.features(pixels)))


def _build_stem(channels: int, size: int) -> list[nn.Module]:
    if size < IMAGENET_STEM_FROM:
        return [ConvNorm(3, channels, 3), nn.ReLU()]
    return [ConvNorm(3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]


def _build_basic(inputs: int, outputs: int, stride: int) -> Residual:
    branch = nn.Sequential(
        ConvNorm(inputs, outputs, 3, stride), nn.ReLU(), ConvNorm(outputs, outputs, 3)
    )
    return Residual(branch, inputs, outputs, stride)


def _build_bottleneck(inputs: int, inner: int, stride: int) -> Residual:
    branch = nn.Sequential(
        ConvNorm(inputs, inner, 1),
        nn.ReLU(),
        ConvNorm(inner, inner, 3, stride),
        nn.ReLU(),
        ConvNorm(inner, 4 * inner, 1),
    )
    return Residual(branch, inputs, 4 * inner, stride)


def _build_resnet(
    blocks: list[int], bottleneck: bool, classes: int, width: int, size: int
) -> Classifier:
    layers, channels = _build_stem(width, size), width
    for stage, count in enumerate(blocks):
        inner = width << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(
                (_build_bottleneck if bottleneck else _build_basic)(channels, inner, stride)
            )
            channels = 4 * inner if bottleneck else inner
    return Classifier(nn.Sequential(*layers), nn.Linear(channels, classes))


def _build_wide_resnet(classes: int, width: int, size: int) -> Classifier:
    """WRN-34-10: three stages of five basic blocks, 160 to 640 channels at width 64.

    Activations come after the norms, as in REM's victim, not before as in Zagoruyko et al.
    """
    channels = max(1, width // 4)
    layers = _build_stem(channels, size)
    for stage in range(3):
        outputs = (width * 10 // 4) << stage
        for block in range(5):
            layers.append(_build_basic(channels, outputs, 2 if stage and not block else 1))
            channels = outputs
    return Classifier(nn.Sequential(*layers), nn.Linear(channels, classes))


def _build_vgg16(classes: int, width: int, size: int) -> Classifier:
    """VGG-16 with batch norm; it has no stem to change, only its 512-512 head (REM)."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, count in enumerate([2, 2, 3, 3, 3]):
        outputs = width << min(stage, 3)
        for _ in range(count):
            layers += [ConvNorm(channels, outputs, 3), nn.ReLU()]
            channels = outputs
        layers.append(nn.MaxPool2d(2))
    head = nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(channels, channels),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(channels, channels),
        nn.ReLU(),
        nn.Linear(channels, classes),
    )
    return Classifier(nn.Sequential(*layers), head)


def _build_densenet121(classes: int, width: int, size: int) -> Classifier:
    growth, channels = max(1, width // 2), width
    layers = _build_stem(width, size)
    for stage, count in enumerate([6, 12, 24, 16]):
        if stage:
            layers += [
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            channels //= 2
        for _ in range(count):
            layers.append(Dense(channels, growth))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), nn.Linear(channels, classes))


NETS: dict[str, Callable[[int, int, int], Classifier]] = {
    "vgg16": _build_vgg16,
    "resnet18": partial(_build_resnet, [2, 2, 2, 2], False),
    "resnet50": partial(_build_resnet, [3, 4, 6, 3], True),
    "densenet121": _build_densenet121,
    "wrn34-10": _build_wide_resnet,
}


def build_classifier(name: str, *, classes: int, width: int = 64, size: int = 32) -> Classifier:
    """Build a net with fresh weights, drawn from torch's default generator.

    Args:
        name: a key of `NETS`.
        classes: number of logits.
        width: channels of the first stage at the published width of 64; 4 or more.
        size: shorter side of the pictures it is for; it chooses the stem.

    Raises:
        BadSetting: no such net, a width below 4, or pictures too small for it.
    """
    if name not in NETS:
        raise BadSetting(f"There is no net {name!r}.", f"Choose one of: {', '.join(NETS)}.")
    if width < 4:
        raise BadSetting(
            f"A net needs a width of 4 channels or more, not {width}.", "The published width is 64."
        )
    if name == "vgg16" and size < 32:
        raise BadSetting(
            f"VGG-16 needs pictures of 32 pixels or more, not {size}.",
            "Choose --size 32 or more, or another net.",
        )
    return NETS[name](classes, width, size)
