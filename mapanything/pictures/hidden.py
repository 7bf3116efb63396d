"""LiDAR returns that a camera cannot see (opv2v/visibility.py), in a colour of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry import carla
from mapanything.geometry.rigid import transform
from mapanything.opv2v.depth import lidar_depth
from mapanything.opv2v.frame import Camera
from mapanything.opv2v.visibility import sweep_surface, visible_depth, visible_returns
from mapanything.pictures.colors import depth_colors
from mapanything.pictures.overlay import project_points

HIDDEN_COLOR = (255, 0, 255)  # magenta: in none of the colour maps


def return_colors(points: NDArray[np.float32], cameras: Sequence[Camera]) -> Iterator[NDArray[np.uint8]]:
    """Colours (N, 3), for each camera of a vehicle, of its returns (N, 3), OpenCV axes: by depth, or `HIDDEN_COLOR`."""
    stored = carla.ue_points(points)
    surface = sweep_surface(stored)
    for camera in cameras:
        pose = camera.camera_from_lidar @ carla.CV_FROM_UE
        seen = visible_returns(stored, pose, camera.cv_intrinsics, *camera.image_size, surface)
        colors = depth_colors(transform(camera.camera_from_lidar, points)[:, 2])
        colors[~seen] = HIDDEN_COLOR
        yield colors


def hidden_from_all(points: NDArray[np.floating], cameras: Sequence[Camera]) -> NDArray[np.bool_]:
    """Tells which (N,) of a vehicle's returns (N, 3), OpenCV axes, lie in an image of its cameras, and none of them sees."""
    stored = carla.ue_points(points)
    surface = sweep_surface(stored)
    seen, inside = np.zeros((2, len(points)), bool)
    for camera in cameras:
        pose, k, size = camera.camera_from_lidar @ carla.CV_FROM_UE, camera.cv_intrinsics, camera.image_size
        seen |= visible_returns(stored, pose, k, *size, surface)
        inside[project_points(points, camera.camera_from_lidar, k, *size)[2]] = True
    return inside & ~seen


def hidden_depth(points: NDArray[np.float32], camera: Camera, width: int, height: int) -> NDArray[np.float32]:
    """The z-depth map (H, W) of the returns (N, 3) that a camera cannot see; 0 where there is none."""
    stored = carla.ue_points(points)
    pose = camera.camera_from_lidar @ carla.CV_FROM_UE
    seen = visible_depth(stored, pose, camera.cv_intrinsics, width, height)
    return np.where(seen > 0, np.float32(0), lidar_depth(stored, camera, width, height))


def mixed_colors(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours (N, 3) of z-depths (N,); negative ones are those of hidden returns."""
    return np.where(values[:, None] < 0, np.array(HIDDEN_COLOR, np.uint8), depth_colors(values))
