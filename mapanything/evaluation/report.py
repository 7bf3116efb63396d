"""Rows of figures as files: CSV per scene, JSON and Markdown over all. No time and no host in them: same run, same bytes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mapanything.evaluation.scene import COLUMNS, DEPTH_COLUMNS, POSE_COLUMNS, Measured
from mapanything.evaluation.statistics import Statistics, describe
from mapanything.results.record import SceneKey

GROUP_COLUMNS = (*POSE_COLUMNS, *DEPTH_COLUMNS)
_PLACE = ("model", "mode", "split", "scenario", "frame", "agent")
Headline = tuple[str, tuple[str, ...], tuple[int, ...]]  # title, columns, digits behind the point
NOTES_TABLE: tuple[Headline, ...] = (  # as the group's notes have it, and the scale error as one
    ("pose m / °", ("pose_translation_m", "pose_rotation_deg"), (3, 2)),
    ("scale error", ("scale_error",), (3,)),
    ("fork's scale figure", ("abs_metric_scaling_factor_minus_1",), (2,)),
)
MORE_HEADLINES: tuple[Headline, ...] = (
    ("AUC@10", ("auc_10",), (3,)),
    ("depth RMSE m", ("depth_rmse_m",), (2,)),
    ("AbsRel", ("depth_abs_rel",), (3,)),
    ("Chamfer m", ("chamfer_m",), (2,)),
    ("BEV IoU", ("bev_iou",), (3,)),
)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One scene, seen by one model in one mode."""

    model: str
    mode: str
    key: SceneKey
    measured: Measured

    def place(self) -> list[str]:
        return [self.model, self.mode, self.key.split, self.key.scenario, self.key.frame, self.key.main_agent]


def number(value: float) -> str:
    """Nine digits: more than any figure has, fewer than what differs from one library's rounding to the next."""
    return "nan" if math.isnan(value) else f"{value:.9g}"


def metrics_csv(rows: Iterable[Row]) -> bytes:
    """A line per scene, model and mode."""
    lines = [
        [*row.place(), len(row.key.agents), len(row.key.views), *(number(row.measured.values[name]) for name in COLUMNS)]
        for row in rows
    ]
    return _csv([*_PLACE, "num_agents", "num_views", *COLUMNS], lines)


def groups_csv(rows: Iterable[Row]) -> bytes:
    """A line per scene, model, mode and camera, vehicle, role or distance band."""
    lines = [
        [*row.place(), kind, group, *(number(values[name]) for name in GROUP_COLUMNS)]
        for row in rows
        for kind, group, values in row.measured.groups
    ]
    return _csv([*_PLACE, "kind", "group", *GROUP_COLUMNS], lines)


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return buffer.getvalue().encode("utf-8")


def parts(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each (model, mode), in the order in which they came."""
    out: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        out.setdefault((row.model, row.mode), []).append(row)
    return out


class Summary:
    """Statistics over the scenes of each model and mode.

    Attributes:
        whole: by (model, mode), then column. groups: by (model, mode), then kind, group and column.
    """

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.whole: dict[tuple[str, str], dict[str, Statistics]] = {}
        self.groups: dict[tuple[str, str], dict[str, dict[str, dict[str, Statistics]]]] = {}
        self.num_scenes: dict[tuple[str, str], int] = {}
        for part, of_part in parts(rows).items():
            self.num_scenes[part] = len(of_part)
            # The interval's draws depend on mode and column alone: models are compared on the same resampled scenes.
            self.whole[part] = {
                name: describe([row.measured.values[name] for row in of_part], seed, f"{part[1]} {name}") for name in COLUMNS
            }
            self.groups[part] = _describe_groups(of_part, seed)

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(model for model, _ in self.whole))

    @property
    def modes(self) -> list[str]:
        return list(dict.fromkeys(mode for _, mode in self.whole))

    def to_dict(self) -> dict[str, Any]:
        return {
            model: {
                mode: {
                    "num_scenes": self.num_scenes[model, mode],
                    "metrics": _plain(self.whole[model, mode]),
                    "groups": _plain(self.groups[model, mode]),
                }
                for mode in self.modes
                if (model, mode) in self.whole
            }
            for model in self.models
        }


def _describe_groups(rows: Sequence[Row], seed: int) -> dict[str, dict[str, dict[str, Statistics]]]:
    values: dict[str, dict[str, list[dict[str, float]]]] = {}
    for row in rows:
        for kind, group, figures in row.measured.groups:
            values.setdefault(kind, {}).setdefault(group, []).append(figures)
    return {
        kind: {
            group: {
                name: describe([one[name] for one in figures], seed, f"{rows[0].mode} {kind} {group} {name}")
                for name in GROUP_COLUMNS
            }
            for group, figures in (groups.items() if kind == "distance" else sorted(groups.items()))
        }
        for kind, groups in values.items()
    }


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Statistics) else {key: _plain(inner) for key, inner in value.items()}


# Markdown


def summary_md(summary: Summary, inputs: Sequence[str], problems: int, reference: str, labels: str) -> bytes:
    """The notes' table (models × modes), then every metric and its parts, a table per mode."""
    lines = [
        "# Evaluation",
        "",
        f"The network saw: {', '.join(inputs)}. {_scene_counts(summary)}"
        + (f" {problems} scenes could not be read and are left out." if problems else ""),
        f"True cloud: {'known depths of the views' if reference == 'depth' else 'LiDAR sweeps of the vehicles'}. {labels} "
        "Means over scenes; every figure is defined in docs/metrics.md. "
        "The fork's scale figure, |metric_scaling_factor − 1|, is no error of scale.",
        "",
        *_headline_table(summary, NOTES_TABLE),
        "",
        *_headline_table(summary, MORE_HEADLINES),
    ]
    if set(inputs) - {"images"}:
        lines[3:3] = ["", "**Ground truth was among the inputs: these figures do not say what images alone give.**", ""]
    for mode in summary.modes:
        lines += ["", f"## {mode}: mean [95 % interval of the mean], median", "", *_full_table(summary, mode)]
        for kind in ("distance", "camera", "role"):
            lines += ["", f"### {mode}, by {kind}", "", *_group_table(summary, mode, kind)]
    return ("\n".join(lines) + "\n").encode("utf-8")


def _scene_counts(summary: Summary) -> str:
    counts = {mode: max(n for (_, m), n in summary.num_scenes.items() if m == mode) for mode in summary.modes}
    return "Scenes: " + ", ".join(f"{mode} {count}" for mode, count in counts.items()) + "."


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|---|" + "---:|" * (len(header) - 1)
    for line in body:
        yield f"| {' | '.join(line)} |"


def _headline_table(summary: Summary, headlines: Sequence[Headline]) -> Iterator[str]:
    header = ["", *(f"{title}, {mode}" for title, _, _ in headlines for mode in summary.modes)]
    body = [[model] for model in summary.models]
    for line in body:
        for _, names, digits in headlines:
            for mode in summary.modes:
                whole = summary.whole.get((line[0], mode))
                line.append("–" if whole is None else _joined([whole[name].mean for name in names], digits))
    yield from _table(header, body)


def headline_text(summary: Summary) -> str:
    """The notes' table, for a terminal."""
    return "\n".join(_headline_table(summary, NOTES_TABLE))


def _joined(values: Sequence[float], digits: Sequence[int]) -> str:
    return " / ".join("–" if math.isnan(value) else f"{value:.{n}f}" for value, n in zip(values, digits, strict=True))


def _full_table(summary: Summary, mode: str) -> Iterator[str]:
    models = [model for model in summary.models if (model, mode) in summary.whole]
    body = [[f"`{name}`", *(_cell(summary.whole[model, mode][name]) for model in models)] for name in COLUMNS]
    yield from _table(["", *models], body)


def _cell(stats: Statistics) -> str:
    if not stats.count:
        return "–"
    if math.isnan(stats.low):
        return _digits(stats.mean)
    return f"{_digits(stats.mean)} [{_digits(stats.low)}, {_digits(stats.high)}], {_digits(stats.median)}"


def _digits(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"


def _group_table(summary: Summary, mode: str, kind: str) -> Iterator[str]:
    names = ["depth_rmse_m", "depth_abs_rel", "depth_scaled_abs_rel", "num_pixels"]
    if kind != "distance":
        names = [*POSE_COLUMNS, *names]
    body = [
        [model, group, *("–" if not of[name].count else _digits(of[name].mean) for name in names)]
        for model in summary.models
        for group, of in summary.groups.get((model, mode), {}).get(kind, {}).items()
    ]
    yield from _table(["", kind, *(f"`{name}`" for name in names)], body)
