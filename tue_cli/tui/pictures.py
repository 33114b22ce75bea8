"""Pictures in a terminal: two square dots in each cell; their own pixels where a terminal can."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import ClassVar, Literal

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.geometry import Size
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Label

from tue_cli.events import Looked
from tue_cli.images.thumbnails import read_size, render_dots
from tue_cli.text import escape

UPPER_HALF = "\N{UPPER HALF BLOCK}"
Sharp = Callable[[io.BytesIO], Widget]


def load_sharp(protocol: Literal["kitty", "sixel"]) -> Sharp:
    """Return the widget that draws by a graphics protocol.

    It asks the terminal how large a cell is: to be called before Textual reads what it says.
    """
    from textual_image.widget import SixelImage, TGPImage

    return SixelImage if protocol == "sixel" else TGPImage


class View(Widget):
    """One view of a picture, never distorted; it hangs from above."""

    draw: ClassVar[Sharp | None] = None
    """Draws by the terminal's graphics protocol, where it has one; else half blocks are drawn."""

    def __init__(self, view: bytes) -> None:
        super().__init__()
        self._view = view
        self._drawn: tuple[tuple[int, int], list[Strip]] | None = None

    def compose(self) -> ComposeResult:
        """Leave the drawing to the protocol, if there is one."""
        if View.draw is not None:
            yield View.draw(io.BytesIO(self._view))

    def render_line(self, y: int) -> Strip:
        """Draw one row of cells."""
        width, height = self.size
        if width < 1 or height < 1 or View.draw is not None:
            return Strip.blank(width, self.rich_style)
        if self._drawn is None or self._drawn[0] != (width, height):
            self._drawn = (width, height), self._draw_strips(width, height)
        strips = self._drawn[1]
        return strips[y] if y < len(strips) else Strip.blank(width, self.rich_style)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Tell Textual the height of its own accord."""
        return self.count_rows(width)

    def count_rows(self, width: int) -> int:
        """Return how many rows of cells the view needs at a width."""
        columns, rows = read_size(self._view)
        return max(1, round(width * rows / columns / 2))

    def _draw_strips(self, width: int, height: int) -> list[Strip]:
        pixels = render_dots(self._view, width, 2 * height)
        left = (width - pixels.shape[1]) // 2
        strips = []
        for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
            cells = [Segment(" " * left, self.rich_style)]
            cells += [
                Segment(UPPER_HALF, Style(color=Color.from_rgb(*a), bgcolor=Color.from_rgb(*b)))
                for a, b in zip(upper.tolist(), lower.tolist(), strict=True)
            ]
            strips.append(Strip(cells).adjust_cell_length(width, self.rich_style))
        return strips


class Triptych(Vertical):
    """A picture, its copy, and what was changed; `few`: without the original."""

    def __init__(self, looked: Looked, *, few: bool = False) -> None:
        super().__init__()
        self.looked = looked
        self._few = few

    def compose(self) -> ComposeResult:
        """Draw the views side by side, each under its name."""
        looked = self.looked
        caption = f"{escape(looked.source.name)}   {looked.note}"
        yield Label(caption, classes="caption", markup=False)
        views = [("original", looked.before), ("protected", looked.after)]
        views.append(("difference × 10", looked.difference))
        with Horizontal():
            for title, view in views[1:] if self._few else views:
                with Vertical(classes="view"):
                    yield Label(title, classes="title")
                    yield View(view)

    def on_resize(self) -> None:
        """Make the views equally wide."""
        views = self.query(".view")
        for view in views:
            view.styles.width = self.size.width // len(views)
