"""The places that pictures are taken from: above, behind, a camera of the scene, or around whatever is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from mapanything.errors import InputError
from mapanything.geometry.camera import resize_intrinsics
from mapanything.pictures.colors import BACKGROUND
from mapanything.pictures.render import View, chase_view, fitted_view
from mapanything.pictures.scenes import Cameras

VIEWS = ("chase", "top", "camera0", "camera1", "camera2", "camera3", "fit")
HEIGHT = 40.0  # times the range: from so far above that a roof lies over its wheels, to 1 in 40 of its height
STYLE: dict[str, Any] = {"background": BACKGROUND, "line_width": 1.6, "supersample": 2}


def top_view(max_range: float, width: int = 720, height: int = 720, **options: Any) -> View:
    """The view from above: the main agent in the middle looks up the picture, `max_range` metres to each side at least.

    `metres_per_pixel` says how large a metre on the road is.
    """
    above = HEIGHT * max_range
    fov_deg = 2 * np.rad2deg(np.arctan(max_range / above * max(height / width, 1.0)))
    pose = ((0.0, -above, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    return View.look_at(*pose, fov_deg=fov_deg, width=width, height=height, near=above / 2, **options)


def metres_per_pixel(view: View, ground: float) -> float:
    """The length of a pixel of a view from above, on the road at y = ground."""
    return float((ground - view.world_from_camera[1, 3]) / view.intrinsics[1, 1])


def camera_view(cameras: Cameras, index: int, width: int, height: int, **options: Any) -> View:
    """The view that a camera of the scene has, its whole image stretched to width x height."""
    scale = np.array([width, height]) / cameras.sizes[index]
    k = resize_intrinsics(cameras.intrinsics[index], *scale)
    return View(cameras.world_from_camera[index], k, width, height, **options)


def find_camera(cameras: Cameras, agent: str, camera: int) -> int:
    """The row of an agent's camera.

    Raises:
        InputError: the scene has no such camera.
    """
    label = f"{agent} camera{camera}"
    if label not in cameras.labels:
        raise InputError(f"no '{label.strip()}' in this scene; it has {', '.join(cameras.labels) or 'no cameras'}")
    return cameras.labels.index(label)


def named_view(
    name: str, items: Iterable[Any], cameras: Cameras, agent: str, max_range: float, width: int, height: int, **options: Any
) -> View:
    """The view of one of `VIEWS`.

    Args:
        items: what `fit` fits to.
        cameras, agent: `camera0` is the agent's.

    Raises:
        InputError: there is no such camera.
    """
    if name == "chase":
        return chase_view(width, height, **options)
    if name == "top":
        return top_view(max_range, width, height, **options)
    if name == "fit":
        return fitted_view(items, width, height, **options)
    return camera_view(cameras, find_camera(cameras, agent, int(name.removeprefix("camera"))), width, height, **options)


def for_many_points(view: View, num_points: int) -> View:
    """The view for so many points: a large cloud is smooth enough by itself, and four times the pixels would take seconds."""
    if num_points < 1_000_000 or view.supersample == 1:
        return view
    return replace(view, supersample=1, point_size=max(1.0, view.point_size))
