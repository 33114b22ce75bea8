"""How the tables are laid out, which cells fill them, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.paper.cells import Arm, Cell, make_arm
from benchmarks.paper.settings import BenchSettings
from benchmarks.paper.tables import ResultTable, TableCell, get_published
from tue_cli.attacks.registry import ATTACKS
from tue_cli.config import VictimSettings
from tue_cli.verify.trials import Trial

VICTIMS = {
    "vgg16": "VGG-16",
    "resnet18": "RN-18",
    "resnet50": "RN-50",
    "densenet121": "DN-121",
    "wrn34-10": "WRN-34-10",
}
SURROGATES = ("vgg16", "resnet18", "resnet50", "densenet121")


class Bench:
    """The cells of one preset on one folder of pictures, and the tables made of them."""

    def __init__(self, settings: BenchSettings, dataset: str, data: str) -> None:
        """`dataset` is a name that the paper's tables have, or any; `data` names the pictures."""
        self.settings = settings
        self.dataset = dataset
        self.data = data
        self.cells: dict[str, Cell] = {}
        """By key, in the order in which the tables ask for them."""

    def make_arm(self, name: str, net: str = "resnet18", **changes: Any) -> Arm:
        """Return an arm at the preset's budget; `make_arm` says what the arguments are."""
        return make_arm(self.settings, name, net, **changes)

    def place(
        self, arm: Arm, attack: str = "std", victim: str = "resnet18", paper: float | None = None
    ) -> TableCell:
        """Return the place of a cell, which is then one of the bench's; `attack` is of `ATTACKS`.

        `alone20` to `alone80` train on the pictures that stay clean where so many are protected.
        """
        budget, alone = self.settings, attack.startswith("alone")
        way = ATTACKS[attack.replace("alone", "part").partition("@")[0]]
        level = int(attack.partition("@")[2] or round(way.radius * 255))
        trial = Trial(
            arm="protected" if arm.method else "clean",
            victim=VictimSettings(net=victim, width=budget.width, batch=budget.batch),
            seed=budget.seed,
            steps=budget.adversarial_steps if level else budget.victim_steps,
            points=budget.points,
            degrade=way.filter,
            mixing=way.augmentation,
            radius=level / 255,
            adversary_steps=budget.adversary_steps if level else 0,
            other_labels=way.other_labels,
            part=way.part,
            alone=alone,
        )
        cell = Cell(arm, trial, budget.adversarial_seeds if level else budget.seeds)
        key = cell.make_key(self.data)
        self.cells.setdefault(key, cell)
        return TableCell(key, paper)

    def _make_table(
        self,
        name: str,
        title: str,
        corner: str,
        rows: Iterable[str],
        columns: Iterable[str],
        place: Callable[[str, str], TableCell],
    ) -> ResultTable:
        rows, columns = tuple(rows), tuple(columns)
        places = {(row, column): place(row, column) for row in rows for column in columns}
        return ResultTable(
            f"{name}-{self.dataset.lower().replace(' ', '-')}",
            f"{title}, {self.dataset}",
            corner,
            rows,
            columns,
            places,
        )

    def make_table_1(self) -> ResultTable:
        """Return methods against adversaries of growing radius, and what filters undo."""
        budget = self.settings
        ways = {f"{r}/255" if r else "standard": f"at{r}" if r else "std" for r in budget.radii}
        ways |= {ATTACKS[name].title: name for name in budget.filters}

        def place(row: str, column: str) -> TableCell:
            level = str(round(ATTACKS[ways[row]].radius * 255))
            paper = None
            if not ATTACKS[ways[row]].filter:
                paper = get_published("1", self.dataset, "resnet18", column, "resnet18", level)
            return self.place(self.make_arm(column), ways[row], paper=paper)

        return self._make_table("table-1", "Table 1: methods", "training", ways, ARMS, place)

    def make_table_2(self) -> ResultTable:
        """Return victims of other kinds, trained adversarially at 4/255."""

        def place(row: str, column: str) -> TableCell:
            net = _find_net(row)
            paper = get_published("2", self.dataset, "resnet18", column, net, "4")
            return self.place(self.make_arm(column), "at4", net, paper)

        arms = ("clean", "EM", "REM", "TUE")
        return self._make_table(
            "table-2", "Table 2: victims at 4/255", "victim", VICTIMS.values(), arms, place
        )

    def make_transfer_table(self, adversarial: bool) -> ResultTable:
        """Return tables 3 and 4, or with an adversary 5 and 6: surrogates against victims."""
        number = (5 if adversarial else 3) + (self.dataset == "CIFAR-100")

        def place(row: str, column: str) -> TableCell:
            net, victim = _find_net(row.split(", ")[0]), _find_net(column)
            method = row.split(", ")[1]
            level = "4" if adversarial else "0"
            paper = get_published(str(number), self.dataset, net, method, victim, level)
            return self.place(
                self.make_arm(method, net), "at4" if adversarial else "std", victim, paper
            )

        rows = [f"{VICTIMS[net]}, {name}" for net in SURROGATES for name in ("EM", "REM", "TUE")]
        how = "trained at 4/255" if adversarial else "standardly trained"
        return self._make_table(
            f"table-{number}",
            f"Table {number}: surrogates and victims, {how}",
            "surrogate, method",
            rows,
            VICTIMS.values(),
            place,
        )

    def make_partial_table(self) -> ResultTable:
        """Return what a victim learns where only a part is protected (section 4.2.3), at 4/255."""

        def place(row: str, column: str) -> TableCell:
            kind = "alone" if row == "the clean part alone" else "part"
            arm = self.make_arm("clean" if kind == "alone" else row)
            return self.place(arm, f"{kind}{column.split()[0]}@4")

        rows = ("TUE", "REM", "the clean part alone")
        return self._make_table(
            "partial",
            "Partial protection at 4/255",
            "training pictures",
            rows,
            [f"{share} % protected" for share in (20, 40, 60, 80)],
            place,
        )

    def make_ablation_table(self) -> ResultTable:
        """Return what each choice of tue does."""
        changes: dict[str, dict[str, Any]] = {
            "TUE": {},
            "no score": {"score_ratio": 0.0},
            "score by ascent": {"score_mode": "ascent"},
            "sigma 0.05": {"sigma": 0.05},
            "sigma 0.25": {"sigma": 0.25},
            "1 shift and flip": {"samples": 1},
            "5 shifts and flips": {"samples": 5},
            "5 steps": {"steps": 5},
            "20 steps": {"steps": 20},
        }
        return self._make_table(
            "ablations",
            "Ablations of TUE",
            "noise",
            changes,
            ("standard", "4/255"),
            lambda row, column: self.place(
                self.make_arm("TUE", **changes[row]), "std" if column == "standard" else "at4"
            ),
        )

    def list_victims(self) -> list[tuple[str, Cell, Trial]]:
        """Return every victim with its cell and the cell's key, the most telling first."""

        def rank(entry: tuple[str, Cell, Trial]) -> tuple[int, bool, int]:
            _, cell, trial = entry
            harsh = trial.radius in (0, 4 / 255) and not trial.degrade
            others = cell.arm.name not in CORE
            return trial.seed, others or not harsh, 0 if not trial.radius else 1

        every = [(key, cell, run) for key, cell in self.cells.items() for run in cell.list_trials()]
        return sorted(every, key=rank)


CORE = ("clean", "random noise", "TUE", "REM", "EM")
"""The arms that the paper's claim is about."""
ARMS = (*CORE, "TUE without score", "SEM", "TAP", "NTGA", "LSP", "CUDA")
TABLES: dict[str, Callable[[Bench], ResultTable]] = {
    "1": Bench.make_table_1,
    "2": Bench.make_table_2,
    **dict.fromkeys(("3", "4"), lambda bench: bench.make_transfer_table(False)),
    **dict.fromkeys(("5", "6"), lambda bench: bench.make_transfer_table(True)),
    "partial": Bench.make_partial_table,
    "ablations": Bench.make_ablation_table,
}
"""Tables by what `--table` says; the data decide whether it is 3 or 4, 5 or 6."""


def _find_net(title: str) -> str:
    return next(net for net, name in VICTIMS.items() if name == title)
