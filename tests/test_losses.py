"""The objectives against what can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tue_cli.core.losses import Score, cross_entropy, score_matching, score_norm
from tue_cli.core.pgd import Term, make_gradient, pgd
from tue_cli.nets.classifiers import build_classifier
from tue_cli.nets.score import ScoreNet

MEANS = torch.tensor([0.3, 0.5, 0.7])
SPREAD = 0.05


def gaussian(scale: float, shift: float = 0.0) -> Score:
    """Return the score of N(mean of the class, 1 / scale)."""
    return lambda pixels, labels: -scale * (pixels - MEANS[labels][:, None, None, None] - shift)


def loud_score() -> ScoreNet:
    """Return a score network whose field is not 0, for four classes."""
    net = ScoreNet(classes=4, width=8, sigma=0.1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.requires_grad_(False)


def test_cross_entropy_is_minus_the_log_of_the_label_s_share_of_each_picture() -> None:
    net = build_classifier("resnet18", classes=5, width=4, size=16).eval()
    pixels, labels = torch.rand(6, 3, 16, 16), torch.arange(6) % 5
    shares = net(pixels).softmax(1)[torch.arange(6), labels]
    assert torch.allclose(cross_entropy(net, labels)(pixels), -shares.log(), atol=1e-6)


def test_score_norm_is_half_the_square_of_each_picture_s_norm() -> None:
    pixels, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    net = loud_score()
    norms = torch.linalg.vector_norm(net(pixels, labels), dim=(1, 2, 3))
    assert torch.allclose(score_norm(net, labels)(pixels), norms.square() / 2)


def test_score_norm_pulls_as_the_plain_norm_does() -> None:
    pixels, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    net = loud_score().double()
    pixels = pixels.double()

    def plain(moved: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(net(moved, labels), dim=(1, 2, 3))
        return norms

    # In double precision: score_norm lowers its field to float32, which rounds but does not turn.
    half = make_gradient(score_norm(net, labels))(pixels)
    whole = make_gradient(plain)(pixels)
    sure = whole.abs() > 1e-4 * whole.abs().max()
    assert sure.float().mean() > 0.99
    assert torch.equal(half.sign()[sure], whole.sign()[sure])


def test_score_norm_has_a_gradient_where_the_score_is_zero() -> None:
    labels = torch.tensor([1])
    pixels = torch.full((1, 3, 4, 4), 0.5)
    gradient = make_gradient(score_norm(gaussian(1.0), labels))(pixels)
    assert torch.equal(gradient, torch.zeros_like(pixels))


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_a_score_of_zero_loses_the_noise_s_mean_square(sigma: float) -> None:
    pixels, noise = torch.rand(5, 3, 8, 8), torch.randn(5, 3, 8, 8)
    loss = score_matching(
        lambda p, _: torch.zeros_like(p),
        pixels,
        torch.zeros(5, dtype=torch.long),
        sigma=sigma,
        noise=noise,
    )
    assert torch.allclose(loss, noise.square().mean((1, 2, 3)))


def test_the_exact_noise_loses_nothing() -> None:
    pixels, noise = torch.rand(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    loss = score_matching(
        lambda p, _: -(p - pixels) / 0.1**2,
        pixels,
        torch.zeros(3, dtype=torch.long),
        sigma=0.1,
        noise=noise,
    )
    assert loss.max() < 1e-6


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_the_exact_score_of_a_gaussian_minimises_eq_5(sigma: float) -> None:
    labels = torch.arange(300) % 3
    pixels = MEANS[labels][:, None, None, None] + SPREAD * torch.randn(300, 3, 16, 16)
    noise = torch.randn_like(pixels)
    exact = 1 / (SPREAD**2 + sigma**2)

    def loss(score: Score) -> float:
        return float(score_matching(score, pixels, labels, sigma=sigma, noise=noise).mean())

    best = loss(gaussian(exact))
    # What is left is the posterior variance of the noise.
    assert best == pytest.approx(SPREAD**2 / (SPREAD**2 + sigma**2), rel=0.02)
    assert all(loss(gaussian(exact * factor)) > best for factor in (0.0, 0.8, 0.95, 1.05, 1.2))
    assert all(loss(gaussian(exact, shift)) > best for shift in (-0.02, 0.02))
    assert loss(lambda p, y: gaussian(exact)(p, (y + 1) % 3)) > best


def test_eq_5_is_differentiable_in_the_network() -> None:
    net = ScoreNet(classes=3, width=8, sigma=0.1)
    pixels, noise = torch.rand(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    labels = torch.arange(4) % 3
    loss = score_matching(net, pixels, labels, sigma=0.1, noise=noise).mean()
    (gradient,) = torch.autograd.grad(loss, net.leave.weight)
    assert gradient.abs().max() > 0


def modes(score: Score, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the deltas of descending the norm and of ascending along the score."""
    zeros = torch.zeros_like(pixels)
    norm = Term(make_gradient(score_norm(score, labels)), 0.01)
    ascent = Term(lambda p: score(p, labels), -0.01)
    return (
        pgd(pixels, [norm], radius=0.03, steps=3, start=zeros),
        pgd(pixels, [ascent], radius=0.03, steps=3, start=zeros),
    )


def test_for_a_gaussian_both_modes_go_to_the_mean() -> None:
    labels = torch.tensor([0, 2])
    pixels = MEANS[labels][:, None, None, None] + torch.tensor([0.1, -0.1])[:, None, None, None]
    pixels = pixels.expand(2, 3, 4, 4)
    norm, ascent = modes(gaussian(1 / SPREAD**2), pixels, labels)
    assert torch.equal(norm, ascent)
    assert torch.allclose(norm, torch.tensor([-0.03, 0.03])[:, None, None, None].expand_as(norm))


def test_the_modes_part_where_the_score_points_away_from_its_zero() -> None:
    labels = torch.tensor([1])
    pixels = torch.full((1, 3, 4, 4), 0.6)
    # Between two modes of a density the score is 0 and points away: a flat place, an unlikely one.
    norm, ascent = modes(gaussian(-1.0), pixels, labels)
    assert torch.allclose(norm, torch.full_like(norm, -0.03))
    assert torch.allclose(ascent, torch.full_like(norm, 0.03))
