"""Write the README's figures from the committed results, so that no figure is typed.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tue_cli.weights import index

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TITLES = {
    "protection-tiny": "ten Tiny ImageNet classes that the weights never saw",
    "protection-cifar": "CIFAR-10, on which the weights were trained",
    "protection-cifar-adversarial": "CIFAR-10",
}
ARMS = {
    "clean": "originals",
    "random": "random noise",
    "protected:keys=farthest": "copies",
    "protected:keys=in-order": "keys in order",
    "protected:keys=farthest:score=0": "`--score 0`",
}
"""What the training pictures were, and the column's title; a column nobody measured is left out.

`protection.py` makes the paper's noise, without a term in grey.
"""


def shown(figures: dict[str, Any] | None) -> str:
    """Return a figure in percent, with its spread where there are several seeds."""
    if figures is None:
        return "–"
    mean = f"{100 * figures['mean']:.1f}"
    if figures["n"] == 1:
        return mean
    return f"{mean} ({100 * figures['min']:.1f}–{100 * figures['max']:.1f})"


def protection() -> str:
    """Return what the copies leave of a victim's accuracy, and what making them costs."""
    summaries = {
        name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["summary"]
        for name in TITLES
    }
    measured = {row["arm"] for rows in summaries.values() for row in rows}
    columns = [arm for arm in ARMS if arm in measured]
    titles = " | ".join(ARMS[arm] for arm in columns)
    lines = [
        f"| trained and tested on | size | training | {titles} |",
        "|" + "---|" * (3 + len(columns)),
    ]
    for name, title in TITLES.items():
        rows = {(r["size"], r["adversary"], r["arm"]): r for r in summaries[name]}
        for size, adversary in sorted({key[:2] for key in rows}):
            training = f"adversarial, {adversary:g}/255" if adversary else "standard"
            arms = {arm: rows.get((size, adversary, arm)) for arm in columns}
            figures = [shown(row and row["accuracy"]) for row in arms.values()]
            lines.append(f"| {title} | {size} | {training} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", *speeds()])


def speeds() -> list[str]:
    """Return what is known of speed, memory and resuming, as a list; n and hardware with it."""
    result = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    cells = {(c["settings"]["section"], c["settings"]["threads"]): c for c in result["cells"]}
    lines = []
    for (section, threads), cell in sorted(cells.items()):
        if section == "engine":
            rate, ratio = cell["pictures_a_second"]["engine, whole step"], cell["ratios"]
            surrogate = ratio["engine over plain, surrogate's term"]["median"]
            whole = ratio["engine over plain, whole step"]["median"]
            lines.append(
                f"- Engine, {threads} thread{'s' * (threads > 1)}, 10 steps: "
                f"{rate['median']:.0f} pictures a second; {surrogate:.1f} times the plain loop for "
                f"the surrogate's term, {whole:.1f} times for the paper's whole step "
                f"(n = {rate['n']})."
            )
    photos, memory = cells["photos", 1], cells["memory", 1]
    lines.append(
        f"- `tue protect --gray 0 --smooth 1` on 100 photographs of about 500 × 375: "
        f"{photos['wall_seconds']['median']:.1f} s on one thread, of which "
        f"{100 * photos['outside_engine_of_process']['median']:.0f} % outside the engine, most of "
        f"it starting up (n = {photos['wall_seconds']['n']})."
    )
    peaks = {
        title: memory["backends"][name]
        for name, title in (("onnx", "ONNX Runtime"), ("torch", "torch"))
    }
    lines.append(
        "- Peak memory for 1,000 photographs, likewise: "
        + " and ".join(
            f"{facts['peak_mib']['1000']['median']:.0f} MiB with {title}, "
            f"{facts['ratio']['median']:.2f} times that for 100"
            for title, facts in peaks.items()
        )
        + " (n = 1)."
    )
    resume = json.loads((RESULTS / "resume.json").read_text(encoding="utf-8"))
    cut = [cell for cell in resume["cells"] if cell["equal"]]
    lines.append(
        f"- Killed with `kill -9` at random moments and resumed: {len(cut)} of "
        f"{len(resume['cells'])} trees equal the uninterrupted one, byte for byte."
    )
    hardware = photos["hardware"]
    lines.append(
        f"- All on {hardware['cores']} cores of an {hardware['cpu']} "
        f"({', '.join(hardware['bfloat16_by'])}), torch {hardware['torch']}; how busy the machine "
        "was is in the results."
    )
    gray, rem = cells["gray", 1], cells["rem", 1]
    ratio = gray["ratios"]["time with grey over without"]
    lines.append(
        f"- The term in grey makes the engine's step {ratio['median']:.2f} times as long "
        f"({ratio['min']:.2f}–{ratio['max']:.2f}, n = {ratio['n']}; an {gray['hardware']['cpu']})."
    )
    ratio, hardware = rem["ratios"]["engine over plain, rem"], rem["hardware"]
    lines.append(
        f"- Noise of `rem` in {rem['settings']['noise']['steps']} steps: "
        f"{rem['pictures_a_second']['engine, rem']['median']:.1f} pictures a second, "
        f"{ratio['median']:.1f} times its published loop written plainly "
        f"({ratio['min']:.1f}–{ratio['max']:.1f}, n = {ratio['n']}), on one thread of another "
        f"machine, an {hardware['cpu']} ({', '.join(hardware['bfloat16_by'])})."
    )
    return lines


EARLIER = ", with `--gray 0 --smooth 1` and the farthest keys"
"""What is said of a figure of the noise that was the default before."""


def verification() -> str:
    """Return what is known of `tue verify` itself, and what it said of the packaged weights."""
    result = json.loads((RESULTS / "verification.json").read_text(encoding="utf-8"))
    quick, trainer = result["quick"], result["trainer"]
    speed, fewer = result["throughput"], result["throughput_of_quick"]
    lines = ["| attacker | originals | random noise | copies | protection |", "|" + "---|" * 5]
    for name, row in quick["attacks"].items():
        cells = [f"{100 * row[arm]:.1f}" for arm in ("clean", "random", "protected")]
        part = row["protection"]
        said = (
            f"{part['value']:.0f} % ({part['low']:.0f} to {part['high']:.0f})"
            if part
            else (f"inconclusive: {row['inconclusive']}")
        )
        lines.append(f"| `{name}` | {' | '.join(cells)} | {said} |")
    hardware = result["quick_hardware"]
    lines += [
        "",
        f"What `tue verify --budget quick` said of {quick['pictures']} pictures of CIFAR-10"
        f"{'' if 'gray_ratio' in quick else EARLIER}, in "
        f"{quick['seconds']['median'] / 60:.0f} minutes, on {hardware['cores']} cores of an "
        f"{hardware['cpu']}: *{quick['headline']}* (n = {quick['runs']}.)",
        *(
            f"{told}: {_protection(result[name])}."
            for name, told in CONTROLS.items()
            if name in result
        ),
        "",
        f"Its trainer is right: on {trainer['pictures']} pictures its control reaches "
        f"{100 * trainer['accuracy']['clean']['mean']:.1f} %, a plain loop of other code "
        f"{100 * trainer['accuracy']['plain loop']['mean']:.1f} % at the same budget, and "
        f"random noise costs {trainer['random_costs_points']:.1f} points "
        f"(n = {trainer['accuracy']['clean']['n']} seeds). Adversarial training with the papers' "
        f"{speed['adversary_steps']} steps runs at {100 * speed['ratio']['median']:.0f} % of the "
        f"bare attack's pace, with the {fewer['adversary_steps']} of `quick` at "
        f"{100 * fewer['ratio']['median']:.0f} % (n = {speed['ratio']['n']} each).",
    ]
    return "\n".join(lines)


CONTROLS = {
    "plain_copies": "What it says of plain copies of the originals",
    "shuffled_keys": "And of copies of which each has the noise of a random class",
}
"""Copies that protect little or nothing."""


def _protection(facts: dict[str, Any]) -> str:
    part = facts["attacks"]["std"]["protection"]
    if part is None:
        return "nothing conclusive"
    return f"{part['value']:.0f} % protection ({part['low']:.0f} to {part['high']:.0f})"


def runtimes() -> str:
    """Return how ONNX Runtime's noise compares with torch's, and how soon and fast it comes."""
    result = json.loads((RESULTS / "runtimes.json").read_text(encoding="utf-8"))
    cells = {(c["settings"]["section"], c["hardware"]["threads"]): c for c in result["cells"]}
    same, start, speed = (cells[name, 1] for name in ("agreement", "start", "speed"))
    seconds = start["seconds"]
    lines = [
        f"- ONNX Runtime's noise, on {same['pictures']} pictures of CIFAR-10: after one step "
        f"{100 * same['one_step_equal']:.3f} % of it is torch's; after "
        f"{same['settings']['steps']} steps {100 * same['levels_within_one']:.1f} % is within one "
        f"level, and the surrogate's loss is {same['loss']['onnx_over_torch']:.3f} times torch's.",
        f"- One photograph (`--gray 0 --smooth 1`) of {start['photograph'].replace('x', '×')}, "
        f"from the start of the command to its end: {seconds['onnx']['median']:.1f} s with ONNX "
        f"Runtime, {seconds['torch']['median']:.1f} s with torch (n = {seconds['onnx']['n']}).",
    ]
    widths = sorted(speed["widths"].items(), key=lambda item: int(item[0]))
    titles = {
        "torch frozen, float32": "torch as it comes, with frozen parameters, in float32",
        "torch engine, float32": "this tool's torch engine in float32",
        "torch engine, bfloat16": "the same in bfloat16",
    }
    paces = "; ".join(
        ", ".join(f"{facts['onnx_over'][name]['median']:.2f}" for _, facts in widths)
        + f" times that of {title}"
        for name, title in titles.items()
    )
    n = widths[0][1]["pictures_a_second"]["onnx, float32"]["n"]
    lines.append(
        f"- ONNX Runtime's pace for surrogates of width {', '.join(w for w, _ in widths)}: {paces} "
        f"(n = {n})."
    )
    hardware = speed["hardware"]
    lines.append(
        f"- On one thread of an {hardware['cpu']}, {result['cells'][0]['runtime']['package']} "
        f"{result['cells'][0]['runtime']['version']} on the CPU, beside other work."
    )
    return "\n".join(lines)


WAYS = (
    ("", "+--smooth=1"),
    ("", "+--score=0"),
    ("+--smooth=1", "+--gray=0.5+--smooth=1", "@nearest+--smooth=1"),
)
"""Ways of making the noise that are compared side by side, as `unseen.py` names them."""


def unseen() -> str:
    """Return what every attacker learns from ten classes at a time that the weights never saw."""
    import unseen as benchmark

    cells = json.loads((RESULTS / "unseen.json").read_text(encoding="utf-8"))["cells"]
    found = benchmark.columns(cells, str(index()["default"]))
    settings, hardware = cells[0]["settings"], cells[0]["hardware"]
    tens = sorted({cell["settings"]["ten"] for cell in cells})
    hours = sum(cell["seconds"] for cell in cells) / 3600
    precisions = " and ".join(sorted({cell["hardware"]["dtype"] for cell in cells}))
    said = [
        benchmark.tabled(found),
        "",
        f"The lowest that says something: {benchmark.lowest(found)}. {len(tens)} tens of Tiny "
        f"ImageNet, {settings['per_class']} training pictures a class; behind a victim stands the "
        f"share of the published width. Standard victims make {settings['steps']} updates of 64 "
        "pictures. Accuracies are means over n victims, in brackets the worse ten's score and the "
        "better one's. *Random costs*: points that random noise takes from the originals' "
        "accuracy, of one victim. *Knew attacked*: the least that an adversarial victim, on "
        "originals or copies, knew of its own attacked pictures. A score with * says nothing: its "
        "victims had learned too little. All victims of this table and the next took "
        f"{hours:.1f} hours of one thread of two machines with an {hardware['cpu']}, beside other "
        f"work, in {precisions}.",
    ]
    return "\n".join(said)


def levers() -> str:
    """Return what each way of making the noise buys."""
    import unseen as benchmark

    cells = json.loads((RESULTS / "unseen.json").read_text(encoding="utf-8"))["cells"]
    default = str(index()["default"])
    tables = [benchmark.compared(cells, [default + way for way in ways]) for ways in WAYS]
    return "\n\n".join(tables)


def visibility() -> str:
    """Return how visible the noise is, and where."""
    import visibility as benchmark

    cells = json.loads((RESULTS / "visibility.json").read_text(encoding="utf-8"))["cells"]
    return "\n".join(
        [
            benchmark.tabled(cells),
            "",
            f"{cells[0]['pictures']} photographs of about 500 × 375: medians, and the least and "
            "the most. *Smooth* and *rough*: mean change of a pixel, in levels of 255, where the "
            "picture, as protecting judges it, hides less than a quarter of the noise and where it "
            "hides all.",
        ]
    )


def methods() -> str:
    """Return table 1 of `tue bench`, and at which budget it was measured."""
    folder = RESULTS / "bench-mini"
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    cells = json.loads((folder / "table-1-cifar-10.json").read_text(encoding="utf-8"))["cells"]
    known = [cell["result"] for cell in cells if cell["result"]]
    _, _, *lines = (folder / "table-1-cifar-10.md").read_text(encoding="utf-8").splitlines()
    runs = [run for result in known for run in result["runs"].values()]
    hours = sum(run["wall_seconds"] for run in runs) / 3600
    steps, attacked = (settings[name] for name in ("victim_steps", "adversarial_steps"))
    lines += [
        "",
        f"`tue bench --preset mini` on {known[0]['data']['pictures']} pictures of CIFAR-10: "
        f"surrogates and victims are a ResNet-18 of width {settings['width']}, surrogates trained "
        f"for {settings['steps']} steps, victims for {steps} ({attacked} against an adversary), "
        f"{settings['batch']} pictures each. Every class has its own key, and TUE no term in "
        "grey, as in the papers. "
        f"{len(runs)} victims took {hours:.1f} hours in all, surrogates and noise not counted "
        f"({known[0]['hardware']}).",
    ]
    return "\n".join(lines)


BLOCKS = {
    "unseen": unseen,
    "levers": levers,
    "methods": methods,
    "protection": protection,
    "verification": verification,
    "visibility": visibility,
    "runtimes": runtimes,
}


def markers(name: str) -> tuple[str, str]:
    """Return what stands before and after a block in the README."""
    return f"<!-- {name}: benchmarks/readme.py -->\n", f"\n<!-- end of {name} -->\n"


def main() -> None:
    """Replace what lies between each pair of markers."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, block in BLOCKS.items():
        start, end = markers(name)
        before, rest = text.split(start)
        text = before + start + block() + end + rest.split(end)[1]
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
