"""The code that each class gets: a class of the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tue_cli.config import METHODS
from tue_cli.dataset.discover import Item
from tue_cli.dataset.secret import Secret, keep_codes, mark_class, read_codes
from tue_cli.engine.torch import Floats
from tue_cli.errors import refuse_unless
from tue_cli.events import Event, Note
from tue_cli.protect.context import RunContext
from tue_cli.protect.labels import refuse_overflow, run_surrogate
from tue_cli.protect.request import count_clusters
from tue_cli.text import escape, format_count
from tue_cli.weights import Weights

LOOKED_AT, MOST_LOOKED_AT = 64, 2000
"""Pictures of a class that tell which codes are near to it, and at most of all classes together."""
SHARING = 3
"""A former choice stays unless more than one in so many classes would have the same code."""
TAKEN_LAST = 2
"""So many of each class's nearest codes are taken last: the class itself looks like them. Of fewer
than seven codes, fewer."""


def choose_codes(
    run: RunContext, items: Sequence[Item], *, look: bool = True
) -> Generator[Event, None, dict[str, str]]:
    """Return the code of each class: the one that was asked for, a former choice, or a new one.

    Args:
        run: the run, with the codes that former runs gave.
        items: its pictures with their classes.
        look: whether the pictures of new classes are looked at.
    """
    classes, available, asked = (
        sorted({item.label for item in items}),
        run.weights.card.classes,
        run.spec.key,
    )
    if asked is not None:
        _refuse_asked(asked, available, classes, run.weights.name)
        return dict.fromkeys(classes, asked)
    if len(classes) > len(available):
        yield Note(f"The {len(classes):,} classes share the {len(available):,} codes.")
    chosen = read_codes() if _are_names_kept(run, classes) else {}
    marks = {name: mark_class(run.secret, run.weights.sha256, name) for name in classes}
    remembered = {name: chosen[mark] for name, mark in marks.items() if mark in chosen}
    new_here = [name for name in classes if name not in run.journal.keys]
    new = [name for name in new_here if name not in remembered]
    nearness: dict[str, Floats] = {}
    if look and METHODS[run.spec.settings.method].shows_key and len(classes) > 1:
        nearness = yield from _measure_nearness(run, items, new)

    order = partial(order_codes, run.secret, available)
    codes = assign_codes(classes, available, run.journal.keys, order, remembered, nearness)
    moved = [n for n in new_here if n in remembered and codes[n] != remembered[n]]
    if moved:
        those = format_count(len(moved), "class")
        yield Note(
            f"More than a third of the classes would share a code, so {those} got another code "
            "than in an earlier folder.",
            tuple(map(escape, moved)),
        )
    return codes


def order_codes(secret: Secret, available: Sequence[str], name: str) -> list[str]:
    """Return the codes in the order in which a class of that name takes them, if free to choose."""
    return sorted(available, key=lambda code: secret.derive("code", name, code))


def record_codes(run: RunContext, codes: Mapping[str, str]) -> None:
    """Keep the choice for this output and, but for clusters, for the user's other folders."""
    run.journal.keys.update(codes)
    if run.spec.key is None and _are_names_kept(run, codes):
        marks = {mark_class(run.secret, run.weights.sha256, name): name for name in codes}
        keep_codes({mark: codes[name] for mark, name in marks.items()})


def _are_names_kept(run: RunContext, classes: Iterable[str]) -> bool:
    """Say whether a class's name means the same in other folders; a cluster's number does not."""
    clusters = run.journal.clusters
    is_gone_on_with = clusters is not None and set(classes) <= clusters.centres.keys()
    return count_clusters(run.spec.labels) is None and not is_gone_on_with


def _refuse_asked(code: str, available: Sequence[str], classes: Sequence[str], name: str) -> None:
    """Raise BadSetting where a code that was asked for is none, or there are several classes."""
    refuse_unless(
        code in available,
        f"--key must be a class of the weights {name}, not {code!r}.",
        f"Choose one of: {', '.join(available)}.",
    )
    refuse_unless(
        len(classes) <= 1,
        f"--key is for one class, but there are {len(classes)} classes.",
        "Add --labels single, or leave out --key.",
    )


def _measure_nearness(
    run: RunContext, items: Sequence[Item], new: Sequence[str]
) -> Generator[Event, None, dict[str, Floats]]:
    """Return how near each new class is to every code: (K,) by class.

    That is the mean of log p(code | picture) by the surrogate over a few of its pictures, evenly
    spread. Noise of the nearest code makes more of what is truly there; that of a far one is hardly
    found by a victim that trains in grayscale (`docs/notes.md`).
    """
    each = min(LOOKED_AT, MOST_LOOKED_AT // max(1, len(new)))
    if not new or not each:
        return {}
    yield Note(f"Assigning a code to each class, by up to {each} of its pictures.")
    by_class: dict[str, list[Item]] = {name: [] for name in new}
    for item in items:
        if item.label in by_class:
            by_class[item.label].append(item)
    few = []
    for own in by_class.values():
        few += [own[place * len(own) // each] for place in range(each)]
    seen, logits = run_surrogate(run, run.engine.logits, list(dict.fromkeys(few)))
    if not seen:
        return {}
    return average_odds([item.label for item in seen], logits, run.weights)


def average_odds(labels: Sequence[str], logits: Floats, weights: Weights) -> dict[str, Floats]:
    """Return the mean of log p(code | picture) over the pictures of each label, (K,) by label.

    Args:
        labels: of N pictures.
        logits: the surrogate's, (N, K).
        weights: whose surrogate it is.

    Raises:
        WeightsProblem: the surrogate computes numbers that are not finite.
    """
    seen = np.array(labels)
    with np.errstate(over="ignore", invalid="ignore"):
        odds = logits - logits.max(1, keepdims=True)
        odds -= np.log(np.exp(odds).sum(1, keepdims=True))
        near = {name: odds[seen == name].mean(0) for name in set(seen.tolist())}
    for values in near.values():
        refuse_overflow(values, weights)
    return near


def assign_codes(
    classes: Iterable[str],
    available: Sequence[str],
    taken: Mapping[str, str],
    order: Callable[[str], Sequence[str]],
    remembered: Mapping[str, str] | None = None,
    nearness: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, str]:
    """Class -> code. New choices use each as often as any other, as far as former ones let them.

    Args:
        classes: the names of the classes.
        available: the codes.
        taken: choices that stay, of this or of other classes.
        order: the codes as a class would like to have them, the first the most.
        remembered: choices of other folders. They stay while codes are shared evenly, or a code is
            that of at most one class in `SHARING`: a victim has only the pictures themselves to
            tell classes with the same code from each other.
        nearness: how near a class is to each code, (K,). What is neither among the `TAKEN_LAST`
            nearest nor far comes first, whatever the order; those nearest come last. Where codes
            are shared, classes that look alike get different ones.
    """
    wanted, codes = sorted(set(classes)), list(dict.fromkeys(available))
    chosen = {name: code for name, code in taken.items() if code in set(codes)}
    uses = Counter(dict.fromkeys(codes, 0))
    uses.update(chosen.values())
    every = len(chosen.keys() | set(wanted))
    most = max(-(-every // len(codes)), every // SHARING)
    for name in wanted:
        code = (remembered or {}).get(name, "")
        if name not in chosen and code in uses and uses[code] < most:
            chosen[name] = code
            uses[code] += 1
    left = [name for name in wanted if name not in chosen]
    near = nearness or {}
    for group in _group_alike(left, near, len(codes)):
        costs = np.array([_rank_codes(codes, order(name), near.get(name)) for name in group])
        chosen |= (found := _match(group, codes, uses, costs))
        uses.update(found.values())
    return {name: chosen[name] for name in wanted}


def _group_alike(
    names: Sequence[str], nearness: Mapping[str, NDArray[np.float32]], size: int
) -> Iterator[list[str]]:
    """Yield groups of at most so many classes, each of such as look alike, as far as known."""
    seen = [name for name in names if name in nearness]
    unseen = [name for name in names if name not in nearness]
    while seen:
        gaps = [float(np.abs(nearness[seen[0]] - nearness[name]).sum()) for name in seen]
        group = [seen[place] for place in np.argsort(gaps, kind="stable")[:size]]
        yield group
        seen = [name for name in seen if name not in set(group)]
    for start in range(0, len(unseen), size):
        yield unseen[start : start + size]


def _rank_codes(
    codes: Sequence[str], order: Sequence[str], near: NDArray[np.float32] | None
) -> list[int]:
    """Return the price of each code to a class: by its looks first, then by its order."""
    places = {code: place for place, code in enumerate(order)}
    tiers = np.zeros(len(codes), np.int64)
    if near is not None:
        last = min(TAKEN_LAST, (len(codes) - 1) // 3)
        by_nearness = np.argsort(-near, kind="stable")
        middle = last + -(-(len(codes) - last) // 2)
        tiers[by_nearness[middle:]] = 1
        tiers[by_nearness[:last]] = 2
    return [int(tier) * len(codes) + places[c] for tier, c in zip(tiers, codes, strict=True)]


def _match(
    group: Sequence[str], codes: Sequence[str], uses: Mapping[str, int], costs: NDArray[np.int64]
) -> dict[str, str]:
    """Return the codes of a few classes at the lowest cost of all, used as evenly as can be."""
    from scipy.optimize import linear_sum_assignment

    slots = sorted(
        (use, place)
        for place, code in enumerate(codes)
        for use in range(uses[code], uses[code] + len(group))
    )
    # Only where more uses are equal to the last one that is needed is there a choice.
    slots = [slot for slot in slots if slot[0] <= slots[len(group) - 1][0]]
    # One more use of a code weighs more than all wishes.
    price = costs.size * (int(costs.max()) + 1)
    total = costs[:, [place for _, place in slots]] + np.array([price * use for use, _ in slots])
    found = linear_sum_assignment(total)[1]
    return {name: codes[slots[slot][1]] for name, slot in zip(group, found, strict=True)}
