"""Write the figures of README and docs from the committed results, so that no figure is typed.

python -m benchmarks.readme

A block of figures stands between two markers, in whichever page it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import protection as protection_benchmark
from benchmarks import unseen as unseen_benchmark
from benchmarks import visibility as visibility_benchmark
from benchmarks.rows import RESULTS, Row, read_rows
from benchmarks.scale import write_scale, write_shards
from benchmarks.summary import format_table, summarize
from tue_cli.attacks.registry import ATTACKS
from tue_cli.config import STRENGTHS, VerifySettings
from tue_cli.protect.request import ProtectSpec
from tue_cli.weights import index

ROOT = Path(__file__).parent.parent
TITLES = {
    "protection-tiny": "ten Tiny ImageNet classes that the weights never saw",
    "protection-cifar": "CIFAR-10, on which the weights were trained",
    "protection-cifar-adversarial": "CIFAR-10",
}
ARMS = {
    "clean": "originals",
    "random": "random noise",
    "protected:keys=farthest": "copies",
    "protected:keys=in-order": "codes in order",
    "protected:keys=farthest:score=0": "`--score 0`",
}
"""What the training pictures were, and the column's title; a column nobody measured is left out.

`protection.py` makes the paper's noise, without the grayscale term.
"""


def format_figure(figures: dict[str, Any] | None) -> str:
    """Return a figure in percent, with its spread where there are several seeds."""
    if figures is None:
        return "–"
    mean = f"{100 * figures['mean']:.1f}"
    if figures["n"] == 1:
        return mean
    return f"{mean} ({100 * figures['min']:.1f}–{100 * figures['max']:.1f})"


def read_committed(name: str) -> list[Row]:
    """Return the rows of a committed results file, of each key the last."""
    return list({row["key"]: row for row in read_rows(RESULTS / f"{name}.jsonl")}.values())


def read_cells(name: str) -> dict[tuple[str, int], Row]:
    """Return a file's rows by cell and number of threads."""
    return {(row["cell"], row["hardware"]["threads"]): row for row in read_committed(name)}


def write_protection() -> str:
    """Return what the copies leave of a victim's accuracy."""
    summaries = {name: protection_benchmark.summarize_arms(read_committed(name)) for name in TITLES}
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
            figures = [format_figure(row and row["accuracy"]) for row in arms.values()]
            lines.append(f"| {title} | {size} | {training} | {' | '.join(figures)} |")
    return "\n".join(lines)


def write_speed() -> str:
    """Return what is known of speed, memory and resuming, with n and hardware."""
    rows = read_cells("speed")
    return "\n".join(
        [
            *list_engines(rows.items()),
            list_commands(rows["speed: photos", 1], rows["speed: memory", 1]),
            describe_kills(read_committed("resume")),
            describe_machine(rows["speed: photos", 1]["hardware"]),
            describe_gray(rows["speed: gray", 1]),
            describe_rem(rows["speed: rem", 1]),
        ]
    )


def list_engines(rows: Iterable[tuple[tuple[str, int], Row]]) -> list[str]:
    """Return how fast the engine is, a line for each number of threads."""
    lines = []
    for (cell, threads), row in sorted(rows, key=lambda item: item[0]):
        if cell == "speed: engine":
            rate, ratio = row["pictures_a_second"]["engine, whole step"], row["ratios"]
            surrogate = ratio["engine over plain, surrogate's term"]["median"]
            whole = ratio["engine over plain, whole step"]["median"]
            lines.append(
                f"- Engine, {threads} thread{'s' * (threads > 1)}, 10 steps: "
                f"{rate['median']:.0f} pictures per second, {whole:.1f} times the speed of a plain "
                f"loop; {surrogate:.1f} times with the surrogate term alone (n = {rate['n']})."
            )
    return lines


def list_commands(photos: Row, memory: Row) -> str:
    """Return what the command takes on a hundred photographs, and the memory for a thousand."""
    peaks = {
        title: memory["backends"][name]
        for name, title in (("onnx", "ONNX Runtime"), ("torch", "torch"))
    }
    return (
        f"- `tue protect --radius 8 --gray 0 --smooth 1` on 100 photographs of about 500 × 375: "
        f"{photos['wall_seconds']['median']:.1f} s on one thread, "
        f"{100 * photos['outside_engine_of_process']['median']:.0f} % of it outside the engine, "
        f"mostly while starting (n = {photos['wall_seconds']['n']}).\n"
        "- Peak memory of the same command for 1,000 photographs: "
        + " and ".join(
            f"{facts['peak_mib']['1000']['median']:.0f} MiB with {title} "
            f"({facts['ratio']['median']:.2f} times that for 100)"
            for title, facts in peaks.items()
        )
        + " (n = 1)."
    )


def describe_kills(rows: list[Row]) -> str:
    """Return how many runs that were killed and resumed ended as an uninterrupted one."""
    cut = [row for row in rows if row["cell"] == "resume: kill"]
    return (
        "- Killed with `kill -9` at random moments and resumed: "
        f"{sum(row['equal'] for row in cut)} of {len(cut)} outputs are equal, byte for byte, to "
        "that of an uninterrupted run."
    )


def describe_machine(hardware: dict[str, Any]) -> str:
    """Return where most of the speeds were measured."""
    return (
        f"- Hardware of the lines above: {hardware['cores']} cores of an {hardware['cpu']} "
        f"({', '.join(hardware['bfloat16_by'])}), torch {hardware['torch']}. The results record "
        "the load of the machine."
    )


def describe_gray(row: Row) -> str:
    """Return what the grayscale term takes."""
    ratio = row["ratios"]["time with grey over without"]
    return (
        "- With the grayscale term, a step of the engine takes "
        f"{ratio['median']:.2f} times as long "
        f"({ratio['min']:.2f}–{ratio['max']:.2f}, n = {ratio['n']}; an {row['hardware']['cpu']})."
    )


def describe_rem(row: Row) -> str:
    """Return how fast the noise of rem is made."""
    ratio, hardware = row["ratios"]["engine over plain, rem"], row["hardware"]
    return (
        f"- Engine, noise of `rem` in {row['settings']['noise']['steps']} steps: "
        f"{row['pictures_a_second']['engine, rem']['median']:.1f} pictures per second, "
        f"{ratio['median']:.1f} times the speed of the published loop "
        f"({ratio['min']:.1f}–{ratio['max']:.1f}, n = {ratio['n']}), on one thread of another "
        f"machine, an {hardware['cpu']} ({', '.join(hardware['bfloat16_by'])})."
    )


EARLIER = ", protected with `--radius 8 --gray 0 --smooth 1` and the least similar codes,"
"""What is said of a figure of the noise that was once the default."""


def write_verification() -> str:
    """Return what is known of `tue verify` itself, and what it said of the packaged weights."""
    rows = read_committed("verification")
    (quick,) = (row for row in rows if row["cell"] == "verify: quick")
    controls = {row["settings"]["kind"]: row for row in rows if row["cell"] == "verify: nothing"}
    lines = ["| attacker | originals | random noise | copies | protection |", "|" + "---|" * 5]
    for name, row in quick["verdict"]["attacks"].items():
        cells = [f"{100 * row[arm]:.1f}" for arm in ("clean", "random", "protected")]
        part = row["protection"]
        said = (
            f"{part['value']:.0f} % ({part['low']:.0f} to {part['high']:.0f})"
            if part
            else f"inconclusive (robust training accuracy: {100 * row['fitted']:.0f} %)"
        )
        lines.append(f"| `{name}` | {' | '.join(cells)} | {said} |")
    hardware, setup = quick["hardware"], quick["setup"]
    shown = setup["training pictures"] * int(setup["epochs"].split()[0])
    lines += [
        "",
        f"The result of `tue verify --budget quick` for {quick['settings']['pictures']} pictures "
        f"of CIFAR-10{'' if quick['settings']['gray_ratio'] else EARLIER} was: "
        f"*{quick['verdict']['headline']}* It took {quick['seconds'] / 60:.0f} minutes on "
        f"{hardware['cores']} cores of an {hardware['cpu']} (n = {quick['n']}). Victims were shown "
        f"{shown:,} pictures; today's `quick` shows them {VerifySettings().seen:,}.",
        "",
        *(
            f"- {told}: {_format_protection(controls[name]['verdict'])}."
            for name, told in CONTROLS.items()
            if name in controls
        ),
        "",
        describe_trainer(rows),
    ]
    return "\n".join(lines)


def describe_trainer(rows: list[Row]) -> str:
    """Return whether the trainer of `tue verify` is right, and how fast it is."""
    victims = [row for row in rows if row["cell"] == "verify: trainer"]
    accuracy = {
        kind: summarize(row["accuracy"] for row in victims if row["settings"]["kind"] == kind)
        for kind in ("clean", "plain loop", "random")
    }
    costs = accuracy["clean"]["mean"] - accuracy["random"]["mean"]
    speed, fewer = (
        next(
            row
            for row in rows
            if row["cell"] == "verify: throughput" and row["settings"]["adversary_steps"] == steps
        )
        for steps in (10, 5)
    )
    return (
        "The trainer of `tue verify` agrees with a plain loop that shares no code with it. Trained "
        f"on {victims[0]['settings']['pictures']} originals with the same budget, its victims "
        f"reach {100 * accuracy['clean']['mean']:.1f} %, those of the plain loop "
        f"{100 * accuracy['plain loop']['mean']:.1f} %. "
        f"Random noise costs {100 * costs:.1f} points "
        f"(n = {accuracy['clean']['n']} seeds). Adversarial training with the papers' "
        f"{speed['settings']['adversary_steps']} steps runs at "
        f"{100 * speed['ratio']['median']:.0f} % of the speed of its attack alone; with the "
        f"{fewer['settings']['adversary_steps']} steps of `quick`, at "
        f"{100 * fewer['ratio']['median']:.0f} % (n = {speed['ratio']['n']} each)."
    )


CONTROLS = {
    "plain copies": "Unprotected copies of the originals",
    "shuffled keys": "Copies with the noise of a random class for each picture",
}
"""Copies that should protect little or nothing."""


def _format_protection(facts: dict[str, Any]) -> str:
    part = facts["attacks"]["std"]["protection"]
    if part is None:
        return "nothing conclusive"
    return f"{part['value']:.0f} % protection ({part['low']:.0f} to {part['high']:.0f})"


def write_runtimes() -> str:
    """Return how ONNX Runtime's noise compares with torch's, and how soon and fast it comes."""
    cells = read_cells("runtimes")
    same, start, speed = (cells[f"runtimes: {name}", 1] for name in ("agreement", "start", "speed"))
    seconds, runtime = start["command_seconds"], speed["runtime"]
    lines = [
        "- Noise made by ONNX Runtime, compared with noise made by torch, on "
        f"{same['n']} pictures of CIFAR-10: "
        f"after one step {100 * same['one_step_equal']:.3f} % of the values are equal; after "
        f"{same['settings']['steps']} steps {100 * same['levels_within_one']:.1f} % are within one "
        f"level, and the surrogate's loss is {same['loss']['onnx_over_torch']:.3f} times that with "
        "torch.",
        "- One photograph (`--radius 8 --gray 0 --smooth 1`) of "
        f"{start['photograph'].replace('x', '×')}, from the start of the command to its end: "
        f"{seconds['onnx']['median']:.1f} s with ONNX Runtime and "
        f"{seconds['torch']['median']:.1f} s with torch (n = {seconds['onnx']['n']}).",
    ]
    widths = sorted(speed["widths"].items(), key=lambda item: int(item[0]))
    titles = {
        "torch frozen, float32": "plain torch with frozen parameters in float32",
        "torch engine, float32": "tue's torch engine in float32",
        "torch engine, bfloat16": "that engine in bfloat16",
    }
    paces = "; ".join(
        " and ".join(f"{facts['onnx_over'][name]['median']:.2f}" for _, facts in widths)
        + f" times that of {title}"
        for name, title in titles.items()
    )
    n = widths[0][1]["pictures_a_second"]["onnx, float32"]["n"]
    lines.append(
        f"- Speed of ONNX Runtime for surrogates of width {' and '.join(w for w, _ in widths)}: "
        f"{paces} (n = {n})."
    )
    hardware = speed["hardware"]
    lines.append(
        f"- Hardware: one thread of an {hardware['cpu']} that did other work too, with "
        f"{runtime['package']} {runtime['version']} on the CPU."
    )
    return "\n".join(lines)


WAYS = (
    ("", "+--smooth=1"),
    ("", "+--score=0"),
    ("+--smooth=1", "+--gray=0.5+--smooth=1", "@nearest+--smooth=1"),
)
"""Ways of making the noise that are compared side by side, as `unseen.py` names them."""


def list_conclusive(found: dict[str, Row]) -> dict[str, Row]:
    """Return the columns that say something."""
    return {name: row for name, row in found.items() if not row["doubt"]}


def format_conclusive(found: dict[str, Row]) -> str:
    """Return the lowest figure of `unseen.py`, the columns that say something as a table, and the
    names of those that do not.
    """
    sure = list_conclusive(found)
    said = [
        f"**The lowest protection: {unseen_benchmark.find_lowest(found)}.**",
        "",
        unseen_benchmark.format_columns(sure),
        "",
    ]
    if left := [name for name in found if name not in sure]:
        said += [f"Inconclusive, and therefore not in the table: {'; '.join(sorted(left))}.", ""]
    return "\n".join(said)


def write_unseen() -> str:
    """Return what every attacker learns from ten classes at a time that the weights never saw."""
    rows = read_committed("unseen")
    found = unseen_benchmark.average_columns(rows, str(index()["default"]))
    settings, hardware = rows[0]["settings"], rows[0]["hardware"]
    tens = sorted({row["settings"]["ten"] for row in rows})
    hours = sum(row["seconds"] for row in rows) / 3600
    precisions = " and ".join(sorted({row["hardware"]["dtype"] for row in rows}))
    said = [
        format_conclusive(found),
        f"The data are {len(tens)} sets of ten classes of Tiny ImageNet, with "
        f"{settings['per_class']} training pictures per class. *Size* is the width and height at "
        "which victims see the pictures. The number after a victim's name is its share of the "
        f"published width. Victims make {settings['steps']} updates with a batch size of 64. "
        "Accuracies are means over n victims; in parentheses are the lowest and the highest "
        "protection for the sets of classes. *Random noise costs*: by how many points random "
        "noise lowers the accuracy of one victim per set. "
        f"The victims of this table and the next ones took {hours:.1f} hours of one thread on two "
        f"machines with an {hardware['cpu']} that did other work too, in {precisions}.",
    ]
    return "\n".join(said)


PRETRAINED_DATA = {
    ("cifar-10", "tiny50a"): "CIFAR-10, with weights that never saw it",
    ("cifar-10", "cifar10"): "CIFAR-10, on which the weights were trained",
    ("tiny-imagenet-50b", "cifar10"): "ten classes of Tiny ImageNet, which the weights never saw",
}
"""Pictures and an arm; those that nobody measured are left out."""


def write_pretrained() -> str:
    """Return what victims that begin from ImageNet learn from copies."""
    rows = read_committed("unseen-pretrained")
    lines, lowest = [], []
    for (data, arm), title in PRETRAINED_DATA.items():
        some = [row for row in rows if row["settings"]["data"] == data]
        found = unseen_benchmark.average_columns(some, arm)
        lowest += [(row["score"], title, name) for name, row in list_conclusive(found).items()]
        for name, row in found.items():
            costs, score = unseen_benchmark.format_costs(row), unseen_benchmark.format_score(row)
            clean, copies = (f"{100 * row[arm]:.1f}" for arm in ("clean", "protected"))
            lines.append([title, name, clean, costs, copies, row["n"], score])
    settings, hardware = rows[0]["settings"], rows[0]["hardware"]
    steps = max(row["settings"]["steps"] for row in rows if row["settings"]["victim"] != "probe")
    least, where, name = min(lowest)
    head = ["pictures", "attacker, victim, size", "originals", "random noise costs", "copies"]
    return "\n".join(
        [
            f"**The lowest protection: {least:.0f} % ({name}; {where}).**",
            "",
            format_table([*head, "n", "protection"], lines),
            "",
            f"{settings['per_class']} training pictures per class; accuracies are means over n "
            "victims, tested on 100 pictures per class of CIFAR-10 or 50 of Tiny ImageNet. "
            "*Random noise costs*: by how many points it lowers the accuracy of one victim. A "
            "probe's result does not depend on a seed. The victim `pretrained` makes "
            f"{steps} updates with a batch size of 64. ({hardware['system']}, CPU, "
            f"{hardware['threads']} thread, {hardware['dtype']}.)",
        ]
    )


def write_photographs() -> str:
    """Return what victims of photograph size learn."""
    rows = read_committed("unseen-photos")
    settings = rows[0]["settings"]
    return "\n".join(
        [
            format_conclusive(unseen_benchmark.average_columns(rows, str(index()["default"]))),
            f"Photographs of 224 × 224 pixels of {settings['classes']} classes of ImageNet, "
            f"{settings['per_class']} training pictures per class, tested on 100 per class; chance "
            f"is {100 / settings['classes']:.0f} %. Victims learn by random resized crops of "
            f"{settings['size']} × {settings['size']} pixels. Accuracies are means over n victims. "
            "*Random noise costs*: by how many points random noise lowers the accuracy of one "
            f"victim. {describe_victims(rows)}",
        ]
    )


STRENGTHS_TRIED = ("std", "gray", "own-jpeg10")
"""Attackers on whom all strengths are tried."""


def collect_strengths() -> dict[str, tuple[Row, dict[str, Row]]]:
    """Return, by strength, how visible it is on photographs, and what victims learn from it."""
    rows, default = read_committed("unseen-photos"), str(index()["default"])
    seen = {
        row["settings"]["options"]: row
        for row in read_committed("visibility")
        if row["settings"]["set"] == "photographs"
    }
    found = {}
    for name in STRENGTHS:
        option = "" if name == ProtectSpec(()).strength else f"--strength {name}"
        arm = default + (option and "+" + option.replace(" ", "="))
        columns = unseen_benchmark.average_columns(rows, arm)
        learned = {column.partition(",")[0]: row for column, row in columns.items()}
        found[name] = seen[option], learned
    return found


def write_strengths() -> str:
    """Return how visible each strength is, and how well it protects."""
    lines = []
    for name, (visible, learned) in collect_strengths().items():
        settings = STRENGTHS[name]
        lines.append(
            [f"`{name}`", f"{settings.noise.radius * 255:g}", f"{settings.smooth:g}"]
            + ["{median:.1f} dB".format(**visible["psnr"])]
            + ["{median:.1f}".format(**visible["delta_e"])]
            + [
                f"{learned[attack]['score']:.0f} % (n = {learned[attack]['n']})"
                if attack in learned
                else "–"
                for attack in STRENGTHS_TRIED
            ]
        )
    titles = [f"protection: {ATTACKS[attack].title}" for attack in STRENGTHS_TRIED]
    head = ["strength", "`--radius`", "`--smooth`", "PSNR", "CIEDE2000 of the worst tile", *titles]
    return format_table(head, lines)


def write_one() -> str:
    """Return how well victims recognize a class that alone is protected."""
    rows, default = read_committed("unseen-one"), str(index()["default"])
    found = unseen_benchmark.average_columns(rows, default)
    lines = []
    for column, row in found.items():
        attack = column.partition(",")[0]
        some = {
            (own["protected_class"], own["arm"]): one
            for one in rows
            if (own := one["settings"]) and unseen_benchmark.name_column(one) == column
        }
        for name in sorted({name for name, arm in some if arm == default}):
            both = [some[name, arm] for arm in ("clean", default)]
            figures = [100 * each[part] for part in ("accuracy", "others") for each in both]
            word = name.partition("_")[2] or name
            lines.append([attack, word, *(f"{figure:.0f}" for figure in figures), ""])
        clean, copies = (f"{100 * row[arm]:.1f}" for arm in ("clean", "protected"))
        mean = [f"mean of {row['n']}", clean, copies, "", ""]
        lines.append([attack, *mean, unseen_benchmark.format_score(row)])
    settings, chance = rows[0]["settings"], 100 / unseen_benchmark.count_classes(rows[0])
    head = ["attacker", "protected class", "originals", "copies", "others, originals"]
    return "\n".join(
        [
            f"**The lowest protection: {unseen_benchmark.find_lowest(found)}.**",
            "",
            format_table([*head, "others, copies", "protection"], lines),
            "",
            f"Ten classes of Tiny ImageNet with {settings['per_class']} training pictures each, of "
            "which one is protected, by itself. *Originals* and *copies*: the recall of this class "
            "(how many of its test pictures are recognized), in percent of 50 pictures. *Others*: "
            f"the mean recall of the other classes. Chance is {chance:.0f} %. Victims are a "
            f"`{settings['victim']}` at {settings['size']} px. {describe_victims(rows)}",
        ]
    )


def write_levers() -> str:
    """Return what each way of making the noise buys, of the noise before there were strengths."""
    rows, default = read_committed("unseen-former"), str(index()["default"])
    sure = list_conclusive(unseen_benchmark.average_columns(rows, default))
    rows = [row for row in rows if unseen_benchmark.name_column(row) in sure]
    tables = [
        unseen_benchmark.format_comparison(rows, [default + way for way in ways]) for ways in WAYS
    ]
    return "\n\n".join(tables)


FLAT = {
    "cifar10": "true classes (`folders`)",
    "cifar10+--labels=single": "`single`",
    "cifar10+--labels=cluster:10": "`cluster:10`",
    "cifar10+--labels=cluster:50": "`cluster:50`",
    "cifar10+--labels=cluster:200": "`cluster:200`",
    "cifar10@content1": "the likeliest code of each picture",
    "cifar10@content3": "the third likeliest code of each picture",
    "uc+--method=uc+--labels=cluster:10": "`--method uc --labels cluster:10`",
}
"""Ways to give codes to pictures, all but the first without classes, as `unseen.py` names them."""


def write_flat() -> str:
    """Return what protects the pictures of a folder without classes from being sorted."""
    rows = read_committed("unseen-flat")
    settings = rows[0]["settings"]
    lines = []
    for arm, title in FLAT.items():
        for row in unseen_benchmark.average_columns(rows, arm).values():
            said = unseen_benchmark.format_score(row)
            copies, clean = (f"{100 * row[name]:.1f}" for name in ("protected", "clean"))
            lines.append([title, clean, copies, said, row["n"]])
    costs = next(
        row["random_costs"]
        for row in unseen_benchmark.average_columns(rows, "cifar10").values()
        if row["random_costs"] is not None
    )
    return "\n".join(
        [
            format_table(["what shares a code", "originals", "copies", "protection", "n"], lines),
            "",
            f"Ten classes of Tiny ImageNet with {settings['per_class']} training pictures each; "
            f"{unseen_benchmark.name_column(rows[0])}. Random noise costs {100 * costs:.1f} points "
            f"(n = 1). {describe_victims(rows)}",
        ]
    )


SHARED = {"cifar10": "copies", "cifar10@mixed": "copies with mixed codes"}
"""Ways in which many classes share codes."""


def write_many() -> str:
    """Return what victims learn where there are more classes than codes."""
    rows = read_committed("unseen-many")
    lines = []
    for count in sorted({unseen_benchmark.count_classes(row) for row in rows}):
        these = [row for row in rows if unseen_benchmark.count_classes(row) == count]
        sides = [unseen_benchmark.average_columns(these, arm) for arm in SHARED]
        each = these[0]["settings"]["per_class"]
        for name, first in sides[0].items():
            told = [
                f"{100 * side[name]['protected']:.1f} ({unseen_benchmark.format_score(side[name])})"
                if name in side
                else "–"
                for side in sides
            ]
            attack, clean = name.partition(",")[0], f"{100 * first['clean']:.1f}"
            lines.append([count, each, f"{100 / count:.0f}", attack, clean, *told, first["n"]])
    head = ["classes", "pictures per class", "chance", "attacker", "originals", *SHARED.values()]
    victim = rows[0]["settings"]["victim"]
    return "\n".join(
        [
            format_table([*head, "n"], lines),
            "",
            f"Victims are a `{victim}` at {rows[0]['settings']['size']} px. In parentheses: the "
            f"protection; an asterisk marks what is inconclusive. {describe_victims(rows)}",
        ]
    )


def describe_victims(rows: list[Row]) -> str:
    """Return what victims were trained on, for how long and from which seeds."""
    hours = sum(row["seconds"] for row in rows) / 3600
    hardware = rows[0]["hardware"]
    seeds = " and ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    steps = " or ".join(f"{n}" for n in sorted({row["settings"]["steps"] for row in rows}))
    return (
        f"Victims make {steps} updates with a batch size of 64, from seed {seeds}; all of them "
        f"took {hours:.1f} hours of one thread of an {hardware['cpu']} that did other work too, "
        f"in {hardware['dtype']}."
    )


def write_visibility() -> str:
    """Return how visible the noise is."""
    return "\n".join(
        [
            visibility_benchmark.format_ways(read_committed("visibility")),
            "",
            "Median, minimum and maximum. The photographs have about 500 × 375 pixels. CIEDE2000 "
            "is the mean difference of colour in the tile where the change is easiest to see, less "
            "where contrast hides it; the last columns count the copies above a limit.",
        ]
    )


def write_methods() -> str:
    """Return table 1 of `benchmarks.paper`, and at which budget it was measured."""
    folder = RESULTS / "bench-mini"
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    rows = read_committed("bench-mini/rows")
    page = (folder / "table-1-cifar-10.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("|")]
    hours = sum(row["wall_seconds"] for row in rows) / 3600
    steps, attacked = (settings[name] for name in ("victim_steps", "adversarial_steps"))
    hardware = rows[0]["hardware"]
    lines += [
        "",
        "Test accuracy in percent on clean pictures: mean and standard deviation over the seeds. "
        "The columns say what victims were trained on: originals (*clean*), random noise, or the "
        "noise of a method. The rows 2/255 and 4/255 are adversarial training with that radius. "
        "In parentheses: the robust training accuracy of an adversarially trained victim. In "
        "brackets: the paper's figure. \\* The robust training accuracy is below 50 %: the victim "
        "has learned too little for the figure to say anything about protection.",
        "",
        f"Preset `mini` on {rows[0]['pictures']} pictures of CIFAR-10: surrogates and victims are "
        f"a ResNet-18 of width {settings['width']}. Surrogates are trained for "
        f"{settings['steps']} steps, victims for {steps} ({attacked} in adversarial training), "
        f"with a batch size of {settings['batch']}. As in the papers, each class has its own code "
        "and TUE has no grayscale term. "
        f"{len(rows)} victims took {hours:.1f} hours in all, surrogates and noise not counted "
        f"({hardware['system']}, {hardware['device']}).",
    ]
    return "\n".join(lines)


HEADLINE = {
    "std": "trains as usual",
    "gray": "converts pictures to grayscale first",
    "jpeg50": "recompresses them as JPEG, quality 50",
    "jpeg10": "recompresses them as JPEG, quality 10",
    "pairs": "trains a network on copies of other pictures, to remove the noise",
}
"""Attackers that the README shows: usual ones, and those that undo most."""


def write_summary() -> str:
    """Return a few rows of `unseen`, for somebody who reads nothing else."""
    found = unseen_benchmark.average_columns(read_committed("unseen"), str(index()["default"]))
    victim = "resnet18:0.125, 32 px"
    titles = "| the attacker … | originals | copies | protection | n |"
    lines = [titles, "|" + "---|" * 5]
    for name, title in HEADLINE.items():
        row = found[f"{name}, {victim}"]
        tens = row["scores_of_tens"]
        lines.append(
            f"| {title} | {100 * row['clean']:.1f} % | {100 * row['protected']:.1f} % | "
            f"{row['score']:.0f} % ({tens['min']:.0f} to {tens['max']:.0f}) | {row['n']} |"
        )
    lines += [
        "",
        "The classifiers tell apart ten kinds of pictures (*classes*) that the weights never saw, "
        "so chance is 10 %. Accuracies are means over n classifiers. In parentheses: the lowest "
        f"and the highest protection for {tens['n']} sets of ten classes. Strong augmentation, "
        "which alters pictures at random during training, and adversarial training, which makes a "
        "classifier robust to small changes, are not in the table: classifiers as small as these "
        "learn too little with them for a conclusion. Expect both to undo most of the protection.",
        "",
        tell_photographs_and_one(),
    ]
    return "\n".join(lines)


def write_metadata() -> str:
    """Return how many differences exiftool finds between pictures and their copies."""
    rows = read_committed("metadata")
    table = [
        [f"`{row['settings']['folder']}`", row["pictures"], sum(row["refused"].values())]
        + [row["copies"], sum(row["explained"].values()), len(row["unexplained"])]
        for row in rows
    ]
    columns = ["folder", "pictures", "refused", "copies", "allowed differences", "others"]
    said = f"(exiftool {rows[0]['exiftool']}; each folder once.)"
    return "\n".join([format_table(columns, table), "", said])


def tell_photographs_and_one() -> str:
    """Return the lowest figures of photographs and of one class, in two sentences."""
    default = str(index()["default"])
    photographs, one = (
        unseen_benchmark.average_columns(read_committed(name), default)
        for name in ("unseen-photos", "unseen-one")
    )
    alone = one[next(name for name in one if name.startswith("std,"))]
    lowest = min(list_conclusive(photographs).items(), key=lambda item: item[1]["score"])
    attack = lowest[0].partition(",")[0]
    told = f"against {ATTACKS[attack].title}"
    if attack in HEADLINE:
        told = f"if the attacker {HEADLINE[attack]}"
    return (
        "With photographs (five classes, 128 pixels, random crops), the lowest protection was "
        f"{lowest[1]['score']:.0f} %, {told}. If only one of ten classes is protected, "
        f"classifiers recognize {100 * alone['protected']:.0f} % of its pictures instead of "
        f"{100 * alone['clean']:.0f} %."
    )


BLOCKS = {
    "summary": write_summary,
    "unseen": write_unseen,
    "photographs": write_photographs,
    "strengths": write_strengths,
    "pretrained": write_pretrained,
    "one": write_one,
    "levers": write_levers,
    "many": write_many,
    "flat": write_flat,
    "methods": write_methods,
    "protection": write_protection,
    "speed": write_speed,
    "verification": write_verification,
    "visibility": write_visibility,
    "runtimes": write_runtimes,
    "scale": write_scale,
    "shards": write_shards,
    "metadata": write_metadata,
}


def make_markers(name: str) -> tuple[str, str]:
    """Return what stands before and after a block in its page."""
    return f"<!-- {name}: benchmarks/readme.py -->\n", f"\n<!-- end of {name} -->\n"


def find_page(name: str) -> Path:
    """Return the one page that holds a block.

    Raises:
        SystemExit: no page holds it, or several do.
    """
    pages = [*ROOT.glob("README.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/README.md")]
    holding = [page for page in pages if make_markers(name)[0] in page.read_text(encoding="utf-8")]
    if len(holding) != 1:
        raise SystemExit(f"{len(holding)} pages hold the block {name!r}; one should.")
    return holding[0]


def main() -> None:
    """Replace what lies between each pair of markers."""
    for name, block in BLOCKS.items():
        page, (start, end) = find_page(name), make_markers(name)
        before, rest = page.read_text(encoding="utf-8").split(start)
        page.write_text(before + start + block() + end + rest.split(end)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
