"""EM, error-minimising noise: Huang et al. 2021, "Unlearnable Examples: Making Personal Data
Unexploitable", as REM's authors run it (Fu et al. 2022), with one defect mended.

One noise and one update a batch, fresh noise at every visit, instead of rounds over the whole set
with a noise that persists. Their noise was found on a shifted view and stored for the unshifted
picture; here it lives on the picture and the shift comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tue_cli.config import TrainSettings
from tue_cli.core.batches import Images
from tue_cli.core.capture import Run, Tensors, run_eagerly
from tue_cli.core.loop import Training
from tue_cli.methods.surrogate import (
    FrozenNets,
    NetFit,
    fit_on_own_noise,
    get_surrogate,
    list_mask,
    make_noise,
    make_surrogate_term,
    plan_surrogate,
    sample_eot_moves,
)
from tue_cli.noise import EmNoise


def perturb(
    nets: FrozenNets,
    pixels: Tensor,
    labels: Tensor,
    noise: EmNoise,
    *,
    start: Tensor,
    generator: torch.Generator,
    mask: Tensor | None = None,
    run: Run = run_eagerly,
) -> Tensor:
    """Return delta, (N, 3, H, W), that makes the surrogate's loss small."""

    def descend(
        pixels: Tensor, labels: Tensor, start: Tensor, moves: Tensor, *mask: Tensor
    ) -> Tensors:
        term = make_surrogate_term(get_surrogate(nets), labels, noise, moves)
        return (make_noise(pixels, [term], noise, start, *mask),)

    moves = sample_eot_moves(noise, pixels, generator)
    return run(descend, pixels, labels, start, moves, *list_mask(mask))[0]


def fit_surrogate(
    training: Training,
    nets: FrozenNets,
    pictures: Images,
    settings: TrainSettings,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Train the surrogate by standard training on its own unlearnable examples."""
    noise = settings.noise
    assert isinstance(noise, EmNoise)
    yield from fit_on_own_noise(training, nets, pictures, perturb, noise, None, dtype)


FITS = {"surrogate": NetFit(fit_surrogate, plan_surrogate)}
