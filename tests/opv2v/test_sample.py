"""The generated data set: its files agree with each other, with the geometry they were made from, and the options."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mapanything.errors import InputError
from mapanything.geometry import carla
from mapanything.geometry.camera import project, rays, unproject
from mapanything.geometry.rigid import invert, transform
from mapanything.opv2v.depth import read_depth
from mapanything.opv2v.frame import Frame, read_frame
from mapanything.opv2v.layout import COMPLETE, DepthLayout, FrameKey, FramePaths, scan
from mapanything.opv2v.pcd import read_pcd
from mapanything.opv2v.png import _decode_sub_filtered, check_png, png_info, read_image
from mapanything.opv2v.sample.writer import (
    DEPTH,
    IMAGES,
    MARKER,
    TESTS_ONLY,
    SampleOptions,
    intrinsics,
    scenarios_of,
    street_of,
    write_sample,
)
from mapanything.opv2v.yaml_file import read_yaml
from mapanything.tools.make_sample import main

REPOSITORY = Path(__file__).parents[2]
FIXTURE = REPOSITORY / "tests" / "fixtures" / "sample_opv2v"
OPTIONS = SampleOptions(
    splits=("train",), scenarios=1, agents=3, frames=2, width=160, height=120, lidar_channels=16, lidar_points=6000
)
TINY = SampleOptions(
    splits=("train",), scenarios=1, agents=2, frames=2, width=32, height=24, lidar_channels=4, lidar_points=400
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sample")
    write_sample(output, OPTIONS)
    return output


def keys(output: Path) -> list[FrameKey]:
    return [folder.key(frame) for folder in scan(output / IMAGES) for frame in folder.frames]


def depth_of(output: Path, key: FrameKey, camera: int) -> np.ndarray:
    return read_depth(DepthLayout(output / DEPTH).path(key, camera))


def digests(output: Path) -> dict[str, str]:
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def test_tree_is_complete_and_named_as_opv2v(sample: Path) -> None:
    (scenario,) = scenarios_of(OPTIONS)
    folders = list(scan(sample / IMAGES))
    assert [folder.agent for folder in folders] == ["641", "650", "659"]
    first = scenario.first_frame
    for folder in folders:
        assert folder.frames == {f"{first:06d}": COMPLETE, f"{first + 2:06d}": COMPLETE}
        assert folder.others == []
    protocol = sample / IMAGES / "train" / scenario.name / "data_protocol.yaml"
    assert "&id001" in protocol.read_text("utf-8")
    assert len(read_yaml(protocol)["scenario"]["single_cav_list"]) == 3


def test_yaml_has_the_real_keys_types_and_style(sample: Path) -> None:
    for key in keys(sample):
        paths = FramePaths(sample / IMAGES, key)
        data = read_yaml(paths.yaml)
        assert list(data) == sorted(data)
        wanted = {"RSU", "camera0", "camera1", "camera2", "camera3", "ego_speed", "lidar_pose", "plan_trajectory"}
        assert set(data) == wanted | {"predicted_ego_pos", "true_ego_pos", "vehicles"}
        assert data["RSU"] is False
        poses = [
            data["lidar_pose"],
            data["true_ego_pos"],
            data["predicted_ego_pos"],
            *(data[f"camera{k}"]["cords"] for k in range(4)),
        ]
        for pose in poses:
            assert all(type(value) is float for value in pose)
            assert np.array_equal(np.float32(pose).astype(np.float64), pose)
        assert all(type(place[2]) is int for place in data["plan_trajectory"])
        assert int(key.agent) not in data["vehicles"]
        assert paths.yaml.read_text("ascii").startswith("RSU: false\ncamera0:\n  cords:\n  - ")


def test_default_intrinsics_are_opv2vs() -> None:
    assert intrinsics(800, 600).tolist() == [[335.639852470912, 0.0, 400.0], [0.0, 335.639852470912, 300.0], [0, 0, 1]]


def test_extrinsic_agrees_with_poses_and_rig(sample: Path) -> None:
    rig = np.array([[2.5, 0, 1.0], [0, 0.3, 1.8], [0, -0.3, 1.8], [-2.0, 0, 1.5]])
    for key in keys(sample):
        frame = read_frame(FramePaths(sample / IMAGES, key).yaml)
        for camera in frame.cameras:
            assert camera.extrinsic is not None
            np.testing.assert_allclose(carla.cv_from_ue(camera.extrinsic), camera.camera_from_lidar, atol=1e-9)
            in_ego = invert(frame.world_from_ego) @ camera.world_from_camera
            np.testing.assert_allclose(in_ego[:3, 3], carla.cv_points(rig[camera.index]), atol=1e-4)
            assert camera.image_size == (160, 120)


def test_vehicles_tilt_and_face_different_ways(sample: Path) -> None:
    poses = np.array([read_yaml(FramePaths(sample / IMAGES, key).yaml)["true_ego_pos"] for key in keys(sample)])
    assert (np.abs(poses[:, [3, 5]]) > 0.05).all()
    yaw = np.sort(np.unique(poses[:, 4].round(1)))
    assert len(yaw) >= 3
    assert np.diff(yaw).max() > 30


def test_agents_are_synchronous_and_move_as_fast_as_they_say(sample: Path) -> None:
    frames = sorted({key.frame for key in keys(sample)})
    seen: dict[tuple[str, int], list[float]] = {}
    for key in keys(sample):
        data = read_yaml(FramePaths(sample / IMAGES, key).yaml)
        for number, vehicle in data["vehicles"].items():
            place = seen.setdefault((key.frame, number), vehicle["location"])
            assert place == vehicle["location"]
    for agent in ("641", "650", "659"):
        now, after = (
            read_yaml(sample / IMAGES / "train" / scenarios_of(OPTIONS)[0].name / agent / f"{f}.yaml") for f in frames
        )
        way = np.linalg.norm(np.subtract(after["true_ego_pos"][:3], now["true_ego_pos"][:3]))
        assert way * 36.0 == pytest.approx(now["ego_speed"], abs=0.05)
    assert any(number in (641, 650, 659) for _, number in seen)


def points_in_boxes(frame: Frame, points: np.ndarray, boxes: list[tuple[np.ndarray, np.ndarray]], margin: float) -> list[int]:
    """The number of LiDAR points in each box (world_from_box, half sizes), grown by `margin` metres."""
    world = transform(frame.world_from_lidar, carla.cv_points(points.astype(np.float64)))
    counts = []
    for world_from_box, half in boxes:
        inside = np.abs(transform(invert(world_from_box), world)) <= half + margin
        counts.append(int(inside.all(axis=1).sum()))
    return counts


def test_exactly_the_listed_vehicles_hold_lidar_points(sample: Path) -> None:
    (scenario,) = scenarios_of(OPTIONS)
    street = street_of(OPTIONS.seed, scenario)
    for key in keys(sample):
        paths = FramePaths(sample / IMAGES, key)
        frame, cloud = read_frame(paths.yaml), read_pcd(paths.pcd)
        assert len(frame.vehicles) > 3
        listed = points_in_boxes(frame, cloud.points, [(v.world_from_box, v.half_size) for v in frame.vehicles], 0.1)
        assert min(listed) >= 1
        poses = street.poses((int(key.frame) - scenario.first_frame) // 2)
        numbers = {vehicle.id for vehicle in frame.vehicles} | {int(key.agent)}
        boxes = []
        for car in street.cars:
            if car.id not in numbers:
                matrix = carla.ue_matrix_from_pose(poses[car.id])
                matrix[:3, 3] += matrix[:3, :3] @ car.centre
                boxes.append((carla.cv_from_ue(matrix), carla.cv_sizes(car.half)))
        assert sum(points_in_boxes(frame, cloud.points, boxes, -0.12)) == 0


def test_cloud_is_like_a_real_one(sample: Path) -> None:
    for key in keys(sample):
        cloud = read_pcd(FramePaths(sample / IMAGES, key).pcd)
        distance = np.linalg.norm(cloud.points.astype(np.float64), axis=1)
        assert 0.6 * 6000 < len(cloud.points) < 0.9 * 6000
        assert distance.min() > 1.5
        assert distance.max() < 120
        elevation = np.rad2deg(np.arcsin(cloud.points[:, 2] / distance))
        assert elevation.min() == pytest.approx(-25, abs=0.01)
        assert elevation.max() < 2.01
        assert np.abs(cloud.intensity - np.exp(-0.004 * distance)).max() < 0.5 / 255 + 0.004 * 0.12
        assert (distance[:-1][np.diff(np.arctan2(cloud.points[:, 1], cloud.points[:, 0])) < -3] > 0).sum() in (14, 15)


def test_lidar_ground_points_lie_on_the_scenes_plane(sample: Path) -> None:
    street = street_of(OPTIONS.seed, scenarios_of(OPTIONS)[0])
    for key in keys(sample):
        paths = FramePaths(sample / IMAGES, key)
        frame, cloud = read_frame(paths.yaml), read_pcd(paths.pcd)
        world = carla.ue_points(transform(frame.world_from_lidar, carla.cv_points(cloud.points.astype(np.float64))))
        height = (world - street.world_from_street[:3, 3]) @ street.world_from_street[:3, 2]
        on_ground = np.abs(height) < 0.05
        assert on_ground.mean() > 0.4
        assert abs(height[on_ground].mean()) < 1e-3
        assert height[on_ground].std() < 0.015


def test_depth_agrees_with_the_cloud(sample: Path) -> None:
    for key in keys(sample):
        paths = FramePaths(sample / IMAGES, key)
        frame, points = read_frame(paths.yaml), carla.cv_points(read_pcd(paths.pcd).points.astype(np.float64))
        for camera in frame.cameras:
            inverse = 1.0 / np.maximum(depth_of(sample, key, camera.index).astype(np.float64), 1e-3)
            uv, z = project(transform(camera.camera_from_lidar, points), camera.cv_intrinsics)
            inside = (z > 0) & (uv >= 0).all(axis=1) & (uv < (159, 119)).all(axis=1)
            low = np.floor(uv[inside]).astype(int)
            part, (u, v) = uv[inside] - low, low.T
            # 1/z is linear across a plane's image, so between pixel centres it can be interpolated exactly.
            top = inverse[v, u] * (1 - part[:, 0]) + inverse[v, u + 1] * part[:, 0]
            bottom = inverse[v + 1, u] * (1 - part[:, 0]) + inverse[v + 1, u + 1] * part[:, 0]
            error = np.abs(1.0 / (top * (1 - part[:, 1]) + bottom * part[:, 1]) - z[inside])
            assert len(error) > 300
            assert np.median(error) < 0.025


def reference_depth(ray_origin: np.ndarray, ray: np.ndarray, solids: list[list[tuple[float, ...]]]) -> float:
    """Distance along the ray to the first solid: enter all half spaces, leave none; infinity where nothing is."""
    ox, oy, oz = (float(v) for v in ray_origin)
    dx, dy, dz = (float(v) for v in ray)
    best = float("inf")
    for planes in solids:
        enter, leave = float("-inf"), float("inf")
        for nx, ny, nz, h in planes:
            gap = h - (nx * ox + ny * oy + nz * oz)
            speed = nx * dx + ny * dy + nz * dz
            if speed < 0:
                enter = max(enter, gap / speed)
            elif speed > 0:
                leave = min(leave, gap / speed)
            elif gap < 0:
                leave = float("-inf")
        if 0 < enter < leave and enter < best:
            best = enter
    return best


def test_depth_agrees_with_a_slow_ray_caster(sample: Path) -> None:
    street, (scenario,) = street_of(OPTIONS.seed, scenarios_of(OPTIONS)[0]), scenarios_of(OPTIONS)
    rng = np.random.default_rng(0)
    checked = 0
    for key in keys(sample)[::2]:
        frame = read_frame(FramePaths(sample / IMAGES, key).yaml)
        world = street.solids((int(key.frame) - scenario.first_frame) // 2).without(int(key.agent))
        planes = np.split(world.planes, np.cumsum(world.sizes)[:-1])
        solids = [[tuple(plane) for plane in one.tolist()] for one in planes]
        for camera in frame.cameras:
            depth = depth_of(sample, key, camera.index)
            directions = rays(camera.cv_intrinsics, *depth.shape)
            for row, column in zip(rng.integers(0, 120, 20), rng.integers(0, 160, 20)):
                ray = carla.ue_points(camera.world_from_camera[:3, :3] @ directions[row, column])
                truth = reference_depth(carla.ue_points(camera.world_from_camera[:3, 3]), ray, solids)
                expected = truth if truth < 1000 else 0.0
                assert depth[row, column] == pytest.approx(expected, rel=1e-6, abs=1e-4)
                checked += 1
    assert checked == 240


def test_views_of_different_agents_show_the_same_world(sample: Path) -> None:
    """A camera's pixels, moved by depth and poses into another agent's camera, meet the same depth and colour there."""
    views = []
    frame_name = keys(sample)[0].frame
    for key in [key for key in keys(sample) if key.frame == frame_name]:
        paths = FramePaths(sample / IMAGES, key)
        for camera in read_frame(paths.yaml).cameras:
            image = read_image(paths.image(camera.index)).astype(np.float64)
            views.append((key.agent, camera, image, depth_of(sample, key, camera.index).astype(np.float64)))
    errors, depths = [], []
    for agent, camera, image, depth in views:
        points = unproject(depth, camera.cv_intrinsics)[depth > 0]
        colours = image[depth > 0]
        for other_agent, other, other_image, other_depth in views:
            if other_agent == agent:
                continue
            there = transform(invert(other.world_from_camera) @ camera.world_from_camera, points)
            uv, z = project(there, other.cv_intrinsics)
            u, v = np.floor(uv + 0.5).T
            inside = (z > 0.5) & (z < 40) & (u >= 1) & (v >= 1) & (u < 159) & (v < 119)
            column, row = u[inside].astype(int), v[inside].astype(int)
            met = other_depth[row, column]
            same = np.abs(met - z[inside]) < 0.01 * z[inside]
            depths.append(np.abs(met - z[inside])[same] / met[same])
            errors.append(np.abs(other_image[row, column] - colours[inside])[same].mean(axis=1))
    error = np.concatenate(errors)
    assert len(error) > 2000
    assert np.median(np.concatenate(depths)) < 0.005
    assert np.median(error) < 12


def test_images_are_sub_filtered_and_rich(sample: Path) -> None:
    for key in keys(sample):
        for k in range(4):
            path = FramePaths(sample / IMAGES, key).image(k)
            data = path.read_bytes()
            check_png(data, path)
            fast = _decode_sub_filtered(data, png_info(data, path))
            assert fast is not None
            assert fast.std() > 15
            np.testing.assert_array_equal(fast, read_image(path))


def test_same_options_same_bytes_whatever_the_jobs(tmp_path: Path) -> None:
    write_sample(tmp_path / "a", TINY)
    write_sample(tmp_path / "b", TINY, jobs=2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    street_of.cache_clear()
    other = SampleOptions(**{**json.loads((tmp_path / "a" / MARKER).read_text())["options"], "splits": ("train",), "seed": 5})
    write_sample(tmp_path / "c", other)
    same = set(digests(tmp_path / "a").items()) & set(digests(tmp_path / "c").items())
    assert {name for name, _ in same} == {f"{DEPTH}/depth.json"}  # says how, which no option changes


def test_ctrl_c_is_one_line(tmp_path: Path) -> None:
    """A terminal sends it to the workers too, while they are still starting."""
    options = ["--output", tmp_path / "s", "--image-size", "64x48", "--lidar-points", "400", "--frames", "100", "--jobs", "2"]
    command = [sys.executable, "-m", "mapanything.tools.make_sample", *map(str, options)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True)
    protocol = "opv2v_images/test/*/data_protocol.yaml"  # of the last split, right before the workers start
    while process.poll() is None and len(list((tmp_path / "s").glob(protocol))) < 2:
        time.sleep(0.02)
    time.sleep(0.15)  # in the middle of the workers' imports
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors and errors.endswith("interrupted\n")


def test_overwrite_replaces_only_what_was_generated(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_sample(output, TINY)
    name = scenarios_of(TINY)[0].name
    foreign = output / IMAGES / "train" / name / "641" / "notes.txt"
    foreign.write_text("mine")
    stranger = output / IMAGES / "train" / "2021_08_16_22_26_54" / "641" / "000069.yaml"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("recorded: true")
    with pytest.raises(InputError, match="--overwrite"):
        write_sample(output, TINY)
    fewer = SampleOptions(splits=("validate",), scenarios=1, agents=2, frames=1, width=32, height=24, lidar_points=400)
    write_sample(output, fewer, overwrite=True)
    assert foreign.read_text() == "mine"
    assert stranger.read_text() == "recorded: true"
    assert not list((output / IMAGES / "train" / name).rglob("*.png"))
    assert json.loads((output / MARKER).read_text())["finished"] is True


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    for bad in (tmp_path, tmp_path / "file.txt"):
        with pytest.raises(InputError):
            write_sample(bad, TINY, overwrite=True)
    assert (tmp_path / "file.txt").read_text() == "mine"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / MARKER).write_text('{"scenarios": {"..": ["x"]}}')
    with pytest.raises(InputError, match="damaged"):
        write_sample(damaged, TINY, overwrite=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--agents", "1"],
        ["--agents", "8"],
        ["--frames", "0"],
        ["--scenarios", "-1"],
        ["--scenarios", "0"],
        ["--scenarios", "many"],
        ["--scenarios", "1,2"],
        ["--seed", "-1"],
        ["--splits", "training"],
        ["--splits", "train,train"],
        ["--splits", ""],
        ["--image-size", "800"],
        ["--image-size", "2x2"],
        ["--image-size", "0x600"],
        ["--lidar-points", "3"],
        ["--lidar-channels", "0"],
    ],
)
def test_bad_options_are_one_clear_line(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(InputError):
        main(["--output", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_number_of_scenarios_of_each_split(tmp_path: Path) -> None:
    small = ["--agents", "2", "--frames", "1", "--image-size", "32x24", "--lidar-channels", "4", "--lidar-points", "400"]
    main(["--output", str(tmp_path), "--splits", "train,test", "--scenarios", "2,1", *small])
    root = tmp_path / "opv2v_images"
    assert {split: len(list((root / split).iterdir())) for split in ("train", "test")} == {"train": 2, "test": 1}


def test_fixture_is_what_its_readme_says(tmp_path: Path) -> None:
    """Names and decoded values, not bytes: another processor's sine may differ in its last bit."""
    marker = json.loads((FIXTURE / MARKER).read_text("utf-8"))
    options = SampleOptions(**{**marker["options"], "splits": tuple(marker["options"]["splits"])})
    write_sample(tmp_path / "again", options)
    ours = {str(path.relative_to(FIXTURE)) for path in FIXTURE.rglob("*") if path.is_file()} - {"README.md"}
    again = {str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert ours == again
    assert sum((FIXTURE / name).stat().st_size for name in ours) < 1_000_000
    assert all((root / TESTS_ONLY).is_file() for root in (FIXTURE, FIXTURE / IMAGES, FIXTURE / DEPTH))
    for name in sorted(ours):
        kept, made = FIXTURE / name, tmp_path / "again" / name
        if name.endswith(".png"):
            difference = np.abs(read_image(kept).astype(int) - read_image(made))
            assert (difference > 1).mean() < 0.001, name
        elif name.endswith(".npy"):
            assert (np.abs(read_depth(kept) - read_depth(made)) > 1e-3).mean() < 0.001, name
        elif name.endswith(".pcd"):
            kept_points, made_points = read_pcd(kept).points, read_pcd(made).points
            assert abs(len(kept_points) - len(made_points)) <= 2, name
            if len(kept_points) == len(made_points):
                assert (np.abs(kept_points - made_points) > 1e-3).mean() < 0.01, name
        elif name.endswith(".yaml") and "protocol" not in name:
            kept_frame, made_frame = read_frame(kept), read_frame(made)
            np.testing.assert_allclose(kept_frame.lidar_pose, made_frame.lidar_pose, atol=1e-4)
            assert [v.id for v in kept_frame.vehicles] == [v.id for v in made_frame.vehicles]
