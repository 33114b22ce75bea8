"""The protection methods, by name: one literal, so that what there is can be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tue_cli.errors import BadSetting
from tue_cli.methods import em, tue
from tue_cli.methods.surrogate import FrozenNets, Perturb
from tue_cli.numerics.batches import Pictures
from tue_cli.numerics.loop import Training
from tue_cli.settings import TrainSettings

Fit = Callable[[str, Training, FrozenNets, Pictures, TrainSettings, torch.dtype], Iterator[float]]
"""Role, its training, the nets trained before it, pictures, settings and precision to losses."""


@dataclass(frozen=True)
class Method:
    """A way to protect pictures."""

    roles: tuple[str, ...]
    """The nets it needs, in the order in which they are trained."""
    fit_role: Fit
    perturb: Perturb
    paper: str


METHODS = {
    "tue": Method(("score", "surrogate"), tue.fit_role, tue.perturb, "Fang et al. 2023"),
    "em": Method(("surrogate",), em.fit_role, em.perturb, "Huang et al. 2021"),
}


def method_named(name: str) -> Method:
    """Return a method, or raise BadSetting with the names there are."""
    if name not in METHODS:
        raise BadSetting(f"There is no method {name!r}.", f"Choose one of {', '.join(METHODS)}.")
    return METHODS[name]
