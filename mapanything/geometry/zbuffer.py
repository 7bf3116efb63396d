"""Points -> z-depth map: the nearest point of a pixel wins."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_DEPTH = 0.1  # metres; anything nearer is the vehicle's own hull or noise, and would blow up the division


def depth_from_points(
    points: NDArray[np.floating], camera_from_points: ArrayLike, intrinsics: ArrayLike, height: int, width: int
) -> NDArray[np.float32]:
    """Projects points into a camera and keeps the nearest z of every pixel.

    Args:
        points: (N, 3) in any OpenCV frame; rows with NaN or inf are skipped.
        camera_from_points: (4, 4) from that frame to the camera.
        intrinsics: (3, 3), pixel centres at integer coordinates.

    Returns:
        (H, W) float32 z-depth in metres, 0 where no point falls.
    """
    pose, k = np.asarray(camera_from_points, np.float64), np.asarray(intrinsics, np.float64)
    # Coordinates in rows of their own: twice as fast as (N, 3) columns.
    with np.errstate(invalid="ignore"):
        x, y, z = pose[:3, :3] @ np.ascontiguousarray(np.asarray(points, np.float64).T) + pose[:3, 3:]
        front = np.flatnonzero(z >= MIN_DEPTH)  # never true for NaN
        x, y, z = x[front], y[front], z[front]
        # Half a pixel around the centre belongs to the pixel: floor(u + 0.5), not round(), which goes to the even one.
        column = k[0, 0] * (x / z) + (k[0, 2] + 0.5)
        row = k[1, 1] * (y / z) + (k[1, 2] + 0.5)
        inside = np.flatnonzero((column >= 0) & (column < width) & (row >= 0) & (row < height))
    pixel = row[inside].astype(np.int64) * width + column[inside].astype(np.int64)
    z = z[inside].astype(np.float32)
    depth = np.zeros(height * width, dtype=np.float32)
    depth[pixel] = z
    # Of a pixel's points the last has won; those that are nearer write again, the nearest last.
    nearer = np.flatnonzero(z < depth[pixel])
    nearer = nearer[np.argsort(-z[nearer], kind="stable")]
    depth[pixel[nearer]] = z[nearer]
    return depth.reshape(height, width)
