"""Copies of nets for gradients with respect to pixels alone: folded, low-precision, laid out fast.

A copy shares nothing with its net; `follow` brings a classifier's up to date with its training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from tue_cli.nets.block import NtgaBlock
from tue_cli.nets.classifiers import Classifier, ConvNorm
from tue_cli.nets.patterns import Patterns
from tue_cli.nets.score import ScoreNet


def fold_batch_norms(net: Classifier) -> Classifier:
    """Return a copy in eval mode, without parameter gradients, in which every batch norm behind a
    convolution is part of it: the same logits up to rounding, less memory traffic.
    """
    result = copy.deepcopy(net).eval().requires_grad_(False)
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ConvNorm):
                conv, norm = cast(nn.Conv2d, child[0]), cast(nn.BatchNorm2d, child[1])
                setattr(parent, name, fuse_conv_bn_eval(conv, norm).requires_grad_(False))
    return result


def _pair_modules(copy: nn.Module, net: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the modules of a folded copy, each with the one that it came from."""
    yield copy, net
    if not isinstance(net, ConvNorm):
        for own, other in zip(copy.children(), net.children(), strict=True):
            yield from _pair_modules(own, other)


Net = TypeVar("Net", bound=nn.Module)


def convert_to_channels_last(net: Net) -> Net:
    """Lay a net's convolutions out as the fast kernels want them, in place."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


class FrozenClassifier:
    """A surrogate's logits and features, in the precision given; pixels and results in float32."""

    def __init__(self, net: Classifier, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.net = convert_to_channels_last(fold_batch_norms(net).to(dtype))

    @torch.no_grad()
    def follow(self, net: Classifier) -> None:
        """Take the weights of the net that this is a copy of as they are now, in place.

        What reads this copy's memory, as a captured graph does, reads the new weights.
        """
        for own, other in _pair_modules(self.net, net):
            if isinstance(other, ConvNorm):
                conv, norm = cast(nn.Conv2d, other[0]), cast(nn.BatchNorm2d, other[1])
                mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
                weight, bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
                )
                assert isinstance(own, nn.Conv2d) and own.bias is not None
                own.weight.copy_(weight)
                own.bias.copy_(bias)
                continue
            mine = [*own.parameters(recurse=False), *own.buffers(recurse=False)]
            theirs = [*other.parameters(recurse=False), *other.buffers(recurse=False)]
            for value, now in zip(mine, theirs, strict=True):
                value.copy_(now)

    def _cast(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return logits (N, K) of pixels (N, 3, H, W) in [0, 1]."""
        return cast(Tensor, self.net(self._cast(pixels))).float()

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features, the head's input, (N, D)."""
        return self.net.features(self._cast(pixels)).float()


class FrozenScore:
    """A score network's field, in the precision given; pixels and result in float32."""

    def __init__(self, net: ScoreNet, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.net = convert_to_channels_last(
            copy.deepcopy(net).eval().requires_grad_(False).to(dtype)
        )

    def __call__(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return s(x, y), (N, 3, H, W), of pixels in [0, 1] and class numbers (N,)."""
        lowered = pixels.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.net(lowered, labels)).float()


Frozen = FrozenClassifier | FrozenScore | NtgaBlock | Patterns


def freeze(net: nn.Module, dtype: torch.dtype) -> Frozen:
    """Return a net's frozen copy; what holds pictures or noise stays in float32."""
    if isinstance(net, ScoreNet):
        return FrozenScore(net, dtype)
    if isinstance(net, NtgaBlock | Patterns):
        return copy.deepcopy(net).requires_grad_(False)
    assert isinstance(net, Classifier)
    return FrozenClassifier(net, dtype)
