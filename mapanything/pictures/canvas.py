"""Matplotlib figures of exactly so many pixels, dark, without pyplot: no state, no window, no backend to choose.

Matplotlib is imported where a figure is made. Words over a picture are here too: `write_text`, `Places`, `write_names`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.camera import project
from mapanything.geometry.rigid import invert, transform
from mapanything.pictures.colors import DARK, GRID, LIGHT, rgb
from mapanything.pictures.render import View
from mapanything.pictures.scenes import Scene

DPI = 100
NEAR_NAMES = 60.0  # metres; names of vehicles farther away would only cover each other


def new_figure(width: int, height: int) -> Any:
    """A dark figure of exactly width x height pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=DARK)


def png_bytes(figure: Any) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def figure_image(figure: Any) -> NDArray[np.uint8]:
    """The figure as (H, W, 3) uint8, the pixels of `png_bytes`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def size_of(figure: Any) -> tuple[int, int]:
    """The figure's width and height in pixels."""
    width, height = figure.get_size_inches() * DPI
    return round(width), round(height)


def axes_at(figure: Any, left: float, top: float, width: float, height: float, title: str = "", tick_size: int = 11) -> Any:
    """Axes at pixel positions counted from the upper left corner."""
    total = size_of(figure)
    axes = figure.add_axes((left / total[0], 1 - (top + height) / total[1], width / total[0], height / total[1]))
    axes.set_facecolor(DARK)
    axes.tick_params(colors=LIGHT, labelsize=tick_size)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    if title:
        axes.set_title(title, color=LIGHT, fontsize=13)
    return axes


def text_at(figure: Any, left: float, middle: float, text: str, size: float, color: Any = LIGHT) -> None:
    """A line of text from `left` on, at half its height; pixels from the upper left corner."""
    width, height = size_of(figure)
    figure.text(left / width, 1 - middle / height, text, color=color, fontsize=size, va="center")


def plain_ticks(axis: Any, places: Sequence[float]) -> None:
    """Ticks just there, with numbers as one writes them, on a logarithmic axis too."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    formatter = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set(major_locator=FixedLocator(list(places)), minor_locator=NullLocator(), major_formatter=formatter)


def write_text(
    axes: Any, place: NDArray[np.floating], text: str, color: Any, size: float, *, outline: float = 2.5, **options: Any
) -> None:
    """Text with a dark outline, centred where `options` say nothing else."""
    from matplotlib import patheffects

    effects = [patheffects.withStroke(linewidth=outline, foreground=DARK)]
    style = {"ha": "center", "va": "center", "clip_on": True, "path_effects": effects} | options
    axes.text(*place, text, color=rgb(color), fontsize=size, **style)


class Places:
    """Finds places for names where they cover neither each other nor what is `taken`: areas (2, 2), lower and upper."""

    def __init__(self, taken: Iterable[NDArray[np.floating]], low: Sequence[float], high: Sequence[float]) -> None:
        self.taken, self.low, self.high = list(taken), np.asarray(low), np.asarray(high)

    def find(self, candidates: Iterable[NDArray[np.floating]], half: NDArray[np.floating]) -> NDArray | None:
        """The first of the candidates (2,) around which `half` (2,) to each side is free; it is taken from then on."""
        for place in candidates:
            area = np.stack([place - half, place + half])
            if (area[0] < self.low).any() or (area[1] > self.high).any():
                continue
            if all((area[1] <= other[0]).any() or (other[1] <= area[0]).any() for other in self.taken):
                self.taken.append(area)
                return place
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """Words at a point (3,) of a scene; `important` ones are written at any distance, `bold` ones larger too."""

    point: NDArray[np.floating]
    text: str
    color: Any
    important: bool = False
    bold: bool = False


def scene_names(scene: Scene) -> list[Name]:
    """The agents' names, then the vehicles' numbers."""
    agents = [
        Name(axes.world_from_axes[:3, 3] - [0, 4.0, 0], f"agent {axes.label}", axes.color, True, True) for axes in scene.axes
    ]
    boxes, labels = scene.boxes, {axes.label for axes in scene.axes}
    tops = boxes.world_from_box[:, :3, 3] - [0, 1, 0] * (boxes.half_size + 0.7)
    return agents + [Name(*row) for row in zip(tops, boxes.labels, boxes.colors, strict=True) if row[1] not in labels]


def write_names(panel: Any, view: View, names: Iterable[Name]) -> None:
    """Writes names where the view shows their points; axes in the view's pixels. The first ones have the first choice."""
    places = Places([], [0, 0], [view.width, view.height])
    camera_from_world = invert(view.world_from_camera)
    above = bool(camera_from_world[2, 1] > 0.9)  # it looks down: what lies above a point covers it
    for name in names:
        uv, z = project(transform(camera_from_world, name.point[None]), view.intrinsics)
        if z[0] < 1.0 or (z[0] > NEAR_NAMES and not (name.important or above)):
            continue
        size = 12 if name.bold else 9
        half = np.array([0.48 * size * len(name.text), 0.75 * size])
        lift = 26 if above else 0
        steps = [(0, -lift - step) for step in (0, 20, 40, 60)] if name.bold else [(0, 0)]
        if above and not name.important:  # a vehicle's number beside it
            steps = [(24, 0), (-24, 0), (0, -22), (0, 22)]
        place = places.find([uv[0] + step for step in steps], half)
        if place is not None:
            write_text(panel, place, name.text, name.color, size, fontweight="bold" if name.bold else "normal")
