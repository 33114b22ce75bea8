"""Objectives: what a noise descends and what a net is trained on. No loops, no optimisers."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from tue_cli.core.pgd import Objective

Logits = Callable[[Tensor], Tensor]
"""Pixels (N, 3, H, W) to logits (N, K)."""

Score = Callable[[Tensor, Tensor], Tensor]
"""Pixels (N, 3, H, W) and labels (N,) to the estimated gradient of log p(x | y), same shape."""


def cross_entropy(net: Logits, labels: Tensor) -> Objective:
    """Return l(f(x), y) of each picture (Fang et al., Eq. 6, first term)."""

    def objective(pixels: Tensor) -> Tensor:
        return F.cross_entropy(net(pixels).float(), labels, reduction="none")

    return objective


def cross_entropy_of_next(net: Logits, labels: Tensor) -> Objective:
    """Return l(f(x), y + 1) of each picture; the last class is followed by the first (TAP)."""

    def objective(pixels: Tensor) -> Tensor:
        logits = net(pixels).float()
        return F.cross_entropy(logits, (labels + 1) % logits.shape[1], reduction="none")

    return objective


def divergence(features: Tensor, centres: Tensor) -> Tensor:
    """Return KL(softmax(centre) || softmax(feature)), (N,), of rows (N, D) (UC)."""
    return F.kl_div(
        features.log_softmax(1), centres.log_softmax(1), reduction="none", log_target=True
    ).sum(1)


def score_norm(score: Score, labels: Tensor) -> Objective:
    """Return half the squared norm of s(x, y) of each picture (Fang et al., Eq. 6, second term).

    The paper takes the norm itself; its gradient has the same signs wherever it is not 0, and the
    square needs no division there.
    """

    def objective(pixels: Tensor) -> Tensor:
        return 0.5 * score(pixels, labels).float().square().flatten(1).sum(1)

    return objective


def score_matching(
    score: Score, pixels: Tensor, labels: Tensor, *, sigma: float, noise: Tensor
) -> Tensor:
    """Return denoising score matching, weighted by sigma squared (Fang et al., Eq. 5), as (N,).

    Mean over the pixels of a picture of |sigma * s(x + sigma * e, y) + e|^2: 1 for a score of 0
    everywhere, whatever sigma is. The factor of one half is left out.

    Args:
        score: the network s(x, y).
        pixels: (N, 3, H, W) in [0, 1].
        labels: (N,) class numbers.
        sigma: standard deviation of the added noise, in the pixels' unit.
        noise: e, standard normal, of the pixels' shape.
    """
    estimate = score(pixels + sigma * noise, labels)
    return (sigma * estimate.float() + noise).square().flatten(1).mean(1)
