"""README and docs: their length, their words, their links, and the commands that they give."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from tue_cli.cli import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "benchmarks" / "README.md", ROOT / "CONTRIBUTING.md"]

WRONG_WORDS = (
    # The glossary's other words for these things, as far as they mean nothing else.
    r"arms?",
    r"colou?rs gone",
    r"degrad(e|ed|es|ing)",
    r"evidence",
    r"(farthest|nearest|near|far) keys",
    r"grey",
    r"keys (near|far|passed over)",
    r"knew attacked",
    r"left aside",
    r"lift(s|ed|ing)?",
    r"mixing",
    r"pass(ed|es|ing)? over",
    r"pictures a step",
    r"rough",
    r"shel(f|ves)",
    r"shifts and flips",
    r"shr(ink|inks|inking|unk)",
    r"smooth places?",
    r"snap(s|ped|ping)?",
    r"squash(es|ed|ing)?",
    r"tally",
    r"total way",
    r"travel(s|led)?",
    r"upright",
    r"what computes",
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose_of(page: Path) -> str:
    """A page without its code, its comments and the targets of its links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    return re.sub(r"`[^`]*`|(?<=\])\([^)]*\)", "", text)


def sentences_of(module: Path) -> str:
    """What a module says to people: its strings of more than a word, but for docstrings."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    unsaid = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    said = [node.value for node in strings if node not in unsaid and isinstance(node.value, str)]
    return "\n".join(text for text in said if " " in text)


def headings_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def commands_of(page: Path) -> list[list[str]]:
    """The words behind `tue` in every command of a page's shell blocks."""
    found = []
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        commands: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set("&|;"):
                commands.append([])
            else:
                commands[-1].append(word)
        found += [command[1:] for command in commands if command[:1] == ["tue"]]
    return found


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 170


def test_no_table_of_the_readme_is_wider_than_five_columns() -> None:
    rows = re.findall(r"^\|.*\|$", README.read_text(encoding="utf-8"), re.M)
    assert rows
    assert max(len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows) <= 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_use_the_words_of_the_glossary(page: Path) -> None:
    wrong = re.compile(rf"\b(?:{'|'.join(WRONG_WORDS)})\b", re.I)
    assert [found[0] for found in wrong.finditer(prose_of(page))] == []


@pytest.mark.parametrize("folder", ["tui", "report"])
def test_screens_and_the_report_use_the_words_of_the_glossary(folder: str) -> None:
    wrong = re.compile(rf"\b(?:{'|'.join(WRONG_WORDS)})\b", re.I)
    place = ROOT / "tue_cli" / folder
    text = "\n".join(map(sentences_of, sorted(place.glob("*.py"))))
    for page in place.glob("*.html"):
        body = page.read_text(encoding="utf-8").partition("<body>")[2]
        text += re.sub(r"\{[{%].*?[%}]\}|<[^>]*>", "", body, flags=re.S)
    assert [found[0] for found in wrong.finditer(text)] == []


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_a_page_says_first_whom_it_is_for(page: Path) -> None:
    _, _, first, *_ = page.read_text(encoding="utf-8").splitlines()
    assert first.startswith("This page is for ")


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), target
        if anchor:
            assert anchor in headings_of(place), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_scripts_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\bbenchmarks[./](\w+)(?:\.py|(?= )|$)", text, re.M):
        place = ROOT / "benchmarks" / name
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_can_be_given_as_they_are_written(page: Path) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for words in commands_of(page):
        if not words:
            continue  # `tue` alone opens the terminal app
        command = group.commands[words[0]]
        with command.make_context(words[0], words[1:]) as context:
            assert context.command is command
