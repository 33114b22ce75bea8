"""Copies of nets for gradients with respect to pixels alone: folded, low-precision, laid out fast.

A copy shares nothing with its net; `follow` brings a classifier's up to date with its training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tue_cli.nets.block import NtgaBlock
from tue_cli.nets.classifiers import Classifier, ConvNorm
from tue_cli.nets.patterns import Patterns
from tue_cli.nets.score import ScoreNet

Net = TypeVar("Net", bound=nn.Module)


def fold_batch_norms(net: Classifier) -> Classifier:
    """Return a copy in eval mode, without parameter gradients, in which every batch norm behind a
    convolution is part of it: the same logits up to rounding, less memory traffic.
    """
    return _copy_module(net)


def _copy_module(module: Net) -> Net:
    """Return a copy in eval mode, without parameter gradients, with batch norms folded.

    `copy.deepcopy` takes three times as long, for it follows every attribute.
    """
    twin = copy.copy(module)
    twin.training = False
    twin._parameters = {name: _copy_parameter(p) for name, p in module._parameters.items()}
    twin._modules = dict(module._modules)
    twin._buffers = {n: None if b is None else b.clone() for n, b in module._buffers.items()}
    for name, child in module.named_children():
        twin._modules[name] = _fold(child) if isinstance(child, ConvNorm) else _copy_module(child)
    return twin


def _copy_parameter(value: Tensor | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)


def _fold(pair: ConvNorm) -> nn.Conv2d:
    """Return one convolution that computes what a convolution and its batch norm do."""
    folded = _copy_module(cast(nn.Conv2d, pair[0]))
    weight, bias = _fold_weights(pair)
    folded._parameters = {"weight": _copy_parameter(weight), "bias": _copy_parameter(bias)}
    return folded


def _fold_weights(pair: ConvNorm) -> tuple[Tensor, Tensor]:
    conv, norm = cast(nn.Conv2d, pair[0]), cast(nn.BatchNorm2d, pair[1])
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    return fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )


def _pair_modules(copy: nn.Module, net: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the modules of a folded copy, each with the one that it came from."""
    yield copy, net
    if not isinstance(net, ConvNorm):
        for own, other in zip(copy.children(), net.children(), strict=True):
            yield from _pair_modules(own, other)


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
                weight, bias = _fold_weights(other)
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
        self.net = convert_to_channels_last(_copy_module(net).to(dtype))

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
