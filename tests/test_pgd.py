"""The descent, judged where the right answer is known: on linear nets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tue_cli.core.losses import cross_entropy
from tue_cli.core.pgd import Objective, Term, draw_uniform_start, make_gradient, pgd
from tue_cli.nets.classifiers import build_classifier

RADIUS = 8 / 255
ODD_SHAPES = [(1, 3, 1, 1), (2, 3, 5, 7), (3, 3, 16, 16), (1, 3, 33, 2), (5, 3, 1, 9), (1, 1, 3, 3)]


def linear(weight: Tensor) -> Objective:
    return lambda pixels: (pixels * weight).flatten(1).sum(1)


@pytest.mark.parametrize("shape", ODD_SHAPES)
@pytest.mark.parametrize("way", [1, -1])
def test_a_linear_net_gets_radius_times_sign(shape: tuple[int, ...], way: int) -> None:
    weight = torch.randn(shape[1:])
    pixels = torch.full(shape, 0.5)
    term = Term(make_gradient(linear(weight)), way * RADIUS / 5)
    delta = pgd(pixels, [term], radius=RADIUS, steps=11, start=(2 * torch.rand(shape) - 1) * RADIUS)
    assert torch.equal(delta, (-way * RADIUS * weight.sign()).expand(shape))


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_at_the_edge_of_the_range_the_optimum_is_the_clipped_one(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape[1:])
    pixels = torch.rand(shape).mul(1.2).sub(0.1).clamp(0, 1)
    term = Term(make_gradient(linear(weight)), 0.3)
    delta = pgd(pixels, [term], radius=0.3, steps=3, start=torch.zeros(shape))
    best = (-0.3 * weight.sign()).expand(shape)
    assert torch.allclose(delta, torch.maximum(torch.minimum(best, 1 - pixels), -pixels))


@given(
    shape=st.tuples(st.integers(1, 3), st.just(3), st.integers(1, 5), st.integers(1, 5)),
    radius=st.floats(0, 1, width=32),
    steps=st.integers(0, 4),
    sizes=st.lists(st.floats(-2, 2, width=32), max_size=3),
    spread=st.floats(0, 3, width=32),
    seed=st.integers(0, 2**31),
)
def test_bound_and_range_always_hold(
    shape: tuple[int, int, int, int],
    radius: float,
    steps: int,
    sizes: list[float],
    spread: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(shape, generator=generator).mul(1.5).sub(0.25).clamp(0, 1)
    before = pixels.clone()
    terms = [Term(lambda p: torch.randn(p.shape, generator=generator), size) for size in sizes]
    start = torch.randn(shape, generator=generator) * spread
    delta = pgd(pixels, terms, radius=radius, steps=steps, start=start)
    assert delta.abs().max() <= torch.tensor(radius)
    assert (pixels + delta).min() >= 0
    assert (pixels + delta).max() <= 1
    assert torch.equal(pixels, before)


def test_no_step_returns_the_projected_start() -> None:
    pixels = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1)
    start = torch.tensor([-1.0, 0.01, 0.02]).reshape(1, 3, 1, 1)
    delta = pgd(pixels, [], radius=0.1, steps=0, start=start)
    assert torch.equal(delta.flatten(), torch.tensor([0.0, 0.01, 0.0]))


def test_the_start_is_not_changed() -> None:
    start = torch.full((1, 3, 2, 2), 9.0)
    pgd(torch.rand(1, 3, 2, 2), [Term(torch.sign, 1.0)], radius=0.1, steps=2, start=start)
    assert torch.equal(start, torch.full((1, 3, 2, 2), 9.0))


def test_two_terms_share_one_projection() -> None:
    pixels, zeros = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, 3, 2, 2)
    down, up = Term(torch.ones_like, 3 * RADIUS), Term(torch.ones_like, -3 * RADIUS)
    # Projected after each term, the second would end at the ball's edge.
    assert torch.equal(pgd(pixels, [down, up], radius=RADIUS, steps=1, start=zeros), zeros)
    assert torch.equal(pgd(pixels, [up, down], radius=RADIUS, steps=1, start=zeros), zeros)


def test_two_terms_see_the_same_point() -> None:
    seen: list[list[Tensor]] = [[], []]

    def watched(place: int) -> Term:
        def gradient(pixels: Tensor) -> Tensor:
            seen[place].append(pixels.clone())
            return pixels - 0.3

        return Term(gradient, RADIUS / 4)

    pixels = torch.rand(2, 3, 4, 4)
    pgd(pixels, [watched(0), watched(1)], radius=RADIUS, steps=3, start=torch.zeros_like(pixels))
    assert len(seen[0]) == 3
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert not torch.equal(seen[0][0], seen[0][1])


def test_a_longer_step_outvotes_a_shorter_one() -> None:
    pixels, zeros = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, 3, 2, 2)
    terms = [Term(torch.ones_like, RADIUS / 2), Term(torch.ones_like, -RADIUS / 8)]
    delta = pgd(pixels, terms, radius=RADIUS, steps=1, start=zeros)
    assert torch.allclose(delta, torch.full_like(delta, -RADIUS * 3 / 8))


@pytest.mark.parametrize("way", [1, -1])
def test_descent_lowers_and_ascent_raises_the_loss(way: int) -> None:
    net = build_classifier("resnet18", classes=5, width=4, size=16).eval().requires_grad_(False)
    pixels, labels = torch.rand(12, 3, 16, 16), torch.arange(12) % 5
    loss = cross_entropy(net, labels)
    start = draw_uniform_start(pixels, RADIUS, torch.Generator().manual_seed(1))
    term = Term(make_gradient(loss), way * RADIUS / 5)
    delta = pgd(pixels, [term], radius=RADIUS, steps=10, start=start)
    assert (way * (loss(pixels) - loss(pixels + delta)) > 0).all()


def test_perturbing_leaves_a_net_as_it_was() -> None:
    net = mixed_net().eval()
    before = net_facts(net)
    pixels, labels = torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
    term = Term(make_gradient(cross_entropy(net, labels)), 0.01)
    pgd(pixels, [term], radius=RADIUS, steps=2, start=torch.zeros_like(pixels))
    assert net_facts(net) == before


def net_facts(net: nn.Module) -> dict[str, object]:
    """Return all that a caller could find changed in a net."""
    return {
        "state": {name: value.numpy().tobytes() for name, value in net.state_dict().items()},
        "training": [module.training for module in net.modules()],
        "required": [parameter.requires_grad for parameter in net.parameters()],
        "gradients": [
            None if parameter.grad is None else parameter.grad.numpy().tobytes()
            for parameter in net.parameters()
        ],
    }


def mixed_net() -> nn.Module:
    """Return a net with flags of both kinds and gradients from a step before."""
    net = build_classifier("resnet18", classes=3, width=4, size=16)
    net(torch.rand(4, 3, 16, 16)).sum().backward()
    next(net.body.children()).eval()
    net.head.requires_grad_(False)
    return net


def test_a_gradient_is_taken_even_where_gradients_are_off() -> None:
    weight = torch.randn(3, 4, 4)
    with torch.no_grad():
        found = make_gradient(linear(weight))(torch.rand(2, 3, 4, 4))
    assert torch.equal(found, weight.expand(2, 3, 4, 4))


def test_a_picture_has_its_own_gradient() -> None:
    net = build_classifier("resnet18", classes=3, width=4, size=16).eval()
    pixels, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    together = make_gradient(cross_entropy(net, labels))(pixels)
    alone = make_gradient(cross_entropy(net, labels[2:3]))(pixels[2:3])
    assert torch.allclose(together[2:3], alone, atol=1e-6)


def test_a_uniform_start_fills_the_ball_and_follows_its_generator() -> None:
    pixels = torch.rand(8, 3, 16, 16)
    start = draw_uniform_start(pixels, RADIUS, torch.Generator().manual_seed(5))
    assert start.abs().max() <= RADIUS
    assert start.max() > 0.99 * RADIUS
    assert start.min() < -0.99 * RADIUS
    assert abs(float(start.mean())) < 0.05 * RADIUS
    assert torch.equal(start, draw_uniform_start(pixels, RADIUS, torch.Generator().manual_seed(5)))
    assert not torch.equal(
        start, draw_uniform_start(pixels, RADIUS, torch.Generator().manual_seed(6))
    )
