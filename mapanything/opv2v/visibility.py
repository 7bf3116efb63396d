"""Finds returns of a LiDAR's sweep that a camera sees, though it stands elsewhere: in OPV2V up to 3 m ahead and 0.9 m lower.

A return hides what lies behind it only together with its neighbours, so the sweep is made a surface: triangles between the
scan lines, where three returns belong to one surface. Where they do not, the nearer one's surface is carried on towards the
farther one's direction, because an object ends between its last return and the next one; the farther surface goes on
behind. The ground above a kerb is carried back likewise, for the kerb stands anywhere between two lines.
A label is hidden where its pixel's ray meets one of these surfaces well before it, or where they stand around it on two sides.
Measured against rendered truth: docs/depth_labels.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapanything.geometry.triangles import Bools, Index, Projection, Tiles
from mapanything.geometry.types import Float
from mapanything.geometry.zbuffer import MIN_DEPTH, depth_from_points

VERSION = 1  # of what the test decides: another one gives other maps

MIN_RANGE = 0.5  # metres; nearer "returns" are the sensor's own housing, or the zeros of missing ones
# Returns farther apart than this know nothing of what is between them; in sparse sweeps, a few of their own steps.
MAX_GAP, MAX_STEPS = np.radians(3.0), (4.0, 1.5)
STEP = 0.3  # metres by which neighbours on one surface may differ, whatever their range
RELATIVE, NOISE = 0.02, 0.1  # what an inverse range may be off its neighbours' plane: a part of it, and metres of range
LOW = -1.5  # metres below the LiDAR: what lies there is ground, until its neighbours say otherwise
# How far towards the farther return a surface is carried on: by how much farther (1 - near / far) that one is.
GAPS, CARRIED = (0.1, 0.2), (0.9, 0.9, 1.0)
# A step up in the ground: its height as a part of what neighbours may differ, and of its inverse range; how far it is carried.
KERB_LEAST, KERB_MOST, KERB_PART = 2.0, 1.15, 0.7
MARGIN, MARGIN_BEHIND = 0.45, 1.0  # metres by which a label lies behind a surface that hides it
AROUND, AROUND_MARGIN, AROUND_SIDES = 0.0025, 0.05, 2  # radians to a side; a part of the depth; sides of four
_SIDES = np.array([[1, -1, 0, 0], [0, 0, 1, -1]])
_TURN = 8.0  # more than a circle: keys of lines do not mix


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """Surfaces as a sweep knows them, in its own frame.

    Attributes:
        points: (N, 3) returns, metres.
        known: (M, 3) triangles between returns of one surface, rows of `points`.
        carried: (J, 3, 3) corners of triangles that carry a surface on over a gap, to where it may end, or higher ground back.
        behind: (J, 3, 3) the farther surface in the same gaps.
    """

    points: Float
    known: Index
    carried: Float
    behind: Float


def sweep_surface(points: NDArray[np.floating]) -> Surface:
    """The surface of a sweep.

    Args:
        points: (N, 3) as stored: LiDAR frame, Unreal axes (z up), in any order. NaN, infinite ones and those at the origin are
            left out. Scan lines are found by their elevations; a cloud without lines is cut into bands as narrow as its
            returns are apart.
    """
    sweep = _sorted(points)
    if sweep is None or len(sweep.first) < 2:
        return Surface(np.zeros((0, 3)), np.zeros((0, 3), np.int64), np.zeros((0, 3, 3)), np.zeros((0, 3, 3)))
    return _surface(sweep, *_strips(sweep))


def hidden_labels(
    surface: Surface,
    camera_from_points: ArrayLike,
    intrinsics: ArrayLike,
    size: tuple[int, int],
    pixels: tuple[Index, Index],
    depth: NDArray[np.floating],
) -> Bools:
    """Labels that a camera can't see, or can't be told to see.

    Args:
        camera_from_points: (4, 4) from the surface's frame to the camera, OpenCV.
        intrinsics: (3, 3), pixel centres at integer coordinates. size: width, height.
        pixels: row and column (L,) of the labels. depth: (L,) their z-depth; the label is believed at its pixel's centre.

    Returns:
        (L,) True where hidden.
    """
    k = np.asarray(intrinsics, np.float64)
    reach = AROUND * k[0, 0]
    project = Projection(np.asarray(camera_from_points, np.float64), k, size, reach)
    pieces = [project(surface.points, surface.known), project(surface.carried), project(surface.behind)]
    z, y, x = np.asarray(depth, np.float64), pixels[0].astype(np.float64), pixels[1].astype(np.float64)
    tiles = Tiles(size)
    at = [tiles.nearest(piece, x, y, z - MARGIN) for piece in pieces]
    with np.errstate(divide="ignore"):
        hidden = (z - 1 / np.maximum(at[0], at[1]) > MARGIN) | (z - 1 / at[2] > MARGIN_BEHIND)
        doubtful = np.flatnonzero(~hidden & tiles.touched(pieces[1])[tiles.of(x, y)])
        x, y, z = x[doubtful, None], y[doubtful, None], z[doubtful, None]
        limit = z - np.maximum(0.5, AROUND_MARGIN * z)
        sides = [(x + reach * _SIDES[0]).ravel(), (y + reach * _SIDES[1]).ravel(), np.repeat(limit, 4)]
        beside = np.maximum(*(tiles.nearest(piece, *sides) for piece in pieces[:2])).reshape(-1, 4)
        hidden[doubtful] = (1 / beside < limit).sum(1) >= AROUND_SIDES
    return hidden


def visible_depth(
    points: NDArray[np.floating],
    camera_from_points: ArrayLike,
    intrinsics: ArrayLike,
    width: int,
    height: int,
    surface: Surface | None = None,
) -> NDArray[np.float32]:
    """The z-depth map of the returns that the camera sees.

    Args:
        points: (N, 3) as stored. surface: theirs, where it is at hand.

    Returns:
        (height, width) float32 metres, 0 where nothing is known; a part of `depth_from_points`.
    """
    depth = depth_from_points(points, camera_from_points, intrinsics, height, width)
    row, column = np.nonzero(depth)
    surface = sweep_surface(points) if surface is None else surface
    hidden = hidden_labels(surface, camera_from_points, intrinsics, (width, height), (row, column), depth[row, column])
    depth[row[hidden], column[hidden]] = 0
    return depth


def visible_returns(
    points: NDArray[np.floating],
    camera_from_points: ArrayLike,
    intrinsics: ArrayLike,
    width: int,
    height: int,
    surface: Surface | None = None,
) -> Bools:
    """Returns (N,) that the camera sees: those in its image that `visible_depth` would keep, alone in their pixel."""
    pose, k = np.asarray(camera_from_points, np.float64), np.asarray(intrinsics, np.float64)
    seen = np.zeros(len(points), bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y, z = pose[:3, :3] @ np.asarray(points, np.float64).T + pose[:3, 3:]
        column, row = k[0, 0] * (x / z) + (k[0, 2] + 0.5), k[1, 1] * (y / z) + (k[1, 2] + 0.5)
        inside = np.flatnonzero((z >= MIN_DEPTH) & (column >= 0) & (column < width) & (row >= 0) & (row < height))
    pixels = row[inside].astype(np.int64), column[inside].astype(np.int64)
    surface = sweep_surface(points) if surface is None else surface
    seen[inside] = ~hidden_labels(surface, pose, k, (width, height), pixels, z[inside])
    return seen


# The sweep as a surface


@dataclass(frozen=True, slots=True, eq=False)
class _Sweep:
    """Returns in order of line, from the lowest up, then azimuth. `first` and `last` are rows (lines,) of each line."""

    points: Float
    range: Float
    elevation: Float
    azimuth: Float
    line: Index
    first: Index
    last: Index


def _sorted(points: NDArray[np.floating]) -> _Sweep | None:
    p = np.asarray(points, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.sqrt(np.einsum("ij,ij->i", p, p))
        p, distance = (values[np.isfinite(distance) & (distance > MIN_RANGE)] for values in (p, distance))
    if len(p) < 3:
        return None
    elevation, azimuth = np.arcsin(p[:, 2] / distance), np.arctan2(p[:, 1], p[:, 0])
    line = _lines(elevation)
    order = np.argsort(line * _TURN + azimuth, kind="stable")
    line = line[order]
    first = np.searchsorted(line, np.arange(line[-1] + 1))
    last = np.append(first[1:], len(line)) - 1
    return _Sweep(p[order], distance[order], elevation[order], azimuth[order], line, first, last)


def _lines(elevation: Float) -> Index:
    """Every return's scan line, from 0 at the bottom: runs of elevations with gaps between them; else narrow bands."""
    cell = ((elevation + np.pi / 2) * (50 * 180 / np.pi)).astype(np.int64)  # 0.02 degrees
    taken = np.bincount(cell, minlength=9001) > 0
    for gap in (2, 5, 10):
        near = taken.copy()
        for k in range(1, gap):
            near[k:] |= taken[:-k]
        number = np.cumsum(np.diff(near, prepend=False) & near) - 1
        line, count = number[cell], int(number[-1]) + 1
        if 2 <= count <= len(elevation) / 16:
            cells = np.flatnonzero(taken)
            low, high = (np.full(count, fill) for fill in (9001, 0))
            np.minimum.at(low, number[cells], cells)
            np.maximum.at(high, number[cells], cells)
            if np.percentile(high - low, 90) < 0.25 * np.median(np.diff(low + high)):
                return line
    low, span = elevation.min(), max(float(np.ptp(elevation)), 1e-6)
    bands = max(1, int(np.sqrt(len(elevation) * span / (2 * np.pi))))
    _, line = np.unique(np.minimum((elevation - low) / span * bands, bands - 1).astype(np.int64), return_inverse=True)
    return line


def _turn(angle: Float) -> Float:
    return angle - 2 * np.pi * np.rint(angle / (2 * np.pi))


def _strips(sweep: _Sweep) -> tuple[Index, Index, Index]:
    """Neighbours of every return: the one before it in its line, the last at or before its azimuth in those below and above.

    Together with the return itself these are triangles, which fill the strips between the lines. -1: there is no such line.
    """
    here = np.arange(len(sweep.line))
    before = here - 1
    before[sweep.first] = sweep.last
    key = sweep.line * _TURN + sweep.azimuth
    others = []
    for step, side in ((-1, "left"), (1, "right")):  # one of them takes its equals, so that a strip is filled once
        line = sweep.line + step
        there = (line >= 0) & (line < len(sweep.first))
        line = np.where(there, line, 0)
        at = np.searchsorted(key, key + step * _TURN, side=side) - 1  # type: ignore[call-overload]
        at = np.where(at < sweep.first[line], sweep.last[line], at)
        others.append(np.where(there, at, -1))
    return before, others[0], others[1]


def _nearest(sweep: _Sweep, at: Index, after: Index) -> Index:
    """The nearer in azimuth of the returns at and after it in another line, if within a degree; else -1."""
    following = after[at]
    away, away_following = (np.abs(_turn(sweep.azimuth[k] - sweep.azimuth)) for k in (at, following))
    nearest = np.where(away_following < away, following, at)
    return np.where((at >= 0) & (np.minimum(away, away_following) < np.radians(1)), nearest, -1)


def _surface(sweep: _Sweep, before: Index, below: Index, above: Index) -> Surface:
    q, elevation, azimuth = 1 / sweep.range, sweep.elevation, sweep.azimuth
    # A plane's inverse range is linear over small angles: surfaces are told apart and carried on by its slope.
    allowed = RELATIVE * q + NOISE * q * q
    after = np.empty_like(before)
    after[before] = np.arange(len(before))

    def slope(other: Index, angle: Float, least: float, reach: float) -> Float:
        """The slope of the inverse range over the angle, towards `other`; NaN unless the same holds one return farther."""
        step = _turn(angle[other] - angle)
        one = np.where((other >= 0) & (np.abs(step) > least), (q[other] - q) / step, np.nan)
        return np.where(np.abs(one - one[other]) * np.minimum(np.abs(step), reach) < allowed, one, np.nan)

    with np.errstate(invalid="ignore", divide="ignore"):
        upper = _nearest(sweep, above, after)
        down = slope(_nearest(sweep, below, after), elevation, 1e-3, np.inf)
        up = slope(upper, elevation, 1e-3, np.inf)
        back, ahead = slope(before, azimuth, 1e-6, 0.005), slope(after, azimuth, 1e-6, 0.005)

        def joined(a: Index, b: Index, angle: Float, slope_a: Float, slope_b: Float) -> Bools:
            """True for two returns on one surface; `slope_a` is a's on its side away from b."""
            step, rise, limit = _turn(angle[b] - angle[a]), q[b] - q[a], np.minimum(allowed[a], allowed[b])
            on = (np.abs(sweep.range[a] - sweep.range[b]) < STEP) | (np.abs(rise) < limit)
            on |= (np.abs(rise - slope_a[a] * step) < limit) | (np.abs(rise - slope_b[b] * step) < limit)
            # The nearer one's surface falls away as fast as this, or faster.
            return on | ((rise < 0) & (rise >= slope_a[a] * step - limit)) | ((rise > 0) & (rise <= slope_b[b] * step + limit))

        here = np.arange(len(before))
        corners = np.concatenate([np.stack([before, here, below], 1), np.stack([before, here, above], 1)])
        beside = np.tile(joined(before, here, azimuth, back, ahead), 2)
        aside = [_turn(azimuth[corners[:, 1]] - azimuth[corners[:, k]]) for k in (0, 2)]
        upward = np.abs(elevation[corners[:, 1]] - elevation[corners[:, 2]])
        there = corners[:, 2] >= 0
        most = [max(MAX_GAP, n * float(np.median(gap[there]))) for n, gap in zip(MAX_STEPS, (aside[0], upward), strict=True)]
        whole = there & (aside[0] > 0) & (aside[0] < most[0]) & (aside[1] >= 0) & (aside[1] < most[0]) & (upward < most[1])
        is_below = np.arange(len(corners)) < len(before)
        corners, beside, is_below = corners[whole], beside[whole], is_below[whole]

        def across(k: int) -> Bools:
            own, other = corners[:, k], corners[:, 2]
            low, high = np.where(is_below, other, own), np.where(is_below, own, other)
            return joined(low, high, elevation, down, up)

        edges = np.stack([beside, across(0), across(1)], 1)
    whole = edges.sum(1) >= 2
    carried, behind = _over_gaps(sweep, q, down, up, corners[~whole], edges[~whole])
    known, is_low = corners[whole], np.stack([~is_below, ~is_below, is_below], 1)[whole]
    steps = _up_steps(sweep, q, up, upper, allowed, known, is_low)
    return Surface(sweep.points, known, np.concatenate([carried, steps]), behind)


def _up_steps(sweep: _Sweep, q: Float, up: Float, upper: Index, allowed: Float, corners: Index, is_low: Bools) -> Float:
    """Higher ground beyond a kerb, carried back towards the line before it: triangles (S, 3, 3).

    The step is somewhere between the two lines. `corners` (M, 3) are of known triangles, `is_low` those in the lower line.
    """
    height, elevation = sweep.points[:, 2], sweep.elevation
    with np.errstate(invalid="ignore"):
        slope = np.where(np.isnan(up) & (height < LOW), np.cos(elevation) / np.minimum(height, LOW), up)
        raised = q[upper] + slope[upper] * (elevation - elevation[upper])
        is_step = (upper >= 0) & (height < LOW) & (raised > q + KERB_LEAST * allowed) & (raised < KERB_MOST * q)
    raised = np.where(is_step, raised, q)
    some = (is_step[corners] & is_low).any(1)
    corners, is_low = corners[some], is_low[some]
    direction, inverse = sweep.points[corners] * q[corners][..., None], q[corners]
    share = ~is_low / (~is_low).sum(1, keepdims=True)
    start, start_inverse = (direction * share[..., None]).sum(1, keepdims=True), (inverse * share).sum(1, keepdims=True)
    inverse = np.where(is_low, start_inverse + KERB_PART * (raised[corners] - start_inverse), inverse)
    return np.where(is_low[..., None], start + KERB_PART * (direction - start), direction) / inverse[..., None]


def _over_gaps(sweep: _Sweep, q: Float, down: Float, up: Float, corners: Index, edges: Bools) -> tuple[Float, Float]:
    """Triangles over gaps: the nearer surface carried on, and the farther one behind it, (J, 3, 3) each.

    `edges` (J, 3): whether corners 0 and 1, 0 and 2, 1 and 2 are joined; at most one pair is.
    """
    rows = np.arange(len(corners))
    nearest = sweep.range[corners].argmin(1)
    joined = np.ones((len(corners), 3, 3), bool)
    for k, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        joined[:, a, b] = joined[:, b, a] = edges[:, k]
    near = joined[rows, nearest]  # the nearest corner and what is joined to it
    start = corners[rows, nearest][:, None]
    points, inverse = sweep.points[corners], q[corners]
    gap = 1 - np.where(near, 0, inverse).max(1) / inverse[rows, nearest]
    part = np.where(near[:, 0] == near[:, 1], np.asarray(CARRIED)[np.searchsorted(GAPS, gap)], 1.0)[:, None]
    # Going up, along its own slope; ground with no slope yet is level where the next return is no higher than a kerb.
    rise = sweep.elevation[corners] - sweep.elevation[start]
    height = sweep.points[start, 2]
    is_level = (height < LOW) & (points[..., 2] - height < 0.4)
    level = np.where(is_level, np.cos(sweep.elevation[start]) / np.minimum(height, LOW), 0)
    slope = np.where(rise > 0, np.where(np.isnan(down[start]), level, down[start]), np.nan_to_num(up[start]))
    reached = np.clip(q[start] + slope * part * rise, np.minimum(inverse, q[start]), q[start])
    direction = points * inverse[..., None]
    origin = direction[rows, nearest][:, None]
    end = (origin + (direction - origin) * part[..., None]) / reached[..., None]
    carried = np.where(near[..., None], points, end)
    far = np.where(near, 0, sweep.range[corners]).max(1)[:, None, None]
    return carried, np.where(near[..., None], direction * far, points)
