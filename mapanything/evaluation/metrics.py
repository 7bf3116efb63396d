"""Errors of poses, depths, scale and clouds. Pure functions, NumPy float64; docs/metrics.md has the formulas in words.

What cannot be measured (one view, no valid depth, a prediction that is not finite) is NaN: never a warning, never an
exception, and never a number that would improve a mean. Poses are world_from_camera, OpenCV, metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapanything.geometry.nearest import nearest_distances
from mapanything.geometry.rigid import invert, matrix_from_quat, quat_from_matrix, rotation_angle_deg
from mapanything.geometry.types import Float

NAN = float("nan")
DELTA = 1.25
AUC_THRESHOLDS_DEG = (5, 10, 20)
RANK_TOLERANCE = 1e-6  # of the largest singular value: below it, camera centres lie on a line
SAME_PLACE = 1e-6  # metres: camera centres that spread less lie in one place


def mean(values: ArrayLike) -> float:
    """The mean; NaN, without a warning, of nothing."""
    values = np.asarray(values, np.float64)
    return float(values.mean()) if values.size else NAN


# Poses


def proper_poses(poses: ArrayLike) -> Float:
    """Poses (..., 4, 4) in float64 with proper rotations: float32 rounds a rotation by 1e-7, which is 1e-5 m at 100 m."""
    poses = np.asarray(poses, np.float64)
    out = np.zeros_like(poses)
    with np.errstate(invalid="ignore", divide="ignore"):  # a network that diverged predicts NaN
        out[..., :3, :3] = matrix_from_quat(quat_from_matrix(poses))
    out[..., :3, 3] = poses[..., :3, 3]
    out[..., 3, 3] = 1.0
    return out


def pose_errors(predicted: Float, true: Float) -> tuple[Float, Float]:
    """Distance of the centres in metres and angle between the rotations in degrees, of poses (V, 4, 4) each: (V,), (V,)."""
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.linalg.norm(predicted[:, :3, 3] - true[:, :3, 3], axis=-1)
        return distance, np.asarray(rotation_angle_deg(predicted, true))


def relative_pose_errors(predicted: Float, true: Float) -> tuple[Float, Float]:
    """Errors as of `pose_errors`, after both rigs are moved so that view 0 is the origin; without view 0: (V - 1,) twice."""
    with np.errstate(invalid="ignore", over="ignore"):
        return pose_errors((invert(predicted[0]) @ predicted)[1:], (invert(true[0]) @ true)[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """The map x -> scale · rotation @ x + translation."""

    scale: float
    rotation: Float  # (3, 3)
    translation: Float  # (3,)

    def poses(self, poses: Float) -> Float:
        """Poses (V, 4, 4) moved; rotations stay rotations."""
        out = poses.copy()
        out[:, :3, :3] = self.rotation @ poses[:, :3, :3]
        out[:, :3, 3] = self.scale * poses[:, :3, 3] @ self.rotation.T + self.translation
        return out


def fit_similarity(predicted: Float, true: Float) -> Similarity:
    """The similarity that brings the predicted camera centres nearest to the true ones (Umeyama 1991).

    Centres on a line do not say how to turn about it: the rotation is then the one that the cameras' orientations ask for
    on average (orthogonal Procrustes), scale and shift still follow from the centres. With the centres in one place, or a
    line that the prediction has the wrong way round, the scale is 1. A prediction that is not finite gives NaN.
    """
    nothing = Similarity(NAN, np.full((3, 3), NAN), np.full(3, NAN))
    if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
        return nothing
    source_mean, target_mean = predicted[:, :3, 3].mean(axis=0), true[:, :3, 3].mean(axis=0)
    source, target = predicted[:, :3, 3] - source_mean, true[:, :3, 3] - target_mean
    spread, true_spread = float(np.square(source).mean(0).sum()), float(np.square(target).mean(0).sum())
    if not np.isfinite(spread):
        return nothing
    spans = min(spread, true_spread) > SAME_PLACE**2
    u, d, vt = np.linalg.svd(target.T @ source / len(source))
    if not (spans and d[1] > RANK_TOLERANCE * d[0]):
        u, _, vt = np.linalg.svd((true[:, :3, :3] @ np.swapaxes(predicted[:, :3, :3], -1, -2)).sum(axis=0))
    rotation = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))]) @ vt
    scale = float((target * (source @ rotation.T)).sum() / len(source) / spread) if spans else 1.0
    if scale <= 0:
        scale = 1.0
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def fitted_pose_errors(predicted: Float, true: Float) -> tuple[Float, Float]:
    """Errors as of `pose_errors` after `fit_similarity`, of all views: (V,) twice. One view always fits: (0,) twice."""
    if len(true) < 2:
        return np.zeros(0), np.zeros(0)
    return pose_errors(fit_similarity(predicted, true).poses(predicted), true)


def pair_errors_deg(predicted: Float, true: Float, *, fold: bool = False) -> Float:
    """Errors (P,) per pair of views i < j: the larger of the angles by which j's rotation and direction from i are wrong.

    A pair that truly stands in one place has no direction: its rotation alone counts. A prediction without a baseline where
    there is one is wrong by 90°; one that is not finite by 180°.

    Args:
        fold: opposite directions count as the same, as in VGGT's evaluation (there a scene may be seen in a mirror).
    """
    i, j = np.triu_indices(len(true), k=1)
    with np.errstate(invalid="ignore", over="ignore"):
        ours, theirs = invert(predicted[i]) @ predicted[j], invert(true[i]) @ true[j]  # (P, 4, 4)
        rotation = np.asarray(rotation_angle_deg(ours, theirs))
        a, b = ours[:, :3, 3], theirs[:, :3, 3]
        direction = np.rad2deg(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))
        direction = np.where(np.linalg.norm(a, axis=-1) > SAME_PLACE, direction, 90.0)
    if fold:
        direction = np.minimum(direction, 180.0 - direction)
    direction = np.where(np.linalg.norm(b, axis=-1) > SAME_PLACE, direction, 0.0)
    finite = np.isfinite(ours).all(axis=(-2, -1))
    return np.where(finite, np.maximum(rotation, direction), 180.0)


def auc(errors_deg: Float, threshold_deg: float) -> float:
    """Area below the recall curve up to a threshold, divided by it: mean of max(0, 1 - error / threshold). NaN of no pair."""
    return mean(np.maximum(0.0, 1.0 - errors_deg / threshold_deg))


def auc_whole_degrees(errors_deg: Float, threshold_deg: float) -> float:
    """The same as VGGT, VGGSfM and MapAnything publish it, from a histogram of whole degrees: errors are rounded down."""
    return auc(np.floor(errors_deg), threshold_deg)


# Depth


def depth_errors(predicted: Float, true: Float) -> dict[str, float]:
    """RMSE and MAE in metres, AbsRel, and δ1.25: the share of pixels with max(p/t, t/p) < 1.25.

    Args:
        predicted, true: (N,) z-depths in metres of pixels whose true depth is known (> 0). What is predicted as not finite
            is no hit of δ1.25, and left out of the others.
    """
    finite = np.isfinite(predicted)
    p, t = predicted[finite], true[finite]
    error = np.abs(p - t)
    # p > 0, as a negative depth would pass max(p/t, t/p).
    hits = int(((p > 0) & (p < DELTA * t) & (t < DELTA * p)).sum())
    return {
        "rmse_m": float(np.sqrt(mean(np.square(error)))),
        "mae_m": mean(error),
        "abs_rel": mean(error / t),
        "delta_1_25": hits / len(true) if len(true) else NAN,
    }


def median_scale(predicted: Float, true: Float) -> float:
    """The ratio median(true) / median(predicted) of (N,) depths, which makes the scene as deep as it is; or NaN."""
    finite = np.isfinite(predicted)
    if not finite.any():
        return NAN
    middle = float(np.median(predicted[finite]))
    return float(np.median(true[finite])) / middle if middle > 0 else NAN


def distance_band(distances: Float, edges: Sequence[float]) -> NDArray[np.intp]:
    """The band (N,) that each distance lies in: edges[i] <= distance < edges[i + 1], the last one open; -1 below the first."""
    return np.searchsorted(np.asarray(edges), distances, side="right") - 1


# Scale


def scene_size(points: Float, origin: Float) -> float:
    """The mean distance of points (N, 3) from view 0's centre (3,), metres; NaN of no point (docs/network.md §7.2)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return mean(np.linalg.norm(points - origin, axis=-1))


def scale_ratio(predicted: Float, predicted_origin: Float, true: Float, true_origin: Float) -> float:
    """Size of the predicted scene over that of the true one; points (N, 3) of the same pixels. NaN where there is no size."""
    finite = np.isfinite(predicted).all(axis=-1)
    size = scene_size(true[finite], true_origin)
    return scene_size(predicted[finite], predicted_origin) / size if size > 0 else NAN


# Clouds


@dataclass(frozen=True, slots=True)
class Region:
    """The region of the filtered figures: OPV2V's z (height above the main agent's LiDAR, metres) and horizontal distance.

    The default heights are OpenCOOD's own range, from below the road to above the roofs of cars.
    """

    z_min: float = -3.0
    z_max: float = 1.0
    radius: float = 50.0

    def inside(self, points: Float) -> NDArray[np.bool_]:
        """Tells which (N,) of the points (N, 3) are inside: the LiDAR's frame, OpenCV axes (y down)."""
        height = -points[:, 1]
        return (height >= self.z_min) & (height <= self.z_max) & (np.hypot(points[:, 0], points[:, 2]) <= self.radius)


@dataclass(frozen=True, slots=True)
class Grid:
    """Cells seen from above: squares of `cell` metres, `extent` metres to each side of the main agent."""

    cell: float = 0.5
    extent: float = 50.0

    def occupied(self, points: Float) -> NDArray[np.bool_]:
        """The cells (n, n) that hold a point of (N, 3), OpenCV axes."""
        n = int(np.ceil(2 * self.extent / self.cell))
        grid = np.zeros((n, n), dtype=bool)
        plane = (points[:, [0, 2]] + self.extent) / self.cell
        plane = plane[((plane >= 0) & (plane < n)).all(axis=1)].astype(np.intp)
        grid[plane[:, 0], plane[:, 1]] = True
        return grid

    def iou(self, predicted: Float, true: Float) -> float:
        """Occupied cells of both over those of either; NaN where nothing true is known, or nothing lies on the grid at all."""
        if not len(true):
            return NAN
        a, b = self.occupied(predicted), self.occupied(true)
        union = int((a | b).sum())
        return int((a & b).sum()) / union if union else NAN


def finite_rows(points: Float) -> Float:
    """The points (N, 3) that are finite."""
    finite = np.isfinite(points).all(axis=1)
    return points if finite.all() else points[finite]


def sample_rows(points: Float, most: int, rng: np.random.Generator) -> Float:
    """Draws at most so many of the points (N, 3), without replacement; all of them where they are no more."""
    if len(points) <= most:
        return points
    return points[np.sort(rng.choice(len(points), most, replace=False))]


def chamfer(predicted: Float, true: Float, most: int, rng: np.random.Generator) -> dict[str, float]:
    """Mean distance of predicted points to the nearest true one, the other way, and the mean of both; NaN if one is empty.

    Args:
        predicted, true: (N, 3), (M, 3), finite.
        most: of each cloud at most so many points ask for their nearest neighbour; all can be one. So the figure is an
            unbiased estimate, and 0 for equal clouds.
    """
    if not len(predicted) or not len(true):
        return {"chamfer_m": NAN, "chamfer_pred_to_true_m": NAN, "chamfer_true_to_pred_m": NAN}
    accuracy = mean(nearest_distances(sample_rows(predicted, most, rng), true))
    completeness = mean(nearest_distances(sample_rows(true, most, rng), predicted))
    return {
        "chamfer_m": (accuracy + completeness) / 2,
        "chamfer_pred_to_true_m": accuracy,
        "chamfer_true_to_pred_m": completeness,
    }
