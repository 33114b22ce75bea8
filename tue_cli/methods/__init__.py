"""The protection methods, by name: two literals, so that what there is can be seen.

What is known of them without torch is in `config.METHODS` and `config.RECIPES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tue_cli.config import TrainSettings
from tue_cli.core.batches import Pictures
from tue_cli.core.loop import Training
from tue_cli.errors import BadSetting
from tue_cli.methods import clean, cuda, em, lsp, ntga, rem, tap, tue, uc
from tue_cli.methods.surrogate import FrozenNets, Perturb

Fit = Callable[[str, Training, FrozenNets, Pictures, TrainSettings, torch.dtype], Iterator[Tensor]]
"""Role, its training, the nets trained before it, pictures, settings and precision to losses."""

PERTURB: dict[str, Perturb] = {
    "tue": tue.perturb,
    "em": em.perturb,
    "rem": rem.perturb,
    "tap": tap.perturb,
    "ntga": ntga.perturb,
    "lsp": lsp.perturb,
    "cuda": cuda.perturb,
    "uc": uc.perturb,
}
"""What makes each method's noise."""

FIT: dict[str, Fit] = {
    "tue": tue.fit_role,
    "em": em.fit_role,
    "rem": rem.fit_role,
    "clean": clean.fit_role,
    "ntga": ntga.fit_role,
    "uc": uc.fit_role,
}
"""What trains each recipe's nets."""


def method_named(name: str) -> Perturb:
    """Return a method's noise, or raise BadSetting with the names there are."""
    if name not in PERTURB:
        raise BadSetting(f"There is no method {name!r}.", f"Choose one of {', '.join(PERTURB)}.")
    return PERTURB[name]
