"""CARLA's conventions: against rotations composed step by step, and against matrices that CARLA itself wrote."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapanything.geometry import carla
from mapanything.geometry.rigid import invert, rotation_error
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import scan

angles = st.floats(-360, 360)
metres = st.floats(-500, 500)
poses = st.tuples(metres, metres, metres, angles, angles, angles)


def slow_rotation(roll: float, yaw: float, pitch: float) -> np.ndarray:
    """Rz(yaw) Ry(-pitch) Rx(-roll), each written out."""
    r, y, p = (math.radians(a) for a in (-roll, yaw, -pitch))
    rx = np.array([[1, 0, 0], [0, math.cos(r), -math.sin(r)], [0, math.sin(r), math.cos(r)]])
    ry = np.array([[math.cos(p), 0, math.sin(p)], [0, 1, 0], [-math.sin(p), 0, math.cos(p)]])
    rz = np.array([[math.cos(y), -math.sin(y), 0], [math.sin(y), math.cos(y), 0], [0, 0, 1]])
    return rz @ ry @ rx


@given(poses)
def test_matrix_is_the_product_of_elementary_rotations(pose):
    matrix = carla.ue_matrix_from_pose(pose)
    assert np.abs(matrix[:3, :3] - slow_rotation(*pose[3:])).max() < 1e-12
    assert np.array_equal(matrix[:3, 3], pose[:3])
    assert np.array_equal(matrix[3], [0, 0, 0, 1])


@given(poses)
def test_opencv_poses_are_proper_and_keep_distances(pose):
    world_from_x = carla.cv_pose(pose)
    assert rotation_error(world_from_x) < 1e-12
    points = np.array([[1.0, 2.0, 3.0], [-4.0, 0.5, 0.0]])
    ue = points @ carla.ue_matrix_from_pose(pose)[:3, :3].T + pose[:3]
    cv = carla.cv_points(points) @ world_from_x[:3, :3].T + world_from_x[:3, 3]
    assert np.abs(carla.cv_points(ue) - cv).max() < 1e-9


def test_axes_mean_what_they_say():
    # Unreal: x forward, y right, z up. OpenCV: x right, y down, z forward.
    assert np.array_equal(carla.cv_points(np.array([1.0, 2.0, 3.0])), [2.0, -3.0, 1.0])
    assert np.array_equal(carla.ue_points(carla.cv_points(np.array([1.0, 2.0, 3.0]))), [1.0, 2.0, 3.0])
    assert np.array_equal(carla.cv_sizes([2.2, 1.0, 0.7]), [1.0, 0.7, 2.2])
    # Positive yaw turns right, positive pitch lifts the nose.
    nose = np.array([1.0, 0.0, 0.0])
    right = carla.ue_matrix_from_pose([0, 0, 0, 0, 90, 0])[:3, :3] @ nose
    up = carla.ue_matrix_from_pose([0, 0, 0, 0, 0, 90])[:3, :3] @ nose
    assert np.allclose(right, [0, 1, 0]) and np.allclose(up, [0, 0, 1])


@given(st.tuples(metres, metres, metres, st.floats(-179, 179), st.floats(-179, 179), st.floats(-89, 89)))
def test_pose_comes_back_from_its_matrix(pose):
    assert np.abs(carla.pose_from_ue_matrix(carla.ue_matrix_from_pose(pose)) - pose).max() < 1e-6


@pytest.mark.parametrize("pitch", [90.0, -90.0])
def test_pose_at_gimbal_lock_gives_the_same_matrix(pitch):
    matrix = carla.ue_matrix_from_pose([1, 2, 3, 20, 50, pitch])
    assert np.abs(carla.ue_matrix_from_pose(carla.pose_from_ue_matrix(matrix)) - matrix).max() < 1e-12


def test_batches_equal_single_calls():
    rng = np.random.default_rng(0)
    batch = rng.uniform(-90, 90, (5, 4, 6))
    one_by_one = np.array([[carla.cv_pose(pose) for pose in row] for row in batch])
    assert np.array_equal(carla.cv_pose(batch), one_by_one)


def test_principal_point_is_the_centre_of_the_image():
    k = carla.cv_intrinsics([[335.0, 0, 400], [0, 335.0, 300], [0, 0, 1]])
    # Pixel centres run from 0 to 799: their middle is 399.5.
    assert k[0, 2] == (0 + 799) / 2 and k[1, 2] == (0 + 599) / 2


@pytest.mark.real
def test_real_extrinsics_follow_from_the_poses(real_root: Path, real_yaml_root: Path):
    matrices = 0
    for root in (real_root, real_yaml_root):
        for folder in scan(root):
            for name in folder.frames:
                frame = read_frame(folder.path / f"{name}.yaml")
                for camera in frame.cameras:
                    assert camera.extrinsic is not None
                    stored = carla.cv_from_ue(camera.extrinsic)
                    assert np.abs(stored - camera.camera_from_lidar).max() <= 1e-9
                    assert np.abs(stored - invert(camera.world_from_camera) @ frame.world_from_lidar).max() <= 1e-9
                    matrices += 1
    assert matrices == 74 * 4


@pytest.mark.real
def test_real_road_is_level(real_root: Path):
    """Not circular with `extrinsic`: the road, fitted in LiDAR points, has to be horizontal in CARLA's world."""
    from mapanything.opv2v.pcd import read_pcd

    for folder in scan(real_root):
        for name in folder.frames:
            frame = read_frame(folder.path / f"{name}.yaml")
            points = carla.cv_points(read_pcd(folder.path / f"{name}.pcd").points.astype(np.float64))
            world = points @ frame.world_from_lidar[:3, :3].T + frame.world_from_lidar[:3, 3]
            ground = world[:, 1].copy()  # y points down: the road has the largest
            near = np.hypot(points[:, 0], points[:, 2]) < 25
            level = np.median(ground[near & (ground > np.quantile(ground[near], 0.5))])
            road = world[near & (np.abs(ground - level) < 0.1)]
            normal = np.zeros(3)
            for _ in range(10):
                centre = road.mean(axis=0)
                normal = np.linalg.svd(road - centre, full_matrices=False)[2][2]
                road = road[np.abs((road - centre) @ normal) < 0.03]
            assert len(road) > 3000
            tilt = np.degrees(np.arccos(min(1.0, abs(normal[1]))))
            assert tilt < 0.01
