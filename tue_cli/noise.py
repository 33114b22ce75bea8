"""The settings of each method's noise, with the published defaults; `config.METHODS` lists them.

A radius is in the pixels' unit, [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tue_cli.declare import ADVANCED, RESEARCH, fixed, redeclare, setting
from tue_cli.errors import BadSetting


@dataclass(frozen=True)
class Noise:
    """How a method makes its noise: each has a record of the fields that it has a use for."""

    @property
    def radius(self) -> float:
        """How far a pixel may move, in the pixels' unit: where no field says it, by any amount."""
        return 1.0

    @property
    def idle_nets(self) -> tuple[str, ...]:
        """Nets of the method that this noise has no use for."""
        return ()

    def refuse(self) -> None:
        """Raise BadSetting for noise that cannot be made."""
        if not 0 < self.radius <= 1:
            raise BadSetting(
                f"--radius must be more than 0 and at most 255, not {self.radius * 255:g}.",
                "The usual radius is 8.",
            )
        if self.radius * 255 < 1:
            raise BadSetting(
                f"A radius of {self.radius * 255:g} is less than one level of an 8-bit picture.",
                "Choose 1 or more; the usual radius is 8.",
            )


@dataclass(frozen=True)
class SteppedNoise(Noise):
    """Noise that descends by steps of one length (Fang et al., Algorithm 1, lines 6 to 11)."""

    radius: float = setting(
        8 / 255,
        "Largest change of a pixel, in levels of 255. Default: the strength's; of methods other "
        "than tue, as published.",
        typed="levels",
        panel=ADVANCED,
        source="Fang et al., section 4.2.1",
    )
    steps: int = setting(
        10,
        "Gradient steps. Default: as published.",
        panel=ADVANCED,
        source="REM, Fu et al. 2022",
    )
    travel: float = fixed(2.0, "sum of all steps, in radii", source="REM: 10 steps of radius / 5")

    @property
    def step(self) -> float:
        """The length of a step, alpha_u, in the pixels' unit."""
        return self.travel * self.radius / max(self.steps, 1)

    def refuse(self) -> None:
        """Raise BadSetting for noise that cannot be made."""
        super().refuse()
        if self.steps < 1:
            raise BadSetting(
                f"The noise needs at least 1 step, not {self.steps}.",
                "The usual number is 10.",
            )


@dataclass(frozen=True)
class SampledNoise(SteppedNoise):
    """Noise whose surrogate term is a mean over EoT samples at every step."""

    samples: int = setting(
        1,
        "Random crops and flips (EoT samples) per step. Default: 5 for rem, otherwise 1.",
        panel=RESEARCH,
        source="REM takes 5",
    )

    def refuse(self) -> None:
        """Raise BadSetting for noise that cannot be made."""
        super().refuse()
        if self.samples < 1:
            raise BadSetting(
                f"--samples must be 1 or more, not {self.samples}.", "The usual number is 1."
            )


@dataclass(frozen=True)
class TueNoise(SampledNoise):
    """Fang et al. 2023, Eq. 6, with a grayscale term that is ours."""

    score_ratio: float = setting(
        0.25,
        "tue: weight of the score network's term, alpha_s / alpha_u; 0 omits it.",
        "--score",
        panel=RESEARCH,
    )
    score_mode: str = setting(
        "norm",
        "tue: norm (line 9 of Algorithm 1) or ascent.",
        choices=("norm", "ascent"),
        panel=RESEARCH,
    )
    gray_ratio: float = setting(
        1.0,
        "tue: weight of the term on grayscale pictures; 0 omits it, as in the paper.",
        "--gray",
        panel=RESEARCH,
        source="docs/notes.md",
    )

    @property
    def idle_nets(self) -> tuple[str, ...]:
        """The score network, where it has no part."""
        return () if self.score_ratio else ("score",)

    def refuse(self) -> None:
        """Raise BadSetting for noise that cannot be made."""
        super().refuse()
        if self.score_mode not in ("norm", "ascent"):
            raise BadSetting(
                f"--score-mode must be norm or ascent, not {self.score_mode!r}.",
                "The default is norm.",
            )
        for name, ratio in (("score", self.score_ratio), ("gray", self.gray_ratio)):
            if not 0 <= ratio < math.inf:
                raise BadSetting(
                    f"--{name} must be 0 or more, not {ratio:g}.", "0 omits this term."
                )


@dataclass(frozen=True)
class EmNoise(SampledNoise):
    """Huang et al. 2021, as REM's authors run it."""


@dataclass(frozen=True)
class RemNoise(SampledNoise):
    """Fu et al. 2022; without inner steps it is SEM (Liu et al. 2024)."""

    samples: int = redeclare(SampledNoise, "samples", 5, "Fu et al. 2022")
    inner_radius: float = setting(
        4 / 255,
        "rem: radius of the inner adversary, in levels of 255.",
        typed="levels",
        panel=RESEARCH,
        source="Fu et al. 2022",
    )
    inner_steps: int = setting(
        10,
        "rem: gradient steps of the inner adversary; 0 is the method SEM.",
        panel=RESEARCH,
        source="Fu et al. 2022",
    )

    def refuse(self) -> None:
        """Raise BadSetting for noise that cannot be made."""
        super().refuse()
        if not 0 <= self.inner_radius <= 1 or self.inner_steps < 0:
            raise BadSetting(
                f"--inner-steps {self.inner_steps} with --inner-radius "
                f"{self.inner_radius * 255:g} is not possible.",
                "Choose 0 steps or more, and a radius from 0 to 255.",
            )


@dataclass(frozen=True)
class TapNoise(SampledNoise):
    """Fowl et al. 2021: 250 steps of radius / 20."""

    steps: int = redeclare(SteppedNoise, "steps", 250, "Fowl et al. 2021")
    travel: float = redeclare(SteppedNoise, "travel", 12.5, "Fowl et al. 2021")


@dataclass(frozen=True)
class NtgaNoise(SteppedNoise):
    """Yuan and Wu 2021: 10 steps of 1.1 radius / 10."""

    travel: float = redeclare(SteppedNoise, "travel", 1.1, "Yuan and Wu 2021")


@dataclass(frozen=True)
class LspNoise(Noise):
    """Yu et al. 2022: 6/255 times the root of the dimension."""

    radius: float = redeclare(SteppedNoise, "radius", 6 / 255, "Yu et al. 2022")


@dataclass(frozen=True)
class CudaNoise(Noise):
    """Sadasivan et al. 2023: a filter, which has no radius."""


@dataclass(frozen=True)
class UcNoise(Noise):
    """Zhang et al. 2023."""

    radius: float = redeclare(SteppedNoise, "radius", 16 / 255, "Zhang et al. 2023")
