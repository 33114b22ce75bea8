"""The tangent kernel against a wide net's own, and descents against each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tue_cli.config import KernelSettings
from tue_cli.core.kernel import (
    compute_kernel_diagonal,
    fit_coefficients,
    fit_with_last_image,
    tangent_kernel,
)

TWO = KernelSettings(layers=2)


def wide_kernel(rows: Tensor, width: int, settings: KernelSettings) -> Tensor:
    """The products of a finite net's gradients, of a net with one output."""
    generator = torch.Generator().manual_seed(0)
    sizes = [rows.shape[1], *[width] * settings.layers, 1]
    draws = [
        torch.randn(a, b, generator=generator, dtype=torch.float64)
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]
    biases = [torch.randn(b, generator=generator, dtype=torch.float64) for b in sizes[1:]]
    parameters = [p.requires_grad_() for p in (*draws, *biases)]
    gradients = []
    for row in rows:
        x = row
        for number, (weight, bias) in enumerate(zip(draws, biases, strict=True)):
            x = x.erf() if number else x
            x = x @ weight * math.sqrt(settings.weight_variance / len(weight))
            x = x + math.sqrt(settings.bias_variance) * bias
        parts = torch.autograd.grad(x.sum(), parameters)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    matrix = torch.stack(gradients)
    return matrix @ matrix.T


def test_the_kernel_is_that_of_a_wide_net() -> None:
    rows = torch.rand(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows[3:] -= 1
    ours, theirs = tangent_kernel(rows, rows, TWO), wide_kernel(rows, 2000, TWO)
    assert torch.allclose(ours, theirs, rtol=0.1, atol=0.02 * float(ours.max()))
    assert torch.allclose(compute_kernel_diagonal(rows, TWO), ours.diagonal())


@pytest.mark.slow
def test_descent_for_a_long_time_fits_the_targets_and_for_a_short_one_does_not() -> None:
    rows = torch.rand(6, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kernel = tangent_kernel(rows, rows, TWO)
    kernel = kernel / kernel.diagonal().mean()
    targets = torch.eye(6, dtype=torch.float64)[:, :2]
    early, late = (kernel @ fit_coefficients(kernel, targets, time) for time in (3, 200_000))
    assert (early - targets).norm() > 0.5 * targets.norm()
    assert (late - targets).norm() < 0.05 * targets.norm()


@pytest.mark.parametrize("time", [1, 7, 64])
def test_one_more_picture_is_learnt_as_if_it_had_been_in_the_block(time: int) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.rand(9, 12, generator=generator, dtype=torch.float64)
    targets = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    kernel = tangent_kernel(rows, rows, TWO)
    kernel = kernel / kernel.diagonal().mean()
    spectrum, basis = torch.linalg.eigh(kernel[:8, :8])
    shared, last = fit_with_last_image(
        spectrum,
        kernel[8:, :8] @ basis,
        kernel[8:, 8],
        basis.T @ targets[:8],
        targets[8:],
        time,
    )
    whole = fit_coefficients(kernel, targets, time)
    assert torch.allclose(basis @ shared[0], whole[:8])
    assert torch.allclose(last[0], whole[8])
