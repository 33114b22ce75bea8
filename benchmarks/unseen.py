"""Does the protection hold on classes, sizes and attackers that the weights never met?

    python -m benchmarks.unseen --data DIR/tiny-imagenet-50b [--arms ARM,...] [--columns COLUMN,...]

Ten classes at a time (`--classes`: another number; `--tens`: which tens, by name) are protected by
the `tue protect` command, victims of `tue verify` are trained on the originals, on random noise and
on the copies, and tested on DIR/val. `--data` may be given several times: the classes of all are
taken together. Weights whose training saw any of these classes prove nothing here: those of
CIFAR-10 and of tiny-imagenet-50a saw none.

An arm is a way of making copies, WEIGHTS[@KEYS][+OPTION of tue protect]..., as in `cifar10`,
`cifar10@farthest` or `cifar10+--score=0`; what is not said is as the command has it by default, and
weights of your own go by the name of their file in the folder TUE_WEIGHTS. KEYS says which codes:
`farthest` or `nearest`: to the pictures of all classes together, by the surrogate; `mixed`: a code
is the mean of two; `content1`: each picture, whatever its class, has the code that the surrogate
finds likeliest in it, with `content2` the second likeliest, and so on.

A column is an attacker, ATTACK[/SIZE][/NET[:SHARE]][/one], as in `std/64` or `gray/vgg16`. NET may
also be `pretrained` or `probe`, with the extra `pretrained`; they learned from ImageNet, which has
all classes of Tiny ImageNet. From 96 pixels, victims from fresh weights learn by random resized
crops, as those of `tue verify` do from photographs. With `one`, only one class of a ten is
protected, the one whose number is the seed, and nothing else is given to `tue protect`; the
accuracy is the recall of this class, as `tue verify --background` measures it. The attacker `pairs`
learns from pictures of `--others`, a folder of files or of folders with files.

A column's score is (clean - protected) / (clean - chance), of accuracies averaged over tens and
seeds; where half is protected, what the clean half alone teaches stands in the place of chance. The
lowest column is the figure to raise and is printed last. A column says nothing, and is marked *, by
the rules of `tue verify`: where the originals teach hardly more than is there anyhow, or less than
half of what they teach in standard training, or where adversarial victims, on originals or copies,
do not know half of their own attacked pictures. Victims as small as these learn too little in
adversarial training, and strong augmentation takes long, so `at2`, `ueraser` and the like are tried
only where they are named. Random noise is tried on the first ten, with seed 0. `--controls` leaves
out controls.

Finished victims are kept, and those on the originals serve every arm; what was measured with
another tue is counted, and measured again once the results file is removed. In a minute, to try it:
`--per-class 20 --seen 300 --seeds 0 --columns std,gray --results DIR`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from benchmarks import script
from benchmarks.codes import mix_codes, protect_by_content
from benchmarks.command import protect_classes
from benchmarks.rows import Row, Rows, hash_sources, make_key
from benchmarks.summary import format_table, summarize
from benchmarks.victims import measure_victim
from tue_cli.attacks import filters
from tue_cli.attacks.filters import Levels
from tue_cli.attacks.registry import ATTACKS, parse_attacks
from tue_cli.attacks.restore import FEWEST_PICTURES, MOST_PICTURES, Recipe
from tue_cli.config import ProtectSettings, VerifySettings, VictimSettings
from tue_cli.dataset.discover import normalize_name
from tue_cli.dataset.manifest import read_manifest
from tue_cli.engine.torch import ComputeDevice, choose_device
from tue_cli.events import Failed
from tue_cli.train.data import load_images
from tue_cli.verify.dataset import (
    CROPPED_FROM,
    OwnSize,
    VictimDataset,
    load_victim_dataset,
    make_form,
)
from tue_cli.verify.pairs import list_clean_images, pair_copies
from tue_cli.verify.pretrained import identify_victim
from tue_cli.verify.request import format_victim, parse_victims
from tue_cli.verify.restored import Learned
from tue_cli.verify.stats import FITTED, LEARNED, TAUGHT
from tue_cli.verify.trials import build_groups
from tue_cli.weights import load

COLUMNS = "std,gray,jpeg10,jpeg50"
CONTROLS = ("clean", "random", "floor")
"""Arms without weights; `floor` is the clean half alone, where half is protected."""
TEN = 10
"""Classes that are told apart, where rows do not say."""
RADIUS = round(255 * ProtectSettings().noise.radius)
"""Of the random noise, in levels: that of the defaults."""

Kept = dict[str, dict[tuple[int, int], Row]]
"""The rows of a column: by arm, by ten and seed."""


class Column(NamedTuple):
    """Who learns, by which training, from pictures of which size."""

    attack: str
    size: int
    victim: VictimSettings
    one: bool = False
    """Only one class is protected, and the accuracy is its recall."""

    @property
    def needs_files(self) -> bool:
        """Whether victims learn from files as in `tue verify`, and not from squares in memory."""
        is_photograph = self.size >= CROPPED_FROM and not self.victim.start
        return self.one or is_photograph or ATTACKS[self.attack].own_size


def parse_column(text: str, victim: str) -> Column:
    """Read ATTACK[/SIZE][/NET[:SHARE]][/one]; a net without its share has that of `victim`."""
    attack, *more = text.split("/")
    sizes = [int(word) for word in more if word.isdigit()]
    nets = [word for word in more if not word.isdigit() and word != "one"]
    if len(sizes) > 1 or len(nets) > 1:
        raise SystemExit(f"{text!r} is no column: write ATTACK[/SIZE][/NET[:SHARE]][/one].")
    net = nets[0] if nets else victim
    (one,) = parse_victims(net)
    if not one.start and ":" not in net:
        (one,) = parse_victims(f"{net}:{victim.partition(':')[2]}")
    size, known = sizes[0] if sizes else 32, parse_attacks([attack])[-1]
    if "one" in more and ATTACKS[known].other_labels:
        raise SystemExit(f"{text!r} cannot be: with other labels, one class is no class.")
    return Column(known, size, identify_victim(one), "one" in more)


class Way(NamedTuple):
    """A way of making copies, read from an arm."""

    weights: str
    keys: str
    options: tuple[str, ...]


def parse_way(arm: str) -> Way:
    """Read WEIGHTS[@KEYS][+OPTION]..."""
    named, *options = arm.split("+")
    weights, _, keys = named.partition("@")
    known = ("", "nearest", "farthest", "mixed")
    if not weights or weights in CONTROLS or not (keys in known or find_rank(keys)):
        raise SystemExit(
            f"{arm!r} is no arm: write WEIGHTS[@nearest|@farthest|@mixed|@contentN][+OPTION]..."
        )
    return Way(weights, keys, tuple(options))


def find_rank(keys: str) -> int:
    """Return N of `contentN`, or 0."""
    kind, _, number = keys.partition("content")
    return int(number) if not kind and number.isdigit() else 0


def name_data(args: argparse.Namespace) -> str:
    """Return the name of the folders of data, as rows tell it."""
    return "+".join(folder.resolve().name for folder in args.data)


def copy_ten(number: int, args: argparse.Namespace) -> tuple[Path, Path]:
    """Copy the classes of a ten below the work folder, so many training pictures of each; return
    train and test.
    """
    folders = {path.name: data for data in args.data for path in (data / "train").iterdir()}
    classes = sorted(folders)[args.classes * number : args.classes * (number + 1)]
    if len(classes) < args.classes:
        raise SystemExit(f"{name_data(args)} has no {args.classes} classes number {number}.")
    place = args.work / f"{name_data(args)}-{args.classes}-{number}-{args.per_class}"
    for name in classes:
        data = folders[name]
        part = next(part for part in ("val", "test") if (data / part).is_dir())
        for kind, as_kind, most in (("train", "train", args.per_class), (part, "test", None)):
            target = place / as_kind / name
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted((data / kind / name).iterdir())[:most]:
                if not (target / path.name).exists():
                    shutil.copy2(path, place / "part")
                    (place / "part").replace(target / path.name)
    return place / "train", place / "test"


def protect_ten(source: Path, arm: str, args: argparse.Namespace, mine: str = "") -> Path:
    """Protect the classes of a ten as an arm says, or one of them alone, named `mine`; a second
    call of the same tue finds it done.
    """
    way = parse_way(arm)
    weights, keys, rank = way.weights, way.keys, find_rank(way.keys)
    if mine and keys not in ("", "mixed"):
        raise SystemExit(f"{arm!r} needs several classes, and only one is protected.")
    told = {"arm": arm, "weights": load(weights).sha256, "sources": hash_sources()}
    parts = (source.name, mine, make_key(told)[:12])
    output = source.with_name("-".join(part for part in parts if part))
    if keys == "mixed":
        weights = str(mix_codes(load(weights), args.work / f"{weights}-mixed.safetensors"))
        keys = ""
    options = ["--backend", "torch", *way.options]
    how = {"device": args.device, "threads": args.threads, "options": options}
    if rank:
        protect_by_content(source, output, rank=rank, weights=weights, **how)
    else:
        protect_classes(source / mine, output, weights=weights, keys=keys, **how)
    return output


class Ten:
    """Some classes: their originals, random noise and copies, each at every size, read once."""

    def __init__(self, number: int, args: argparse.Namespace) -> None:
        """`number` says which ten."""
        self._threads, self._args = args.threads, args
        self._learn = cache(self._plan_learning)
        self._source, self._held = copy_ten(number, args)
        self._read = cache(self._read_folder)
        self._load = cache(self._load_files)
        self._copies = cache(lambda arm, mine="": protect_ten(self._source, arm, args, mine))

    def name_class(self, number: int) -> str:
        """Return the name of a class; after the last one comes the first again."""
        names = sorted(path.name for path in self._source.iterdir())
        return names[number % len(names)]

    def make_arms(self, arm: str, column: Column, mine: str = "") -> VictimDataset:
        """Return what victims of an arm, or of a control, are trained and tested on.

        Where `mine` names a class, only this one is protected and tested.
        """
        if column.needs_files:
            arms = self._load("" if arm in CONTROLS else arm, column.size, mine)
        else:
            arms = self._make_squares(arm, column.size)
        return (
            replace(arms, restore=self._learn(column)) if column.attack == filters.LEARNED else arms
        )

    def _plan_learning(self, column: Column) -> Learned:
        """Return what the attacker `pairs` learns with the weights of the first arm, or tue's."""
        args = self._args
        files = sorted(path for path in (args.others or Path()).rglob("*") if path.is_file())
        if args.others is None or len(files) < FEWEST_PICTURES:
            raise SystemExit(
                f"{filters.LEARNED} needs {FEWEST_PICTURES} pictures or more in --others."
            )
        most = min(len(files), MOST_PICTURES)
        files = [files[number * len(files) // most] for number in range(most)]
        first = parse_way(args.arms.split(",")[0]).weights if args.arms else None
        recipe = Recipe(ProtectSettings(), load(first), choose_device(args.device))
        form = make_form(column.size, 0.0, 0)
        if not column.needs_files:
            form = OwnSize((), column.size, False, 0.0, 0)
        return Learned(tuple(files), form.resize, recipe, 0)

    def _read_folder(self, folder: Path, size: int) -> tuple[tuple[str, ...], Levels, Any]:
        classes, pictures, failed = load_images(folder, size)
        _refuse_failures(failed)
        return tuple(classes), pictures.pixels.numpy(), pictures.labels.numpy()

    def _make_squares(self, arm: str, size: int) -> VictimDataset:
        """Return an arm of whole pictures, resized to squares when they are read."""
        classes, clean, labels = self._read(self._source, size)
        _, test, test_labels = self._read(self._held, size)
        protected = random = clean
        if arm == "random":
            noise = np.random.default_rng(0).integers(-RADIUS, RADIUS + 1, clean.shape, np.int16)
            random = (clean + noise).clip(0, 255).astype(np.uint8)
        elif arm not in CONTROLS:
            protected = self._read(self._copies(arm), size)[1]
        return VictimDataset(classes, clean, protected, random, labels, test, test_labels)

    def _load_files(self, arm: str, size: int, mine: str) -> VictimDataset:
        """Return all arms as `tue verify` loads them; without an arm, the originals are the copies.

        That is so for the controls, whose random noise is added to what has a copy.
        """
        failed: list[Failed] = []
        label = normalize_name(mine)
        with ThreadPoolExecutor(self._threads) as pool:
            pairs = list_clean_images(self._source, pool, classes=True)
            copies = {pair.original: pair.original for pair in pairs if label in ("", pair.label)}
            if arm:
                folder, source = self._copies(arm, mine), self._source / mine
                made, failed, _ = pair_copies(folder, source, read_manifest(folder), pool)
                copies = {pair.original: pair.copy or pair.original for pair in made}
            arms = load_victim_dataset(
                [replace(pair, copy=copies.get(pair.original)) for pair in pairs],
                list_clean_images(self._held, pool, classes=True),
                size=size,
                radius=RADIUS / 255,
                seed=0,
                pool=pool,
                failed=failed.append,
            )
        _refuse_failures(failed)
        return arms.focus(label) if mine else arms


def _refuse_failures(failed: Sequence[Failed]) -> None:
    if failed:
        raise SystemExit(f"{len(failed)} pictures cannot be read, such as {failed[0].path}.")


def score(clean: float, protected: float, floor: float) -> float:
    """Return how much of what could be learned was not, in percent; 0 where nothing could be."""
    return 100 * (clean - protected) / (clean - floor) if clean > floor else 0.0


def count_classes(row: Row) -> int:
    """Return how many classes the victim of a row tells apart."""
    return int(row["settings"].get("classes", TEN))


def name_column(row: Row) -> str:
    """Return the column of a row, as tables name it."""
    settings = row["settings"]
    one = ", one class" if "protected_class" in settings else ""
    return f"{settings['attack']}, {settings['victim']}, {settings['size']} px{one}"


def average_columns(rows: Sequence[Row], arm: str) -> dict[str, Row]:
    """Return each column's accuracies of an arm, means over tens and seeds, and its score.

    The originals' are of the same tens and seeds. If victims of a column were trained for several
    numbers of steps, the longest training counts. Columns that say nothing come last, before them
    the lowest.
    """
    same = ("data", "classes", "per_class", "adversary_steps")
    if len({tuple(row["settings"].get(name) for name in same) for row in rows}) > 1:
        raise SystemExit("The results are of several budgets; choose another --name.")
    chance = 1 / count_classes(rows[0]) if rows else 0.0
    longest = {name_column(row): 0 for row in rows}
    for row in rows:
        longest[name_column(row)] = max(longest[name_column(row)], row["settings"]["steps"])
    found: dict[str, Kept] = {}
    for row in rows:
        settings = row["settings"]
        is_longest = settings["steps"] == longest[name_column(row)]
        if is_longest and settings["arm"] in (*CONTROLS, arm):
            arms = found.setdefault(name_column(row), {})
            place = (settings["ten"], settings["seed"])
            arms.setdefault(settings["arm"], {})[place] = row
    result: dict[str, Row] = {}
    for name, arms in found.items():
        places = sorted(set(arms.get(arm, {})) & set(arms.get("clean", {})))
        if not places:
            continue
        scores = []
        for ten in dict.fromkeys(ten for ten, _ in places):
            these = [place for place in places if place[0] == ten]
            scores.append(score(*_average(arms, arm, these, chance)))
        clean, protected, floor = _average(arms, arm, places, chance)
        victims = [arms[kind][place] for kind in ("clean", arm) for place in places]
        known = [row["robust_train"] for row in victims if row["robust_train"] is not None]
        random = arms.get("random", {})
        costs = [
            arms["clean"][place]["accuracy"] - random[place]["accuracy"]
            for place in places
            if place in random
        ]
        taught = clean - floor >= LEARNED * (1 - floor)
        result[name] = {
            "clean": clean,
            "random_costs": fmean(costs) if costs else None,
            "protected": protected,
            "floor": floor,
            "n": len(places),
            "score": round(score(clean, protected, floor), 2),
            "scores_of_tens": summarize(scores, 1),
            "robust_train": min(known, default=None),
            "doubt": not taught or min(known, default=1.0) < chance + FITTED * (1 - chance),
        }
    for name, row in result.items():
        standard = result.get(f"std,{name.partition(',')[2]}", row)["clean"]
        row["doubt"] |= row["clean"] - chance < TAUGHT * (standard - chance)
    order = sorted(result, key=lambda name: (result[name]["doubt"], -result[name]["score"], name))
    return {name: result[name] for name in order}


def _average(
    arms: Kept,
    arm: str,
    places: Sequence[tuple[int, int]],
    chance: float,
) -> tuple[float, float, float]:
    """Return clean, protected and floor of these tens and seeds."""
    clean, protected = (
        fmean(arms[kind][place]["accuracy"] for place in places) for kind in ("clean", arm)
    )
    floors = [arms["floor"][place]["accuracy"] for place in places] if "floor" in arms else []
    return clean, protected, fmean(floors) if floors else chance


def format_score(row: Row) -> str:
    """Return a score with its mark, or nothing where victims were taught nothing."""
    if row["clean"] <= row["floor"]:
        return "–*"
    return f"{row['score']:.0f} %{'*' if row['doubt'] else ''}"


def format_columns(found: dict[str, Row]) -> str:
    """Return the columns of one arm as a Markdown table, the lowest that says something last but
    for those that say nothing.
    """
    has_adversaries = any(row["robust_train"] is not None for row in found.values())
    lines = []
    for name, row in found.items():
        of = row["scores_of_tens"]
        spread = (
            f" ({of['min']:.0f} to {of['max']:.0f})"
            if of["n"] > 1 and "–" not in format_score(row)
            else ""
        )
        knew = "" if row["robust_train"] is None else f"{100 * row['robust_train']:.0f}"
        lines.append(
            [
                name,
                f"{100 * row['clean']:.1f}",
                format_costs(row),
                f"{100 * row['protected']:.1f}",
                *([knew] if has_adversaries else []),
                row["n"],
                format_score(row) + spread,
            ]
        )
    head = ["attacker, victim, size", "originals", "random noise costs", "copies"]
    head += ["robust training accuracy"] if has_adversaries else []
    return format_table([*head, "n", "protection"], lines)


def format_costs(row: Row) -> str:
    """Return by how many points random noise lowers the accuracy, where that was tried."""
    return "–" if row["random_costs"] is None else f"{100 * row['random_costs']:.1f}"


def format_comparison(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return several arms side by side, of the columns, tens and seeds that all of them have."""
    have: dict[tuple[str, int, int], set[str]] = {}
    for row in rows:
        settings = row["settings"]
        place = (name_column(row), settings["ten"], settings["seed"])
        have.setdefault(place, set()).add(settings["arm"])
    shared = {place for place, known in have.items() if known >= {*arms, "clean"}}
    if not shared:
        raise SystemExit(f"No column has all of {', '.join(arms)}.")
    kept = [
        row
        for row in rows
        if (name_column(row), row["settings"]["ten"], row["settings"]["seed"]) in shared
    ]
    sides = {arm: average_columns(kept, arm) for arm in arms}
    first = sides[arms[0]]
    lines = [
        [
            name,
            f"{100 * row['clean']:.1f}",
            *(
                f"{100 * by[name]['protected']:.1f} ({format_score(by[name])})"
                for by in sides.values()
            ),
            row["n"],
        ]
        for name, row in first.items()
    ]
    titles = [f"`{arm}`" for arm in sides]
    return format_table(["attacker, victim, size", "originals", *titles, "n"], lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = script.make_parser(__doc__, "unseen")
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        action="append",
        help="a folder with train/CLASS/ and val/CLASS/; may be given several times",
    )
    add("--arms", default="cifar10", help="WEIGHTS[@KEYS][+OPTION]..., with commas between")
    add("--columns", default=COLUMNS, help="ATTACK[/SIZE][/NET:SHARE][/one], with commas between")
    add("--classes", type=int, default=TEN, help="that a ten has")
    add("--tens", default="0,1", help="which tens of classes, by name")
    add("--controls", default=",".join(CONTROLS), help="with commas between")
    add("--victim", default="resnet18:0.25", help="of columns that name none")
    add("--per-class", type=int, default=500)
    add("--seen", type=int, default=60_000, help="pictures that a victim is shown")
    add("--adversary-steps", type=int, default=3)
    add("--others", type=Path, help="pictures from which `pairs` learns, of other classes")
    add("--seeds", default="0,1", help="of the victims; with a comma between")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> None:
    """Train every victim that the results do not hold yet, all of a seed before the next."""
    import torch

    torch.set_num_threads(args.threads)
    computer = choose_device(args.device)
    rows = script.open_rows(
        args, dtype=str(computer.dtype).removeprefix("torch."), device=str(computer.device)
    )
    wanted = [parse_column(text, args.victim) for text in args.columns.split(",")]
    given = args.arms.split(",") if args.arms else []
    tens = {number: Ten(number, args) for number in script.parse_numbers(args.tens)}
    found: list[Row] = []
    for seed, column, number in product(script.parse_numbers(args.seeds), wanted, tens):
        found += _measure_column(column, number, seed, given, tens[number], args, rows, computer)
    if old := sum(row["sources"] != hash_sources() for row in found):
        script.note(f"{old} of {len(found)} victims were measured with another tue.")
    for arm in given:
        result = average_columns(found, arm)
        script.say(f"{arm}\n\n{format_columns(result)}\n\nThe lowest: {find_lowest(result)}.\n")


def _measure_column(
    column: Column,
    number: int,
    seed: int,
    given: Sequence[str],
    ten: Ten,
    args: argparse.Namespace,
    rows: Rows,
    computer: ComputeDevice,
) -> list[Row]:
    """Return the rows of one column, ten and seed, of the controls and of each arm given."""
    budget = VerifySettings(
        victims=(column.victim,),
        attacks=(column.attack,),
        seen=args.seen,
        adversary_steps=args.adversary_steps,
        seed=seed,
    )
    (group,) = build_groups(budget, args.classes * args.per_class)
    first = (seed, number) == (0, 0)
    controls = [
        arm
        for arm in args.controls.split(",")
        if arm in group.trials and (arm != "random" or first)
    ]
    found = []
    for arm in (*controls, *given):
        (trial,) = group.trials[arm if arm in CONTROLS else "protected"]
        settings = {
            "adversary_steps": args.adversary_steps,
            "arm": arm,
            "attack": column.attack,
            "data": name_data(args),
            "per_class": args.per_class,
            "seed": seed,
            "size": column.size,
            "steps": trial.steps,
            "ten": number,
            "victim": format_victim(trial.victim),
            "weights_sha256": None if arm in CONTROLS else load(parse_way(arm).weights).sha256,
        }
        if arm == "random":
            settings["radius"] = RADIUS
        if args.classes != TEN:
            settings["classes"] = args.classes
        if column.attack == filters.LEARNED:
            settings["others"] = args.others and args.others.resolve().name
        mine = ten.name_class(seed) if column.one else ""
        if mine:
            settings["protected_class"] = mine
        row = rows.find("unseen", settings)
        if row is None:
            figures = measure_victim(trial, ten.make_arms(arm, column, mine), computer)
            if group.attack.best_epoch:
                figures["accuracy"] = figures["peak"]
            row = rows.add("unseen", settings, **figures, n=1, seed=seed)
            script.note(f"{name_column(row)}, ten {number}, {arm}: {100 * row['accuracy']:.1f} %")
        found.append(row)
    return found


def find_lowest(found: dict[str, Row]) -> str:
    """Return the lowest score that says something, with its column."""
    sure = [(row["score"], name) for name, row in found.items() if not row["doubt"]]
    return "none says anything" if not sure else "{:.0f} % ({})".format(*min(sure))


if __name__ == "__main__":
    script.run(parse_arguments(), measure)
