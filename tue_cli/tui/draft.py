"""What a person has chosen so far, and what was found out about it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path

from tue_cli.events import Job, Looked
from tue_cli.fields import format_command
from tue_cli.protect.request import ProtectSpec
from tue_cli.protect.result import PreviewSummary, ProtectForecast, ProtectSummary

LABELS = (
    (
        "auto",
        "Auto",
        "Each subfolder is a class if there are several; otherwise there is one class.",
    ),
    ("folders", "Folders", "Each subfolder is a class, such as a person, a product or a style."),
    ("single", "One class", "All pictures are one class, such as the work of one person."),
    (
        "cluster",
        "Clusters",
        "Pictures that look alike form a class. Real classes protect much better.",
    ),
    ("csv", "CSV file", "A CSV file with the columns path,class assigns the classes."),
)
"""Ways to say what a class is: the mode, its name, and what it means."""


@dataclass(eq=False)
class Draft:
    """A protection in the making, shared by the screens."""

    spec: ProtectSpec
    default_output: Path
    """Where the copies go unless another place is named."""
    looked: list[Looked] = field(default_factory=list)
    estimate: PreviewSummary | None = None
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
        return self.spec.output or self.default_output

    def write_command(self) -> str:
        """Return the equivalent command."""
        return format_command("protect", self.spec)

    def preview(self) -> Job[PreviewSummary]:
        """Return the job that makes the pictures to look at; they live as long as the draft."""
        from tue_cli.protect.preview import preview

        if not self._scratch:
            self._scratch = tempfile.mkdtemp(prefix="tue-")
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return preview(self.spec, Path(tempfile.mkdtemp(dir=self._scratch)))

    def protect(self) -> Job[ProtectForecast | ProtectSummary]:
        """Return the job that protects."""
        from tue_cli.protect.run import protect

        return protect(replace(self.spec, command=self.write_command()))
