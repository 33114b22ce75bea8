"""What may be said of accuracies: the interval holds the truth, and a doubt leaves no number."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tue_cli.config import BUDGETS
from tue_cli.verify.request import Provenance
from tue_cli.verify.result import VerifySetup, make_row, summarize
from tue_cli.verify.stats import (
    CERTAIN_ZERO,
    Accuracy,
    Row,
    compare_with_standard,
    judge_rows,
    make_inconclusive,
)
from tue_cli.verify.trials import build_groups

shares = st.floats(0, 1)


def of(*values: float, tested: float = 1000) -> Accuracy:
    return Accuracy.from_values(values, tested)


def row(
    clean: Accuracy,
    protected: Accuracy,
    *,
    attack: str = "std",
    random: Accuracy | None = None,
    floor: Accuracy | None = None,
    fitted: float | None = None,
    floor_name: str = "chance",
) -> Row:
    return Row(
        attack=attack,
        title={"std": "standard training"}.get(attack, attack),
        victim="resnet18:0.25",
        clean=clean,
        protected=protected,
        random=clean if random is None else random,
        floor=replace(CERTAIN_ZERO, mean=0.1) if floor is None else floor,
        floor_name=floor_name,
        fitted=fitted,
    )


@pytest.mark.parametrize(("overall", "learned"), [(0.1, False), (0.15, False), (0.6, True)])
def test_victims_that_take_every_picture_for_one_class_have_learned_nothing(
    overall: float, learned: bool
) -> None:
    one = replace(row(of(1.0), of(1.0)), overall=overall)
    assert bool(one.explain_doubt(0.1)) is not learned
    assert judge_rows([one], 0.1).is_conclusive is learned
    if not learned:
        assert f"but {overall:.0%} on average over all classes" in one.explain_doubt(0.1)


@pytest.mark.parametrize(("others", "overall"), [(None, None), (0.0, 0.25), (1.0, 1.0)])
def test_all_classes_count_where_the_recall_of_one_is_measured(
    others: float | None, overall: float | None
) -> None:
    group = build_groups(replace(BUDGETS["quick"], attacks=("std",)), 100)[0]
    told = {"curve": (0.5, 1.0), "attacked": None, "others": others}
    results = {trial: told for trials in group.trials.values() for trial in trials}
    made = make_row(group, results, tested=40, chance=0.25, pictures=(40, "pictures"))
    assert made.overall == overall


@pytest.mark.parametrize(
    ("protected", "protection"), [(0.9, 0), (0.1, 100), (0.5, 50), (0.95, 0), (0.05, 100)]
)
def test_protection_is_the_part_of_what_could_be_learned_that_is_not(
    protected: float, protection: float
) -> None:
    estimate = row(of(0.9), of(protected)).estimate_protection()
    assert estimate.value == pytest.approx(protection)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 100


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_holds_the_truth_nineteen_times_in_twenty(seeds: int) -> None:
    random = np.random.default_rng(0)
    truths, tested = {"clean": 0.8, "protected": 0.35}, 300
    protection = 100 * (0.8 - 0.35) / (0.8 - 0.1)

    def drawn(truth: float) -> Accuracy:
        # One draw of pictures that all seeds share, and what a seed adds of its own.
        shared = random.binomial(tested, truth) / tested
        return Accuracy.from_values(
            list(shared + random.normal(0, 0.02 * (seeds > 1), seeds)), tested
        )

    held = []
    for _ in range(1000):
        estimate = row(drawn(truths["clean"]), drawn(truths["protected"])).estimate_protection()
        held.append(estimate.low <= protection <= estimate.high)
    assert 0.93 <= np.mean(held) <= 0.995


def test_the_interval_of_few_pictures_holds_the_truth_nineteen_times_in_twenty() -> None:
    """Pictures of two kinds, of which a victim has learned more or less by chance."""
    random = np.random.default_rng(0)
    folds, each, seeds = 5, 16, 3
    truths, protection = {"clean": 0.85, "protected": 0.6}, 100 * (0.85 - 0.6) / (0.85 - 0.1)

    def drawn(truth: float) -> Accuracy:
        # What all training pictures share, what a fold's add, what its test pictures add.
        level = np.clip(truth + random.normal(0, 0.02) + random.normal(0, 0.03, folds), 0, 1)
        of_folds = random.binomial(each, level) / each
        rows = of_folds + random.normal(0, 0.02, (seeds, folds))
        return Accuracy.from_folds(rows.clip(0, 1).tolist(), folds * each)

    held = []
    for _ in range(1000):
        estimate = row(drawn(truths["clean"]), drawn(truths["protected"])).estimate_protection()
        held.append(estimate.low <= protection <= estimate.high)
    assert np.mean(held) >= 0.95


def test_folds_that_disagree_widen_the_interval_and_agreeing_ones_do_not_narrow_it() -> None:
    def width(*folds: float) -> float:
        estimate = Accuracy.from_folds([folds, folds], 100).estimate()
        return estimate.high - estimate.low

    one_split = of(0.6, 0.6, tested=100).estimate()
    assert width(*[0.6] * 5) == pytest.approx(one_split.high - one_split.low)
    assert width(0.3, 0.5, 0.6, 0.7, 0.9) > 2 * width(*[0.6] * 5)


@pytest.mark.parametrize(
    ("protected", "attack", "doubt"),
    [
        (0.62, "std", "includes 0 and is wider than 50 points; about 120 pictures"),
        # Against another attacker this is the weak link, and is told as such.
        (0.62, "gray", ""),
        (0.4, "std", ""),
    ],
)
def test_an_interval_from_none_to_much_is_inconclusive_and_says_what_would_settle_it(
    protected: float, attack: str, doubt: str
) -> None:
    judged = row(of(0.7, tested=60), of(protected, tested=60), attack=attack)
    explained = replace(judged, pictures=100).explain_doubt(0.1)
    assert explained.endswith(f"{doubt} would settle it") if doubt else not explained
    assert "settle" not in judged.explain_doubt(0.1)


def test_as_many_pictures_as_are_said_to_settle_it_do() -> None:
    few = replace(row(of(0.5, tested=24), of(0.4, tested=24)), pictures=24)
    found = re.search(r"about ([\d,]+) pictures", few.explain_doubt(0.1))
    assert found is not None
    many = int(found[1].replace(",", ""))
    assert not row(of(0.5, tested=many), of(0.4, tested=many)).explain_doubt(0.1)
    assert row(of(0.5, tested=many // 3), of(0.4, tested=many // 3)).explain_doubt(0.1)


def test_an_interval_that_leaves_standard_training_in_doubt_does_for_no_other_training() -> None:
    judged = row(of(0.7, tested=60), of(0.62, tested=60))
    assert judged.explain_doubt(0.1)
    assert not replace(judged, pretrained=True).explain_doubt(0.1)


def test_copies_that_surely_protect_little_are_conclusive() -> None:
    assert not row(of(0.7, tested=800), of(0.69, tested=800)).explain_doubt(0.1)


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_an_accuracy_of_nothing_or_all_is_not_certain(mean: float) -> None:
    few, many = of(mean, mean, tested=20).estimate(), of(mean, mean, tested=2000).estimate()
    assert few.value == mean and 0 <= few.low <= few.high <= 1
    assert few.high - few.low > 5 * (many.high - many.low) > 0


def test_seeds_that_disagree_widen_the_interval() -> None:
    alike, apart = of(0.5, 0.5, 0.5).estimate(), of(0.3, 0.5, 0.7).estimate()
    assert apart.high - apart.low > 5 * (alike.high - alike.low)


def test_few_seeds_that_disagree_are_trusted_less_than_many() -> None:
    def width(seeds: int) -> float:
        estimate = of(*[0.45, 0.55] * seeds, tested=10**6).estimate()
        return estimate.high - estimate.low

    # By the root of their number alone it would be 4 times.
    assert width(1) > 15 * width(8)


def test_a_part_is_judged_by_what_the_clean_part_teaches() -> None:
    learned = row(of(0.9), of(0.72), floor=of(0.7), floor_name="the clean part alone")
    assert learned.estimate_protection().value == pytest.approx(90)
    # The floor is measured as well, so the interval is wider than with a certain one.
    certain = replace(learned, floor=replace(CERTAIN_ZERO, mean=0.7))
    assert learned.estimate_protection().low < certain.estimate_protection().low


@given(clean=shares, protected=shares, floor=shares, tested=st.integers(1, 500))
def test_no_accuracies_make_a_protection_beyond_its_scale(
    clean: float, protected: float, floor: float, tested: int
) -> None:
    judged = row(of(clean, tested=tested), of(protected, tested=tested), floor=of(floor, tested=9))
    estimate = judged.estimate_protection()
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 100
    assert isinstance(judged.explain_doubt(0.1), str)


@pytest.mark.parametrize(
    ("doubtful", "why"),
    [
        (row(of(0.1), of(0.1)), "learned hardly more than chance"),
        (row(of(0.05), of(0.1)), "learned hardly more than chance"),
        (row(of(0.13, tested=10**6), of(0.1)), "learned hardly more than chance"),
        (
            row(of(1.0), of(0.9), floor=of(1.0), floor_name="the clean part alone"),
            "hardly more than the clean part alone",
        ),
        (row(of(0.6), of(0.6), fitted=0.5), "robust training accuracy of only 50%"),
        (row(of(0.5, tested=12), of(0.3, tested=12)), "wider than 100 points"),
        (row(of(0.2, 0.9), of(0.5)), "may have learned no more than chance: they reached 55% ("),
    ],
)
def test_what_could_not_be_measured_gets_a_reason_and_no_number(doubtful: Row, why: str) -> None:
    assert why in doubtful.explain_doubt(0.1)
    judged = judge_rows([doubtful], 0.1)
    assert not judged.is_conclusive and judged.weakest is None and judged.standard is None
    assert judged.headline.startswith("Inconclusive: ") and why in judged.headline
    assert " % (" not in judged.headline


def test_an_adversarial_victim_that_fitted_its_pictures_counts() -> None:
    assert not row(of(0.6), of(0.6), fitted=0.6).explain_doubt(0.1)


def test_the_headline_is_the_weakest_link() -> None:
    rows = [
        row(of(0.9), of(0.18)),
        row(of(0.8), of(0.6), attack="jpeg10"),
        row(of(0.8), of(0.3), attack="gray"),
    ]
    judged = judge_rows(rows, 0.1)
    assert judged.weakest_row is rows[1]
    assert judged.headline.startswith("Protection 90 % (")
    assert "29 % (" in judged.headline and judged.headline.endswith(", against jpeg10.")


def test_a_headline_never_rests_on_a_row_in_doubt() -> None:
    rows = [row(of(0.9), of(0.2)), row(of(0.3), of(0.3), attack="at4", fitted=0.2)]
    judged = judge_rows(rows, 0.1)
    assert judged.weakest_row is rows[0]
    assert "no other attacker could be measured" in judged.headline
    assert any("at4" in reason for reason in judged.reasons)


def test_where_standard_training_cannot_be_judged_nothing_is() -> None:
    rows = [row(of(0.1), of(0.1)), row(of(0.9), of(0.3), attack="gray")]
    assert not judge_rows(rows, 0.1).is_conclusive


def test_one_attacker_alone_is_said_to_be_alone() -> None:
    assert "no other attacker was tried" in judge_rows([row(of(0.9), of(0.2))], 0.1).headline


def test_the_worst_of_several_victims_speaks_for_all() -> None:
    rows = [row(of(0.9), of(0.2)), replace(row(of(0.9), of(0.5)), victim="vgg16:1")]
    judged = judge_rows(rows, 0.1)
    assert judged.weakest_row is rows[1]
    assert judged.standard == judged.weakest


PROBE = "a linear probe of a pretrained network"


def test_a_probe_that_copies_do_not_stop_is_named_beside_standard_training() -> None:
    rows = [row(of(0.9), of(0.18)), replace(row(of(0.8), of(0.6)), title=PROBE)]
    judged = judge_rows(rows, 0.1)
    assert judged.weakest_row is rows[1]
    assert judged.headline.startswith("Protection 90 % (")
    assert "against standard training; the lowest is 29 % (" in judged.headline
    assert judged.headline.endswith(f", against {PROBE}.")


def test_where_only_a_pretrained_victim_learned_its_own_training_is_named() -> None:
    rows = [row(of(0.1), of(0.1)), replace(row(of(0.8), of(0.6)), title=PROBE)]
    judged = judge_rows(rows, 0.1)
    assert judged.is_conclusive and f"against {PROBE}" in judged.headline
    assert any("standard training" in reason for reason in judged.reasons)


def test_random_noise_that_does_as_much_is_mentioned() -> None:
    judged = judge_rows([row(of(0.9), of(0.5), random=of(0.5))], 0.1)
    assert any("random noise" in reason for reason in judged.reasons)
    assert not judge_rows([row(of(0.9), of(0.5), random=of(0.8))], 0.1).reasons


def test_an_inconclusive_verdict_says_why_first() -> None:
    assert (
        make_inconclusive("too few pictures", "more").headline == "Inconclusive: too few pictures."
    )


def test_an_attacker_that_learns_less_than_half_from_the_originals_is_no_measure() -> None:
    # Chance is 0.1, so that half of what standard training learns is 0.5.
    rows = [
        row(of(0.9), of(0.3)),
        row(of(0.45), of(0.44), attack="ueraser"),
        row(of(0.55), of(0.2), attack="gray"),
    ]
    std, ueraser, gray = compare_with_standard(rows)
    assert "reached 45%, but 90% in standard training" in ueraser.explain_doubt(0.1)
    assert not std.explain_doubt(0.1) and not gray.explain_doubt(0.1)
    judged = judge_rows([std, ueraser, gray], 0.1)
    assert judged.weakest_row == std and "not measured: ueraser" in judged.headline
    # Another kind of victim is compared with its own.
    other = replace(rows[1], victim="vgg16:0.25")
    assert not compare_with_standard([rows[0], other])[1].explain_doubt(0.1)


def test_a_limit_is_held_against_what_was_measured_alone() -> None:
    setup = VerifySetup(None, None, Provenance("tue", "8/255", "cifar10", "0.1.0"))
    standard = row(of(0.9), of(0.3))  # 75 %
    doubtful = replace(row(of(0.11), of(0.11)), title="fine-tuning", pretrained=True)
    result = summarize(judge_rows([standard, doubtful], 0.1), setup, failed=0)
    assert result.weakest is not None and "fine-tuning" in " ".join(result.reasons)
    assert not result.is_below(70) and result.is_below(80)
    nothing = summarize(judge_rows([doubtful], 0.1), setup, failed=0)
    assert nothing.weakest is None and nothing.is_below(0)
