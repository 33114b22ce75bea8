"""`tue train`: pictures in memory, each net of the method in turn, one weights file at the end."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tue_cli import __version__
from tue_cli.config import DEVICES, NETS, RECIPES, TrainSettings, setting
from tue_cli.engine.onnx import GRAPH_METHODS
from tue_cli.errors import (
    BadSetting,
    NothingToDo,
    OutputProblem,
    PackageMissing,
    PictureProblem,
    TueError,
    require,
)
from tue_cli.events import Advanced, Done, Event, Failed, Job, Metric, Note, Saved, Started
from tue_cli.images import codec, resize
from tue_cli.protect.request import refuse_noise, refuse_seed, refuse_size
from tue_cli.train.checkpoint import Checkpoint, Interrupted, defer_interrupt, write_output
from tue_cli.train.result import TrainPlan, TrainSummary
from tue_cli.weights import (
    LARGEST,
    MOST_CLASSES,
    WIDEST,
    Card,
    MisfitField,
    fresh,
    pack,
    read,
)

if TYPE_CHECKING:
    from tue_cli.core.batches import Pictures
    from tue_cli.core.loop import Training
    from tue_cli.engine.torch import ComputeDevice

REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class TrainSpec:
    """What `tue train` was asked for."""

    data: Path
    output: Path
    settings: TrainSettings
    device: str = setting("auto", "where it is computed", choices=DEVICES)
    resume: bool = setting(False, "go on from the checkpoint, exactly")
    max_seconds: float | None = setting(None, "stop after so long; empty: never", unit="s")
    limit: int | None = setting(None, "at most so many pictures of each class; empty: all")
    """The first by name."""
    command: str = ""


def train(spec: TrainSpec) -> Job[TrainSummary]:
    """Train weights and write them with their card; a checkpoint lies beside them meanwhile.

    At the time limit the weights are written as they are, and the checkpoint stays for `--resume`.

    Raises:
        BadSetting: unsuitable data or settings, or a checkpoint of another training.
        OutputProblem: the output cannot be written.
    """
    require("torch")
    from tue_cli.engine.torch import machine
    from tue_cli.methods import FIT
    from tue_cli.nets.frozen import Frozen, freeze

    settings = spec.settings
    _check(spec)
    roles, fit_role = RECIPES[settings.method], FIT[settings.method]
    computer = machine(spec.device)
    classes, pictures, failures = load_pictures(spec.data, settings.size, spec.limit)
    yield from failures
    card = _make_card(settings, classes)
    pictures = pictures.to(computer.device)
    trainings = trainings_of(card, roles, settings, computer)
    checkpoint = Checkpoint(
        spec.output.with_suffix(".checkpoint"), pictures, classes, settings, trainings
    )
    if spec.resume:
        checkpoint.read()
    total = sum(training.plan.steps for training in trainings.values())
    plan = TrainPlan(computer.description, len(pictures), len(classes))
    yield Started(f"Training {settings.method} weights", total, "steps", None, plan)

    began = time.monotonic()
    nets: dict[str, Frozen] = {}
    out_of_time = False
    try:
        with defer_interrupt() as strike_if_interrupted:
            for role, training in trainings.items():
                curve, meter = checkpoint.curves[role], Meter(training.step)
                checked = training.step
                losses = fit_role(role, training, nets, pictures, settings, computer.dtype)
                for loss in losses:
                    curve.add(loss)
                    steps = training.plan.steps
                    out_of_time = (
                        spec.max_seconds is not None
                        and time.monotonic() - began >= spec.max_seconds
                    )
                    due = meter.is_due() or training.step == steps
                    # A GPU goes on with the next steps while nobody reads a loss.
                    if due or out_of_time or checkpoint.is_due() or not loss.is_cuda:
                        _refuse_infinite(role, curve.values(), checked)
                        checked = training.step
                    if due:
                        a_step = meter.seconds_a_step(training.step)
                        recent = float(np.mean(curve.values()[-20:]))
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
                        break
                if out_of_time:
                    break
                nets[role] = freeze(training.net, computer.dtype)
    except (GeneratorExit, Interrupted):
        # These come between two steps; what else comes leaves half a step, not to be gone on from.
        checkpoint.write()
        raise
    checkpoint.write()
    steps_done = {role: training.step for role, training in trainings.items()}
    if out_of_time:
        yield Note(
            f"Stopped at the time limit, after {sum(steps_done.values())} of {total} steps; "
            f"--resume goes on from {checkpoint.path.name}."
        )
    begun = bool(steps_done[roles[-1]])
    if begun:
        about = _training_card(spec, computer.description, pictures, checkpoint, trainings)
        card = replace(card, training=about)
        data = pack(card, tensors_of(trainings))
        write_output(data, spec.output)
        yield Saved(None, spec.output, len(data), None)
        if settings.method in GRAPH_METHODS:
            yield from _graph(spec.output)
    if not out_of_time:
        checkpoint.path.unlink()
    yield Done(
        TrainSummary(
            steps=steps_done,
            weights=spec.output if begun else None,
            failed=len(failures),
            seconds=round(checkpoint.seconds(), 1),
        )
    )


def _refuse_infinite(role: str, losses: list[float], checked: int) -> None:
    """Raise BadSetting where a loss after the first `checked` is not finite."""
    for step, loss in enumerate(losses[checked:], checked + 1):
        if not math.isfinite(loss):
            raise BadSetting(
                f"The {role} network's loss is {loss} after {step} steps.",
                "Train it with a smaller learning rate, or from another seed.",
            )


def _graph(output: Path) -> Iterator[Event]:
    """Write the weights' graph for ONNX Runtime beside them, or say why there is none."""
    from tue_cli.train.export import write_graph

    graph = output.with_suffix(".onnx")
    graph.unlink(missing_ok=True)  # that of the weights that were here before
    try:
        events = list(write_graph(read(output, name=output.stem), graph, beside=True))
    except TueError as error:
        then = f" Then run `tue export {output}`." if isinstance(error, PackageMissing) else ""
        yield Note(f"No graph for ONNX Runtime was written. {error}{then}")
    else:
        yield from (event for event in events if isinstance(event, Saved))


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

    def seconds_a_step(self, step: int) -> float:
        """Return the mean so far, having come to `step`."""
        return (time.monotonic() - self._began) / max(1, step - self._first)


def _check(spec: TrainSpec) -> None:
    if spec.output.suffix != ".safetensors":  # a folder may have no name to put another suffix to
        raise BadSetting(
            f"The output {spec.output} is no safetensors file.", "Name it FILE.safetensors."
        )
    checkpoint = spec.output.with_suffix(".checkpoint")
    if checkpoint.exists() and not spec.resume:
        raise BadSetting(
            f"An unfinished training lies in {checkpoint}.",
            "Go on with --resume, or remove that file.",
        )
    if spec.output.exists() and not checkpoint.exists():
        raise BadSetting(f"{spec.output} exists.", "Choose another name, or remove it.")
    settings = spec.settings
    if settings.method not in RECIPES:
        raise BadSetting(
            f"There is no recipe {settings.method!r}.", f"Choose one of {', '.join(RECIPES)}."
        )
    refuse_size(settings.size)
    refuse_noise(settings.noise)
    refuse_seed(settings.seed)
    for name in ("steps", "score_steps", "batch", "score_width"):
        if getattr(settings, name) < 1:
            raise BadSetting(
                f"{name} must be 1 or more.", f"Give another --{name.replace('_', '-')}."
            )
    for name in ("rate", "sigma"):
        if not 0 < getattr(settings, name) < math.inf:
            raise BadSetting(f"{name} must be more than 0.", f"Give another --{name}.")
    adversary = settings.adversary
    if not 0 <= adversary.radius <= 1 or adversary.steps < 0:
        raise BadSetting(
            f"An adversary of {adversary.steps} steps and {adversary.radius * 255:g} levels cannot "
            "be.",
            "Give 0 steps or more and a radius of 0 to 255.",
        )
    _make_card(settings, ("a", "b"))  # the classes are known when the pictures are
    if spec.limit is not None and spec.limit < 1:
        raise BadSetting(f"A limit of {spec.limit} pictures leaves none.", "Choose 1 or more.")
    folder = spec.output.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".tue-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputProblem(
            f"{folder} cannot be written: {error.strerror}.", "Choose another place with -o."
        ) from None


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
                f"There are {len(classes):,} classes, and weights have {MOST_CLASSES:,} at most.",
                "Train on fewer class folders.",
            ) from None
        raise BadSetting(
            f"A {error.name.replace('_', ' ')} of {getattr(settings, error.name)} cannot be.",
            f"Give another --{error.name.replace('_', '-')}: {_RANGES[error.name]}.",
        ) from None


_RANGES = {
    "net": f"one of {', '.join(NETS)}",
    "width": f"4 to {WIDEST}",
    "size": f"a multiple of 4 from 16 to {LARGEST}",
    "score_width": f"1 to {WIDEST}",
    "sigma": "more than 0, and 10 at most",
}
"""What weights may be, by the option that says it."""


def trainings_of(
    card: Card, roles: tuple[str, ...], settings: TrainSettings, computer: ComputeDevice
) -> dict[str, Training]:
    """Return the card's nets with fresh weights, by role, each at the start of its training."""
    from tue_cli.core.loop import Plan, Training
    from tue_cli.nets.frozen import channels_last

    lengths = {
        "score": (settings.score_steps, settings.score_rate, "adam"),
        "patterns": (settings.score_steps, settings.score_rate, "adam"),
        "surrogate": (settings.steps, settings.rate, "sgd"),
        "block": (settings.noise.steps, settings.rate, "sgd"),
    }

    def plan(role: str) -> Plan:
        steps, rate, optimizer = lengths[role]
        return Plan(steps, settings.batch, rate, optimizer, settings.seed, stream=role)

    return {
        role: Training(channels_last(net.to(computer.device)), plan(role))
        for role, net in fresh(card, roles, settings.seed).items()
    }


def _training_card(
    spec: TrainSpec,
    hardware: str,
    pictures: Pictures,
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
            role: {"first": curve.values()[:5], "last": curve.values()[-5:]}
            for role, curve in checkpoint.curves.items()
        },
        "seconds": round(checkpoint.seconds(), 1),
        "hardware": f"{platform.system()} {platform.machine()}, {hardware}",
        "software": f"tue {__version__}, torch {torch.__version__}",
        "command": spec.command,
    }


def tensors_of(trainings: Mapping[str, Training]) -> dict[str, NDArray[Any]]:
    """Return all nets' weights as a weights file holds them, by role and name."""
    return {
        f"{role}.{name}": value.detach().cpu().numpy()
        for role, training in trainings.items()
        for name, value in training.net.state_dict().items()
    }


def load_pictures(
    data: Path, size: int, limit: int | None = None
) -> tuple[tuple[str, ...], Pictures, list[Failed]]:
    """Decode a folder with one subfolder a class into memory, squashed to size x size.

    Raises:
        BadSetting: fewer than two classes, or one without a picture.
        NothingToDo: no picture could be read.
    """
    import torch

    from tue_cli.core.batches import Pictures

    if not data.is_dir():
        raise BadSetting(f"{data} is no folder.", "Give a folder with one subfolder a class.")
    names = sorted(p.name for p in data.iterdir() if p.is_dir() and not p.name.startswith("."))
    files: list[tuple[Path, int]] = []
    for number, name in enumerate(names):
        found = [p for p in sorted((data / name).rglob("*")) if p.suffix.lower() in codec.SUFFIXES]
        files += [(path, number) for path in found[:limit]]
    if len(names) < 2:
        raise BadSetting(
            f"{data} holds {len(names)} class folders, and a surrogate needs two or more.",
            "Give a folder with one subfolder a class.",
        )

    def squashed(path: Path) -> Any:
        try:
            return resize.resize_to_square(codec.decode(codec.read(path)).pixels, size)
        except PictureProblem as problem:
            return Failed(path, problem.reason, problem.message)

    pixels = np.empty((len(files), 3, size, size), np.uint8)
    labels: list[int] = []
    failures: list[Failed] = []
    count = 0
    with ThreadPoolExecutor() as pool:
        results = pool.map(squashed, (path for path, _ in files))
        for (_, label), result in zip(files, results, strict=True):
            if isinstance(result, Failed):
                failures.append(result)
                continue
            pixels[count] = np.rint(result * 255)
            labels.append(label)
            count += 1
    if not count:
        raise NothingToDo(f"No picture in {data} could be read.", "Give a folder of pictures.")
    if empty := [name for number, name in enumerate(names) if number not in set(labels)]:
        raise BadSetting(
            f"{len(empty)} class folders of {data} hold no readable picture: "
            f"{', '.join(empty[:5])}{', …' if len(empty) > 5 else ''}.",
            "Remove them, or put pictures there.",
        )
    return tuple(names), Pictures(torch.from_numpy(pixels[:count]), torch.tensor(labels)), failures
