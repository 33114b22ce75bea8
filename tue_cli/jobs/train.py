"""`tue train`: pictures in memory, each net of the method in turn, one weights file at the end."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tue_cli import __version__
from tue_cli.errors import BadSetting, NothingToDo, OutputProblem, PictureProblem
from tue_cli.events import Advanced, Done, Event, Failed, Metric, Note, Saved, Started
from tue_cli.files import folders, images
from tue_cli.settings import TrainSettings
from tue_cli.weights import Card, fresh, pack

if TYPE_CHECKING:
    from tue_cli.numerics.batches import Pictures

CHECKPOINT_SECONDS = 120.0
REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class TrainSpec:
    """What `tue train` was asked for."""

    data: Path
    output: Path
    settings: TrainSettings
    device: str = "auto"
    resume: bool = False
    max_seconds: float | None = None
    limit: int | None = None
    """Use at most this many pictures of each class, the first by name."""
    command: str = ""


def train(spec: TrainSpec) -> Generator[Event, None, None]:
    """Train weights and write them with their card; checkpoints lie beside the output meanwhile.

    Raises:
        BadSetting: unsuitable data or settings, or a checkpoint of another training.
        OutputProblem: the output's folder cannot be written.
    """
    import torch

    from tue_cli.engine import machine
    from tue_cli.methods import method_named
    from tue_cli.nets.frozen import frozen
    from tue_cli.numerics.loop import Plan, Training

    settings = spec.settings
    method = method_named(settings.method)
    if spec.output.suffix != ".safetensors":
        raise BadSetting(
            f"The output {spec.output.name} is no safetensors file.", "Name it FILE.safetensors."
        )
    checkpoint = spec.output.with_suffix(".checkpoint")
    if checkpoint.exists() and not spec.resume:
        raise BadSetting(
            f"An unfinished training lies in {checkpoint}.",
            "Go on with --resume, or remove that file.",
        )
    if spec.output.exists() and not checkpoint.exists():
        raise BadSetting(f"{spec.output} exists.", "Choose another name, or remove it.")
    _check_writable(spec.output.parent)
    computer = machine(spec.device)
    classes, pictures, events = load_pictures(spec.data, settings.size, spec.limit)
    yield from events
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
    pictures = pictures.to(computer.device)
    nets = fresh(card, method.roles, settings.seed)
    trainings = {}
    for role, net in nets.items():
        adam = role == "score"
        plan = Plan(
            steps=settings.score_steps if adam else settings.steps,
            batch=settings.batch,
            rate=settings.score_rate if adam else settings.rate,
            optimizer="adam" if adam else "sgd",
            seed=settings.seed,
            stream=role,
        )
        net.to(computer.device).to(memory_format=torch.channels_last)
        trainings[role] = Training(net, plan)

    identity = {"settings": asdict(settings), "classes": classes, "count": len(pictures)}
    curves: dict[str, list[float]] = {role: [] for role in trainings}
    spent = 0.0
    if spec.resume and checkpoint.exists():
        state = _read_checkpoint(checkpoint, identity)
        spent, curves = state["seconds"], state["curves"]
        for role, training in trainings.items():
            training.load(state["trainings"][role])

    total = sum(training.plan.steps for training in trainings.values())
    facts = {"device": computer.description, "pictures": len(pictures), "classes": len(classes)}
    yield Started(f"Training {settings.method} weights", total, "steps", facts=facts)
    began = time.monotonic()
    saved = reported = began

    def snapshot() -> None:
        state = {
            "identity": identity,
            "seconds": spent + time.monotonic() - began,
            "curves": curves,
            "trainings": {role: training.state() for role, training in trainings.items()},
        }
        scratch = checkpoint.with_suffix(".checkpoint-part")
        torch.save(state, scratch)
        os.replace(scratch, checkpoint)

    finished: dict[str, Any] = {}
    out_of_time = False
    here = 0
    try:
        for role, training in trainings.items():
            steps = method.fit_role(
                role, training, finished, pictures, settings, computer.dtype
            )
            for loss in steps:
                here += 1
                if not np.isfinite(loss):
                    raise BadSetting(
                        f"The {role} network's loss is {loss} after {training.step} steps.",
                        "Train it with a smaller learning rate, or from another seed.",
                    )
                curves[role].append(round(loss, 5))
                now = time.monotonic()
                if now - reported >= REPORT_SECONDS or training.step == training.plan.steps:
                    reported = now
                    done = sum(t.step for t in trainings.values())
                    recent = float(np.mean(curves[role][-20:]))
                    yield Metric(role, training.step, training.plan.steps, {"loss": recent})
                    left = _seconds_left(trainings, role, curves, (now - began) / here)
                    yield Advanced(done, total, here * settings.batch / (now - began), left)
                if now - saved >= CHECKPOINT_SECONDS:
                    saved = now
                    snapshot()
                if spec.max_seconds is not None and now - began >= spec.max_seconds:
                    out_of_time = True
                    break
            if out_of_time:
                break
            finished[role] = frozen(training.net, computer.dtype)
    finally:
        snapshot()
    if out_of_time:
        yield Note(
            f"Stopped at the time limit, after {curves_steps(curves)} of {total} steps; "
            f"`--resume` goes on from {checkpoint.name}."
        )
        if not curves["surrogate"]:
            yield Done({"steps": curves_steps(curves), "checkpoint": str(checkpoint)})
            return
    card = Card(
        **{
            **{name: getattr(card, name) for name in card.__dataclass_fields__},
            "training": {
                "settings": asdict(settings),
                "data": {
                    "name": spec.data.resolve().name,
                    "pictures": len(pictures),
                    "classes": len(classes),
                    "sha256": pictures_digest(pictures),
                },
                "steps": {role: training.step for role, training in trainings.items()},
                "losses": {
                    role: {"first": curve[:5], "last": curve[-5:]}
                    for role, curve in curves.items()
                },
                "seconds": round(spent + time.monotonic() - began, 1),
                "hardware": f"{platform.machine()}, {computer.description}",
                "software": f"tue {__version__}, torch {torch.__version__}",
                "command": spec.command,
            },
        }
    )
    tensors = {
        f"{role}.{name}": value.detach().cpu().float().numpy()
        if value.is_floating_point()
        else value.cpu().numpy()
        for role, training in trainings.items()
        for name, value in training.net.state_dict().items()
    }
    data = pack(card, tensors)
    images.write_whole(data, spec.output, spec.output.with_suffix(".part"), None)
    if not out_of_time:
        checkpoint.unlink(missing_ok=True)
    yield Saved(None, spec.output, {"bytes": len(data)})
    yield Done({"steps": curves_steps(curves), "seconds": card.training["seconds"]})


def curves_steps(curves: dict[str, list[float]]) -> int:
    """Return how many steps all curves hold together."""
    return sum(len(curve) for curve in curves.values())


def _seconds_left(
    trainings: dict[str, Any], role: str, curves: dict[str, list[float]], a_step: float
) -> float:
    left = 0.0
    for training in trainings.values():
        left += (training.plan.steps - training.step) * a_step
    return left


def load_pictures(
    data: Path, size: int, limit: int | None = None
) -> tuple[tuple[str, ...], Pictures, list[Event]]:
    """Decode a folder with one subfolder a class into memory, squashed to size x size.

    Raises:
        BadSetting: fewer than two classes.
        NothingToDo: no picture could be read.
    """
    import torch

    from tue_cli.numerics.batches import Pictures

    if not data.is_dir():
        raise BadSetting(f"{data} is no folder.", "Give a folder with one subfolder a class.")
    names = sorted(p.name for p in data.iterdir() if p.is_dir() and not p.name.startswith("."))
    files: list[tuple[Path, int]] = []
    for number, name in enumerate(names):
        found = [p for p in sorted((data / name).rglob("*")) if p.suffix.lower() in images.SUFFIXES]
        files += [(path, number) for path in found[:limit]]
    if len(names) < 2:
        raise BadSetting(
            f"{data} holds {len(names)} class folders, and a surrogate needs two or more.",
            "Give a folder with one subfolder a class.",
        )

    def squashed(path: Path) -> Any:
        try:
            return images.shrink(images.decode(images.read(path)).pixels, size)
        except PictureProblem as problem:
            return Failed(path, problem.reason, problem.message)

    pixels = np.empty((len(files), 3, size, size), np.uint8)
    labels, events, count = [], [], 0
    with ThreadPoolExecutor() as pool:
        for (_, label), result in zip(files, pool.map(squashed, (p for p, _ in files)), strict=True):
            if isinstance(result, Failed):
                events.append(result)
                continue
            pixels[count] = np.rint(result * 255)
            labels.append(label)
            count += 1
    if not count:
        raise NothingToDo(f"No picture in {data} could be read.", "Give a folder of pictures.")
    return tuple(names), Pictures(torch.from_numpy(pixels[:count]), torch.tensor(labels)), events


def pictures_digest(pictures: Pictures) -> str:
    """Return the sha256 of the squashed pictures and their labels."""
    import hashlib

    state = hashlib.sha256(pictures.pixels.cpu().numpy().tobytes())
    state.update(pictures.labels.cpu().numpy().tobytes())
    return state.hexdigest()


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".tue-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputProblem(
            f"{folder} cannot be written: {error.strerror}.", "Choose another place with -o."
        ) from None


def _read_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    import torch

    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:
        raise BadSetting(
            f"The checkpoint {path} cannot be read: {error}.", "Remove it and train anew."
        ) from None
    theirs = state["identity"]
    changed = [name for name in identity if theirs.get(name) != identity[name]]
    if changed:
        raise BadSetting(
            f"The checkpoint {path} is of another training: {', '.join(changed)} differ.",
            "Give the same data and settings, or remove it.",
        )
    return state
