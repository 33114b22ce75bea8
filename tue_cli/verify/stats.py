"""From the accuracies of victims to what may be said of the protection, and what may not.

Protection is (clean - protected) / (clean - floor) in percent, cut to 0 to 100: 0 where victims
learn as much from the copies as from the originals, 100 where they learn nothing. The floor is
chance or, where only a part is protected, what the clean part alone teaches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

LEARNED = 0.1
"""A clean control has learned something so far above the floor, of what is left to 1."""
WIDEST = 1.0
"""A wider interval of the protection says nothing."""
WIDEST_AT_ZERO = 0.5
"""So wide may that against standard training be where it includes 0: then it says that the
protection is small. A wider one cannot tell none from much.
"""
FITTED = 0.5
"""An adversarial victim has fitted its own pictures where it knows so much above chance."""
TAUGHT = 0.5
"""An attacker has learned from the originals where it reaches so much of standard training."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """Mean accuracy of like victims that differ by their seed, and how sure it is."""

    mean: float
    variance: float
    """Of the mean: what the test pictures and the seeds contribute."""
    freedom: float
    """Degrees of freedom behind the variance (Welch and Satterthwaite)."""

    @classmethod
    def from_values(cls, values: Sequence[float], tested: float) -> Accuracy:
        """`values`: a seed each, 0 to 1; `tested`: as many pictures as each was tested on."""
        return cls.from_folds([(value,) for value in values], tested)

    @classmethod
    def from_folds(cls, values: Sequence[Sequence[float]], tested: float) -> Accuracy:
        """Return the accuracy of cross-validated victims.

        Victims of the folds share most of their training pictures, so that their accuracies differ
        less than those of victims with pictures of their own would. The variance is corrected for
        that (Nadeau and Bengio 2003), and never less than what the test pictures contribute.

        Args:
            values: for each seed, an accuracy for each fold, 0 to 1.
            tested: as many pictures as a seed's victims were tested on, all folds together.
        """
        of_seeds = [statistics.fmean(row) for row in values]
        of_folds = [statistics.fmean(column) for column in zip(*values, strict=True)]
        mean, folds = statistics.fmean(of_seeds), len(of_folds)
        # Agresti and Coull's centre: an accuracy of 0 or 1 is not certain either.
        centre = (mean * tested + 2) / (tested + 4)
        sampling = centre * (1 - centre) / (tested + 4)
        seeds = statistics.variance(of_seeds) / len(of_seeds) if len(of_seeds) > 1 else 0.0
        spread = 0.0
        if folds > 1:
            spread = statistics.variance(of_folds) * (1 / folds + 1 / (folds - 1))
        parts = [
            (sampling, tested - 1),
            (seeds, len(of_seeds) - 1),
            (max(0.0, spread - sampling), folds - 1),
        ]
        return cls(mean, sum(variance for variance, _ in parts), _compute_freedom(parts))

    def estimate(self) -> Estimate:
        """Return the accuracy with its interval, both cut to 0 to 1."""
        half = _compute_quantile(self.freedom) * math.sqrt(self.variance)
        return Estimate(self.mean, max(0.0, self.mean - half), min(1.0, self.mean + half))


CERTAIN_ZERO = Accuracy(0.0, 0.0, math.inf)


@dataclass(frozen=True)
class Row:
    """One attacker on one kind of victim."""

    attack: str
    title: str
    victim: str
    clean: Accuracy
    protected: Accuracy
    random: Accuracy
    floor: Accuracy
    floor_name: str
    fitted: float | None = None
    """Adversarial victims: the least that one knew of its own attacked training pictures."""
    standard: float | None = None
    """What standard training on the originals reaches with the same kind of victim."""
    pictures: int = 0
    """How many different ones there were to learn from and to be tested on; 0: unknown."""
    counted: str = "pictures"
    """What these are called."""
    pretrained: bool = False
    """Whether its victims begin from pretrained weights."""
    overall: float | None = None
    """Where the accuracies are the recall of one class: the mean accuracy of the victims of the
    originals over all classes. A victim that takes every picture for that class recognizes all of
    its pictures, and has learned nothing.
    """

    def estimate_protection(self) -> Estimate:
        """Return the protection, 0 to 100, with its interval (delta method, arms independent)."""
        value, low, high = self._estimate_uncut()
        return Estimate(*(100 * min(1.0, max(0.0, part)) for part in (value, low, high)))

    def explain_doubt(self, chance: float) -> str:
        """Return why no number may be given for this attacker; nothing where one may."""
        clean, floor = self.clean.estimate(), self.floor.estimate()
        gap = clean.value - floor.value
        if gap <= 0 or gap < LEARNED * (1 - floor.value):
            return (
                f"victims trained on the originals learned hardly more than {self.floor_name} "
                f"({clean.value:.0%} against {floor.value:.0%})"
            )
        if clean.low <= floor.high:
            return (
                "victims trained on the originals may have learned no more than "
                f"{self.floor_name}: they reached {clean.value:.0%} ({100 * clean.low:.0f} to "
                f"{100 * clean.high:.0f}), against {floor.value:.0%}"
            )
        if self.overall is not None and self.overall - chance < LEARNED * (1 - chance):
            return (
                "victims trained on the originals learned hardly more than chance: they recognize "
                f"{clean.value:.0%} of your class, but {self.overall:.0%} on average over all "
                f"classes (chance: {chance:.0%})"
            )
        if self.standard is not None and clean.value - chance < TAUGHT * (self.standard - chance):
            return (
                f"victims trained on the originals reached {clean.value:.0%}, but "
                f"{self.standard:.0%} in standard training"
            )
        if self.fitted is not None and self.fitted < chance + FITTED * (1 - chance):
            return (
                f"a victim of adversarial training reached a robust training accuracy of only "
                f"{self.fitted:.0%}"
            )
        value, low, high = self._estimate_uncut()
        width = high - low
        is_standard = self.attack == "std" and not self.pretrained
        if width > WIDEST:
            doubt = f"the interval of the protection is wider than {100 * WIDEST:.0f} points"
        elif is_standard and low <= 0 and width > WIDEST_AT_ZERO:
            doubt = (
                "the interval of the protection includes 0 and is wider than "
                f"{100 * WIDEST_AT_ZERO:.0f} points"
            )
        else:
            return ""
        # An interval shrinks as the root of the number of pictures grows; a tenth more is on the
        # safe side.
        sure = min(WIDEST / 2, max(value, WIDEST_AT_ZERO / 2)) if is_standard else WIDEST / 2
        needed = 1.1 * self.pictures * (width / 2 / sure) ** 2
        return (
            f"{doubt}; about {_round_up(needed):,} {self.counted} would settle it"
            if needed
            else doubt
        )

    def _estimate_uncut(self) -> tuple[float, float, float]:
        gap = self.clean.mean - self.floor.mean
        if gap < 1e-9:  # none, or what rounding leaves of none
            return 0.0, -math.inf, math.inf
        value = (self.clean.mean - self.protected.mean) / gap
        parts = [
            (self.protected.variance / gap**2, self.protected.freedom),
            (self.clean.variance * ((1 - value) / gap) ** 2, self.clean.freedom),
            (self.floor.variance * (value / gap) ** 2, self.floor.freedom),
        ]
        half = _compute_quantile(_compute_freedom(parts)) * math.sqrt(
            sum(variance for variance, _ in parts)
        )
        return value, value - half, value + half


@dataclass(frozen=True)
class Verdict:
    """What may be said of a set of copies."""

    headline: str
    reasons: tuple[str, ...]
    """Why a number is missing, or what to mind about one."""
    standard: Estimate | None
    weakest: Estimate | None
    weakest_row: Row | None

    @property
    def is_conclusive(self) -> bool:
        """Whether there is a number at all."""
        return self.weakest is not None


def compare_with_standard(rows: Sequence[Row]) -> list[Row]:
    """Return rows that know what standard training reaches with the same kind of victim."""
    reached = {row.victim: row.clean.mean for row in rows if row.attack == "std"}
    return [replace(row, standard=reached.get(row.victim)) for row in rows]


def make_inconclusive(*reasons: str) -> Verdict:
    """Return the verdict that nothing can be said, and why."""
    return Verdict(f"Inconclusive: {reasons[0]}.", reasons, None, None, None)


def judge_rows(rows: Sequence[Row], chance: float) -> Verdict:
    """Judge by the weakest link among the attackers that could be measured.

    Standard training comes first in `rows`; where it can't be judged, that of pretrained victims
    stands for it, and where that can't either, nothing is judged.
    """
    doubts: Mapping[int, str] = {
        number: row.explain_doubt(chance) for number, row in enumerate(rows)
    }
    reasons = tuple(
        f"with {row.title} ({row.victim}), {doubts[number]}"
        for number, row in enumerate(rows)
        if doubts[number]
    )
    if reasons:
        reasons += ("more pictures, more --seeds or a larger --budget may help",)
    sound = [row for number, row in enumerate(rows) if not doubts[number]]
    every = [row for row in sound if row.attack == "std"]
    if not every:
        return make_inconclusive(*reasons)
    title = rows[0].title if any(row.title == rows[0].title for row in every) else every[0].title
    standard = [row for row in every if row.title == title]
    at_best = min(standard, key=lambda row: row.estimate_protection().value)
    worst = min(sound, key=lambda row: row.estimate_protection().value)
    first, last = at_best.estimate_protection(), worst.estimate_protection()
    headline = f"Protection {_format_percent(first)} against {title}"
    if all((row.attack, row.title) == ("std", title) for row in rows):
        headline += "; no other attacker was tried"
    elif len(sound) == len(standard):
        headline += "; no other attacker could be measured"
    elif worst in standard:
        headline += ", the lowest"
    else:
        headline += f"; the lowest is {_format_percent(last)}, against {worst.title}"
    if len(standard) < len(sound) < len(rows):
        missing = dict.fromkeys(row.title for row in rows if row not in sound)
        headline += f"; not measured: {', '.join(missing)}"
    random = at_best.random.mean
    if random <= at_best.protected.mean:
        reasons += (f"random noise of the same radius protects as well (accuracy {random:.0%})",)
    return Verdict(f"{headline}.", reasons, first, last, worst)


def _format_percent(estimate: Estimate) -> str:
    return f"{estimate.value:.0f} % ({estimate.low:.0f} to {estimate.high:.0f})"


def _round_up(count: float) -> int:
    """Return a number of two digits and zeros, not below this one."""
    unit: int = 10 ** max(0, len(str(math.ceil(count))) - 2)
    return math.ceil(count / unit) * unit


def _compute_freedom(parts: Sequence[tuple[float, float]]) -> float:
    whole = sum(variance for variance, _ in parts)
    below = sum(variance**2 / freedom for variance, freedom in parts if variance and freedom > 0)
    return whole**2 / below if below else math.inf


def _compute_quantile(freedom: float) -> float:
    """Return how many standard errors lie on each side of a 95 % interval (Student)."""
    from scipy.special import stdtrit

    return 1.959964 if math.isinf(freedom) else float(stdtrit(max(1.0, freedom), 0.975))
