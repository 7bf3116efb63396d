"""Depth maps in colours: dense ones as they are, sparse ones as dots that can be seen, over their darkened image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapanything.pictures.colors import DEPTH_RANGE, depth_colors, error_colors
from mapanything.pictures.comparison import ERROR_BAR
from mapanything.pictures.hidden import mixed_colors
from mapanything.pictures.overlay import stamp
from mapanything.pictures.sheets import Bar, Mark, Panel, sheet

Image3 = NDArray[np.uint8]
Depth = NDArray[np.float32]

DOT = 3  # pixels, odd
WIDTH = 461  # of a panel, four of which lie side by side
DEPTH_BAR = Bar("depth (z), metres", *DEPTH_RANGE, "turbo_r", (2, 5, 10, 20, 50, 100), True)
DIFFERENCE_BAR = replace(ERROR_BAR, text="|predicted - true| depth, metres")


@dataclass(frozen=True, slots=True, eq=False)
class DepthView:
    """One image (H, W, 3) and the z-depths (H, W) known and predicted for it; 0 is unknown, None: there is none.

    Attributes:
        hidden: z-depths of LiDAR returns that the camera cannot see.
        true_is_dense: the true map was rendered (`opv2v.depth.is_dense`); a predicted one always is dense.
    """

    title: str
    image: Image3
    true: Depth | None
    predicted: Depth | None = None
    true_is_dense: bool = False
    hidden: Depth | None = None


def paint(
    values: Depth, known: NDArray[np.bool_], image: Image3, colors: Callable[[NDArray], Image3], width: int, *, dense: bool
) -> Image3:
    """Values (H, W) where `known`, as colours, `width` pixels wide.

    Args:
        dense: pixel for pixel, unknown ones black. Else a dot each over the image, which is darkened and grey; what is
            smallest lies on top.
    """
    height = max(1, round(width * values.shape[0] / values.shape[1]))
    v, u = np.nonzero(known)
    if dense:
        flat = np.zeros((*values.shape, 3), np.uint8)
        flat[v, u] = colors(values[v, u])
        return np.asarray(Image.fromarray(flat).resize((width, height), Image.Resampling.NEAREST))
    grey = Image.fromarray(image).convert("L").resize((width, height), Image.Resampling.LANCZOS)
    out = np.repeat((np.asarray(grey) * 0.35).astype(np.uint8)[..., None], 3, axis=2)
    large_first = np.argsort(-values[v, u], kind="stable")
    v, u = v[large_first], u[large_first]
    row = np.floor((v + 0.5) * height / values.shape[0]).astype(np.int64)
    column = np.floor((u + 0.5) * width / values.shape[1]).astype(np.int64)
    return stamp(out, np.stack([column, row], axis=1), colors(values[v, u]), DOT)


def draw_depths(title: str, views: Sequence[DepthView]) -> Any:
    """A figure with a column per image: the image, its true depth, the predicted one and their difference, as there are."""
    rows: list[list[Panel]] = [[], [], [], []]
    differences, true = [], []
    for view in views:
        image, dense = view.image, view.true_is_dense
        height = max(1, round(WIDTH * image.shape[0] / image.shape[1]))
        small = np.asarray(Image.fromarray(image).resize((WIDTH, height), Image.Resampling.LANCZOS))
        rows[0].append(Panel(small, view.title))
        if view.true is not None:
            known = view.true > 0
            text = f"true depth, {100 * known.mean():.3g}% known"
            values, painted = view.true, known
            if view.hidden is not None:
                painted = known | (view.hidden > 0)
                values = np.where(view.hidden > 0, -view.hidden, view.true)
                text += f", {np.count_nonzero(view.hidden):,} hidden"
            rows[1].append(Panel(paint(values, painted, image, mixed_colors, WIDTH, dense=dense), text))
        if view.predicted is not None:
            trusted = view.predicted > 0
            text = f"predicted depth, {100 * trusted.mean():.3g}% trusted"
            rows[2].append(Panel(paint(view.predicted, trusted, image, depth_colors, WIDTH, dense=True), text))
        if view.true is not None and view.predicted is not None:
            both = (view.true > 0) & (view.predicted > 0)
            difference = np.abs(view.predicted - view.true)
            differences.append(difference[both])
            true.append(view.true[both])
            rows[3].append(Panel(paint(difference, both, image, error_colors, WIDTH, dense=dense), "difference"))
    return sheet(
        title,
        [row for row in rows if row],
        _marks(np.concatenate(differences), np.concatenate(true)) if differences else (),
        (DEPTH_BAR, DIFFERENCE_BAR) if differences else (DEPTH_BAR,),
    )


def _marks(difference: Depth, true: Depth) -> tuple[Mark, ...]:
    if not len(difference):
        return (Mark("no pixel has both a true and a trusted predicted depth", sign="→"),)
    rmse = float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))
    relative = float(np.mean(difference / true, dtype=np.float64))
    return (
        Mark(f"{len(difference):,} pixels compared: median difference {np.median(difference):.2f} m", sign="→"),
        Mark(f"RMSE {rmse:.2f} m, AbsRel {relative:.3f}", sign="→"),
    )
