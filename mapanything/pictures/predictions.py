"""Written predictions as what can be drawn: their clouds and cameras, and how far they are from the LiDAR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.camera import unproject
from mapanything.geometry.carla import cv_points
from mapanything.geometry.nearest import nearest_distances
from mapanything.geometry.rigid import transform
from mapanything.pictures.cloud_files import read_cloud
from mapanything.pictures.colors import Colors, agent_color, error_colors
from mapanything.pictures.scenes import Cameras, Cloud
from mapanything.results.read import PredictedView, SceneFiles, read_scene_files


@dataclass(frozen=True, slots=True, eq=False)
class PredictedScene(SceneFiles):
    """One scene of a prediction, in the main agent's LiDAR frame, OpenCV axes.

    Attributes:
        cloud: all trusted points in their images' colours; in the agents' colours where no cloud file was written.
        cameras: those whose predicted pose and matrix are finite, coloured by their agent's role.
    """

    cloud: Cloud
    cameras: Cameras


def read_prediction(folder: Path) -> PredictedScene:
    """A scene's cloud and cameras, from a folder of `results.read.find_predictions`.

    Raises:
        InputError: the scene is not whole, damaged, or of another version.
    """
    files = read_scene_files(folder)
    values = {field.name: getattr(files, field.name) for field in fields(files)}
    return PredictedScene(**values, cloud=_cloud(files), cameras=_cameras(files.views, files.agents))


def error_distances(prediction: NDArray[np.floating], lidar: NDArray[np.floating]) -> NDArray[np.float64]:
    """Distances (N,) in metres from each predicted point (N, 3) to the nearest LiDAR point (M, 3).

    NaN for points that are not finite, infinite where there is no finite LiDAR point.
    """
    finite = np.isfinite(prediction).all(axis=1)
    reference = lidar[np.isfinite(lidar).all(axis=1)]
    distances = np.full(len(prediction), np.nan)
    distances[finite] = nearest_distances(prediction[finite].astype(np.float64), reference.astype(np.float64))
    return distances


def error_cloud(prediction: Cloud, lidar: NDArray[np.floating]) -> Cloud:
    """The predicted cloud coloured by each point's distance to the nearest LiDAR point, see `error_colors`.

    Args:
        lidar: (M, 3) in the same frame.
    """
    distances = error_distances(prediction.points, lidar)
    finite = np.isfinite(prediction.points).all(axis=1)
    return Cloud(prediction.points[finite], error_colors(distances[finite]), "error")


def _cameras(views: Sequence[PredictedView], agents: Sequence[str]) -> Cameras:
    drawn = [view for view in views if np.isfinite(view.lidar_from_camera).all() and np.isfinite(view.intrinsics).all()]
    drawn = [view for view in drawn if (view.intrinsics[[0, 1], [0, 1]] > 0).all()]
    return Cameras(
        world_from_camera=np.reshape([view.lidar_from_camera for view in drawn], (-1, 4, 4)),
        intrinsics=np.reshape([view.intrinsics for view in drawn], (-1, 3, 3)),
        sizes=np.reshape([view.size for view in drawn], (-1, 2)).astype(np.int64),
        labels=tuple(f"{view.agent} camera{view.camera}" for view in drawn),
        colors=np.reshape([_color(view.agent, agents) for view in drawn], (-1, 3)).astype(np.uint8),
    )


def _color(agent: str, agents: Sequence[str]) -> Colors:
    return agent_color(agents.index(agent) if agent in agents else len(agents))


def _cloud(files: SceneFiles) -> Cloud:
    path = files.cloud_path()
    if path is not None:
        points, colors = read_cloud(path)
        return Cloud(
            cv_points(points) if files.axes == "opv2v" else points, agent_color(0) if colors is None else colors, "prediction"
        )
    parts, paints = [np.zeros((0, 3), np.float32)], [np.zeros((0, 3), np.uint8)]
    for view in files.views:
        depth = view.depth()
        with np.errstate(all="ignore"):  # a network may say anything
            points = transform(view.lidar_from_camera.astype(np.float32), unproject(depth, view.intrinsics)[depth > 0])
        points = points[np.isfinite(points).all(axis=1)]
        parts.append(points)
        paints.append(np.broadcast_to(_color(view.agent, files.agents), points.shape))
    return Cloud(np.concatenate(parts), np.concatenate(paints), "prediction")
