"""The page that `tue verify` and `tue protect` write on request, and whether it can be written."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tue_cli.errors import BadSetting, ImageProblem, OutputProblem
from tue_cli.events import Event, Saved
from tue_cli.text import escape

SHOWN = 6
"""Pictures on the page."""


def refuse_report(path: Path) -> None:
    """Refuse a page that could not be written, before any work.

    Raises:
        BadSetting: it is not called .html.
        OutputProblem: its folder is missing or cannot be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise BadSetting(f"The report {escape(path)} is not an HTML file.", "Name it FILE.html.")
    try:
        is_folder, has_folder = path.is_dir(), path.parent.is_dir()
    except OSError as error:  # a name that is too long, for one
        raise OutputProblem(
            f"The report {escape(path)} cannot be written: {error.strerror}.",
            "Choose another place for --report.",
        ) from None
    if is_folder:
        raise BadSetting(f"{escape(path)} is a folder.", "Name the report FILE.html.")
    if not has_folder or not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputProblem(
            f"The folder of the report, {escape(path.parent)}, is missing or not writable.",
            "Name a file in another folder with --report.",
        )


def write_report(
    path: Path,
    manifest: dict[str, Any],
    protected: Path,
    original_of: Callable[[dict[str, Any]], Path | None],
    *,
    result: dict[str, Any] | None = None,
    embedding: dict[str, Any] | None = None,
    command: str = "",
) -> Iterator[Event]:
    """Write the page, with the pictures whose change is seen most; who may read it may read them.

    Args:
        path: where it goes.
        manifest: of the copies.
        protected: the folder of the copies.
        original_of: where the original of one of the manifest's pictures lies, if it is known.
        result: what `tue verify` found.
        embedding: its t-SNE.
        command: as it was typed.

    Raises:
        OutputProblem: it cannot be written.
    """
    from tue_cli.images.thumbnails import make_thumbnails
    from tue_cli.report.page import render_page, write_page

    pictures, mode = [], 0o666
    for record in sorted(manifest["pictures"], key=_get_visibility, reverse=True)[:SHOWN]:
        original = original_of(record)
        with suppress(ImageProblem):  # it was reported where it was met
            if original is not None:
                pictures.append(make_thumbnails(original, protected / record["path"], record))
                mode &= _choose_mode(original)
    html = render_page(
        manifest=manifest, pictures=pictures, result=result, embedding=embedding, command=command
    )
    write_page(html, path, mode)
    yield Saved(None, path, len(html.encode()), None)


def _get_visibility(record: dict[str, Any]) -> float:
    """Return how visible a copy's change is, as its entry tells."""
    return float(record.get("delta_e") or 0)


def _choose_mode(original: Path) -> int:
    """Return who may read an original: the user alone where that is not to be known."""
    try:
        return stat.S_IMODE(original.stat().st_mode)
    except OSError:
        return 0o600
