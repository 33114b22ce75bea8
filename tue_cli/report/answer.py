"""The report's first screen: which attackers the copies stop, slow or do not stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tue_cli.attacks.registry import ATTACKS, WAYS
from tue_cli.report.charts import Figures, describe_interval, format_percent

STOPPED: Final = 80
"""An attacker is stopped where the whole interval of the protection lies here or above, in %."""
SLOWED: Final = 30
"""It is slowed where the interval lies here or above, and not stopped where it does not."""
GROUPS: Final = {
    "stopped": ("Stopped", f"lower end of the protection: {STOPPED} % or more"),
    "slowed": ("Slowed", f"{SLOWED} to {STOPPED} %"),
    "free": ("Not stopped", f"less than {SLOWED} %"),
}
_FILTERED: Final = {
    "jpeg10": "Compresses the pictures very strongly",
    "jpeg30": "Compresses the pictures strongly",
    "jpeg50": "Compresses the pictures",
    "jpeg75": "Compresses the pictures a little",
    "resize": "Resizes the pictures to half and back",
    "blur": "Blurs the pictures",
    "median": "Smooths out single pixels",
    "denoise": "Removes noise from the pictures",
}
PLAIN: Final = {
    "std": "Learns from the copies as they are",
    "early": "Stops learning when it is at its best",
    **{f"at{levels}": f"Learns to ignore noise up to {levels}/255" for levels in (1, 2, 3, 4)},
    "gray": "Takes the colours away",
    **_FILTERED,
    **{f"own-{name}": f"{plain}, at their own size" for name, plain in _FILTERED.items()},
    "spectrum": "Removes what all pictures of a class share",
    "pairs": "Makes copies of other pictures, and learns to undo them",
    "bits": "Leaves a few shades of each colour",
    "cutout": "Covers a part of each picture",
    "cutmix": "Puts parts of pictures into others",
    "mixup": "Blends pictures with each other",
    "ueraser": "Alters the pictures strongly at random",
    "randaugment": "Alters the pictures at random",
    "labels": "Sorts the pictures by colour, not class",
    **{f"part{part}": f"Learns from {part} % copies, the rest clean" for part in range(20, 81, 10)},
    WAYS["pretrained"]: "Trains a network that has already learned to see",
    WAYS["probe"]: "Uses a network that has learned to see, as it is",
}
"""What attackers do, for people who know nothing of training; of others, their title is told."""


def describe_answer(result: Figures) -> dict[str, Any]:
    """Return the answer; what is inconclusive carries no number."""
    conclusive = result["status"] == "conclusive"
    attacks = result["attacks"] if conclusive else ()
    sure = [attack for attack in attacks if _has_protection(attack)]
    several = len({attack["victim"] for attack in attacks}) > 1
    groups = {
        name: sorted(
            (_describe_row(attack, several) for attack in sure if _choose_group(attack) == name),
            key=lambda row: row["value"],
            reverse=True,
        )
        for name in GROUPS
    }
    unknown = [_name_attacker(attack, several) for attack in attacks if attack not in sure]
    return {
        "conclusive": conclusive,
        "text": result["headline"] if conclusive else "",
        "count": _count_groups(groups, len(unknown)) if conclusive else "Inconclusive",
        "groups": [(name, *GROUPS[name], rows) for name, rows in groups.items() if conclusive],
        "unknown": unknown,
        "reasons": [_format_sentence(reason) for reason in result.get("reasons", ())],
        "chance": format_percent(result["chance"]) if conclusive else "",
    }


def _has_protection(attack: Figures) -> bool:
    return bool(attack.get("protection")) and not attack.get("inconclusive")


def _choose_group(attack: Figures) -> str:
    """Return the group of an attacker: where the interval crosses a limit, the lower one."""
    protection = attack["protection"]
    surely = protection["value"] if protection.get("low") is None else protection["low"]
    return "stopped" if surely >= STOPPED else "slowed" if surely >= SLOWED else "free"


def _describe_row(attack: Figures, several: bool) -> dict[str, Any]:
    return {**_name_attacker(attack, several), **describe_interval(attack["protection"])}


def _name_attacker(attack: Figures, several: bool) -> dict[str, str]:
    """Return what an attacker does in plain words, and its name; its victim among `several`."""
    title = str(attack["title"])
    known = ATTACKS.get(str(attack["name"]))
    plain = PLAIN.get(str(attack["name"]) if known and known.title == title else title)
    also = [title] if plain else []
    also += [str(attack["victim"])] if several else []
    return {"plain": plain or f"{title[:1].upper()}{title[1:]}", "also": ", ".join(also)}


def _count_groups(groups: Mapping[str, Sequence[Any]], unknown: int) -> str:
    """Return how many attackers are stopped, in a sentence."""
    verbs = {"stopped": "stop", "slowed": "slow", "free": "do not stop"}
    found = [(verbs[name], len(rows)) for name, rows in groups.items() if rows]
    total = sum(count for _, count in found) + unknown
    if not found:
        return "No attacker could be measured."
    if total == 1:
        return f"The copies {found[0][0]} the one attacker that was tried."
    *first, last = [f"{verb} {count}" for verb, count in found]
    text = f"{', '.join(first)} and {last}" if first else last
    more = f"; {unknown} could not be measured" if unknown else ""
    return f"Of {total} attackers, the copies {text}{more}."


def _format_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
