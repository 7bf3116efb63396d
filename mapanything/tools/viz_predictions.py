"""`viz compare` and `viz depth`: what a network made of a frame, beside what is known of it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapanything.cli.data import DEPTH
from mapanything.errors import InputError
from mapanything.geometry.carla import cv_points, ue_points
from mapanything.opv2v.depth import clean_depth, is_dense, lidar_depth, read_depth
from mapanything.opv2v.layout import DepthLayout
from mapanything.opv2v.png import read_image
from mapanything.pictures import canvas
from mapanything.pictures.cloud_files import read_cloud
from mapanything.pictures.colors import PREDICTED, TRUE
from mapanything.pictures.comparison import PANEL, compare_with_lidar, draw_comparison, nearby
from mapanything.pictures.comparison import compare as compare_clouds
from mapanything.pictures.depth import DepthView, draw_depths
from mapanything.pictures.hidden import hidden_depth
from mapanything.pictures.picture import cloud_picture
from mapanything.pictures.predictions import PredictedScene, read_prediction
from mapanything.pictures.scenes import CAMERA_NAMES, AgentFrame, Cloud, no_cameras, title_of
from mapanything.pictures.viewpoints import STYLE, named_view
from mapanything.results.read import find_predictions
from mapanything.tools.viz_options import (
    MIN_RANGE,
    default_range,
    find_timestamp,
    key_name,
    note_missing_clouds,
    save,
    show_window,
)

SQUARE = (700, 700)  # pixels of a panel that looks from above


def find_prediction(args: argparse.Namespace) -> PredictedScene:
    """The first scene of --prediction that is of the split, scenario, agent and frame that are named.

    From then on `args` name that scene's own, so that `find_timestamp` finds the truth of it.

    Raises:
        InputError: there is none, or it is damaged.
    """
    predicted = read_prediction(_chosen(args, args.frame)[0])
    args.split, args.scenario, args.agent, args.frame = str(predicted).split("/")
    return predicted


def predicted_frames(args: argparse.Namespace) -> set[str]:
    """The frames that --prediction has of the first split, scenario and agent that are named, which `args` name then.

    Raises:
        InputError: there is none.
    """
    folders = _chosen(args, None)
    args.split, args.scenario, args.agent, _ = names = _names(folders[0])
    return {_names(folder)[3] for folder in folders if _names(folder)[:3] == names[:3]}


def _chosen(args: argparse.Namespace, frame: str | None) -> list[Path]:
    """The folders of --prediction that are of the split, scenario, agent and frame that are named, one at least."""
    folders = find_predictions(args.prediction)
    if not folders:
        raise InputError(f"{args.prediction}: no scene.json at or below it; give what `./invoke infer` wrote with --out")
    wanted = {"split": args.split, "scenario": args.scenario, "agent": args.agent, "frame": frame}
    chosen = [
        folder
        for folder in folders
        if all(name is None or name == have for name, have in zip(wanted.values(), _names(folder)))
    ]
    if not chosen:
        given = ", ".join(f"{kind} {name}" for kind, name in wanted.items() if name)
        raise InputError(f"{args.prediction}: none of its {len(folders)} scenes is of {given}")
    return chosen


def _names(folder: Path) -> tuple[str, ...]:
    """Split, scenario, agent and frame of a scene's folder."""
    return folder.resolve().parts[-4:]


def compare(args: argparse.Namespace) -> int:
    if args.pred_pcd or args.gt_pcd:
        if not (args.pred_pcd and args.gt_pcd) or args.prediction:
            raise InputError("give both --pred_pcd and --gt_pcd, or --prediction alone")
        points, colors = _read_points(args.pred_pcd, args.axes)
        colors = PREDICTED if colors is None else colors
        comparison = compare_clouds(*nearby(Cloud(points, colors), _read_points(args.gt_pcd, args.axes)[0], args.max_range))
        title, name, agent = f"{args.pred_pcd.name} against {args.gt_pcd.name}", f"compare_{args.pred_pcd.stem}", ""
        max_range = args.max_range or MIN_RANGE
    elif args.prediction:
        predicted = find_prediction(args)
        timestamp = find_timestamp(args)
        agents = tuple(agent for agent in timestamp.agents() if agent.key.agent in predicted.agents)
        note_missing_clouds(agents)
        comparison = compare_with_lidar(predicted, agents, args.max_range, args.camera_size)
        title = f"{title_of(timestamp.key)}: prediction against the LiDAR of {', '.join(predicted.agents)}"
        name, agent = key_name("compare", timestamp.key), timestamp.main
        max_range = args.max_range or default_range(agents)
    else:
        raise InputError("what is to be compared? Give --prediction, or --pred_pcd and --gt_pcd")
    if args.max_range:
        title += f", within {args.max_range:g} m"
    cameras = comparison.true_cameras or no_cameras()
    size = SQUARE if args.view == "top" else PANEL
    if args.view.startswith("camera") and len(cameras):
        size = (round(PANEL[1] * cameras.sizes[0, 0] / cameras.sizes[0, 1]), PANEL[1])  # its image's shape
    options = STYLE | {"point_size": args.point_size}
    truth = Cloud(comparison.truth, TRUE)
    view = named_view(args.view, [truth], cameras, agent, max_range, *size, **options)
    if args.window:
        picture = cloud_picture([comparison.prediction], max_range, comparison.ground, title)
        shown = [cameras for cameras in (comparison.predicted_cameras, comparison.true_cameras) if cameras]
        layers = {**picture.layers, "ground_truth": [truth], "cameras": shown}
        return show_window(args, replace(picture, layers=layers).without(args.hide), name, view)
    kind = {"from_above": args.view == "top", "through_camera": args.view.startswith("camera"), "hidden": args.hide}
    figure = draw_comparison(comparison, title, view, max_range, **kind)
    return save(args, name, canvas.png_bytes(figure))


def _read_points(path: Path, axes: str) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    points, colors = read_cloud(path)
    if not len(points):
        raise InputError(f"{path}: has no points to compare")
    return cv_points(points) if axes == "opv2v" else points, colors


def depth(args: argparse.Namespace) -> int:
    predicted = find_prediction(args) if args.prediction is not None else None
    args.single = True
    timestamp = find_timestamp(args)
    (agent,) = timestamp.agents()
    agent.check_images()
    title = f"{title_of(timestamp.key)}: depth"
    if predicted is None:
        views = [_known_depth(args, agent, camera) for camera in range(len(CAMERA_NAMES))]
    else:
        views = _predicted_depths(args, agent, predicted)
        title += " and its prediction"
    if args.hidden_returns:
        title += "; magenta: LiDAR returns that the camera cannot see"
    return save(args, key_name("depth", timestamp.key), canvas.png_bytes(draw_depths(title, views)))


def _known_depth(args: argparse.Namespace, agent: AgentFrame, camera: int) -> DepthView:
    """A camera's image, and its depth map if one was made, else its LiDAR's points."""
    image = read_image(agent.paths.image(camera))
    size = (image.shape[1], image.shape[0])
    root = args.depth_root or (DEPTH if DEPTH.is_dir() else None)
    path = None if root is None else DepthLayout(root).path(agent.key, camera)
    if path is not None and not path.exists() and path.with_suffix(".png").exists():
        path = path.with_suffix(".png")  # make-depth --format png
    if path is not None and (path.exists() or args.depth_root):
        true = clean_depth(read_depth(path))
        if true.shape != image.shape[:2]:
            raise InputError(f"{path}: is {true.shape[1]}x{true.shape[0]} but its image {size[0]}x{size[1]}")
    else:
        true = lidar_depth(ue_points(agent.lidar_points()), agent.frame.cameras[camera], *size)
    hidden = hidden_depth(agent.lidar_points(), agent.frame.cameras[camera], *size) if args.hidden_returns else None
    return DepthView(f"camera{camera}: {CAMERA_NAMES[camera]}", image, true, true_is_dense=is_dense(true), hidden=hidden)


def _predicted_depths(args: argparse.Namespace, agent: AgentFrame, predicted: PredictedScene) -> list[DepthView]:
    """The agent's views as the network saw them: images and known depths at its resolution."""
    from mapanything.datasets.views import Framing

    views = []
    for view in predicted.views:
        if view.agent != agent.key.agent:
            continue
        if not 0 <= view.camera < len(CAMERA_NAMES):
            raise InputError(f"{view.folder}: there is no camera{view.camera}")
        known = _known_depth(args, agent, view.camera)
        height, width = known.image.shape[:2]
        framing = Framing.cover((width, height), view.size, agent.frame.cameras[view.camera].cv_intrinsics)
        image = framing.image(known.image).permute(1, 2, 0).numpy()
        true = None if known.true is None else framing.depth(known.true)
        views.append(replace(known, image=np.ascontiguousarray(image), true=true, predicted=view.depth()))
    if not views:
        raise InputError(f"{predicted.folder}: has no view of agent {agent.key.agent}")
    return views
