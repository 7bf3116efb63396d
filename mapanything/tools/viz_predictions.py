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
from mapanything.pictures import canvas as figures
from mapanything.pictures.cloud_files import read_cloud
from mapanything.pictures.colors import BOX_COLOR, LIGHT, PREDICTED, RING_TEXT, TRUE, TRUE_BELOW, agent_color
from mapanything.pictures.comparison import PANEL, Comparison, draw_comparison
from mapanything.pictures.comparison import compare as compare_clouds
from mapanything.pictures.depth import DepthView, draw_depths
from mapanything.pictures.picture import Picture, cloud_picture
from mapanything.pictures.predictions import PredictedScene, read_prediction
from mapanything.pictures.scenes import (
    CAMERA_NAMES,
    LIDAR_HEIGHT,
    AgentFrame,
    Boxes,
    Cloud,
    Trajectory,
    build_scene,
    in_range,
    no_cameras,
)
from mapanything.pictures.sheets import RING_SIGN, Mark
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
    title_of,
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


def compare(args: argparse.Namespace) -> int:
    if args.pred_pcd or args.gt_pcd:
        if not (args.pred_pcd and args.gt_pcd) or args.prediction:
            raise InputError("give both --pred_pcd and --gt_pcd, or --prediction alone")
        points, colors = _read_points(args.pred_pcd, args.axes)
        colors = PREDICTED if colors is None else colors
        comparison = compare_clouds(*_near(Cloud(points, colors), _read_points(args.gt_pcd, args.axes)[0], args.max_range))
        title, name, agent = f"{args.pred_pcd.name} against {args.gt_pcd.name}", f"compare_{args.pred_pcd.stem}", ""
        max_range = args.max_range or MIN_RANGE
    elif args.prediction:
        predicted = find_prediction(args)
        timestamp = find_timestamp(args)
        agents = tuple(agent for agent in timestamp.agents() if agent.key.agent in predicted.agents)
        comparison = against_lidar(predicted, agents, args.max_range, args.camera_size)
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
    return save(args, name, figures.png_bytes(figure))


def against_lidar(
    predicted: PredictedScene, agents: tuple[AgentFrame, ...], max_range: float | None, camera_size: float
) -> Comparison:
    """A prediction against the sweeps of its own vehicles.

    Args:
        max_range: metres; points farther right, left, ahead or behind the main agent's LiDAR are left out.
        camera_size: metres of the frusta.

    Raises:
        InputError: none of them has one, or one is broken.
    """
    note_missing_clouds(agents)
    scene = build_scene(agents, camera_length=camera_size)
    truth = np.concatenate([cloud.points for cloud in scene.clouds])
    if not len(truth):
        raise InputError(f"{agents[0].paths.pcd}: no LiDAR point to compare with; restore the cloud")
    seen = np.array([label in predicted.cameras.labels for label in scene.cameras.labels], dtype=bool)
    prediction, truth = _near(predicted.cloud, truth, max_range)
    cameras = (replace(predicted.cameras, length=camera_size).painted(PREDICTED), scene.cameras.select(seen).painted(TRUE))
    return compare_clouds(prediction, truth, *cameras, scene.ground)


def _near(cloud: Cloud, truth: NDArray[np.floating], max_range: float | None) -> tuple[Cloud, NDArray[np.floating]]:
    if max_range is None:
        return cloud, truth
    kept = in_range(cloud.points, max_range)
    colors = np.broadcast_to(cloud.colors, cloud.points.shape)[kept]
    return Cloud(cloud.points[kept], colors, cloud.label), truth[in_range(truth, max_range)]


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
    check_images(agent)
    title = f"{title_of(timestamp.key)}: depth"
    if predicted is None:
        views = [_known_depth(args, agent, camera) for camera in range(len(CAMERA_NAMES))]
    else:
        views = _predicted_depths(args, agent, predicted)
        title += " and its prediction"
    return save(args, key_name("depth", timestamp.key), figures.png_bytes(draw_depths(title, views)))


def check_images(agent: AgentFrame) -> None:
    """Raises InputError: a camera's entry or image is missing."""
    if len(agent.frame.cameras) < len(CAMERA_NAMES):
        raise InputError(f"{agent.paths.yaml}: has {len(agent.frame.cameras)} cameras of {len(CAMERA_NAMES)}")
    missing = [path for k in range(len(CAMERA_NAMES)) if not (path := agent.paths.image(k)).exists()]
    if missing:
        also = f" and {len(missing) - 1} more of this frame" if len(missing) > 1 else ""
        raise InputError(f"{missing[0]}: image is missing{also}; restore it or choose another frame")


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
    return DepthView(f"camera{camera}: {CAMERA_NAMES[camera]}", image, true, true_is_dense=is_dense(true))


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
