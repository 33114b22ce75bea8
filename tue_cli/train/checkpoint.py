"""What lets a training be stopped and gone on with: its checkpoint, and Ctrl-C between steps."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tue_cli.config import TrainSettings
from tue_cli.dataset.manifest import describe_differences, drop_foreign_noise
from tue_cli.errors import BadSetting, OutputProblem
from tue_cli.storage.atomic import write_atomically
from tue_cli.storage.reading import open_regular

if TYPE_CHECKING:
    from tue_cli.core.batches import Images
    from tue_cli.core.loop import Training

CHECKPOINT_SECONDS = 120.0
MOST_BYTES = 1 << 36
"""Of a checkpoint: nets, and what the optimizer keeps of each number in them."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, held back until a step was whole."""


@contextmanager
def defer_interrupt() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the function that this gives is called, which raises `Interrupted`.

    A second Ctrl-C strikes at once. Where Ctrl-C means something else already (a thread, a process
    in the background, a terminal interface), it is left alone.
    """
    former = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or former is not signal.default_int_handler:
        yield lambda: None
        return
    came = False

    def hold(*_: object) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, former)

    def strike() -> None:
        if came:
            raise Interrupted

    signal.signal(signal.SIGINT, hold)
    try:
        yield strike
    finally:
        signal.signal(signal.SIGINT, former)


def refuse_unwritable(folder: Path) -> None:
    """Make a folder where it is missing, and try to write there.

    Raises:
        OutputProblem: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".tue-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputProblem(
            f"The folder {folder} is not writable: {error.strerror}.",
            "Choose another place with -o.",
        ) from None


def write_output(data: bytes, path: Path) -> None:
    """Write a file of a training, whole or not at all.

    Raises:
        OutputProblem: it cannot be written.
    """
    try:
        write_atomically(data, path)
    except OSError as error:
        raise OutputProblem(
            f"{path} cannot be written: {error.strerror or error}.",
            "Free some space or change the permissions, then continue with --resume.",
        ) from None


class Checkpoint:
    """All that an exact `--resume` needs, in one file, replaced whole every few minutes.

    Batches and draws are functions of seed and step, so no generator's state is in it.
    """

    def __init__(
        self,
        path: Path,
        pictures: Images,
        classes: tuple[str, ...],
        settings: TrainSettings,
        trainings: Mapping[str, Training],
    ) -> None:
        from tue_cli.core.loop import Curve

        self.path = path
        self.curves = {role: Curve() for role in trainings}
        self.data_sha256 = _hash_images(pictures)
        self._trainings = trainings
        self._identity = {
            "settings": asdict(settings),
            "classes": list(classes),
            "data": self.data_sha256,
        }
        self._spent = 0.0
        self._began = self._written = time.monotonic()

    def count_seconds(self) -> float:
        """Return the training time of this run and of those it went on from."""
        return self._spent + time.monotonic() - self._began

    def read(self) -> None:
        """Go on where the file says; where there is none, from the start.

        Raises:
            BadSetting: unreadable, or of another training.
        """
        import torch

        from tue_cli.core.loop import Curve

        if not self.path.exists():
            return
        try:
            with open_regular(self.path, MOST_BYTES) as file:
                state: dict[str, Any] = torch.load(file, weights_only=True)
            former = drop_foreign_noise(state["identity"], self._identity)
            changed = describe_differences(former, self._identity)
            if not changed:
                self._spent = state["seconds"]
                self.curves = {role: Curve(values) for role, values in state["curves"].items()}
                for role, training in self._trainings.items():
                    training.load(state["trainings"][role])
        except Exception:  # torch's words for it run to half a page
            raise BadSetting(
                f"The checkpoint {self.path} is damaged, or was not written by tue.",
                "Delete it and start the training again.",
            ) from None
        if changed:
            raise BadSetting(
                f"The checkpoint {self.path} belongs to another training: {changed}.",
                "Use the same pictures and settings, or delete the checkpoint.",
            )

    def is_due(self) -> bool:
        """Say whether the file is a few minutes old."""
        return time.monotonic() - self._written >= CHECKPOINT_SECONDS

    def write_when_due(self) -> None:
        """Write once every few minutes."""
        if self.is_due():
            self.write()

    def write(self) -> None:
        """Replace the file, whole or not at all; between two steps only.

        Raises:
            OutputProblem: it cannot be written; the former one stays.
        """
        import torch

        state = {
            "identity": self._identity,
            "seconds": self.count_seconds(),
            "curves": {role: curve.read_losses() for role, curve in self.curves.items()},
            "trainings": {role: t.get_state() for role, t in self._trainings.items()},
        }
        data = io.BytesIO()
        torch.save(state, data)
        write_output(data.getvalue(), self.path)
        self._written = time.monotonic()


def _hash_images(pictures: Images) -> str:
    """Return the sha256 of the resized pictures and their labels."""
    state = hashlib.sha256(pictures.pixels.cpu().numpy().tobytes())
    state.update(pictures.labels.cpu().numpy().tobytes())
    return state.hexdigest()
