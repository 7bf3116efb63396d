"""The rig of an OPV2V vehicle, its LiDAR's sweep over the synthetic street, and what a frame's YAML says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapanything.geometry import carla
from mapanything.opv2v.sample.scene import Street
from mapanything.opv2v.sample.solids import Solids, SweepRays, cast
from mapanything.opv2v.sample.vehicles import MPS_TO_KMH, Car, float32_values

Float = NDArray[np.float64]

# Six-vectors in the vehicle's frame: x, y, z, roll, yaw, pitch. The same for every vehicle of the real data set.
CAMERAS = ([2.5, 0, 1.0, 0, 0, 0], [0, 0.3, 1.8, 0, 100, 0], [0, -0.3, 1.8, 0, -100, 0], [-2.0, 0, 1.5, 0, 180, 0])
LIDAR = [-0.5, 0, 1.9, 0, 0, 0]

MAX_RANGE = 120.0
ELEVATION_DEG = (2.0, -25.0)
RANGE_NOISE = 0.02
# Measured on the real clouds: 81 % of the rays into the near ground come back. CARLA applies its rate of 0.1 twice.
RETURNED = 0.81
ATTENUATION = 0.004  # per metre


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """A LiDAR cloud.

    Attributes:
        points: (N, 3) LiDAR frame, Unreal axes.
        red: (N,) intensity in 255ths.
        owners: ids of the vehicles that a point lies on.
    """

    points: NDArray[np.float32]
    red: NDArray[np.uint8]
    owners: frozenset[int]


def mounted(vehicle_pose: ArrayLike, rig: ArrayLike) -> Float:
    """The world pose (6,) of a sensor: values that a float32 holds, as CARLA reports them."""
    matrix = carla.ue_matrix_from_pose(vehicle_pose) @ carla.ue_matrix_from_pose(rig)
    return float32_values(carla.pose_from_ue_matrix(matrix))


def scan(world: Solids, lidar_pose: Float, channels: int, points: int, rng: np.random.Generator) -> Sweep:
    """One sweep of `points` rays in `channels` lines, from the top line down, each from behind over left to right."""
    columns = round(points / channels)
    elevation = np.deg2rad(np.linspace(*ELEVATION_DEG, channels))
    azimuth = -np.pi + 2 * np.pi / columns * np.arange(columns)
    rays = SweepRays(elevation, azimuth, MAX_RANGE)
    local = world.moved(np.linalg.inv(carla.ue_matrix_from_pose(lidar_pose)))
    inverse, face = cast(local, rays)
    # Drawn for every ray, hit or not, so that one more leaf on a tree does not shift all other numbers.
    noise, lottery = rng.normal(0.0, RANGE_NOISE, rays.shape), rng.random(rays.shape)
    back = (inverse > 1.0 / MAX_RANGE) & (lottery < RETURNED)
    true_range = 1.0 / inverse[back]
    measured = true_range + noise[back]
    inside = measured < MAX_RANGE
    red = np.rint(255.0 * np.exp(-ATTENUATION * true_range[inside])).astype(np.uint8)
    hit = (rays.directions()[back] * measured[:, None])[inside].astype(np.float32)
    owners = np.unique(world.face_owner[face[back][inside]])
    return Sweep(hit, red, frozenset(int(owner) for owner in owners if owner > 0))


def frame_data(
    street: Street,
    index: int,
    agent: int,
    lidar_pose: Float,
    cameras: list[Float],
    matrix: Float,
    seen: frozenset[int],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """A frame's YAML as plain values. `matrix` (3, 3) is the intrinsics; `seen` are the vehicles that the LiDAR hit."""
    poses = street.poses(index)
    cars = {car.id: car for car in street.cars}
    ego, car = poses[agent], cars[agent]
    world_from_lidar = carla.ue_matrix_from_pose(lidar_pose)
    data: dict[str, Any] = {
        f"camera{k}": {
            "cords": cords.tolist(),
            "extrinsic": (np.linalg.inv(carla.ue_matrix_from_pose(cords)) @ world_from_lidar).tolist(),
            "intrinsic": matrix.tolist(),
        }
        for k, cords in enumerate(cameras)
    }
    error = rng.normal(0.0, [0.03, 0.03, 0.005, 0.0, 0.1, 0.0])
    predicted = ego * [1, 1, 1, 0, 1, 0] + error
    if rng.random() < 0.15:  # as in the real data: the same heading, a full turn away
        predicted[4] -= np.copysign(360.0, predicted[4])
    data |= {
        "ego_speed": _speed_kmh(car),
        "lidar_pose": lidar_pose.tolist(),
        "plan_trajectory": _trajectory(street, car, index) if rng.random() < 0.85 else [],
        "predicted_ego_pos": float32_values(predicted).tolist(),
        "true_ego_pos": ego.tolist(),
        "vehicles": {number: _vehicle(cars[number], poses[number]) for number in sorted(seen)},
    }
    return data


def _vehicle(car: Car, pose: Float) -> dict[str, Any]:
    return {
        "angle": pose[3:].tolist(),
        "center": car.centre.tolist(),
        "extent": car.half.tolist(),
        "location": pose[:3].tolist(),
        "speed": _speed_kmh(car),
    }


def _speed_kmh(car: Car) -> float:
    """km/h; a parked vehicle of the simulator still trembles."""
    return car.speed * MPS_TO_KMH if car.speed else 1.1e-6 * (1 + car.id % 7) + 1.3e-8 * (car.id % 11)


def _trajectory(street: Street, car: Car, index: int) -> list[list[Any]]:
    """Where the vehicle means to drive: up to 9 places ahead with the speed wanted there; none while it waits."""
    if not car.speed:
        return []
    x, y, heading = car.position(index)
    ahead = np.cumsum(1.2 + 0.1 * np.arange(4 + car.id % 6))
    heading = np.deg2rad(heading)
    places = np.stack([x + ahead * np.cos(heading), y + ahead * np.sin(heading), np.zeros_like(ahead)], axis=1)
    places = float32_values(places @ street.world_from_street[:3, :3].T + street.world_from_street[:3, 3])
    target = round(car.speed * MPS_TO_KMH) + 2
    return [[px, py, target] for px, py, _ in places.tolist()]
