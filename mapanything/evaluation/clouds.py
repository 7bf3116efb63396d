"""How far two point clouds are apart: Chamfer distance and the overlap from above. NumPy float64, metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mapanything.evaluation.metrics import NAN, Float, mean
from mapanything.geometry.nearest import nearest_distances


@dataclass(frozen=True, slots=True)
class Region:
    """What the filtered figures look at: OPV2V's z (height above the main agent's LiDAR, metres) and horizontal distance.

    The default heights are OpenCOOD's own range, from below the road to above the roofs of cars.
    """

    z_min: float = -3.0
    z_max: float = 1.0
    radius: float = 50.0

    def inside(self, points: Float) -> NDArray[np.bool_]:
        """(N,) of points (N, 3) in the LiDAR's frame, OpenCV axes (y down)."""
        height = -points[:, 1]
        return (height >= self.z_min) & (height <= self.z_max) & (np.hypot(points[:, 0], points[:, 2]) <= self.radius)


@dataclass(frozen=True, slots=True)
class Grid:
    """Cells seen from above: squares of `cell` metres, `extent` metres to each side of the main agent."""

    cell: float = 0.5
    extent: float = 50.0

    def occupied(self, points: Float) -> NDArray[np.bool_]:
        """(n, n): cells that hold a point of (N, 3), OpenCV axes."""
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
    """At most so many of the points (N, 3), drawn without replacement; all of them where they are no more."""
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
