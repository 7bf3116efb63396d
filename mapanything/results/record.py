"""The record of a scene's files, scene.json: which scene they show, what made them, and whether all of them are there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapanything.errors import InputError
from mapanything.files import read_json

FORMAT = 1  # of the folder; a change of what a file means must raise it
RECORD, POSES = "scene.json", "poses.json"
# An upper bound, nothing masked: depth, confidence, mask; a depth picture of noise; a point in each kind of cloud.
BYTES_PER_PIXEL = {"view": 9 + 2, "pcd": 16, "ply": 15, "glb": 20}


@dataclass(frozen=True, slots=True)
class SceneKey:
    """The name of a scene and what is seen in it.

    Attributes:
        agents: the main agent first, the others in OpenCOOD's order.
        cameras: of each agent, those that give a view.
    """

    split: str
    scenario: str
    frame: str
    agents: tuple[str, ...]
    cameras: tuple[tuple[int, ...], ...]

    @property
    def main_agent(self) -> str:
        return self.agents[0]

    @property
    def views(self) -> list[tuple[str, int]]:
        """Agent and camera of every view, in order."""
        return [(agent, k) for agent, cameras in zip(self.agents, self.cameras, strict=True) for k in cameras]

    def __str__(self) -> str:
        return f"{self.split}/{self.scenario}/{self.main_agent}/{self.frame}"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that a scene's files depend on, the same for all scenes of a run.

    Attributes:
        mode: single or coop.
        inputs: what the network was shown, keys of `inference.predict.USES`.
        resolution: (W, H).
        axes: of the clouds, a key of `clouds.CLOUD_FROM_CV`.
        clouds: keys of `clouds.ENCODERS`.
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
        """Everything that must be the same for a scene's files to count as made already."""
        return {
            "format": FORMAT,
            "scene": {
                "mode": self.mode,
                "split": key.split,
                "scenario": key.scenario,
                "frame": key.frame,
                "main_agent": key.main_agent,
                "agents": list(key.agents),
                "views": [view_name(*view) for view in key.views],
            },
            "inputs": list(self.inputs),
            "resolution": list(self.resolution),
            "frame_of": self.axes,
            "clouds": list(self.clouds),
            "made_with": self.made_with,
        }

    def most_bytes(self, key: SceneKey) -> int:
        """The most that a scene can take on the disk."""
        pixels = len(key.views) * self.resolution[0] * self.resolution[1]
        return pixels * sum(BYTES_PER_PIXEL[kind] for kind in ("view", *self.clouds))


def view_name(agent: str, camera: int) -> str:
    return f"{agent}_camera{camera}"


def scene_folder(out: Path, key: SceneKey) -> Path:
    return out / key.split / key.scenario / key.main_agent / key.frame


def is_done(folder: Path, record: dict[str, Any]) -> bool:
    """True if a scene's files are all there, made by the same settings.

    Raises:
        InputError: they were made by other settings.
    """
    path = folder / RECORD
    old = read_record(folder)
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


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder that is to be written to; None where there is none, or none of ours.

    Raises:
        InputError: it can't be read.
    """
    path = folder / RECORD
    try:
        old = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:  # not ours, or damaged: made anew
        return None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; fix its permissions or give another folder") from error
    return old if isinstance(old, dict) else None


def json_bytes(values: dict[str, Any], allow_nan: bool = True) -> bytes:
    """A record's text in UTF-8; `allow_nan`: a network may say NaN, which JSON proper does not know."""
    return (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=allow_nan) + "\n").encode("utf-8")


def _difference(old: dict[str, Any], new: dict[str, Any], name: str) -> str:
    before, after = old.get(name), new[name]
    if isinstance(before, dict) and isinstance(after, dict):
        inner = next((key for key in after if before.get(key) != after[key]), None)
        if inner is not None:
            return f"{inner}: {_abridged(before.get(inner))}, now {_abridged(after[inner])}"
    return f"{name}: {_abridged(before)}, now {_abridged(after)}"


def _abridged(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
