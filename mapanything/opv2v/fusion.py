"""Cooperative labels: the depth of surfaces that one vehicle's camera sees and two vehicles' sweeps agree on.

All sweeps of a timestamp are exactly synchronous, so that two surfaces which meet at a pixel are one. Where they do, that
pixel knows its depth though no return falls into it: triangles of a surface span no more than a few steps of its sensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapanything.geometry import carla
from mapanything.geometry.rigid import invert
from mapanything.geometry.triangles import Bools, Projection, Tiles
from mapanything.geometry.types import Float
from mapanything.opv2v.frame import Frame
from mapanything.opv2v.visibility import MARGIN, MARGIN_BEHIND, Surface, hidden_labels

VERSION = 1

AGREE = 0.2  # metres of depth between two sweeps' surfaces that are one
OWN_RADIUS = 3.2  # metres around the middle of the camera's own vehicle, which it does not see
OWN_MARGIN = 0.3  # metres around its box, where another vehicle lists it
MIDDLE = (0.5, 0.0)  # of a vehicle, forward and to the right of its LiDAR
PIXELS = 400  # places that are asked in a row of an image; every second pixel of 800


def fused_depth(
    seen: NDArray[np.float32],
    surface: Surface,
    camera_from_points: ArrayLike,
    intrinsics: ArrayLike,
    others: Sequence[tuple[Surface, Float]],
) -> NDArray[np.float32]:
    """A visible map with the depth of pixels on which the own sweep and another one agree.

    Args:
        seen: (H, W) of `visible_depth`; its labels stay. surface: of the same sweep.
        others: what `seen_from` gives of the other vehicles, each with its own `camera_from_points` (4, 4).

    Returns:
        (H, W) float32 metres, 0 where nothing is known.
    """
    height, width = seen.shape
    size, k = (width, height), np.asarray(intrinsics, np.float64)
    step = max(1, width // PIXELS)
    row, column = (values[seen[::step, ::step] == 0] for values in np.mgrid[:height:step, :width:step])
    tiles, x, y = Tiles(size), column.astype(np.float64), row.astype(np.float64)

    def depth(of: Surface, pose: ArrayLike, at: NDArray, carried: bool = False) -> Float:
        """z-depth of a surface at some of the places, inf where there is none."""
        project = Projection(np.asarray(pose, np.float64), k, size, 0)
        drawn = project(of.carried) if carried else project(of.points, of.known)
        with np.errstate(divide="ignore"):
            return 1 / tiles.nearest(drawn, x[at], y[at], np.full(len(at), np.inf))

    at = np.arange(len(x))
    z = depth(surface, camera_from_points, at)
    at = np.flatnonzero(np.isfinite(z))
    known = [np.full(len(x), np.inf) for _ in others]
    for (other, pose), values in zip(others, known, strict=True):
        values[at] = depth(other, pose, at)
    agree = np.zeros(len(x), bool)
    for values in known:
        agree[at] |= np.abs(values[at] - z[at]) < AGREE
    at = np.flatnonzero(agree)
    at = at[~hidden_labels(surface, camera_from_points, k, size, (row[at], column[at]), z[at])]
    for (other, pose), values in zip(others, known, strict=True):
        at = at[values[at] > z[at] - MARGIN]
        at = at[depth(other, pose, at, carried=True) > z[at] - MARGIN_BEHIND]
    fused = seen.copy()
    fused[row[at], column[at]] = z[at]
    return fused


def seen_from(surface: Surface, frame: Frame, other: Frame, agent: str) -> tuple[Surface, Float]:
    """Another vehicle's surface for the cameras of `agent`: without that vehicle itself.

    Args:
        surface: of `other`'s sweep. frame: the agent's own.

    Returns:
        The surface, still in its own frame, and `lidar_from_other` (4, 4), Unreal axes, into the agent's LiDAR frame.
    """
    move = carla.ue_from_cv(invert(frame.world_from_lidar) @ other.world_from_lidar)
    boxes = [vehicle for vehicle in other.vehicles if str(vehicle.id) == agent]

    def own(points: Float) -> Bools:
        """Points of (..., 3) in the other LiDAR's frame that lie on the agent's vehicle."""
        local = points @ move[:3, :3].T + move[:3, 3]
        inside = np.hypot(local[..., 0] - MIDDLE[0], local[..., 1] - MIDDLE[1]) < OWN_RADIUS
        for vehicle in boxes:
            box_from_lidar = invert(vehicle.world_from_box) @ other.world_from_lidar
            place = carla.cv_points(points) @ box_from_lidar[:3, :3].T + box_from_lidar[:3, 3]
            inside |= (np.abs(place) < vehicle.half_size + OWN_MARGIN).all(-1)
        return inside

    returns = own(surface.points)
    known = surface.known[~returns[surface.known].any(1)]
    carried, behind = (pieces[~own(pieces).any(1)] for pieces in (surface.carried, surface.behind))
    return Surface(surface.points, known, carried, behind), move
