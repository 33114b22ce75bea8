"""Gradient descent of an infinitely wide net, by its neural tangent kernel (Jacot et al. 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tue_cli.config import KernelSettings


def tangent_kernel(a: Tensor, b: Tensor, settings: KernelSettings) -> Tensor:
    """Return the kernel (N, M) of a fully connected net with error functions, of (N, D), (M, D).

    Exact for infinite width: the covariance of a layer follows from that of the one before
    (Williams 1997), and each layer adds its covariance to the kernel, scaled by the slopes above.
    """
    weight, bias = settings.weight_variance, settings.bias_variance
    of_a, of_b = (weight * rows.square().mean(1) + bias for rows in (a, b))
    return _apply_layers(weight * a @ b.T / a.shape[1] + bias, of_a[:, None], of_b, settings)


def compute_kernel_diagonal(a: Tensor, settings: KernelSettings) -> Tensor:
    """Return the diagonal (N,) of `tangent_kernel(a, a)`, of (N, D)."""
    of_a = settings.weight_variance * a.square().mean(1) + settings.bias_variance
    return _apply_layers(of_a, of_a, of_a, settings)


def _apply_layers(cross: Tensor, of_a: Tensor, of_b: Tensor, settings: KernelSettings) -> Tensor:
    """Return the kernel, of the covariances of the first layer: between and with themselves."""
    weight, bias = settings.weight_variance, settings.bias_variance

    def apply_layer(covariance: Tensor, norm: Tensor) -> Tensor:
        return weight * 2 / math.pi * torch.asin(2 * covariance / norm) + bias

    kernel = cross
    for _ in range(settings.layers):
        norms = (1 + 2 * of_a) * (1 + 2 * of_b)
        slope = weight * 4 / math.pi / (norms - 4 * cross.square()).sqrt()
        cross = apply_layer(cross, norms.sqrt())
        kernel = cross + kernel * slope
        of_a, of_b = (apply_layer(own, 1 + 2 * own) for own in (of_a, of_b))
    return kernel


def fit_coefficients(kernel: Tensor, targets: Tensor, time: int) -> Tensor:
    """Return the coefficients (M, C) after `time` steps of gradient descent from 0.

    The prediction for a picture is its kernel row times them. The loss is the mean square over the
    M pictures, the rate 1; a kernel (M, M) whose diagonal has the mean 1 is stable under it.
    """
    coefficients = torch.zeros_like(targets)
    for _ in range(time):
        coefficients = coefficients + (targets - kernel @ coefficients) / len(kernel)
    return coefficients


def fit_with_last_image(
    spectrum: Tensor, rows: Tensor, own: Tensor, targets: Tensor, target: Tensor, time: int
) -> tuple[Tensor, Tensor]:
    """Return `fit_coefficients`' result for N blocks that differ by their last picture.

    All but the last picture are written in the eigenbasis of their kernel, where a step of the N
    descents costs N * M * C instead of N * M^2 * C.

    Args:
        spectrum: (M,) eigenvalues of the kernel that the blocks share.
        rows: (N, M) kernel between the last pictures and the shared ones, in the basis.
        own: (N,) kernel of the last pictures with themselves.
        targets: (M, C) of the shared pictures, in the basis.
        target: (N, C) of the last pictures.
        time: steps.

    Returns:
        Coefficients (N, M, C) of the shared pictures, in the basis, and (N, C) of the last ones.
    """
    count = len(spectrum) + 1
    shared = targets.expand(len(rows), *targets.shape) * 0
    last = target * 0
    for _ in range(time):
        missed = targets - spectrum[:, None] * shared - rows[:, :, None] * last[:, None]
        missed_last = target - torch.einsum("nm,nmc->nc", rows, shared) - own[:, None] * last
        shared, last = shared + missed / count, last + missed_last / count
    return shared, last
