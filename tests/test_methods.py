"""What every method promises, and what is particular to each."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import pytest
import torch
from conftest import mark_slow
from torch import Tensor, nn

from tue_cli import config
from tue_cli.attacks.filters import apply_filter
from tue_cli.config import AdversarySettings, TrainSettings
from tue_cli.core.batches import (
    Images,
    convert_to_grayscale,
    make_generator,
    sample_moves,
    shift_and_flip,
)
from tue_cli.core.kernel import fit_coefficients
from tue_cli.core.loop import Training
from tue_cli.core.losses import cross_entropy, score_norm
from tue_cli.core.pgd import Term, draw_uniform_start, make_gradient, pgd
from tue_cli.errors import BadSetting
from tue_cli.methods import cuda, em, load_method, load_recipe, lsp, ntga, tue, uc
from tue_cli.methods.surrogate import (
    FrozenNets,
    ascend_loss,
    fit_on_own_noise,
    get_surrogate,
    make_surrogate_term,
    quantize,
)
from tue_cli.nets.block import NtgaBlock
from tue_cli.nets.classifiers import Classifier, build_classifier
from tue_cli.nets.frozen import FrozenClassifier, FrozenScore, freeze
from tue_cli.nets.patterns import Patterns
from tue_cli.nets.score import ScoreNet
from tue_cli.noise import (
    EmNoise,
    Noise,
    NtgaNoise,
    RemNoise,
    SteppedNoise,
    TapNoise,
    TueNoise,
    UcNoise,
)

CPU = torch.device("cpu")
SettingsOf = Callable[[str], TrainSettings]
NOISE = TueNoise()
REM = RemNoise(samples=1)
"""In one sample a step, to be quick."""
RADIUS = NOISE.radius

PUBLISHED = {name: method.noise for name, method in config.METHODS.items()}
# The dear ones in fewer steps, each as much longer, to be quick.
PUBLISHED["tap"] = TapNoise(steps=25)
PUBLISHED["rem"] = RemNoise(steps=5, samples=2, inner_steps=2)
PUBLISHED["ntga"] = NtgaNoise(steps=4)
VARIANTS: list[tuple[str, Noise]] = [
    *((name, noise) for name, noise in PUBLISHED.items() if name != "ntga"),
    ("rem", replace(REM, inner_steps=0)),
    ("tue", replace(NOISE, score_mode="ascent")),
    ("tue", replace(NOISE, score_ratio=0.0)),
    ("tue", replace(NOISE, gray_ratio=0.0)),
    ("tue", replace(NOISE, samples=2)),
    ("ntga", PUBLISHED["ntga"]),
]
QUICK = len(PUBLISHED) - 1
"""How many of them, from the first on, are not slow."""
every_variant = pytest.mark.parametrize(
    ("name", "noise"),
    [
        *VARIANTS[:QUICK],
        *(pytest.param(*variant, marks=pytest.mark.slow) for variant in VARIANTS[QUICK:]),
    ],
    ids=["-".join([name, *map(str, asdict(noise).values())]) for name, noise in VARIANTS],
)


def perturb(
    name: str,
    nets: FrozenNets,
    pixels: Tensor,
    labels: Tensor,
    noise: Noise | None = None,
    seed: int = 0,
) -> Tensor:
    """Call a method as training does, with its start and its shifts drawn from one seed."""
    noise = noise or PUBLISHED[name]
    return load_method(name)(
        nets,
        pixels,
        labels,
        noise,
        start=draw_uniform_start(pixels, noise.radius, make_generator(seed, "start", 0, CPU)),
        generator=make_generator(seed, "perturb", 0, CPU),
    )


def score_of(nets: FrozenNets) -> FrozenScore:
    score = nets["score"]
    assert isinstance(score, FrozenScore)
    return score


@pytest.fixture
def batch(toy: Images) -> tuple[Tensor, Tensor]:
    """Return 12 pictures, some with pixels at the ends of the range, and their labels."""
    pixels, labels = toy.take_batch(torch.arange(12))
    pixels[:2, :, :4] = 0
    pixels[1:3, :, 8:12] = 1
    return pixels, labels


def test_what_is_known_of_methods_and_recipes_is_of_those_there_are() -> None:
    assert {name for name, _ in VARIANTS} == set(config.METHODS)
    for recipe, roles in config.RECIPES.items():
        assert tuple(load_recipe(recipe)) == roles


def test_a_method_s_noise_has_only_fields_that_it_reads() -> None:
    of_all = {"radius", "steps", "travel", "samples"}
    fields = {name: set(asdict(noise)) for name, noise in PUBLISHED.items()}
    assert fields["em"] == fields["tap"] == of_all
    assert fields["tue"] - of_all == {"score_ratio", "score_mode", "gray_ratio"}
    assert fields["rem"] - of_all == {"inner_radius", "inner_steps"}
    assert fields["ntga"] == of_all - {"samples"}
    assert fields["lsp"] == fields["uc"] == {"radius"}
    assert not fields["cuda"]


def test_a_method_is_found_by_name_and_an_unknown_one_refused() -> None:
    for load, there in ((load_method, config.METHODS), (load_recipe, config.RECIPES)):
        assert all(load(name) for name in there)
        with pytest.raises(BadSetting) as caught:
            load("tuee")
        assert "tuee" in caught.value.message
        assert all(name in caught.value.remedy for name in there)


@every_variant
def test_noise_keeps_bound_and_range_and_changes_every_picture(
    name: str,
    noise: Noise,
    frozen_of: dict[str, FrozenNets],
    batch: tuple[Tensor, Tensor],
) -> None:
    pixels, labels = batch
    before = pixels.clone()
    delta = perturb(name, frozen_of[name], pixels, labels, noise)
    assert delta.shape == pixels.shape
    assert delta.dtype == torch.float32
    assert not delta.requires_grad
    method = config.METHODS[name]
    assert delta.abs().max() <= torch.tensor(method.find_reach(noise)) + 1e-7
    if method.bound == "l2":
        assert (delta.square().mean((1, 2, 3)).sqrt() <= noise.radius + 1e-6).all()
    assert (pixels + delta).min() >= -1e-7
    assert (pixels + delta).max() <= 1 + 1e-6
    assert torch.equal(pixels, before)
    levels = quantize(delta) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert levels.abs().max() <= method.find_reach(noise) * 255 + 1e-3
    assert (levels.flatten(1).abs().max(1).values > 0.5).all()


@every_variant
def test_the_same_start_and_draws_give_the_same_noise(
    name: str,
    noise: Noise,
    frozen_of: dict[str, FrozenNets],
    batch: tuple[Tensor, Tensor],
) -> None:
    first = perturb(name, frozen_of[name], *batch, noise)
    torch.rand(7)
    assert torch.equal(first, perturb(name, frozen_of[name], *batch, noise))
    # The noise of uc is in its weights: no seed of a run changes it.
    other = perturb(name, frozen_of[name], *batch, noise, seed=1)
    assert torch.equal(first, other) == (name == "uc")


@every_variant
def test_noise_leaves_the_nets_untouched(
    name: str,
    noise: Noise,
    frozen_of: dict[str, FrozenNets],
    batch: tuple[Tensor, Tensor],
) -> None:
    nets = [
        net if isinstance(net, NtgaBlock | Patterns) else net.net
        for net in frozen_of[name].values()
    ]

    def facts() -> list[object]:
        return [
            (
                {key: value.numpy().tobytes() for key, value in net.state_dict().items()},
                [module.training for module in net.modules()],
                [(p.requires_grad, p.grad) for p in net.parameters()],
            )
            for net in nets
        ]

    before = facts()
    perturb(name, frozen_of[name], *batch, noise)
    assert facts() == before


MINIMISING = [
    pytest.param(name, noise, marks=[pytest.mark.slow] if (name, noise) in VARIANTS[QUICK:] else [])
    for name, noise in VARIANTS
    if name in ("tue", "em", "rem")
]


@pytest.mark.parametrize(("name", "noise"), MINIMISING)
def test_the_surrogate_s_loss_goes_down(
    name: str, noise: Noise, tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    loss = cross_entropy(get_surrogate(tiny_frozen), labels)
    delta = quantize(perturb(name, tiny_frozen, pixels, labels, noise))
    assert loss(pixels + delta).mean() < loss(pixels).mean()
    random = quantize(draw_uniform_start(pixels, RADIUS, make_generator(1, "control", 0, CPU)))
    assert loss(pixels + delta).mean() < loss(pixels + random).mean()


@pytest.mark.parametrize("name", ["tue", "em", "rem", "tap", "ntga"])
def test_no_step_returns_the_start(
    name: str, frozen_of: dict[str, FrozenNets], batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    start = 0.5 * draw_uniform_start(pixels, RADIUS, make_generator(0, "start", 0, CPU))
    noise = PUBLISHED[name]
    assert isinstance(noise, SteppedNoise)
    found = load_method(name)(
        frozen_of[name],
        pixels,
        labels,
        replace(noise, steps=0),
        start=start,
        generator=make_generator(0, "perturb", 0, CPU),
    )
    assert torch.equal(found, torch.maximum(torch.minimum(start, 1 - pixels), -pixels))


def test_another_key_is_another_noise(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    first = perturb("em", tiny_frozen, pixels, labels)
    assert not torch.equal(first, perturb("em", tiny_frozen, pixels, (labels + 1) % 3))


def test_tue_without_score_and_grey_is_em_exactly(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    alone = {"surrogate": tiny_frozen["surrogate"]}
    control = replace(NOISE, score_ratio=0.0, gray_ratio=0.0)
    em = perturb("em", alone, *batch)
    assert torch.equal(perturb("tue", alone, *batch, control), em)
    for noise in (replace(NOISE, score_ratio=0.0), replace(NOISE, gray_ratio=0.0)):
        assert not torch.equal(perturb("tue", tiny_frozen, *batch, noise), em)


def test_the_term_in_grey_makes_noise_that_is_there_in_grey(
    tiny_frozen: FrozenNets, toy: Images
) -> None:
    pixels, labels = toy.take_batch(torch.arange(24))
    loss = cross_entropy(get_surrogate(tiny_frozen), labels)

    def in_grey(noise: TueNoise) -> Tensor:
        delta = perturb("tue", tiny_frozen, pixels, labels, noise)
        levels = apply_filter(((pixels + delta) * 255).round().byte().numpy(), "gray")
        return loss(torch.from_numpy(levels) / 255).mean()

    before = loss(convert_to_grayscale(pixels)).mean()
    gained = before - in_grey(replace(NOISE, gray_ratio=2.0))
    assert gained > 2 * (before - in_grey(replace(NOISE, gray_ratio=0.0))) > 0


def test_grey_pictures_are_what_pillow_makes_of_them(toy: Images) -> None:
    pixels = toy.take_batch(torch.arange(12))[0]
    levels = torch.from_numpy(apply_filter(toy.pixels[:12].numpy(), "gray"))
    assert (convert_to_grayscale(pixels) * 255 - levels).abs().max() <= 1


@pytest.mark.slow
def test_the_two_modes_are_two_noises(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    ascent = perturb("tue", tiny_frozen, *batch, replace(NOISE, score_mode="ascent"))
    assert not torch.equal(ascent, perturb("tue", tiny_frozen, *batch))


@pytest.mark.slow
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
    term = tue.make_score_term(score, labels, noise)
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


@pytest.mark.parametrize("name", ["tue", "em", "tap"])
def test_noise_lies_where_the_unshifted_picture_needs_it(name: str) -> None:
    # A net that reads one pixel of the shifted view: the noise must be where that pixel came from.
    net = Classifier(Peephole(), nn.Linear(3, 2))
    nets = {
        "surrogate": FrozenClassifier(net, torch.float32),
        "score": freeze(ScoreNet(classes=2, width=4, sigma=0.1), torch.float32),
    }
    size, seen = 12, set()
    places = torch.arange(1, size * size + 1, dtype=torch.float32).reshape(1, 1, size, size)
    for move in sample_moves(NOISE.steps, make_generator(3, "perturb", 0, CPU)):
        seen.add(int(shift_and_flip(places, move)[0, 0, 5, 7]))
    pixels = torch.full((2, 3, size, size), 0.5)
    noise = {"tue": NOISE, "em": EmNoise(), "tap": TapNoise(steps=10, travel=2.0)}[name]
    delta = load_method(name)(
        nets,
        pixels,
        torch.tensor([0, 1]),
        noise,
        start=torch.zeros_like(pixels),
        generator=make_generator(3, "perturb", 0, CPU),
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
    surrogate = FrozenClassifier(
        build_classifier("resnet18", classes=3, width=4, size=16), torch.float32
    )
    moves = sample_moves(3, make_generator(0, "perturb", 0, CPU))
    term = make_surrogate_term(surrogate, labels, replace(NOISE, samples=3), moves)
    loss = cross_entropy(surrogate, labels)

    def seen_through(move: Tensor) -> Tensor:
        return make_gradient(lambda pixels: loss(shift_and_flip(pixels, move)))(pixels)

    expected = torch.stack([seen_through(move) for move in moves]).mean(0)
    assert torch.allclose(term.gradient(pixels), expected, atol=1e-7)


def test_the_adversary_s_ascent_raises_what_the_noise_has_lowered(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    loss = cross_entropy(get_surrogate(tiny_frozen), labels)
    protected = pixels + perturb("tue", tiny_frozen, pixels, labels)
    ascend = Term(make_gradient(loss), -(4 / 255) / 5)
    start = draw_uniform_start(protected, 4 / 255, make_generator(0, "adversary", 0, CPU))
    delta = pgd(protected, [ascend], radius=4 / 255, steps=10, start=start)
    assert (loss(protected + delta) > loss(protected)).all()


def begin(recipe: str, role: str, chosen: TrainSettings, steps: int | None = None) -> Training:
    """Return a fresh net of a recipe at the start of its training, or of a shorter one."""
    plan = load_recipe(recipe)[role].plan(chosen, role)
    return Training(fresh_net(role), replace(plan, steps=steps or plan.steps))


def fit(
    recipe: str,
    training: Training,
    nets: FrozenNets,
    pictures: Images,
    chosen: TrainSettings,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Train one net of a recipe: the one that the training's draws are called after."""
    return load_recipe(recipe)[training.plan.stream].fit(training, nets, pictures, chosen, dtype)


def fresh_net(role: str) -> nn.Module:
    torch.manual_seed(11)
    if role == "score":
        return ScoreNet(classes=3, width=8, sigma=0.1)
    if role == "patterns":
        return Patterns(count=3, size=16)
    if role == "block":
        return NtgaBlock(classes=3, size=16, count=48, held_out=24)
    return build_classifier("resnet18", classes=3, width=4, size=16)


QUICK_ROLES = [
    *(("tue", role) for role in config.RECIPES["tue"]),
    ("clean", "surrogate"),
    ("ntga", "block"),
    ("uc", "patterns"),
]
"""A net of each kind; the other surrogates are trained by the same loop."""
ROLES = [
    pytest.param(name, role, marks=[] if (name, role) in QUICK_ROLES else [pytest.mark.slow])
    for name, roles in config.RECIPES.items()
    for role in roles
]


@pytest.mark.parametrize("role", config.RECIPES["tue"])
def test_training_tue_lowers_the_loss_of_each_role(
    role: str, tiny_losses: dict[str, list[float]], tiny_settings: TrainSettings
) -> None:
    losses = tiny_losses[role]
    assert len(losses) == load_recipe("tue")[role].plan(tiny_settings, role).steps
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


@pytest.mark.parametrize("name", mark_slow(["em", "rem", "clean"], but=("clean",)))
def test_training_a_surrogate_lowers_its_loss(
    name: str, tiny_settings_of: SettingsOf, toy: Images
) -> None:
    chosen = tiny_settings_of(name)
    training = begin(name, "surrogate", chosen)
    losses = list(fit(name, training, {}, toy, chosen))
    assert len(losses) == training.plan.steps
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(("name", "role"), ROLES)
def test_a_role_s_training_resumes_bit_for_bit(
    name: str, role: str, tiny_frozen: FrozenNets, tiny_settings_of: SettingsOf, toy: Images
) -> None:
    chosen = tiny_settings_of(name)

    def losses(training: Training, count: int | None = None) -> list[float]:
        steps = fit(name, training, tiny_frozen, toy, chosen)
        return [float(loss) for loss in itertools.islice(steps, count)]

    whole, first, second = (begin(name, role, chosen, 4) for _ in range(3))
    everything = losses(whole)
    before = losses(first, 2)
    second.load(first.get_state())
    assert before + losses(second) == everything
    for a, b in zip(whole.net.state_dict().values(), second.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_surrogate_of_tue_meets_an_adversary_and_em_s_does_not(
    tiny_nets: dict[str, nn.Module], tiny_settings_of: SettingsOf, toy: Images
) -> None:
    own = EmNoise(steps=2)
    alike = {"em": own, "tue": TueNoise(steps=2, score_ratio=0.0, gray_ratio=0.0)}

    def training(name: str) -> tuple[Training, TrainSettings]:
        chosen = replace(tiny_settings_of(name), noise=alike[name])
        # Trained, so that eval mode, in which the adversary attacks it, is like train mode.
        net = copy.deepcopy(tiny_nets["surrogate"])
        return Training(net, begin(name, "surrogate", chosen, 2).plan), chosen

    def losses(name: str) -> list[float]:
        made, chosen = training(name)
        return [float(loss) for loss in fit(name, made, {}, toy, chosen)]

    def bare(adversary: AdversarySettings | None) -> list[float]:
        made, _ = training("em")
        steps = fit_on_own_noise(made, {}, toy, em.perturb, own, adversary, torch.float32)
        return [float(loss) for loss in steps]

    standard = bare(None)
    assert losses("em") == standard
    adversarial = losses("tue")
    assert adversarial == bare(tiny_settings_of("tue").adversary)
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
    tiny_settings_of: SettingsOf,
    toy: Images,
) -> None:
    usual = tiny_settings_of(name)
    # Of noise that descends, signs turn over with the precision, and nets part after one update of
    # it. Their updates are comparable on pictures that are the same in both: with starts alone.
    still = replace(usual, adversary=replace(usual.adversary, steps=0))
    if isinstance(still.noise, SteppedNoise):
        still = replace(still, noise=replace(still.noise, steps=0))
    lowered = {key: freeze(net, torch.bfloat16) for key, net in tiny_nets.items()}

    def losses(chosen: TrainSettings, dtype: torch.dtype) -> list[float]:
        training = begin(name, role, usual, 2)
        found = [float(loss) for loss in fit(name, training, lowered, toy, chosen, dtype)]
        assert all(p.dtype == torch.float32 for p in training.net.parameters())
        return found

    exact, low = (losses(still, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert low == pytest.approx(exact, rel=0.05)
    exact, low = (losses(usual, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert low[0] == pytest.approx(exact[0], rel=0.05)
    assert all(map(math.isfinite, low))


class Tint(nn.Module):
    """How far each pixel is towards green or towards magenta: linear, the same at every place."""

    WEIGHTS = torch.tensor([1.0, -1.0, 1.0])[:, None, None]

    def forward(self, pixels: Tensor) -> Tensor:
        tint = (pixels * self.WEIGHTS.to(pixels)).sum(1, keepdim=True)
        return torch.cat([-tint, tint], 1)


def tint_net() -> Classifier:
    """A linear net of two classes, green and magenta."""
    head = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(4 * torch.eye(2))
    return Classifier(Tint(), head)


@pytest.mark.parametrize(
    ("name", "side"), [("tue", 1), ("em", 1), ("rem", 1), ("sem", 1), ("tap", -1)]
)
def test_on_a_linear_net_the_noise_is_the_radius_along_the_weights_signs(
    name: str, side: int
) -> None:
    # The grayscale term pulls all channels alike, some against the colour's term: left out here.
    noise = {
        "tue": TueNoise(score_ratio=0.0, gray_ratio=0.0),
        "em": EmNoise(),
        "rem": REM,
        "sem": replace(REM, inner_steps=0),
        "tap": TapNoise(),
    }[name]
    noise = replace(noise, steps=20, travel=4.0)
    name = "rem" if name == "sem" else name
    pixels = torch.full((2, 3, 16, 16), 0.5)
    labels = torch.tensor([0, 1])
    nets = {"surrogate": FrozenClassifier(tint_net(), torch.float32)}
    delta = perturb(name, nets, pixels, labels, noise)
    # The class's own colour, or, for a method that fools the net, the other's; where every shift
    # of up to 4 pixels leaves a pixel in the picture.
    best = RADIUS * Tint.WEIGHTS * torch.tensor([-1.0, 1.0])[:, None, None, None] * side
    assert torch.allclose(delta[..., 4:12, 4:12], best.expand(2, 3, 8, 8))


def tinted(count: int = 64) -> Images:
    """Half greenish, half magenta pictures of noise."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % 2
    side = (2 * labels - 1)[:, None, None, None]
    pixels = 0.5 + 0.25 * side * Tint.WEIGHTS
    pixels = pixels + 0.05 * torch.randn((count, 3, 16, 16), generator=generator)
    return Images((pixels.clamp(0, 1) * 255).round().to(torch.uint8), labels)


def test_uc_pulls_each_cluster_to_the_next_one_on_a_linear_net(
    tiny_settings_of: SettingsOf,
) -> None:
    pictures = tinted()
    surrogate = FrozenClassifier(tint_net(), torch.float32)
    chosen = replace(tiny_settings_of("uc"), noise=UcNoise(radius=8 / 255), score_rate=0.1)
    net = Patterns(count=2, size=16)
    training = Training(net, begin("uc", "patterns", chosen, 120).plan)
    losses = list(fit("uc", training, {"surrogate": surrogate}, pictures, chosen))
    assert sum(losses[-30:]) < 0.98 * sum(losses[:30])
    pixels, labels = pictures.take_batch(torch.arange(8))
    nets = {"surrogate": surrogate, "patterns": freeze(net, torch.float32)}
    centres = uc.find_centres(surrogate, pictures, 2, chosen.seed)
    toward = (centres.roll(-1, 0) - centres)[:, 1].sign()
    for key in (0, 1):
        noises = perturb("uc", nets, torch.full_like(pixels, 0.5), labels * 0 + key, chosen.noise)
        assert torch.equal(noises[0], noises[1])
        along = (noises[0] * Tint.WEIGHTS * toward[key]).mean()
        assert along > 0.8 * RADIUS


def test_the_noise_of_uc_is_that_of_the_cluster_whatever_the_picture(
    frozen_of: dict[str, FrozenNets], batch: tuple[Tensor, Tensor]
) -> None:
    pixels = torch.full_like(batch[0], 0.5)
    keys = torch.arange(12) % 3
    delta = perturb("uc", frozen_of["uc"], pixels, keys, PUBLISHED["uc"])
    assert torch.equal(delta[:3], delta[3:6])
    assert not torch.equal(delta[0], delta[1])
    inside = (batch[0] > 0.1) & (batch[0] < 0.9)
    real = perturb("uc", frozen_of["uc"], batch[0], keys, PUBLISHED["uc"])
    assert torch.allclose(real[inside], delta[inside], atol=1e-6)


@pytest.mark.slow
def test_rem_without_an_adversary_is_em_with_its_draws(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    loss = cross_entropy(get_surrogate(tiny_frozen), labels)
    bare = replace(REM, inner_radius=0.0)
    found = perturb("rem", tiny_frozen, pixels, labels, bare)
    assert loss(pixels + found).mean() == pytest.approx(
        float(loss(pixels + perturb("em", tiny_frozen, pixels, labels)).mean()), rel=0.3
    )
    hard = perturb("rem", tiny_frozen, pixels, labels, REM)
    soft = perturb("rem", tiny_frozen, pixels, labels, replace(REM, inner_steps=0))
    assert not torch.equal(hard, soft)
    assert not torch.equal(hard, found)


@pytest.mark.slow
def test_rem_s_noise_holds_better_against_an_adversary_than_em_s(
    tiny_frozen: FrozenNets, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    loss = cross_entropy(get_surrogate(tiny_frozen), labels)
    adversary = AdversarySettings()

    def attacked(name: str) -> Tensor:
        moved = pixels + perturb(name, tiny_frozen, pixels, labels, PUBLISHED[name])
        start = draw_uniform_start(moved, adversary.radius, make_generator(9, "test", 0, CPU))
        return loss(moved + ascend_loss(loss, moved, adversary, start)).mean()

    assert attacked("rem") < attacked("em")


def test_tap_makes_the_net_see_the_next_class(
    frozen_of: dict[str, FrozenNets], batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    net = get_surrogate(frozen_of["tap"])
    assert (net(pixels).argmax(1) == labels).float().mean() > 0.5
    delta = perturb("tap", frozen_of["tap"], pixels, labels, PUBLISHED["tap"])
    for key in range(3):  # the last class is followed by the first
        loss = cross_entropy(net, (labels + 1) % 3)
        chosen = labels == key
        assert loss(pixels + delta)[chosen].mean() < loss(pixels)[chosen].mean()


def test_lsp_s_patterns_fall_apart_by_class_and_differ_by_picture() -> None:
    pixels = torch.full((60, 3, 32, 32), 0.5)
    labels = torch.arange(60) % 3
    delta = perturb("lsp", {}, pixels, labels, PUBLISHED["lsp"])
    norms = delta.flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.tensor(1.304), atol=1e-3)
    assert len(torch.unique(delta.flatten(1), dim=0)) == 60
    # Patches are of one colour, and a straight line tells the classes apart.
    assert torch.equal(delta[..., 0:8, 0:8], delta[..., :1, :1].expand(60, 3, 8, 8))
    centres = torch.stack([delta[labels == key].mean(0) for key in range(3)])
    nearest = torch.cdist(delta.flatten(1), centres.flatten(1)).argmin(1)
    assert torch.equal(nearest, labels)


@pytest.mark.parametrize("size", [12, 16, 20, 36])
def test_lsp_s_patches_fill_pictures_of_any_size(size: int) -> None:
    pixels = torch.full((3, 3, size, size), 0.5)
    delta = perturb("lsp", {}, pixels, torch.arange(3), PUBLISHED["lsp"])
    assert torch.allclose(delta.square().mean((1, 2, 3)).sqrt(), torch.tensor(6 / 255), atol=1e-5)


def test_lsp_s_standardised_draws_are_normal() -> None:
    # What the points of a class have in common is its centre; what is left has the mixing's spread.
    start = draw_uniform_start(
        torch.zeros(4000, 3, 16, 16), 6 / 255, make_generator(0, "t", 0, CPU)
    )
    cells = torch.nn.functional.avg_pool2d(start, lsp.PATCHES.side).flatten(1)
    normal = cells * lsp.PATCHES.side * 3**0.5 / (6 / 255)
    assert normal.std() == pytest.approx(1, abs=0.02)
    assert (normal.abs() > 1.96).float().mean() == pytest.approx(0.05, abs=0.01)


def test_cuda_s_filter_is_the_class_s_and_the_picture_is_filtered(
    batch: tuple[Tensor, Tensor],
) -> None:
    pixels, labels = batch
    delta = perturb("cuda", {}, pixels, labels)
    generator = make_generator(0, "perturb", 0, CPU)
    for place in range(4):
        kernel = cuda.draw_filter(int(labels[place]), generator)
        assert kernel.max() == 1
        assert (kernel == 1).sum() == 1
        assert kernel.flatten().sort().values[-2] <= cuda.FILTER.blur
        blurred = torch.stack(
            [
                torch.nn.functional.conv2d(
                    torch.nn.functional.pad(channel[None, None], (1,) * 4, mode="replicate"),
                    kernel[None, None],
                )[0, 0]
                for channel in pixels[place]
            ]
        )
        expected = blurred / blurred.max()
        assert torch.allclose(pixels[place] + delta[place], expected, atol=1e-5)


def test_cuda_leaves_a_black_picture_black() -> None:
    black = torch.zeros(2, 3, 16, 16)
    assert torch.equal(perturb("cuda", {}, black, torch.tensor([0, 1])), black)


@pytest.mark.parametrize("name", ["lsp", "cuda"])
def test_a_class_s_pattern_hangs_on_the_seed_and_its_key_alone(
    name: str, batch: tuple[Tensor, Tensor]
) -> None:
    pixels, _ = batch
    keys = torch.arange(12)
    whole = perturb(name, {}, pixels, keys)
    noise = PUBLISHED[name]
    start = draw_uniform_start(pixels, noise.radius, make_generator(0, "start", 0, CPU))
    few = load_method(name)(
        {},
        pixels[5:8],
        keys[5:8],
        noise,
        start=start[5:8],
        generator=make_generator(0, "perturb", 0, CPU),
    )
    assert torch.allclose(whole[5:8], few, atol=1e-6)


def test_ntga_s_block_makes_its_learner_wrong(tiny_settings_of: SettingsOf, toy: Images) -> None:
    chosen = replace(tiny_settings_of("ntga"), noise=NtgaNoise())
    training = begin("ntga", "block", chosen)
    block = training.net
    assert isinstance(block, NtgaBlock)
    losses = list(fit("ntga", training, {}, toy, chosen))
    assert len(losses) == 10
    assert losses == sorted(losses)
    clean = ntga.compute_held_out_losses(block, block.pixels).mean()
    random = draw_uniform_start(block.pixels, RADIUS, make_generator(1, "control", 0, CPU))
    assert losses[-1] > clean + 0.01
    assert losses[-1] > ntga.compute_held_out_losses(block, block.pixels + random).mean() + 0.01
    assert block.delta.detach().abs().max() <= RADIUS
    # Nothing that is held out is in the block.
    seen = {tuple(row.flatten().tolist()) for row in block.levels}
    assert not seen & {tuple(row.flatten().tolist()) for row in block.held_out_levels}


@pytest.mark.slow
def test_a_picture_that_joins_ntga_s_block_makes_it_more_wrong(
    frozen_of: dict[str, FrozenNets], batch: tuple[Tensor, Tensor]
) -> None:
    pixels, labels = batch
    block = frozen_of["ntga"]["block"]
    assert isinstance(block, NtgaBlock)
    delta = perturb("ntga", frozen_of["ntga"], pixels, labels, PUBLISHED["ntga"])
    shared = block.pixels + block.delta

    def wrong(moved: Tensor, key: int) -> float:
        joined = torch.cat([shared, moved[None]])
        kernel = ntga.compute_kernel(joined, joined)
        scale = kernel[:-1, :-1].diagonal().mean()
        targets = ntga.make_targets(torch.cat([block.labels, torch.tensor([key])]), block.classes)
        known = fit_coefficients(kernel / scale, targets, ntga.KERNEL.time)
        logits = ntga.compute_kernel(block.held_out, joined) / scale @ known
        return float(torch.nn.functional.cross_entropy(logits.double(), block.held_out_labels))

    for place in range(4):
        key = int(labels[place])
        found = wrong(pixels[place] + delta[place], key)
        assert found > wrong(pixels[place], key) > wrong((pixels - delta)[place].clamp(0, 1), key)
