"""The scenes that a selection means, and one scene as a sample: no index of a whole split, no more than one scene in memory.

A scene is one vehicle at one timestamp (`single`), or all chosen vehicles of a timestamp (`coop`). Which views it has
follows from the images alone, never from the ground truth that happens to lie beside them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapanything.datasets.views import View, make_view
from mapanything.errors import InputError
from mapanything.geometry import carla
from mapanything.geometry.rigid import invert
from mapanything.opv2v.depth import clean_depth, read_depth
from mapanything.opv2v.depth_root import DepthRoot, look
from mapanything.opv2v.frame import Camera, read_frame
from mapanything.opv2v.layout import (
    CAMERA,
    YAML,
    AgentFolder,
    DepthLayout,
    FrameKey,
    FramePaths,
    Selection,
    agent_order,
    is_folder,
    is_rsu,
    scan,
)
from mapanything.opv2v.pcd import read_pcd
from mapanything.opv2v.png import read_image
from mapanything.opv2v.visibility import Surface, hidden_labels, sweep_surface
from mapanything.results.record import SceneKey

MAIN_AGENT = "641"  # of the group's notes, wherever it is there
RESOLUTION = {"single": (518, 392), "coop": (448, 252)}  # of the stages of training
_RANGE = re.compile(r"(\d+)-(\d+)\Z", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class SceneSample:
    """One scene as a sample.

    Attributes:
        views: as `OPV2VDataset` gives them, with whatever ground truth there is; `valid_mask` is empty where there is none.
        world_from_lidar: (4, 4) of the main agent, OpenCV axes. Its LiDAR frame is the world of `views`.
        lidar_from_camera: (V, 4, 4) of all views, OpenCV axes. [0] is a calibration of the main agent's rig; the others
            are ground truth.
        num_labels: known pixels of the depth maps. num_hidden: those of plain LiDAR maps that are left out, for the camera
            can't see them.
    """

    key: SceneKey
    views: list[View]
    world_from_lidar: NDArray[np.float64]
    lidar_from_camera: NDArray[np.float64]
    num_labels: int = 0
    num_hidden: int = 0

    @property
    def lidar_from_view0(self) -> NDArray[np.float64]:
        """The mounting (4, 4) of view 0's camera, which is all that leads from a prediction to the LiDAR's frame."""
        return self.lidar_from_camera[0]


def frame_key(scene: SceneKey, agent: str) -> FrameKey:
    """The name of one of a scene's agent-frames."""
    return FrameKey(scene.split, scene.scenario, agent, scene.frame)


def find_scenes(
    root: Path,
    selection: Selection | None = None,
    mode: str = "single",
    *,
    num_views: int | None = None,
    min_agents: int = 1,
    main_agent: str | None = MAIN_AGENT,
    limit: int | None = None,
) -> list[SceneKey]:
    """The scenes of a selection, in a fixed order: names only, no file is opened.

    Args:
        selection: frames may be ranges too, `000069-000080`: whatever lies between, both ends included.
        mode: single or coop. In coop the selection's agents are those that take part.
        num_views: most views of a scene, whole vehicles first as in training; None: all cameras.
        min_agents: coop scenes with fewer vehicles are left out.
        main_agent: the main agent of coop scenes where it is there; else the first vehicle.
        limit: only the first so many scenes.

    Raises:
        InputError: names of the selection that are not there, or no scene at all.
    """
    if mode not in RESOLUTION:
        raise InputError(f"mode '{mode}': give single or coop")
    if num_views is not None and num_views < min_agents:
        raise InputError(f"num_views={num_views}: each of the {min_agents} agents gives a view at least")
    incomplete: list[str] = []
    grouped = groupby(_folders(root, selection or Selection()), key=lambda folder: (folder.split, folder.scenario))
    keys: list[SceneKey] = []
    for (split, scenario), folders in grouped:
        frames: dict[str, dict[str, tuple[int, ...]]] = {}
        single: list[tuple[str, str, tuple[int, ...]]] = []
        for folder in folders:
            for frame, bits in folder.frames.items():
                cameras = tuple(k for k, bit in enumerate(CAMERA) if bits & bit)
                if not (bits & YAML and cameras):
                    incomplete.append(str(folder.key(frame)))
                    continue
                single.append((folder.agent, frame, cameras))
                frames.setdefault(frame, {})[folder.agent] = cameras
        if mode == "single":
            keys += [SceneKey(split, scenario, f, (a,), (c[:num_views],)) for a, f, c in single]
            continue
        for frame, agents in sorted(frames.items()):
            if len(agents) >= min_agents:
                keys.append(_coop_scene(SceneKey(split, scenario, frame, (), ()), agents, num_views, min_agents, main_agent))
    if incomplete:
        warnings.warn(
            f"{root}: {len(incomplete)} agent-frames have no YAML or no image, the first is {incomplete[0]}; they are left "
            "out, `./invoke check-data` names them all",
            stacklevel=2,
        )
    if not keys:
        enough = f" with {min_agents} agents or more" if min_agents > 1 else ""
        raise InputError(
            f"{root}: no scene{enough} in this selection has a YAML and an image; `./invoke tree` lists what is there"
        )
    return keys[:limit]


def _coop_scene(
    key: SceneKey, agents: dict[str, tuple[int, ...]], num_views: int | None, min_agents: int, main_agent: str | None
) -> SceneKey:
    names = sorted(agents, key=agent_order)
    main = main_agent if main_agent in agents else next((name for name in names if not is_rsu(name)), names[0])
    chosen: dict[str, tuple[int, ...]] = {}
    left = sum(map(len, agents.values())) if num_views is None else num_views
    for position, name in enumerate([main, *(name for name in names if name != main)]):
        owed = max(0, min_agents - position - 1)  # a view for each further agent that there must be
        chosen[name] = agents[name][: left - owed]
        left -= len(chosen[name])
        if left == 0:
            break
    return replace(key, agents=tuple(chosen), cameras=tuple(chosen.values()))


def _folders(root: Path, selection: Selection) -> Iterator[AgentFolder]:
    """Scans as `scan` does, for a selection whose frames may be ranges."""
    ranges = {text: (int(m[1]), int(m[2])) for text in selection.frames if (m := _RANGE.match(text))}
    if not ranges:
        yield from scan(root, selection)
        return
    names = set(selection.frames) - ranges.keys()
    seen: set[str] = set()
    for folder in scan(root, replace(selection, frames=())):
        kept = {}
        for frame, bits in folder.frames.items():
            hits = {text for text, (first, last) in ranges.items() if first <= int(frame) <= last} | ({frame} & names)
            seen |= hits
            if hits:
                kept[frame] = bits
        folder.frames = kept
        yield folder
    for text in selection.frames:
        if text not in seen:
            raise InputError(f"{root}: no frame '{text}' in this selection; `./invoke tree` lists what is there")


def depth_layout(depth_root: Path | None) -> DepthLayout | None:
    """The depth maps below a root, in the usual pattern; InputError where the root is not there."""
    if depth_root is None:
        return None
    if not is_folder(depth_root):
        raise InputError(f"{depth_root}: no such depth folder; `./invoke make-depth` makes one, `link-data` links it")
    return DepthLayout(depth_root)


def load_scene(
    root: Path, depth: DepthLayout | None, key: SceneKey, resolution: tuple[int, int], need_depth: bool = False
) -> SceneSample:
    """Reads a scene.

    Args:
        depth: None, or a map that is missing: nothing is known there, and the view stays.
        resolution: (W, H), multiples of 14.
        need_depth: a missing map is an error.

    Raises:
        InputError: a file is missing, broken or contradicts another.
    """
    frames = {agent: read_frame(FramePaths(root, frame_key(key, agent)).yaml) for agent in key.agents}
    world_from_lidar = frames[key.main_agent].world_from_lidar
    lidar_from_world = invert(world_from_lidar)
    views: list[View] = []
    poses, num_labels, num_hidden = [], 0, 0
    is_plain = depth is not None and (kind := _kind(depth)) is not None and kind.is_plain
    for agent, k in key.views:
        name = frame_key(key, agent)
        paths = FramePaths(root, name)
        camera = next((camera for camera in frames[agent].cameras if camera.index == k), None)
        if camera is None:
            raise InputError(f"{paths.yaml}: camera{k} is missing, but its image is there; restore the file")
        image = read_image(paths.image(k))
        pose = lidar_from_world @ camera.world_from_camera
        known = _depth(depth, name, k, image, need_depth)
        if known is not None:
            num_labels += int(np.count_nonzero(known))
            if is_plain and paths.pcd.exists():
                num_hidden += _hide(known, camera, paths.pcd)
        poses.append(pose)
        views.append(
            {
                **make_view(image, known, camera.cv_intrinsics, pose, resolution),
                "agent": agent,
                "camera": f"camera{k}",
                "instance": f"{agent}_{key.frame}_camera{k}",
                "dataset": "OPV2V",
                "is_metric_scale": True,
                "agent_id": key.agents.index(agent),
                "label": str(key),
            }
        )
    return SceneSample(key, views, world_from_lidar, np.stack(poses), num_labels, num_hidden)


@lru_cache(maxsize=8)
def _kind(layout: DepthLayout) -> DepthRoot | None:
    return look(layout)


def _hide(depth: NDArray[np.float32], camera: Camera, cloud: Path) -> int:
    """Makes labels of a plain LiDAR map (H, W) unknown that the camera can't see. Returns how many."""
    row, column = np.nonzero(depth)
    pose, size = camera.camera_from_lidar @ carla.CV_FROM_UE, camera.image_size
    hidden = hidden_labels(_surface(cloud), pose, camera.cv_intrinsics, size, (row, column), depth[row, column])
    depth[row[hidden], column[hidden]] = 0
    return int(hidden.sum())


@lru_cache(maxsize=8)  # a vehicle's four cameras, and those of the vehicles around it in other scenes
def _surface(cloud: Path) -> Surface:
    return sweep_surface(read_pcd(cloud).points)


def _depth(
    layout: DepthLayout | None, key: FrameKey, camera: int, image: NDArray[np.uint8], needed: bool
) -> NDArray[np.float32] | None:
    path = None if layout is None else layout.path(key, camera)
    if path is None or not path.exists():
        if needed:
            raise InputError(f"{path or key}: no depth map, but depth is an input; `./invoke make-depth` makes them")
        return None
    depth = clean_depth(read_depth(path))
    if depth.shape != image.shape[:2]:
        raise InputError(f"{path}: is {depth.shape[1]}x{depth.shape[0]} but its image {image.shape[1]}x{image.shape[0]}")
    return depth
