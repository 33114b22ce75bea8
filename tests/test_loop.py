"""The one loop: it learns, it stops anywhere, and it goes on as if it had not stopped."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import mark_slow
from torch import Tensor, nn

from tue_cli.core.batches import Images, crop_and_flip
from tue_cli.core.loop import Plan, Training, accuracy, fit
from tue_cli.nets.classifiers import build_classifier


def plan(steps: int = 8, optimizer: str = "sgd", seed: int = 0, rate: float = 0.05) -> Plan:
    return Plan(steps, 16, rate, optimizer, seed, "test")


def small_net(name: str = "resnet18") -> nn.Module:
    torch.manual_seed(7)
    return build_classifier(name, classes=3, width=4, size=32 if name == "vgg16" else 16)


def run(training: Training, pictures: Images, count: int | None = None) -> list[float]:
    """Train with crops and with noise, for all the plan or for `count` steps."""

    def prepare(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        pixels = crop_and_flip(pixels, generator)
        return pixels + 0.01 * torch.randn(pixels.shape, generator=generator), labels

    def loss(pixels: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(training.net(pixels), labels)

    losses = fit(training, pictures, loss=loss, prepare=prepare)
    return [float(loss) for loss in itertools.islice(losses, count)]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("optimizer", "rate"), [("sgd", 0.1), pytest.param("adam", 0.02, marks=pytest.mark.slow)]
)
def test_the_loss_falls_on_pictures_that_can_be_told_apart(
    optimizer: str, rate: float, toy: Images
) -> None:
    torch.manual_seed(7)
    # Without batch norms, whose averages need longer than this to settle.
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    )
    training = Training(net, plan(200, optimizer, rate=rate))
    losses = run(training, toy)
    assert len(losses) == training.step == 200
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert accuracy(training.net.eval(), toy) > 0.9


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", mark_slow([0, 3], but=(3,)))
def test_resume_equals_the_uninterrupted_training_bit_for_bit(
    optimizer: str, stop: int, toy: Images
) -> None:
    whole = Training(small_net(), plan(optimizer=optimizer))
    losses = run(whole, toy)

    first = Training(small_net(), plan(optimizer=optimizer))
    before = run(first, toy, stop)
    state = through_a_file(first.get_state())
    torch.rand(5)
    second = Training(build_classifier("resnet18", classes=3, width=4, size=16), first.plan)
    second.load(state)
    assert second.step == stop
    assert before + run(second, toy) == losses
    assert same(second.net, whole.net)


def test_resume_is_exact_for_a_net_with_dropout(toy: Images) -> None:
    pictures = Images(toy.pixels.repeat_interleave(2, 2).repeat_interleave(2, 3), toy.labels)
    whole = Training(small_net("vgg16"), plan(4))
    losses = run(whole, pictures)
    first = Training(small_net("vgg16"), plan(4))
    before = run(first, pictures, 2)
    torch.rand(5)
    second = Training(small_net("vgg16"), plan(4))
    second.load(through_a_file(first.get_state()))
    assert before + run(second, pictures) == losses
    assert same(second.net, whole.net)


def test_a_finished_training_takes_no_further_step(toy: Images) -> None:
    training = Training(small_net(), plan(2))
    run(training, toy)
    assert run(training, toy) == []


def test_stopping_the_iterator_stops_the_training(toy: Images) -> None:
    training = Training(small_net(), plan(6))
    run(training, toy, 2)
    assert training.step == 2


def test_another_seed_is_another_training(toy: Images) -> None:
    losses = [run(Training(small_net(), plan(3, seed=seed)), toy) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("steps", [1, 5, 10, 100, 5000])
def test_the_rate_warms_up_to_its_peak_and_ends_near_zero(steps: int) -> None:
    rates = [plan(steps, rate=0.1).compute_rate(step) for step in range(steps)]
    assert all(0 < rate <= 0.1 for rate in rates)
    assert max(rates) == pytest.approx(0.1)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if steps >= 100:
        assert peak <= steps // 10
        assert rates[0] <= 0.1 / 10
        assert rates[-1] < 0.1 / 1000


def test_the_optimiser_follows_the_plan_s_rate(toy: Images) -> None:
    training = Training(small_net(), plan(5))
    losses = fit(
        training,
        toy,
        loss=lambda p, labels: F.cross_entropy(training.net(p), labels),
        prepare=lambda p, labels, _: (p, labels),
    )
    for step, _ in enumerate(losses):
        assert training.optimizer.param_groups[0]["lr"] == training.plan.compute_rate(step)


def test_the_net_is_trained_in_train_mode_whoever_borrowed_it(toy: Images) -> None:
    training = Training(small_net(), plan(2))
    modes = []

    def lend(pixels: Tensor, labels: Tensor, _: torch.Generator) -> tuple[Tensor, ...]:
        training.net.eval()
        return pixels, labels

    def loss(pixels: Tensor, labels: Tensor) -> Tensor:
        modes.append(all(module.training for module in training.net.modules()))
        return F.cross_entropy(training.net(pixels), labels)

    list(fit(training, toy, loss=loss, prepare=lend))
    assert modes == [True, True]


def test_prepare_makes_what_the_net_is_trained_on(toy: Images) -> None:
    seen = []
    training = Training(small_net(), plan(2))

    def loss(pixels: Tensor, labels: Tensor) -> Tensor:
        seen.append(pixels)
        return F.cross_entropy(training.net(pixels), labels)

    list(fit(training, toy, loss=loss, prepare=lambda p, labels, _: (torch.zeros_like(p), labels)))
    assert all(not pixels.any() for pixels in seen)


def test_parameters_that_need_no_gradient_stay(toy: Images) -> None:
    net = build_classifier("resnet18", classes=3, width=4, size=16)
    net.head.requires_grad_(False)
    before = [p.clone() for p in net.parameters()]
    run(Training(net, plan(2)), toy)
    changed = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert changed == [p.requires_grad for p in net.parameters()]


def test_accuracy_is_the_share_of_right_pictures_whatever_the_batch(toy: Images) -> None:
    def right_for_two_classes(pixels: Tensor) -> Tensor:
        colours = pixels.mean((2, 3))
        return torch.where(torch.arange(3) == 2, -1.0, colours)

    assert accuracy(lambda p: p.mean((2, 3)), toy) == 1.0
    found = {accuracy(right_for_two_classes, toy, batch=batch) for batch in (1, 7, 72, 500)}
    assert found == {48 / 72}
