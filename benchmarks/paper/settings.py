"""Budgets of the paper's tables: one for every method."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tue_cli.declare import fixed


@dataclass(frozen=True)
class BenchSettings:
    """One budget for every method."""

    per_class: int | None = fixed(None, "training pictures of each class; empty: all")
    test_per_class: int | None = fixed(None, "test pictures of each class; empty: all")
    size: int = fixed(32, "pixels a side, of noise and victims")
    width: int = fixed(64, "channels of the first stage, of surrogates and victims")
    score_width: int = fixed(64, "channels of the score network")
    score_steps: int = fixed(20_000, "training steps of the score network")
    steps: int = fixed(5000, "training steps of a surrogate", source="REM, Fu et al. 2022")
    clean_steps: int = fixed(40_000, "training steps of the clean surrogate of tap", source="REM")
    batch: int = fixed(128, "pictures a step, of surrogates and victims", source="REM")
    noise_steps: int = fixed(10, "steps of the noise, but for tap", source="REM")
    tap_steps: int = fixed(250, "steps of tap's noise", source="Fowl et al. 2021")
    samples: int = fixed(5, "shifts and flips a step, of tue, rem and sem", source="REM")
    inner_steps: int = fixed(10, "steps of rem's inner adversary", source="REM")
    adversary_steps: int = fixed(10, "steps of every other adversary", source="REM")
    victim_steps: int = fixed(40_000, "training steps of a standard victim", source="REM")
    adversarial_steps: int = fixed(40_000, "of an adversarial victim", source="REM")
    points: int = fixed(20, "times a victim is tested on its way")
    radii: tuple[int, ...] = fixed((0, 1, 2, 3, 4), "of victims' adversaries, in levels of 255")
    filters: tuple[str, ...] = fixed((), "what else is tried against the noise in table 1")
    seeds: int = fixed(3, "standard victims of each kind")
    adversarial_seeds: int = fixed(3, "adversarial victims of each kind")
    seed: int = fixed(0, "seed of everything random")


_SMALL = BenchSettings(
    width=32,
    score_width=32,
    score_steps=3000,
    steps=1500,
    clean_steps=6000,
    tap_steps=100,
    samples=1,
    inner_steps=5,
    adversary_steps=5,
    victim_steps=8000,
    adversarial_steps=8000,
    filters=("gray", "jpeg10"),
    seeds=2,
    adversarial_seeds=1,
)
PRESETS: dict[str, BenchSettings] = {
    # Two hours of two cores for table 1 on CIFAR-10: eight epochs of 10,000 pictures, ten against
    # an adversary.
    "mini": replace(
        _SMALL,
        per_class=1000,
        test_per_class=200,
        width=8,
        score_steps=500,
        steps=400,
        clean_steps=1500,
        batch=64,
        tap_steps=50,
        inner_steps=3,
        adversary_steps=3,
        victim_steps=1250,
        adversarial_steps=1560,
        points=8,
        radii=(0, 2, 4),
    ),
    "small": _SMALL,
    "paper": BenchSettings(),
}
"""Budgets by name: two cores, one GPU for a day, the paper's own protocol."""
