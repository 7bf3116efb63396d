"""Every kind of problem that one file can have, planted into a sample: found at its level, named, and nothing else is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapanything.opv2v.check.report import KINDS
from mapanything.opv2v.check.run import Level
from mapanything.opv2v.depth import read_depth
from mapanything.opv2v.layout import DepthLayout
from tests.helpers.broken_sample import LEVELS, Sample, keep, set_entry
from tests.helpers.file_bytes import png_of


@pytest.fixture
def sample(sample_root: Path, sample_depth_root: Path) -> Sample:
    return Sample(sample_root, sample_depth_root)


@pytest.mark.parametrize("level", LEVELS)
def test_the_sample_has_no_problem(sample: Sample, level: Level) -> None:
    report = sample.check(level)
    assert report.problems == []
    assert report.unknown == []
    assert report.num_frames == len(sample.frames) > 0
    assert not report.is_bad


def replace(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def shrink(path: Path) -> None:
    with Image.open(path) as image:
        small = image.resize((image.width // 2, image.height // 2))
    small.save(path)


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


def broken_stream(path: Path) -> None:
    """A PNG whose CRCs are right and whose pixels can't be inflated."""
    with Image.open(path) as image:
        path.write_bytes(png_of(image.width, image.height, b"\x78\x01" + b"\xff" * 50))


def one_colour(path: Path) -> None:
    with Image.open(path) as image:
        Image.new("RGB", image.size, (7, 8, 9)).save(path)


def drop_last_line(path: Path) -> None:
    path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:-1]) + b"\n")


def a_word_between(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    lines[-2] = b"1.0 word 2.0 0.0"
    path.write_bytes(b"\n".join(lines) + b"\n")


def change_camera(sample: Sample, field: str, change: Callable[[np.ndarray], Any]) -> None:
    def edit(data: dict[Any, Any]) -> None:
        array = np.array(data["camera2"][field], dtype=float)
        change(array)
        data["camera2"][field] = array.tolist()

    sample.edit_yaml(edit)


def to_png_depth(sample: Sample) -> None:
    sample.depth = DepthLayout(sample.depth.root, sample.depth.pattern.replace(".npy", ".png"))
    for key in sample.frames:
        for camera in range(4):
            path = sample.depth.path(key, camera)
            steps = np.rint(read_depth(path.with_suffix(".npy")) * 256)
            Image.fromarray(np.where(steps < 65536, steps, 0).astype(np.uint16)).save(path)


def truncate_png_depth(sample: Sample) -> None:
    to_png_depth(sample)
    sample.map = sample.map.with_suffix(".png")
    keep(sample.map, 0.7)


def half_of(path: Path) -> str:
    return path.read_text()[: len(path.read_text()) // 2].rsplit("\n", 2)[0] + "\n  - [broken"


# (kind, level at which it is found, how it is planted, which file is named)
PLANTED: list[tuple[str, Level, Callable[[Sample], Any], str]] = [
    ("missing-yaml", "quick", lambda s: s.yaml.unlink(), "yaml"),
    ("missing-cloud", "quick", lambda s: s.pcd.unlink(), "pcd"),
    ("missing-image", "quick", lambda s: s.image.unlink(), "image"),
    ("missing-depth", "quick", lambda s: s.map.unlink(), "map"),
    ("empty-yaml", "quick", lambda s: keep(s.yaml, 0), "yaml"),
    ("empty-cloud", "quick", lambda s: keep(s.pcd, 0), "pcd"),
    ("empty-image", "quick", lambda s: keep(s.image, 0), "image"),
    ("empty-depth", "quick", lambda s: keep(s.map, 0), "map"),
    ("dangling-link", "quick", lambda s: replace(s.image, lambda path: path.symlink_to("gone")), "image"),
    ("dangling-link", "quick", lambda s: replace(s.map, lambda path: path.symlink_to(path)), "map"),
    ("not-a-file", "quick", lambda s: replace(s.pcd, Path.mkdir), "pcd"),
    ("not-a-file", "quick", lambda s: replace(s.yaml, os.mkfifo), "yaml"),
    ("corrupt-yaml", "standard", lambda s: s.yaml.write_text(half_of(s.yaml)), "yaml"),
    ("corrupt-yaml", "standard", lambda s: s.edit_yaml(lambda data: data.pop("lidar_pose")), "yaml"),
    ("corrupt-yaml", "standard", lambda s: change_camera(s, "cords", lambda a: set_entry(a, 3, np.nan)), "yaml"),
    ("corrupt-image", "standard", lambda s: keep(s.image, 0.9), "image"),
    ("corrupt-image", "standard", lambda s: flip_byte(s.image), "image"),
    ("corrupt-image", "standard", lambda s: s.image.write_text("<html>quota exceeded</html>"), "image"),
    ("corrupt-image", "deep", lambda s: broken_stream(s.image), "image"),
    ("corrupt-cloud", "standard", lambda s: keep(s.pcd, 0.5), "pcd"),
    ("corrupt-cloud", "standard", lambda s: drop_last_line(s.pcd), "pcd"),
    ("corrupt-cloud", "standard", lambda s: (s.edit_points(lambda p: None), keep(s.pcd, 0.9)), "pcd"),
    ("corrupt-cloud", "deep", lambda s: a_word_between(s.pcd), "pcd"),
    ("corrupt-depth", "standard", lambda s: keep(s.map, 0.5), "map"),
    ("corrupt-depth", "standard", lambda s: s.edit_depth(lambda d: d.reshape(-1)), "map"),
    ("corrupt-depth", "standard", truncate_png_depth, "map"),
    ("missing-camera", "standard", lambda s: s.edit_yaml(lambda data: data.pop("camera2")), "yaml"),
    ("image-size", "standard", lambda s: shrink(s.image), "image"),
    ("image-size", "standard", lambda s: change_camera(s, "intrinsic", lambda a: set_entry(a, (0, 2), 999)), "image"),
    ("depth-size", "standard", lambda s: s.edit_depth(lambda d: d[:-2]), "map"),
    ("bad-rotation", "standard", lambda s: change_camera(s, "extrinsic", lambda a: set_entry(a, (0, 1), 0.5)), "yaml"),
    ("bad-rotation", "standard", lambda s: change_camera(s, "extrinsic", lambda a: np.negative(a[0], a[0])), "yaml"),
    ("bad-rotation", "standard", lambda s: change_camera(s, "extrinsic", lambda a: set_entry(a, (3, 0), 1e-3)), "yaml"),
    (
        "extrinsic-differs",
        "standard",
        lambda s: change_camera(s, "extrinsic", lambda a: set_entry(a, (0, 3), 9)),
        "yaml",
    ),
    ("extrinsic-differs", "standard", lambda s: change_camera(s, "cords", lambda a: set_entry(a, 4, 10)), "yaml"),
    ("extrinsic-differs", "standard", lambda s: s.edit_yaml(lambda d: set_entry(d["lidar_pose"], 0, 0.0)), "yaml"),
    ("blank-image", "deep", lambda s: one_colour(s.image), "image"),
    ("empty-cloud", "standard", lambda s: s.edit_points(lambda p: p[:0]), "pcd"),
    ("no-echo", "deep", lambda s: s.edit_points(lambda p: set_entry(p, (5, 1), np.nan)), "pcd"),
    ("corrupt-cloud", "deep", lambda s: s.edit_points(lambda p: set_entry(p, slice(None), np.nan)), "pcd"),
    ("bad-points", "deep", lambda s: s.edit_points(lambda p: set_entry(p, 5, 300.0)), "pcd"),
    ("bad-points", "deep", lambda s: s.edit_points(lambda p: set_entry(p, 5, 0.0)), "pcd"),
    ("cloud-misplaced", "deep", lambda s: s.edit_points(lambda p: p * np.array([-1, -1, 1])), "pcd"),
    ("bad-depth", "deep", lambda s: s.edit_depth(lambda d: set_entry(d, (3, 4), np.nan)), "map"),
    ("bad-depth", "deep", lambda s: s.edit_depth(lambda d: set_entry(d, (3, 4), np.inf)), "map"),
    ("bad-depth", "deep", lambda s: s.edit_depth(lambda d: set_entry(d, (3, 4), -0.1)), "map"),
    ("bad-depth", "deep", lambda s: s.edit_depth(lambda d: set_entry(d, (3, 4), 1001)), "map"),
    ("blank-depth", "deep", lambda s: s.edit_depth(np.zeros_like), "map"),
    ("depth-differs", "deep", lambda s: s.edit_depth(lambda d: d * 1.1), "map"),
    ("depth-differs", "deep", lambda s: s.edit_depth(lambda d: d / 100), "map"),
]


@pytest.mark.parametrize(
    ("kind", "level", "plant", "named"), PLANTED, ids=[f"{i}-{kind}" for i, (kind, *_) in enumerate(PLANTED)]
)
def test_planted_in_one_file(sample: Sample, kind: str, level: Level, plant: Callable[[Sample], Any], named: str) -> None:
    plant(sample)
    path: Path = getattr(sample, named)
    file = os.path.relpath(path, sample.depth.root if named == "map" else sample.root)
    for at in LEVELS:
        found = [(problem.kind, problem.file, problem.place) for problem in sample.check(at).problems]
        expected = [] if LEVELS.index(at) < LEVELS.index(level) else [(kind, file, str(sample.key))]
        assert found == expected, at


def test_every_kind_is_planted_somewhere() -> None:
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_check*.py"))
    assert [kind for kind in KINDS if f'"{kind}"' not in source] == []
