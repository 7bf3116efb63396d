"""A scene's prediction as files that other tools open, and the record that says what made them.

    {out}/{split}/{scenario}/{main agent}/{frame}/
        {agent}_camera{k}/depth.npy  depth.png  mask.npy  conf.npy
        cloud.pcd  cloud.ply  cloud.glb        as asked for
        poses.json
        scene.json                             written last: where it is, the scene is whole

Every file is written whole or not at all. Nothing in them depends on the time or on the run: same inputs, same bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.errors import InputError
from mapanything.files import read_json, remove_stale_temporaries, write_atomic
from mapanything.inference.predict import Reconstruction
from mapanything.inference.select import SceneKey
from mapanything.opv2v.depth import write_depth_npy, write_depth_png
from mapanything.results.clouds import CLOUD_FROM_CV, ENCODERS

FORMAT = 1  # of the folder; a change of what a file means must raise it
RECORD = "scene.json"
HOW_PLACED = (
    "view 0's predicted pose is made the identity; lidar_from_view0 then says how that camera is mounted relative to its "
    "LiDAR: a calibration of the main agent's rig, the only pose that is added to the result, not ground truth of the scene"
)
# An upper bound, nothing masked: depth, confidence, mask; a depth picture of noise; a point in each kind of cloud.
BYTES_PER_PIXEL = {"view": 9 + 2, "pcd": 16, "ply": 15, "glb": 20}


@dataclass(frozen=True, slots=True)
class Settings:
    """What makes a scene's files what they are, the same for all scenes of a run.

    Attributes:
        mode: single or coop.
        inputs: what the network was shown, `predict.USES`.
        resolution: (W, H).
        axes: of the clouds, a key of `CLOUD_FROM_CV`.
        clouds: keys of `ENCODERS`.
        made_with: model and code; another one makes other files.
        provenance: where they came from; tells a person, decides nothing.
    """

    mode: str
    inputs: tuple[str, ...]
    resolution: tuple[int, int]
    axes: str
    clouds: tuple[str, ...]
    made_with: dict[str, Any]
    provenance: dict[str, Any]

    def record(self, key: SceneKey) -> dict[str, Any]:
        """What must be the same for a scene's files to count as made already."""
        return {
            "format": FORMAT,
            "scene": {
                **{"mode": self.mode, "split": key.split, "scenario": key.scenario, "frame": key.frame},
                **{"main_agent": key.main_agent, "agents": list(key.agents), "views": [view_name(*v) for v in key.views]},
            },
            "inputs": list(self.inputs),
            "resolution": list(self.resolution),
            "frame_of": self.axes,
            "clouds": list(self.clouds),
            "made_with": self.made_with,
        }

    def most_bytes(self, key: SceneKey) -> int:
        """What a scene can take on the disk."""
        pixels = len(key.views) * self.resolution[0] * self.resolution[1]
        return pixels * sum(BYTES_PER_PIXEL[kind] for kind in ("view", *self.clouds))


def view_name(agent: str, camera: int) -> str:
    return f"{agent}_camera{camera}"


def scene_folder(out: Path, key: SceneKey) -> Path:
    return out / key.split / key.scenario / key.main_agent / key.frame


def is_done(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a scene's files are all there, made by the same settings.

    Raises:
        InputError: they were made by other settings.
    """
    path = folder / RECORD
    old = _read_record(path)
    if old is None:
        return False
    differing = [name for name, value in record.items() if old.get(name) != value]
    if differing:
        raise InputError(
            f"{path}: was made with other settings ({_difference(old, record, differing[0])}); give --overwrite to make the "
            "scene anew, or another folder"
        )
    files = old.get("files")
    try:
        return isinstance(files, dict) and all((folder / name).stat().st_size == size for name, size in files.items())
    except OSError:
        return False


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        old = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:  # not ours, or damaged: made anew
        return None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; fix its permissions or give another folder") from error
    return old if isinstance(old, dict) else None


def _difference(old: dict[str, Any], new: dict[str, Any], name: str) -> str:
    before, after = old.get(name), new[name]
    if isinstance(before, dict) and isinstance(after, dict):
        inner = next((key for key in after if before.get(key) != after[key]), None)
        if inner is not None:
            return f"{inner}: {_short(before.get(inner))}, now {_short(after[inner])}"
    return f"{name}: {_short(before)}, now {_short(after)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_scene(
    folder: Path, key: SceneKey, scene: Reconstruction, lidar_from_view0: NDArray[np.float64], settings: Settings
) -> None:
    """Writes a scene's files, replacing what is there.

    Args:
        lidar_from_view0: (4, 4) OpenCV axes.

    Raises:
        InputError: the folder can't be written or the disk is full. There is no scene.json then.
    """
    old = _read_record(folder / RECORD)
    _unlink(folder / RECORD)  # from here on the folder holds no finished scene
    written: list[Path] = []

    def add(name: str, data: bytes) -> None:
        write_atomic(folder / name, data)
        written.append(folder / name)

    names = [view_name(*view) for view in key.views]
    for index, name in enumerate(names):
        view = folder / name
        remove_stale_temporaries(view, older_than_s=0)
        depth, mask = scene.depth_z[index], scene.mask[index]
        write_depth_npy(view / "depth.npy", depth)
        write_depth_png(view / "depth.png", np.where(mask, depth, np.float32(0)))
        written += [view / "depth.npy", view / "depth.png"]
        add(f"{name}/mask.npy", _npy(mask))
        add(f"{name}/conf.npy", _npy(scene.conf[index]))
    remove_stale_temporaries(folder, older_than_s=0)  # of a run that was killed here; a folder belongs to one run at a time
    points, colours = cloud(scene, lidar_from_view0, settings.axes)
    about = (
        f"predicted, {key}; frame: LiDAR of {key.main_agent}, {settings.axes} axes, metres; "
        f"inputs: {', '.join(settings.inputs)}"
    )
    for kind in settings.clouds:
        add(f"cloud.{kind}", ENCODERS[kind](points, colours, settings.axes, about))
    add("poses.json", _json(_poses(names, key, scene, lidar_from_view0, settings)))
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in written}
    for name in (old or {}).get("files", {}):
        if name not in files and not Path(name).is_absolute() and ".." not in Path(name).parts:
            _unlink(folder / name)  # of a run with other settings
    record = settings.record(key) | {
        "how_placed": HOW_PLACED,
        "lidar_from_view0": lidar_from_view0.tolist(),
        "metric_scaling_factor": scene.metric_scaling_factor,
        "num_points": len(points),
        "provenance": settings.provenance,
        "files": files,
    }
    write_atomic(folder / RECORD, _json(record))


def cloud(
    scene: Reconstruction, lidar_from_view0: NDArray[np.float64], axes: str = "opv2v"
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Points (N, 3) and colours (N, 3) of all views in the main agent's LiDAR frame, masked; view by view, row by row."""
    points = scene.points(CLOUD_FROM_CV[axes] @ lidar_from_view0)
    trusted = np.flatnonzero(scene.mask)  # taking rows is faster than masking them
    return points.reshape(-1, 3).take(trusted, axis=0), scene.colours.reshape(-1, 3).take(trusted, axis=0)


def _poses(
    names: list[str], key: SceneKey, scene: Reconstruction, lidar_from_view0: NDArray[np.float64], settings: Settings
) -> dict[str, Any]:
    height, width = scene.mask.shape[1:]
    views = [
        {
            **{"name": name, "agent": agent, "camera": camera, "image_size": [width, height]},
            "intrinsics": scene.intrinsics[i].tolist(),
            "view0_from_camera": scene.view0_from_camera[i].tolist(),
            "lidar_from_camera": (lidar_from_view0 @ scene.view0_from_camera[i]).tolist(),
        }
        for i, (name, (agent, camera)) in enumerate(zip(names, key.views, strict=True))
    ]
    return {
        "about": "predicted; poses have OpenCV axes at both ends (x right, y down, z forward), metres, pixel centres at whole "
        "numbers; cloud_from_lidar leads from the LiDAR's frame in those axes to the axes of the cloud files",
        "inputs": list(settings.inputs),
        "frame_of": settings.axes,
        "cloud_from_lidar": CLOUD_FROM_CV[settings.axes].tolist(),
        "how_placed": HOW_PLACED,
        "views": views,
    }


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def _unlink(path: Path) -> None:
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
    except OSError as error:
        raise InputError(f"{path}: can't be removed ({error.strerror or error}); fix permissions") from error
