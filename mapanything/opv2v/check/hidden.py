"""Depth labels that lie behind an annotated vehicle: what the camera sees there is the vehicle, so the label is wrong.

A box is larger than its vehicle. So only its solid core counts (the lower five eighths, a little narrower and shorter,
without the air under the car and above the bonnet), crossed over 0.3 m or more, by a ray that ends 0.5 m or more beyond the
box. What is counted is surely wrong; what is wrong may be more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.rigid import invert, transform
from mapanything.geometry.types import Float
from mapanything.opv2v.depth import MAX_DEPTH
from mapanything.opv2v.frame import Camera, Frame, Vehicle
from mapanything.opv2v.layout import FrameKey

MAX_LABELS = 20_000  # of a map; a LiDAR's has fewer
MIN_BEYOND = 0.5  # metres
MIN_INSIDE = 0.3
GROUND_CLEARANCE = 0.3


@dataclass(slots=True)
class Labels:
    """Numbers of labels that were looked at and that lie behind a vehicle, and the map with the largest share of those."""

    count: int = 0
    hidden: int = 0
    worst_share: float = 0.0
    worst_map: str = ""

    def add(self, other: Labels) -> None:
        self.count += other.count
        self.hidden += other.hidden
        self.worst_share, self.worst_map = max((self.worst_share, self.worst_map), (other.worst_share, other.worst_map))


def other_vehicles(frames: Mapping[FrameKey, Frame], key: FrameKey) -> list[Vehicle]:
    """The vehicles that any agent lists at a timestamp, each once, but for the agent's own."""
    found: dict[int, Vehicle] = {}
    for other in sorted(frames):
        for vehicle in frames[other].vehicles:
            found.setdefault(vehicle.id, vehicle)
    return [vehicle for vehicle in found.values() if str(vehicle.id) != key.agent]


def count_hidden(depth: NDArray[np.float32], camera: Camera, vehicles: list[Vehicle], name: str) -> Labels:
    """Counts the labels (H, W) of one map, at even steps where there are very many; sky is none."""
    row, column = np.nonzero((depth > 0) & (depth < MAX_DEPTH))
    step = -(-len(row) // MAX_LABELS) or 1
    row, column = row[::step], column[::step]
    z = depth[row, column].astype(np.float64)
    k = camera.cv_intrinsics
    points = np.stack([(column - k[0, 2]) / k[0, 0] * z, (row - k[1, 2]) / k[1, 1] * z, z], axis=-1)
    length = np.linalg.norm(points, axis=-1)
    directions = points / length[:, None]
    camera_from_world = invert(camera.world_from_camera)
    hidden = np.zeros(len(z), dtype=bool)
    for vehicle in vehicles:
        camera_from_box = camera_from_world @ vehicle.world_from_box
        centre = camera_from_box[:3, 3]
        along = directions @ centre
        reach = centre @ centre - vehicle.half_size @ vehicle.half_size  # squared: rays beyond miss the box's sphere
        near = np.flatnonzero((along > 0) & (along * along >= reach) & ~hidden)
        if len(near):
            hidden[near] = _is_behind(points[near], length[near], invert(camera_from_box), vehicle.half_size)
    found = int(hidden.sum())
    return Labels(len(z), found, found / max(1, len(z)), name)


def _is_behind(points: Float, length: Float, box_from_camera: Float, half: Float) -> NDArray[np.bool_]:
    """True for points (N, 3) of a camera, `length` (N,) away, that lie behind the core of a box (OpenCV axes: y is down)."""
    origin, ends = box_from_camera[:3, 3], transform(box_from_camera, points)
    enter, leave = _crossing(origin, ends, -half, half)
    width, height, depth = half
    low, high = np.array([-0.85 * width, -0.25 * height, -0.9 * depth]), np.array([0.85 * width, height, 0.9 * depth])
    high[1] -= GROUND_CLEARANCE
    if not (high > low).all():
        return np.zeros(len(points), dtype=bool)
    enter_core, leave_core = _crossing(origin, ends, low, high)
    beyond = (enter < leave) & (enter > 0) & ((1 - leave) * length > MIN_BEYOND)
    return beyond & (enter_core > 0) & ((leave_core - enter_core) * length > MIN_INSIDE)


def _crossing(origin: Float, ends: Float, low: Float, high: Float) -> tuple[Float, Float]:
    """Parts of the ways `origin` (3,) -> `ends` (N, 3) at which they enter and leave a box; missed: enter > leave."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (low - origin) / (ends - origin), (high - origin) / (ends - origin)
    return np.nanmax(np.minimum(a, b), axis=1), np.nanmin(np.maximum(a, b), axis=1)
