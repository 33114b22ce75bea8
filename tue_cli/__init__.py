"""tue protects pictures from being learned from."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Return `Protector`, the library, which is imported only where it is asked for.

    By its name, since no other module may lean on it through this one; `__init__.pyi` has its type.
    """
    if name == "Protector":
        return import_module("tue_cli.protect.protector").Protector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
