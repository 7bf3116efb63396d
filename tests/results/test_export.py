"""Files that other tools open, where they say they are: held against Open3D's readers and against the LiDAR itself."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mapanything.arrays import PNG_SCALE
from mapanything.errors import InputError
from mapanything.geometry import carla
from mapanything.geometry.rigid import invert, transform
from mapanything.inference.predict import reconstruct
from mapanything.inference.select import SceneSample, find_scenes, frame_key, load_scene
from mapanything.opv2v.depth import lidar_depth, read_depth, write_depth_npy
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import DepthLayout, FramePaths
from mapanything.opv2v.pcd import decode_pcd, read_pcd
from mapanything.results.clouds import encode_glb, encode_pcd, encode_ply
from mapanything.results.export import placed_cloud, write_scene
from mapanything.results.reconstruction import Reconstruction
from mapanything.results.record import SceneKey, Settings, is_done, scene_folder
from tests.helpers.perfect import perfect_prediction

SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample_opv2v"
IMAGES, DEPTH = SAMPLE / "opv2v_images", SAMPLE / "opv2v_depth"
SETTINGS = Settings("coop", ("images",), (84, 42), "opv2v", ("pcd", "ply", "glb"), {"model": "none"}, {"commit": None})


def random_cloud(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return (rng.normal(size=(n, 3)) * 40).astype(np.float32), rng.integers(0, 256, (n, 3), dtype=np.uint8)


def read_glb(data: bytes) -> tuple[dict, np.ndarray, np.ndarray]:
    """JSON, positions and colours (as stored, 16-bit linear) of a file with one primitive, by the specification's words."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    content = json.loads(data[20 : 20 + size])
    if 20 + size == len(data):
        return content, np.empty((0, 3), np.float32), np.empty((0, 4), np.uint16)
    binary_size, kind = struct.unpack_from("<I4s", data, 20 + size)
    binary = data[28 + size :]
    assert kind == b"BIN\0" and binary_size == len(binary) and binary_size % 4 == 0
    arrays = []
    for accessor, dtype, width in zip(content["accessors"], ("<f4", "<u2"), (3, 4), strict=True):
        view = content["bufferViews"][accessor["bufferView"]]
        part = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        arrays.append(np.frombuffer(part, dtype).reshape(accessor["count"], width))
    return content, arrays[0], arrays[1]


# Clouds


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_clouds_come_back_as_they_were(n: int, tmp_path: Path):
    import open3d as o3d

    points, colours = random_cloud(n)
    for name, encode in (("c.pcd", encode_pcd), ("c.ply", encode_ply)):
        (tmp_path / name).write_bytes(encode(points, colours, "opv2v", "inputs: images\nelement 数据"))
        read = o3d.io.read_point_cloud(tmp_path / name)
        assert np.array_equal(np.asarray(read.points).astype(np.float32).reshape(-1, 3), points)
        assert np.array_equal(np.rint(np.asarray(read.colors) * 255).astype(np.uint8).reshape(-1, 3), colours)
        if n:
            tensor = o3d.t.io.read_point_cloud(tmp_path / name)
            assert np.array_equal(tensor.point.positions.numpy(), points)
            assert np.array_equal(tensor.point.colors.numpy(), colours)
    content, positions, stored = read_glb(encode_glb(points, colours))
    assert np.array_equal(positions, points) and ("mesh" in content["nodes"][0]) == (n > 0)
    if n:
        accessor = content["accessors"][0]
        assert np.array_equal(np.float32(accessor["min"]), points.min(0))
        assert np.array_equal(np.float32(accessor["max"]), points.max(0))
        light = stored[:, :3] / 65535  # back to sRGB, as a viewer does
        srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        assert np.array_equal(np.rint(srgb * 255).astype(np.uint8), colours)


def test_pcd_is_read_as_opv2vs_own():
    points, colours = random_cloud(100)
    read = decode_pcd(encode_pcd(points, colours), Path("x"))
    assert np.array_equal(read.points, points)
    assert read.intensity is not None
    assert np.array_equal(np.rint(read.intensity * 255), colours[:, 0])  # where OPV2V keeps the intensity


@pytest.mark.parametrize(
    ("axes", "forward", "right", "up"),
    [("opv2v", [1, 0, 0], [0, 1, 0], [0, 0, 1]), ("opencv", [0, 0, 1], [1, 0, 0], [0, -1, 0])],
)
def test_a_viewer_shows_glb_upright_and_not_mirrored(axes, forward, right, up):
    """glTF looks along -z, x is to the right, y up."""
    points = np.array([forward, right, up], dtype=np.float32)
    content, positions, _ = read_glb(encode_glb(points, np.zeros((3, 3), np.uint8), axes))
    matrix = np.array(content["nodes"][0]["matrix"]).reshape(4, 4).T
    assert np.array_equal(transform(matrix, positions), [[0, 0, -1], [1, 0, 0], [0, 1, 0]])


# A scene's folder


@pytest.fixture(scope="module")
def scene() -> SceneSample:
    key = find_scenes(IMAGES, mode="coop")[0]
    return load_scene(IMAGES, DepthLayout(DEPTH), key, (84, 42))


@pytest.fixture(scope="module")
def made(scene: SceneSample) -> Reconstruction:
    return reconstruct(perfect_prediction(scene.views))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_files_of_a_scene(scene: SceneSample, made: Reconstruction, tmp_path: Path):
    folder = scene_folder(tmp_path, scene.key)
    write_scene(folder, scene.key, made, scene.lidar_from_view0, SETTINGS)
    record, poses = (json.loads((folder / name).read_text()) for name in ("scene.json", "poses.json"))
    assert record["inputs"] == poses["inputs"] == ["images"]
    assert set(record["files"]) | {"scene.json"} == set(files(folder))
    for name in ("cloud.pcd", "cloud.ply", "cloud.glb"):
        assert b"inputs: images" in (folder / name).read_bytes()[:2000]
    points = read_pcd(folder / "cloud.pcd").points
    assert record["num_points"] == len(points) == made.mask.sum()
    assert np.array_equal(read_glb((folder / "cloud.glb").read_bytes())[1], points)
    rebuilt = []
    for view, sample in zip(poses["views"], scene.views, strict=True):
        assert (view["agent"], f"camera{view['camera']}") == (sample["agent"], sample["camera"])
        depth, mask = (np.load(folder / view["name"] / name) for name in ("depth.npy", "mask.npy"))
        assert depth.dtype == np.float32 and mask.dtype == bool and depth.shape == mask.shape == (42, 84)
        assert np.array_equal(mask, sample["valid_mask"].numpy())
        assert np.array_equal(depth, sample["pts3d_cam"][..., 2].numpy())
        conf = np.load(folder / view["name"] / "conf.npy")
        assert conf.dtype == np.float32 and conf.shape == depth.shape
        picture = read_depth(folder / view["name"] / "depth.png")
        near = mask & (np.rint(depth.astype(np.float64) * PNG_SCALE) <= 65535)
        assert np.array_equal(picture > 0, near) and np.abs(picture - depth)[near].max() <= 0.5 / PNG_SCALE + 1e-6
        # The placed_cloud from the single files, as a reader would make it.
        v, u = np.nonzero(mask)
        k, z = np.array(view["intrinsics"]), depth[mask].astype(np.float64)
        rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(z)], -1)
        to_cloud = np.array(poses["cloud_from_lidar"]) @ np.array(view["lidar_from_camera"])
        rebuilt.append(transform(to_cloud, rays * z[:, None]))
    assert np.abs(np.concatenate(rebuilt) - points).max() < 1e-3


def test_opencv_axes_are_the_same_points(scene: SceneSample, made: Reconstruction):
    ue, colours = placed_cloud(made, scene.lidar_from_view0, "opv2v")
    cv, _ = placed_cloud(made, scene.lidar_from_view0, "opencv")
    assert np.allclose(carla.cv_points(ue), cv, atol=1e-4) and len(colours) == len(ue)


def test_a_finished_scene_is_known_and_another_is_refused(scene: SceneSample, made: Reconstruction, tmp_path: Path):
    folder, key = scene_folder(tmp_path, scene.key), scene.key
    assert not is_done(folder, SETTINGS.record(key))
    write_scene(folder, key, made, scene.lidar_from_view0, SETTINGS)
    assert is_done(folder, SETTINGS.record(key))
    assert is_done(folder, replace(SETTINGS, provenance={"commit": "another"}).record(key))
    for other, message in (
        (replace(SETTINGS, inputs=("images", "poses")), "inputs"),
        (replace(SETTINGS, made_with={"model": "mapanything"}), "model: none, now mapanything"),
        (replace(SETTINGS, mode="single"), "mode: coop, now single"),
    ):
        with pytest.raises(InputError, match=message) as error:
            is_done(folder, other.record(key))
        assert "--overwrite" in str(error.value)
    (folder / "641_camera0" / "conf.npy").write_bytes(b"short")
    assert not is_done(folder, SETTINGS.record(key))
    (folder / "641_camera0" / "conf.npy").unlink()
    assert not is_done(folder, SETTINGS.record(key))
    (folder / "scene.json").write_text("{")
    assert not is_done(folder, SETTINGS.record(key))


def test_writing_anew_gives_the_same_bytes_and_leaves_nothing_over(scene: SceneSample, made: Reconstruction, tmp_path: Path):
    a, b = scene_folder(tmp_path / "a", scene.key), scene_folder(tmp_path / "b", scene.key)
    write_scene(a, scene.key, made, scene.lidar_from_view0, SETTINGS)
    write_scene(b, scene.key, made, scene.lidar_from_view0, SETTINGS)
    assert files(a) == files(b)
    (a / "641_camera0" / ".tmp-killed").write_bytes(b"half")
    write_scene(a, scene.key, made, scene.lidar_from_view0, replace(SETTINGS, clouds=("ply",)))
    assert not (a / "cloud.glb").exists() and not (a / "641_camera0" / ".tmp-killed").exists()
    write_scene(a, scene.key, made, scene.lidar_from_view0, SETTINGS)
    assert files(a) == files(b)


@pytest.mark.faults
def test_a_disk_that_fills_up_leaves_no_finished_scene(scene: SceneSample, made: Reconstruction, tmp_path: Path, monkeypatch):
    from mapanything import files as package_files

    folder = scene_folder(tmp_path, scene.key)
    write_scene(folder, scene.key, made, scene.lidar_from_view0, SETTINGS)
    calls = []

    def full(_: int) -> None:
        calls.append(1)
        if len(calls) > 7:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(package_files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left") as error:
        write_scene(folder, scene.key, made, scene.lidar_from_view0, SETTINGS)
    assert "\n" not in str(error.value)
    assert not (folder / "scene.json").exists() and not list(folder.rglob(".tmp-*"))


# The placed_cloud lies on the LiDAR's


def lidar_scene(root: Path, depth_root: Path, key: SceneKey, resolution: tuple[int, int]) -> tuple[SceneSample, np.ndarray]:
    """A scene whose depth comes from its own clouds, and these clouds in the main agent's frame, Unreal axes as stored."""
    layout = DepthLayout(depth_root)
    frames = {agent: read_frame(FramePaths(root, frame_key(key, agent)).yaml) for agent in key.agents}
    lidar_from_world = invert(frames[key.main_agent].world_from_lidar)
    clouds = []
    for agent, frame in frames.items():
        points = read_pcd(FramePaths(root, frame_key(key, agent)).pcd).points
        moved = carla.ue_from_cv(lidar_from_world @ frame.world_from_lidar)
        clouds.append(transform(moved, points.astype(np.float64)))
        for camera in frame.cameras:
            depth = lidar_depth(points, camera, *camera.image_size)
            write_depth_npy(layout.path(frame_key(key, agent), camera.index), depth)
    assert np.allclose(clouds[0], read_pcd(FramePaths(root, frame_key(key, key.main_agent)).pcd).points, atol=1e-4)
    return load_scene(root, layout, key, resolution), np.concatenate(clouds)


def distances(points: np.ndarray, lidar: np.ndarray) -> np.ndarray:
    """(N,) from each point to the nearest of the LiDAR's."""
    import open3d as o3d

    a, b = (o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.ascontiguousarray(p, np.float64))) for p in (points, lidar))
    return np.asarray(a.compute_point_cloud_distance(b))


def check_on_lidar(root: Path, tmp_path: Path, mode: str, resolution: tuple[int, int]) -> None:
    import open3d as o3d

    for key in find_scenes(root, mode=mode)[:2]:
        scene, lidar = lidar_scene(root, tmp_path / "depth", key, resolution)
        made = reconstruct(perfect_prediction(scene.views))
        folder = scene_folder(tmp_path / "out", key)
        write_scene(folder, key, made, scene.lidar_from_view0, replace(SETTINGS, resolution=resolution))
        points = np.asarray(o3d.io.read_point_cloud(folder / "cloud.pcd").points)
        assert len(points) > 300  # those that a camera sees
        focal = min(view["camera_intrinsics"][0, 0].item() for view in scene.views)
        z = np.concatenate([view["pts3d_cam"][..., 2][view["valid_mask"]].numpy() for view in scene.views])
        # A depth sits in the middle of its pixel, a point anywhere in it; shrinking adds half a source pixel at most.
        allowed = 1.5 * z / focal + 0.01
        distance = distances(points, lidar)
        assert (distance <= allowed).all(), f"{(distance > allowed).mean():.1%} of {key} off by up to {distance.max():.2f} m"
        for wrong in (points * [1, -1, 1], carla.cv_points(points)):  # mirrored; OpenCV axes
            assert (distances(wrong, lidar) > allowed).mean() > 0.2


@pytest.mark.parametrize("mode", ["single", "coop"])
def test_ground_truth_lies_on_the_lidar_cloud_as_stored(mode: str, tmp_path: Path):
    check_on_lidar(IMAGES, tmp_path, mode, (84, 42))


@pytest.mark.real
@pytest.mark.parametrize(("mode", "resolution"), [("single", (518, 392)), ("coop", (448, 252))])
def test_real_ground_truth_lies_on_the_lidar_cloud_as_stored(mode, resolution, real_root: Path, tmp_path: Path):
    check_on_lidar(real_root, tmp_path, mode, resolution)
