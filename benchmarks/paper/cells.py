"""What is measured: arms and cells, all that decides them, and about what they cost."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from benchmarks.noise import make_published_noise
from benchmarks.paper.settings import BenchSettings
from tue_cli.config import METHODS, TRAINING_NOISE, AdversarySettings, TrainSettings
from tue_cli.noise import Noise
from tue_cli.verify.trials import Trial

COST = {"vgg16": 0.6, "resnet18": 1.0, "resnet50": 2.3, "densenet121": 2.0, "wrn34-10": 9.4}
"""About how much a pass takes, in passes of a ResNet-18 of the same width."""


def hash_settings(*parts: Any) -> str:
    """Return a name that is the same for equal settings."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Arm:
    """How training pictures are protected: a method, its noise, and how its nets are trained."""

    name: str
    method: str
    """Of `config.METHODS`; `random` is noise without a method, nothing leaves pictures clean."""
    noise: Noise
    training: TrainSettings | None
    seed: int
    """Of its noise."""

    def make_key(self, data: str) -> str:
        """Return a name for its pictures, which is the same for equal settings and pictures."""
        return hash_settings(data, {**asdict(self), "name": ""})

    def count_passes(self) -> tuple[float, float]:
        """Return about how many passes its training takes, and its noise a picture."""
        noise, training = self.noise, self.training
        steps, samples, inner = (
            getattr(noise, name, few)
            for name, few in (("steps", 1), ("samples", 1), ("inner_steps", 0))
        )
        a_picture = 0.0 if self.method in ("", "random") else steps * samples * (1 + inner)
        if training is None:
            return 0, a_picture / 100 if self.method in ("lsp", "cuda") else a_picture
        cost = COST[training.net]
        a_step = 3.0
        if training.method in ("tue", "em", "rem"):
            a_step += a_picture
        if training.method in ("tue", "rem"):
            a_step += training.adversary.steps
        whole = training.batch * training.steps * a_step * cost
        return 0 if training.method == "ntga" else whole, a_picture * cost


@dataclass(frozen=True)
class Cell:
    """One figure: a kind of victim on an arm, a few times."""

    arm: Arm
    trial: Trial
    """The first of its victims; the others differ by their seed."""
    seeds: int

    def make_key(self, data: str) -> str:
        """Return its name, which does not hang on how many victims there are."""
        return hash_settings(self.arm.make_key(data), replace(self.trial, seed=0).make_plain())

    def describe(self, data: str, run: Trial) -> dict[str, Any]:
        """Return all that decides one of its victims, as a row tells it."""
        arm = asdict(self.arm)
        del arm["name"]
        return {"data": data, "arm": arm, "trial": run.make_plain()}

    def list_trials(self) -> list[Trial]:
        """Return its victims."""
        first = self.trial.seed
        return [replace(self.trial, seed=first + number) for number in range(self.seeds)]

    def count_passes(self) -> float:
        """Return about how many passes one of its victims takes."""
        trial, victim = self.trial, self.trial.victim
        return trial.steps * victim.batch * (3 + trial.adversary_steps) * COST[victim.net]


def make_arm(budget: BenchSettings, name: str, net: str, **changes: Any) -> Arm:
    """Return a named arm at a budget, its surrogate a net; `changes` are those of an ablation.

    `sigma` changes the score network, everything else the noise.
    """
    method = {"TUE without score": "tue", "SEM": "rem"}.get(name, name.lower())
    if name in ("clean", "random noise"):
        kind = "" if name == "clean" else "random"
        return Arm(name, kind, make_published_noise(), None, budget.seed)
    sigma = changes.pop("sigma", TrainSettings().sigma)
    noise = make_published_noise() if method == "tue" else METHODS[method].noise
    own = {field.name: getattr(noise, field.name) for field in fields(noise)}
    wanted = own | {
        "gray_ratio": 0.0,
        "steps": budget.tap_steps if method == "tap" else budget.noise_steps,
        "inner_steps": 0 if name == "SEM" else budget.inner_steps,
    }
    if method in ("tue", "rem"):
        wanted["samples"] = budget.samples
    wanted |= changes
    if name == "TUE without score":
        wanted["score_ratio"] = 0.0
    noise = replace(noise, **{field: wanted[field] for field in own})
    if not METHODS[method].recipes:
        return Arm(name, method, noise, None, budget.seed)
    recipe = METHODS[method].recipes[0]
    training = TrainSettings(
        method=recipe,
        net=net,
        width=budget.width,
        size=budget.size,
        score_width=budget.score_width,
        # The control has no use for a score network; the recipe wants one.
        score_steps=1 if noise.idle_nets else budget.score_steps,
        sigma=sigma,
        steps=budget.clean_steps if recipe == "clean" else budget.steps,
        batch=budget.batch,
        noise=noise if recipe == method else TRAINING_NOISE[recipe],
        adversary=AdversarySettings(steps=budget.adversary_steps),
        seed=budget.seed,
    )
    return Arm(name, method, noise, training, budget.seed)
