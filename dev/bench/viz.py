"""The suite `bench viz`: pictures of a million points, beside Open3D and Matplotlib as one would use them first.

The last two lines are processor time of all threads together: no less than what a clock shows on an idle machine.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np

from dev.bench.timing import Figure, compare
from mapanything.geometry.nearest import nearest_distances
from mapanything.geometry.rigid import invert
from mapanything.pictures.render import View, chase_view, quiet, render
from mapanything.pictures.scenes import Cloud

MILLION = 1_000_000
SMALL_PICTURES = 200


def measure(rounds: int) -> tuple[list[Figure], str]:
    """The figures, and how the memory grew over many small pictures."""
    view = chase_view(point_size=1.5)
    cloud, small, (queries, reference) = street(MILLION), street(MILLION // 10), pair()
    figures = [
        compare(
            "picture, 1 M points",
            lambda: render([cloud], view),
            "Open3D's Visualizer, plainly",
            lambda: plain_open3d(cloud, view),
            1.3,
            rounds,
        ),
        compare(
            "picture, 0.1 M points",
            lambda: render([small], view),
            "Matplotlib's 3D scatter",
            lambda: matplotlib_scatter(small),
            3,
            min(rounds, 3),
        ),
        compare(
            "errors of 0.2 M points",
            lambda: nearest_distances(queries, reference),
            "Open3D in the order given",
            lambda: plain_distances(queries, reference),
            1.2,
            rounds,
        ),
        alone("picture, 1 M, 1280x720", cloud, view, 500.0, rounds),
        alone("picture, 5 M, 1280x720", street(5 * MILLION), view, 2500.0, min(rounds, 3)),
    ]
    return figures, f"{growth_mb():+.1f} MB over {SMALL_PICTURES} small pictures"


def street(count: int) -> Cloud:
    """Points on and beside a road, in random colours; the same every time."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(count, 3)).astype(np.float32) * np.array([20, 2, 30], np.float32)
    return Cloud(points, rng.integers(0, 256, (count, 3), dtype=np.uint8))


def pair() -> tuple[np.ndarray, np.ndarray]:
    """A prediction's points and a sparser cloud, of which every point is also one of them."""
    return street(MILLION // 5).points.astype(np.float64), street(MILLION // 10).points[::2].astype(np.float64)


def alone(name: str, cloud: Cloud, view: View, most_ms: float, rounds: int) -> Figure:
    """The median processor time against the time that it may take."""
    render([cloud], view)
    times = []
    for _ in range(rounds):
        start = time.process_time()
        render([cloud], view)
        times.append(1000 * (time.process_time() - start))
    return Figure(name, statistics.median(times), f"{most_ms / 1000:g} s", most_ms, 1)


def plain_open3d(cloud: Cloud, view: View) -> np.ndarray:
    """The same picture as Open3D's tutorial makes it."""
    import open3d as o3d

    drawn = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(cloud.points.astype(np.float64)))
    drawn.colors = o3d.utility.Vector3dVector(cloud.colors / 255.0)
    camera = o3d.camera.PinholeCameraParameters()
    focal = view.intrinsics[1, 1]
    centre = (view.width / 2 - 0.5, view.height / 2 - 0.5)
    camera.intrinsic = o3d.camera.PinholeCameraIntrinsic(view.width, view.height, focal, focal, *centre)
    camera.extrinsic = invert(view.world_from_camera)
    with quiet(o3d):
        window = o3d.visualization.Visualizer()
        window.create_window(width=view.width, height=view.height, visible=False)
        window.get_render_option().point_size = view.point_size
        window.add_geometry(drawn)
        window.get_view_control().convert_from_pinhole_camera_parameters(camera, True)
        window.poll_events()
        window.update_renderer()
        image = np.asarray(window.capture_screen_float_buffer(True))
        window.destroy_window()
    return image


def matplotlib_scatter(cloud: Cloud) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(12.8, 7.2), dpi=100)
    axes = figure.add_subplot(projection="3d")
    axes.scatter(*cloud.points.T, s=1, c=cloud.colors / 255.0, linewidths=0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def plain_distances(queries: np.ndarray, reference: np.ndarray) -> np.ndarray:
    import open3d as o3d

    clouds = [o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points)) for points in (queries, reference)]
    return np.asarray(clouds[0].compute_point_cloud_distance(clouds[1]))


def growth_mb() -> float:
    """The megabytes by which this process's memory grows over many small pictures, after some to warm up."""
    cloud, view = street(50_000), chase_view(640, 360)
    for _ in range(20):
        render([cloud], view)
    before = _resident_mb()
    for _ in range(SMALL_PICTURES):
        render([cloud], view)
    return _resident_mb() - before


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
