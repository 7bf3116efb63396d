"""3D pictures without a display: Open3D's legacy Visualizer on an EGL context, one function for every picture.

Notable:
- A camera's principal point and fx != fy are honoured though Open3D's window ignores both: the scene is moved by the
  affine map K0⁻¹K of the camera's frame, which turns Open3D's symmetric camera K0 into K exactly, lines staying lines.
- Near and far planes are set here. Open3D's own come from the bounding box and cut off what is near in a large scene; a
  scene of one point (an empty bounding box) would not be drawn at all: two points behind the camera prevent that.
- Capturing draws; `poll_events` before it would draw everything once more, for the same pixels.
- DISPLAY is hidden while the context is made: a forwarded X11 display would be slow, and limit a picture to its screen.
"""

from __future__ import annotations

import copy
import io
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from mapanything.errors import InputError
from mapanything.files import write_atomic
from mapanything.geometry.rigid import invert, transform
from mapanything.pictures.scenes import Cloud, Lines, Scene

NEAR = 0.1  # metres
FARTHEST = 1e5  # metres; a network may put points anywhere, and float32 knows no 1e30 beside 1
APT_LINE = "apt-get install libegl1 libgl1 libgl1-mesa-dri libgomp1 libusb-1.0-0"
_lock = threading.Lock()  # one picture at a time: verbosity, environment and stderr belong to the whole process
_drawn_in: int | None = None  # id of the process that drew first; Mesa does not survive a fork after that


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A camera of a picture: where it stands, how wide it sees, how large the picture is.

    Attributes:
        world_from_camera: (4, 4) OpenCV.
        intrinsics: (3, 3), pixel centres at integer coordinates; the principal point may lie anywhere.
        point_size, line_width: pixels.
        background: red, green, blue in 0..1.
        supersample: the picture is drawn this many times larger and averaged: smooth lines for its square in time.
        near: metres, in front of which nothing is drawn. Far away from everything, a larger one sorts depths more finely.
    """

    world_from_camera: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    width: int = 1280
    height: int = 720
    point_size: float = 2.0
    line_width: float = 2.0
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    supersample: int = 1
    near: float = NEAR

    @classmethod
    def look_at(
        cls,
        eye: ArrayLike,
        target: ArrayLike,
        up: ArrayLike = (0.0, -1.0, 0.0),
        *,
        fov_deg: float = 60.0,
        width: int = 1280,
        height: int = 720,
        **options: Any,
    ) -> View:
        """A camera at `eye` that looks at `target`; `fov_deg` is the vertical angle. As y points down, up is -y."""
        eye, forward = np.asarray(eye, np.float64), np.subtract(target, eye, dtype=np.float64)
        right = np.cross(forward, np.asarray(up, np.float64))
        if not (np.linalg.norm(right) > 1e-9 * np.linalg.norm(forward) > 0):
            raise ValueError("eye and target coincide, or `up` points along the line of sight")
        forward, right = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(forward, right), forward, eye
        focal = height / (2.0 * np.tan(np.deg2rad(fov_deg) / 2.0))
        k = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        return cls(pose, k, width, height, **options)


def chase_view(width: int = 1280, height: int = 720, **options: Any) -> View:
    """The view from behind and above the main vehicle of a scene, over its roof onto the road ahead."""
    return View.look_at((-5.0, -17.0, -23.0), (-1.0, 2.0, 7.5), fov_deg=60.0, width=width, height=height, **options)


def fitted_view(geometries: Any, width: int = 1280, height: int = 720, **options: Any) -> View:
    """The view from behind and above, so that nine tenths of all points are in the picture."""
    points = np.concatenate([np.zeros((0, 3)), *(_points(item) for item in _items(geometries))])
    points = points[np.isfinite(points).all(axis=1)]
    centre = np.median(points, axis=0) if len(points) else np.zeros(3)
    distances = np.linalg.norm(points - centre, axis=1)
    radius = max(float(np.quantile(distances, 0.9)), 1.0) if len(points) else 1.0
    eye = centre + 2.2 * radius * np.array([0.0, -0.55, -0.84])
    return View.look_at(eye, centre, width=width, height=height, **options)


def save_view_png(geometries: Any, path: Path | str, view: View | None = None) -> NDArray[np.uint8]:
    """Draws a picture, writes it as PNG (whole or not at all) and returns it as (H, W, 3) uint8.

    Args:
        geometries: a Scene, or any mixture of Cloud, Boxes, Cameras, Axes and Open3D geometries, or one of them.
        view: by default `fitted_view`.

    Raises:
        InputError: no EGL on this machine, or the file can't be written.
    """
    image = render(geometries, view or fitted_view(geometries))
    write_png(Path(path), image)
    return image


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes (H, W, 3) uint8 as PNG, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    write_atomic(path, buffer.getvalue())


def render(geometries: Any, view: View) -> NDArray[np.uint8]:
    """The picture as (H, W, 3) uint8; arguments and errors as `save_view_png`."""
    global _drawn_in
    o3d = load_open3d()
    scale = view.supersample
    width, height = view.width * scale, view.height * scale
    focal = view.intrinsics[1, 1] * scale
    symmetric = o3d.camera.PinholeCameraParameters()
    symmetric.intrinsic = o3d.camera.PinholeCameraIntrinsic(width, height, focal, focal, width / 2 - 0.5, height / 2 - 0.5)
    symmetric.extrinsic = invert(view.world_from_camera)
    shapes = _shapes(geometries, view, o3d)
    far = _far(shapes, view)

    if _drawn_in not in (None, os.getpid()):
        raise RuntimeError("this process was forked from one that had drawn; start workers by 'spawn' or 'forkserver'")
    _drawn_in = os.getpid()
    with _lock, quiet(o3d):
        window = o3d.visualization.Visualizer()
        try:
            if not window.create_window(width=width, height=height, visible=False):
                raise InputError(f"Open3D finds no EGL to draw with, which needs no display but libraries: {APT_LINE}")
            options = window.get_render_option()
            options.background_color = np.asarray(view.background, np.float64)
            options.point_size = float(view.point_size * scale)
            options.line_width = float(view.line_width * scale)
            for shape in shapes:
                window.add_geometry(shape)
            control = window.get_view_control()
            control.convert_from_pinhole_camera_parameters(symmetric, True)
            control.set_constant_z_near(view.near)
            control.set_constant_z_far(far)
            pixels = np.asarray(window.capture_screen_float_buffer(True))
            image = (pixels * 255.0 + 0.5).astype(np.uint8)
        finally:
            window.destroy_window()
    return np.asarray(Image.fromarray(image).reduce(scale)) if scale > 1 else image


def _far(shapes: list[Any], view: View) -> float:
    """The z behind which nothing lies: no farther than needed, for the depth buffer's sake."""
    bounds = np.array([[shape.get_min_bound(), shape.get_max_bound()] for shape in shapes])  # (S, 2, 3)
    corners = np.concatenate([bounds[:, pick, range(3)] for pick in np.ndindex(2, 2, 2)])
    z = transform(invert(view.world_from_camera), corners)[:, 2]
    return min(max(float(z.max()), view.near) + 10.0, FARTHEST)


def load_open3d() -> Any:
    """The module `open3d`.

    Raises:
        InputError: it is not installed, or lacks system libraries.
    """
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise InputError(f"Open3D can't be loaded ({error}); it may lack system libraries: {APT_LINE}") from error
    return open3d


@contextmanager
def quiet(o3d: Any, hide: tuple[str, ...] = ("DISPLAY", "WAYLAND_DISPLAY")) -> Iterator[None]:
    """Hides the display, and what Open3D, GLFW and Mesa print on their way to EGL."""
    hidden = {name: os.environ.pop(name) for name in hide if name in os.environ}
    with tempfile.TemporaryFile() as sink, o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        stderr = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.environ.update(hidden)


def _items(geometries: Any) -> list[Any]:
    if isinstance(geometries, Scene):
        return list(geometries.items())
    return list(geometries) if isinstance(geometries, Iterable) else [geometries]


def _points(item: Any) -> NDArray[np.floating]:
    """The points that say where an item is."""
    if isinstance(item, Cloud):
        return item.points
    if hasattr(item, "lines"):
        return item.lines()[0] if not hasattr(item, "get_max_bound") else np.asarray(item.points)
    return np.stack([item.get_min_bound(), item.get_max_bound()])


def _shear(view: View) -> NDArray[np.float64] | None:
    """The affine map (4, 4) of the world after which the symmetric camera with fy sees what `view` sees, if any."""
    k = np.asarray(view.intrinsics, np.float64)
    symmetric = np.array([[k[1, 1], 0, (view.width - 1) / 2], [0, k[1, 1], (view.height - 1) / 2], [0, 0, 1]])
    if np.allclose(k, symmetric, rtol=0, atol=1e-9):
        return None
    camera = np.eye(4)
    camera[:3, :3] = np.linalg.solve(symmetric, k)
    return view.world_from_camera @ camera @ invert(view.world_from_camera)


def _shapes(geometries: Any, view: View, o3d: Any) -> list[Any]:
    """All shapes to be drawn, moved by the view's shear, and two points behind the camera."""
    behind = transform(view.world_from_camera, np.array([[-1.0, -1.0, -2.0], [1.0, 1.0, -1.0]]))
    return to_open3d([Cloud(behind, np.zeros(3, np.uint8)), *_items(geometries)], o3d, _shear(view))


def to_open3d(items: Iterable[Any], o3d: Any, shear: NDArray[np.float64] | None = None) -> list[Any]:
    """Items as Open3D geometries, moved by `shear` (4, 4); what is not finite is left out.

    All clouds become one, and all lines: Open3D draws its geometries in the order of their addresses in memory, so that
    two lines at the same depth would lie over each other this way in one picture and that way in the next.
    """
    clouds: list[tuple[NDArray, NDArray]] = []
    lines: list[Lines] = []
    shapes = []
    count = 0
    for item in items:
        if isinstance(item, Cloud):
            points, colors = item.points, np.broadcast_to(item.colors, item.points.shape)
            if not np.isfinite(points.sum()):
                finite = np.isfinite(points).all(axis=1)
                points, colors = points[finite], colors[finite]
            clouds.append((points, colors))
        elif hasattr(item, "get_max_bound"):  # Open3D's own
            if isinstance(item, o3d.geometry.PointCloud) and not np.isfinite(np.asarray(item.points).sum()):
                item = copy.deepcopy(item).remove_non_finite_points()
            shapes.append(item if shear is None else copy.deepcopy(item).transform(shear))
        else:
            points, edges, colors = _finite_lines(*item.lines())
            lines.append((points, edges + count, colors))
            count += len(points)
    if any(len(points) for points, _ in clouds):
        points = np.concatenate([points for points, _ in clouds], dtype=np.float64)
        cloud = o3d.geometry.PointCloud(_vectors(points, shear, o3d))
        cloud.colors = _vectors(np.concatenate([colors for _, colors in clouds]) / 255.0, None, o3d)
        shapes.append(cloud)
    if any(len(edges) for _, edges, _ in lines):
        points, edges, colors = (np.concatenate(part) for part in zip(*lines, strict=True))
        line_set = o3d.geometry.LineSet(_vectors(points, shear, o3d), o3d.utility.Vector2iVector(edges.astype(np.int32)))
        line_set.colors = _vectors(colors / 255.0, None, o3d)
        shapes.append(line_set)
    return shapes


def _finite_lines(points: NDArray[np.float64], edges: NDArray[np.int64], colors: NDArray[np.uint8]) -> Lines:
    finite = np.asarray(np.isfinite(points).all(axis=1))
    if finite.all():
        return points, edges, colors
    kept = np.asarray(finite[edges].all(axis=1))
    return np.where(finite[:, None], points, 0.0), edges[kept], colors[kept]


def _vectors(rows: NDArray[np.float64], shear: NDArray[np.float64] | None, o3d: Any) -> Any:
    return o3d.utility.Vector3dVector(rows if shear is None else transform(shear, rows))
