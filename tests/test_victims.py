"""Victims learn, learn the same again, and an adversary never leaves its radius."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_toy
from PIL import Image
from torch import Tensor

from tue_cli.attacks.registry import ATTACKS, parse_attacks
from tue_cli.config import BUDGETS, AdversarySettings, VerifySettings, VictimSettings
from tue_cli.core.batches import Images
from tue_cli.engine.torch import ComputeDevice
from tue_cli.errors import BadSetting
from tue_cli.nets.frozen import FrozenClassifier
from tue_cli.verify.dataset import KEPT_BYTES
from tue_cli.verify.pairs import Pair
from tue_cli.verify.trainer import Filtering, fit_time_budget, measure_filters
from tue_cli.verify.trials import adapt_to_photographs, build_groups, list_unique_trials
from tue_cli.verify.victim import Attacker, TrainingResult, Victim, balanced_accuracy

CPU = ComputeDevice(torch.device("cpu"), torch.float32, "CPU")
ADVERSARY = AdversarySettings(radius=4 / 255, steps=3)


def victim(seed: int = 0, *, steps: int = 18, classes: int = 3, **more: Any) -> Victim:
    settings = VictimSettings(width=4, batch=24, rate=0.05)
    return Victim(
        settings,
        classes=classes,
        size=16,
        steps=steps,
        seed=seed,
        computer=CPU,
        **more,
    )


def trained(one: Victim, pictures: Images, *, points: int = 2) -> TrainingResult:
    training = one.train(pictures, pictures, points=points)
    while True:
        try:
            next(training)
        except StopIteration as stop:
            result = stop.value
            assert isinstance(result, TrainingResult)
            return result


@pytest.fixture(scope="module")
def learned(toy: Images) -> tuple[Victim, TrainingResult]:
    """A victim of `toy` that is trained, and what became of it."""
    one = victim(steps=60)
    return one, trained(one, toy, points=4)


def test_a_victim_learns_what_can_be_learned(learned: tuple[Victim, TrainingResult]) -> None:
    _, result = learned
    assert len(result.curve) == 4
    assert result.curve[-1] == result.train > 0.8
    assert result.attacked is None and result.seconds > 0


@pytest.mark.parametrize("more", [{}, {"mixing": "cutmix"}, {"adversary": ADVERSARY}])
def test_the_same_seed_gives_the_same_net(more: dict[str, Any], toy: Images) -> None:
    def weights(seed: int) -> Tensor:
        one = victim(seed, steps=3, **more)
        list(one.run_updates(toy))
        return torch.cat([p.detach().flatten() for p in one.net.parameters()])

    first = weights(0)
    torch.manual_seed(5)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_pictures_larger_than_the_input_are_learned_by_crops_and_tested_in_the_middle() -> None:
    pictures = make_toy(size=20)
    one = victim(steps=30)
    result = trained(one, pictures)
    assert result.curve[-1] == result.train > 0.6
    edge = torch.ones(20, 20, dtype=torch.bool)
    edge[2:18, 2:18] = False
    framed = Images(pictures.pixels.masked_fill(edge, 0), pictures.labels)
    seen = [one.crop_middle(some).pixels for some in (pictures, framed)]
    assert seen[0].shape[-2:] == (16, 16) and torch.equal(*seen)
    # Framed in training they are another lesson: crops reach to the edge.
    losses = [[float(x) for x in victim(steps=3).run_updates(some)] for some in (pictures, framed)]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_being_tested_on_the_way_changes_nothing(toy: Images) -> None:
    assert (
        trained(victim(), toy, points=1).curve[-1:] == trained(victim(), toy, points=6).curve[-1:]
    )


def test_the_adversary_stays_in_its_radius_and_raises_the_loss(
    toy: Images, learned: tuple[Victim, TrainingResult]
) -> None:
    one, _ = learned
    pixels, labels = toy.take_batch(torch.arange(len(toy)))
    net = one.freeze_net()
    for radius in (1 / 255, 4 / 255):
        settings = AdversarySettings(radius=radius, steps=5)
        moved = Attacker(net, settings)(pixels, labels, torch.Generator().manual_seed(0))
        assert (moved - pixels).abs().max() <= radius + 1e-6
        assert moved.min() >= 0 and moved.max() <= 1
        assert loss(net, moved, labels) > loss(net, pixels, labels)


def loss(net: FrozenClassifier, pixels: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(net(pixels), labels))


@pytest.mark.slow
def test_an_adversarial_victim_is_tested_under_its_own_adversary(toy: Images) -> None:
    result = trained(victim(steps=20, adversary=ADVERSARY), toy)
    assert result.attacked is not None
    assert 0 <= result.attacked <= result.train


def test_accuracy_counts_classes_and_not_pictures() -> None:
    # Nine of class 0, one of class 1: to say always 0 is chance, not nine tenths.
    labels = torch.tensor([0] * 9 + [1])
    pictures = Images(torch.zeros((10, 3, 4, 4), dtype=torch.uint8), labels)
    always = torch.tensor([1.0, 0.0])
    assert balanced_accuracy(lambda pixels: always.expand(len(pixels), 2), pictures, 2) == 0.5


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_arms_of_an_attacker_differ_in_their_pictures_alone(budget: str) -> None:
    for group in build_groups(BUDGETS[budget], 4000):
        assert group.attack is ATTACKS[group.name]
        for clean, protected, random in zip(
            *(group.trials[arm] for arm in ("clean", "protected", "random")), strict=True
        ):
            for trial in (protected, random):
                kept = {"arm", "part"}
                assert {k: v for k, v in vars(trial).items() if k not in kept} == {
                    k: v for k, v in vars(clean).items() if k not in kept
                }
            assert (protected.arm, random.arm) == ("protected", "random")
            assert protected.part == random.part == ATTACKS[group.name].part
        assert ("floor" in group.trials) == (ATTACKS[group.name].part < 1)


def test_a_victim_that_two_attackers_share_is_trained_once() -> None:
    settings = VerifySettings(
        victims=(VictimSettings(),), attacks=("std", "early", "part20", "part40"), seeds=2
    )
    trials = list_unique_trials(build_groups(settings, 500))
    # A seed: clean, protected and random; for each part protected, random and the floor.
    assert len(trials) == 2 * (3 + 2 * 3)
    assert [trial.seed for trial in trials] == sorted(trial.seed for trial in trials)


def test_every_attacker_changes_something() -> None:
    kinds = [
        (a.filter, a.own_size, a.augmentation, a.radius, a.part, a.other_labels, a.best_epoch)
        for a in ATTACKS.values()
    ]
    assert len(set(kinds)) == len(kinds)


def test_strong_augmentation_is_learned_by_for_longer() -> None:
    settings = VerifySettings(attacks=("std", "ueraser"), victims=(VictimSettings(),))
    std, ueraser = (group.trials["clean"][0] for group in build_groups(settings, 500))
    assert ueraser.steps == 4 * std.steps
    costs = {trial.kind: 0.5 for trial in (std, ueraser)}
    # Three arms of each: as many pictures as 15 victims of standard training are shown.
    seen = fit_time_budget(1000.0, settings, costs, Filtering({}, 0), 500)
    assert seen == pytest.approx(1000 / 0.5 * 64 / 15, rel=0.01)


def test_filters_at_own_size_are_part_of_the_time() -> None:
    settings = VerifySettings(attacks=("std", "own-blur"), victims=(VictimSettings(),), seeds=2)
    trials = list_unique_trials(build_groups(settings, 500))
    one = Filtering({"blur": 0.25}, most_kept=3 * 500)
    spent = one.estimate(trials, 500)
    assert {trial.degrade for trial in spent} == {"blur"} and len(spent) == 3 * 2
    assert {trial.seed: time for trial, time in spent.items()} == {0: 125, 1: 0}, "they are kept"
    half = replace(one, most_kept=750).estimate(trials, 500)
    assert {trial.seed: time for trial, time in half.items()} == {0: 125, 1: 62.5}
    costs = {trial.kind: 0.5 for trial in trials}
    # 375 s of 1,000 are for the filters, and 12 victims share the rest; fewer pictures take less.
    seen = fit_time_budget(1000.0, settings, costs, one, 500)
    assert seen == pytest.approx(625 / 0.5 * 64 / 12, rel=0.01)
    assert fit_time_budget(1000.0, settings, costs, one, 200) > seen
    # Where there are many, only an eighth of what a victim is shown is filtered.
    every = replace(one, most_kept=1_000_000)
    seen = fit_time_budget(1000.0, settings, costs, every, 100_000)
    rate = 12 * 0.5 / 64
    assert seen * rate + 3 * 0.25 * (seen // 8) == pytest.approx(1000, rel=0.01)
    assert fit_time_budget(1.0, settings, costs, one, 500) == 1


def test_a_filter_is_timed_on_pictures_that_can_be_read(tmp_path: Path) -> None:
    pairs = [Pair(tmp_path / f"{n}.png", None, "a", str(n)) for n in range(3)]
    settings = VerifySettings(attacks=("std", "own-denoise", "blur"), victims=(VictimSettings(),))
    assert measure_filters(settings, pairs, 32, 8 / 255).seconds == {"denoise": 0}
    Image.new("RGB", (300, 300)).save(pairs[2].original)
    timed = measure_filters(settings, pairs, 32, 8 / 255)
    assert timed.seconds["denoise"] > 0 and timed.most_kept == KEPT_BYTES // (3 * 32**2)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_budget_filters_photographs_at_their_own_size(budget: str) -> None:
    adapted = adapt_to_photographs(BUDGETS[budget])
    filtered = [ATTACKS[name] for name in adapted.attacks if name.startswith("own-")]
    wanted = {"jpeg10"} if budget == "quick" else {"jpeg10", "denoise"}
    assert wanted <= {attack.filter for attack in filtered}
    assert all(attack.own_size for attack in filtered)
    assert adapted.attacks[0] == "std" and len(set(adapted.attacks)) == len(adapted.attacks)
    assert parse_attacks(adapted.attacks) == adapted.attacks
    assert replace(adapted, attacks=BUDGETS[budget].attacks) == BUDGETS[budget]


def test_attackers_chosen_by_name_stay_for_photographs() -> None:
    chosen = VerifySettings(attacks=("std", "jpeg10"))
    assert adapt_to_photographs(chosen) == chosen


def test_attackers_are_named_shortly_and_each_once() -> None:
    assert parse_attacks(["gray", "at", "at4", "jpeg"]) == ("std", "gray", "at4", "jpeg10")
    with pytest.raises(BadSetting, match="nosuch"):
        parse_attacks(["std", "nosuch"])


@pytest.mark.parametrize(
    "settings", [VictimSettings("nosuch"), VictimSettings(width=0), VictimSettings(width=3)]
)
def test_a_victim_that_cannot_be_is_refused(settings: VictimSettings) -> None:
    with pytest.raises(BadSetting):
        Victim(settings, classes=2, size=32, steps=1, seed=0, computer=CPU)
