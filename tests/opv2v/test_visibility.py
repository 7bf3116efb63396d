"""Returns that a camera sees: scenes of boxes on a plane, whose truth a slow ray caster knows, and generated streets."""

from __future__ import annotations

import numpy as np
import pytest

from mapanything.geometry import carla
from mapanything.opv2v.depth import lidar_depth, read_depth
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.pcd import read_pcd
from mapanything.opv2v.sample.sensors import CAMERAS, LIDAR
from mapanything.opv2v.sample.writer import SampleOptions, write_sample
from mapanything.opv2v.visibility import hidden_labels, sweep_surface, visible_depth, visible_returns

WIDTH, HEIGHT = 400, 300
K = np.array([[167.82, 0, 199.5], [0, 167.82, 149.5], [0, 0, 1]])
GROUND = -1.9  # below the LiDAR


def cast(origin, directions, boxes, ground=True):
    """Range (N,) along unit directions (N, 3) from the origin to boxes [(low, high)] and the ground, inf where none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest = np.where(directions[:, 2] < 0, (GROUND - origin[2]) / directions[:, 2], np.inf)
        if not ground:
            nearest = np.full(len(directions), np.inf)
        for low, high in boxes:
            a, b = (np.array(low) - origin) / directions, (np.array(high) - origin) / directions
            entry, leave = np.minimum(a, b).max(1), np.maximum(a, b).min(1)
            nearest = np.where((entry < leave) & (entry > 0), np.minimum(nearest, entry), nearest)
    return nearest


def towards(elevation, azimuth):
    """Unit directions (N, 3)."""
    e, a = elevation.ravel(), azimuth.ravel()
    return np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], 1)


def sweep(boxes, lines=32, columns=1500, ground=True, rng=None):
    """The returns (N, 3) of a LiDAR at the origin: OPV2V's field of view, 120 m; with `rng` noise and missing returns."""
    elevation, azimuth = np.meshgrid(
        np.radians(np.linspace(2, -25, lines)), np.linspace(-np.pi, np.pi, columns, endpoint=False)
    )
    e, a = elevation.ravel(), azimuth.ravel()
    directions = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], 1)
    distance = cast(np.zeros(3), directions, boxes, ground)
    back = distance < 120
    if rng is not None:
        back &= rng.random(len(back)) < 0.81
        distance = distance + rng.normal(0, 0.02, len(distance))
    return (directions[back] * distance[back, None]).astype(np.float32)


def camera_pose(number=0):
    """camera_from_points (4, 4) of the rig's camera."""
    world = [carla.ue_matrix_from_pose(pose) for pose in (CAMERAS[number], LIDAR)]
    return carla.CV_FROM_UE @ np.linalg.inv(world[0]) @ world[1]


def truth(boxes, pose, ground=True):
    """The z-depth (H, W) that the camera sees, inf for sky."""
    points_from_camera = np.linalg.inv(pose)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(u.shape)], -1).reshape(-1, 3)
    length = np.linalg.norm(rays, axis=1)
    directions = rays / length[:, None] @ points_from_camera[:3, :3].T
    return (cast(points_from_camera[:3, 3], directions, boxes, ground) / length).reshape(HEIGHT, WIDTH)


def score(points, pose, true):
    """Shares of the plain map's labels that are wrong, of the visible map's, and of the right ones that are kept."""
    plain = visible_depth(points, pose, K, WIDTH, HEIGHT, sweep_surface(points[:0]))
    seen = visible_depth(points, pose, K, WIDTH, HEIGHT)
    assert np.array_equal(seen[seen > 0], plain[seen > 0])
    wrong = plain > true + 0.5
    kept = (seen > 0)[(plain > 0) & ~wrong].mean()
    return wrong[plain > 0].mean(), wrong[seen > 0].mean(), kept


CAR, WALL = ((6, -1, GROUND), (10, 1, -0.45)), ((30, -60, GROUND), (30.5, 60, 3))


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("lines", [16, 32, 64])
def test_wall_behind_cars(number, lines):
    cars = [
        CAR,
        ((-9, -1.2, GROUND), (-6, 0.8, -0.4)),
        ((-2, 3.5, GROUND), (2.5, 5.3, -0.4)),
        ((-2, -6, GROUND), (3, -4, -0.5)),
    ]
    walls = [
        WALL,
        ((-40, -60, GROUND), (-39.5, 60, 3)),
        ((-60, 14, GROUND), (60, 14.5, 4)),
        ((-60, -20, GROUND), (60, -19, 4)),
    ]
    boxes, pose = cars + walls, camera_pose(number)
    before, after, kept = score(sweep(boxes, lines, rng=np.random.default_rng(number)), pose, truth(boxes, pose))
    assert before > 0.01 and after < 0.005 and kept > 0.93, (before, after, kept)


def test_car_in_front_of_the_bumper_hides_the_road_and_the_wall_behind_it():
    near = ((4.2, -0.9, GROUND), (8.5, 0.9, -0.5))  # camera0 stands at 3 m: 1.2 m before the boot, mostly below the sweep
    boxes, pose = [near, WALL], camera_pose()
    before, after, kept = score(sweep(boxes), pose, truth(boxes, pose))
    assert before > 0.3 and after < 0.01 and kept > 0.95, (before, after, kept)


def test_thin_pole():
    boxes, pose = [((8, 0.5, GROUND), (8.1, 0.6, 3)), WALL], camera_pose()
    before, after, kept = score(sweep(boxes, rng=np.random.default_rng(1)), pose, truth(boxes, pose))
    assert before > 0.001 and after < 0.0006 and kept > 0.98, (before, after, kept)


def test_ground_hides_nothing():
    points, pose = sweep([]), camera_pose()
    plain = visible_depth(points, pose, K, WIDTH, HEIGHT, sweep_surface(points[:0]))
    seen = visible_depth(points, pose, K, WIDTH, HEIGHT)
    # Far away the ground at a pixel's centre can lie metres before the return in it: only there are labels left out.
    assert ((seen > 0) == (plain > 0))[plain < 10].all() and (seen > 0).sum() > 0.9 * (plain > 0).sum()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_next_to_no_returns_hide_nothing(count):
    points = np.array([[9, 0, 0], [12, 1, 0], [7, 0.5, -0.2], [20, -3, -0.5], [30, 2, -0.1]], np.float32)[:count]
    seen = visible_returns(points, camera_pose(), K, WIDTH, HEIGHT)
    assert seen.shape == (count,) and seen.sum() >= min(count, 2)
    assert (visible_depth(points, camera_pose(), K, WIDTH, HEIGHT) > 0).sum() >= min(count, 2)


def test_order_duplicates_and_numbers_that_are_none_change_nothing():
    boxes, pose = [CAR, WALL], camera_pose()
    points = sweep(boxes, rng=np.random.default_rng(2))
    expected = visible_depth(points, pose, K, WIDTH, HEIGHT)
    odd = np.array(
        [[np.nan, 1, 1], [0, 0, 0], [np.inf, 0, 0], [1e30, 1e30, 0], [3e38, 3e38, 3e38], [0.1, 0, -0.1]], np.float32
    )
    mixed = np.concatenate([points, points[::7], odd])[
        np.random.default_rng(3).permutation(len(points) + len(points[::7]) + 6)
    ]
    found = visible_depth(mixed, pose, K, WIDTH, HEIGHT)
    assert np.mean((found > 0) != (expected > 0)) < 1e-4 and (expected > 0).sum() > 3000


def test_a_cloud_without_lines_is_no_worse_than_half():
    """Directions drawn at random: no scan line to be found."""
    rng = np.random.default_rng(4)
    boxes, pose = [CAR, WALL, ((-60, 14, GROUND), (60, 14.5, 4))], camera_pose()
    e, a = np.arcsin(rng.uniform(np.sin(np.radians(-25)), np.sin(np.radians(2)), 40_000)), rng.uniform(-np.pi, np.pi, 40_000)
    directions = towards(e, a)
    distance = cast(np.zeros(3), directions, boxes)
    points = (directions * distance[:, None])[distance < 120].astype(np.float32)
    before, after, kept = score(points, pose, truth(boxes, pose))
    assert after < 0.25 * before and kept > 0.9, (before, after, kept)


def test_returns_and_map_agree():
    boxes, pose = [CAR, WALL], camera_pose()
    points = sweep(boxes, rng=np.random.default_rng(5))
    seen = visible_returns(points, pose, K, WIDTH, HEIGHT)
    whole = visible_depth(points, pose, K, WIDTH, HEIGHT)
    part = visible_depth(points[seen], pose, K, WIDTH, HEIGHT, sweep_surface(points))
    assert np.array_equal(whole, part)


def test_a_label_is_hidden_from_a_depth_on():
    points, pose = sweep([CAR, WALL]), camera_pose()
    pixels = (np.full(40, 165), np.full(40, 200))
    depth = np.linspace(1, 40, 40)
    hidden = hidden_labels(sweep_surface(points), pose, K, (WIDTH, HEIGHT), pixels, depth)
    assert not hidden[:3].any() and hidden[3:].all()  # the boot stands 3 m ahead of the camera


def test_generated_street(tmp_path):
    size = 280, 210
    options = SampleOptions(seed=977, splits=("train",), scenarios=1, frames=1, width=size[0], height=size[1])
    write_sample(tmp_path, options)
    sums = np.zeros(4)
    for yaml in sorted(tmp_path.glob("opv2v_images/*/*/*/*.yaml")):
        frame, points = read_frame(yaml), read_pcd(yaml.with_suffix(".pcd")).points
        surface = sweep_surface(points)
        for camera in frame.cameras:
            name = yaml.relative_to(tmp_path / "opv2v_images").with_name(f"{yaml.stem}_camera{camera.index}_depth.npy")
            true = read_depth(tmp_path / "opv2v_depth" / name)
            plain = lidar_depth(points, camera, *size)
            pose = camera.camera_from_lidar @ carla.CV_FROM_UE
            seen = visible_depth(points, pose, camera.cv_intrinsics, *size, surface)
            right = (plain > 0) & (true > 0) & (plain - true <= 0.5)
            sums += (
                (seen > 0).sum(),
                ((seen > 0) & (true > 0) & (seen - true > 0.5)).sum(),
                right.sum(),
                (right & (seen > 0)).sum(),
            )
    assert sums[1] / sums[0] <= 0.003 and sums[3] / sums[2] >= 0.97, sums
