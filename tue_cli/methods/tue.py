"""TUE: Fang et al. 2023, "Towards Generalizable Data Protection With Transferable Unlearnable
Examples", Algorithm 1, with its gaps read as follows.

- One noise for Eq. 6's two minima: both terms' signed steps, one projection (line 10).
- The adversary of lines 12 to 15 ascends with respect to delta-a, as Eq. 7 says.
- Both noises start uniformly in their balls at every visit (REM); nets are in eval mode in both
  inner loops and in train mode for the update.
- The surrogate's term takes EoT samples, random crops and flips; the score's term takes the picture
  as it is.

One term is not the paper's: the same surrogate's, of the picture in grayscale, when protecting.
Without it the noise lies in the colours, and grayscale removes it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tue_cli.config import TrainSettings
from tue_cli.core.batches import Images, convert_to_grayscale, crop_and_flip
from tue_cli.core.capture import Run, Tensors, run_eagerly
from tue_cli.core.loop import Training, fit
from tue_cli.core.losses import cross_entropy, score_matching, score_norm
from tue_cli.core.pgd import Objective, Term, make_gradient
from tue_cli.methods.surrogate import (
    FrozenNets,
    NetFit,
    average_over_moves,
    fit_on_own_noise,
    get_surrogate,
    list_mask,
    make_noise,
    make_surrogate_term,
    plan_score,
    plan_surrogate,
    sample_eot_moves,
)
from tue_cli.nets.frozen import FrozenScore
from tue_cli.nets.score import ScoreNet
from tue_cli.noise import TueNoise


def make_score_term(score: FrozenScore, labels: Tensor, noise: TueNoise) -> Term:
    """Descend the norm of s(x + delta, y), or ascend along s itself."""
    step = noise.score_ratio * noise.step
    if noise.score_mode == "ascent":
        return Term(lambda pixels: score(pixels, labels), -step)
    return Term(make_gradient(score_norm(score, labels)), step)


def make_grayscale_loss(loss: Objective) -> Objective:
    """Return the loss of pictures in grayscale."""
    return lambda pixels: loss(convert_to_grayscale(pixels))


def perturb(
    nets: FrozenNets,
    pixels: Tensor,
    labels: Tensor,
    noise: TueNoise,
    *,
    start: Tensor,
    generator: torch.Generator,
    mask: Tensor | None = None,
    run: Run = run_eagerly,
) -> Tensor:
    """Return delta-u, (N, 3, H, W), within the radius and not yet quantized (lines 6 to 11).

    Args:
        nets: frozen `surrogate` and, unless the score's ratio is 0, `score`.
        pixels: (N, 3, H, W) in [0, 1].
        labels: (N,) keys: class numbers of the surrogate.
        noise: radius, steps and the score's part.
        start: where delta begins, of the pixels' shape.
        generator: draws the EoT samples; the same state draws the same for any batch.
        mask: see `apply_mask`; delta is the noise before the mask is applied.
        run: how the steps are run; what it recorded holds for these nets and this noise alone.
    """

    def descend(
        pixels: Tensor, labels: Tensor, start: Tensor, moves: Tensor, *mask: Tensor
    ) -> Tensors:
        surrogate = get_surrogate(nets)
        terms = [make_surrogate_term(surrogate, labels, noise, moves)]
        if noise.gray_ratio:
            # The same EoT samples as in colour, as in a step of the graph.
            loss = average_over_moves(
                make_grayscale_loss(cross_entropy(surrogate, labels)), noise.samples, moves
            )
            terms.append(Term(make_gradient(loss), noise.gray_ratio * noise.step))
        if noise.score_ratio:
            score = nets["score"]
            assert isinstance(score, FrozenScore)
            terms.append(make_score_term(score, labels, noise))
        return (make_noise(pixels, terms, noise, start, *mask),)

    moves = sample_eot_moves(noise, pixels, generator)
    return run(descend, pixels, labels, start, moves, *list_mask(mask))[0]


def fit_score(
    training: Training,
    nets: FrozenNets,
    pictures: Images,
    settings: TrainSettings,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Train the score network on clean pictures by denoising score matching (Eq. 5)."""
    net, device = training.net, pictures.pixels.device
    assert isinstance(net, ScoreNet)

    def prepare(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensors:
        pixels = crop_and_flip(pixels, generator)
        return pixels, labels, torch.randn(pixels.shape, generator=generator, device=device)

    def loss(pixels: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return score_matching(net, pixels, labels, sigma=settings.sigma, noise=noise).mean()

    yield from fit(training, pictures, loss=loss, prepare=prepare)


def fit_surrogate(
    training: Training,
    nets: FrozenNets,
    pictures: Images,
    settings: TrainSettings,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Train the surrogate, with the score network frozen in `nets` (lines 4 to 18)."""
    noise = settings.noise
    assert isinstance(noise, TueNoise)
    yield from fit_on_own_noise(training, nets, pictures, perturb, noise, settings.adversary, dtype)


FITS = {
    "score": NetFit(fit_score, plan_score),
    "surrogate": NetFit(fit_surrogate, plan_surrogate),
}
