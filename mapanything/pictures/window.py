"""Open3D's window for people with a display or X11 forwarding: the layers of a picture, switched on and off by keys.

Notable:
- Without a display that can be opened, Open3D would quietly draw into an EGL buffer, and nobody could close it: the display
  is tried first.
- Events are polled here, because Open3D's own loop does not hear a Ctrl-C.
- Lines and points are drawn as they are, without a view's shear or supersampling: the camera is the user's to move.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mapanything.errors import InputError
from mapanything.geometry.rigid import invert
from mapanything.pictures.colors import BACKGROUND
from mapanything.pictures.render import FARTHEST, NEAR, View, fitted_view, load_open3d, quiet, to_open3d, write_png
from mapanything.pictures.scenes import Item

TOGGLES = {"C": "cameras", "B": "boxes", "G": "ground_truth"}  # key: layer
HELP = (
    "keys: C cameras, B boxes, G ground truth, S snapshot (PNG), R first view, + and - point size, H help, Q or Esc close; "
    "mouse: drag turns, wheel zooms, Ctrl and drag moves"
)
OTHERWISE = "leave out --window (a PNG is written then), log in with `ssh -X`, or call it through `xvfb-run`"
ESCAPE = 256  # GLFW's number
PAUSE_S = 0.01  # between looks for events


def show(layers: Mapping[str, Sequence[Item]], *, title: str, snapshot: Path, view: View | None = None) -> None:
    """Opens the window and returns when it is closed. What keys do is printed.

    Args:
        layers: items by layer; `cameras`, `boxes` and `ground_truth` can be switched, others are always there.
        snapshot: S writes PICTURE_1.png, PICTURE_2.png, ... for a `snapshot` of PICTURE.png, whole or not at all.
        view: the first one; its size is the window's. By default `fitted_view`.

    Raises:
        InputError: no display, one that can't be opened or has no OpenGL; there is nothing to show.
    """
    o3d = load_open3d()
    items = [item for layer in layers.values() for item in layer]
    shapes = {name: to_open3d(layer, o3d) for name, layer in layers.items()}
    if not any(shapes.values()):
        raise InputError("there is nothing to show: no points, no boxes, no cameras")
    view = view or fitted_view(items, background=BACKGROUND)
    with quiet(o3d, hide=("WAYLAND_DISPLAY",)), _open_display():  # Open3D's window is X11's
        window = o3d.visualization.VisualizerWithKeyCallback()
        if not window.create_window(window_name=title, width=view.width, height=view.height):
            raise InputError(f"the display {os.environ['DISPLAY']} has no OpenGL for Open3D's window: {OTHERWISE}")
    try:
        layered = _WindowLayers(window, shapes, snapshot)
        _look(window, view, layered, o3d)
        for key, layer in TOGGLES.items():
            _on(window, ord(key), lambda layer=layer: layered.toggle(layer))
        _on(window, ord("S"), layered.snapshot)
        _on(window, ord("R"), lambda: _look(window, view, layered, o3d))  # Open3D's own would stand on its head: our y is down
        _on(window, ord("H"), lambda: print(HELP, flush=True))
        for key in (ord("Q"), ESCAPE):
            _on(window, key, window.close)
        print(f"{title}\n{HELP}", flush=True)
        while window.poll_events():
            time.sleep(PAUSE_S)
    finally:
        window.destroy_window()


class _WindowLayers:
    """The content of the window. `shapes`: Open3D geometries by layer."""

    def __init__(self, window: Any, shapes: dict[str, list[Any]], path: Path) -> None:
        self._window, self._shapes, self._path = window, shapes, path
        self._hidden: set[str] = set()
        for shape in self.all():
            window.add_geometry(shape)

    def all(self) -> list[Any]:
        return [shape for shapes in self._shapes.values() for shape in shapes]

    def toggle(self, layer: str) -> None:
        name, shapes = layer.replace("_", " "), self._shapes.get(layer)
        if not shapes:
            print(f"{name}: there are none", flush=True)
            return
        hide = layer not in self._hidden
        for shape in shapes:
            # False: the camera stays where it is.
            (self._window.remove_geometry if hide else self._window.add_geometry)(shape, False)
        self._hidden ^= {layer}
        print(f"{name}: {'off' if hide else 'on'}", flush=True)

    def snapshot(self) -> None:
        number = 1
        while (path := self._path.with_name(f"{self._path.stem}_{number}.png")).exists():
            number += 1
        pixels = np.asarray(self._window.capture_screen_float_buffer(True))
        try:
            write_png(path, (pixels * 255.0 + 0.5).astype(np.uint8))
            print(path, flush=True)
        except InputError as error:  # the window stays open for another try
            print(f"error: {error}", file=sys.stderr, flush=True)


def _on(window: Any, key: int, action: Callable[[], None]) -> None:
    def pressed(_: Any) -> bool:
        action()
        return False  # the geometry on the card is as it was

    window.register_key_callback(key, pressed)


def _look(window: Any, view: View, layered: _WindowLayers, o3d: Any) -> None:
    camera = o3d.camera.PinholeCameraParameters()
    focal, centre = view.intrinsics[1, 1], (view.width / 2 - 0.5, view.height / 2 - 0.5)
    camera.intrinsic = o3d.camera.PinholeCameraIntrinsic(view.width, view.height, focal, focal, *centre)
    camera.extrinsic = invert(view.world_from_camera)
    bounds = np.array([[shape.get_min_bound(), shape.get_max_bound()] for shape in layered.all()])
    reach = np.abs(bounds - view.world_from_camera[:3, 3]).max()  # metres from the camera
    options = window.get_render_option()
    options.background_color = np.asarray(view.background, np.float64)
    options.point_size, options.line_width = float(view.point_size), float(view.line_width)
    control = window.get_view_control()
    control.convert_from_pinhole_camera_parameters(camera, True)
    control.set_constant_z_near(NEAR)
    control.set_constant_z_far(min(10 * reach, FARTHEST))


@contextmanager
def _open_display() -> Iterator[None]:
    """Holds a connection to the display: a server whose last client leaves, as Xvfb, is deaf for a moment."""
    if not os.environ.get("DISPLAY"):
        raise InputError(f"a window needs a display, and DISPLAY is not set: {OTHERWISE}")
    try:
        x11 = ctypes.CDLL("libX11.so.6")
    except OSError as error:
        raise InputError("a window needs libX11: apt-get install libx11-6") from error
    x11.XOpenDisplay.restype = ctypes.c_void_p
    x11.XCloseDisplay.argtypes = [ctypes.c_void_p]
    display = x11.XOpenDisplay(None)
    if not display:
        raise InputError(f"the display {os.environ['DISPLAY']} (DISPLAY) can't be opened: {OTHERWISE}")
    try:
        yield
    finally:
        x11.XCloseDisplay(display)
