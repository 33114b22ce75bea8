"""Projected gradient descent on pixels: the one algorithm under every noise and every adversary.

What is descended lives in `losses.py`; what the noise is for lives in `methods/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tue_cli.mask import apply_mask, mask_gradient

Objective = Callable[[Tensor], Tensor]
"""Pixels (N, 3, H, W) to one loss a picture (N,)."""

Gradient = Callable[[Tensor], Tensor]
"""Pixels (N, 3, H, W) to a field of the same shape, of which only the signs are used."""


@dataclass(frozen=True)
class Term:
    """One pull on the noise: each step moves it by `-step * sign(gradient)`."""

    gradient: Gradient
    step: float
    """In the pixels' unit; negative to ascend."""


def make_gradient(objective: Objective) -> Gradient:
    """Return the gradient of the summed objective with respect to the pixels."""

    def gradient(pixels: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = pixels.detach().requires_grad_()
            return torch.autograd.grad(objective(leaf).sum(), leaf)[0]

    return gradient


@torch.no_grad()
def pgd(
    pixels: Tensor,
    terms: Sequence[Term],
    *,
    radius: float,
    steps: int,
    start: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Return delta with |delta| <= radius and pixels + delta in [0, 1], after `steps` steps.

    With a mask, the gradients are taken at pixels + `apply_mask` of delta, clamped to [0, 1].

    Every step takes each term's gradient at the same point, adds all signed steps and projects
    once (Fang et al., Algorithm 1, line 10).

    Args:
        pixels: (N, 3, H, W) in [0, 1]; not changed.
        terms: what pulls, and how far a step.
        radius: the L-infinity bound, in the pixels' unit.
        steps: number of steps, 0 or more.
        start: first delta, of the pixels' shape; projected before the first step.
        mask: (N, 2, H, W), see `apply_mask`; None gives every pixel all of the noise.
    """
    if mask is not None:
        return _descend_masked(pixels, terms, radius, steps, start, mask)
    lower = torch.clamp(-pixels, min=-radius)
    upper = torch.clamp(1 - pixels, max=radius)
    delta = torch.clamp(start, lower, upper)
    for _ in range(steps):
        moved = pixels + delta
        for term in terms:
            delta = delta - term.step * term.gradient(moved).sign()
        delta = torch.clamp(delta, lower, upper)
    return delta


def _descend_masked(
    pixels: Tensor, terms: Sequence[Term], radius: float, steps: int, start: Tensor, mask: Tensor
) -> Tensor:
    delta = torch.clamp(start, -radius, radius)
    for _ in range(steps):
        moved = torch.clamp(pixels + apply_mask(delta, mask), 0, 1)
        for term in terms:
            delta = delta - term.step * mask_gradient(term.gradient(moved), mask).sign()
        delta = torch.clamp(delta, -radius, radius)
    return delta


def draw_uniform_start(pixels: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Draw a delta uniformly from the ball of `radius`, of the pixels' shape, on their device."""
    noise = torch.rand(pixels.shape, generator=generator, device=generator.device)
    return (2 * noise.to(pixels.device) - 1) * radius
