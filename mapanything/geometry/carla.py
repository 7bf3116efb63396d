"""CARLA / Unreal conventions, and the way out of them. The only file that knows about handedness.

CARLA (and so OPV2V) is left-handed: x forward, y right, z up, degrees. Everything else in this project is OpenCV:
x right, y down, z forward, right-handed. A pose becomes an OpenCV pose by converting *both* of its ends; converting one
end gives a "rotation" of determinant -1, which no quaternion can hold.

Also the only file that knows CARLA's pixel convention: its principal point (W/2, H/2) counts from the corner of the
image, so the centre of pixel 0 lies at 0.5. OpenCV, and the network, put the centre of pixel 0 at 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapanything.geometry.types import Float

# (x, y, z) of Unreal -> (y, -z, x) of OpenCV. Determinant -1: it changes the handedness.
CV_FROM_UE: Float = np.array([[0, 1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
UE_FROM_CV: Float = CV_FROM_UE.T.copy()


def ue_matrix_from_pose(pose: ArrayLike) -> Float:
    """CARLA's six-vectors as matrices `world_from_x`, both ends in Unreal axes.

    Args:
        pose: (..., 6) x, y, z in metres, then **roll, yaw, pitch** in degrees (OPV2V's order).

    Returns:
        (..., 4, 4) float64. The rotation is Rz(yaw) · Ry(-pitch) · Rx(-roll) in right-handed elementary matrices
        (OpenCOOD `x_to_world`; OPV2V's own `extrinsic` agrees with it to 1e-13).
    """
    pose = np.asarray(pose, dtype=np.float64)
    roll, yaw, pitch = np.moveaxis(np.deg2rad(pose[..., 3:6]), -1, 0)
    cr, sr, cy, sy, cp, sp = np.cos(roll), np.sin(roll), np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    matrix = np.zeros((*pose.shape[:-1], 4, 4))
    matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2] = cp * cy, cy * sp * sr - sy * cr, -cy * sp * cr - sy * sr
    matrix[..., 1, 0], matrix[..., 1, 1], matrix[..., 1, 2] = cp * sy, sy * sp * sr + cy * cr, -sy * sp * cr + cy * sr
    matrix[..., 2, 0], matrix[..., 2, 1], matrix[..., 2, 2] = sp, -cp * sr, cp * cr
    matrix[..., :3, 3] = pose[..., :3]
    matrix[..., 3, 3] = 1.0
    return matrix


def pose_from_ue_matrix(matrix: ArrayLike) -> Float:
    """The six-vectors (..., 6) of `ue_matrix_from_pose`, from (..., 4, 4). Roll is 0 where pitch is ±90° (gimbal lock)."""
    m = np.asarray(matrix, dtype=np.float64)
    cos_pitch = np.hypot(m[..., 0, 0], m[..., 1, 0])
    pitch = np.arctan2(m[..., 2, 0], cos_pitch)
    locked = cos_pitch < 1e-9
    roll = np.where(locked, 0.0, np.arctan2(-m[..., 2, 1], m[..., 2, 2]))
    yaw = np.where(locked, np.arctan2(-m[..., 0, 1], m[..., 1, 1]), np.arctan2(m[..., 1, 0], m[..., 0, 0]))
    return np.concatenate([m[..., :3, 3], np.rad2deg(np.stack([roll, yaw, pitch], axis=-1))], axis=-1)


def cv_from_ue(matrix: ArrayLike) -> Float:
    """A transformation (..., 4, 4) with both ends in Unreal axes, as one with both ends in OpenCV axes."""
    return CV_FROM_UE @ np.asarray(matrix, dtype=np.float64) @ UE_FROM_CV


def ue_from_cv(matrix: ArrayLike) -> Float:
    """Inverse of `cv_from_ue`."""
    return UE_FROM_CV @ np.asarray(matrix, dtype=np.float64) @ CV_FROM_UE


def cv_pose(pose: ArrayLike) -> Float:
    """CARLA's six-vectors (..., 6) as OpenCV matrices `world_from_x` (..., 4, 4); the world is OpenCV too."""
    return cv_from_ue(ue_matrix_from_pose(pose))


def cv_points(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Points or directions (..., 3) in Unreal axes, as OpenCV ones; keeps the dtype."""
    return np.stack([points[..., 1], -points[..., 2], points[..., 0]], axis=-1)


def ue_points(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Inverse of `cv_points`."""
    return np.stack([points[..., 2], points[..., 0], -points[..., 1]], axis=-1)


def cv_sizes(extent: ArrayLike) -> Float:
    """Half sizes (..., 3) in Unreal order (length, width, height) as OpenCV half sizes (width, height, length)."""
    return np.asarray(extent, dtype=np.float64)[..., [1, 2, 0]]


def cv_intrinsics(intrinsics: ArrayLike) -> Float:
    """CARLA's pinhole matrices (..., 3, 3) with pixel centres at integer coordinates: the principal point moves by -0.5.

    CARLA renders a symmetric frustum over the whole image: fx = W / (2 tan(hfov/2)) with cx = W/2 holds for the image's
    corners, so a point's continuous column u lies in pixel floor(u), whose centre is at floor(u) + 0.5.
    """
    k = np.array(intrinsics, dtype=np.float64)
    k[..., 0, 2] -= 0.5
    k[..., 1, 2] -= 0.5
    return k
