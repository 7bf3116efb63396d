"""Sheets: panels in rows under a title, and below them what their colours, marks and lengths mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.pictures.canvas import Name, axes_at, new_figure, plain_ticks, size_of, text_at, write_names, write_text
from mapanything.pictures.colors import DARK, GRID, LIGHT, RING_TEXT, Colors, rgb
from mapanything.pictures.render import View
from mapanything.pictures.scenes import Rings

MARGIN, GAP = 20, 12  # pixels
TITLE, PANEL_TITLE = 52, 38
BAR_SIZE, BAR_ROW = 480, 74
MARK_LINE = 27
RING_SIGN = "○"
RING_NAME_ANGLE = np.deg2rad(60)
TEXT_WIDTH = 9.0  # pixels of a letter of a mark, on average and generously


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A picture in a sheet, shown pixel for pixel.

    Attributes:
        image: (H, W, 3) uint8.
        view: it was drawn by, for `names`.
        metres_per_pixel: gives the panel a scale bar.
    """

    image: NDArray[np.uint8]
    title: str
    view: View | None = None
    names: tuple[Name, ...] = ()
    metres_per_pixel: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True, slots=True)
class Mark:
    """An entry of the legend; `color` (3,) uint8 or Matplotlib's word. `line`: it begins a new line."""

    text: str
    color: Colors | str = LIGHT
    sign: str = "■"
    line: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A colour scale: the part of the map from `start` on, over low..high."""

    text: str
    low: float
    high: float
    map: str = "turbo"
    ticks: tuple[float, ...] = ()
    log: bool = False
    start: float = 0.0


def ring_names(rings: Rings) -> tuple[Name, ...]:
    """Distances of the circles, written on them to the right ahead of the main agent."""
    at = np.array([np.sin(RING_NAME_ANGLE), 0.0, np.cos(RING_NAME_ANGLE)])
    return tuple(Name(at * radius + [0, rings.ground, 0], f"{radius:g} m", RING_TEXT, True) for radius in rings.radii)


def sheet(title: str, rows: Sequence[Sequence[Panel]], marks: Sequence[Mark] = (), bars: Sequence[Bar] = ()) -> Any:
    """A figure just large enough for its panels; `png_bytes` or `figure_image` of canvas.py makes a picture of it."""
    width = 2 * MARGIN + max(sum(panel.size[0] + GAP for panel in row) - GAP for row in rows)
    lines = _flow(marks, width - 2 * MARGIN)
    legend = -(-len(bars) // _bars_per_row(width)) * BAR_ROW + len(lines) * MARK_LINE
    heights = [PANEL_TITLE + max(panel.size[1] for panel in row) for row in rows]
    height = TITLE + sum(heights) + MARGIN + legend + (GAP if legend else 0)
    figure = new_figure(width, height)
    fitting = min(19.0, 1.6 * (width - 2 * MARGIN) / max(len(title), 1))
    text_at(figure, MARGIN, 30, title, fitting)
    top = TITLE
    for row, row_height in zip(rows, heights, strict=True):
        left = MARGIN
        for panel in row:
            _draw_panel(figure, panel, left, top)
            left += panel.size[0] + GAP
        top += row_height
    top += GAP
    for i, bar in enumerate(bars):
        column, line = i % _bars_per_row(width), i // _bars_per_row(width)
        draw_bar(figure, bar, MARGIN + 14 + column * (BAR_SIZE + 60), top + line * BAR_ROW + 6)
    top += -(-len(bars) // _bars_per_row(width)) * BAR_ROW
    for i, line in enumerate(lines):
        for left, mark in line:
            text_at(figure, MARGIN + left, top + (i + 0.5) * MARK_LINE, f"{mark.sign}  {mark.text}", 12, rgb(mark.color))
    return figure


def _bars_per_row(width: int) -> int:
    return max(1, (width - 2 * MARGIN) // (BAR_SIZE + 60))


def _flow(marks: Sequence[Mark], width: int) -> list[list[tuple[int, Mark]]]:
    """The marks in lines, each with its place from the left in pixels."""
    lines: list[list[tuple[int, Mark]]] = []
    left = width + 1
    for mark in marks:
        needed = round(TEXT_WIDTH * (len(mark.text) + 5))
        if mark.line or left + needed > width:
            lines.append([])
            left = 0
        lines[-1].append((left, mark))
        left += needed + 16
    return lines


def _draw_panel(figure: Any, panel: Panel, left: int, top: int) -> None:
    width, height = panel.size
    text_at(figure, left, top + PANEL_TITLE - 15, panel.title, 13)
    top += PANEL_TITLE
    figure.figimage(panel.image, left, size_of(figure)[1] - top - height, origin="upper", zorder=-1)
    axes = axes_at(figure, left, top, width, height)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[], facecolor="none")
    if panel.view is not None:
        write_names(axes, panel.view, panel.names)
    if panel.metres_per_pixel is not None:
        _draw_scale(axes, width, height, panel.metres_per_pixel)


def scale_length(metres: float) -> float:
    """The largest of 1, 2, 5, 10, 20... that is no longer."""
    power = 10.0 ** np.floor(np.log10(metres))
    return float(power * max(step for step in (1, 2, 5) if step * power <= metres * (1 + 1e-9)))


def _draw_scale(axes: Any, width: int, height: int, metres_per_pixel: float) -> None:
    length = scale_length(0.25 * width * metres_per_pixel)
    left, right, y = 24.0, 24.0 + length / metres_per_pixel, height - 24.0
    x, steps = [left, left, left, right, right, right], [y - 6, y + 6, y, y, y - 6, y + 6]
    for color, line_width in ((DARK, 6.0), (LIGHT, 2.0)):
        axes.plot(x, steps, color=color, linewidth=line_width, solid_joinstyle="miter", zorder=20)
    middle = np.array([(left + right) / 2, y - 10])
    write_text(axes, middle, f"{length:g} m", LIGHT, 12, outline=3, va="bottom", clip_on=False, zorder=20)


def draw_bar(figure: Any, bar: Bar, left: int, top: int, width: int = BAR_SIZE) -> None:
    """A colour scale of `width` pixels with its numbers and words below it."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    colors = ListedColormap(colormaps[bar.map](np.linspace(bar.start, 1.0, 256)))
    norm = (LogNorm if bar.log else Normalize)(bar.low, bar.high)
    drawn = figure.colorbar(ScalarMappable(norm, colors), cax=axes_at(figure, left, top, width, 16), orientation="horizontal")
    if bar.ticks:
        plain_ticks(drawn.ax.xaxis, bar.ticks)
    drawn.outline.set_edgecolor(GRID)
    drawn.set_label(bar.text, color=LIGHT, fontsize=12)
