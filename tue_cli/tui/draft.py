"""What a person has chosen so far, and what was found out about it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Generator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tue_cli.config import METHODS, ProtectSettings
from tue_cli.events import Event, Looked
from tue_cli.fields import format_command
from tue_cli.protect.plan import ProtectSpec

LABELS = (
    ("auto", "Auto", "Each subfolder is a class where there are several; else all are one."),
    ("folders", "Folders", "Each subfolder is a class, such as a person, a product, a style."),
    ("single", "One class", "All pictures get one kind of noise: for pictures of one thing."),
    ("cluster", "By looks", "Pictures that look alike become a class: for a mixed folder."),
    ("csv", "A table", "A CSV file with the columns path,class says it."),
)
"""Ways to say what a class is: the mode, its name, and what it means."""


@dataclass(eq=False)
class Draft:
    """A protection in the making, shared by the screens."""

    spec: ProtectSpec
    surveyed: dict[str, Any]
    """The facts of the survey of its folder."""
    looked: list[Looked] = field(default_factory=list)
    estimate: dict[str, Any] = field(default_factory=dict)
    looked_at: ProtectSpec | None = None
    """For which the pictures and the estimate hold."""
    _scratch: str = ""

    @property
    def is_fresh(self) -> bool:
        """Whether the pictures show what is chosen now."""
        return self.looked_at == self.spec

    @property
    def output(self) -> Path:
        """Where the copies go."""
        return self.spec.output or Path(self.surveyed["output"])

    def command(self) -> str:
        """Return the equivalent command."""
        return format_command("protect", self.spec)

    def look(self) -> Generator[Event, None, None]:
        """Return the job that makes the pictures to look at; they live as long as the draft."""
        from tue_cli.protect.preview import preview

        if not self._scratch:
            self._scratch = tempfile.mkdtemp(prefix="tue-")
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return preview(self.spec, Path(tempfile.mkdtemp(dir=self._scratch)))

    def protect(self) -> Generator[Event, None, None]:
        """Return the job that protects."""
        from tue_cli.protect.run import protect

        return protect(replace(self.spec, command=self.command()))


def resumed(spec: ProtectSpec, run: dict[str, Any]) -> ProtectSpec:
    """Return `spec` with the settings that a journal or manifest says its run had.

    Where it does not say them, the settings stay as they are.
    """
    try:
        settings = {**run["settings"]}
        noise, said = METHODS[settings["method"]].noise, settings["noise"]
        settings["noise"] = replace(noise, **{own.name: said[own.name] for own in fields(noise)})
        return replace(
            spec,
            settings=ProtectSettings(**settings),
            weights=_asked_for(run["weights"]["name"]),
            format=run["format"],
            quality=run["quality"],
        )
    except (LookupError, TypeError):
        return spec


def _asked_for(name: str) -> str | None:
    """Return what to ask for to get weights of that name; None for what comes unasked."""
    from tue_cli.weights import NETLESS, index

    return None if name in (NETLESS, index()["default"]) else name
