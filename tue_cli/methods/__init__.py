"""The protection methods: what is heavy of those in `config.METHODS` and `config.RECIPES`.

`methods/NAME.py` makes the noise of the method NAME (`perturb`) and trains the nets of the recipe
NAME, each by its entry in `FITS`, in the order of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from tue_cli.config import METHODS, RECIPES
from tue_cli.errors import BadSetting
from tue_cli.methods.surrogate import NetFit, Perturb


def load_method(name: str) -> Perturb[Any]:
    """Return what makes a method's noise, or raise BadSetting with the names there are."""
    if name not in METHODS:
        raise BadSetting(f"There is no method {name!r}.", f"Choose one of: {', '.join(METHODS)}.")
    perturb: Perturb[Any] = import_module(f"tue_cli.methods.{name}").perturb
    return perturb


def load_recipe(name: str) -> Mapping[str, NetFit]:
    """Return what trains each net of a recipe, or raise BadSetting with the names there are."""
    if name not in RECIPES:
        raise BadSetting(f"There is no recipe {name!r}.", f"Choose one of: {', '.join(RECIPES)}.")
    fits: Mapping[str, NetFit] = import_module(f"tue_cli.methods.{name}").FITS
    return fits
