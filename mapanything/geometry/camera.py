"""Pinhole cameras, OpenCV convention: z forward, pixel centres at integer coordinates, depth is z in metres, 0 unknown."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapanything.geometry.types import Float


def rays(intrinsics: ArrayLike, height: int, width: int) -> Float:
    """Directions (H, W, 3) through the pixel centres with z = 1, camera frame; skew is ignored as the network does."""
    k = np.asarray(intrinsics, dtype=np.float64)
    out = np.ones((height, width, 3))
    out[..., 0] = (np.arange(width) - k[0, 2]) / k[0, 0]
    out[..., 1] = ((np.arange(height) - k[1, 2]) / k[1, 1])[:, None]
    return out


def project(points: NDArray[np.floating], intrinsics: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Camera-frame points (..., 3) -> pixel coordinates (..., 2) and z (...). Where z <= 0 the coordinates are NaN."""
    k = np.asarray(intrinsics, dtype=np.float64)
    z = points[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = k[0, 0] * (points[..., 0] / z) + k[0, 2]
        v = k[1, 1] * (points[..., 1] / z) + k[1, 2]
    uv = np.stack([u, v], axis=-1)
    uv[~(z > 0)] = np.nan
    return uv, z


def unproject(depth: NDArray[np.floating], intrinsics: ArrayLike) -> NDArray[np.floating]:
    """z-depth (H, W) -> camera-frame points (H, W, 3); unknown depth (0) gives the origin."""
    return rays(intrinsics, *depth.shape[-2:]).astype(depth.dtype) * depth[..., None]


def crop_intrinsics(intrinsics: ArrayLike, left: float, top: float) -> Float:
    """The matrix after `left` columns and `top` rows were cut off."""
    k = np.array(intrinsics, dtype=np.float64)
    k[..., 0, 2] -= left
    k[..., 1, 2] -= top
    return k


def resize_intrinsics(intrinsics: ArrayLike, scale_x: float, scale_y: float) -> Float:
    """The matrix after a resize. Corners stay corners: a resize maps -0.5 to -0.5, hence the half-pixel shift."""
    k = np.array(intrinsics, dtype=np.float64)
    k[..., 0, :] *= scale_x
    k[..., 1, :] *= scale_y
    k[..., 0, 2] += 0.5 * (scale_x - 1.0)
    k[..., 1, 2] += 0.5 * (scale_y - 1.0)
    return k
