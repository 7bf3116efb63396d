"""The synthetic street: sloped ground, a crossing, kerbs, buildings, trees, lamps, parked and moving vehicles.

Unreal axes throughout: x forward, y right, z up. The *street* frame lies in the tilted ground plane (z = 0 is the ground,
x along the main road): roads, kerbs and vehicles are built there; buildings, trees and lamps stand upright in the world.
A vehicle's own frame is OPV2V's: its origin is on the ground below its middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mapanything.geometry import carla
from mapanything.geometry.types import Floats
from mapanything.opv2v.sample import textures as tex
from mapanything.opv2v.sample.solids import Look, Rect, Solids, box, frustum, ground, joined, wheel

Rng = np.random.Generator

ROAD = 9.2  # half width of the main road, with its parking lanes, metres
SIDE_ROAD = 4.5  # half width of the crossing one
PAVEMENT = 13.0  # outer edge of the pavement
LANES = (1.75, 5.25)
PARKING = 8.1
STOP = 13.5  # metres from the crossing's middle at which vehicles of the side road wait
HALF_LENGTH = 300.0

SECONDS_PER_FRAME = 0.1
WEAVE_DEG, WEAVE_PER_SECOND = 0.7, 0.6  # largest angle to the lane; radians of the sine per second

# Half length, half width, half height; where the cabin ends at its foot and at its roof, as parts of the half length;
# the height of its foot as a part of the whole; how many there are.
_SHAPES = {
    "sedan": ((2.45, 1.06, 0.755), (-0.72, 0.42, -0.45, 0.12), 0.60, 0.34),
    "hatchback": ((1.82, 0.93, 0.75), (-0.93, 0.50, -0.80, 0.15), 0.58, 0.2),
    "suv": ((2.30, 0.97, 0.93), (-0.95, 0.48, -0.85, 0.22), 0.58, 0.22),
    "pickup": ((2.79, 1.02, 0.97), (-0.20, 0.48, -0.12, 0.25), 0.55, 0.08),
    "van": ((2.64, 1.00, 1.15), (-0.97, 0.86, -0.95, 0.50), 0.50, 0.1),
    "truck": ((4.10, 1.26, 1.65), (0.52, 0.97, 0.52, 0.90), 0.45, 0.06),
}
_PAINTS = np.array(
    [  # red, green, blue of each
        [0.94, 0.13, 0.55, 0.62, 0.10, 0.16, 0.78, 0.42, 0.30, 0.85],
        [0.94, 0.14, 0.57, 0.09, 0.20, 0.34, 0.62, 0.30, 0.46, 0.38],
        [0.94, 0.16, 0.60, 0.10, 0.48, 0.22, 0.16, 0.22, 0.62, 0.12],
    ]
)


def around(a: float, b: float | None = None) -> Rect:
    """The rectangle of half sizes a and b around the origin."""
    b = a if b is None else b
    return -a, a, -b, b


class Shadow(NamedTuple):
    """An upright box that throws a shadow on the ground; all in the street frame, metres, heading in radians."""

    x: float
    y: float
    heading: float
    half_length: float
    half_width: float
    bottom: float
    top: float


@dataclass(frozen=True, slots=True, eq=False)
class Car:
    """One vehicle."""

    id: int
    half: Floats  # (3,) half length, width, height of its box
    centre: Floats  # (3,) of its box in its own frame
    start: Floats  # (3,) x, y in the street's plane and heading in degrees there, at the first frame
    speed: float  # metres per second along the heading
    sway: Floats  # (4,) amplitude in degrees and phase of roll, then of pitch: what the suspension does
    solids: Solids  # in its own frame

    def position(self, index: int) -> Floats:
        """x, y, heading in degrees in the street's plane at the frame number `index`."""
        if not self.speed:
            return self.start
        # Drivers weave a little: a sine across the lane, with the heading that belongs to it.
        time, heading = index * SECONDS_PER_FRAME, np.deg2rad(self.start[2])
        way, phase = self.speed * time, WEAVE_PER_SECOND * time + self.sway[1]
        aside = self.speed * np.deg2rad(WEAVE_DEG) / WEAVE_PER_SECOND * np.sin(phase)
        c, s = np.cos(heading), np.sin(heading)
        return self.start + np.array([way * c - aside * s, way * s + aside * c, WEAVE_DEG * np.cos(phase)])


@dataclass(frozen=True, slots=True, eq=False)
class Street:
    """A scenario's world."""

    world_from_street: Floats  # (4, 4)
    crossing: tuple[float, float]  # x of the crossing's middle, and the side road's heading there in radians
    fixed: Solids  # what does not move, in the world; its first face is the ground
    shadows: list[Shadow]  # of what does not move
    cars: list[Car]  # all vehicles, those that carry sensors first
    sun: Floats  # (3,) unit vector towards it, in the world
    sunlight: Floats  # (3,) factor of a surface's colour
    ambient: Floats  # (3,) likewise
    zenith: Floats  # (3,) colour of the sky, 0..255
    horizon: Floats  # (3,) likewise

    def poses(self, index: int) -> dict[int, Floats]:
        """Every vehicle's CARLA six-vector at a frame, by id; values that a float32 holds: the same number everywhere."""
        poses, time = {}, index * SECONDS_PER_FRAME
        for car in self.cars:
            x, y, heading = car.position(index)
            roll = car.sway[0] * np.sin(5.1 * time + car.sway[1])
            pitch = car.sway[2] * np.sin(3.7 * time + car.sway[3])
            local = carla.ue_matrix_from_pose([x, y, 0.0, roll, heading, pitch])
            poses[car.id] = float32_values(carla.pose_from_ue_matrix(self.world_from_street @ local))
        return poses

    def solids(self, index: int) -> Solids:
        """Everything at a frame, in the world; the faces of `fixed` come first."""
        poses = self.poses(index)
        return joined([self.fixed, *(car.solids.moved(carla.ue_matrix_from_pose(poses[car.id])) for car in self.cars)])

    def shadows_at(self, index: int, without: int) -> list[Shadow]:
        """All shadows at a frame but one vehicle's."""
        moving = []
        for car in self.cars:
            if car.id != without:
                x, y, heading = car.position(index)
                moving.append(Shadow(x, y, np.deg2rad(heading), car.half[0] * 0.97, car.half[1] * 0.92, 0.1, 2 * car.half[2]))
        return [*self.shadows, *moving]


def float32_values(values: Floats) -> Floats:
    """Rounded to what CARLA's float32 could hold, as float64."""
    return np.asarray(values, dtype=np.float64).astype(np.float32).astype(np.float64)


def make_street(rng: Rng, agents: tuple[int, ...]) -> Street:
    """A random street with a vehicle for every id of `agents`, and traffic around them."""
    grade = rng.choice([-1, 1]) * rng.uniform(1.0, 3.0)
    cross_slope = rng.choice([-1, 1]) * rng.uniform(0.5, 1.6)
    origin = rng.uniform([-280, -280, 0.0], [280, 280, 12.0])
    yaw = rng.uniform(-180, 180)
    world_from_street = carla.ue_matrix_from_pose([*origin, cross_slope, yaw, grade])
    crossing = (float(rng.uniform(-12, 12)), float(np.deg2rad(rng.choice([-1, 1]) * rng.uniform(78, 102))))
    builder = _Builder(rng, world_from_street, yaw, crossing)
    for build in (builder.roads, builder.buildings, builder.furniture, builder.hills):
        build()
    cars = place_vehicles(rng, crossing, agents)
    height, turn = np.deg2rad(rng.uniform(28, 60)), rng.uniform(0, 2 * np.pi)
    warm = rng.uniform(0, 1)
    return Street(
        world_from_street,
        crossing,
        joined(builder.parts),
        builder.shadows,
        cars,
        sun=np.array([np.cos(height) * np.cos(turn), np.cos(height) * np.sin(turn), np.sin(height)]),
        sunlight=0.72 * np.array([1.0, 0.97 - 0.05 * warm, 0.92 - 0.14 * warm]),
        ambient=rng.uniform(0.48, 0.58) * np.array([0.93, 0.98, 1.08]),
        zenith=np.array([[74.0, 118, 178], [98, 132, 170], [120, 140, 165]][int(rng.integers(3))]),
        horizon=np.array([196.0, 210.0, 222.0]) + 12 * rng.standard_normal() * np.array([1.0, 0.5, 0.0]),
    )


class _Builder:
    """Collects the parts of a street; `yaw_deg` turns upright things with the road."""

    def __init__(self, rng: Rng, world_from_street: Floats, yaw_deg: float, crossing: tuple[float, float]) -> None:
        self.rng, self.world_from_street, self.yaw_deg = rng, world_from_street, yaw_deg
        self.crossing, (self.crossing_x, self.heading) = crossing, crossing
        self.parts = [ground(Look(tex.ASPHALT)).moved(world_from_street)]
        self.shadows: list[Shadow] = []
        tall = rng.random() < 0.5
        self.heights = (9.0, 26.0) if tall else (4.5, 11.0)
        choices = [tex.FACADE, tex.PANEL, tex.PLASTER] if tall else [tex.BRICK, tex.PLASTER, tex.FACADE]
        self.walls = [choices[int(rng.integers(3))] for _ in range(5)] + choices
        self.green = float(rng.uniform(0.8, 1.15))

    def lying(self, x: float, y: float, heading_deg: float, *parts: Solids) -> None:
        """Adds parts that lie in the ground's plane."""
        frame = self.world_from_street @ carla.ue_matrix_from_pose([x, y, 0, 0, heading_deg, 0])
        self.parts.extend(part.moved(frame) for part in parts)

    def upright(self, x: float, y: float, heading_deg: float, *parts: Solids) -> Floats:
        """Adds parts that stand upright, z = 0 on the ground at (x, y) of the street frame; returns their frame (4, 4)."""
        foot = self.world_from_street[:3, :3] @ [x, y, 0.0] + self.world_from_street[:3, 3]
        frame = carla.ue_matrix_from_pose([*foot, 0, self.yaw_deg + heading_deg, 0])
        self.parts.extend(part.moved(frame) for part in parts)
        return frame

    def gap(self, y: float, half_width: float) -> float:
        """Half the length along x that the side road, `half_width` wide, takes |y| metres off the main road."""
        return half_width / np.sin(abs(self.heading)) + abs(y / np.tan(self.heading))

    def roads(self) -> None:
        """Pavements and kerbs of both roads; the asphalt itself is the ground's colour."""
        gap = self.gap(PAVEMENT, SIDE_ROAD) + 0.8
        tint = self.rng.uniform(0.85, 1.1) * np.array([1.0, self.rng.uniform(0.93, 1.0), self.rng.uniform(0.85, 1.0)])
        kerb, paving = Look(tex.METAL, (1.12, 1.1, 1.06)), Look(tex.PAVING, tint.tolist())
        for side in (-1, 1):
            for x in ((-HALF_LENGTH, self.crossing_x - gap), (self.crossing_x + gap, HALF_LENGTH)):
                inner, middle, outer = side * ROAD, side * (ROAD + 0.3), side * PAVEMENT
                self.lying(0, 0, 0, box((*x, inner, middle), -0.5, 0.16, kerb), box((*x, middle, outer), -0.5, 0.15, paving))
        for side in (-1, 1):
            for s in ((-160.0, -17.0), (17.0, 160.0)):
                part = box((*s, side * SIDE_ROAD, side * (SIDE_ROAD + 2.2)), -0.5, 0.14, paving)
                self.lying(self.crossing_x, 0.0, float(np.rad2deg(self.heading)), part)

    def buildings(self) -> None:
        """Houses on both sides of both roads, with gaps and walls between them."""
        rng = self.rng
        for side in (-1, 1):
            x = -HALF_LENGTH + 20
            while x < HALF_LENGTH - 20:
                width, depth = rng.uniform(9, 26), rng.uniform(9, 17)
                inner = PAVEMENT + 0.6 + rng.choice([0.0, rng.uniform(0, 4)])
                clear = self.gap(inner + depth, SIDE_ROAD + 3.5)
                if x + width < self.crossing_x - clear or x > self.crossing_x + clear:
                    self.house(x + width / 2, side * (inner + depth / 2), width / 2, depth / 2, 0.0)
                x += width
                if rng.random() < 0.4:
                    space = rng.uniform(3, 12)
                    if not self.crossing_x - 30 < x < self.crossing_x + 30:
                        self.wall(x, x + space, side * (PAVEMENT + 0.8))
                    x += space
        for side, way in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            s = 44.0
            while s < 150:
                width, depth = rng.uniform(9, 22), rng.uniform(8, 15)
                x, y = _beside(self.crossing, way * (s + width / 2), side * (SIDE_ROAD + 3.5 + depth / 2))
                self.house(x, y, width / 2, depth / 2, self.heading)
                s += width + rng.choice([0.0, 5.0])

    def house(self, x: float, y: float, a: float, b: float, heading: float) -> None:
        """A house of half sizes a and b: a shop below or not; a roof, or a parapet and what stands behind it."""
        rng = self.rng
        wall = self.walls[int(rng.integers(len(self.walls)))]
        tint = (rng.uniform(0.62, 0.92) * np.array([1.0, rng.uniform(0.86, 1.0), rng.uniform(0.76, 1.02)])).tolist()
        height = float(rng.uniform(*self.heights))
        parts = [box(around(a, b), -4, height, Look(wall, tint), Look(tex.ASPHALT, (0.55, 0.5, 0.48)))]
        if wall in (tex.FACADE, tex.PANEL) and rng.random() < 0.75:
            parts += [box(around(a + 0.25, b + 0.25), -4, 4.0, Look(tex.SHOP), Look(tex.METAL))]
        if height < 9 and rng.random() < 0.8:
            roof = Look(tex.BRICK, (0.85, 0.5, 0.42) if rng.random() < 0.6 else (0.45, 0.45, 0.5))
            parts += [frustum(around(a + 0.4, b + 0.4), height, around(a - 0.5, 0.2), height + 0.5 * b, roof)]
        else:
            c, d = rng.uniform(0.2, 0.6) * a, rng.uniform(0.2, 0.5) * b
            parts += [box(around(c, d), height, height + 2.4, Look(tex.METAL, (0.8, 0.8, 0.8)))]
            parts += [box(around(a + 0.3, b + 0.3), height - 0.5, height + 0.2, Look(tex.METAL, tint))]
        frame = self.upright(x, y, float(np.rad2deg(heading)), *parts)
        if wall in (tex.BRICK, tex.PLASTER):  # windows and a door as real, slightly protruding, boxes on the two long sides
            window = box(around(0.8, 0.06), 0.0, 1.5, Look(tex.GLASS, (1.0, 1.0, 0.98), True))
            for side in (-1, 1):
                for level in np.arange(1.2, height - 1.6, 3.0):
                    for at in np.arange(-a + 2.0, a - 1.0, float(rng.uniform(3.0, 4.5))):
                        place = frame.copy()
                        place[:3, 3] += frame[:3, :3] @ [at, side * b, level]
                        self.parts.append(window.moved(place))
        self.shadows.append(Shadow(x, y, heading, a, b, 0.0, height))

    def wall(self, x0: float, x1: float, y: float) -> None:
        """A wall or a hedge along the pavement."""
        hedge, height = self.rng.random() < 0.4, self.rng.uniform(0.9, 2.2)
        look = Look(tex.LEAVES, (0.8 * self.green, self.green, 0.8 * self.green)) if hedge else Look(tex.BRICK, (0.95,) * 3)
        part = box((x0, x1, -0.25, 0.25), -2, height, look)
        self.upright(x0, y, 0.0, part.moved(carla.ue_matrix_from_pose([-x0, 0, 0, 0, 0, 0])))
        self.shadows.append(Shadow((x0 + x1) / 2, y, 0.0, (x1 - x0) / 2, 0.25, 0.0, height))

    def furniture(self) -> None:
        """Trees, lamps, signs and bins on the pavements."""
        rng = self.rng
        clear = self.gap(PAVEMENT, SIDE_ROAD) + 2.0
        for side in (-1, 1):
            for x in np.arange(-150, 150, 9.0) + rng.uniform(-3, 3):
                at = float(x + rng.uniform(-1.5, 1.5))
                if abs(at - self.crossing_x) < clear:
                    continue
                kind = rng.random()
                if kind < 0.36:
                    self.tree(at, side * (ROAD + 1.4))
                elif kind < 0.6:
                    self.lamp(at, side * (ROAD + 0.7), side)
                elif kind < 0.72:
                    y, plate = side * (ROAD + 0.6), Look(tex.SIGN, fit=True)
                    self.upright(at, y, 0.0, box(around(0.05), -1, 3.0, Look(tex.METAL, (0.7, 0.7, 0.7))))
                    self.upright(at, y, 0.0 if side > 0 else 180.0, box((-0.06, -0.02, -0.4, 0.4), 2.1, 3.0, plate))
                elif kind < 0.82:
                    tint = rng.uniform(0.2, 0.9, 3).tolist()
                    self.upright(at, side * (ROAD + 2.6), 0.0, box(around(0.3), -1, 1.2, Look(tex.METAL, tint)))
            for way in (-1, 1):
                for s in np.arange(24, 140, 17.0):
                    x, y = _beside(self.crossing, way * s + rng.uniform(-4, 4), side * (SIDE_ROAD + 2.8))
                    if rng.random() < 0.6:
                        self.tree(x, y)

    def tree(self, x: float, y: float) -> None:
        """A trunk, and cones above it: a conifer's three, or two that meet at their wide ends; each a star of two."""
        rng = self.rng
        turn = float(rng.uniform(0, 90))
        tint = self.green * rng.uniform(0.8, 1.15) * np.array([rng.uniform(0.8, 1.2), 1.0, 0.8])
        size, leaves = float(rng.uniform(0.8, 1.3)), Look(tex.LEAVES, tint.tolist())
        self.upright(x, y, turn, box(around(0.14), -1, 2.6 * size, Look(tex.BARK)))
        if rng.random() < 0.35:
            tip = around(0.12)
            for low, radius, high in ((1.2, 1.9, 3.6), (2.6, 1.5, 4.8), (3.9, 1.1, 6.2)):
                cone = frustum(around(radius * size), low * size, tip, high * size, leaves)
                self.upright(x, y, turn, cone)
                self.upright(x, y, turn + 45.0, cone)
            self.shadows.append(Shadow(x, y, 0.0, 1.3 * size, 1.3 * size, 1.5 * size, 5 * size))
        else:
            small, wide = around(0.9 * size), around(1.75 * size)
            cones = (
                frustum(small, 2.1 * size, wide, 3.4 * size, leaves),
                frustum(wide, 3.4 * size, small, 5.4 * size, leaves),
            )
            self.upright(x, y, turn, *cones)
            self.upright(x, y, turn + 45.0, *cones)
            self.shadows.append(Shadow(x, y, 0.0, 1.6 * size, 1.6 * size, 2.2 * size, 5 * size))

    def lamp(self, x: float, y: float, side: int) -> None:
        """A lamp whose arm reaches over the road."""
        grey = Look(tex.METAL, (0.5, 0.52, 0.54))
        arm = box((-0.06, 0.06, 0.0, -side * 2.2), 6.4, 6.5, grey)
        head = box((-0.16, 0.16, -side * 1.6, -side * 2.4), 6.25, 6.42, Look(tex.METAL, (1.4, 1.4, 1.3)))
        self.upright(x, y, 0.0, box(around(0.09), -1, 6.5, grey), arm, head)
        self.shadows.append(Shadow(x, y, 0.0, 0.09, 0.09, 0.0, 6.5))

    def hills(self) -> None:
        """Hills around the world's end, so that the ground never meets the sky in a line of noise."""
        for k in range(40):
            angle = np.deg2rad(9.0 * k)
            height, near = float(self.rng.uniform(8, 34)), float(self.rng.uniform(390, 430))
            tint = self.rng.uniform(0.75, 1.0) * np.array([0.95, 1.0, 1.0])
            part = frustum((-25, 40, -60, 60), -10, (0, 20, -38, 38), height, Look(tex.HILL, tint.tolist()))
            self.lying(near * np.cos(angle), near * np.sin(angle), 9.0 * k, part)


def _beside(crossing: tuple[float, float], distance: float, offset: float) -> tuple[float, float]:
    """Street coordinates of a place on the side road: metres from the crossing, metres to the right."""
    c, s = np.cos(crossing[1]), np.sin(crossing[1])
    return crossing[0] + distance * c - offset * s, distance * s + offset * c


def place_vehicles(rng: Rng, crossing: tuple[float, float], agents: tuple[int, ...]) -> list[Car]:
    """Vehicles on lanes at one speed per lane, so that they never meet; the side road waits, or drives away."""
    cross_x, heading = crossing
    lanes: list[list[tuple[float, float, float, float]]] = []  # x, y, heading in degrees, speed
    for side in (-1, 1):
        for lane in LANES:
            speed = rng.uniform(3.5, 11.0)
            at = np.arange(-140, 140, 16.0) + rng.uniform(-4, 4, 18)
            lanes.append([(x, side * lane, 0.0 if side > 0 else 180.0, speed) for x in at])
    for way in (-1, 1):  # way 1 drives along the side road's heading, on its right half
        away = rng.uniform(3.5, 9.0)
        waiting = [(-STOP - 7.2 * k + rng.uniform(-0.3, 0.3), 0.0) for k in range(5)]
        for places in (waiting, [(STOP + 2 + 13.0 * k, away) for k in range(5)]):
            yaw = float(np.rad2deg(heading)) + (0 if way > 0 else 180)
            lanes.append([(*_beside(crossing, way * d, way * 0.5 * SIDE_ROAD), yaw, speed) for d, speed in places])
    order = [2, 0, 4, 3, 6, 1, 5, 7]  # agents: forward, oncoming, from the side road, ...
    taken, cars = set(), []
    for k, number in enumerate(agents):
        free = [p for p in lanes[order[k % len(order)]] if p not in taken]
        place = min(free, key=lambda p: np.hypot(p[0] - cross_x + (18 if abs(p[2]) < 90 else -10), p[1]))
        taken.add(place)
        cars.append(_car(rng, number, *place))
    others = [p for lane in lanes for p in lane if p not in taken and rng.random() < 0.34]
    for side in (-1, 1):
        for x in np.arange(-120, 120, 6.6):
            if abs(x - cross_x) > 17 and rng.random() < 0.4:
                yaw = (0.0 if side > 0 else 180.0) + rng.normal(0, 1.2) + (180.0 if rng.random() < 0.1 else 0.0)
                others.append((float(x + rng.uniform(-0.4, 0.4)), side * PARKING, yaw, 0.0))
    number = max(agents)
    for place in others:
        number += int(rng.integers(1, 4))
        cars.append(_car(rng, number, *place))
    return cars


def _car(rng: Rng, number: int, x: float, y: float, heading_deg: float, speed: float) -> Car:
    """A random vehicle; trucks do not park."""
    kind = list(_SHAPES)[int(rng.choice(len(_SHAPES), p=[shape[-1] for shape in _SHAPES.values()]))]
    if kind == "truck" and speed == 0:
        kind = "van"
    half = float32_values(np.array(_SHAPES[kind][0]) * rng.uniform(0.97, 1.03))
    centre = float32_values(np.array([rng.normal(0, 0.01), rng.normal(0, 3e-4), half[2] + rng.uniform(0, 0.01)]))
    paint = _PAINTS[:, rng.integers(_PAINTS.shape[1])].tolist()
    sway = np.array([rng.uniform(0.05, 0.25), rng.uniform(0, 6), rng.uniform(0.05, 0.3), rng.uniform(0, 6)])
    if speed == 0:
        sway[[0, 2]] *= 0.1
    solids = joined(_body(kind, half, centre, paint))
    solids = solids._replace(owner=np.full_like(solids.owner, number))
    return Car(number, half, centre, np.array([x, y, heading_deg], dtype=np.float64), speed, sway, solids)


def _body(kind: str, half: Floats, centre: Floats, colour: Sequence[float]) -> list[Solids]:
    """The solids of a vehicle; everything lies within the box of `half` around `centre`."""
    _, cabin, foot, _ = _SHAPES[kind]
    length, width, height = half[0] - 0.02, half[1] - 0.03, 2 * half[2] - 0.01
    x0, y0 = centre[0], centre[1]
    radius = 0.48 if kind == "truck" else 0.33
    low, waist, axle = 0.55 * radius + 0.04, foot * height, 0.62 * length
    paint = Look(tex.PAINT, colour)

    def rect(back: float, front: float, half_width: float) -> Rect:
        return x0 + back, x0 + front, y0 - half_width, y0 + half_width

    sill, belly = rect(-length + 0.06, length - 0.06, width - 0.06), rect(-length, length, width)
    deck, cabin_foot = (
        rect(-length + 0.1, length - 0.16, width - 0.09),
        rect(cabin[0] * length, cabin[1] * length, width - 0.1),
    )
    roof = rect(cabin[2] * length, cabin[3] * length, width - 0.28)
    top = rect(cabin[2] * length - 0.02, cabin[3] * length + 0.02, width - 0.26)
    parts = [
        frustum(sill, low, belly, 0.62 * waist, paint),
        frustum(belly, 0.62 * waist, deck, waist, paint),
        frustum(cabin_foot, waist, roof, height - 0.05, Look(tex.GLASS, colour, True), Look(tex.PAINT, colour, True)),
        box(top, height - 0.06, height, paint),
    ]
    if kind == "truck":
        cargo = Look(tex.PLASTER, (0.86, 0.86, 0.84) if sum(colour) < 2 else (0.25, 0.34, 0.5))
        parts.append(box(rect(-length, 0.46 * length, width + 0.02), 0.9, height, cargo))
    dark, hub = Look(tex.METAL, (0.16, 0.16, 0.17)), Look(tex.TYRE, fit=True)
    for x in (x0 - axle, x0 + axle):
        for side in (-1, 1):
            parts.append(wheel(x, y0 + side * (width + 0.02), y0 + side * (width - 0.2), radius, dark, hub))
    white, red, plate = (Look(tex.METAL, tint) for tint in ((1.6, 1.6, 1.5), (1.1, 0.12, 0.1), (1.5, 1.5, 1.5)))
    for side in (-1, 1):
        y = (y0 + side * (width - 0.06), y0 + side * (width - 0.42))
        parts.append(box((x0 + length - 0.1, x0 + length + 0.01, *y), 0.42 * waist, 0.6 * waist, white))
        parts.append(box((x0 - length - 0.01, x0 - length + 0.1, *y), 0.42 * waist, 0.6 * waist, red))
    for end in (-1, 1):
        x = (x0 + end * (length - 0.1), x0 + end * (length + 0.015))
        parts.append(box((*x, y0 - 0.26, y0 + 0.26), low + 0.05, low + 0.17, plate))
    return parts
