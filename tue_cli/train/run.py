"""`tue train`: pictures in memory, each net of the method in turn, one weights file at the end."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Generator, Mapping
from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tue_cli import __version__
from tue_cli.config import DEVICE, DEVICES, NETS, RECIPES, TRAINING_NOISE, TRAININGS, TrainSettings
from tue_cli.declare import ADVANCED, argument, fixed, part, setting
from tue_cli.engine.onnx import GRAPH_METHODS
from tue_cli.errors import BadSetting, require
from tue_cli.events import Advanced, Done, Event, Job, Metric, Note, Saved, Started
from tue_cli.protect.request import refuse_noise, refuse_seed, refuse_size
from tue_cli.train.checkpoint import (
    Checkpoint,
    Interrupted,
    defer_interrupt,
    refuse_unwritable,
    write_output,
)
from tue_cli.train.data import load_images
from tue_cli.train.export import write_own_graph
from tue_cli.train.result import TrainPlan, TrainSummary, describe, warn_of_days
from tue_cli.weights import LARGEST, MOST_CLASSES, WIDEST, Card, MisfitField, draw_nets, pack

if TYPE_CHECKING:
    import torch

    from tue_cli.core.batches import Images
    from tue_cli.core.loop import Training
    from tue_cli.engine.torch import ComputeDevice
    from tue_cli.methods.surrogate import NetFit

REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class TrainSpec:
    """What `tue train` was asked for."""

    data: Path = argument("A folder of pictures with one subfolder per class.")
    output: Path = setting(
        MISSING, "Where to write the weights: FILE.safetensors.", "-o", "--output"
    )
    settings: TrainSettings = part(TRAININGS["paper"], by="preset", among=TRAININGS)
    preset: str = setting(
        "paper",
        "paper (needs a GPU), or packaged: 45 minutes on one CPU core, like the packaged weights.",
        choices=tuple(TRAININGS),
    )
    device: str = setting("auto", DEVICE, choices=DEVICES, panel=ADVANCED)
    resume: bool = setting(False, "Continue a stopped training, as if it had not been stopped.")
    max_seconds: float | None = setting(
        None, "Stop after this time, such as 90s, 30m or 2h.", "--max-time", typed="duration"
    )
    limit: int | None = setting(
        None, "Use at most this many pictures of each class.", panel=ADVANCED
    )
    """The first by name."""
    command: str = fixed("", "the command that trains the same, from the start and in one go")


def train(spec: TrainSpec) -> Job[TrainSummary]:
    """Train weights and write them with their card; a checkpoint lies beside them meanwhile.

    At the time limit the weights are written as they are, and the checkpoint stays for `--resume`.

    Raises:
        BadSetting: unsuitable data or settings, or a checkpoint of another training.
        OutputProblem: the output cannot be written.
    """
    require("torch")
    from tue_cli.engine.torch import choose_device
    from tue_cli.methods import load_recipe

    _refuse(spec)
    settings = spec.settings
    fits = load_recipe(settings.method)
    computer = choose_device(spec.device)
    classes, pictures, failures = load_images(spec.data, settings.size, spec.limit)
    pictures = pictures.to(computer.device)
    yield from failures
    card = _make_card(settings, classes)
    trainings = begin_trainings(card, fits, settings, computer)
    place = spec.output.with_suffix(".checkpoint")
    checkpoint = Checkpoint(place, pictures, classes, settings, trainings)
    if spec.resume:
        checkpoint.read()
    total = sum(training.plan.steps for training in trainings.values())
    yield from warn_of_days(settings, computer.device.type)
    plan = TrainPlan(computer.description, len(pictures), len(classes))
    yield Started(f"Training {settings.method} weights", total, "steps", None, plan)
    try:
        out_of_time = yield from _train_nets(spec, trainings, pictures, checkpoint, computer.dtype)
    except (GeneratorExit, Interrupted):
        # These come between two steps; what else comes leaves half a step, not to be gone on from.
        checkpoint.write()
        raise
    checkpoint.write()
    steps_done = {role: training.step for role, training in trainings.items()}
    if out_of_time:
        done = f"{sum(steps_done.values()):,} of {total:,} steps"
        yield Note(f"Stopped by --max-time after {done}. To continue, add --resume.")
    begun = bool(steps_done[list(fits)[-1]])
    if begun:
        about = _describe_training(spec, computer.description, pictures, checkpoint, trainings)
        data = pack(replace(card, training=about), collect_tensors(trainings))
        write_output(data, spec.output)
        yield Saved(None, spec.output, len(data), None)
        if settings.method in GRAPH_METHODS:
            yield from write_own_graph(spec.output)
    if not out_of_time:
        checkpoint.path.unlink()
    result = TrainSummary(
        steps=steps_done,
        weights=spec.output if begun else None,
        failed=len(failures),
        seconds=round(checkpoint.count_seconds(), 1),
    )
    yield Done(result, tuple(describe(result)))


def _train_nets(
    spec: TrainSpec,
    trainings: Mapping[str, Training],
    pictures: Images,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
) -> Generator[Event, None, bool]:
    """Train the nets in turn, each with the former ones frozen; return whether time ran out."""
    from tue_cli.methods import load_recipe
    from tue_cli.nets.frozen import Frozen, freeze

    settings, fits = spec.settings, load_recipe(spec.settings.method)
    total = sum(training.plan.steps for training in trainings.values())
    end = math.inf if spec.max_seconds is None else time.monotonic() + spec.max_seconds
    nets: dict[str, Frozen] = {}
    with defer_interrupt() as strike_if_interrupted:
        for role, training in trainings.items():
            curve, meter = checkpoint.curves[role], Meter(training.step)
            checked = training.step
            for loss in fits[role].fit(training, nets, pictures, settings, dtype):
                curve.add(loss)
                steps = training.plan.steps
                out_of_time = time.monotonic() >= end
                due = meter.is_due() or training.step == steps
                # A GPU goes on with the next steps while nobody reads a loss.
                if due or out_of_time or checkpoint.is_due() or not loss.is_cuda:
                    _refuse_infinite(role, curve.read_losses(), checked)
                    checked = training.step
                if due:
                    a_step = meter.measure_step(training.step)
                    recent = float(np.mean(curve.read_losses()[-20:]))
                    yield Metric(role, training.step, steps, {"loss": recent})
                    yield Advanced(
                        sum(t.step for t in trainings.values()),
                        total,
                        settings.batch / a_step,
                        (steps - training.step) * a_step,
                    )
                checkpoint.write_when_due()
                strike_if_interrupted()
                if out_of_time:
                    return True
            nets[role] = freeze(training.net, dtype)
    return False


def _refuse_infinite(role: str, losses: list[float], checked: int) -> None:
    """Raise BadSetting where a loss after the first `checked` is not finite."""
    for step, loss in enumerate(losses[checked:], checked + 1):
        if not math.isfinite(loss):
            raise BadSetting(
                f"The training of the {role} failed: its loss is {loss} after {step} steps.",
                "Use a smaller --rate, or another --seed.",
            )


class Meter:
    """How fast one net's training goes in this run, told every few seconds."""

    def __init__(self, step: int) -> None:
        self._began = self._told = time.monotonic()
        self._first = step

    def is_due(self) -> bool:
        """Say whether it is time to report again."""
        now = time.monotonic()
        if now - self._told < REPORT_SECONDS:
            return False
        self._told = now
        return True

    def measure_step(self, step: int) -> float:
        """Return the mean so far, having come to `step`."""
        return (time.monotonic() - self._began) / max(1, step - self._first)


def _refuse(spec: TrainSpec) -> None:
    if spec.output.suffix != ".safetensors":  # a folder may have no name to put another suffix to
        raise BadSetting(
            f"-o {spec.output} does not end in .safetensors.", "Write -o FILE.safetensors."
        )
    checkpoint = spec.output.with_suffix(".checkpoint")
    if checkpoint.exists() and not spec.resume:
        raise BadSetting(
            f"{checkpoint} has an unfinished training.",
            "Continue it with --resume, or delete that file.",
        )
    if spec.output.exists() and not checkpoint.exists():
        raise BadSetting(
            f"{spec.output} exists already.", "Choose another name with -o, or delete it."
        )
    settings = spec.settings
    if settings.method not in RECIPES:
        raise BadSetting(
            f"There is no recipe {settings.method!r}.", f"Choose one of: {', '.join(RECIPES)}."
        )
    refuse_size(settings.size)
    refuse_noise(settings.noise, TRAINING_NOISE[settings.method])
    refuse_seed(settings.seed)
    for name in ("steps", "score_steps", "batch", "score_width"):
        if getattr(settings, name) < 1:
            raise BadSetting(
                f"--{name.replace('_', '-')} must be 1 or more, not {getattr(settings, name)}.",
                "Without the option, the preset decides.",
            )
    for name in ("rate", "sigma"):
        if not 0 < getattr(settings, name) < math.inf:
            raise BadSetting(
                f"--{name} must be more than 0, not {getattr(settings, name):g}.",
                "The default is 0.1.",
            )
    adversary = settings.adversary
    if not 0 <= adversary.radius <= 1 or adversary.steps < 0:
        raise BadSetting(
            f"--adversary-steps {adversary.steps} with --adversary-radius "
            f"{adversary.radius * 255:g} is not possible.",
            "Choose 0 steps or more, and a radius from 0 to 255.",
        )
    _make_card(settings, ("a", "b"))  # the classes are known when the pictures are
    if spec.limit is not None and spec.limit < 1:
        raise BadSetting(
            f"--limit must be 1 or more, not {spec.limit}.", "Without the option, all are used."
        )
    refuse_unwritable(spec.output.parent)


def _make_card(settings: TrainSettings, classes: tuple[str, ...]) -> Card:
    """Return the card of weights to be; BadSetting where tue would refuse to read them."""
    card = Card(
        method=settings.method,
        net=settings.net,
        width=settings.width,
        size=settings.size,
        classes=classes,
        score_width=settings.score_width,
        sigma=settings.sigma,
        training={},
    )
    try:
        return Card.from_json(card.to_json())
    except MisfitField as error:
        if error.name == "classes":
            raise BadSetting(
                f"There are {len(classes):,} classes; weights can have at most {MOST_CLASSES:,}.",
                "Train on fewer subfolders.",
            ) from None
        raise BadSetting(
            f"--{error.name.replace('_', '-')} must be {_RANGES[error.name]}, not "
            f"{getattr(settings, error.name)}.",
            "Leave the option out for the usual value.",
        ) from None


_RANGES = {
    "net": f"one of {', '.join(NETS)}",
    "width": f"4 to {WIDEST}",
    "size": f"a multiple of 4 from 16 to {LARGEST}",
    "score_width": f"1 to {WIDEST}",
    "sigma": "more than 0 and at most 10",
}
"""What weights may be, by the option that says it."""


def begin_trainings(
    card: Card, fits: Mapping[str, NetFit], settings: TrainSettings, computer: ComputeDevice
) -> dict[str, Training]:
    """Return the card's nets with fresh weights, by role, each at the start of its training."""
    from tue_cli.core.loop import Training
    from tue_cli.nets.frozen import convert_to_channels_last

    return {
        role: Training(
            convert_to_channels_last(net.to(computer.device)), fits[role].plan(settings, role)
        )
        for role, net in draw_nets(card, tuple(fits), settings.seed).items()
    }


def _describe_training(
    spec: TrainSpec,
    hardware: str,
    pictures: Images,
    checkpoint: Checkpoint,
    trainings: Mapping[str, Training],
) -> dict[str, Any]:
    """Return how the weights came about, for their card."""
    import torch

    folder = spec.data.resolve()
    return {
        "settings": asdict(spec.settings),
        "data": {
            "name": f"{folder.parent.name}/{folder.name}",
            "pictures": len(pictures),
            "sha256": checkpoint.data_sha256,
        },
        "steps": {role: training.step for role, training in trainings.items()},
        "losses": {
            role: {"first": curve.read_losses()[:5], "last": curve.read_losses()[-5:]}
            for role, curve in checkpoint.curves.items()
        },
        "seconds": round(checkpoint.count_seconds(), 1),
        "hardware": f"{platform.system()} {platform.machine()}, {hardware}",
        "software": f"tue {__version__}, torch {torch.__version__}",
        "command": spec.command,
    }


def collect_tensors(trainings: Mapping[str, Training]) -> dict[str, NDArray[Any]]:
    """Return all nets' weights as a weights file holds them, by role and name."""
    return {
        f"{role}.{name}": value.detach().cpu().numpy()
        for role, training in trainings.items()
        for name, value in training.net.state_dict().items()
    }
