"""Triangles in an image, and which of them lie over given places: for a few thousand places far faster than drawing them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.types import Float
from mapanything.geometry.zbuffer import MIN_DEPTH

Index = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Triangles:
    """Triangles in an image: columns, rows and inverse depths (3, M) of their corners."""

    u: Float
    v: Float
    inverse: Float


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    pose: Float
    intrinsics: Float
    size: tuple[int, int]
    margin: float

    def __call__(self, points: Float, corners: Index | None = None) -> Triangles:
        """The triangles in front of the camera that reach into the image: rows `corners` of `points`, or points (M, 3, 3)."""
        x, y, z = self.pose[:3, :3] @ points.reshape(-1, 3).T + self.pose[:3, 3:]
        front = z > MIN_DEPTH
        inverse = 1 / np.where(front, z, 1)
        u, v = (self.intrinsics[i, i] * c * inverse + self.intrinsics[i, 2] for i, c in enumerate((x, y)))
        width, height = self.size
        if corners is None:
            corners = np.arange(len(u)).reshape(-1, 3)
        # Sides of the image that a corner lies beyond: triangles with all corners beyond one of them are out.
        beyond = (u < -self.margin) | (u > width - 1 + self.margin) * np.uint8(2)
        beyond |= (v < -self.margin) * np.uint8(4) | (v > height - 1 + self.margin) * np.uint8(8)
        beyond[~front] = 16
        codes = beyond[corners]
        out = (codes[:, 0] & codes[:, 1] & codes[:, 2]) | ((codes[:, 0] | codes[:, 1] | codes[:, 2]) & 16)
        corners = corners[out == 0]
        corners = np.ascontiguousarray(corners.T)
        return Triangles(u[corners], v[corners], inverse[corners])


class Tiles:
    """Square tiles of an image, by which labels find the triangles over them."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.side = max(4, round(size[0] / 100))
        self.columns, self.rows = (-(-n // self.side) for n in size)

    def of(self, x: Float, y: Float) -> Index:
        column, row = (
            np.clip(values, 0, n - 1).astype(np.int64) // self.side for values, n in zip((x, y), self.size, strict=True)
        )
        return row * self.columns + column

    def _box(self, triangles: Triangles) -> list[Index]:
        """First and last column, first and last row of tiles."""
        return [
            np.clip(bound, 0, n - 1).astype(np.int64) // self.side
            for values, n in ((triangles.u, self.size[0]), (triangles.v, self.size[1]))
            for bound in (values.min(0), values.max(0))
        ]

    def touched(self, triangles: Triangles) -> Bools:
        """Tiles that the triangles' boxes touch."""
        left, right, top, bottom = self._box(triangles)
        steps = np.zeros((self.rows + 1, self.columns + 1), np.int64)
        for row, column, sign in ((top, left, 1), (bottom + 1, right + 1, 1), (top, right + 1, -1), (bottom + 1, left, -1)):
            np.add.at(steps, (row, column), sign)
        return (steps.cumsum(0).cumsum(1)[:-1, :-1] > 0).ravel()

    def nearest(self, triangles: Triangles, x: Float, y: Float, farthest: Float) -> Float:
        """The largest inverse depth (L,) of the triangles over places (x, y); 0 where none is nearer than `farthest`."""
        best = np.zeros(len(x))
        tile = self.of(x, y)
        order = np.argsort(tile, kind="stable")
        count = np.bincount(tile, minlength=self.rows * self.columns)
        start = np.cumsum(count) - count
        limit = np.zeros(len(count))
        np.maximum.at(limit, tile, farthest)
        # Triangles to tiles, tiles to the places in them.
        left, right, top, bottom = self._box(triangles)
        across = right - left + 1
        which, k = _repeat(across * (bottom - top + 1))
        tiles = (top[which] + k // across[which]) * self.columns + left[which] + k % across[which]
        near = 1 / triangles.inverse.max(0)
        hit = near[which] < limit[tiles]
        which, tiles = which[hit], tiles[hit]
        pair, k = _repeat(count[tiles])
        which, place = which[pair], order[start[tiles[pair]] + k]
        at_x, at_y = x[place], y[place]
        u, v = ([corner[which] - at for corner in corners] for corners, at in ((triangles.u, at_x), (triangles.v, at_y)))
        weights = np.stack([u[i] * v[j] - u[j] * v[i] for i, j in ((1, 2), (2, 0), (0, 1))])
        inside = np.flatnonzero(((weights.min(0) >= -1e-9) | (weights.max(0) <= 1e-9)) & (np.abs(weights).max(0) > 1e-12))
        weights, which = weights[:, inside], which[inside]
        inverse = (weights * triangles.inverse[:, which]).sum(0) / weights.sum(0)
        np.maximum.at(best, place[inside], inverse)
        return best


def _repeat(counts: Index) -> tuple[Index, Index]:
    """Row i `counts[i]` times, and how many of the same came before."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
