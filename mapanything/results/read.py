"""What `./invoke infer` wrote, as scenes: the cloud and the cameras in the main agent's LiDAR frame, OpenCV axes, metres.

docs/inference.md describes the folder. It belongs to whoever made it: every entry is checked before it is used, and names
in it never lead to a file outside the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.arrays import read_npy
from mapanything.errors import InputError
from mapanything.files import read_json
from mapanything.geometry.camera import unproject
from mapanything.geometry.carla import cv_points
from mapanything.geometry.nearest import nearest_distances
from mapanything.geometry.rigid import transform
from mapanything.opv2v.depth import read_depth
from mapanything.pictures.scenes import Cameras, Cloud, Colors, agent_color, map_colors
from mapanything.results.cloud_files import SUFFIXES, read_cloud

# As results/export.py writes them; not imported from there, because that loads torch, which no picture needs.
RECORD, POSES, FORMAT = "scene.json", "poses.json", 1
AXES = ("opv2v", "opencv")
NAME = re.compile(r"[\w.+-]+\Z")  # of views: a folder right below the scene's

ERROR_RANGE = (0.1, 10.0)  # metres that the colours of `error_colors` span, logarithmically; the same in every picture
ERROR_TICKS = (0.1, 0.3, 1.0, 3.0, 10.0)
ERROR_MAP = "plasma"  # its luminance rises all the way, which every eye sees; its first fifth is lost on a dark ground
ERROR_MAP_START = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class PredictedView:
    """One predicted image.

    Attributes:
        name: `{agent}_camera{k}`, its folder's name.
        folder: where depth.npy, mask.npy and conf.npy lie.
        size: width and height of the network's image, in pixels.
        intrinsics: (3, 3) of that image. lidar_from_camera: (4, 4). Both predicted, maybe not finite.
    """

    name: str
    agent: str
    camera: int
    folder: Path
    size: tuple[int, int]
    intrinsics: NDArray[np.float64]
    lidar_from_camera: NDArray[np.float64]

    def depth(self) -> NDArray[np.float32]:
        """(H, W) z-depth in metres, 0 outside the mask. Raises InputError."""
        depth, mask = read_depth(self.folder / "depth.npy"), _read_mask(self.folder / "mask.npy")
        if not depth.shape == mask.shape == self.size[::-1]:
            raise InputError(f"{self.folder}: depth.npy and mask.npy do not have {POSES}'s size; make the scene again")
        return np.where(mask & np.isfinite(depth), depth, np.float32(0))


@dataclass(frozen=True, slots=True, eq=False)
class PredictedScene:
    """One scene of a prediction. The world is the main agent's LiDAR frame in OpenCV axes.

    Attributes:
        agent: the main agent; the first of `agents`.
        cloud: all trusted points in their images' colours; in the agents' colours where no cloud file was written.
        cameras: those whose predicted pose and matrix are finite, coloured by their agent's role.
        views: all views, in the network's order.
        inputs: what the network was shown, such as ("images",).
    """

    folder: Path
    split: str
    scenario: str
    agent: str
    frame: str
    agents: tuple[str, ...]
    cloud: Cloud
    cameras: Cameras
    views: tuple[PredictedView, ...]
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.split}/{self.scenario}/{self.agent}/{self.frame}"


def find_predictions(root: Path) -> list[Path]:
    """The scene folders at and below a folder, in order of their names; those without scene.json are not whole.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give what `./invoke infer` wrote with --out")
    found = []
    for folder, folders, files in os.walk(root):
        if RECORD in files:
            found.append(Path(folder))
            folders.clear()  # nothing of ours lies deeper
    return sorted(found)


def read_prediction(folder: Path) -> PredictedScene:
    """A scene's cloud and cameras, from a folder of `find_predictions`.

    Raises:
        InputError: the scene is not whole, damaged, or of another version.
    """
    record = _read_json(folder / RECORD)
    if record.get("format") != FORMAT:
        raise InputError(f"{folder / RECORD}: has format {record.get('format')!r}, not {FORMAT}; make the scene again")
    scene, axes = record.get("scene"), record.get("frame_of")
    if not isinstance(scene, dict) or axes not in AXES:
        raise InputError(f"{folder / RECORD}: has no scene or no known frame_of; make the scene again")
    names = [scene.get(key) for key in ("split", "scenario", "main_agent", "frame")]
    agents = scene.get("agents")
    if not (_all_text(names) and _all_text(agents) and agents and agents[0] == names[2]):
        raise InputError(f"{folder / RECORD}: does not name its split, scenario, frame and agents; make the scene again")
    inputs = record.get("inputs")
    views = _views(folder)
    return PredictedScene(
        folder,
        *names,
        agents=tuple(agents),
        cloud=_cloud(folder, views, axes, agents),
        cameras=_cameras(views, agents),
        views=views,
        inputs=tuple(inputs) if _all_text(inputs) else (),
    )


def error_colors(distances: NDArray[np.floating]) -> Colors:
    """(N, 3) uint8 of distances (N,) in metres, over `ERROR_RANGE`: violet is near, yellow is far."""
    low, high = np.log(ERROR_RANGE)
    start = low - (high - low) * ERROR_MAP_START / (1 - ERROR_MAP_START)
    return map_colors(np.log(np.clip(distances, *ERROR_RANGE)), start, high, ERROR_MAP)


def error_distances(prediction: NDArray[np.floating], lidar: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) metres from each predicted point (N, 3) to the nearest LiDAR point (M, 3).

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


def _views(folder: Path) -> tuple[PredictedView, ...]:
    path = folder / POSES
    entries = _read_json(path).get("views")
    if not isinstance(entries, list):
        raise InputError(f"{path}: has no views; make the scene again")
    views = []
    for number, entry in enumerate(entries):
        try:
            name, agent, camera = entry["name"], entry["agent"], entry["camera"]
            width, height = entry["image_size"]
            intrinsics = np.array(entry["intrinsics"], dtype=np.float64)
            pose = np.array(entry["lidar_from_camera"], dtype=np.float64)
            fine = _all_text([name, agent]) and NAME.match(name) and name not in (".", "..")
            fine = fine and all(type(n) is int and 0 <= n < 100_000 for n in (camera, width, height))
            if not fine or intrinsics.shape != (3, 3) or pose.shape != (4, 4):
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: view {number} is not as `./invoke infer` writes it; make the scene again") from error
        views.append(PredictedView(name, agent, camera, folder / name, (width, height), intrinsics, pose))
    return tuple(views)


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


def _cloud(folder: Path, views: Sequence[PredictedView], axes: str, agents: Sequence[str]) -> Cloud:
    for suffix in SUFFIXES:
        path = folder / f"cloud{suffix}"
        if path.exists():
            points, colors = read_cloud(path)
            if colors is None:
                colors = agent_color(0)
            return Cloud(cv_points(points) if axes == "opv2v" else points, colors, "prediction")
    parts, paints = [np.zeros((0, 3), np.float32)], [np.zeros((0, 3), np.uint8)]
    for view in views:
        depth = view.depth()
        with np.errstate(all="ignore"):  # a network may say anything
            points = transform(view.lidar_from_camera.astype(np.float32), unproject(depth, view.intrinsics)[depth > 0])
        points = points[np.isfinite(points).all(axis=1)]
        parts.append(points)
        paints.append(np.broadcast_to(_color(view.agent, agents), points.shape))
    return Cloud(np.concatenate(parts), np.concatenate(paints), "prediction")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; the scene is not whole, run `./invoke infer` again") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON; make the scene again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: is no JSON object; make the scene again")
    return values


def _read_mask(path: Path) -> NDArray[np.bool_]:
    mask = read_npy(path)
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise InputError(f"{path}: holds {mask.dtype} of shape {mask.shape}, a mask is (H, W) of bool; make the scene again")
    return mask


def _all_text(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
