"""Small scenes made by hand: a truth, and a prediction that is wrong by a known amount."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mapanything.evaluation.scene import Truth
from mapanything.geometry.rigid import invert, matrix_from_quat
from mapanything.results.reconstruction import Reconstruction

HEIGHT, WIDTH = 9, 12


def pose(rng: np.random.Generator, reach: float = 10.0) -> np.ndarray:
    """(4, 4): any rotation, a place within a cube."""
    out = np.eye(4)
    out[:3, :3] = matrix_from_quat(rng.normal(size=4))
    out[:3, 3] = rng.uniform(-reach, reach, 3)
    return out


def turn_deg(degrees: float, axis: int = 1) -> np.ndarray:
    """(4, 4): a rotation about a camera's own axis."""
    out = np.eye(4)
    i, j = [k for k in range(3) if k != axis]
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    out[i, i], out[i, j], out[j, i], out[j, j] = c, -s, s, c
    return out


def make_truth(seed: int = 0, views: int = 4) -> Truth:
    """Random cameras of two vehicles that see random points; a third of the pixels is unknown."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(2, 100, (views, HEIGHT, WIDTH, 1))
    points = np.concatenate([rng.uniform(-1, 1, (views, HEIGHT, WIDTH, 2)) * z, z], axis=-1).astype(np.float32)
    valid = rng.random((views, HEIGHT, WIDTH)) < 2 / 3
    points[~valid] = 0
    return Truth(
        points_cam=points,
        valid=valid,
        lidar_from_camera=np.stack([pose(rng) for _ in range(views)]),
        intrinsics=np.tile(np.array([[6.0, 0, 5.5], [0, 6.0, 4.0], [0, 0, 1]]), (views, 1, 1)),
        agents=tuple("641" if view < (views + 1) // 2 else "650" for view in range(views)),
        cameras=tuple(f"camera{view % 4}" for view in range(views)),
    )


def perfect(truth: Truth) -> Reconstruction:
    """The prediction of a network without fault."""
    poses = truth.lidar_from_camera
    return Reconstruction(
        points_cam=truth.points_cam.copy(),
        view0_from_camera=invert(poses[0]) @ poses,
        intrinsics=truth.intrinsics,
        mask=truth.valid.copy(),
        conf=np.ones(truth.valid.shape, np.float32),
        colours=np.full((*truth.valid.shape, 3), 128, np.uint8),
        metric_scaling_factor=1.0,
    )


def scaled(prediction: Reconstruction, factor: float) -> Reconstruction:
    """The same, too large by a factor: points and places of the cameras."""
    poses = prediction.view0_from_camera.copy()
    poses[:, :3, 3] *= factor
    points = (prediction.points_cam * np.float32(factor)).astype(np.float32)
    return replace(prediction, points_cam=points, view0_from_camera=poses, metric_scaling_factor=factor)


def moved(prediction: Reconstruction, view: int, change: np.ndarray) -> Reconstruction:
    """The same with one camera's pose changed, by a motion (4, 4) in its own frame."""
    poses = prediction.view0_from_camera.copy()
    poses[view] = poses[view] @ change
    return replace(prediction, view0_from_camera=poses)


def brute_force(queries: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Distances (N,) of points (N, 3) to their nearest of (M, 3), one by one; infinite where there is none."""
    return np.array([min((np.linalg.norm(q - r) for r in reference), default=np.inf) for q in queries])
