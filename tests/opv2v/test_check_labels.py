"""check-data on what depth maps are: plain LiDAR maps, roots of two kinds, and labels behind annotated vehicles."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from mapanything.opv2v import depth_root
from mapanything.opv2v.check.hidden import Labels, count_hidden, other_vehicles
from mapanything.opv2v.check.report import console_lines, write_report
from mapanything.opv2v.check.run import CheckOptions, run_checks
from mapanything.opv2v.depth import MAX_DEPTH, lidar_depth
from mapanything.opv2v.depth_root import DepthRoot
from mapanything.opv2v.frame import Camera, Vehicle, read_frame
from mapanything.opv2v.layout import FramePaths, scan
from mapanything.opv2v.pcd import read_pcd
from tests.helpers.plain_maps import lidar_root


def camera() -> Camera:
    """90 degrees wide, 200 x 100 pixels, at the world's origin."""
    intrinsics = np.array([[100.0, 0, 100], [0, 100, 50], [0, 0, 1]])
    return Camera(0, np.zeros(6), intrinsics, None, np.eye(4), np.eye(4))


def car(x: float = 0, z: float = 10, key: int = 7) -> Vehicle:
    """2 x 1.6 x 4 m, its middle `z` ahead of the camera and `x` to the right."""
    pose = np.eye(4)
    pose[:3, 3] = x, 0, z
    return Vehicle(key, pose, np.array([1.0, 0.8, 2.0]), 0.0)


def one_label(row: int, column: int, z: float) -> np.ndarray:
    depth = np.zeros((100, 200), np.float32)
    depth[row, column] = z
    return depth


@pytest.mark.parametrize(
    ("row", "column", "z", "hidden"),
    [
        (50, 100, 20, True),  # the middle, far behind
        (50, 100, 12.4, False),  # less than half a metre behind the box
        (50, 100, 12.6, True),
        (50, 100, 8, False),  # the car itself
        (50, 100, 5, False),
        (46, 100, 20, False),  # over the bonnet: in the box, above its core
        (50, 111, 20, False),  # in the box, beside its core
        (50, 20, 20, False),
        (59, 100, 20, False),  # under it
        (50, 100, MAX_DEPTH, False),  # sky is no label
    ],
)
def test_a_label_behind_the_core_of_a_vehicle_is_hidden(row, column, z, hidden):
    found = count_hidden(one_label(row, column, z), camera(), [car(), car(x=30)], "a map")
    assert (found.hidden, found.count) == (int(hidden), int(z < MAX_DEPTH))
    assert not count_hidden(one_label(row, column, z), camera(), [car(z=-10)], "a map").hidden, "behind the camera"


def test_of_very_many_labels_some_are_looked_at():
    depth = np.full((100, 200), 20, np.float32)
    few = count_hidden(depth, camera(), [car()], "a map")
    every = sum(count_hidden(one_label(v, u, 20), camera(), [car()], "").hidden for v in range(40, 60) for u in range(80, 120))
    assert few.count == 20_000 and few.hidden == every > 50
    large = np.full((300, 600), 20, np.float32)
    wide = Camera(0, np.zeros(6), np.array([[300.0, 0, 300], [0, 300, 150], [0, 0, 1]]), None, np.eye(4), np.eye(4))
    assert count_hidden(large, wide, [car()], "").hidden / 20_000 == pytest.approx(every / 20_000, rel=0.1)


def test_counts_are_added_and_the_worst_map_is_named():
    total = Labels()
    for labels in (Labels(100, 5, 0.05, "a"), Labels(10, 2, 0.2, "b"), Labels(50, 0, 0.0, "c")):
        total.add(labels)
    assert total == Labels(160, 7, 0.2, "b")


def test_plain_lidar_maps_are_named_with_the_command_that_mends_them(sample_root, tmp_path):
    layout = lidar_root(sample_root, tmp_path / "maps of mine")
    report = run_checks(CheckOptions(sample_root, layout, level="quick", progress=False))
    (problem,) = report.problems
    assert problem.kind == "plain-depth" and problem.severity == "warning" and not report.is_bad
    command = problem.message.split("`")[1]
    roots = ["--root", str(sample_root), "--depth-root", str(layout.root)]
    assert shlex.split(command) == ["./invoke", "make-depth", *roots, "--overwrite"]
    assert "depth: plain LiDAR maps, made without visibility" in list(console_lines(report))
    depth_root.write(layout.root, DepthRoot("lidar", "visible"))
    assert not run_checks(CheckOptions(sample_root, layout, level="quick", progress=False)).problems


@pytest.mark.parametrize(
    ("record", "text"),
    [("{", "does not say what the maps are"), (json.dumps(DepthRoot("rendered", "x").to_dict()), "the maps are a LiDAR's")],
)
def test_a_root_that_is_not_what_it_says_is_a_problem(sample_root, tmp_path, record, text):
    layout = lidar_root(sample_root, tmp_path / "maps")
    (layout.root / "depth.json").write_text(record)
    report = run_checks(CheckOptions(sample_root, layout, level="quick", progress=False))
    (problem,) = report.problems
    assert problem.kind == "depth-kind" and problem.file == "depth.json" and text in problem.message and report.is_bad


def test_deep_says_how_many_labels_vehicles_hide(sample_root, tmp_path):
    layout = lidar_root(sample_root, tmp_path / "maps")
    reports = [run_checks(CheckOptions(sample_root, layout, level="deep", progress=False, jobs=jobs)) for jobs in (1, 2)]
    assert reports[0].labels == reports[1].labels and reports[0].labels.count > 1000
    assert any(line.startswith("depth labels behind annotated vehicles: ") for line in console_lines(reports[0]))
    write_report(reports[0], tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["depth"]["source"] == "lidar" and content["depth_labels"]["count"] == reports[0].labels.count


@pytest.mark.real
def test_real_labels_are_judged_as_the_independent_script_does(real_root):
    """72,191 labels of two agent-frames' plain maps, 2,197 of them surely wrong, 31.9 % of one map: NumPy and PyYAML alone."""
    keys = [folder.key(name) for folder in scan(real_root) for name in folder.frames]
    frames = {key: read_frame(FramePaths(real_root, key).yaml) for key in keys}
    total = Labels()
    for key, frame in frames.items():
        points = read_pcd(FramePaths(real_root, key).pcd).points
        for one in frame.cameras:
            depth = lidar_depth(points, one, *one.image_size)
            total.add(count_hidden(depth, one, other_vehicles(frames, key), f"{key.agent} {one.name}"))
    assert (total.count, total.hidden) == (72_191, 2_197)
    assert total.worst_map == "4288 camera0" and total.worst_share == pytest.approx(0.319, abs=5e-4)
