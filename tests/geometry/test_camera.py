"""Pinhole cameras and the z-buffer: what a resize and a crop do to K, checked with points; the z-buffer against a loop."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mapanything.geometry import camera
from mapanything.geometry.zbuffer import MIN_DEPTH, depth_from_points

K = np.array([[335.6, 0, 399.5], [0, 335.6, 299.5], [0, 0, 1]])


def test_unproject_is_the_inverse_of_project():
    depth = np.random.default_rng(0).uniform(1, 100, (6, 8))
    k = camera.resize_intrinsics(K, 0.01, 0.01)
    uv, z = camera.project(camera.unproject(depth, k), k)
    rows, columns = np.mgrid[:6, :8]
    assert np.allclose(z, depth) and np.allclose(uv[..., 0], columns) and np.allclose(uv[..., 1], rows)


def test_points_behind_the_camera_have_no_pixel():
    uv, _ = camera.project(np.array([[0, 0, -1.0], [1.0, 0, 0], [0, 0, 2.0]]), K)
    assert np.isnan(uv[:2]).all() and np.allclose(uv[2], [399.5, 299.5])


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 799), st.floats(0, 599))
def test_resized_matrix_keeps_the_relative_place_in_the_image(new_width, new_height, u, v):
    """A point's distance from the image's corner, as a part of the image's size, is the same before and after."""
    sx, sy = 20 * new_width / 800, 20 * new_height / 600
    point = np.array([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], 1.0]) * 7
    uv, _ = camera.project(point, camera.resize_intrinsics(K, sx, sy))
    assert math.isclose((uv[0] + 0.5) / (800 * sx), (u + 0.5) / 800, abs_tol=1e-9)
    assert math.isclose((uv[1] + 0.5) / (600 * sy), (v + 0.5) / 600, abs_tol=1e-9)


def test_cropped_matrix_moves_pixels_by_the_crop():
    point = np.array([1.0, -0.4, 5.0])
    whole, _ = camera.project(point, K)
    cropped, _ = camera.project(point, camera.crop_intrinsics(K, 13, 7))
    assert np.allclose(whole - cropped, [13, 7])


def slow_depth(points: np.ndarray, pose: np.ndarray, k: np.ndarray, height: int, width: int) -> np.ndarray:
    depth = np.zeros((height, width), dtype=np.float32)
    for point in points:
        if not np.isfinite(point).all():
            continue
        x, y, z = (pose @ np.append(point, 1))[:3]
        if z < MIN_DEPTH:
            continue
        u = math.floor(k[0, 0] * (x / z) + k[0, 2] + 0.5)
        v = math.floor(k[1, 1] * (y / z) + k[1, 2] + 0.5)
        if 0 <= u < width and 0 <= v < height and (depth[v, u] == 0 or z < depth[v, u]):
            depth[v, u] = z
    return depth


@given(st.integers(0, 2**32 - 1))
def test_zbuffer_equals_a_loop(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(200, 3)) * [4, 3, 6]
    points[:3] = [np.nan, np.inf, -np.inf]
    points[3:20, 2] = 0
    pose = np.eye(4)
    pose[:3, 3] = rng.normal(size=3)
    k = np.array([[8.0, 0, 9.5], [0, 8.0, 7.5], [0, 0, 1]])
    assert np.array_equal(depth_from_points(points, pose, k, 16, 20), slow_depth(points, pose, k, 16, 20))


def test_a_pixel_reaches_half_a_pixel_to_each_side():
    k = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1]])
    for u, column in [(0.49, 0), (0.5, 1), (1.49, 1), (1.5, 2), (-0.5, 0)]:
        depth = depth_from_points(np.array([[u, 0.0, 1.0]]), np.eye(4), k, 1, 3)
        assert np.flatnonzero(depth).tolist() == [column]
    assert not depth_from_points(np.array([[-0.51, 0.0, 1.0]]), np.eye(4), k, 1, 3).any()


def test_no_points_give_an_empty_map():
    assert not depth_from_points(np.empty((0, 3)), np.eye(4), K, 4, 5).any()
