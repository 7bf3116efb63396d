"""Plots over all scenes. Figures only, never pyplot: no display, no state; the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mapanything.evaluation.report import Row, Summary, parts
from mapanything.pictures.canvas import axes_at, new_figure, png_bytes
from mapanything.pictures.colors import GRID, LIGHT

PANELS = (
    ("pose_translation_m", "pose translation, m"),
    ("pose_rotation_deg", "pose rotation, °"),
    ("auc_10", "pose AUC@10"),
    ("scale_error", "scale error"),
    ("depth_rmse_m", "depth RMSE, m"),
    ("depth_abs_rel", "depth AbsRel"),
    ("chamfer_m", "Chamfer, m"),
    ("bev_iou", "BEV IoU"),
)
SHARES = {"auc_10", "bev_iou"}  # between 0 and 1; everything else is an error whose models differ by orders of magnitude
COLORS = {"single": "#ff9100", "coop": "#00e5ff"}
STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
SIZE = (1920, 1000)


def metrics_png(rows: Sequence[Row]) -> bytes:
    """Draws a panel per metric: every scene a dot, the box from quartile to quartile with the median, per model and mode."""
    figure = new_figure(*SIZE)
    of_part = parts(rows)
    models = list(dict.fromkeys(model for model, _ in of_part))
    modes = list(dict.fromkeys(mode for _, mode in of_part))
    for place, (name, title) in enumerate(PANELS):
        axes = _panel(figure, 2, 4, place, title)
        for (model, mode), values in of_part.items():
            centre = models.index(model) + (modes.index(mode) - (len(modes) - 1) / 2) * 0.36
            figures = np.array([row.measured.values[name] for row in values])
            _box(axes, centre, figures[np.isfinite(figures)], COLORS[mode])
        axes.set_xticks(range(len(models)), models)
        axes.set_xlim(-0.6, len(models) - 0.4)
        _scale(axes, [row.measured.values[name] for row in rows], name in SHARES)
    _legend(figure, modes)
    return png_bytes(figure)


def _box(axes: Any, centre: float, values: np.ndarray, color: str) -> None:
    if not len(values):
        return
    low, middle, high = np.percentile(values, [25, 50, 75])
    axes.bar(centre, high - low, 0.3, bottom=low, color=color, alpha=0.25, linewidth=0)
    axes.hlines(middle, centre - 0.15, centre + 0.15, color=color, linewidth=2.5)
    offsets = np.linspace(-0.1, 0.1, len(values)) if len(values) > 1 else np.zeros(1)  # by order, so that dots stay apart
    axes.scatter(centre + offsets, values, s=14, color=color, alpha=0.7, linewidths=0, zorder=3)


def groups_png(summary: Summary) -> bytes:
    """Draws what depends on where: depth by distance, pose by camera and by the vehicle's role. Means over scenes."""
    figure = new_figure(*SIZE)
    wanted = (
        ("distance", "depth_abs_rel", "depth AbsRel by distance"),
        ("distance", "depth_rmse_m", "depth RMSE by distance, m"),
        ("distance", "depth_scaled_abs_rel", "AbsRel with median scale"),
        ("camera", "pose_translation_m", "pose translation by camera, m"),
        ("role", "pose_translation_m", "pose translation by vehicle, m"),
        ("role", "pose_rotation_deg", "pose rotation by vehicle, °"),
    )
    for place, (kind, name, title) in enumerate(wanted):
        axes = _panel(figure, 2, 3, place, title)
        groups = list(dict.fromkeys(group for of in summary.groups.values() for group in of.get(kind, {})))
        for (model, mode), of in summary.groups.items():
            values = [of[kind][group][name].mean if group in of.get(kind, {}) else np.nan for group in groups]
            style = STYLES[summary.models.index(model) % len(STYLES)]
            axes.plot(range(len(groups)), values, style, marker="o", markersize=5, color=COLORS[mode])
        axes.set_xticks(range(len(groups)), groups)
        _scale(axes, [g[name].mean for of in summary.groups.values() for g in of.get(kind, {}).values()], False)
    _legend(figure, summary.modes, summary.models)
    return png_bytes(figure)


def _scale(axes: Any, values: Sequence[float], share: bool) -> None:
    """A share from 0 to 1; an error from 0, or over decades where the largest is far above the smallest."""
    shown = np.array([value for value in values if np.isfinite(value)])
    positive = shown[shown > 0]
    if share:
        axes.set_ylim(-0.03, 1.03)
    elif len(positive) and positive.max() > 10 * positive.min():
        smallest = max(positive.min(), 1e-6 * positive.max())
        if len(positive) == len(shown):
            axes.set_yscale("log")
        else:
            axes.set_yscale("symlog", linthresh=smallest)
        axes.set_ylim(0.7 * smallest if len(positive) == len(shown) else 0, 1.5 * positive.max())
    elif len(positive):
        axes.set_ylim(0, 1.1 * positive.max())


def _panel(figure: Any, rows: int, columns: int, place: int, title: str) -> Any:
    row, column = divmod(place, columns)
    width, height = SIZE[0] / columns, 0.93 * SIZE[1] / rows
    axes = axes_at(figure, column * width + 86.4, 120 + row * height, width - 115.2, height - 125, title, 10)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _legend(figure: Any, modes: Sequence[str], models: Sequence[str] = ()) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLORS[mode], linewidth=3, label=mode) for mode in modes]
    handles += [Line2D([], [], color=LIGHT, linestyle=STYLES[i % len(STYLES)], label=name) for i, name in enumerate(models)]
    figure.legend(handles=handles, loc="upper center", ncols=len(handles), frameon=False, labelcolor=LIGHT, fontsize=12)
