"""The pose sheet (bird's-eye panel, 3D picture, legend) and the sheet of four images, as PNG bytes of exactly one size."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.opv2v.png import read_image
from mapanything.pictures import overlay
from mapanything.pictures.canvas import (
    Places,
    axes_at,
    new_figure,
    plain_ticks,
    png_bytes,
    scene_names,
    text_at,
    write_names,
    write_text,
)
from mapanything.pictures.colors import BOX_COLOR, DEPTH_RANGE, GRID, LIGHT, agent_color, rgb
from mapanything.pictures.hidden import return_colors
from mapanything.pictures.picture import HEIGHT_BAR
from mapanything.pictures.render import View, chase_view, render
from mapanything.pictures.scenes import CAMERA_NAMES, AgentFrame, Axes, Cloud, Scene, title_of, vehicle_boxes
from mapanything.pictures.sheets import draw_bar
from mapanything.pictures.viewpoints import STYLE

POSE_SIZE = (1920, 1080)
LEFT, RIGHT, TOP = 85, 1080, 58  # pixels: where the pose sheet's two columns begin, and both
BIRDS_EYE = 955  # pixels, the side of the view from above
UNSEEN_COLOR = (255, 140, 230)  # boxes of vehicles that only other agents saw
CELL_WIDTH = 800  # pixels that an image of the sheet of four has at least
LEGEND_LINE, SCALE_HEIGHT = 27, 110


def draw_birds_eye(axes: Any, scene: Scene, max_range: float, point_size: float = 1.0, hidden: Collection[str] = ()) -> None:
    """The scene from above: the main agent looks up the picture, its right is the picture's right. Metres.

    Args:
        hidden: `axes` (the agents' arrows) or `names` are left out; what else may be hidden is left out of the scene.
    """
    from matplotlib.collections import LineCollection, PolyCollection

    axes.set(xlim=(-max_range, max_range), ylim=(-max_range, max_range), aspect="equal")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    points = np.concatenate([cloud.points for cloud in scene.clouds])
    colors = np.concatenate([cloud.colors for cloud in scene.clouds])
    high_last = np.argsort(-points[:, 1], kind="stable")
    x, y, paint = points[high_last, 0], points[high_last, 2], colors[high_last] / 255.0
    axes.scatter(x, y, s=0.9 * point_size**2, c=paint, linewidths=0, marker="s", rasterized=True, zorder=1)

    digit = np.array([4.2, 6.0]) * 2 * max_range / BIRDS_EYE  # half a camera's number, metres
    digits = []
    frusta = scene.cameras.frusta()  # (C, 5, 3): centre and four corners
    for points, color, label in zip(frusta, scene.cameras.colors, scene.cameras.labels, strict=True):
        middle = (points[[1, 2]] + points[[4, 3]]) / 2  # the ends of the image's horizontal middle line
        triangle = np.stack([points[0], *middle])[:, [0, 2]]
        axes.add_collection(PolyCollection([triangle], facecolor=(*(color / 255.0), 0.35), edgecolor=rgb(color), zorder=5))
        text = 1.45 * (triangle[1:].mean(axis=0) - triangle[0]) + triangle[0]
        write_text(axes, text, label[-1], BOX_COLOR, 8, zorder=8)
        digits.append(np.stack([text - digit, text + digit]))

    for path in scene.paths:
        axes.plot(path.points[:, 0], path.points[:, 2], color=rgb(path.color), linewidth=2.0, alpha=0.8, zorder=4)

    boxes = scene.boxes
    corners = boxes.corners()[:, [0, 1, 5, 4]][:, :, [0, 2]]  # the upper face, around
    edges = boxes.colors / 255.0
    axes.add_collection(PolyCollection(list(corners), facecolors="none", edgecolors=edges, linewidths=1.6, zorder=6))
    ticks = boxes.headings()[:, :, [0, 2]]
    axes.add_collection(LineCollection(list(ticks), colors=edges, linewidths=1.6, zorder=6))
    if "axes" not in hidden:
        for item in scene.axes:
            origin, forward = _on_the_plane(item)
            arrow = {"arrowstyle": "-|>", "color": rgb(item.color), "linewidth": 2.2}
            axes.annotate("", origin + _arrow_length(max_range) * forward, origin, zorder=9, arrowprops=arrow)
    if "names" not in hidden:
        _name_from_above(axes, scene, corners, digits, max_range)
    axes.set_ylabel("back   ←   metres   →   forward", color=LIGHT, fontsize=12)
    axes.set_xlabel("left   ←   metres   →   right", color=LIGHT, fontsize=12)
    step = next(s for s in (5, 10, 20, 50, 100, 200, 500, 1000, np.inf) if max_range / s <= 8)
    if np.isfinite(step):
        ticks = np.arange(-np.floor(max_range / step), np.floor(max_range / step) + 1) * step
        names = [f"{abs(tick):g}" for tick in ticks]
        axes.set_xticks(ticks, names)
        axes.set_yticks(ticks, names)


def _on_the_plane(item: Axes) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """An agent's place and the direction that it looks in, (2,) each: right and forward of the main agent."""
    return item.world_from_axes[[0, 2], 3], item.world_from_axes[[0, 2], 2]


def _arrow_length(max_range: float) -> float:
    return max_range / 8


def _name_from_above(
    axes: Any, scene: Scene, corners: NDArray[np.floating], digits: Sequence[NDArray[np.floating]], max_range: float
) -> None:
    """Agents' names, and the vehicles' numbers where there is room.

    Args:
        corners: (B, 4, 2) of the boxes in the plane.
        digits: (2, 2) each, lower and upper ends of what the cameras' numbers cover.
    """
    pixel, boxes = 2 * max_range / BIRDS_EYE, scene.boxes  # metres
    low, high = corners.min(axis=1), corners.max(axis=1)
    places = Places([*np.stack([low, high], axis=1), *digits], [-max_range] * 2, [max_range] * 2)
    length = _arrow_length(max_range)
    for role, item in enumerate(scene.axes):
        origin, forward = _on_the_plane(item)
        name = f"{item.label}{' (main)' if role == 0 else ''}"
        half = np.array([6.0 * len(name), 10.0]) * pixel
        side = np.array([length * 0.6 + half[0], 0.0])
        around = [-1.15 * length * forward, 1.3 * length * forward, side, -side, -1.6 * length * forward]
        place = places.find([origin + step for step in around], half)
        if place is None:
            place = origin + around[0]
        write_text(axes, place, name, item.color, 12, fontweight="bold", zorder=9)

    agents = {item.label for item in scene.axes}
    for box, label in enumerate(boxes.labels):
        half = np.array([4.2 * len(label), 6.0]) * pixel
        centre, reach = (low[box] + high[box]) / 2, (high[box] - low[box]) / 2 + half + 3 * pixel
        if label not in agents:
            around = [centre + reach * direction for direction in ((1, 0), (-1, 0), (0, 1), (0, -1))]
            place = places.find(around, half)
            if place is not None:
                write_text(axes, place, label, boxes.colors[box], 9, zorder=7)


def pose_sheet(
    scene: Scene,
    max_range: float,
    image: NDArray[np.uint8] | None,
    view: View | None,
    point_size: float = 1.0,
    hidden: Collection[str] = (),
) -> bytes:
    """The pose picture as PNG bytes of POSE_SIZE pixels: from above, `image` of `view`, and what the colours mean.

    `hidden`: as `draw_birds_eye`; what else is named was left out of the scene.
    """
    figure, key = new_figure(*POSE_SIZE), scene.main.key
    title = f"{key.split} / {key.scenario} / frame {key.frame}"
    figure.text(0.012, 0.972, title, color=LIGHT, fontsize=19, va="center")
    draw_birds_eye(axes_at(figure, LEFT, TOP, BIRDS_EYE, BIRDS_EYE), scene, max_range, point_size, hidden)
    top = TOP
    if image is not None and view is not None:
        panel = axes_at(figure, RIGHT, top, image.shape[1], image.shape[0])
        panel.imshow(image, interpolation="none", aspect="auto")
        panel.set(xticks=[], yticks=[])
        write_names(panel, view, () if "names" in hidden else scene_names(scene))
        top += image.shape[0] + 22
    _legend(figure, scene, RIGHT, top, hidden)
    return png_bytes(figure)


def pose_view_size(num_agents: int) -> tuple[int, int]:
    """The pixels (width, height) that the pose sheet has for the 3D picture, above its legend."""
    return 820, POSE_SIZE[1] - TOP - SCALE_HEIGHT - LEGEND_LINE * (num_agents + 2)


def _legend(figure: Any, scene: Scene, left: int, top: int, hidden: Collection[str]) -> None:
    """The height scale, and a line per agent; how many points a hidden cloud has is not known."""
    draw_bar(figure, HEIGHT_BAR, left, top, 815)
    top += 68
    lines: list[tuple[str, Any]] = []
    for role, (agent, cloud) in enumerate(zip(scene.agents, scene.clouds, strict=True)):
        parts = [f"{'RSU' if agent.frame.is_rsu else 'agent'} {agent.key.agent}" + (" (main)" if role == 0 else "")]
        if np.isfinite(agent.frame.ego_speed_kmh):
            parts.append(f"{round(agent.frame.ego_speed_kmh)} km/h")  # round: -0.2 is no "-0"
        if "cloud" not in hidden:
            parts.append(f"{len(cloud.points):,} points" if agent.has_cloud else "no cloud")
        parts.append(f"lists {len(agent.frame.vehicles)} vehicles")
        if role:
            parts.append(f"{np.linalg.norm(scene.axes[role].world_from_axes[:3, 3]):.0f} m away")
        lines.append(("■  " + ",  ".join(parts), rgb(agent_color(role))))
    lines.append((f"□  {len(scene.boxes)} vehicles shown, tick at the front; number: CARLA's id", LIGHT))
    names = ",  ".join(f"{k} {name}" for k, name in enumerate(CAMERA_NAMES))
    lines.append((f"◁  cameras: {names}" + (";   —  path" if scene.paths else ""), LIGHT))
    for i, (text, color) in enumerate(lines):
        text_at(figure, left, top + (i + 0.5) * LEGEND_LINE, text, 13, color)


def pose_png(scene: Scene, max_range: float, point_size: float, hidden: Collection[str] = (), *, in_3d: bool = True) -> bytes:
    """Draws the pose sheet of a scene without the layers in `hidden`; `in_3d`: with its picture, which Open3D draws."""
    scene = without(scene, hidden)
    image = view = None
    if in_3d:
        view = chase_view(*pose_view_size(len(scene.agents)), point_size=point_size, **STYLE)
        image = render([item for item in scene.items() if not ("axes" in hidden and isinstance(item, Axes))], view)
    return pose_sheet(scene, max_range, image, view, point_size, hidden)


def without(scene: Scene, hidden: Collection[str]) -> Scene:
    """The scene without some layers; its axes stay, which say where the agents are."""
    none = np.zeros(0, dtype=np.int64)
    if "cloud" in hidden:
        empty = np.zeros((0, 3))
        scene = replace(scene, clouds=tuple(Cloud(empty, empty.astype(np.uint8), cloud.label) for cloud in scene.clouds))
    if "boxes" in hidden:
        scene = replace(scene, boxes=scene.boxes.select(none))
    if "cameras" in hidden:
        scene = replace(scene, cameras=scene.cameras.select(none))
    return replace(scene, paths=()) if "paths" in hidden else scene


def frame_png(agents: Sequence[AgentFrame], point_size: int, mark_hidden: bool = False) -> bytes:
    """The first agent's LiDAR and everybody's boxes over its four images. Raises InputError: an image is missing.

    Args:
        mark_hidden: returns that a camera cannot see have a colour of their own.
    """
    agent = agents[0]
    points = agent.lidar_points()
    boxes = vehicle_boxes(agents).without(agent.key.agent)
    own = {str(vehicle.id) for vehicle in agent.frame.vehicles}
    known = own | {agent.key.agent for agent in agents}  # agents keep their colour
    unseen = np.array([label not in known for label in boxes.labels], dtype=bool)
    boxes.colors[unseen] = UNSEEN_COLOR
    agent.check_images()
    images = []
    read = [read_image(agent.paths.image(camera.index)) for camera in agent.frame.cameras]
    height, width = (size * max(1, math.ceil(CELL_WIDTH / read[0].shape[1])) for size in read[0].shape[:2])
    paints = return_colors(points, agent.frame.cameras) if mark_hidden else [None] * len(read)
    for camera, image, paint in zip(agent.frame.cameras, read, paints, strict=True):
        image, intrinsics = overlay.enlarge(image, camera.cv_intrinsics, width, height)
        image = overlay.draw_points(image, points, camera.camera_from_lidar, intrinsics, colors=paint, size=point_size)
        images.append(overlay.draw_boxes(image, boxes, camera.camera_from_lidar, intrinsics))
    key = agent.key
    note = f"boxes: {len(own)} vehicles that {key.agent}'s LiDAR hit"
    if len(agents) > 1:
        note += f";  pink: {unseen.sum()} more that only the others ({', '.join(a.key.agent for a in agents[1:])}) hit"
    note += ";  magenta: returns that the camera cannot see" * mark_hidden
    return image_sheet(
        images,
        [f"camera{k}: {name}" for k, name in enumerate(CAMERA_NAMES)],
        title_of(key),
        note,
    )


def image_sheet(images: Sequence[NDArray[np.uint8]], titles: Sequence[str], title: str, note: str) -> bytes:
    """Four images of one size in two rows as PNG bytes, pixel for pixel, with titles and the depth scale.

    Its size is `image_sheet_size` of the images' size.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    height, width = images[0].shape[:2]
    total = image_sheet_size(width, height)
    figure = new_figure(*total)
    text_at(figure, 20, 28, title, 17)
    for i, (image, name) in enumerate(zip(images, titles, strict=True)):
        left, top = 20 + i % 2 * (width + 12), 90 + i // 2 * (height + 44)
        text_at(figure, left, top - 16, name, 14)
        figure.figimage(image, left, total[1] - top - height, origin="upper")
    scale = axes_at(figure, 20 + 2 * width + 12 + 22, 90, 18, 2 * height + 44)
    bar = figure.colorbar(ScalarMappable(LogNorm(*DEPTH_RANGE), "turbo_r"), cax=scale)
    plain_ticks(bar.ax.yaxis, (2, 3, 5, 10, 20, 30, 50, 100))
    bar.ax.invert_yaxis()
    bar.outline.set_edgecolor(GRID)
    bar.set_label("LiDAR depth (z), metres", color=LIGHT, fontsize=12)
    text_at(figure, 20, total[1] - 18, note, 12)
    return png_bytes(figure)


def image_sheet_size(width: int, height: int) -> tuple[int, int]:
    """The pixels (width, height) of the sheet of four images of this size."""
    return 2 * width + 12 + 40 + 90, 2 * height + 44 + 90 + 36
