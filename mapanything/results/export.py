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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.arrays import depth_png_bytes, npy_bytes
from mapanything.errors import InputError
from mapanything.files import remove_stale_temporaries, write_atomic
from mapanything.results.clouds import CLOUD_FROM_CV, ENCODERS
from mapanything.results.reconstruction import Reconstruction
from mapanything.results.record import POSES, RECORD, SceneKey, Settings, json_bytes, read_record, view_name

HOW_PLACED = (
    "view 0's predicted pose is made the identity; lidar_from_view0 then says how that camera is mounted relative to its "
    "LiDAR: a calibration of the main agent's rig, the only pose that is added to the result, not ground truth of the scene"
)


def write_scene(
    folder: Path, key: SceneKey, scene: Reconstruction, lidar_from_view0: NDArray[np.float64], settings: Settings
) -> None:
    """Writes a scene's files, replacing what is there.

    Args:
        lidar_from_view0: (4, 4) OpenCV axes.

    Raises:
        InputError: the folder can't be written or the disk is full. There is no scene.json then.
    """
    old = read_record(folder)
    _unlink(folder / RECORD)  # from here on the folder holds no finished scene
    files: dict[str, int] = {}

    def add(name: str, data: bytes) -> None:
        write_atomic(folder / name, data)
        files[name] = len(data)

    names = [view_name(*view) for view in key.views]
    for name, depth, mask, conf in zip(names, scene.depth_z, scene.mask, scene.conf, strict=True):
        remove_stale_temporaries(folder / name, older_than_s=0)
        add(f"{name}/depth.npy", npy_bytes(depth))
        add(f"{name}/depth.png", depth_png_bytes(np.where(mask, depth, np.float32(0))))
        add(f"{name}/mask.npy", npy_bytes(mask))
        add(f"{name}/conf.npy", npy_bytes(conf))
    remove_stale_temporaries(folder, older_than_s=0)  # of a run that was killed here; a folder belongs to one run at a time
    points, colours = placed_cloud(scene, lidar_from_view0, settings.axes)
    about = (
        f"predicted, {key}; frame: LiDAR of {key.main_agent}, {settings.axes} axes, metres; "
        f"inputs: {', '.join(settings.inputs)}"
    )
    for kind in settings.clouds:
        add(f"cloud.{kind}", ENCODERS[kind](points, colours, settings.axes, about))
    add(POSES, json_bytes(_poses(names, key, scene, lidar_from_view0, settings)))
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
    write_atomic(folder / RECORD, json_bytes(record))


def placed_cloud(
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
            "name": name,
            "agent": agent,
            "camera": camera,
            "image_size": [width, height],
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


def _unlink(path: Path) -> None:
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
    except OSError as error:
        raise InputError(f"{path}: can't be removed ({error.strerror or error}); fix permissions") from error
