"""What every method promises, and what is particular to tue and em."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tue_cli.errors import BadSetting
from tue_cli.methods import METHODS, em, method_named, tue
from tue_cli.methods.surrogate import (
    FrozenNets,
    fit_on_own_noise,
    snapped,
    surrogate_of,
    surrogate_term,
)
from tue_cli.nets.classifiers import Classifier, classifier
from tue_cli.nets.frozen import FrozenClassifier, FrozenScore, frozen
from tue_cli.nets.score import ScoreNet
from tue_cli.numerics.batches import Pictures, Transform, generator_at, sample_shift_and_flip
from tue_cli.numerics.loop import Plan, Training
from tue_cli.numerics.losses import cross_entropy, score_norm
from tue_cli.numerics.pgd import Term, gradient_of, pgd, uniform_start
from tue_cli.settings import AdversarySettings, NoiseSettings, TrainSettings

CPU = torch.device("cpu")
NOISE = NoiseSettings()
RADIUS = NOISE.radius

VARIANTS = [
    ("em", NOISE),
    ("tue", NOISE),
    ("tue", replace(NOISE, score_mode="ascent")),
    ("tue", replace(NOISE, score_ratio=0.0)),
    ("tue", replace(NOISE, samples=2)),
]
every_variant = pytest.mark.parametrize(
    ("name", "noise"),
    VARIANTS,
    ids=[f"{name}-{n.score_mode}-{n.score_ratio}-{n.samples}" for name, n in VARIANTS],
)


def perturb(
    name: str,
    nets: FrozenNets,
    pixels: Tensor,
    labels: Tensor,
    noise: NoiseSettings = NOISE,
    seed: int = 0,
) -> Tensor:
    """Call a method as training does, with its start and its shifts drawn from one seed."""
    return METHODS[name].perturb(
        nets,
        pixels,
        labels,
        noise,
        start=uniform_start(pixels, noise.radius, generator_at(seed, "start", 0, CPU)),
        generator=generator_at(seed, "perturb", 0, CPU),
    )


def score_of(nets: FrozenNets) -> FrozenScore:
    score = nets["score"]
    assert isinstance(score, FrozenScore)
    return score


@pytest.fixture
def batch(toy: Pictures) -> tuple[Tensor, Tensor]:
    """Return 12 pictures, some with pixels at the ends of the range, and their labels."""
    pixels, labels = toy.batch(torch.arange(12))
    pixels[:2, :, :4] = 0
    pixels[1:3, :, 8:12] = 1
    return pixels, labels


def test_the_variants_cover_every_method() -> None:
    assert {name for name, _ in VARIANTS} == set(METHODS)


def test_a_method_is_found_by_name_and_an_unknown_one_refused() -> None:
    assert all(method_named(name) is method for name, method in METHODS.items())
    with pytest.raises(BadSetting) as caught:
        method_named("tuee")
    assert "tuee" in caught.value.message
    assert all(name in caught.value.remedy for name in METHODS)


@every_variant
def test_noise_keeps_bound_and_range_and_changes_every_picture(
    name: str, noise: NoiseSettings, tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    before = pixels.clone()
    delta = perturb(name, tiny_frozen, pixels, labels, noise)
    assert delta.shape == pixels.shape
    assert delta.dtype == torch.float32
    assert not delta.requires_grad
    assert delta.abs().max() <= torch.tensor(noise.radius)
    assert (pixels + delta).min() >= 0
    assert (pixels + delta).max() <= 1
    assert torch.equal(pixels, before)
    levels = snapped(delta) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert levels.abs().max() <= 8.001
    assert (levels.flatten(1).abs().max(1).values > 0.5).all()


@every_variant
def test_the_same_start_and_draws_give_the_same_noise(
    name: str, noise: NoiseSettings, tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    first = perturb(name, tiny_frozen, *batch, noise)
    torch.rand(7)
    assert torch.equal(first, perturb(name, tiny_frozen, *batch, noise))
    assert not torch.equal(first, perturb(name, tiny_frozen, *batch, noise, seed=1))


@every_variant
def test_noise_leaves_the_nets_untouched(
    name: str, noise: NoiseSettings, tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    def facts() -> list[object]:
        return [
            (
                {key: value.tolist() for key, value in copy.net.state_dict().items()},
                [module.training for module in copy.net.modules()],
                [(p.requires_grad, p.grad) for p in copy.net.parameters()],
            )
            for copy in tiny_frozen.values()
        ]

    before = facts()
    perturb(name, tiny_frozen, *batch, noise)
    assert facts() == before


@every_variant
def test_the_surrogate_s_loss_goes_down(
    name: str, noise: NoiseSettings, tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    loss = cross_entropy(surrogate_of(tiny_frozen), labels)
    delta = snapped(perturb(name, tiny_frozen, pixels, labels, noise))
    assert loss(pixels + delta).mean() < loss(pixels).mean()
    random = snapped(uniform_start(pixels, RADIUS, generator_at(1, "control", 0, CPU)))
    assert loss(pixels + delta).mean() < loss(pixels + random).mean()


@pytest.mark.parametrize("name", METHODS)
def test_no_step_returns_the_start(
    name: str, tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    start = 0.5 * uniform_start(pixels, RADIUS, generator_at(0, "start", 0, CPU))
    found = METHODS[name].perturb(
        tiny_frozen,
        pixels,
        labels,
        replace(NOISE, steps=0),
        start=start,
        generator=generator_at(0, "perturb", 0, CPU),
    )
    assert torch.equal(found, torch.maximum(torch.minimum(start, 1 - pixels), -pixels))


def test_another_key_is_another_noise(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    first = perturb("em", tiny_frozen, pixels, labels)
    assert not torch.equal(first, perturb("em", tiny_frozen, pixels, (labels + 1) % 3))


def test_tue_without_the_score_is_em_exactly(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    alone = {"surrogate": tiny_frozen["surrogate"]}
    control = replace(NOISE, score_ratio=0.0)
    assert torch.equal(perturb("tue", alone, *batch, control), perturb("em", alone, *batch))
    assert not torch.equal(perturb("tue", tiny_frozen, *batch), perturb("em", alone, *batch))


def test_the_two_modes_are_two_noises(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    ascent = perturb("tue", tiny_frozen, *batch, replace(NOISE, score_mode="ascent"))
    assert not torch.equal(ascent, perturb("tue", tiny_frozen, *batch))


def test_the_norm_mode_lowers_the_score_s_norm(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    norm = score_norm(score_of(tiny_frozen), labels)
    with_score = perturb("tue", tiny_frozen, pixels, labels)
    without = perturb("tue", tiny_frozen, pixels, labels, replace(NOISE, score_ratio=0.0))
    assert (norm(pixels + with_score) < norm(pixels + without)).all()


@pytest.mark.parametrize("mode", ["norm", "ascent"])
def test_the_score_s_term_alone_does_what_its_mode_says(
    mode: str, tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    score = score_of(tiny_frozen)
    noise = replace(NOISE, score_mode=mode, score_ratio=0.5)
    term = tue.score_term(score, labels, noise)
    zeros = torch.zeros_like(pixels)
    delta = pgd(pixels, [term], radius=RADIUS, steps=noise.steps, start=zeros)
    if mode == "norm":
        norm = score_norm(score, labels)
        assert (norm(pixels + delta) < norm(pixels)).all()
    first = pgd(pixels, [term], radius=RADIUS, steps=1, start=zeros)
    if mode == "ascent":
        # The density rises along its score, at first order.
        assert ((first * score(pixels, labels)).flatten(1).sum(1) > 0).all()
    assert first.abs().max() == pytest.approx(noise.score_ratio * noise.step)


class Peephole(nn.Module):
    """Let one pixel through."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, :, 5:6, 7:8]


@pytest.mark.parametrize("name", METHODS)
def test_noise_lies_where_the_unshifted_picture_needs_it(name: str) -> None:
    # A net that reads one pixel of the shifted view: the noise must be where that pixel came from.
    net = Classifier(Peephole(), nn.Linear(3, 2))
    nets = {
        "surrogate": FrozenClassifier(net, torch.float32),
        "score": frozen(ScoreNet(classes=2, width=4, sigma=0.1), torch.float32),
    }
    size, seen = 12, set()
    places = torch.arange(1, size * size + 1, dtype=torch.float32).reshape(1, 1, size, size)
    generator = generator_at(3, "perturb", 0, CPU)
    for _ in range(NOISE.steps):
        seen.add(int(sample_shift_and_flip(generator)(places)[0, 0, 5, 7]))
    pixels = torch.full((2, 3, size, size), 0.5)
    delta = METHODS[name].perturb(
        nets,
        pixels,
        torch.tensor([0, 1]),
        NOISE,
        start=torch.zeros_like(pixels),
        generator=generator_at(3, "perturb", 0, CPU),
    )
    touched = {
        place + 1 for place in delta.abs().amax((0, 1)).flatten().nonzero().flatten().tolist()
    }
    assert len(seen - {0}) > 3
    assert touched == seen - {0}
    # Class 0 and class 1 want opposite colours of it.
    assert torch.equal(delta[0], -delta[1])


def test_a_step_averages_its_samples(batch: tuple[Tensor, Tensor]) -> None:
    pixels, labels = batch
    surrogate = FrozenClassifier(classifier("resnet18", classes=3, width=4, size=16), torch.float32)
    term = surrogate_term(
        surrogate, labels, replace(NOISE, samples=3), generator_at(0, "perturb", 0, CPU)
    )
    generator = generator_at(0, "perturb", 0, CPU)
    draws = [sample_shift_and_flip(generator) for _ in range(3)]
    loss = cross_entropy(surrogate, labels)

    def seen_through(draw: Transform) -> Tensor:
        return gradient_of(lambda moved: loss(draw(moved)))(pixels)

    expected = torch.stack([seen_through(draw) for draw in draws]).mean(0)
    assert torch.allclose(term.gradient(pixels), expected, atol=1e-7)


def test_the_adversary_s_ascent_raises_what_the_noise_has_lowered(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    loss = cross_entropy(surrogate_of(tiny_frozen), labels)
    protected = pixels + perturb("tue", tiny_frozen, pixels, labels)
    ascend = Term(gradient_of(loss), -(4 / 255) / 5)
    start = uniform_start(protected, 4 / 255, generator_at(0, "adversary", 0, CPU))
    delta = pgd(protected, [ascend], radius=4 / 255, steps=10, start=start)
    assert (loss(protected + delta) > loss(protected)).all()


def plan_of(settings: TrainSettings, role: str, steps: int | None = None) -> Plan:
    if role == "score":
        length = steps or settings.score_steps
        return Plan(length, settings.batch, settings.score_rate, "adam", 0, role)
    return Plan(steps or settings.steps, settings.batch, settings.rate, "sgd", 0, role)


def fresh_net(role: str) -> nn.Module:
    torch.manual_seed(11)
    if role == "score":
        return ScoreNet(classes=3, width=8, sigma=0.1)
    return classifier("resnet18", classes=3, width=4, size=16)


ROLES = [(name, role) for name, method in METHODS.items() for role in method.roles]


@pytest.mark.parametrize("role", METHODS["tue"].roles)
def test_training_tue_lowers_the_loss_of_each_role(
    role: str, tiny_losses: dict[str, list[float]], tiny_settings: TrainSettings
) -> None:
    losses = tiny_losses[role]
    assert len(losses) == plan_of(tiny_settings, role).steps
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_training_em_lowers_its_loss(tiny_settings: TrainSettings, toy: Pictures) -> None:
    training = Training(fresh_net("surrogate"), plan_of(tiny_settings, "surrogate"))
    losses = list(
        METHODS["em"].fit_role("surrogate", training, {}, toy, tiny_settings, torch.float32)
    )
    assert len(losses) == training.plan.steps
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_a_role_s_training_resumes_bit_for_bit(
    name: str, role: str, tiny_frozen: FrozenNets, tiny_settings: TrainSettings, toy: Pictures
) -> None:
    def losses(training: Training, count: int | None = None) -> list[float]:
        steps = METHODS[name].fit_role(
            role, training, tiny_frozen, toy, tiny_settings, torch.float32
        )
        return list(itertools.islice(steps, count))

    whole, first, second = (
        Training(fresh_net(role), plan_of(tiny_settings, role, 4)) for _ in range(3)
    )
    everything = losses(whole)
    before = losses(first, 2)
    second.load(first.state())
    assert before + losses(second) == everything
    for a, b in zip(whole.net.state_dict().values(), second.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_surrogate_of_tue_meets_an_adversary_and_em_s_does_not(
    tiny_nets: dict[str, nn.Module], tiny_settings: TrainSettings, toy: Pictures
) -> None:
    settings = replace(tiny_settings, noise=replace(tiny_settings.noise, score_ratio=0.0))
    plan = plan_of(settings, "surrogate", 2)

    def net() -> nn.Module:
        # Trained, so that eval mode, in which the adversary sees it, is like train mode.
        return copy.deepcopy(tiny_nets["surrogate"])

    def losses(name: str) -> list[float]:
        return list(
            METHODS[name].fit_role(
                "surrogate", Training(net(), plan), {}, toy, settings, torch.float32
            )
        )

    def bare(adversary: AdversarySettings | None) -> list[float]:
        return list(
            fit_on_own_noise(
                Training(net(), plan), {}, toy, em.perturb, settings.noise, adversary, torch.float32
            )
        )

    standard = bare(None)
    assert losses("em") == standard
    adversarial = losses("tue")
    assert adversarial == bare(settings.adversary)
    # Before the first update the nets are the same: the adversary alone makes that batch harder.
    assert adversarial[0] > standard[0]
    assert bare(AdversarySettings(radius=16 / 255, steps=2))[0] > adversarial[0]
    assert bare(AdversarySettings(radius=0.0, steps=2)) == standard


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="no bfloat16 on this processor"
)
@pytest.mark.parametrize(("name", "role"), ROLES)
def test_a_role_trains_in_bf16(
    name: str,
    role: str,
    tiny_nets: dict[str, nn.Module],
    tiny_settings: TrainSettings,
    toy: Pictures,
) -> None:
    lowered = {key: frozen(net, torch.bfloat16) for key, net in tiny_nets.items()}
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        training = Training(fresh_net(role), plan_of(tiny_settings, role, 2))
        steps = METHODS[name].fit_role(role, training, lowered, toy, tiny_settings, dtype)
        losses.append(list(steps))
        assert all(p.dtype == torch.float32 for p in training.net.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
