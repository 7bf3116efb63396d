"""Every kind of view draws a known 3D point within one pixel of its projection, and metres have the length they should."""

from __future__ import annotations

import numpy as np
import pytest

from mapanything.errors import InputError
from mapanything.geometry.camera import project
from mapanything.geometry.rigid import invert, transform
from mapanything.pictures.render import render
from mapanything.pictures.scenes import Cameras, Cloud
from mapanything.pictures.sheets import scale_length
from mapanything.pictures.viewpoints import VIEWS, camera_view, find_camera, metres_per_pixel, named_view, top_view


def make_cameras() -> Cameras:
    """Two cameras of agent 7 with off-centre principal points and fx != fy; the second looks to the right."""
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[0, :3, 3] = [0.3, -0.2, 1.0]
    poses[1, :3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    k = np.array([[[300.0, 0, 250.0], [0, 320.0, 111.5], [0, 0, 1]], [[200.0, 0, 30.0], [0, 200.0, 190.0], [0, 0, 1]]])
    sizes = np.array([[400, 300], [400, 300]])
    return Cameras(poses, k, sizes, ("7 camera0", "7 camera1"), np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize("name", [name for name in VIEWS if name not in ("camera2", "camera3")])
def test_known_points_are_drawn_within_one_pixel(name: str):
    cloud = Cloud(np.random.default_rng(0).normal(size=(200, 3)) * [20, 1, 20], np.zeros(3, np.uint8))
    view = named_view(name, [cloud], make_cameras(), "7", 40.0, 501, 401, point_size=1.0)
    rng = np.random.default_rng(4)
    uv = np.stack(np.meshgrid(np.linspace(10, 490, 7), np.linspace(10, 390, 6)), axis=-1).reshape(-1, 2) + rng.uniform(0, 3, 2)
    low, high = (1.02, 1.9) if name == "top" else (0.05, 1.0)  # from above the near plane lies half way down
    z = rng.uniform(low, high, len(uv)) * (view.near if name == "top" else 60.0)
    k = view.intrinsics
    points = transform(view.world_from_camera, np.column_stack([(uv - k[:2, 2]) / k[[0, 1], [0, 1]] * z[:, None], z]))
    colors = np.column_stack([np.arange(len(uv)) * 5, np.zeros(len(uv)), 250 - np.arange(len(uv))]).astype(np.uint8)
    image = render([Cloud(points, colors)], view)
    for color, want in zip(colors, uv, strict=True):
        found = np.argwhere((image == color).all(axis=2))[:, ::-1]
        assert len(found) == 1 and np.abs(found[0] - want).max() <= 1.0, (found, want)


def test_a_cameras_own_view_is_its_image_stretched():
    cameras = make_cameras()
    point = np.array([[1.0, 0.5, 9.0]])
    at = project(transform(invert(cameras.world_from_camera[0]), point), cameras.intrinsics[0])[0][0]
    view = camera_view(cameras, 0, 800, 450)
    got = project(transform(invert(view.world_from_camera), point), view.intrinsics)[0][0]
    assert np.allclose(got + 0.5, (at + 0.5) * [2.0, 1.5])


@pytest.mark.parametrize("size", [(500, 500), (800, 400), (300, 700)])
def test_from_above_forward_is_up_and_the_range_fills_the_shorter_side(size: tuple[int, int]):
    view = top_view(50.0, *size)
    camera_from_world = invert(view.world_from_camera)
    corners = np.array([[0, 0, 0], [50, 0, 0], [0, 0, 50.0]])
    centre, right, forward = project(transform(camera_from_world, corners), view.intrinsics)[0]
    half = min(size) / 2
    assert np.allclose(right - centre, [half, 0], atol=1e-6)
    assert np.allclose(forward - centre, [0, -half], atol=1e-6)
    ground = np.array([[0, 2.0, 0], [10.0, 2.0, 0]])
    a, b = project(transform(camera_from_world, ground), view.intrinsics)[0]
    assert np.isclose(metres_per_pixel(view, 2.0) * (b - a)[0], 10.0)


def test_unknown_cameras_are_named():
    with pytest.raises(InputError, match="no '7 camera3' in this scene; it has 7 camera0, 7 camera1"):
        find_camera(make_cameras(), "7", 3)


@pytest.mark.parametrize(
    ("most", "length"), [(0.7, 0.5), (1.0, 1.0), (9.9, 5.0), (24.0, 20.0), (99.0, 50.0), (2000.0, 2000.0)]
)
def test_scale_bars_have_round_lengths(most: float, length: float):
    assert np.isclose(scale_length(most), length)
