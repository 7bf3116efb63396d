"""Clouds and boxes of OPV2V frames for one's own scripts: import from here, copy nothing.

    from mapanything.utils.opv2v_pointclouds import load_agents, load_cloud, vehicle_boxes

    points = load_cloud("data/opv2v_images/train/2021_.../641/000069.pcd")            # (N, 3), that agent's LiDAR frame
    points = load_cloud("data/opv2v_images/train/2021_.../641/000069.pcd", "world")   # all agents in one frame
    agents = load_agents("data/opv2v_images", "train", "2021_...", "000069", "641")   # the main agent first
    scene = build_scene(agents)                                                       # for opv2v_viz.save_view_png
    predicted = read_prediction(find_predictions("visualization_outputs/...")[0])     # what `./invoke infer` wrote
    errors = error_cloud(predicted.cloud, points)                                     # coloured by distance to the LiDAR

Axes are OpenCV's (x right, y down, z forward), metres. The public names are those in `__all__`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry import carla
from mapanything.geometry.rigid import transform
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import find_splits, list_folders, scan_agent
from mapanything.opv2v.pcd import read_pcd
from mapanything.pictures.predictions import PredictedScene, error_cloud, read_prediction
from mapanything.pictures.scenes import (
    AgentFrame,
    Boxes,
    Cloud,
    Scene,
    build_scene,
    read_timestamp,
    vehicle_boxes,
)
from mapanything.results.read import find_predictions

__all__ = [
    "AgentFrame",
    "Boxes",
    "Cloud",
    "PredictedScene",
    "Scene",
    "build_scene",
    "error_cloud",
    "find_predictions",
    "load_agents",
    "load_cloud",
    "read_prediction",
    "vehicle_boxes",
]


def load_cloud(pcd: Path | str, frame: Literal["lidar", "world", "unreal"] = "lidar") -> NDArray[np.floating]:
    """A frame's cloud (N, 3).

    Args:
        pcd: the file; for "world" its YAML must lie beside it.
        frame: "lidar": the agent's LiDAR frame, OpenCV axes, float32. "world": CARLA's world, OpenCV axes, float64.
            "unreal": as stored, for tools that expect CARLA's left-handed axes (x forward, y right, z up), float32.

    Raises:
        InputError: a file is missing or broken.
    """
    if frame not in ("lidar", "world", "unreal"):
        raise ValueError(f"frame is 'lidar', 'world' or 'unreal', not {frame!r}")
    path = Path(pcd)
    stored = read_pcd(path).points
    if frame == "unreal":
        return stored
    points = carla.cv_points(stored)
    if frame == "lidar":
        return points
    return transform(read_frame(path.with_suffix(".yaml")).world_from_lidar, points.astype(np.float64))


def load_agents(root: Path | str, split: str, scenario: str, frame: str, main: str) -> tuple[AgentFrame, ...]:
    """All agents of a timestamp, the main agent first; `lidar_points()` of each reads its cloud.

    Raises:
        InputError: something of it is not there, or broken.
    """
    root = Path(root)
    (split,) = find_splits(root, [split])  # Culver City has two names
    folders = [scan_agent(root, split, scenario, agent) for agent in list_folders(root / split / scenario)]
    return read_timestamp(folders, main, frame)
