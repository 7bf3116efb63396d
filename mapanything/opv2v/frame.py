"""One vehicle at one timestamp, typed: what a frame's YAML says, in OpenCV axes.

`parse_frame` accepts what the released data and its relatives have: `RSU`, `plan_trajectory`, `predicted_ego_pos` and
`extrinsic` are optional, plan_trajectory may be empty, vehicles may carry unknown extra fields, ego_speed may be negative.
Source of every convention: geometry/carla.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mapanything.errors import InputError
from mapanything.geometry import carla
from mapanything.geometry.rigid import invert
from mapanything.geometry.types import Float
from mapanything.opv2v.layout import NUM_CAMERAS
from mapanything.opv2v.yaml_file import kind_of, read_yaml

MAX_SIDE = 16384  # pixels; a map for a camera that claims more would not fit into memory
_QUOTED = re.compile(
    r"\s*[-+]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][-+]?\d{1,3})?\s*", re.ASCII
)  # a number in quotes is one
MAX_VALUE = 1e7  # metres, degrees, pixels: what is larger is no measurement, and would become infinite in float32


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """One camera of a frame.

    Attributes:
        index: 0 front, 1 right rear, 2 left rear, 3 back.
        cords: (6,) CARLA pose as stored: x, y, z, roll, yaw, pitch.
        intrinsics: (3, 3) as stored, CARLA's pixel convention.
        extrinsic: (4, 4) as stored (LiDAR -> camera, Unreal axes), or None where the file has none.
        camera_from_lidar: (4, 4) OpenCV axes, from cords and lidar_pose.
        world_from_camera: (4, 4) OpenCV axes.
    """

    index: int
    cords: Float
    intrinsics: Float
    extrinsic: Float | None
    camera_from_lidar: Float
    world_from_camera: Float

    @property
    def name(self) -> str:
        return f"camera{self.index}"

    @property
    def cv_intrinsics(self) -> Float:
        """(3, 3) with pixel centres at integer coordinates."""
        return carla.cv_intrinsics(self.intrinsics)

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) that the stored principal point, the image's centre, stands for."""
        return round(2 * self.intrinsics[0, 2]), round(2 * self.intrinsics[1, 2])


@dataclass(frozen=True, slots=True, eq=False)
class Vehicle:
    """A vehicle that this agent's LiDAR hit.

    Attributes:
        world_from_box: (4, 4) OpenCV pose of the box's centre.
        half_size: (3,) metres along the box's own OpenCV axes: half width, half height, half length.
        speed_kmh: km/h, NaN where the file has none.
    """

    id: int
    world_from_box: Float
    half_size: Float
    speed_kmh: float


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One agent-frame. All poses are OpenCV, camera/vehicle to world, metres; `lidar_pose` is CARLA's as stored."""

    path: Path
    lidar_pose: Float
    world_from_lidar: Float
    world_from_ego: Float | None
    ego_speed_kmh: float
    cameras: tuple[Camera, ...]
    vehicles: tuple[Vehicle, ...]
    plan_trajectory: Float
    is_rsu: bool


def read_frame(path: Path) -> Frame:
    """Reads and parses a frame's YAML.

    Raises:
        InputError: names the file and the field that is missing or wrong.
    """
    return parse_frame(read_yaml(path), path)


def parse_frame(data: dict[Any, Any], path: Path) -> Frame:
    """A frame from the YAML's mapping; `path` only names the file in errors."""
    lidar_pose = _array(data, "lidar_pose", (6,), path)
    world_from_lidar = carla.cv_pose(lidar_pose)
    ego = _array(data, "true_ego_pos", (6,), path) if data.get("true_ego_pos") is not None else None
    trajectory = data.get("plan_trajectory") or []
    return Frame(
        path=path,
        lidar_pose=lidar_pose,
        world_from_lidar=world_from_lidar,
        world_from_ego=None if ego is None else carla.cv_pose(ego),
        ego_speed_kmh=_optional(data, "ego_speed", path),
        cameras=tuple(
            _camera(data[f"camera{k}"], k, world_from_lidar, path)
            for k in range(NUM_CAMERAS)
            if data.get(f"camera{k}") is not None
        ),
        vehicles=_vehicles(data.get("vehicles"), path),
        plan_trajectory=_values(trajectory, (len(_list(trajectory, "plan_trajectory", path)), 3), "plan_trajectory", path),
        is_rsu=data.get("RSU") is True,
    )


def _camera(data: Any, index: int, world_from_lidar: Float, path: Path) -> Camera:
    name = f"camera{index}"
    if not isinstance(data, dict):
        raise InputError(f"{path}: {name} is no mapping; restore the file")
    cords = _array(data, "cords", (6,), path, name)
    intrinsics = _array(data, "intrinsic", (3, 3), path, name)
    if not (intrinsics[0, 0] > 1 and intrinsics[1, 1] > 1 and np.array_equal(intrinsics[2], [0, 0, 1])):
        raise InputError(f"{path}: {name}.intrinsic is no pinhole matrix; restore the file")
    if not (2 * intrinsics[:2, 2].min() > 0.5 and 2 * intrinsics[:2, 2].max() <= MAX_SIDE):
        raise InputError(f"{path}: {name}.intrinsic has no principal point in the middle of an image; restore the file")
    extrinsic = _array(data, "extrinsic", (4, 4), path, name) if data.get("extrinsic") is not None else None
    world_from_camera = carla.cv_pose(cords)
    return Camera(
        index=index,
        cords=cords,
        intrinsics=intrinsics,
        extrinsic=extrinsic,
        camera_from_lidar=invert(world_from_camera) @ world_from_lidar,
        world_from_camera=world_from_camera,
    )


def _vehicles(data: Any, path: Path) -> tuple[Vehicle, ...]:
    if data is None:
        return ()
    if not isinstance(data, dict):
        raise InputError(f"{path}: vehicles is no mapping; restore the file")
    ids: list[int] = []
    poses, centers, extents, speeds = [], [], [], []
    for key, value in data.items():
        name = f"vehicles.{key}"
        number = _vehicle_id(key)
        if number is None or number in ids or not isinstance(value, dict):
            raise InputError(f"{path}: {name} is no vehicle (an integer id, once, with a mapping); restore the file")
        ids.append(number)
        location = _array(value, "location", (3,), path, name)
        poses.append([*location, *_array(value, "angle", (3,), path, name)])
        centers.append(_array(value, "center", (3,), path, name))
        extents.append(_array(value, "extent", (3,), path, name))
        speeds.append(_optional(value, "speed", path, name))
    if not poses:
        return ()
    world_from_box = carla.ue_matrix_from_pose(poses)
    world_from_box[:, :3, 3] += (world_from_box[:, :3, :3] @ np.array(centers)[:, :, None])[:, :, 0]
    values = zip(ids, carla.cv_from_ue(world_from_box), carla.cv_sizes(extents), speeds, strict=True)
    return tuple(Vehicle(key, pose, half_size, speed) for key, pose, half_size, speed in values)


def _vehicle_id(key: Any) -> int | None:
    """An id as a number, also where a JSON round trip made it text."""
    if isinstance(key, str) and re.fullmatch(r"-?[0-9]{1,18}", key):
        return int(key)
    return key if isinstance(key, int) and not isinstance(key, bool) else None


def _array(data: dict[Any, Any], key: str, shape: tuple[int, ...], path: Path, inside: str = "") -> Float:
    name = f"{inside}.{key}" if inside else key
    if key not in data or data[key] is None:
        raise InputError(f"{path}: {name} is missing; restore the file")
    return _values(data[key], shape, name, path)


def _values(value: Any, shape: tuple[int, ...], name: str, path: Path) -> Float:
    """Finite numbers of exactly `shape`. Checked level by level: YAML aliases can make a nested list astronomically large."""
    rows = [value]
    if (
        shape == (6,)
        and isinstance(value, list)
        and len(value) == 4
        and all(isinstance(r, list) and len(r) == 4 for r in value)
    ):
        wanted = "x, y, z, roll, yaw, pitch are due"
        raise InputError(f"{path}: {name} is a 4x4 matrix where {wanted} (V2V4Real's form): convert it")
    for size in shape:
        if any(len(_list(row, name, path)) != size for row in rows):
            raise InputError(f"{path}: {name} should have shape {'x'.join(map(str, shape))}; restore the file")
        rows = [item for row in rows for item in row]
    array = np.array([_number(item, name, path) for item in rows], dtype=np.float64).reshape(shape)
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {name} holds NaN or infinity; restore the file")
    if np.abs(array).max(initial=0) > MAX_VALUE:
        raise InputError(f"{path}: {name} holds {np.abs(array).max():.3g}, which no measurement is; restore the file")
    return array


def _list(value: Any, name: str, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{path}: {name} is no list; restore the file")
    return value


def _optional(data: dict[Any, Any], key: str, path: Path, inside: str = "") -> float:
    """A number that may be absent or null: NaN then."""
    value = data.get(key)
    return math.nan if value is None else _number(value, f"{inside}.{key}" if inside else key, path)


def _number(value: Any, name: str, path: Path) -> float:
    if isinstance(value, str) and _QUOTED.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{path}: {name} is no number but {kind_of(value)}; restore the file")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{path}: {name} is no finite number; restore the file") from None
