"""TAP, targeted adversarial poisons: Fowl et al. 2021, "Adversarial Examples Make Strong Poisons".

A clean-trained net is made to predict the next class for every picture; the labels stay. A victim
that learns this falls below chance, which protects no better than chance.

- One start instead of the best of eight: their README does the same to save time.
- It starts uniformly, as all methods here do, where theirs is a normal draw cut to the ball.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tue_cli.core.capture import Run, Tensors, run_eagerly
from tue_cli.core.losses import cross_entropy_of_next
from tue_cli.core.pgd import Term, make_gradient
from tue_cli.methods.surrogate import (
    FrozenNets,
    average_over_moves,
    get_surrogate,
    list_mask,
    make_noise,
    sample_eot_moves,
)
from tue_cli.noise import TapNoise


def perturb(
    nets: FrozenNets,
    pixels: Tensor,
    labels: Tensor,
    noise: TapNoise,
    *,
    start: Tensor,
    generator: torch.Generator,
    mask: Tensor | None = None,
    run: Run = run_eagerly,
) -> Tensor:
    """Return delta, (N, 3, H, W), that makes the surrogate predict the class after the label's."""

    def descend(
        pixels: Tensor, labels: Tensor, start: Tensor, moves: Tensor, *mask: Tensor
    ) -> Tensors:
        loss = average_over_moves(
            cross_entropy_of_next(get_surrogate(nets), labels), noise.samples, moves
        )
        term = Term(make_gradient(loss), noise.step)
        return (make_noise(pixels, [term], noise, start, *mask),)

    moves = sample_eot_moves(noise, pixels, generator)
    return run(descend, pixels, labels, start, moves, *list_mask(mask))[0]
