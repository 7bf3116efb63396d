"""The vehicles of the synthetic street: their shapes, and where they are at a time.

A vehicle's own frame is OPV2V's: x forward, y right, z up, origin on the ground below its middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry import carla
from mapanything.opv2v.sample import texture as tex
from mapanything.opv2v.sample.solids import Rect, Solids, box, concatenate, frustum, wheel

Float = NDArray[np.float64]
Colour = tuple[float, float, float]

SECONDS_PER_FRAME = 0.1
MPS_TO_KMH = 3.6
WEAVE_DEG, WEAVE_PER_SECOND = 0.7, 0.6  # largest angle to the lane; radians of the sine per second

# Half length, half width, half height; where the cabin ends at its foot and at its roof, as parts of the half length;
# the height of its foot as a part of the whole.
_SHAPES = {
    "sedan": ((2.45, 1.06, 0.755), (-0.72, 0.42, -0.45, 0.12), 0.60),
    "hatchback": ((1.82, 0.93, 0.75), (-0.93, 0.50, -0.80, 0.15), 0.58),
    "suv": ((2.30, 0.97, 0.93), (-0.95, 0.48, -0.85, 0.22), 0.58),
    "pickup": ((2.79, 1.02, 0.97), (-0.20, 0.48, -0.12, 0.25), 0.55),
    "van": ((2.64, 1.00, 1.15), (-0.97, 0.86, -0.95, 0.50), 0.50),
    "truck": ((4.10, 1.26, 1.65), (0.52, 0.97, 0.52, 0.90), 0.45),
}
_WEIGHTS = (0.34, 0.2, 0.22, 0.08, 0.1, 0.06)
_COLOURS: tuple[Colour, ...] = (
    (0.94, 0.94, 0.94), (0.13, 0.14, 0.16), (0.55, 0.57, 0.60), (0.62, 0.09, 0.10), (0.10, 0.20, 0.48),
    (0.16, 0.34, 0.22), (0.78, 0.62, 0.16), (0.42, 0.30, 0.22), (0.30, 0.46, 0.62), (0.85, 0.38, 0.12),
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Car:
    """One vehicle.

    Attributes:
        half: (3,) half length, width, height of its box.
        centre: (3,) of its box in its own frame.
        start: (3,) x, y in the street's plane and heading in degrees there, at the first frame.
        speed: metres per second along the heading.
        sway: (4,) amplitude in degrees and phase of roll, then of pitch: what the suspension does.
        solids: in its own frame.
    """

    id: int
    half: Float
    centre: Float
    start: Float
    speed: float
    sway: Float
    solids: Solids

    def position(self, index: int) -> Float:
        """x, y, heading in degrees in the street's plane at the frame number `index`."""
        if not self.speed:
            return self.start
        # Drivers weave a little: a sine across the lane, with the heading that belongs to it.
        time, heading = index * SECONDS_PER_FRAME, np.deg2rad(self.start[2])
        way, phase = self.speed * time, WEAVE_PER_SECOND * time + self.sway[1]
        aside = self.speed * np.deg2rad(WEAVE_DEG) / WEAVE_PER_SECOND * np.sin(phase)
        c, s = np.cos(heading), np.sin(heading)
        return self.start + np.array([way * c - aside * s, way * s + aside * c, WEAVE_DEG * np.cos(phase)])

    def pose(self, world_from_street: Float, index: int) -> Float:
        """CARLA six-vector in the world, values that a float32 holds: the same number for every agent that lists it."""
        x, y, heading = self.position(index)
        time = index * SECONDS_PER_FRAME
        roll = self.sway[0] * np.sin(5.1 * time + self.sway[1])
        pitch = self.sway[2] * np.sin(3.7 * time + self.sway[3])
        local = carla.ue_matrix_from_pose([x, y, 0.0, roll, heading, pitch])
        return float32_values(carla.pose_from_ue_matrix(world_from_street @ local))


def float32_values(values: Float) -> Float:
    """Rounded to what CARLA's float32 could hold, as float64."""
    return np.asarray(values, dtype=np.float64).astype(np.float32).astype(np.float64)


def make_car(rng: np.random.Generator, number: int, start: Float, speed: float) -> Car:
    """A random vehicle; trucks do not park."""
    kinds = list(_SHAPES)
    kind = kinds[int(rng.choice(len(kinds), p=_WEIGHTS))]
    if kind == "truck" and speed == 0:
        kind = "van"
    half, cabin, foot = _SHAPES[kind]
    half_array = float32_values(np.array(half) * rng.uniform(0.97, 1.03))
    centre = float32_values(np.array([rng.normal(0, 0.01), rng.normal(0, 3e-4), half_array[2] + rng.uniform(0, 0.01)]))
    colour = _COLOURS[int(rng.integers(len(_COLOURS)))]
    sway = np.array([rng.uniform(0.05, 0.25), rng.uniform(0, 6), rng.uniform(0.05, 0.3), rng.uniform(0, 6)])
    if speed == 0:
        sway[[0, 2]] *= 0.1
    solids = _body(kind, half_array, centre, cabin, foot, colour)
    return Car(number, half_array, centre, np.asarray(start, dtype=np.float64), speed, sway, solids)


def _body(kind: str, half: Float, centre: Float, cabin: tuple[float, ...], foot: float, colour: Colour) -> Solids:
    """Everything lies within the box of `half` around `centre`."""
    length, width, height = half[0] - 0.02, half[1] - 0.03, 2 * half[2] - 0.01
    x0, y0 = centre[0], centre[1]
    radius = 0.48 if kind == "truck" else 0.33
    low, waist = 0.55 * radius + 0.04, foot * height
    dark: Colour = (0.16, 0.16, 0.17)

    def rect(back: float, front: float, half_width: float) -> Rect:
        return x0 + back, x0 + front, y0 - half_width, y0 + half_width

    parts = [
        frustum(rect(-length + 0.06, length - 0.06, width - 0.06), low, rect(-length, length, width), 0.62 * waist,
                tex.PAINT, colour),
        frustum(rect(-length, length, width), 0.62 * waist, rect(-length + 0.1, length - 0.16, width - 0.09), waist,
                tex.PAINT, colour),
        frustum(rect(cabin[0] * length, cabin[1] * length, width - 0.1), waist,
                rect(cabin[2] * length, cabin[3] * length, width - 0.28), height - 0.05,
                [tex.GLASS] * 4 + [tex.PAINT] * 2, colour, True),
        box(rect(cabin[2] * length - 0.02, cabin[3] * length + 0.02, width - 0.26), height - 0.06, height,
            tex.PAINT, colour),
    ]  # fmt: skip
    if kind == "truck":
        cargo = (0.86, 0.86, 0.84) if sum(colour) < 2 else (0.25, 0.34, 0.5)
        parts.append(box(rect(-length, 0.46 * length, width + 0.02), 0.9, height, tex.PLASTER, cargo))
    axle = 0.62 * length
    for x in (x0 - axle, x0 + axle):
        for side in (-1, 1):
            outer, inner = side * (width + 0.02), side * (width - 0.2)
            y = sorted((y0 + outer, y0 + inner))
            parts.append(wheel(x, y[0], y[1], radius, (tex.METAL, tex.TYRE), (dark, (1.0, 1.0, 1.0))))
    for side in (-1, 1):
        y = sorted((y0 + side * (width - 0.06), y0 + side * (width - 0.42)))
        lights = (0.42 * waist, 0.6 * waist)
        parts.append(box((x0 + length - 0.1, x0 + length + 0.01, *y), *lights, tex.METAL, (1.6, 1.6, 1.5)))
        parts.append(box((x0 - length - 0.01, x0 - length + 0.1, *y), *lights, tex.METAL, (1.1, 0.12, 0.1)))
    for end in (-1, 1):
        x = sorted((x0 + end * (length - 0.1), x0 + end * (length + 0.015)))
        parts.append(box((*x, y0 - 0.26, y0 + 0.26), low + 0.05, low + 0.17, tex.METAL, (1.5, 1.5, 1.5)))
    return concatenate(parts)
