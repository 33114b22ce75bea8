"""What README and docs tell a user to type, typed: every `tue` command of the pages, in order."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
ENOUGH = 110
"""Pictures of a class: `tue verify` wants 200 in all."""
QUICKER = {
    # Behind what the page says: the same commands with less work. A value given twice is the last.
    "protect": "--steps 1",
    "check": "",
    "verify": "--budget 1s --attacks std",
    "train": "--steps 9999 --score-steps 2 --width 4 --score-width 4 --max-time 2s",
    "export": "",
    "secret": "",
    "doctor": "",
}
WORKS = {
    "protect": (0,),
    "check": (0, 5),  # 5: `downloaded` holds a copy that was changed
    "verify": (0,),
    "train": (0,),
    "export": (0,),
    "secret": (0,),
    "doctor": (0,),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder in which the pages' commands can be given: the files and folders that they name."""
    levels = np.random.default_rng(0)
    classes = {"photos/sea": (30, 90, 200), "photos/wood": (40, 130, 30)}
    for name, colour in {**classes, "others/rust": (190, 80, 20)}.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for number in range(ENOUGH):
            pixels = levels.normal(colour, 25, (40, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    for jpeg in (tmp_path / "a.jpg", tmp_path / "photos" / "sea" / "last.jpg"):
        Image.open(tmp_path / "photos" / "sea" / "000.png").save(jpeg)
    shutil.copy(tmp_path / "photos" / "wood" / "000.png", tmp_path / "b.png")
    shutil.copytree(tmp_path / "photos", tmp_path / "DATA")
    return tmp_path


def lines_of(page: str) -> list[str]:
    """The lines of a page's shell blocks that call tue, without those that install it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    found = [line.partition(" #")[0].strip() for line in "".join(blocks).splitlines()]
    return [line for line in found if re.search(r"\btue \w", line) and "pip install" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/usage.md"])
def test_the_commands_of_a_page_work_one_after_the_other(page: str, place: Path) -> None:
    lines = [line for line in lines_of(page) if not re.search(r"\btue ui\b|--watch", line)]
    assert len(lines) >= 6
    for line in lines:
        (name,) = re.findall(r"\btue (\w+)", line)
        command = line.replace("tue ", f"{sys.executable} -m tue_cli ", 1)
        command = re.sub(r"--budget \S+|--attacks \S+", "", f"{command} ").strip()
        done = subprocess.run(
            f"{command} {QUICKER[name]}",
            shell=True,
            cwd=place,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        works = (3,) if "--no-recursive" in line else WORKS[name]  # here, all lie in subfolders
        assert done.returncode in works, f"{line}\n{done.stdout}\n{done.stderr}"
        made = place / "photos-protected"
        if name == "protect" and made.is_dir() and not (place / "downloaded").exists():
            shutil.copytree(made, place / "downloaded")
            changed = place / "downloaded" / "sea" / "001.png"
            Image.open(changed).resize((24, 20)).save(changed)
