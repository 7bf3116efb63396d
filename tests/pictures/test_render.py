"""save_view_png draws known 3D points within one pixel of their projection, quietly, without a display."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapanything.errors import InputError
from mapanything.geometry.camera import project
from mapanything.geometry.rigid import invert, transform
from mapanything.pictures import render as render_module
from mapanything.pictures.render import View, fitted_view, render, save_view_png
from mapanything.pictures.scenes import Axes, Boxes, Cameras, Cloud, Trajectory

BLACK = np.array([0, 0, 0], np.uint8)


def view_of(k: np.ndarray, width: int, height: int, **options) -> View:
    turned = View.look_at((3, -4, -9), (1, 0, 5))
    return View(turned.world_from_camera, k, width, height, **options)


CAMERAS = {
    "centred": (np.array([[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]]), 640, 480),
    "OPV2V": (np.array([[335.64, 0, 399.5], [0, 335.64, 299.5], [0, 0, 1]]), 800, 600),
    "off centre": (np.array([[500.0, 0, 190.25], [0, 500, 300.6], [0, 0, 1]]), 640, 480),
    "off centre, fx != fy, odd size": (np.array([[420.0, 0, 400.0], [0, 510, 101.3], [0, 0, 1]]), 641, 401),
    "wide": (np.array([[150.0, 0, 319.5], [0, 150, 239.5], [0, 0, 1]]), 640, 480),
    "principal point outside": (np.array([[500.0, 0, -80.0], [0, 500, 239.5], [0, 0, 1]]), 640, 480),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_known_points_are_drawn_within_one_pixel(name: str):
    k, width, height = CAMERAS[name]
    view = view_of(k, width, height, point_size=1.0)
    rng = np.random.default_rng(3)
    columns = np.linspace(5, width - 6, 9)
    uv = np.array([(u + rng.uniform(-3, 3), v) for v in np.linspace(5, height - 6, 7) for u in columns])
    z = np.exp(rng.uniform(np.log(0.3), np.log(300), len(uv)))
    in_camera = np.column_stack([(uv - k[:2, 2]) / k[[0, 1], [0, 1]] * z[:, None], z])
    # Every point has a colour of its own, so that it is found whatever else is drawn.
    colors = np.column_stack([np.arange(len(uv)) * 4, np.zeros(len(uv)), 255 - np.arange(len(uv))]).astype(np.uint8)
    image = render([Cloud(transform(view.world_from_camera, in_camera), colors)], view)
    assert image.shape == (height, width, 3)
    for i, color in enumerate(colors):
        found = np.argwhere((image == color).all(axis=2))[:, ::-1]
        assert len(found) == 1, i
        assert np.abs(found[0] - uv[i]).max() <= 1.0, (found[0], uv[i])


def test_lines_end_within_a_pixel_of_their_projection():
    view = view_of(*CAMERAS["off centre"], line_width=1.0)
    pose = np.eye(4)
    pose[:3, 3] = [0.5, 0, 4]
    boxes = Boxes(pose[None], np.array([[1.0, 0.7, 2.0]]), ("1",), BLACK[None])
    image = render([boxes], view)
    at = np.argwhere((image < 128).all(axis=2))[:, ::-1]
    points, edges, _ = boxes.lines()
    uv, _ = project(transform(invert(view.world_from_camera), points), view.intrinsics)
    samples = np.concatenate([uv[a] + np.linspace(0, 1, 600)[:, None] * (uv[b] - uv[a]) for a, b in edges])
    gap = np.linalg.norm(at[:, None] - samples[None], axis=2)
    assert gap.min(axis=1).max() <= 1.0
    assert gap.min(axis=0).max() <= 1.5  # OpenGL leaves out a line's last pixel


def test_what_is_near_covers_what_is_far():
    view = View.look_at((0, 0, 0), (0, 0, 1), width=64, height=64, point_size=5.0)
    far, near = (Cloud(np.array([[0.0, 0, z]]), np.array(c, np.uint8)) for z, c in ((9, (0, 0, 255)), (3, (255, 0, 0))))
    for order in ([near, far], [far, near]):
        assert render(order, view)[32, 32].tolist() == [255, 0, 0]


def test_behind_the_camera_empty_and_not_finite_is_background():
    view = View.look_at((0, 0, 0), (0, 0, 1), width=96, height=64, background=(0.2, 0.4, 0.6))
    none = np.zeros((0, 4, 4))
    items = [
        Cloud(np.array([[0.0, 0, -3]]), BLACK),
        Cloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8)),
        Cloud(np.array([[np.nan, 0, 3], [np.inf, 0, 3]]), BLACK),
        Boxes(none, np.zeros((0, 3)), (), np.zeros((0, 3), np.uint8)),
        Cameras(none, np.zeros((0, 3, 3)), np.zeros((0, 2), int), (), np.zeros((0, 3), np.uint8)),
    ]
    for scene in (items, []):
        assert (render(scene, view) == np.array([51, 102, 153])).all()


def test_not_finite_points_do_not_hide_the_others():
    import open3d

    view = View.look_at((0, 0, 0), (0, 0, 1), width=65, height=65, point_size=3.0)
    points = np.array([[np.nan, 0, 3], [0, 0, 4], [0, -np.inf, 0]])
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    cloud.paint_uniform_color([1, 0, 0])
    for item in (Cloud(points, np.array([255, 0, 0], np.uint8)), cloud):
        assert render(item, view)[32, 32].tolist() == [255, 0, 0]
    assert len(cloud.points) == 3  # the caller's own cloud is not touched


def test_lines_that_are_not_finite_do_not_hide_the_others():
    view = View.look_at((0, 0, 0), (0, 0, 1), width=65, height=65, line_width=3.0)
    points = np.array([[-1.0, 0, 4], [1, 0, 4], [np.nan, 0, 4], [0, np.inf, 4]])
    image = render([Trajectory(points, "", BLACK)], view)
    assert (image[32, 32] == 0).all() and 10 < (image == 0).all(-1).sum() < 200


def test_points_anywhere_do_not_hide_the_near_ones():
    view = View.look_at((0, 0, 0), (0, 0, 1), width=65, height=65, point_size=3.0)
    points = np.array([[0, 0, 4.0], [1e30, 0, 1e30], [0, 0, 1e9]])
    assert render([Cloud(points, np.array([255, 0, 0], np.uint8))], view)[32, 32].tolist() == [255, 0, 0]


def test_nothing_is_drawn_nearer_than_the_views_near():
    cloud = Cloud(np.array([[0, 0, 4.0]]), BLACK)
    for near, drawn in ((3.0, True), (5.0, False)):
        view = View.look_at((0, 0, 0), (0, 0, 1), width=33, height=33, point_size=3.0, near=near)
        assert (render([cloud], view) == 0).any() == drawn


def test_open3d_geometries_are_drawn_and_left_alone():
    import open3d

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(np.array([[0.2, 0.1, 4.0]])))
    cloud.paint_uniform_color([0, 0, 0])
    k = np.array([[100.0, 0, 20], [0, 100, 25], [0, 0, 1]])
    image = render(cloud, View(np.eye(4), k, 64, 64, point_size=1.0))
    assert (
        np.argwhere((image == 0).all(axis=2)).tolist() == [[28, 25]]
        or np.abs(np.argwhere((image == 0).all(axis=2))[0] - [27.5, 25]).max() <= 1
    )
    assert np.asarray(cloud.points).tolist() == [[0.2, 0.1, 4.0]]


def test_same_picture_twice_and_supersampled_size():
    rng = np.random.default_rng(4)
    cloud = Cloud(rng.normal(size=(20000, 3)) * 5, rng.integers(0, 255, (20000, 3), dtype=np.uint8))
    axes = Axes(np.eye(4), "ego", BLACK)
    for supersample in (1, 2):
        view = View.look_at((0, -9, -14), (0, 0, 0), width=321, height=201, supersample=supersample)
        image = render([cloud, axes], view)
        assert image.shape == (201, 321, 3)
        assert (image == render([cloud, axes], view)).all()


def test_fitted_view_shows_the_points():
    points = np.random.default_rng(5).normal(size=(500, 3)) * [30, 2, 30] + [100, 0, 50]
    view = fitted_view([Cloud(points, BLACK)])
    uv, z = project(transform(invert(view.world_from_camera), points), view.intrinsics)
    inside = (z > 0) & ((uv >= 0) & (uv < [view.width, view.height])).all(axis=1)
    assert inside.mean() > 0.8
    assert fitted_view([]).width == 1280


def test_save_view_png_writes_what_it_returns_and_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture):
    path = tmp_path / "new" / "a.png"
    image = save_view_png([Cloud(np.array([[0.0, 0, 0]]), BLACK)], path)
    assert image.shape == (720, 1280, 3)
    assert (np.asarray(Image.open(path)) == image).all()
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    assert capfd.readouterr() == ("", "")


def test_unwritable_place_is_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        save_view_png([], tmp_path / "file" / "a.png", View.look_at((0, 0, 0), (0, 0, 1), width=8, height=8))


def test_a_line_of_sight_along_up_is_refused():
    with pytest.raises(ValueError, match="line of sight"):
        View.look_at((0, 0, 0), (0, 5, 0))


def test_display_is_not_touched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISPLAY", ":99")  # where no server is
    view = View.look_at((0, 0, 0), (0, 0, 1), width=32, height=32)
    assert (render([], view) == 255).all()
    assert os.environ["DISPLAY"] == ":99"


def test_forked_after_drawing_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(render_module, "_drawn_in", -1)
    with pytest.raises(RuntimeError, match="spawn"):
        render([], View.look_at((0, 0, 0), (0, 0, 1), width=8, height=8))


def test_without_egl_one_line_names_the_packages():
    code = (
        "from mapanything.errors import run_command\n"
        "from mapanything.pictures.render import View, render\n"
        "run_command(lambda: render([], View.look_at((0, 0, 0), (0, 0, 1))) is None)\n"
    )
    environment = {**os.environ, "__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent.json"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "apt-get install libegl1" in done.stderr


def test_memory_stays_flat_over_many_pictures():
    def megabytes() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    cloud = Cloud(np.random.default_rng(6).normal(size=(50000, 3)), BLACK)
    view = View.look_at((0, 0, -9), (0, 0, 0), width=640, height=360)
    for _ in range(10):
        render([cloud], view)
    before, files = megabytes(), len(os.listdir("/proc/self/fd"))
    for _ in range(60):
        render([cloud], view)
    assert megabytes() - before < 30
    assert len(os.listdir("/proc/self/fd")) == files
