"""Labels that two sweeps agree on: constructed streets with two vehicles, whose truth a slow ray caster knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mapanything.geometry import carla
from mapanything.opv2v.frame import Frame, Vehicle
from mapanything.opv2v.fusion import fused_depth, seen_from
from mapanything.opv2v.visibility import sweep_surface, visible_depth
from tests.opv2v.test_visibility import GROUND, HEIGHT, WALL, WIDTH, K, camera_pose, sweep, truth

OWN = ((-2, -1, GROUND), (3.0, 1, -0.4))  # the camera's vehicle, which only others see
CARS = [((9, 2.5, GROUND), (13, 4.3, -0.4)), ((14, -4.5, GROUND), (18, -2.7, -0.3))]
STREET = [*CARS, WALL, ((-60, 14, GROUND), (60, 14.5, 4)), ((-60, -20, GROUND), (60, -19, 4))]
OTHER = np.array([20.0, 0.5, 0])  # where the other LiDAR stands, level and not turned


def frame(place: np.ndarray, vehicles: tuple[Vehicle, ...] = ()) -> Frame:
    pose = carla.cv_pose([*place, 0, 0, 0])
    return Frame(Path("x.yaml"), np.array([*place, 0, 0, 0]), pose, None, 0.0, (), vehicles, np.zeros((0, 3)), False)


def box(low: tuple, high: tuple) -> Vehicle:
    middle = (np.array(low) + np.array(high)) / 2
    return Vehicle(7, carla.cv_pose([*middle, 0, 0, 0]), carla.cv_sizes((np.array(high) - low) / 2), 0.0)


def moved(boxes: list) -> list:
    return [(tuple(np.array(low) - OTHER), tuple(np.array(high) - OTHER)) for low, high in boxes]


def fused(
    number: int, own: list, vehicles: tuple[Vehicle, ...] = (), hull: list | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The visible map, the fused one and the truth of a camera; `hull` is what both sweeps see of the own vehicle."""
    rng = np.random.default_rng(number)
    points, pose = sweep([*STREET, *(hull or [])], rng=rng), camera_pose(number)
    other = sweep_surface(sweep(moved([*STREET, *own, *(hull or [])]), rng=rng))
    surface, move = seen_from(other, frame(np.zeros(3)), frame(OTHER, vehicles), "7")
    mine = sweep_surface(points)
    seen = visible_depth(points, pose, K, WIDTH, HEIGHT, mine)
    return seen, fused_depth(seen, mine, pose, K, [(surface, pose @ move)]), truth(STREET, pose)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_agreed_depth_is_right_and_never_the_own_vehicle(number):
    seen, both, true = fused(number, [OWN])
    assert np.array_equal(both[seen > 0], seen[seen > 0])
    added = (both > 0) & (seen == 0)
    error = np.abs(both - true)[added]
    assert added.sum() > (seen > 0).sum() and np.mean(error > 0.5) < 0.003 and np.median(error) < 0.02


def test_a_part_of_the_own_vehicle_that_both_sweeps_see_gets_no_label_of_two():
    bar = ((3.5, -0.6, -1.6), (3.55, 0.6, -1.0))  # before camera0
    seen, both, _ = fused(0, [], (), [bar])
    assert ((both > 0) & (seen == 0)).sum() > 1000 and not ((both > 0) & (both < 1) & (seen == 0)).any()


def test_a_long_vehicle_is_known_by_its_box():
    truck = ((-7, -1.3, GROUND), (5.5, 1.3, 1.4))  # reaches beyond 3.2 m, and to others seems to stand before camera0
    assert (fused(0, [truck], (box(*truck),))[1] > 0).sum() > 1.05 * (fused(0, [truck])[1] > 0).sum()


def test_own_labels_stay_alone_where_nobody_else_is():
    points, pose = sweep(STREET), camera_pose()
    mine = sweep_surface(points)
    seen = visible_depth(points, pose, K, WIDTH, HEIGHT, mine)
    empty, move = seen_from(sweep_surface(points[:0]), frame(np.zeros(3)), frame(OTHER), "7")
    assert np.array_equal(fused_depth(seen, mine, pose, K, []), seen)
    assert np.array_equal(fused_depth(seen, mine, pose, K, [(empty, pose @ move)]), seen)
