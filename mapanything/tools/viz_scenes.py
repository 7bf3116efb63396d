"""`viz pose`, `viz cloud`, `viz boxes` and `viz frame`: the frames of a data set, and clouds of any origin."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.errors import InputError
from mapanything.geometry.carla import cv_points
from mapanything.pictures import canvas, plots
from mapanything.pictures.cloud_files import read_cloud
from mapanything.pictures.colors import height_colors
from mapanything.pictures.picture import (
    HEIGHT_BAR,
    Picture,
    add_prediction,
    cloud_picture,
    draw_sheet,
    draw_view,
    prediction_picture,
    scene_picture,
)
from mapanything.pictures.predictions import PredictedScene
from mapanything.pictures.scenes import (
    LIDAR_HEIGHT,
    Cloud,
    Scene,
    build_scene,
    in_range,
    read_positions,
    title_of,
    trajectories,
)
from mapanything.tools.viz_options import (
    MIN_RANGE,
    Timestamp,
    default_range,
    find_timestamp,
    key_name,
    note_missing_clouds,
    save,
    show_window,
)
from mapanything.tools.viz_predictions import find_prediction

PATH_FRAMES = 20  # before and after this one, in which the agents' paths are drawn: two seconds each


def frames_around(timestamp: Timestamp, frames: Sequence[str]) -> list[str]:
    """The main agent's frames over which the paths at these frames are drawn."""
    have = timestamp.frames()
    near = {at + step for at in map(have.index, frames) for step in range(-PATH_FRAMES, PATH_FRAMES + 1)}
    return [frame for i, frame in enumerate(have) if i in near]


def read_scene(args: argparse.Namespace, timestamp: Timestamp) -> tuple[Scene, float]:
    """The timestamp as a scene, and the range it is shown over. Raises InputError."""
    agents = timestamp.agents()
    note_missing_clouds(agents)
    max_range = args.max_range or default_range(agents)
    wanted = frames_around(timestamp, [timestamp.frame])
    positions = None
    if "paths" not in args.hide and len(wanted) > 1:
        known = getattr(args, "positions", None)  # of a sequence, which reads each file once
        if known is None:
            positions = read_positions(timestamp.folders, wanted)
        else:
            at = [known[0].index(frame) for frame in wanted]
            positions = {agent: places[at] for agent, places in known[1].items()}
    scene = build_scene(agents, max_range=max_range, camera_length=args.camera_size)
    return replace(scene, paths=() if positions is None else trajectories(agents, positions)), max_range


def pose(args: argparse.Namespace) -> int:
    timestamp = find_timestamp(args)
    scene, max_range = read_scene(args, timestamp)
    name = key_name("pose", timestamp.key)
    if args.window:
        return show_window(args, scene_picture(scene, max_range, str(timestamp.key)).without(args.hide), name)
    return save(args, name, plots.pose_png(scene, max_range, args.point_size, args.hide, in_3d=not args.no_3d))


def cloud(args: argparse.Namespace) -> int:
    if not args.files:
        return scene_command(args, "cloud")
    if args.prediction is not None:
        raise InputError("give either cloud files or --prediction")
    return finish(args, files_picture(args), f"cloud_{args.files[0].stem}")


def boxes(args: argparse.Namespace) -> int:
    return scene_command(args, "boxes")


def scene_command(args: argparse.Namespace, kind: str) -> int:
    predicted = find_prediction(args) if args.prediction is not None else None
    if predicted is not None and not args.root.is_dir():
        return draw_alone(args, kind, predicted)
    timestamp = find_timestamp(args)
    return finish(args, timestamp_picture(args, timestamp, kind, predicted), key_name(kind, timestamp.key))


def draw_alone(args: argparse.Namespace, kind: str, predicted: PredictedScene) -> int:
    """A prediction of which the data are not here."""
    picture = prediction_picture(predicted, args.max_range or MIN_RANGE, args.camera_size)
    return finish(args, picture, f"{kind}_{str(predicted).replace('/', '_')}")


def timestamp_picture(
    args: argparse.Namespace, timestamp: Timestamp, kind: str, predicted: PredictedScene | None = None
) -> Picture:
    """The LiDAR of a timestamp, for `boxes` with its vehicles; over it what was predicted for it."""
    scene, max_range = read_scene(args, timestamp)
    by_agent = args.color == "agent"
    picture = scene_picture(scene, max_range, title_of(timestamp.key), by_agent=by_agent, boxes=kind == "boxes")
    return picture if predicted is None else add_prediction(picture, predicted)


def finish(args: argparse.Namespace, picture: Picture, name: str) -> int:
    picture = picture.without(args.hide)
    if args.window:
        return show_window(args, picture, name)
    return save(args, name, canvas.png_bytes(figure_of(args, picture)))


def figure_of(args: argparse.Namespace, picture: Picture) -> Any:
    """The figure of one view, or of a sheet of them, as --view says."""
    return draw_sheet(picture, args.point_size) if args.view == "sheet" else draw_view(picture, args.view, args.point_size)


def files_picture(args: argparse.Namespace) -> Picture:
    """Clouds from files, in their own colours, by height where they have none."""
    clouds, heights = [], False
    for path in args.files:
        points, colors = read_cloud(path)
        points = cv_points(points) if args.axes == "opv2v" else points
        finite = np.isfinite(points).all(axis=1)
        points, colors = points[finite], None if colors is None else colors[finite]
        if colors is None or not colors[:, 1:].any():  # OPV2V's own hide an intensity in the red
            colors, heights = height_colors(points, LIDAR_HEIGHT), True
        near = in_range(points, args.max_range or MIN_RANGE)
        if near.sum() <= len(points) / 2 and not (len(points) and args.view == "fit"):
            print(f"note: {path}: {_whereabouts(points, near)}", file=sys.stderr)
        if args.max_range:
            points, colors = points[near], colors[near]
        clouds.append(Cloud(points, colors, path.name))
    picture = cloud_picture(clouds, args.max_range or MIN_RANGE, LIDAR_HEIGHT, ", ".join(path.name for path in args.files))
    return replace(picture, bars=(HEIGHT_BAR,)) if heights else picture


def _whereabouts(points: NDArray[np.floating], near: NDArray[np.bool_]) -> str:
    """Says why a cloud is hardly to be seen: in a world's coordinates it is far from the origin."""
    if not len(points):
        return "has no points"
    far = math.ceil(float(np.quantile(np.abs(points[:, [0, 2]]).max(axis=1), 0.9)))
    return f"{near.sum():,} of {len(points):,} points are in range; give --max-range {far} or --view fit"


def frame(args: argparse.Namespace) -> int:
    timestamp = find_timestamp(args)
    return save(
        args, key_name("frame", timestamp.key), plots.frame_png(timestamp.agents(), args.point_size, args.hidden_returns)
    )
