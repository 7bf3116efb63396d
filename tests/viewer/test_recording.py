"""Recordings for Rerun: what is logged, without and, where it is installed, with rerun-sdk."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mapanything.errors import InputError
from mapanything.geometry.camera import project
from mapanything.geometry.rigid import invert, transform
from mapanything.viewer.frames import Catalog, load_frame
from mapanything.viewer.recording import write_recording


class Stream:
    """Takes what rerun's RecordingStream takes."""

    logged: list[tuple[int, str, Any]]

    def __init__(self, name: str) -> None:
        type(self).logged = []
        self._frame = -1

    def save(self, path: str) -> None:
        Path(path).write_bytes(b"RRF2")

    def set_time(self, timeline: str, *, sequence: int) -> None:
        assert timeline == "frame"
        self._frame = sequence

    def log(self, path: str, item: Any, static: bool = False) -> None:
        self.logged.append((self._frame, path, item))

    def flush(self) -> None: ...

    def disconnect(self) -> None: ...


class Thing:
    """Any of rerun's archetypes: what it was made of."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.args, self.options = args, options

    def compress(self, jpeg_quality: int) -> Thing:
        return self


@pytest.fixture
def rerun(monkeypatch: pytest.MonkeyPatch) -> type[Stream]:
    module = ModuleType("rerun")
    names = ("Points3D", "LineStrips3D", "Clear", "Transform3D", "Pinhole", "Image")
    vars(module).update({name: type(name, (Thing,), {}) for name in names})
    vars(module).update(RecordingStream=Stream, ViewCoordinates=type("ViewCoordinates", (), {"RDF": "RDF"}))
    monkeypatch.setitem(sys.modules, "rerun", module)
    return Stream


def record(root: Path, path: Path, notes: list[str], frames: Sequence[str] | None = None) -> int:
    catalog = Catalog(root)
    start = catalog.first()
    return write_recording(
        path, catalog, start, frames or catalog.frames(start.split, start.scenario, start.agent), notes.append
    )


def test_every_frame_has_the_viewers_layers(rerun: type[Stream], sample_root: Path, tmp_path: Path):
    notes: list[str] = []
    assert record(sample_root, tmp_path / "new" / "a.rrd", notes) == 2
    assert notes == [] and [p.name for p in (tmp_path / "new").iterdir()] == ["a.rrd"]
    frame = load_frame(Catalog(sample_root), Catalog(sample_root).first())
    now = {path: item for time, path, item in rerun.logged if time == int(frame.key.frame)}
    main = frame.key.agent
    assert {f"world/lidar/{main}", "world/boxes", "world/boxes/names", "world/cameras", f"world/axes/{main}"} <= now.keys()
    assert (now[f"world/lidar/{main}"].args[0] == frame.scene.clouds[0].points).all()
    assert len({time for time, _, _ in rerun.logged} - {-1}) == 2

    # The image's pixels lie where the camera's rays do: a point projects alike in both, but for the image's size.
    camera = f"world/cameras/{main}_camera0"
    items = {type(item).__name__: item for time, path, item in rerun.logged if path == camera and time >= 0}
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = items["Transform3D"].options["mat3x3"], items["Transform3D"].options["translation"]
    point = transform(frame.scene.cameras.world_from_camera[0], np.array([[0.4, -0.2, 3.0]]))
    small, _ = project(transform(invert(pose), point), items["Pinhole"].options["image_from_camera"])
    full, _ = project(transform(invert(pose), point), frame.scene.cameras.intrinsics[0])
    scale = np.array(items["Pinhole"].options["resolution"]) / frame.scene.cameras.sizes[0]
    assert np.allclose(small + 0.5, (full + 0.5) * scale, atol=1e-6)


def test_broken_frames_are_left_out_and_named(rerun: type[Stream], sample_root: Path, tmp_path: Path):
    key = Catalog(sample_root).first()
    (sample_root / key.split / key.scenario / key.agent / f"{key.frame}.yaml").write_text("{")
    notes: list[str] = []
    assert record(sample_root, tmp_path / "a.rrd", notes) == 1
    assert len(notes) == 1 and f"{key.frame}.yaml" in notes[0]
    with pytest.raises(InputError, match="none of the 1 frames"):
        record(sample_root, tmp_path / "b.rrd", notes, [key.frame])
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.rrd"]


def test_unwritable_place_is_one_line(rerun: type[Stream], sample_root: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        record(sample_root, tmp_path / "file" / "a.rrd", [])


@pytest.mark.skipif(importlib.util.find_spec("rerun") is None, reason="rerun-sdk is not installed")
def test_rerun_reads_it(sample_root: Path, tmp_path: Path):
    assert record(sample_root, tmp_path / "a.rrd", []) == 2
    command = [sys.executable, "-m", "rerun", "rrd", "verify", str(tmp_path / "a.rrd")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
