"""The user's secret, on which codes and noise depend, and the codes that were chosen with it.

Both lie in the user's data folder. Whoever has the secret can make the same noise again, so it is
written nowhere else: not in a manifest, a report or a message.
"""

from __future__ import annotations

import errno
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import platformdirs

from tue_cli.dataset.discover import normalize_name
from tue_cli.errors import BadSetting, OutputProblem, TueError
from tue_cli.events import Done, Job
from tue_cli.storage.atomic import Folder, write_atomically
from tue_cli.storage.lines import LineFile, read_lines
from tue_cli.storage.reading import explain_error, is_name, read_file
from tue_cli.text import escape

SECRET: Final = "secret"
"""The file of the secret, in the user's data folder and in an output's work folder."""
CODES: Final = "codes.jsonl"
"""The file of the chosen codes, beside the secret."""

_HEAD: Final = "tue-secret-1"
_BYTES: Final = 32
_MOST: Final = 1_000
"""Bytes of a secret's file, which has 78."""


@dataclass(frozen=True)
class Secret:
    """256 random bits that only the user has."""

    _bits: bytes = field(repr=False)

    def derive(self, *parts: str) -> bytes:
        """Return 32 bytes that nobody without the secret can tell from random: HMAC-SHA256."""
        # Each part brings its length, so that no two lists of parts are one text.
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hmac.digest(self._bits, text.encode("utf-8", "surrogatepass"), "sha256")

    def derive_number(self, *parts: str) -> int:
        """Return a whole number below 2**64, as `derive` does."""
        return int.from_bytes(self.derive(*parts)[:8], "big")

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits by which two machines can be compared."""
        return self.derive("fingerprint").hex()[:8]

    def format(self) -> str:
        """Return the text of its file."""
        return f"{_HEAD} {self._bits.hex()}\n"


def make_secret() -> Secret:
    """Return a new one."""
    return Secret(secrets.token_bytes(_BYTES))


def parse_secret(text: str, where: str) -> Secret:
    """Read the text of a secret's file.

    Raises:
        BadSetting: it is none.
    """
    found = re.fullmatch(rf"{_HEAD} ([0-9a-f]{{{2 * _BYTES}}})", text.strip())
    if found is None:
        raise BadSetting(
            f"{where} contains no secret.",
            f"A file that `tue secret export` wrote has one line, which begins with {_HEAD}.",
        )
    return Secret(bytes.fromhex(found[1]))


def find_folder() -> Path:
    """Return the user's data folder, where the secret is kept; raise OSError without a home."""
    try:
        return platformdirs.user_data_path("tue")
    except RuntimeError as error:
        raise OSError(errno.ENOENT, "you have no home folder") from error


def read_secret(folder: Path | None = None) -> Secret | None:
    """Return the secret that a folder keeps, by default the user's; None where there is none.

    Raises:
        TueError: there is a damaged one.
        OSError: the folder or the file cannot be read.
    """
    path = (folder or find_folder()) / SECRET
    try:
        return parse_secret(read_file(path, _MOST).decode("ascii", "replace"), escape(path))
    except FileNotFoundError as error:
        if path.is_symlink():
            raise OSError(errno.ENOENT, "it is a link that leads nowhere", str(path)) from error
        return None
    except BadSetting as error:
        raise TueError(
            error.message,
            "Import the one you exported with `tue secret import FILE`, or make a new one with "
            "`tue secret new`.",
        ) from None


def keep_secret(secret: Secret) -> Secret:
    """Write a first secret into the user's data folder; return it, or the one that was faster.

    Raises:
        OSError: the folder cannot be written.
        TueError: there is a damaged one.
    """
    with _write_aside(secret) as scratch:
        place = scratch.with_name(SECRET)
        try:
            # Unlike a rename, a link does not replace what another process has put there meanwhile.
            os.link(scratch, place)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            scratch.replace(place)
    if (kept := read_secret()) is None:
        raise OSError(errno.ENOENT, "another program removed it", str(place))
    return kept


@contextmanager
def _write_aside(secret: Secret) -> Iterator[Path]:
    """Write a secret beside its place, and remove what is left there afterwards."""
    scratch = make_folder() / f"{SECRET}-{secrets.token_hex(8)}"
    write_atomically(secret.format().encode(), scratch, 0o600)
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def read_codes() -> dict[str, str]:
    """Return the codes that were chosen so far, by class as `mark_class` writes it.

    What cannot be read counts as not chosen.
    """
    chosen: dict[str, str] = {}
    with suppress(OSError):
        for mark, code in read_lines(find_folder() / CODES, _parse_choice):
            chosen.setdefault(mark, code)
    return chosen


def keep_codes(chosen: Mapping[str, str]) -> None:
    """Add codes to those that were chosen; where the folder cannot be written, do nothing.

    The first choice for a class stays.
    """
    known = read_codes()
    new = {mark: code for mark, code in chosen.items() if mark not in known}
    if not new:
        return
    with suppress(OSError), Folder(make_folder()) as folder, LineFile(folder, CODES) as file:
        file.append(*({"class": mark, "code": code} for mark, code in new.items()))


def mark_class(secret: Secret, weights_sha256: str, name: str) -> str:
    """Return what stands for a class of weights among the chosen codes; it hides the name."""
    return secret.derive("class", weights_sha256, normalize_name(name)).hex()[:32]


def _parse_choice(line: Any) -> tuple[str, str] | None:
    if isinstance(line, dict) and is_name(line.get("class")) and is_name(line.get("code")):
        return line["class"], line["code"]
    return None


def make_folder() -> Path:
    """Return the user's data folder, made for nobody else where it is missing."""
    folder = find_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class SecretSummary:
    """What is known of the user's secret; never the secret itself."""

    path: Path
    """Where it is kept."""
    fingerprint: str | None
    """None where there is none yet."""
    former: Path | None = None
    """Where the one it replaced is kept."""


def show_secret() -> Job[SecretSummary]:
    """Say where the secret is kept, and its fingerprint.

    Raises:
        TueError: it is damaged or cannot be read.
    """
    found, path = _read_own(), find_folder() / SECRET
    if found is None:
        lines = ["There is no secret yet: the first `tue protect` makes one."]
    else:
        lines = [
            f"Secret: {escape(path)}",
            f"Fingerprint: {found.fingerprint}  (machines with the same one have the same secret)",
            "Next: tue secret export FILE  (keep it where nobody else can read it)",
        ]
    yield Done(SecretSummary(path, found.fingerprint if found else None), tuple(lines))


def export_secret(target: Path) -> Job[SecretSummary]:
    """Write the secret to a new file that only the user can read, or to stdout for `-`.

    Raises:
        TueError: there is no secret, or it cannot be read.
        OutputProblem: the file exists or cannot be written.
    """
    try:
        found = read_secret() or keep_secret(make_secret())
    except OSError as error:
        raise _explain_problem(error) from error
    summary = SecretSummary(find_folder() / SECRET, found.fingerprint)
    if str(target) == "-":
        yield Done(summary, (found.format().strip(),))
        return
    if os.path.lexists(target):
        raise OutputProblem(f"{escape(target)} exists already.", "Choose another name.")
    try:
        write_atomically(found.format().encode(), target, 0o600)
    except OSError as error:
        raise OutputProblem(
            f"{escape(target)} cannot be written: {error.strerror or error}.",
            "Choose another place.",
        ) from error
    yield Done(
        summary,
        (
            f"Exported the secret to {escape(target)}.",
            "Next: tue secret import FILE, on the other machine. Whoever has this file can make "
            "your noise again.",
        ),
    )


def import_secret(source: Path) -> Job[SecretSummary]:
    """Take over a secret from a file, or from stdin for `-`; the former one is kept beside it.

    Raises:
        BadSetting: the file cannot be read, or holds no secret.
        TueError: the data folder cannot be written.
    """
    is_stdin = str(source) == "-"
    try:
        text = sys.stdin.read(_MOST) if is_stdin else read_file(source, _MOST).decode()
    except (OSError, ValueError) as error:
        raise BadSetting(
            f"{escape(source)} cannot be read: {explain_error(error)}.",
            "Name a file that `tue secret export` wrote.",
        ) from error
    secret = parse_secret(text, "stdin" if is_stdin else escape(source))
    with suppress(TueError):  # what is damaged is set aside, too
        if (own := _read_own()) is not None and own.fingerprint == secret.fingerprint:
            yield Done(
                SecretSummary(find_folder() / SECRET, secret.fingerprint),
                ("Nothing to do: this is the secret in use.",),
            )
            return
    yield from _replace(secret, "Imported the secret.")


def renew_secret() -> Job[SecretSummary]:
    """Make a new secret; the former one is kept beside it.

    Raises:
        TueError: the data folder cannot be written.
    """
    yield from _replace(make_secret(), "Made a new secret.")


def _replace(secret: Secret, told: str) -> Iterator[Any]:
    """Keep a secret in the place of the former one, which gets another name."""
    try:
        # It is on the disk before the former one loses its name.
        with _write_aside(secret) as scratch:
            path = scratch.with_name(SECRET)
            former = _keep_former(path) if os.path.lexists(path) else None
            scratch.replace(path)
    except OSError as error:
        raise _explain_problem(error) from error
    lines = [told, f"Fingerprint: {secret.fingerprint}"]
    if former is not None:
        lines.append(f"The former secret is kept in {escape(former)}")
    lines.append(
        "Classes without copies get new codes from now on. Finished copies stay as they are."
    )
    yield Done(SecretSummary(path, secret.fingerprint, former), tuple(lines))


def _keep_former(path: Path) -> Path:
    """Give what is in a secret's place a name of its own, and return that.

    Unlike a rename, a link takes no name that another process has just given.
    """
    number = 0
    while True:
        number += 1
        former = path.with_name(f"{SECRET}-former-{number}")
        if os.path.lexists(former):
            continue
        try:
            os.link(path, former)
        except FileExistsError:
            continue
        except OSError:  # a folder, or a file system without links
            path.rename(former)
        return former


def _read_own() -> Secret | None:
    try:
        return read_secret()
    except OSError as error:
        raise _explain_problem(error) from error


def describe_problem(error: OSError) -> str:
    """Return in a sentence why the secret cannot be used."""
    where = ""
    with suppress(OSError):
        where = f" in {escape(find_folder())}"
    return f"Your secret{where} cannot be used: {error.strerror or error}."


def _explain_problem(error: OSError) -> TueError:
    return TueError(
        describe_problem(error),
        "Make sure that it can be read and written, or set XDG_DATA_HOME to another folder.",
    )
