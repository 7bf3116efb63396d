"""The things of a frame that a client sees, and how clouds are cut into what a browser gets. Plain NumPy, no browser.

`visible_layers` gives the very objects that a snapshot hands to render.save_view_png; the browser draws the same ones.

A cloud goes out in chunks, any first ones a fair sample of it (frames.py). Each chunk is cut into tiles whose points
are sent relative to the tile's centre as float16: within 32 m of the centre that rounds by less than 8 mm along an axis, where
float16 alone is 3 cm off at 100 m. What lies outside the 3 x 3 tiles around the main agent (96 m) is sent as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.rigid import invert, transform
from mapanything.geometry.types import Float
from mapanything.pictures.colors import agent_color, height_colors
from mapanything.pictures.hidden import HIDDEN_COLOR, hidden_from_all
from mapanything.pictures.scenes import Boxes, Cloud, Item, Scene, in_range, trajectories
from mapanything.viewer.frames import ViewerFrame

TILE = 64.0  # metres
FAR = 9  # number of the tile that holds what the nine don't
FIRST_POINTS = 150_000  # of a cloud, sent at once with a new frame
CHUNK_POINTS = 250_000  # sent at a time afterwards
ALL_RANGE = 300.0  # metres; the largest range shows everything

LIDAR_COLORS = ("height", "agent", "hidden")
PREDICTION_COLORS = ("image", "height")


@dataclass(frozen=True, slots=True)
class Look:
    """A client's choices.

    Attributes:
        hidden: agents whose LiDAR is not drawn.
        max_range, point_size: metres.
        max_points: of one cloud.
        fewer_moving: only the first points of each cloud while the view moves.
    """

    lidar: bool = True
    hidden: frozenset[str] = frozenset()
    prediction: bool = True
    error: bool = False
    boxes: bool = True
    labels: bool = True
    cameras: bool = True
    images: bool = True
    axes: bool = True
    paths: bool = False
    lidar_colors: str = "height"
    prediction_colors: str = "image"
    max_range: float = 120.0
    point_size: float = 0.06
    max_points: int = 2_000_000
    fewer_moving: bool = True


class Layer(NamedTuple):
    """Something to draw. Two layers of the same name and version are drawn alike, so that nothing needs to be sent."""

    version: tuple[object, ...]
    make: Callable[[], Item]


def visible_layers(frame: ViewerFrame, look: Look, positions: Mapping[str, Float] | None = None) -> dict[str, Layer]:
    """The layers to be drawn, by name. Error takes the prediction's place: both are the same points.

    Args:
        positions: of `scenes.read_positions`; without them no paths are drawn.
    """
    scene, layers = frame.scene, {}

    def add(name: str, make: Callable[[], Item], *version: object) -> None:
        layers[name] = Layer((str(frame.key), *version), make)

    def cloud(
        name: str,
        item: Cloud,
        color: str,
        paint: Callable[[Cloud], NDArray[np.uint8]] | None,
        whole: Callable[[Cloud], Cloud] = lambda item: item,
    ) -> None:
        def make() -> Cloud:
            part = near(whole(item), look.max_range, look.max_points)
            return part if paint is None else replace(part, colors=paint(part))

        add(name, make, color, look.max_range, look.max_points)

    if look.lidar:
        for role, item in enumerate(scene.clouds):
            if item.label not in look.hidden and len(item.points):
                name, color = f"lidar/{item.label}", look.lidar_colors
                if color == "hidden":
                    cloud(name, item, color, None, lambda item, role=role: mark_hidden(item, scene, role))
                else:
                    cloud(name, item, color, None if color == "height" else lambda _, role=role: agent_color(role))
    error = frame.error() if look.error and frame.has_error else None
    if error is not None:
        cloud("prediction", error, "error", None)
    elif look.prediction and frame.prediction is not None:
        paint = None if look.prediction_colors == "image" else lambda part: height_colors(part.points, scene.ground)
        cloud("prediction", frame.prediction.cloud, look.prediction_colors, paint)
    if look.boxes:
        add("boxes", lambda: near_boxes(scene.boxes, look.max_range), look.max_range)
    if look.cameras:
        add("cameras", lambda: scene.cameras)
        if frame.prediction is not None and (look.prediction or look.error):
            cameras = frame.prediction.cameras
            add("predicted cameras", lambda: replace(cameras, colors=np.full_like(cameras.colors, 255)))
    if look.axes:
        for axes in scene.axes:
            add(f"axes/{axes.label}", lambda axes=axes: axes)
    if look.paths and positions is not None:
        for path in trajectories(scene.agents, positions):
            add(f"paths/{path.label}", lambda path=path: path)
    return layers


def mark_hidden(cloud: Cloud, scene: Scene, role: int) -> Cloud:
    """An agent's cloud with the returns magenta that fall into its cameras' images and that none of them sees."""
    frame = scene.agents[role].frame
    lidar_from_scene = invert(frame.world_from_lidar) @ scene.agents[0].frame.world_from_lidar
    hidden = hidden_from_all(transform(lidar_from_scene, cloud.points.astype(np.float64)), frame.cameras)
    return replace(cloud, colors=np.where(hidden[:, None], np.array(HIDDEN_COLOR, np.uint8), cloud.colors))


def near(cloud: Cloud, max_range: float, max_points: int) -> Cloud:
    """The first points within a square of `max_range` around the main agent's LiDAR."""
    points, colors = cloud.points, cloud.colors
    if max_range < ALL_RANGE:
        inside = in_range(points, max_range)
        points, colors = points[inside], colors[inside]
    return Cloud(points[:max_points], colors[:max_points], cloud.label)


def near_boxes(boxes: Boxes, max_range: float) -> Boxes:
    if max_range >= ALL_RANGE:
        return boxes
    return boxes.select(in_range(boxes.world_from_box[:, :3, 3], max_range))


class Tile(NamedTuple):
    """Points (N, 3) of a cloud relative to `centre`, float16, or float32 in the far tile; colours (N, 3)."""

    number: int
    centre: tuple[float, float, float]
    points: NDArray[np.floating]
    colors: NDArray[np.uint8]


def tiles(points: NDArray[np.float32], colors: NDArray[np.uint8]) -> Iterator[Tile]:
    """The points by tiles; empty tiles are left out."""
    index = np.rint(points / TILE).astype(np.int32)
    number = np.where((np.abs(index) <= (1, 0, 1)).all(axis=1), 4 + index[:, 0] + 3 * index[:, 2], FAR).astype(np.uint8)
    order = np.argsort(number, kind="stable")
    ends = np.cumsum(np.bincount(number, minlength=FAR + 1))
    for tile, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if begin == end:
            continue
        rows = order[begin:end]
        if tile == FAR:
            yield Tile(tile, (0.0, 0.0, 0.0), points[rows], colors[rows])
        else:
            centre = ((tile % 3 - 1) * TILE, 0.0, (tile // 3 - 1) * TILE)
            yield Tile(tile, centre, (points[rows] - np.array(centre, np.float32)).astype(np.float16), colors[rows])


def chunk_end(sent: int, total: int) -> int:
    """Up to which point the next chunk of a cloud goes, `sent` points being there."""
    return min(total, FIRST_POINTS if sent == 0 else sent + CHUNK_POINTS)
