"""Surrogates at full width, their noise for every picture, and victims of it (Table 1)."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_bench import Bench
from benchmarks.gpu_views import fit_through_views
from benchmarks.gpu_work import (
    count_noise_flops,
    count_training_flops,
    count_victim_flops,
    make_settings,
)
from benchmarks.script import note
from tue_cli.config import RECIPES, AdversarySettings, TrainSettings, VictimSettings
from tue_cli.core.batches import Images, make_generator
from tue_cli.core.capture import Captured
from tue_cli.core.loop import Training
from tue_cli.core.pgd import draw_uniform_start
from tue_cli.methods import load_method, load_recipe
from tue_cli.methods.surrogate import quantize
from tue_cli.nets.frozen import Frozen, freeze
from tue_cli.train.run import begin_trainings, collect_tensors
from tue_cli.verify.victim import Victim
from tue_cli.weights import Card, build, pack, read

PART = int(os.environ.get("TUE_GPU_PART", 15 * 2**20))
"""Bytes of a part of a weights file; more than 16 MiB of one file do not come back."""
PROBE = 6
"""Updates that tell how long one takes; the first half, with the capture, does not count."""
SPARE = 4.0
"""Seconds that are kept for writing down what there is."""
ENDING = 4.0
"""Seconds that a victim's last tests take, at most: on all training pictures, and attacked."""
OVERHEAD = 1.08
"""What tests and captures add to a victim's updates."""
PAPER = {
    ("clean", 0): 94.66,
    ("clean", 4): 89.51,
    ("TUE", 0): 10.47,
    ("TUE", 4): 29.20,
    ("EM", 0): 13.20,
    ("EM", 4): 88.62,
}
"""The paper's Table 1, CIFAR-10: accuracy in percent, by training pictures and radius."""

Fit = Callable[[Training, TrainSettings], Iterator[Tensor]]


def train_surrogate(bench: Bench, name: str, seconds: dict[str, float], *, keep: str = "") -> None:
    """Train the nets of a name, each within its seconds; keep the weights under a file's name.

    What a row of an earlier run tells of is not trained again, if its weights are there.
    """
    chosen = make_settings(bench.budget, name)
    told = {"name": name, "data": bench.data_name, "training": asdict(chosen)}
    earlier = find_weights(bench, keep) if keep and bench.rows.find("surrogate", told) else None
    if earlier is not None:
        bench.nets[name] = load_nets(bench, earlier)
        return
    roles = tuple(r for r in RECIPES[chosen.method] if r not in chosen.noise.idle_nets)
    card = Card(
        chosen.method,
        chosen.net,
        chosen.width,
        chosen.size,
        bench.split.classes,
        chosen.score_width,
        chosen.sigma,
        {},
    )
    nets: dict[str, Frozen] = {}
    trainings: dict[str, Training] = {}
    figures: dict[str, Any] = {}
    for role in roles:
        trainings[role], figures[role] = _train_role(
            bench, card, role, nets, chosen, seconds[role], name
        )
        nets[role] = freeze(trainings[role].net, bench.computer.dtype)
    bench.nets[name] = nets
    parts = []
    if keep:
        training: dict[str, Any] = {
            "settings": asdict(chosen),
            "data": {"name": bench.data_name},
            "figures": figures,
        }
        if name == "B":
            training["views"] = "picture, grey, half size and back, JPEG"
        parts = keep_weights(
            bench.out / f"{keep}.safetensors", replace(card, training=training), trainings
        )
    bench.rows.add(
        "surrogate",
        told,
        trained=figures,
        files=parts,
        way=bench.way,
        n=1,
        seed=chosen.seed,
        seconds=round(sum(each["seconds"] for each in figures.values()), 1),
    )


def _train_role(
    bench: Bench,
    card: Card,
    role: str,
    nets: dict[str, Frozen],
    chosen: TrainSettings,
    seconds: float,
    name: str,
) -> tuple[Training, dict[str, Any]]:
    """Train one net as far as its seconds go, by what a few steps take; return it with figures."""

    def fit(training: Training) -> Iterator[Tensor]:
        if name == "B" and role == "surrogate":
            return fit_through_views(
                training, nets, bench.split.train, chosen, bench.computer.dtype
            )
        own = load_recipe(chosen.method)[role]
        return own.fit(training, nets, bench.split.train, chosen, bench.computer.dtype)

    def begin(steps: int) -> Training:
        lengths = replace(chosen, steps=steps, score_steps=steps)
        own = {role: load_recipe(chosen.method)[role]}
        return begin_trainings(card, own, lengths, bench.computer)[role]

    wanted = chosen.score_steps if role == "score" else chosen.steps
    a_step = measure_step(bench, fit(begin(PROBE)))
    most = min(seconds, bench.clock.count_left() - SPARE)
    steps = max(1, min(wanted, int(0.95 * most / a_step)))
    note(f"{name}, {role}: {steps} of {wanted} steps, about {steps * a_step:.0f} s")
    training, losses, began = begin(steps), [], time.monotonic()
    with bench.use_way():
        for loss in fit(training):
            losses.append(loss)
            if not training.step % 25:
                bench.wait()
                if bench.clock.count_left() < SPARE:
                    break
    bench.wait()
    spent = time.monotonic() - began
    curve = torch.stack(losses).tolist()
    work = count_training_flops(chosen, role) * training.step / wanted
    return training, {
        "steps": training.step,
        "wanted": wanted,
        "shortened": training.step < wanted,
        "loss": {
            "first": round(statistics.fmean(curve[:20]), 5),
            "last": round(statistics.fmean(curve[-20:]), 5),
        },
        "pictures_a_second": round(training.step * chosen.batch / spent, 1),
        "tflops": round(work / spent / 1e12, 2),
        "seconds": round(spent, 1),
    }


def measure_step(bench: Bench, updates: Iterator[Tensor]) -> float:
    """Return the seconds of an update, by the last of a few."""
    times = []
    with bench.use_way():
        for _ in updates:
            bench.wait()
            times.append(time.perf_counter())
    few = times[len(times) // 2 - 1 :]
    return max((few[-1] - few[0]) / (len(few) - 1), 1e-6)


def keep_weights(path: Path, card: Card, trainings: dict[str, Training]) -> list[str]:
    """Write a weights file in half precision, in parts, and return their names."""
    tensors = {
        name: value.astype(np.float16) if value.dtype == np.float32 else value
        for name, value in collect_tensors(trainings).items()
    }
    data = pack(card, tensors)
    names = []
    for number, place in enumerate(range(0, len(data), PART)):
        names.append(f"{path.name}.{number}")
        (path.parent / names[-1]).write_bytes(data[place : place + PART])
    return names


def join_weights(folder: Path, name: str) -> bytes | None:
    """Return a weights file of single precision from its parts in a folder, if they are there."""
    parts = sorted(folder.glob(f"{name}.safetensors.[0-9]*"), key=lambda p: int(p.suffix[1:]))
    if not parts:
        return None
    with tempfile.TemporaryDirectory() as work:
        whole = Path(work) / f"{name}.safetensors"
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
        weights = read(whole, name=name)
    tensors = {
        key: value.astype(np.float32) if value.dtype == np.float16 else value
        for key, value in weights.tensors.items()
    }
    return pack(weights.card, tensors)


def find_weights(bench: Bench, name: str) -> Path | None:
    """Return a weights file of an earlier run, joined in the output's work folder."""
    data = join_weights(bench.done, name) if bench.done else None
    if data is None:
        return None
    place = bench.work / f"{name}.safetensors"
    place.write_bytes(data)
    return place


def load_nets(bench: Bench, path: Path) -> dict[str, Frozen]:
    """Return the frozen nets of a weights file, by role."""
    weights = read(path, name=path.stem)
    nets = build(weights, ("score", "surrogate"))
    device, dtype = bench.computer.device, bench.computer.dtype
    return {role: freeze(net.to(device), dtype) for role, net in nets.items()}


def protect_all(bench: Bench, name: str) -> None:
    """Protect every training picture by the surrogate of a name; each label is its own key."""
    train, chosen = bench.split.train, make_settings(bench.budget, name)
    began, size = time.monotonic(), bench.budget.noise_batch
    protected = torch.empty_like(train.pixels)
    with bench.use_way():
        run = Captured(bench.computer.device)
    for number, few in enumerate(torch.split(torch.arange(len(train)), size)):
        pixels, labels = train.take_batch(few)
        generator = make_generator(chosen.seed, "noise", number, bench.computer.device)
        delta = load_method(chosen.method)(
            bench.nets[name],
            pixels,
            labels,
            chosen.noise,
            start=draw_uniform_start(pixels, chosen.noise.radius, generator),
            generator=generator,
            run=run,
        )
        protected[few] = ((pixels + quantize(delta)) * 255).round().to(torch.uint8)
    bench.wait()
    spent = time.monotonic() - began
    largest = int((protected.int() - train.pixels.int()).abs().max())
    assert largest <= round(chosen.noise.radius * 255), largest
    bench.arms[name] = Images(protected, train.labels)
    bench.rows.add(
        "noise",
        {"name": name, "data": bench.data_name, "noise": asdict(chosen.noise)},
        pictures_a_second=round(len(train) / spent, 1),
        tflops=round(count_noise_flops(chosen) * len(train) / spent / 1e12, 2),
        largest_change=largest,
        n=len(train),
        seed=chosen.seed,
        seconds=round(spent, 2),
    )


def load_arm(bench: Bench, name: str) -> Images:
    """Return the training pictures of an arm: as they are, with random noise, or protected."""
    if name not in bench.arms:
        train = bench.split.train
        levels = 8
        generator = torch.Generator(device=bench.computer.device).manual_seed(0)
        random = torch.randint(
            -levels, levels + 1, train.pixels.shape, generator=generator, device=train.pixels.device
        )
        changed = {
            "clean": train.pixels,
            "random noise": (train.pixels + random).clamp(0, 255).to(torch.uint8),
        }[name]
        bench.arms[name] = Images(changed, train.labels)
    return bench.arms[name]


def describe_cell(
    bench: Bench, name: str, radius: int, *, seed: int = 0, adversary_steps: int | None = None
) -> dict[str, Any]:
    """Return what is asked of a victim: the settings of its row."""
    budget = bench.budget
    steps = budget.adversary_steps if adversary_steps is None else adversary_steps
    return {
        "arm": name,
        "radius": radius,
        "adversary_steps": steps if radius else 0,
        "epochs": budget.adversarial_epochs if radius else budget.epochs,
        "batch": budget.batch,
        "width": budget.training.width,
        "seed": seed,
        "data": bench.data_name,
    }


def make_victim(bench: Bench, cell: dict[str, Any]) -> Victim:
    """Return a victim that will be trained for the cell's epochs."""
    an_epoch = -(-len(bench.split.train) // cell["batch"])
    adversary = AdversarySettings(radius=cell["radius"] / 255, steps=cell["adversary_steps"])
    return Victim(
        VictimSettings(net="resnet18", width=cell["width"], batch=cell["batch"]),
        classes=len(bench.split.classes),
        size=bench.budget.training.size,
        steps=max(1, round(cell["epochs"] * an_epoch)),
        seed=cell["seed"],
        computer=bench.computer,
        adversary=adversary if cell["radius"] else None,
    )


def find_finished(bench: Bench, cell: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row of a victim that was trained as far as was planned, if there is one."""
    row = bench.rows.find("victim", cell)
    return row if row and row["epochs"] == row["planned"] else None


def estimate_epoch(bench: Bench, cell: dict[str, Any]) -> float:
    """Return about how long an epoch of a victim takes."""
    train = bench.split.train
    an_epoch: int = -(-len(train) // cell["batch"])
    probe = make_victim(bench, {**cell, "epochs": PROBE / an_epoch})
    return OVERHEAD * an_epoch * measure_step(bench, probe.run_updates(train))


def train_victim(bench: Bench, cell: dict[str, Any], epochs: int) -> None:
    """Train a victim for so many epochs, which may be fewer than asked, and write its row."""
    note(f"victim of {cell['arm']} at {cell['radius']}/255: {epochs} epochs")
    began = last = time.monotonic()
    trained, curve, longest = None, [], 0.0
    with bench.use_way():
        training = make_victim(bench, {**cell, "epochs": epochs}).train(
            load_arm(bench, cell["arm"]), bench.split.test, points=epochs
        )
        while bench.clock.count_left() > SPARE + max(1.3 * longest, ENDING * (not bench.rehearse)):
            try:
                curve.append(next(training))
            except StopIteration as end:
                trained = end.value
                break
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
    if not curve:
        note("no time for its first epoch")
        return
    spent = trained.seconds if trained else time.monotonic() - began
    seen = len(curve) * len(bench.split.train)
    work = count_victim_flops(cell["width"], seen, cell["adversary_steps"])
    bench.rows.add(
        "victim",
        cell,
        accuracy=curve[-1],
        curve=curve,
        train=trained and trained.train,
        robust_train=trained and trained.attacked,
        epochs=len(curve),
        planned=epochs,
        shortened=len(curve) < cell["epochs"],
        way=bench.way,
        paper_percent=PAPER.get((cell["arm"], cell["radius"])),
        tflops=round(work / max(spent, 1e-6) / 1e12, 2),
        n=1,
        seed=cell["seed"],
        seconds=round(spent, 1),
    )
