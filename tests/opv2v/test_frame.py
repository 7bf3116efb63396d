"""A frame's YAML: optional and odd fields, what is wrong is named, and nothing in it is ever run or copied without end."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from mapanything.errors import InputError
from mapanything.geometry import carla
from mapanything.geometry.rigid import invert, transform
from mapanything.opv2v.frame import parse_frame, read_frame
from mapanything.opv2v.layout import scan
from mapanything.opv2v.pcd import read_pcd
from mapanything.opv2v.yaml_file import read_yaml

PATH = Path("000069.yaml")


@pytest.fixture
def data() -> dict:
    camera = {
        "cords": [1.0, 2.0, 3.0, 0.5, 90.0, -1.0],
        "extrinsic": np.eye(4).tolist(),
        "intrinsic": [[335.6, 0.0, 400.0], [0.0, 335.6, 300.0], [0.0, 0.0, 1.0]],
    }
    vehicle = {"angle": [0.0, 30.0, 1.0], "center": [0.1, 0.0, 0.7], "extent": [2.2, 1.0, 0.8], "location": [9, 8, 0.5]}
    return {f"camera{k}": copy.deepcopy(camera) for k in range(4)} | {
        "lidar_pose": [0.0, 1.0, 1.9, 0.0, 90.0, 0.2],
        "true_ego_pos": [0, 1, 0, 0, 90, 0],
        "ego_speed": 36,
        "plan_trajectory": [[1.0, 2.0, 30]],
        "vehicles": {650: vehicle | {"speed": 12.5}},
    }


def test_values(data):
    frame = parse_frame(data, PATH)
    assert len(frame.cameras) == 4 and frame.cameras[2].name == "camera2" and frame.cameras[0].image_size == (800, 600)
    assert frame.cameras[0].cv_intrinsics[0, 2] == 399.5
    assert frame.ego_speed_kmh == 36 and frame.plan_trajectory.shape == (1, 3) and not frame.is_rsu
    (vehicle,) = frame.vehicles
    assert vehicle.id == 650 and vehicle.speed_kmh == 12.5 and vehicle.half_size.tolist() == [1.0, 0.8, 2.2]
    # The box's centre: location + R(angle) center, in CARLA's world, then in OpenCV axes.
    rotation = carla.ue_matrix_from_pose([0, 0, 0, 0, 30, 1])[:3, :3]
    expected = carla.cv_points(np.array([9, 8, 0.5]) + rotation @ [0.1, 0, 0.7])
    assert np.allclose(vehicle.world_from_box[:3, 3], expected)
    # A point half a length ahead of the centre lies on the box's front, forward is z.
    ahead = carla.cv_points(np.array([9, 8, 0.5]) + rotation @ [0.1 + 2.2, 0, 0.7])
    assert np.allclose(transform(invert(vehicle.world_from_box), ahead[None]), [[0, 0, 2.2]])


def test_optional_and_odd_fields(data):
    for key in ("plan_trajectory", "true_ego_pos", "ego_speed"):
        del data[key]
    del data["camera3"]
    for k in range(3):
        del data[f"camera{k}"]["extrinsic"]
    data["vehicles"][650] |= {"bp_id": "vehicle.audi.tt", "color": "1,2,3"}
    del data["vehicles"][650]["speed"]
    data |= {"RSU": True, "something": {"new": 1}}
    frame = parse_frame(data, PATH)
    assert len(frame.cameras) == 3 and frame.cameras[0].extrinsic is None
    assert frame.plan_trajectory.shape == (0, 3) and frame.world_from_ego is None and math.isnan(frame.ego_speed_kmh)
    assert frame.is_rsu and math.isnan(frame.vehicles[0].speed_kmh)
    data |= {"plan_trajectory": [], "vehicles": None, "ego_speed": -0.249}
    assert parse_frame(data, PATH).vehicles == () and parse_frame(data, PATH).ego_speed_kmh == -0.249


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("lidar_pose",), None, "lidar_pose is missing"),
        (("lidar_pose",), [1, 2, 3], "lidar_pose should have shape 6"),
        (("lidar_pose",), [[1.0] * 4] * 4, "lidar_pose is a 4x4 matrix where x, y, z.*V2V4Real.*convert it"),
        (("lidar_pose",), [0, 0, 0, 0, 0, math.nan], "NaN"),
        (("lidar_pose",), [0, 0, 0, 0, 0, "east"], "'east'"),
        (("lidar_pose",), [0, 0, 0, 0, 0, True], "no number"),
        (("lidar_pose",), [0, 0, 0, 0, 0, 10**400], "no finite number"),
        (("camera1",), [1], "camera1 is no mapping"),
        (("camera1", "cords"), {}, r"camera1\.cords is no list"),
        (("camera1", "intrinsic"), [[0.0] * 3] * 3, "no pinhole"),
        (("camera1", "intrinsic"), [[1e-300, 0, 400.0], [0, 335.0, 300.0], [0, 0, 1]], "no pinhole"),
        (("lidar_pose",), [1e300, 0, 0, 0, 0, 0], "1e[+]300, which no measurement is"),
        (("vehicles", 650, "extent"), [-1e200, 1, 1], "which no measurement is"),
        *(
            (("camera1", "intrinsic"), [[9.0, 0.0, cx], [0.0, 9.0, 300.0], [0.0, 0.0, 1.0]], "no principal point")
            for cx in (-80.0, 0.0, 40000.0)  # would be the width of a depth map
        ),
        (("camera1", "extrinsic"), [[0.0] * 4] * 3, r"camera1\.extrinsic should have shape 4x4"),
        (("vehicles",), [], "vehicles is no mapping"),
        (("vehicles", "x"), {}, r"vehicles\.x is no vehicle"),
        (("vehicles", 650, "extent"), [1, 2], r"vehicles\.650\.extent"),
        (("plan_trajectory",), [[1, 2]], "plan_trajectory should have shape 1x3"),
        (("plan_trajectory",), "far", "plan_trajectory is no list"),
        (("ego_speed",), "fast", "ego_speed is no number"),
    ],
)
def test_what_is_wrong_is_named(data, place, value, message):
    *parents, last = place
    target = data
    for key in parents:
        target = target[key]
    target[last] = value
    with pytest.raises(InputError, match=message) as error:
        parse_frame(data, PATH)
    assert str(error.value).startswith("000069.yaml: ")


def test_yaml_numbers_without_a_point_are_numbers(tmp_path):
    (tmp_path / "f.yaml").write_text("a: 1e-6\nb: -3E+2\nc: 1.5e3\nd: 12\ne: 2021_08_16\nf: '1e-6'\n")
    values = read_yaml(tmp_path / "f.yaml")
    assert values["a"] == 1e-6 and values["b"] == -300 and values["c"] == 1500 and values["d"] == 12
    assert values["f"] == "1e-6"


def test_yaml_agrees_with_pyyaml_on_sample(sample_root):
    for path in sample_root.rglob("*.yaml"):
        ours, theirs = read_yaml(path), yaml.safe_load(path.read_text())
        assert ours == theirs and repr(ours) == repr(theirs)  # types too


@pytest.mark.real
def test_yaml_agrees_with_pyyaml_on_real_files(real_yaml_root):
    for path in sorted(real_yaml_root.rglob("*.yaml"))[::8]:
        assert repr(read_yaml(path)) == repr(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "just words",
        "- a\n- b",
        "a: [1, 2",
        "a: !!python/object/apply:os.system ['touch /tmp/pwned']",
        "a: !!python/name:os.system",
        "\tx: 1",
        "a: 1\n--- \nb: 2",
        "a: *nobody",
        "? [1, 2]\n: 3\n? {a: 1}\n: 4",
        "a: " + "9" * 5000,
        "\x00\x01",
    ],
)
def test_yaml_that_cannot_be_read(tmp_path, text):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"f\.yaml"):
        read_frame(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "{a: " * 100_000,
        "- " * 200_000,
        "a: &a [1]\nb: &b [*a, *a]\n"
        + "".join(f"c{i}: &c{i} [{', '.join([f'*c{i - 1}' if i else '*b'] * 9)}]\n" for i in range(30)),
        "a: &a {x: 1}\n"
        + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}' if i else '*a'] * 9)}]}}\n" for i in range(30)),
    ],
    ids=["brackets", "braces", "dashes", "aliases", "merges"],
)
def test_hostile_yaml_ends_quickly(tmp_path, text):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"f\.yaml"):
        read_frame(path)
    assert time.perf_counter() - start < 20


def test_yaml_too_large_or_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_yaml(tmp_path / "f.yaml")
    (tmp_path / "f.yaml").write_bytes(b"a: 1\n" * 2_000_000)
    with pytest.raises(InputError, match="over 8 MB"):
        read_yaml(tmp_path / "f.yaml")


def assert_vehicles_hold_points(root: Path) -> int:
    vehicles = 0
    for folder in scan(root):
        for name in folder.frames:
            frame = read_frame(folder.path / f"{name}.yaml")
            points = carla.cv_points(read_pcd(folder.path / f"{name}.pcd").points.astype(np.float64))
            for vehicle in frame.vehicles:
                inside = transform(invert(vehicle.world_from_box) @ frame.world_from_lidar, points)
                assert (np.abs(inside) <= vehicle.half_size).all(axis=1).any(), (folder.path, vehicle.id)
                vehicles += 1
    return vehicles


@pytest.mark.real
def test_every_listed_real_vehicle_holds_lidar_points(real_root):
    assert assert_vehicles_hold_points(real_root) == 21 + 22
