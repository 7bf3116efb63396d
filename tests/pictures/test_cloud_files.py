"""Clouds of other programs come back as Open3D wrote them; what is damaged is one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mapanything.errors import InputError
from mapanything.pictures.cloud_files import read_cloud
from mapanything.results.clouds import ENCODERS

POINTS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
COLORS = np.random.default_rng(1).integers(0, 256, (50, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ENCODERS)
def test_our_own_files(kind: str, tmp_path: Path):
    path = tmp_path / f"c.{kind}"
    for count in (50, 0):
        path.write_bytes(ENCODERS[kind](POINTS[:count], COLORS[:count], "opv2v", "a comment"))
        points, colors = read_cloud(path)
        assert np.array_equal(points, POINTS[:count])
        assert np.array_equal(colors, COLORS[:count]) if colors is not None else not count


@pytest.mark.parametrize("colored", [True, False])
@pytest.mark.parametrize("kind", ["ply ascii", "ply", "pcd ascii", "pcd", "pcd compressed"])
def test_files_of_open3d(kind: str, colored: bool, tmp_path: Path):
    import open3d

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(POINTS.astype(np.float64)))
    if colored:
        cloud.colors = open3d.utility.Vector3dVector(COLORS / 255.0)
    path = tmp_path / f"c.{kind[:3]}"
    assert open3d.io.write_point_cloud(path, cloud, write_ascii="ascii" in kind, compressed="compressed" in kind)
    points, colors = read_cloud(path)
    assert np.abs(points - POINTS).max() < 1e-5  # Open3D writes six digits
    if colored:
        assert colors is not None and np.abs(colors.astype(int) - COLORS).max() <= 1
    else:
        assert colors is None


PLY = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"


TEN_POINTS = ENCODERS["glb"](np.ones((10, 3), np.float32), np.ones((10, 3), np.uint8), "opv2v", "")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.xyz", b"1 2 3", "clouds are read from"),
        ("a.pcd", b"no cloud", "no PCD file"),
        ("a.ply", b"no cloud", "no PLY file"),
        ("a.ply", f"{PLY}1 2 3\n1 2\n".encode(), "does not hold the 2 points"),
        ("a.ply", f"{PLY}1 2 3\n1 2 a\n".encode(), "does not hold the 2 points"),
        ("a.ply", PLY.replace("ascii", "binary_little_endian").encode() + b"123", "does not hold the 2 points"),
        ("a.ply", PLY.replace("float z", "list uchar int z").encode(), "no PLY file of points"),
        ("a.ply", PLY.replace("vertex 2", "vertex -2").encode(), "no PLY file of points"),
        ("a.glb", b"glTF", "no cloud of"),
        ("a.glb", ENCODERS["glb"](POINTS, COLORS, "opv2v", "")[:-40], "no cloud of"),
        ("a.glb", TEN_POINTS.replace(b'"count":10', b'"count":-1'), "no cloud of"),
    ],
)
def test_damaged_files(name: str, data: bytes, words: str, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_cloud(tmp_path / name)
    with pytest.raises(InputError, match="No such file"):
        read_cloud(tmp_path / "gone.ply")
