"""The command that does the same as a screen: to be copied, kept, and run anywhere."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tue_cli.config import BUDGETS, TrainSettings, VerifySettings
from tue_cli.protect.request import ProtectSpec
from tue_cli.train.run import TrainSpec
from tue_cli.tui.fields import asked
from tue_cli.verify.request import VerifySpec

_PROTECT = {
    "output": "-o",
    "labels": "--labels",
    "key": "--key",
    "settings.noise.radius": "--radius",
    "settings.noise.steps": "--steps",
    "settings.method": "--method",
    "settings.noise.score_ratio": "--score",
    "settings.noise.score_mode": "--score-mode",
    "settings.noise.gray_ratio": "--gray",
    "settings.noise.samples": "--samples",
    "settings.smooth": "--smooth",
    "weights": "--weights",
    "device": "--device",
    "format": "--format",
    "quality": "--quality",
    "existing": "--existing",
    "settings.seed": "--seed",
    "report": "--report",
    "jobs": "--jobs",
}
_VERIFY = {
    "settings.attacks": "--attacks",
    "settings.victims": "--victim",
    "settings.seeds": "--seeds",
    "settings.seed": "--seed",
    "settings.size": "--size",
    "holdout": "--holdout",
    "background": "--background",
    "report": "--report",
    "device": "--device",
    "resume": "--resume",
}
_TRAIN = {
    "settings.method": "--method",
    "settings.net": "--net",
    "settings.width": "--width",
    "settings.size": "--size",
    "settings.steps": "--steps",
    "settings.batch": "--batch",
    "settings.rate": "--rate",
    "settings.score_steps": "--score-steps",
    "settings.score_width": "--score-width",
    "settings.sigma": "--sigma",
    "settings.noise.radius": "--radius",
    "settings.noise.steps": "--noise-steps",
    "settings.noise.score_ratio": "--score",
    "settings.noise.score_mode": "--score-mode",
    "settings.noise.samples": "--samples",
    "settings.adversary.radius": "--adversary-radius",
    "settings.adversary.steps": "--adversary-steps",
    "limit": "--limit",
    "settings.seed": "--seed",
    "device": "--device",
    "resume": "--resume",
    "max_seconds": "--max-time",
}


def protect_command(spec: ProtectSpec) -> str:
    """Return the `tue protect` that does what `spec` says."""
    options = _options(spec, ProtectSpec(spec.paths), _PROTECT)
    return shlex.join(["tue", "protect", *map(str, spec.paths), *options])


def verify_command(spec: VerifySpec, budget: str) -> str:
    """Return the `tue verify` that does what `spec` says, begun from a budget's settings."""
    settings = BUDGETS.get(budget, VerifySettings())
    plain = VerifySpec(spec.protected, spec.original, settings)
    chosen = [] if budget == "quick" else ["--budget", budget]
    places = [str(spec.protected), "--original", str(spec.original)]
    return shlex.join(["tue", "verify", *places, *chosen, *_options(spec, plain, _VERIFY)])


def train_command(spec: TrainSpec, *, lasting: bool = False) -> str:
    """Return the `tue train` that does what `spec` says; `lasting`: from the start, in one go."""
    if lasting:
        spec = replace(spec, resume=False, max_seconds=None)
    plain = TrainSpec(spec.data, spec.output, TrainSettings())
    options = _options(spec, plain, _TRAIN)
    return shlex.join(["tue", "train", str(spec.data), "-o", str(spec.output), *options])


def _options(spec: Any, plain: Any, names: dict[str, str]) -> Iterator[str]:
    """Yield the options that differ from the defaults."""
    for name, option in names.items():
        field = asked(spec, name)
        if field.text == asked(plain, name).text:
            continue
        yield option
        if field.kind is not bool:
            yield f"{field.text}s" if option == "--max-time" else field.text
