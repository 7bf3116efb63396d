"""The synthetic street: sloped ground, a crossing, kerbs, buildings, trees, lamps, parked and moving vehicles.

Two frames are used. The *street* frame lies in the tilted ground plane (z = 0 is the ground, x along the main road, y
to its right); roads, kerbs and vehicles are built there. Buildings, trees and lamps stand upright in the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry import carla
from mapanything.opv2v.sample import texture as tex
from mapanything.opv2v.sample.solids import Solids, box, concatenate, frustum, ground
from mapanything.opv2v.sample.vehicles import Car, make_car

Float = NDArray[np.float64]
Rng = np.random.Generator

ROAD = 9.2  # half width of the main road, with its parking lanes, metres
SIDE_ROAD = 4.5  # half width of the crossing one
PAVEMENT = 13.0  # outer edge of the pavement
LANES = (1.75, 5.25)
PARKING = 8.1
STOP = 13.5  # metres from the crossing's middle at which vehicles of the side road wait
HALF_LENGTH = 300.0


class Shadow(NamedTuple):
    """What throws a shadow on the ground: an upright box; all in the street frame, metres, heading in radians."""

    x: float
    y: float
    heading: float
    half_length: float
    half_width: float
    bottom: float
    top: float


@dataclass(frozen=True, slots=True, eq=False)
class Light:
    """Where the sun stands (unit vector in the world) and what colours the day has, 0..255."""

    sun: Float
    sunlight: Float
    ambient: Float
    zenith: Float
    horizon: Float


@dataclass(frozen=True, slots=True, eq=False)
class Street:
    """A scenario's world.

    Attributes:
        world_from_street: (4, 4) Unreal axes.
        fixed: what does not move, in the world; its first face is the ground.
        shadows: of what does not move.
        cars: all vehicles; those whose id is in `agents` carry sensors.
        crossing: x of the crossing's middle, and the side road's heading there in radians.
        flat: faces of `fixed` that lie in the ground's plane or just above: they take shadows.
    """

    world_from_street: Float
    fixed: Solids
    shadows: tuple[Shadow, ...]
    cars: tuple[Car, ...]
    agents: tuple[int, ...]
    crossing: tuple[float, float]
    light: Light
    flat: NDArray[np.bool_]

    def poses(self, index: int) -> dict[int, Float]:
        """Every vehicle's six-vector at a frame, by id."""
        return {car.id: car.pose(self.world_from_street, index) for car in self.cars}

    def solids(self, index: int) -> Solids:
        """Everything at a frame, in the world; the faces of `fixed` come first."""
        moving = [
            car.solids.moved(carla.ue_matrix_from_pose(pose), car.id)
            for car, pose in zip(self.cars, self.poses(index).values(), strict=True)
        ]
        return concatenate([self.fixed, *moving])

    def car_shadows(self, index: int, without: int) -> list[Shadow]:
        """Shadows of the vehicles but one."""
        out = []
        for car in self.cars:
            if car.id != without:
                x, y, heading = car.position(index)
                out.append(Shadow(x, y, np.deg2rad(heading), car.half[0] * 0.97, car.half[1] * 0.92, 0.1, 2 * car.half[2]))
        return out


def make_street(rng: Rng, agents: tuple[int, ...]) -> Street:
    """A random street with a vehicle for every id of `agents`, and traffic around them."""
    grade = rng.choice([-1, 1]) * rng.uniform(1.0, 3.0)
    cross_slope = rng.choice([-1, 1]) * rng.uniform(0.5, 1.6)
    origin = rng.uniform([-280, -280, 0.0], [280, 280, 12.0])
    pose = [*origin, cross_slope, rng.uniform(-180, 180), grade]
    world_from_street = carla.ue_matrix_from_pose(pose)
    crossing = (float(rng.uniform(-12, 12)), float(np.deg2rad(rng.choice([-1, 1]) * rng.uniform(78, 102))))
    builder = _Builder(rng, world_from_street, pose[4], crossing)
    builder.roads()
    builder.buildings()
    builder.furniture()
    builder.horizon()
    fixed = concatenate(builder.parts)
    normals = fixed.planes[:, :3] @ world_from_street[:3, 2]
    flat = (normals > 0.999) & np.isin(fixed.material, [tex.ASPHALT, tex.PAVING, tex.METAL])
    cars = _traffic(rng, crossing, agents)
    return Street(world_from_street, fixed, tuple(builder.shadows), cars, agents, crossing, _light(rng), flat)


def _light(rng: Rng) -> Light:
    height, around = np.deg2rad(rng.uniform(28, 60)), rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(height) * np.cos(around), np.cos(height) * np.sin(around), np.sin(height)])
    warm = rng.uniform(0, 1)
    sunlight = 0.72 * np.array([1.0, 0.97 - 0.05 * warm, 0.92 - 0.14 * warm])
    ambient = rng.uniform(0.48, 0.58) * np.array([0.93, 0.98, 1.08])
    zenith = np.array([[74, 118, 178], [98, 132, 170], [120, 140, 165]][int(rng.integers(3))], dtype=np.float64)
    horizon = np.array([196.0, 210.0, 222.0]) + 12 * rng.standard_normal() * np.array([1.0, 0.5, 0.0])
    return Light(sun, sunlight, ambient, zenith, horizon)


class _Builder:
    """Collects the parts of a street; `yaw_deg` turns upright things with the road."""

    def __init__(self, rng: Rng, world_from_street: Float, yaw_deg: float, crossing: tuple[float, float]) -> None:
        self.rng = rng
        self.world_from_street = world_from_street
        self.yaw_deg = yaw_deg
        self.crossing_x, self.heading = crossing
        self.parts: list[Solids] = [ground((1.0, 1.0, 1.0), tex.ASPHALT).moved(world_from_street)]
        self.shadows: list[Shadow] = []
        tall = rng.random() < 0.5
        self.heights = (9.0, 26.0) if tall else (4.5, 11.0)
        choices = [tex.FACADE, tex.PANEL, tex.PLASTER] if tall else [tex.BRICK, tex.PLASTER, tex.FACADE]
        self.walls = [choices[int(rng.integers(3))] for _ in range(5)] + choices
        self.green = float(rng.uniform(0.8, 1.15))

    def along(self, distance: float, offset: float) -> tuple[float, float]:
        """Street coordinates of a place on the side road: metres from the crossing, metres to the right."""
        c, s = np.cos(self.heading), np.sin(self.heading)
        return self.crossing_x + distance * c - offset * s, distance * s + offset * c

    def lying(self, part: Solids, x: float = 0.0, y: float = 0.0, heading_deg: float = 0.0) -> None:
        """Adds a part that lies in the ground's plane."""
        self.parts.append(part.moved(self.world_from_street @ carla.ue_matrix_from_pose([x, y, 0, 0, heading_deg, 0])))

    def upright(self, part: Solids, x: float, y: float, heading_deg: float = 0.0) -> None:
        """Adds a part that stands upright, its z = 0 on the ground at (x, y) of the street frame."""
        self.parts.append(part.moved(self.standing(x, y, heading_deg)))

    def standing(self, x: float, y: float, heading_deg: float) -> Float:
        """The frame (4, 4) in the world of something upright at (x, y) of the street frame."""
        foot = self.world_from_street[:3, :3] @ [x, y, 0.0] + self.world_from_street[:3, 3]
        return carla.ue_matrix_from_pose([*foot, 0, self.yaw_deg + heading_deg, 0])

    def gap(self, y: float, half_width: float) -> float:
        """Half the length along x that the side road, `half_width` wide, takes |y| metres off the main road."""
        return half_width / np.sin(abs(self.heading)) + abs(y / np.tan(self.heading))

    def roads(self) -> None:
        """Pavements and kerbs of both roads; the asphalt itself is the ground's colour."""
        gap = self.gap(PAVEMENT, SIDE_ROAD) + 0.8
        tint = tuple(self.rng.uniform(0.85, 1.1) * np.array([1.0, self.rng.uniform(0.93, 1.0), self.rng.uniform(0.85, 1.0)]))
        kerb = (1.12, 1.1, 1.06)
        for side in (-1, 1):
            for x0, x1 in ((-HALF_LENGTH, self.crossing_x - gap), (self.crossing_x + gap, HALF_LENGTH)):
                inner, middle, outer = sorted((side * ROAD, side * (ROAD + 0.3), side * PAVEMENT))
                kerb_y, walk_y = ((inner, middle), (middle, outer)) if side > 0 else ((middle, outer), (inner, middle))
                self.lying(box((x0, x1, *kerb_y), -0.5, 0.16, tex.METAL, kerb))
                self.lying(box((x0, x1, *walk_y), -0.5, 0.15, tex.PAVING, tint))
        for side in (-1, 1):
            for s0, s1 in ((-160.0, -17.0), (17.0, 160.0)):
                y = sorted((side * SIDE_ROAD, side * (SIDE_ROAD + 2.2)))
                part = box((s0, s1, *y), -0.5, 0.14, tex.PAVING, tint)
                self.lying(part, self.crossing_x, 0.0, float(np.rad2deg(self.heading)))

    def buildings(self) -> None:
        """Houses on both sides of both roads, with gaps and walls between them."""
        for side in (-1, 1):
            x = -HALF_LENGTH + 20
            while x < HALF_LENGTH - 20:
                width, depth = self.rng.uniform(9, 26), self.rng.uniform(9, 17)
                inner = PAVEMENT + 0.6 + self.rng.choice([0.0, self.rng.uniform(0, 4)])
                clear = self.gap(inner + depth, SIDE_ROAD + 3.5)
                if x + width < self.crossing_x - clear or x > self.crossing_x + clear:
                    self.house(x + width / 2, side * (inner + depth / 2), width / 2, depth / 2, 0.0)
                x += width
                if self.rng.random() < 0.4:
                    space = self.rng.uniform(3, 12)
                    if not self.crossing_x - 30 < x < self.crossing_x + 30:
                        self.wall(x, x + space, side * (PAVEMENT + 0.8))
                    x += space
        for side in (-1, 1):
            for way in (-1, 1):
                s = 44.0
                while s < 150:
                    width, depth = self.rng.uniform(9, 22), self.rng.uniform(8, 15)
                    x, y = self.along(way * (s + width / 2), side * (SIDE_ROAD + 3.5 + depth / 2))
                    self.house(x, y, width / 2, depth / 2, self.heading)
                    s += width + self.rng.choice([0.0, 5.0])

    def house(self, x: float, y: float, half_length: float, half_width: float, heading: float) -> None:
        rng = self.rng
        wall = self.walls[int(rng.integers(len(self.walls)))]
        tint = tuple(rng.uniform(0.62, 0.92) * np.array([1.0, rng.uniform(0.86, 1.0), rng.uniform(0.76, 1.02)]))
        height = float(rng.uniform(*self.heights))
        degrees = float(np.rad2deg(heading))
        a, b = half_length, half_width
        roof = (0.55, 0.5, 0.48)
        tints = [tint] * 4 + [roof] * 2
        self.upright(box((-a, a, -b, b), -4, height, [wall] * 4 + [tex.ASPHALT] * 2, tints), x, y, degrees)
        if wall in (tex.FACADE, tex.PANEL) and rng.random() < 0.75:
            shop = box((-a - 0.25, a + 0.25, -b - 0.25, b + 0.25), -4, 4.0, [tex.SHOP] * 4 + [tex.METAL] * 2, (1.0, 1.0, 1.0))
            self.upright(shop, x, y, degrees)
        if height < 9 and rng.random() < 0.8:
            red = (0.85, 0.5, 0.42) if rng.random() < 0.6 else (0.45, 0.45, 0.5)
            top = (-a + 0.5, a - 0.5, -0.2, 0.2)
            self.upright(
                frustum((-a - 0.4, a + 0.4, -b - 0.4, b + 0.4), height, top, height + 0.5 * b, tex.BRICK, red),
                x,
                y,
                degrees,
            )
        else:
            c, d = rng.uniform(0.2, 0.6) * a, rng.uniform(0.2, 0.5) * b
            self.upright(box((-c, c, -d, d), height, height + 2.4, tex.METAL, (0.8, 0.8, 0.8)), x, y, degrees)
            self.upright(
                box((-a - 0.3, a + 0.3, -b - 0.3, b + 0.3), height - 0.5, height + 0.2, tex.METAL, tint), x, y, degrees
            )
        if wall in (tex.BRICK, tex.PLASTER):
            self.openings(x, y, a, b, height, degrees)
        self.shadows.append(Shadow(x, y, heading, a, b, 0.0, height))

    def openings(self, x: float, y: float, a: float, b: float, height: float, degrees: float) -> None:
        """Windows and a door as real, slightly protruding, boxes on the two long sides."""
        window = box((-0.8, 0.8, -0.06, 0.06), 0.0, 1.5, tex.GLASS, (1.0, 1.0, 0.98), True)
        house = self.standing(x, y, degrees)
        for side in (-1, 1):
            for level in np.arange(1.2, height - 1.6, 3.0):
                for at in np.arange(-a + 2.0, a - 1.0, float(self.rng.uniform(3.0, 4.5))):
                    place = house.copy()
                    place[:3, 3] += house[:3, :3] @ [at, side * b, level]
                    self.parts.append(window.moved(place))

    def wall(self, x0: float, x1: float, y: float) -> None:
        hedge = self.rng.random() < 0.4
        height = self.rng.uniform(0.9, 2.2)
        tint = (0.8 * self.green, self.green, 0.8 * self.green) if hedge else (0.95, 0.95, 0.95)
        part = box((x0, x1, -0.25, 0.25), -2, height, tex.LEAVES if hedge else tex.BRICK, tint)
        self.upright(part.moved(carla.ue_matrix_from_pose([-x0, 0, 0, 0, 0, 0])), x0, y)
        self.shadows.append(Shadow((x0 + x1) / 2, y, 0.0, (x1 - x0) / 2, 0.25, 0.0, height))

    def furniture(self) -> None:
        """Trees, lamps and signs on the pavements."""
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
                    pole = box((-0.05, 0.05, -0.05, 0.05), -1, 3.0, tex.METAL, (0.7, 0.7, 0.7))
                    self.upright(pole, at, side * (ROAD + 0.6))
                    plate = box((-0.06, -0.02, -0.4, 0.4), 2.1, 3.0, tex.SIGN, (1.0, 1.0, 1.0), True)
                    self.upright(plate, at, side * (ROAD + 0.6), 0.0 if side > 0 else 180.0)
                elif kind < 0.82:
                    bin_tint = tuple(rng.uniform(0.2, 0.9, 3))
                    self.upright(box((-0.3, 0.3, -0.3, 0.3), -1, 1.2, tex.METAL, bin_tint), at, side * (ROAD + 2.6))
            for way in (-1, 1):
                for s in np.arange(24, 140, 17.0):
                    x, y = self.along(way * s + rng.uniform(-4, 4), side * (SIDE_ROAD + 2.8))
                    if rng.random() < 0.6:
                        self.tree(x, y)

    def tree(self, x: float, y: float) -> None:
        rng = self.rng
        turn = float(rng.uniform(0, 90))
        tint = tuple(self.green * rng.uniform(0.8, 1.15) * np.array([rng.uniform(0.8, 1.2), 1.0, 0.8]))
        size = float(rng.uniform(0.8, 1.3))
        self.upright(box((-0.14, 0.14, -0.14, 0.14), -1, 2.6 * size, tex.BARK, (1.0, 1.0, 1.0)), x, y, turn)
        if rng.random() < 0.35:  # a conifer
            for low, radius, high in ((1.2, 1.9, 3.6), (2.6, 1.5, 4.8), (3.9, 1.1, 6.2)):
                for twist in (0.0, 45.0):
                    r, tip = radius * size, 0.12
                    part = frustum((-r, r, -r, r), low * size, (-tip, tip, -tip, tip), high * size, tex.LEAVES, tint)
                    self.upright(part, x, y, turn + twist)
            self.shadows.append(Shadow(x, y, 0.0, 1.3 * size, 1.3 * size, 1.5 * size, 5 * size))
            return
        for twist in (0.0, 45.0):
            narrow, wide = 0.9 * size, 1.75 * size
            small, big = (-narrow, narrow, -narrow, narrow), (-wide, wide, -wide, wide)
            self.upright(frustum(small, 2.1 * size, big, 3.4 * size, tex.LEAVES, tint), x, y, turn + twist)
            self.upright(frustum(big, 3.4 * size, small, 5.4 * size, tex.LEAVES, tint), x, y, turn + twist)
        self.shadows.append(Shadow(x, y, 0.0, 1.6 * size, 1.6 * size, 2.2 * size, 5 * size))

    def lamp(self, x: float, y: float, side: int) -> None:
        grey = (0.5, 0.52, 0.54)
        self.upright(box((-0.09, 0.09, -0.09, 0.09), -1, 6.5, tex.METAL, grey), x, y)
        arm = sorted((0.0, -side * 2.2))
        self.upright(box((-0.06, 0.06, *arm), 6.4, 6.5, tex.METAL, grey), x, y)
        head = sorted((-side * 1.6, -side * 2.4))
        self.upright(box((-0.16, 0.16, *head), 6.25, 6.42, tex.METAL, (1.4, 1.4, 1.3)), x, y)
        self.shadows.append(Shadow(x, y, 0.0, 0.09, 0.09, 0.0, 6.5))

    def horizon(self) -> None:
        """Hills around the world's end, so that the ground never meets the sky in a line of noise."""
        for k in range(40):
            degrees = 9.0 * k
            angle = np.deg2rad(degrees)
            height, near = float(self.rng.uniform(8, 34)), float(self.rng.uniform(390, 430))
            tint = tuple(self.rng.uniform(0.75, 1.0) * np.array([0.95, 1.0, 1.0]))
            part = frustum((-25, 40, -60, 60), -10, (0, 20, -38, 38), height, tex.HILL, tint)
            self.lying(part, near * np.cos(angle), near * np.sin(angle), degrees)


def _traffic(rng: Rng, crossing: tuple[float, float], agents: tuple[int, ...]) -> tuple[Car, ...]:
    """Vehicles on lanes at one speed per lane, so that they never meet; the side road waits, or drives away."""
    cross_x, heading = crossing
    degrees = float(np.rad2deg(heading))
    lanes: list[list[tuple[float, float, float, float]]] = []  # x, y, heading, speed
    for side in (-1, 1):
        for lane in LANES:
            speed = rng.uniform(3.5, 11.0)
            at = np.arange(-140, 140, 16.0) + rng.uniform(-4, 4, 18)
            yaw = 0.0 if side > 0 else 180.0
            lanes.append([(x, side * lane, yaw, speed) for x in at])
    for way in (-1, 1):  # way 1 drives along the side road's heading, on its right half
        away = rng.uniform(3.5, 9.0)
        places = [(-STOP - 7.2 * k + rng.uniform(-0.3, 0.3), 0.0) for k in range(5)]
        places += [(STOP + 2 + 13.0 * k, away) for k in range(5)]
        c, s = np.cos(heading), np.sin(heading)
        lane_places = []
        for distance, speed in places:
            d, o = way * distance, way * 0.5 * SIDE_ROAD
            lane_places.append((cross_x + d * c - o * s, d * s + o * c, degrees + (0 if way > 0 else 180), speed))
        lanes.append(lane_places[:5])
        lanes.append(lane_places[5:])
    order = [2, 0, 4, 3, 6, 1, 5, 7]  # agents: forward, oncoming, from the side road, ...
    taken: set[tuple[float, float, float, float]] = set()
    cars = []
    for k, number in enumerate(agents):
        free = [p for p in lanes[order[k % len(order)]] if p not in taken]
        place = min(free, key=lambda p: np.hypot(p[0] - cross_x + (18 if abs(p[2]) < 90 else -10), p[1]))
        taken.add(place)
        cars.append(make_car(rng, number, np.array(place[:3]), place[3]))
    others = [p for lane in lanes for p in lane if p not in taken and rng.random() < 0.34]
    for side in (-1, 1):
        for x in np.arange(-120, 120, 6.6):
            if abs(x - cross_x) > 17 and rng.random() < 0.4:
                yaw = (0.0 if side > 0 else 180.0) + rng.normal(0, 1.2) + (180.0 if rng.random() < 0.1 else 0.0)
                others.append((float(x + rng.uniform(-0.4, 0.4)), side * PARKING, yaw, 0.0))
    number = max(agents)
    for place in others:
        number += int(rng.integers(1, 4))
        cars.append(make_car(rng, number, np.array(place[:3]), place[3]))
    return tuple(cars)
