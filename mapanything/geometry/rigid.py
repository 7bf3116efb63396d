"""SE(3) and quaternions (x, y, z, w), for NumPy arrays and torch tensors alike.

A function returns the kind, dtype and device it was given. torch is not imported here: a tensor brings its own module.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np


def _module(x: Any) -> ModuleType:
    return np if isinstance(x, (np.ndarray, np.generic)) else sys.modules["torch"]


def invert(matrix: Any) -> Any:
    """Inverses of rigid transformations (..., 4, 4): [Rᵀ | -Rᵀt]. Exact for rotations; do not use for general matrices."""
    xp = _module(matrix)
    rotation = matrix[..., :3, :3]
    out = xp.zeros_like(matrix)
    transposed = xp.swapaxes(rotation, -1, -2)
    out[..., :3, :3] = transposed
    out[..., :3, 3] = -(transposed @ matrix[..., :3, 3:])[..., 0]
    out[..., 3, 3] = 1.0
    return out


def transform(matrix: Any, points: Any) -> Any:
    """Points (..., N, 3) moved by `matrix` (..., 4, 4) -> (..., N, 3)."""
    rotation = _module(matrix).swapaxes(matrix[..., :3, :3], -1, -2)
    return points @ rotation + matrix[..., None, :3, 3]


def rotation_error(matrix: Any) -> float:
    """Distance of R = matrix[:3, :3] of (..., 3+, 3+) from a proper rotation: the largest of |RᵀR - I| and |det R - 1|."""
    rotation = np.asarray(matrix, dtype=np.float64)[..., :3, :3]
    identity = np.swapaxes(rotation, -1, -2) @ rotation - np.eye(3)
    return float(max(np.abs(identity).max(), np.abs(np.linalg.det(rotation) - 1.0).max()))


def rotation_angle_deg(a: Any, b: Any) -> Any:
    """Angle in degrees between rotations (..., 3+, 3+), accurate near 0 (atan2 of the sine and cosine parts)."""
    xp = _module(a)
    r = xp.swapaxes(a[..., :3, :3], -1, -2) @ b[..., :3, :3]
    axis = xp.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], -1)
    sine = xp.sqrt((axis * axis).sum(-1))
    cosine = r[..., 0, 0] + r[..., 1, 1] + r[..., 2, 2] - 1.0
    return xp.rad2deg(xp.arctan2(sine, cosine))


def matrix_from_quat(quat: Any) -> Any:
    """Rotations (..., 3, 3) of quaternions (..., 4) xyzw, normalised first (Hamilton)."""
    xp = _module(quat)
    quat = quat / xp.sqrt((quat * quat).sum(-1))[..., None]
    x, y, z, w = quat[..., 0], quat[..., 1], quat[..., 2], quat[..., 3]
    rows = [
        xp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1),
        xp.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1),
        xp.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1),
    ]
    return xp.stack(rows, -2)


def quat_from_matrix(matrix: Any) -> Any:
    """Quaternions (..., 4) xyzw with w >= 0 of rotations (..., 3+, 3+).

    Of four equivalent formulas the one with the largest divisor is taken (Shepperd 1978), so no angle is badly conditioned.
    """
    xp = _module(matrix)
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squares = xp.stack([1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz, 1 + xx + yy + zz], -1)
    xy, xz, yz = m[..., 0, 1] + m[..., 1, 0], m[..., 0, 2] + m[..., 2, 0], m[..., 1, 2] + m[..., 2, 1]
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    # Row i holds 4·q_i·(x, y, z, w); dividing by its own norm gives the unit quaternion up to sign.
    candidates = xp.stack(
        [
            xp.stack([squares[..., 0], xy, xz, wx], -1),
            xp.stack([xy, squares[..., 1], yz, wy], -1),
            xp.stack([xz, yz, squares[..., 2], wz], -1),
            xp.stack([wx, wy, wz, squares[..., 3]], -1),
        ],
        -2,
    )
    best = (squares.argmax(-1)[..., None] == xp.asarray([0, 1, 2, 3], device=m.device))[..., None]
    quat = xp.where(best, candidates, xp.zeros_like(candidates)).sum(-2)
    quat = quat / xp.sqrt((quat * quat).sum(-1))[..., None]
    return xp.where(quat[..., 3:] < 0, -quat, quat)


def quat_multiply(a: Any, b: Any) -> Any:
    """Hamilton products a ⊗ b of quaternions (..., 4) xyzw: the rotation b, then a. The sign is not canonicalised."""
    xp = _module(a)
    ax, ay, az, aw = a[..., 0], a[..., 1], a[..., 2], a[..., 3]
    bx, by, bz, bw = b[..., 0], b[..., 1], b[..., 2], b[..., 3]
    product = [
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    ]
    return xp.stack(product, -1)


def quat_inverse(quat: Any) -> Any:
    """Inverses of quaternions (..., 4) xyzw, not necessarily of unit length: conjugate / |q|²."""
    xp = _module(quat)
    conjugate = xp.concatenate([-quat[..., :3], quat[..., 3:]], -1)
    return conjugate / (quat * quat).sum(-1)[..., None]


def rotate(quat: Any, vectors: Any) -> Any:
    """Vectors (..., 3) turned by quaternions (..., 4) xyzw of any length but 0; the two broadcast.

    v + 2w(a × v) + 2a × (a × v), a the vector part. No matrix product: on a GPU that may be rounded to TF32, which is
    decimetres at the end of a street.
    """
    xp = _module(quat)
    quat = quat / xp.sqrt((quat * quat).sum(-1))[..., None]
    axis, real = quat[..., :3], quat[..., 3:]
    twice = 2 * xp.linalg.cross(axis, vectors)
    return vectors + real * twice + xp.linalg.cross(axis, twice)
