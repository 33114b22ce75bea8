"""What users read: the words of the glossary, and a help that fits its purpose."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_docs import WRONG_WORDS
from test_options import SPECS
from typer.testing import CliRunner

from tue_cli.cli import app
from tue_cli.dataset.remote import Place
from tue_cli.errors import ExitCode, TueError
from tue_cli.fields import list_questions

PACKAGE = Path(__file__).parent.parent / "tue_cli"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
COMMANDS = ("protect", "check", "verify", "train", "export", "doctor", "ui")
WRONG = re.compile(rf"\b(?:{'|'.join(WRONG_WORDS)})\b", re.I)


def strings_of(source: str) -> Iterator[str]:
    """The texts of a module that have a space: its docstrings and comments are none.

    What an f-string fills in is left out.
    """
    nodes = list(ast.walk(ast.parse(source)))
    docstrings = {
        id(line.value)
        for node in nodes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for line in node.body
        if isinstance(line, ast.Expr)
    }
    inside = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = "" if id(node) in docstrings | inside else node.value
        else:
            continue
        if " " in text.strip():
            yield text


@pytest.mark.parametrize(
    "name",
    [path.relative_to(PACKAGE).as_posix() for path in FILES],
)
def test_messages_use_the_words_of_the_glossary(name: str) -> None:
    texts = strings_of((PACKAGE / name).read_text(encoding="utf-8"))
    assert [text for text in texts if WRONG.search(text)] == []


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_uses_the_words_of_the_glossary_and_fits_a_screen(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 100)  # read once, when it is imported
    text = CliRunner().invoke(app, [*command.split(), "--help"]).output
    assert "Usage" in text
    assert WRONG.findall(" ".join(text.replace("│", " ").split())) == []
    everyday = text.partition("─ Advanced ─")[0]
    assert len(everyday.splitlines()) <= 45


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_an_option_is_explained_in_a_line_or_two(spec: type) -> None:
    assert [q.name for q in list_questions(spec) if len(q.declared.help) > 170] == []


def test_every_option_of_protect_is_on_the_panel_of_those_who_need_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 100)  # read once, when it is imported
    text = CliRunner().invoke(app, ["protect", "--help"]).output
    places = [text.index(words) for words in ("Options ─", "Advanced ─", "Research methods ─")]
    assert places == sorted(places)
    assert text.index("--labels") < places[1] < text.index("--seed") < places[2]
    assert places[2] < text.index("--inner-steps")


def test_a_run_without_pictures_says_nothing_of_whom_its_copies_hinder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    ran = CliRunner().invoke(
        app, ["protect", str(tmp_path / "notes.txt"), "-o", str(tmp_path / "out")]
    )
    assert ran.exit_code == ExitCode.SOME_FAILED
    assert "does not have the extension of a picture" in " ".join(ran.output.split())
    assert "hinder" not in ran.output


def test_what_a_file_url_lacks_is_said_without_credentials(tmp_path: Path) -> None:
    with pytest.raises(TueError) as caught:
        Place((tmp_path / "none.tar").as_uri()).list_files()
    assert caught.value.message.endswith("cannot be read: there is no such file or folder.")
    assert caught.value.remedy == "Check the URL."
