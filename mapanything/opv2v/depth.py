"""Depth maps on disk: z-depth in metres, float32, 0 = unknown; and depth maps made from a LiDAR cloud.

Formats read: `.npy` (metres), 16-bit grey PNG (1/256 m, as KITTI's), 8-bit grey PNG (whole metres, OPV2V-H; 255 means
"255 or farther" and counts as unknown).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapanything.arrays import PNG_SCALE, depth_png_bytes, npy_bytes, npy_header, read_npy
from mapanything.errors import InputError
from mapanything.files import write_atomic
from mapanything.geometry import carla
from mapanything.geometry.zbuffer import depth_from_points
from mapanything.opv2v.frame import Camera
from mapanything.opv2v.png import read_png16

MAX_DEPTH = 1000.0  # metres, CARLA's far plane; what lies beyond is sky


def read_depth(path: Path) -> NDArray[np.float32]:
    """A depth map (H, W) in metres as stored; NaN, infinite and negative values are left for the caller to see.

    Raises:
        InputError: missing, truncated, or no depth map.
    """
    if path.suffix == ".png":
        values = read_png16(path)
        if values.dtype == np.uint16:
            return values.astype(np.float32) / np.float32(PNG_SCALE)
        return np.where(values == 255, 0, values).astype(np.float32)
    shape, dtype, *_ = npy_header(path)
    if len(shape) == 3 and shape[-1] == 1:
        shape = shape[:2]
    if len(shape) != 2 or dtype.kind not in "fiu":
        raise InputError(f"{path}: holds {dtype} of shape {shape}; a depth map is (H, W) of numbers")
    return read_npy(path).reshape(shape).astype(np.float32, copy=False)


def clean_depth(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Makes NaN, infinite, negative and sky (>= 1000 m) 0, unknown. Changes `depth` and returns it."""
    np.copyto(depth, 0, where=~((depth > 0) & (depth < MAX_DEPTH)))
    return depth


def write_depth_npy(path: Path, depth: NDArray[np.float32]) -> None:
    """Writes a map as float32 .npy, whole or not at all."""
    write_atomic(path, npy_bytes(np.asarray(depth, dtype=np.float32)))


def write_depth_png(path: Path, depth: NDArray[np.float32]) -> None:
    """Writes a map as 16-bit PNG (`depth_png_bytes`), whole or not at all."""
    write_atomic(path, depth_png_bytes(depth))


def is_dense(depth: NDArray[np.float32]) -> bool:
    """True for a map (H, W) of surfaces as a renderer knows them, whatever share of it is sky; not a LiDAR's dots.

    Lines have gaps between them: at an image's full size, a dot hardly ever has a known pixel right above it (up to 3 % do,
    against 97 % in rendered maps). Every fourth column is enough to see it.
    """
    known = depth[:, ::4] > 0
    return bool(known[1:].any()) and float(known[:-1][known[1:]].mean()) > 0.5


def lidar_depth(points: NDArray[np.floating], camera: Camera, width: int, height: int) -> NDArray[np.float32]:
    """The z-depth map of a LiDAR cloud in one camera of the same vehicle.

    Args:
        points: (N, 3) as stored in the PCD: LiDAR frame, Unreal axes.
        camera: of the same frame; its `camera_from_lidar` is used.

    Returns:
        (height, width) float32 metres, 0 where no point falls. No occlusion test beyond the pixel: LiDAR and cameras sit
        up to 2.6 m apart, so that a far point can shine through the gap between near ones.
    """
    camera_from_stored = camera.camera_from_lidar @ carla.CV_FROM_UE
    return depth_from_points(points, camera_from_stored, camera.cv_intrinsics, height, width)
