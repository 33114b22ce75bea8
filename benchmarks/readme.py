"""Write the README's table of figures from the committed results, so that no figure is typed.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- figures: benchmarks/readme.py -->\n", "<!-- end of figures -->\n"
TITLES = {
    "protection-tiny": "ten Tiny ImageNet classes that the weights never saw",
    "protection-cifar": "CIFAR-10, on which the weights were trained",
    "protection-cifar-adversarial": "CIFAR-10",
}
ARMS = {
    "clean": "originals",
    "random": "random noise",
    "protected": "protected",
    "protected:score=0": "without the score",
}


def shown(figures: dict[str, Any] | None) -> str:
    """Return a figure in percent, with its spread where there are several seeds."""
    if figures is None:
        return "–"
    mean = f"{100 * figures['mean']:.1f}"
    if figures["n"] == 1:
        return mean
    return f"{mean} ({100 * figures['min']:.1f}–{100 * figures['max']:.1f})"


def block() -> str:
    """Return the table between the README's markers, markers included."""
    lines = [
        "| trained and tested on | size | training | " + " | ".join(ARMS.values()) + " | seeds |",
        "|" + "---|" * (4 + len(ARMS)),
    ]
    for name, title in TITLES.items():
        result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        rows = {(r["size"], r["adversary"], r["arm"]): r for r in result["summary"]}
        for size, adversary in sorted({key[:2] for key in rows}):
            training = f"adversarial, {adversary:g}/255" if adversary else "standard"
            arms = {arm: rows.get((size, adversary, arm)) for arm in ARMS}
            figures = [shown(row and row["accuracy"]) for row in arms.values()]
            seeds = max(row["accuracy"]["n"] for row in arms.values() if row)
            lines.append(f"| {title} | {size} | {training} | {' | '.join(figures)} | {seeds} |")
    return START + "\n".join(lines) + "\n" + END


def main() -> None:
    """Replace what lies between the markers."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(START)
    path.write_text(before + block() + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
