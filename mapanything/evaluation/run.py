"""Checkpoints × modes × scenes -> figures: the loop. The network sees what `inference.predict.scene_views` lets through.

One checkpoint is in memory at a time. Threads read ahead and measure behind the network; results are taken in the order of
the scenes, so that they do not depend on who was faster. All random choices belong to (seed, mode, scene).
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mapanything.errors import InputError
from mapanything.evaluation import charts, report
from mapanything.evaluation.labels import Labels
from mapanything.evaluation.report import Row, Summary
from mapanything.evaluation.scene import Measured, Options, Truth, measure
from mapanything.evaluation.scene_picture import scene_png
from mapanything.files import read_json, write_atomic
from mapanything.inference.predict import reconstruct_scene
from mapanything.inference.select import RESOLUTION, SceneSample, depth_layout, load_scene
from mapanything.inference.stream import pipelined
from mapanything.models.mapanything import MapAnything
from mapanything.opv2v.depth_root import look
from mapanything.results.export import write_scene
from mapanything.results.reconstruction import Reconstruction
from mapanything.results.record import SceneKey, Settings, json_bytes, scene_folder

READERS, MEASURERS = 2, 2
Progress = Callable[[str], None]  # a scene is done, or (not '') what is wrong with it


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint under the name that the tables give it. `made_with`: what identifies it, for the records."""

    name: str
    path: Path
    made_with: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """An evaluation: which models, on which scenes, and how.

    Attributes:
        depth_root: None: no depth is known (and `options.reference` must be lidar to have a cloud).
        truth_root: rendered depth of the same frames, if at hand: says what a perfect map would score against the labels.
        scenes: by mode, in order.
        inputs: what the network sees, keys of `predict.USES`.
        resolution: (W, H); None: each mode's own.
        amp: bf16, fp16 or fp32.
        worst: pictures of so many worst scenes per model and mode; `rank_by`: the column that says which.
        representative: also export the best, the middle and the worst scene.
    """

    root: Path
    depth_root: Path | None
    out: Path
    models: tuple[Model, ...]
    scenes: dict[str, list[SceneKey]]
    inputs: tuple[str, ...] = ("images",)
    resolution: tuple[int, int] | None = None
    device: str = "cpu"
    amp: str = "fp32"
    seed: int = 0
    options: Options = field(default_factory=Options)
    worst: int = 3
    rank_by: str = "pose_translation_m"
    larger_is_worse: bool = True
    representative: bool = False
    made_with: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    truth_root: Path | None = None

    def size(self, mode: str) -> tuple[int, int]:
        return self.resolution or RESOLUTION[mode]


@dataclass(slots=True)
class Timing:
    """Seconds of the network and points that it gave, scene by scene: goes into a file of its own."""

    seconds: list[float] = field(default_factory=list)
    points: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, float | int | None]:
        """The first scene, which also warms up, counts only where it is the only one."""
        start = 1 if len(self.seconds) > 1 else 0
        seconds, points = sum(self.seconds[start:]), sum(self.points[start:])
        return {
            "num_scenes": len(self.seconds) - start,
            "seconds": seconds,
            "points": points,
            "points_per_second": points / seconds if seconds else None,
            "seconds_per_scene": seconds / (len(self.seconds) - start) if self.seconds else None,
        }


def evaluate(job: EvaluationJob, progress: Progress = lambda _: None) -> Summary:
    """Evaluates everything and writes the results into `job.out`; summary.json comes last and names all of them.

    Raises:
        InputError: a checkpoint that can't be loaded, no scene that can be read, a folder that can't be written.
    """
    rows: list[Row] = []
    problems: dict[str, str] = {}
    timings: dict[str, dict[str, Any]] = {}
    files = _Files(job.out)
    layout = depth_layout(job.depth_root)
    labels = Labels(None if layout is None else look(layout))
    for model in job.models:
        network = MapAnything.from_pretrained(model.path, device=job.device)
        for mode, keys in job.scenes.items():
            timing = Timing()
            found = list(_rows(job, network, model.name, mode, keys, timing, labels, problems, progress))
            rows += found
            timings.setdefault(model.name, {})[mode] = timing.to_dict()
            _show(job, network, model, mode, found, files)
        del network  # before the next one is loaded
    if not rows:
        raise InputError(f"no scene could be read; the first: {next(iter(problems.values()), 'there is none')}")
    summary = Summary(rows, job.seed)
    files.write("metrics.csv", report.metrics_csv(rows))
    files.write("groups.csv", report.groups_csv(rows))
    files.write("plots/metrics.png", charts.metrics_png(rows))
    files.write("plots/groups.png", charts.groups_png(summary))
    files.write("summary.md", report.summary_md(summary, job.inputs, len(problems), job.options.reference, labels.text()))
    write_atomic(job.out / "timing.json", json_bytes({"device": job.device, "models": timings}, allow_nan=False))
    record = _record(job, problems) | {"labels": labels.to_dict(), "files": sorted([*files.names, "timing.json"])}
    write_atomic(job.out / "summary.json", json_bytes(record | {"results": summary.to_dict()}, allow_nan=False))
    return summary


class _Files:
    """Writes below a folder and remembers what."""

    def __init__(self, out: Path) -> None:
        self.out, self.names = out, list[str]()

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self.out / name, data)
        self.names.append(name)

    def add_all(self, folder: Path) -> None:
        self.names += [path.relative_to(self.out).as_posix() for path in folder.rglob("*") if path.is_file()]


def _record(job: EvaluationJob, problems: dict[str, str]) -> dict[str, Any]:
    """The record of what was evaluated, and how."""
    options = job.options
    return {
        "format": 1,
        "inputs": list(job.inputs),
        "models": {model.name: model.made_with for model in job.models},
        "made_with": job.made_with,
        "modes": {
            mode: {"resolution": list(job.size(mode)), "num_scenes": len(keys), "scenes": [str(key) for key in keys]}
            for mode, keys in job.scenes.items()
        },
        "options": {
            "seed": job.seed,
            "amp": job.amp,
            "reference": options.reference,
            "z_range_m": [options.region.z_min, options.region.z_max],
            "radius_m": options.region.radius,
            "bev_cell_m": options.grid.cell,
            "bev_extent_m": options.grid.extent,
            "bands_m": list(options.bands),
            "chamfer_points": options.chamfer_points,
            "rank_by": job.rank_by,
        },
        "provenance": job.provenance,
        "problems": problems,
    }


# One model, one mode


def _rows(
    job: EvaluationJob,
    network: MapAnything,
    name: str,
    mode: str,
    keys: Sequence[SceneKey],
    timing: Timing,
    labels: Labels,
    problems: dict[str, str],
    progress: Progress,
) -> Iterator[Row]:
    def read(key: SceneKey) -> tuple[SceneSample, Truth]:
        scene, truth = _read(job, mode, key)
        rendered = None
        if job.truth_root is not None:
            rendered = load_scene(job.root, depth_layout(job.truth_root), key, job.size(mode), need_depth=True)
        labels.note(mode, scene, rendered)
        return scene, truth

    def predict(key: SceneKey, reading: Future[tuple[SceneSample, Truth]]) -> tuple[Reconstruction, Truth] | None:
        try:
            scene, truth = reading.result()
        except InputError as error:
            problems.setdefault(f"{mode} {key}", str(error))
            progress(f"{mode} {key}: {error}")
            return None
        start = time.perf_counter()
        predicted = _predict(job, network, scene)  # on the CPU in the end, so a GPU has finished too
        timing.seconds.append(time.perf_counter() - start)
        timing.points.append(int(predicted.mask.sum()))
        return predicted, truth

    def measure_one(key: SceneKey, made: tuple[Reconstruction, Truth]) -> Measured:
        rng = np.random.default_rng([job.seed, zlib.crc32(f"{mode} {key}".encode())])
        return measure(*made, job.options, rng)

    for key, measured in pipelined(keys, read, predict, measure_one, READERS, MEASURERS):
        yield Row(name, mode, key, measured)
        progress("")


def _read(job: EvaluationJob, mode: str, key: SceneKey) -> tuple[SceneSample, Truth]:
    scene = load_scene(job.root, depth_layout(job.depth_root), key, job.size(mode), "depth" in job.inputs)
    return scene, Truth.of(scene, job.root, job.options.reference)


def _predict(job: EvaluationJob, network: MapAnything, scene: SceneSample) -> Reconstruction:
    try:
        return reconstruct_scene(network, scene.views, job.inputs, job.amp)
    except InputError as error:
        raise InputError(f"{scene.key}: {error}") from error


def ranked(rows: Sequence[Row], column: str, larger_is_worse: bool) -> list[Row]:
    """The rows that have this figure, the worst first; equal ones in their order."""
    sign = -1.0 if larger_is_worse else 1.0
    able = [row for row in rows if np.isfinite(row.measured.values[column])]
    return sorted(able, key=lambda row: sign * row.measured.values[column])


def _show(job: EvaluationJob, network: MapAnything, model: Model, mode: str, rows: Sequence[Row], files: _Files) -> None:
    """Pictures of the worst scenes and the export of representative ones: the few are predicted again."""
    order = ranked(rows, job.rank_by, job.larger_is_worse)
    wanted: dict[SceneKey, list[str]] = {}
    for place, row in enumerate(order[: job.worst], start=1):
        name = "_".join([row.key.split, row.key.scenario, row.key.main_agent, row.key.frame])
        wanted.setdefault(row.key, []).append(f"worst/{model.name}_{mode}/{place:02d}_{name}.png")
    exports: dict[SceneKey, list[str]] = {}
    if job.representative and order:
        for name, row in {"worst": order[0], "middle": order[(len(order) - 1) // 2], "best": order[-1]}.items():
            exports.setdefault(row.key, []).append(name)
            wanted.setdefault(row.key, []).append(f"representative/{model.name}_{mode}/{name}.png")
    by_key = {row.key: row for row in rows}
    for key, names in wanted.items():
        scene, truth = _read(job, mode, key)
        predicted = _predict(job, network, scene)
        values = by_key[key].measured.values
        picture = scene_png(predicted, truth, f"{model.name}, {mode}: {key}   {_in_short(values)}")
        for name in names:
            files.write(name, picture)
        for name in exports.get(key, ()):
            settings = Settings(
                mode=mode,
                inputs=job.inputs,
                resolution=job.size(mode),
                axes="opv2v",
                clouds=("ply",),
                made_with=model.made_with | job.made_with,
                provenance=job.provenance,
            )
            folder = scene_folder(job.out / "representative" / f"{model.name}_{mode}" / name, key)
            write_scene(folder, key, predicted, scene.lidar_from_view0, settings)
            files.add_all(folder)


def _in_short(values: dict[str, float]) -> str:
    pose = (
        f"pose {values['pose_translation_m']:.2f} m / {values['pose_rotation_deg']:.1f}°   scale ×{values['scale_ratio']:.2f}"
    )
    cloud = f"Chamfer {values['chamfer_m']:.2f} m   BEV IoU {values['bev_iou']:.2f}"
    return f"{pose}   AbsRel {values['depth_abs_rel']:.2f}   {cloud}"


def prepare_out(out: Path, overwrite: bool) -> None:
    """Makes the folder free for new results: with `overwrite`, what an evaluation's summary.json names goes.

    Raises:
        InputError: it holds something, and `overwrite` is off.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is no folder; give another --out")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{out}: is not empty; give --overwrite to replace the evaluation there, or another --out")
    record = out / "summary.json"
    try:
        content = read_json(record)
    except (FileNotFoundError, ValueError):
        return
    names = content.get("files") if isinstance(content, dict) else None
    record.unlink()  # first: without it nothing here counts as a finished evaluation
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts:
            with contextlib.suppress(ValueError, OSError):  # of a damaged record: not even a file's name
                (out / name).unlink()
