"""Reads what export.py wrote: which scene it is, its views, their depths.

docs/inference.md describes the folder. It belongs to whoever made it: every entry is checked before it is used, and names
in it never lead to a file outside the folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from mapanything.arrays import read_npy
from mapanything.errors import InputError
from mapanything.files import read_json
from mapanything.results.clouds import CLOUD_FROM_CV, ENCODERS
from mapanything.results.record import FORMAT, POSES, RECORD

NAME = re.compile(r"[\w.+-]+\Z")  # of views: a folder right below the scene's


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
        """Reads the z-depth (H, W) in metres, 0 outside the mask. Raises InputError."""
        depth, mask = _read_image(self.folder / "depth.npy", "f"), _read_image(self.folder / "mask.npy", "b")
        if not depth.shape == mask.shape == self.size[::-1]:
            raise InputError(f"{self.folder}: depth.npy and mask.npy do not have {POSES}'s size; make the scene again")
        return np.where(mask & np.isfinite(depth), depth, 0).astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class SceneFiles:
    """One scene's folder, its record and poses checked. The world is the main agent's LiDAR frame in OpenCV axes.

    Attributes:
        agent: the main agent; the first of `agents`.
        axes: of its cloud, a key of `clouds.CLOUD_FROM_CV`.
        views: all views, in the network's order.
        inputs: what the network was shown, such as ("images",).
    """

    folder: Path
    split: str
    scenario: str
    agent: str
    frame: str
    agents: tuple[str, ...]
    axes: str
    views: tuple[PredictedView, ...]
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.split}/{self.scenario}/{self.agent}/{self.frame}"

    def cloud_path(self) -> Path | None:
        """The cloud's file, whichever kind was written; None: none was."""
        paths = [self.folder / f"cloud.{kind}" for kind in ENCODERS]
        return next((path for path in paths if path.exists()), None)


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


def read_scene_files(folder: Path) -> SceneFiles:
    """Reads record and poses of a folder of `find_predictions`.

    Raises:
        InputError: the scene is not whole, damaged, or of another version.
    """
    record = _read_json(folder / RECORD)
    if record.get("format") != FORMAT:
        raise InputError(f"{folder / RECORD}: has format {record.get('format')!r}, not {FORMAT}; make the scene again")
    scene, axes = record.get("scene"), record.get("frame_of")
    if not isinstance(scene, dict) or not isinstance(axes, str) or axes not in CLOUD_FROM_CV:
        raise InputError(f"{folder / RECORD}: has no scene or no known frame_of; make the scene again")
    names = [scene.get(key) for key in ("split", "scenario", "main_agent", "frame")]
    agents, inputs = scene.get("agents"), record.get("inputs")
    if not (_all_text(names) and _all_text(agents) and agents and agents[0] == names[2]):
        raise InputError(f"{folder / RECORD}: does not name its split, scenario, frame and agents; make the scene again")
    split, scenario, agent, frame = names
    inputs = tuple(inputs) if _all_text(inputs) else ()
    return SceneFiles(folder, split, scenario, agent, frame, tuple(agents), axes, _views(folder), inputs)


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


def _read_image(path: Path, kind: str) -> NDArray[Any]:
    """Reads (H, W) values of NumPy's kind `f` or `b`."""
    values = read_npy(path)
    if values.ndim != 2 or values.dtype.kind != kind:
        wanted = "a mask is (H, W) of bool" if kind == "b" else "a depth map is (H, W) of floats"
        raise InputError(f"{path}: holds {values.dtype} of shape {values.shape}, {wanted}; make the scene again")
    return values


def _all_text(values: object) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
