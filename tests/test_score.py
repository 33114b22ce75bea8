"""The score network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tue_cli.core.batches import Images
from tue_cli.core.losses import score_matching
from tue_cli.methods.surrogate import FrozenNets
from tue_cli.nets.classifiers import build_classifier
from tue_cli.nets.frozen import FrozenScore
from tue_cli.nets.score import ScoreNet


def test_a_fresh_score_sees_neither_picture_nor_class() -> None:
    net = ScoreNet(classes=5, width=8, sigma=0.1)
    field = net(torch.rand(5, 3, 16, 16), torch.arange(5))
    assert torch.equal(field, field[:1].expand_as(field))


def test_a_fresh_score_loses_what_a_score_of_zero_loses() -> None:
    net = ScoreNet(classes=5, width=16, sigma=0.1)
    noise = torch.randn(40, 3, 16, 16)
    labels = torch.arange(40) % 5
    loss = score_matching(net, torch.rand(40, 3, 16, 16), labels, sigma=0.1, noise=noise).mean()
    assert loss.item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 3, 16, 24), (3, 3, 36, 20)])
def test_the_field_has_the_pictures_shape(shape: tuple[int, int, int, int]) -> None:
    net = ScoreNet(classes=2, width=5, sigma=0.1)
    labels = torch.zeros(shape[0], dtype=torch.long)
    assert net(torch.rand(shape), labels).shape == shape
    assert net.estimate_noise(torch.rand(shape), labels).shape == shape


def test_the_score_is_minus_the_noise_over_sigma() -> None:
    pixels, labels = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    for sigma in (0.05, 0.5):
        net = loud(ScoreNet(classes=2, width=8, sigma=sigma))
        assert torch.allclose(net(pixels, labels), -net.estimate_noise(pixels, labels) / sigma)


def loud(net: ScoreNet) -> ScoreNet:
    """Wake every parameter but the classes' own."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "film" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def test_the_class_matters_through_film_alone() -> None:
    net = loud(ScoreNet(classes=3, width=8, sigma=0.1))
    pixels = torch.rand(1, 3, 16, 16)
    one, other = torch.tensor([0]), torch.tensor([2])
    assert torch.equal(net(pixels, one), net(pixels, other))
    films = [module for module in net.modules() if isinstance(module, nn.Embedding)]
    for film in films:
        nn.init.zeros_(film.weight)
        before = net(pixels, other)
        with torch.no_grad():
            film.weight[2] += 1
        assert not torch.allclose(net(pixels, other), before)
        nn.init.zeros_(film.weight)
    assert len(films) == 5


def test_training_makes_the_class_matter(tiny_frozen: FrozenNets, toy: Images) -> None:
    score = tiny_frozen["score"]
    assert isinstance(score, FrozenScore)
    pixels, labels = toy.take_batch(torch.arange(24))
    right, wrong = score(pixels, labels), score(pixels, (labels + 1) % 3)
    assert (right - wrong).norm() > 0.01 * right.norm()


def test_a_trained_score_beats_the_score_of_zero(tiny_frozen: FrozenNets, toy: Images) -> None:
    score = tiny_frozen["score"]
    assert isinstance(score, FrozenScore)
    pixels, labels = toy.take_batch(torch.arange(72))
    noise = torch.randn(pixels.shape)
    assert score_matching(score, pixels, labels, sigma=0.1, noise=noise).mean() < 0.85


@pytest.mark.parametrize("width", [16, 64])
def test_at_twice_the_width_it_computes_less_than_the_surrogate(width: int) -> None:
    pixels = torch.empty(1, 3, 32, 32, device="meta")
    labels = torch.empty(1, dtype=torch.long, device="meta")
    with torch.device("meta"):
        surrogate = build_classifier("resnet18", classes=10, width=width)
        score = ScoreNet(classes=10, width=2 * width, sigma=0.1)
    with FlopCounterMode(display=False) as surrogate_flops:
        surrogate(pixels)
    with FlopCounterMode(display=False) as score_flops:
        score(pixels, labels)
    assert 0 < score_flops.get_total_flops() < surrogate_flops.get_total_flops()
