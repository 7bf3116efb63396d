"""One scene's figures: what was predicted against what is known of it, as a whole and by camera, vehicle and distance.

The prediction is placed the way the exporter places it: view 0's camera is known relative to the main agent's LiDAR, and
nothing else is. Docs: docs/metrics.md, which names every column of `COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapanything.evaluation import metrics
from mapanything.evaluation.metrics import NAN, mean
from mapanything.geometry import carla
from mapanything.geometry.rigid import invert, transform
from mapanything.geometry.types import Float
from mapanything.inference.select import SceneSample, frame_key
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import FramePaths
from mapanything.opv2v.pcd import read_pcd
from mapanything.results.reconstruction import Reconstruction

_DEPTH = ("rmse_m", "mae_m", "abs_rel", "delta_1_25")
_CLOUD = ("chamfer_m", "chamfer_pred_to_true_m", "chamfer_true_to_pred_m", "bev_iou")
DEPTH_COLUMNS = (*(f"depth_{name}" for name in _DEPTH), *(f"depth_scaled_{name}" for name in _DEPTH), "num_pixels")
POSE_COLUMNS = ("pose_translation_m", "pose_rotation_deg")
COLUMNS = (
    *POSE_COLUMNS,
    "pose_fit_translation_m",
    "pose_fit_rotation_deg",
    "pose_fit_scale",
    *(f"auc_{threshold}" for threshold in metrics.AUC_THRESHOLDS_DEG),
    *(f"auc_{threshold}_vggt" for threshold in metrics.AUC_THRESHOLDS_DEG),
    "scale_error",
    "scale_ratio",
    "abs_metric_scaling_factor_minus_1",
    *DEPTH_COLUMNS,
    "depth_median_scale",
    *_CLOUD,
    *(f"filtered_{name}" for name in _CLOUD),
    "num_points",
    "num_points_true",
    "mask_fraction",
)


@dataclass(frozen=True, slots=True)
class Options:
    """The choices of what is measured, and how.

    Attributes:
        region: of the filtered figures. grid: of the overlap from above.
        bands: metres from the camera where the distance bands begin; the last one has no end.
        chamfer_points: how many points of a cloud ask for their nearest neighbour.
        reference: the true cloud: `depth`, the known depths of the scene's views, or `lidar`, the sweeps of its vehicles.
    """

    region: metrics.Region = field(default_factory=metrics.Region)
    grid: metrics.Grid = field(default_factory=metrics.Grid)
    bands: tuple[float, ...] = (0.0, 10.0, 20.0, 40.0, 80.0)
    chamfer_points: int = 200_000
    reference: str = "depth"

    def band_names(self) -> list[str]:
        ends = [f"-{end:g} m" for end in self.bands[1:]] + ["+ m"]
        return [f"{start:g}{end}" for start, end in zip(self.bands, ends, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The truth that is known of a scene. V views of (H, W); OpenCV axes, metres; the world is the main agent's LiDAR frame.

    Attributes:
        points_cam: (V, H, W, 3) in the camera's frame, where `valid` (V, H, W).
        lidar_from_camera: (V, 4, 4). intrinsics: (V, 3, 3).
        agents, cameras: of each view, `641` and `camera0`.
        cloud: (N, 3) the sweeps of the scene's vehicles, if they are the reference; None: the depths are.
    """

    points_cam: NDArray[np.float32]
    valid: NDArray[np.bool_]
    lidar_from_camera: Float
    intrinsics: Float
    agents: tuple[str, ...]
    cameras: tuple[str, ...]
    cloud: Float | None = None

    @classmethod
    def of(cls, scene: SceneSample, root: Path, reference: str = "depth") -> Truth:
        """Takes the truth out of a sample. Raises InputError: a sweep is the reference, but missing or broken."""
        return cls(
            points_cam=np.stack([view["pts3d_cam"].numpy() for view in scene.views]),
            valid=np.stack([view["valid_mask"].numpy() for view in scene.views]),
            lidar_from_camera=scene.lidar_from_camera,
            intrinsics=np.stack([view["camera_intrinsics"].numpy() for view in scene.views]).astype(np.float64),
            agents=tuple(view["agent"] for view in scene.views),
            cameras=tuple(view["camera"] for view in scene.views),
            cloud=_sweeps(scene, root) if reference == "lidar" else None,
        )

    def roles(self) -> list[str]:
        """Per view `main`, `other 1`, `other 2`...: names that mean the same in every scenario, as agents' do not."""
        order = list(dict.fromkeys(self.agents))
        return [f"other {order.index(agent)}" if agent != order[0] else "main" for agent in self.agents]


def _sweeps(scene: SceneSample, root: Path) -> Float:
    """The points (N, 3) of all vehicles' clouds in the main agent's LiDAR frame."""
    lidar_from_world = invert(scene.world_from_lidar)
    sweeps = []
    for agent in scene.key.agents:
        paths = FramePaths(root, frame_key(scene.key, agent))
        points = carla.cv_points(read_pcd(paths.pcd).points).astype(np.float64)
        sweeps.append(transform(lidar_from_world @ read_frame(paths.yaml).world_from_lidar, points))
    return metrics.finite_rows(np.concatenate(sweeps))


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Figures of one scene: `values` by column, and (kind, group, values) of its parts."""

    values: dict[str, float]
    groups: list[tuple[str, str, dict[str, float]]]


def measure(predicted: Reconstruction, truth: Truth, options: Options, rng: np.random.Generator) -> Measured:
    """All figures of a scene.

    Args:
        rng: draws the points of the Chamfer distance. The same for every model, so that they are compared on the same.
    """
    ours = metrics.proper_poses(predicted.view0_from_camera)
    theirs = invert(truth.lidar_from_camera[0]) @ truth.lidar_from_camera  # view 0 is the origin, as it is in the prediction
    depths = _Depths(predicted, truth)
    poses = metrics.relative_pose_errors(ours, theirs)
    values = (
        _pose_values(poses, np.ones(len(theirs) - 1, dtype=bool))
        | _fit_values(ours, theirs)
        | _auc_values(ours, theirs)
        | _scale_values(predicted, truth, ours, theirs)
        | depths.values(np.ones(len(depths.true), dtype=bool))
        | _cloud_values(predicted, truth, ours, options, rng)
        | {"depth_median_scale": depths.scale, "mask_fraction": float(predicted.mask.mean())}
    )
    return Measured({name: values[name] for name in COLUMNS}, list(_groups(poses, depths, truth, options)))


class _Depths:
    """The depths at all pixels of a scene that have a known one, and where they belong. N such pixels."""

    def __init__(self, predicted: Reconstruction, truth: Truth) -> None:
        self.view = np.nonzero(truth.valid)[0]
        points = truth.points_cam[truth.valid].astype(np.float64)  # (N, 3)
        self.true, self.distance = points[:, 2], np.linalg.norm(points, axis=-1)
        self.predicted = predicted.depth_z[truth.valid].astype(np.float64)
        self.scale = metrics.median_scale(self.predicted, self.true)  # one for the scene: its views share their scale

    def values(self, chosen: NDArray[np.bool_]) -> dict[str, float]:
        p, t = self.predicted[chosen], self.true[chosen]
        with np.errstate(invalid="ignore", over="ignore"):
            raw, scaled = metrics.depth_errors(p, t), metrics.depth_errors(p * self.scale, t)
        if np.isnan(self.scale):
            scaled = dict.fromkeys(scaled, NAN)  # there is no such scale, so no hit or miss with it either
        found = {f"depth_{name}": value for name, value in raw.items()}
        return found | {f"depth_scaled_{name}": value for name, value in scaled.items()} | {"num_pixels": float(len(t))}


def _pose_values(errors: tuple[Float, Float], chosen: NDArray[np.bool_]) -> dict[str, float]:
    return {name: mean(error[chosen]) for name, error in zip(POSE_COLUMNS, errors, strict=True)}


def _fit_values(ours: Float, theirs: Float) -> dict[str, float]:
    translation, rotation = metrics.fitted_pose_errors(ours, theirs)
    return {
        "pose_fit_translation_m": mean(translation),
        "pose_fit_rotation_deg": mean(rotation),
        "pose_fit_scale": metrics.fit_similarity(ours, theirs).scale if len(theirs) > 1 else NAN,
    }


def _auc_values(ours: Float, theirs: Float) -> dict[str, float]:
    strict, folded = (metrics.pair_errors_deg(ours, theirs, fold=fold) for fold in (False, True))
    thresholds = metrics.AUC_THRESHOLDS_DEG
    return {f"auc_{t}": metrics.auc(strict, t) for t in thresholds} | {
        f"auc_{t}_vggt": metrics.auc_whole_degrees(folded, t) for t in thresholds
    }


def _scale_values(predicted: Reconstruction, truth: Truth, ours: Float, theirs: Float) -> dict[str, float]:
    origin = np.zeros(3)
    p = in_one_frame(predicted.points_cam, truth.valid, ours)
    ratio = metrics.scale_ratio(p, origin, in_one_frame(truth.points_cam, truth.valid, theirs), origin)
    return {
        "scale_error": abs(ratio - 1),
        "scale_ratio": ratio,
        "abs_metric_scaling_factor_minus_1": abs(predicted.metric_scaling_factor - 1),
    }


def in_one_frame(points_cam: NDArray[np.float32], chosen: NDArray[np.bool_], poses: Float) -> Float:
    """The chosen pixels (N, 3) of points (V, H, W, 3), each view's moved by its pose (V, 4, 4); view by view."""
    parts = []
    for pose, points, where in zip(poses, points_cam, chosen):
        columns = points.reshape(-1, 3).take(np.flatnonzero(where), axis=0).astype(np.float64).T
        # Points as columns: as rows, so thin a matrix, BLAS hands it out to threads that take longer to meet than to compute.
        with np.errstate(invalid="ignore", over="ignore"):
            parts.append(pose[:3, :3] @ columns + pose[:3, 3:])
    return np.ascontiguousarray(np.concatenate(parts, axis=1).T)


def _cloud_values(
    predicted: Reconstruction, truth: Truth, ours: Float, options: Options, rng: np.random.Generator
) -> dict[str, float]:
    placed = truth.lidar_from_camera[0] @ ours
    p = metrics.finite_rows(in_one_frame(predicted.points_cam, predicted.mask, placed))
    t = truth.cloud
    if t is None:
        t = in_one_frame(truth.points_cam, truth.valid, truth.lidar_from_camera)
    values = {"num_points": float(len(p)), "num_points_true": float(len(t))}
    inside = (p[options.region.inside(p)], t[options.region.inside(t)])
    for prefix, pair in {"": (p, t), "filtered_": inside}.items():
        found = metrics.chamfer(*pair, options.chamfer_points, rng) | {"bev_iou": options.grid.iou(*pair)}
        values |= {prefix + name: value for name, value in found.items()}
    return values


def _groups(
    poses: tuple[Float, Float], depths: _Depths, truth: Truth, options: Options
) -> Iterator[tuple[str, str, dict[str, float]]]:
    for kind, names in {"camera": truth.cameras, "agent": truth.agents, "role": truth.roles()}.items():
        for group in dict.fromkeys(names):
            views = np.array([name == group for name in names])
            yield kind, group, _pose_values(poses, views[1:]) | depths.values(views[depths.view])
    band = metrics.distance_band(depths.distance, options.bands)
    for number, name in enumerate(options.band_names()):
        yield "distance", name, dict.fromkeys(POSE_COLUMNS, NAN) | depths.values(band == number)
