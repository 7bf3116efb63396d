"""A training run's curves: what its log.txt says per epoch, and the newest picture it drew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapanything.pictures.canvas import axes_at, new_figure, png_bytes, text_at
from mapanything.pictures.colors import GRID, LIGHT, PREDICTED, TRUE, rgb

WIDTH, TOP, PANEL_HEIGHT, COLUMNS = 1600, 60, 300, 3
KINDS = {"train": PREDICTED, "validate": TRUE}
MOST_PANELS = 12  # the loss and its terms are 11
NO_LOSSES = ("seconds", "_usable")  # endings of what is said of train and validate beside them


def draw_run(name: str, entries: Sequence[Mapping[str, Any]], picture: NDArray[np.uint8] | None = None) -> bytes:
    """PNG bytes: a panel for the loss and each of its terms, as training and validation report them, and the picture below.

    Args:
        entries: of log.txt, one per epoch, with `train_...` and `validate_...` among their keys.
        picture: (H, W, 3).
    """
    quantities = _quantities(entries)[:MOST_PANELS]
    rows = max(1, -(-len(quantities) // COLUMNS))
    below = None
    if picture is not None:
        height = max(1, round((WIDTH - 40) * picture.shape[0] / picture.shape[1]))
        below = np.asarray(Image.fromarray(picture).resize((WIDTH - 40, height), Image.Resampling.BICUBIC))
    height = TOP + rows * PANEL_HEIGHT + (below.shape[0] + 20 if below is not None else 0)
    figure = new_figure(WIDTH, height)
    text_at(figure, 20, 30, f"{name}: {len(entries)} {'epoch' if len(entries) == 1 else 'epochs'}", 18)
    for i, (kind, color) in enumerate(KINDS.items()):
        text_at(figure, WIDTH - 330 + 150 * i, 30, f"—●—  {kind}", 13, rgb(color))
    if not quantities:
        figure.text(0.5, 0.5 * PANEL_HEIGHT / height, "no epoch is finished yet", color=LIGHT, fontsize=16, ha="center")
    for i, quantity in enumerate(quantities):
        _draw_curve(figure, i, quantity, entries)
    if below is not None:
        figure.figimage(below, 20, 20, origin="upper")
    return png_bytes(figure)


def _quantities(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names without `train_` and `validate_`: the loss, then its terms by name."""
    keys = {key for entry in entries for key, value in entry.items() if isinstance(value, (int, float))}
    keys = {key for key in keys if not key.endswith(NO_LOSSES)}
    names = {key.removeprefix(f"{kind}_") for kind in KINDS for key in keys if key.startswith(f"{kind}_")}
    return sorted(names, key=lambda name: (name != "loss", name))


def _draw_curve(figure: Any, place: int, quantity: str, entries: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    row, column = divmod(place, COLUMNS)
    width, top = WIDTH / COLUMNS, TOP + row * PANEL_HEIGHT + 40
    axes = axes_at(figure, column * width + 75, top, width - 100, PANEL_HEIGHT - 90, quantity, 10)
    axes.set_xlabel("epoch", color=LIGHT, fontsize=11)
    axes.grid(color=GRID, linewidth=0.6)
    values: list[float] = []
    epochs: list[float] = []
    for kind, color in KINDS.items():
        points = [(entry.get("epoch", i), entry.get(f"{kind}_{quantity}")) for i, entry in enumerate(entries)]
        points = [(x, y) for x, y in points if isinstance(y, (int, float)) and math.isfinite(y)]
        if points:
            axes.plot(*zip(*points), color=rgb(color), marker="o", markersize=4, linewidth=1.8)
            values += [y for _, y in points]
            epochs += [x for x, _ in points]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5), numticks=9),
            minor_locator=NullLocator(),
            major_formatter=FuncFormatter(lambda value, _: f"{value:g}"),
        )
    if epochs:
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
