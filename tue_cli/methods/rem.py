"""REM, robust error-minimising noise: Fu et al. 2022, "Robust Unlearnable Examples: Protecting Data
Privacy Against Adversarial Learning"; and SEM (Liu et al. 2024), the same without inner steps.

- The adversary meets the shifted view; the gradient at its point goes back through the shift alone,
  as in theirs: the offset is a constant.
- Its random start is drawn once for a batch, as the EoT samples are: a picture's noise is its own.
- The noise stays within the pixels' range, where theirs is cut when it is applied; and the last
  pass covers every picture, where theirs drops those that fill no batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tue_cli.config import AdversarySettings, TrainSettings
from tue_cli.core.batches import Images
from tue_cli.core.capture import Run, Tensors, run_eagerly
from tue_cli.core.loop import Training
from tue_cli.core.losses import cross_entropy
from tue_cli.core.pgd import Objective, Term, draw_uniform_start, make_gradient
from tue_cli.methods.surrogate import (
    FrozenNets,
    NetFit,
    ascend_loss,
    average_over_moves,
    fit_on_own_noise,
    get_surrogate,
    list_mask,
    make_noise,
    plan_surrogate,
    sample_eot_moves,
)
from tue_cli.noise import RemNoise


def make_adversarial_loss(
    loss: Objective, adversary: AdversarySettings, starts: Tensor
) -> Objective:
    """Return the loss where an adversary has moved the pixels, which are in [0, 1].

    At every call it begins at the next of `starts`, (M, 1, 3, H, W), for the whole batch.
    """
    rest = iter(starts)

    def objective(pixels: Tensor) -> Tensor:
        fixed = pixels.detach()
        return loss(pixels + ascend_loss(loss, fixed, adversary, next(rest).expand_as(fixed)))

    return objective


def perturb(
    nets: FrozenNets,
    pixels: Tensor,
    labels: Tensor,
    noise: RemNoise,
    *,
    start: Tensor,
    generator: torch.Generator,
    mask: Tensor | None = None,
    run: Run = run_eagerly,
) -> Tensor:
    """Return delta, (N, 3, H, W), that makes the surrogate's loss small for all an adversary does.

    The inner maximum within the outer minimum (Fu et al., Eq. 5), over EoT samples.
    """
    inner = AdversarySettings(radius=noise.inner_radius, steps=noise.inner_steps)

    def descend(
        pixels: Tensor,
        labels: Tensor,
        start: Tensor,
        moves: Tensor,
        starts: Tensor,
        *mask: Tensor,
    ) -> Tensors:
        loss = make_adversarial_loss(cross_entropy(get_surrogate(nets), labels), inner, starts)
        term = Term(make_gradient(average_over_moves(loss, noise.samples, moves)), noise.step)
        return (make_noise(pixels, [term], noise, start, *mask),)

    moves = sample_eot_moves(noise, pixels, generator)
    like = pixels.new_empty((len(moves), 1, *pixels.shape[1:]))
    starts = draw_uniform_start(like, inner.radius, generator)
    return run(descend, pixels, labels, start, moves, starts, *list_mask(mask))[0]


def fit_surrogate(
    training: Training,
    nets: FrozenNets,
    pictures: Images,
    settings: TrainSettings,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Train the surrogate by adversarial training on its own unlearnable examples."""
    noise = settings.noise
    assert isinstance(noise, RemNoise)
    yield from fit_on_own_noise(training, nets, pictures, perturb, noise, settings.adversary, dtype)


FITS = {"surrogate": NetFit(fit_surrogate, plan_surrogate)}
