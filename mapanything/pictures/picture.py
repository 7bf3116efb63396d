"""The content of a 3D picture, and its drawing: layers that can be left out, names, a legend; as one panel or as a sheet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mapanything.pictures.canvas import Name, scene_names
from mapanything.pictures.colors import (
    BOX_COLOR,
    HEIGHT_RANGE,
    LIGHT,
    PREDICTED,
    RING_TEXT,
    TRUE,
    TRUE_BELOW,
    agent_color,
)
from mapanything.pictures.predictions import PredictedScene
from mapanything.pictures.render import render
from mapanything.pictures.scenes import LIDAR_HEIGHT, Boxes, Cameras, Cloud, Item, Rings, Scene, Trajectory, no_cameras
from mapanything.pictures.sheets import RING_SIGN, Bar, Mark, Panel, ring_names, sheet
from mapanything.pictures.viewpoints import STYLE, camera_view, for_many_points, metres_per_pixel, named_view

LAYERS = ("cloud", "ground_truth", "boxes", "cameras", "axes", "paths", "rings")
HIDEABLE = (*LAYERS, "names")
HEIGHT_BAR = Bar("height above the road, metres", *HEIGHT_RANGE)
SINGLE, SQUARE = (1280, 720), (960, 960)  # pixels of a picture of one view; of one from above
TOP_SIZE, CHASE_SIZE = (700, 700), (1168, 700)  # of a sheet's upper row
CAMERAS_A_ROW = 4


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """All that can be drawn of one timestamp, in the main agent's LiDAR frame.

    Attributes:
        layers: items by layer, of `LAYERS`.
        cameras: those that can be looked through.
        agent: whose cameras `camera0` to `camera3` are; the main agent.
        ground: y of the road below it.
        max_range: metres that the view from above shows to each side.
    """

    title: str
    layers: Mapping[str, Sequence[Item]]
    cameras: Cameras
    agent: str
    ground: float
    max_range: float
    names: tuple[Name, ...] = ()
    marks: tuple[Mark, ...] = ()
    bars: tuple[Bar, ...] = ()

    def without(self, hidden: Iterable[str]) -> Picture:
        """The same with some of `HIDEABLE` left out."""
        hidden = set(hidden)
        layers = {name: items for name, items in self.layers.items() if name not in hidden}
        return replace(self, layers=layers, names=() if "names" in hidden else self.names)

    def items(self, hidden: Iterable[str] = ()) -> list[Item]:
        return [item for name, items in self.layers.items() if name not in hidden for item in items]


def rings_of(max_range: float, ground: float) -> Rings:
    """A circle every 10 m, or every 20, 50...: at most six."""
    step = next(step for step in (10.0, 20.0, 50.0, 100.0, 200.0, 500.0, np.inf) if max_range / step <= 6.5)
    return Rings(tuple(step * i for i in range(1, int(max_range / step) + 1)), ground)


def scene_picture(scene: Scene, max_range: float, title: str, *, by_agent: bool = False, boxes: bool = True) -> Picture:
    """A timestamp with all its layers.

    Args:
        by_agent: points in their agent's colour, else by height.
        boxes: vehicles too.
    """
    if not boxes:
        scene = replace(scene, boxes=scene.boxes.select(np.zeros(0, np.int64)))
    clouds = [replace(cloud, colors=agent_color(role)) if by_agent else cloud for role, cloud in enumerate(scene.clouds)]
    layers: dict[str, Sequence[Item]] = {
        "cloud": clouds,
        "boxes": [scene.boxes],
        "cameras": [scene.cameras],
        "axes": scene.axes,
        "paths": scene.paths,
        "rings": [rings_of(max_range, scene.ground)],
    }
    names, bars = tuple(scene_names(scene)), () if by_agent else (HEIGHT_BAR,)
    main = scene.main.key.agent
    return Picture(title, layers, scene.cameras, main, scene.ground, max_range, names, scene_marks(scene), bars)


def scene_marks(scene: Scene) -> tuple[Mark, ...]:
    """A line per agent, and what boxes, paths and circles are."""
    marks = []
    for role, (agent, cloud) in enumerate(zip(scene.agents, scene.clouds, strict=True)):
        points = f"{len(cloud.points):,} points" if agent.has_cloud else "no cloud"
        kind = "RSU" if agent.frame.is_rsu else "agent"
        marks.append(Mark(f"{kind} {agent.key.agent}{' (main)' if role == 0 else ''}, {points}", agent_color(role)))
    if len(scene.boxes):
        marks.append(Mark(f"{len(scene.boxes)} vehicles, tick at the front", BOX_COLOR, "□"))
    if scene.paths:
        marks.append(Mark("path over the frames around this one", LIGHT, "—"))
    marks.append(Mark("distance from the main agent's LiDAR", RING_TEXT, RING_SIGN))
    return tuple(marks)


def cloud_picture(clouds: Sequence[Cloud], max_range: float, ground: float, title: str) -> Picture:
    """Clouds alone, of files that nothing else is known of."""
    layers: dict[str, Sequence[Item]] = {"cloud": clouds, "rings": [rings_of(max_range, ground)]}
    marks = [Mark(f"{cloud.label}, {len(cloud.points):,} points") for cloud in clouds]
    marks.append(Mark("distance from the origin", RING_TEXT, RING_SIGN))
    return Picture(title, layers, no_cameras(), "", ground, max_range, marks=tuple(marks))


def draw_panel(
    picture: Picture, view_name: str, size: tuple[int, int], point_size: float, *, title: str = "", camera: int | None = None
) -> Panel:
    """One view of it.

    Args:
        view_name: of `viewpoints.VIEWS`; not looked at with `camera`, a row of the picture's cameras.

    Raises:
        InputError: there is no such camera.
    """
    options = STYLE | {"point_size": point_size}
    inside = camera is not None or view_name.startswith("camera")
    items = _seen_from_inside(picture) if inside else picture.items()
    if camera is not None:
        view = camera_view(picture.cameras, camera, *size, **options)
    else:
        view = named_view(view_name, items, picture.cameras, picture.agent, picture.max_range, *size, **options)
    view = for_many_points(view, sum(len(item.points) for item in items if isinstance(item, Cloud)))
    names = [name for name in picture.names if not (inside and name.text == f"agent {picture.agent}")]
    names += [name for item in items if isinstance(item, Rings) for name in ring_names(item)]
    scale = metres_per_pixel(view, picture.ground) if view_name == "top" else None
    return Panel(render(items, view), title or VIEW_TITLES.get(view_name, view_name), view, tuple(names), scale)


def _seen_from_inside(picture: Picture) -> list[Item]:
    """All items but those in the way: the frusta, the box one sits in, circles that end on the horizon."""
    items = picture.items(hidden=("cameras", "axes", "rings"))
    return [item.without(picture.agent) if isinstance(item, Boxes) else item for item in items]


VIEW_TITLES = {"top": "from above", "chase": "from behind", "fit": "all of it"}


def view_size(picture: Picture, view_name: str) -> tuple[int, int]:
    """Pixels of a picture of one view: a camera's keeps its image's shape."""
    if view_name == "top":
        return SQUARE
    if not view_name.startswith("camera") or not len(picture.cameras):
        return SINGLE
    width, height = picture.cameras.sizes[0].tolist()
    return 1280, max(1, round(1280 * height / width))


def draw_view(picture: Picture, view_name: str, point_size: float) -> Any:
    """A figure of one view with its legend; `view_name` of `viewpoints.VIEWS`. Raises InputError: there is no such camera."""
    marks, title = picture.marks, ""
    if view_name.startswith("camera"):  # a LiDAR's lines are far apart there, and no circle is drawn
        point_size, title = 2 * point_size, f"{picture.agent} {view_name}"
        marks = tuple(mark for mark in marks if mark.sign != RING_SIGN)
    panel = draw_panel(picture, view_name, view_size(picture, view_name), point_size, title=title)
    return sheet(picture.title, [[panel]], marks, picture.bars)


def draw_sheet(picture: Picture, point_size: float) -> Any:
    """A figure of the views from above and from behind, and below them what each of the main agent's cameras sees."""
    upper = [draw_panel(picture, "top", TOP_SIZE, point_size), draw_panel(picture, "chase", CHASE_SIZE, point_size)]
    whole = sum(panel.size[0] for panel in upper) + 12
    width = (whole - 12 * (CAMERAS_A_ROW - 1)) // CAMERAS_A_ROW
    lower = []
    for row, label in enumerate(picture.cameras.labels):
        if label.startswith(f"{picture.agent} camera"):
            size = (width, max(1, round(width * picture.cameras.sizes[row, 1] / picture.cameras.sizes[row, 0])))
            lower.append(draw_panel(picture, "", size, point_size, title=label, camera=row))
    rows = [upper, *(lower[i : i + CAMERAS_A_ROW] for i in range(0, len(lower), CAMERAS_A_ROW))]
    return sheet(picture.title, rows, picture.marks, picture.bars)


def prediction_picture(predicted: PredictedScene, max_range: float, camera_size: float) -> Picture:
    """A prediction of which the data are not here; `camera_size`: metres of the frusta."""
    picture = cloud_picture([predicted.cloud], max_range, LIDAR_HEIGHT, f"prediction of {predicted}")
    cameras = replace(predicted.cameras, length=camera_size)
    marks = (
        Mark(f"prediction, {len(predicted.cloud.points):,} points"),
        *(Mark(f"cameras of agent {agent}", agent_color(role)) for role, agent in enumerate(predicted.agents)),
        Mark("distance from the main agent's LiDAR", RING_TEXT, RING_SIGN),
    )
    layers = {**picture.layers, "cameras": [cameras]}
    return replace(picture, layers=layers, cameras=cameras, agent=predicted.agent, marks=marks)


def add_prediction(picture: Picture, predicted: PredictedScene) -> Picture:
    """The prediction in its images' colours, the LiDAR below it in one colour; predicted and true cameras apart.

    Agents are no longer told apart by their colours, two of which mean predicted and true now.
    """
    truth = [replace(cloud, colors=TRUE_BELOW) for cloud in picture.layers["cloud"] if isinstance(cloud, Cloud)]
    cameras = replace(predicted.cameras, length=picture.cameras.length)
    layers = {
        **picture.layers,
        "cloud": [predicted.cloud],
        "ground_truth": truth,
        "cameras": [cameras.painted(PREDICTED), picture.cameras.painted(TRUE)],
        "boxes": [
            replace(item, colors=np.tile(BOX_COLOR, (len(item), 1)))
            for item in picture.layers["boxes"]
            if isinstance(item, Boxes)
        ],
        "paths": [replace(item, color=BOX_COLOR) for item in picture.layers["paths"] if isinstance(item, Trajectory)],
    }
    marks = (
        Mark(f"prediction, {len(predicted.cloud.points):,} points in the images' colours; its cameras", PREDICTED),
        Mark("LiDAR", TRUE_BELOW),
        Mark("true cameras", TRUE),
        *(replace(mark, color=LIGHT, sign="·") if mark.sign == "■" else mark for mark in picture.marks),
    )
    names = tuple(replace(name, color=BOX_COLOR) for name in picture.names)
    return replace(picture, title=f"{picture.title}: prediction and LiDAR", layers=layers, names=names, marks=marks, bars=())
