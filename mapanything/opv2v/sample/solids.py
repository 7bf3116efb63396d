"""Convex solids with textured faces: the shapes of the synthetic data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.types import Floats

Rect = Sequence[float]  # two x, two y; metres

_MAX_VERTICES = 16
_BOX_FACES = ((0, 2, 6, 4), (1, 5, 7, 3), (0, 4, 5, 1), (2, 3, 7, 6), (0, 1, 3, 2), (4, 6, 7, 5))  # -x +x -y +y -z +z
_WHEEL_FACES = (*((i, (i + 1) % 8, 8 + (i + 1) % 8, 8 + i) for i in range(8)), range(8), range(8, 16))


class Look(NamedTuple):
    """The look of a face: its texture, the colour that multiplies it, and whether it is stretched over the whole face."""

    material: int
    tint: Sequence[float] = (1.0, 1.0, 1.0)
    fit: bool = False


class Solids(NamedTuple):
    """S convex solids with F faces in all, in one frame."""

    planes: Floats  # (F, 4) outward unit normal and h: inside is n·x <= h
    uv: Floats  # (F, 2, 4) texture coordinates of a point: uv[:, :, :3] @ x + uv[:, :, 3]
    material: NDArray[np.intp]  # (F,) index into textures
    tint: Floats  # (F, 3) colour that multiplies the texture
    owner: NDArray[np.intp]  # (F,) id of the vehicle it belongs to, 0 for the rest
    sizes: NDArray[np.intp]  # (S,) how many faces each solid has
    vertices: Floats  # (S, 16, 3), padded with repetitions; NaN for a solid without bounds (the ground)

    def moved(self, matrix: Floats) -> Solids:
        """The same solids after the transformation `matrix` (4, 4), which keeps lengths."""
        rotation, shift = matrix[:3, :3], matrix[:3, 3]
        normals, axes = self.planes[:, :3] @ rotation.T, self.uv[..., :3] @ rotation.T
        planes = np.concatenate([normals, self.planes[:, 3:] + (normals @ shift)[:, None]], axis=1)
        uv = np.concatenate([axes, self.uv[..., 3:] - (axes @ shift)[..., None]], axis=2)
        return self._replace(planes=planes, uv=uv, vertices=self.vertices @ rotation.T + shift)

    def without(self, owner: int) -> Solids:
        """All but one vehicle's solids."""
        faces = self.owner != owner
        whole = faces[np.cumsum(self.sizes) - 1]
        return Solids._make([*(values[faces] for values in self[:5]), *(values[whole] for values in self[5:])])


def joined(parts: Iterable[Solids]) -> Solids:
    """All solids of all parts, in order."""
    return Solids._make(map(np.concatenate, zip(*parts, strict=True)))


def convex(corners: Sequence[Sequence[float]], faces: Sequence[Sequence[int]], sides: Look, lids: Look) -> Solids:
    """One convex solid from its corners and faces (loops of corner numbers, any sense of rotation); the last two are lids.

    Texture coordinates are metres along the face (u horizontal, v upwards), or 0..1 across it where its look says `fit`.
    """
    points = np.asarray(corners, dtype=np.float64)
    centre, longest = points.mean(axis=0), max(map(len, faces))
    loops = points[[[*loop, *[loop[-1]] * (longest - len(loop))] for loop in faces]]  # (F, L, 3)
    # Newell's formula: also right where corners coincide (the tip of a cone, the padding)
    normals = _cross(loops - centre, np.roll(loops, -1, axis=1) - centre).sum(axis=1)
    normals /= np.sqrt((normals * normals).sum(axis=1, keepdims=True))
    normals *= np.where((normals * (loops.mean(axis=1) - centre)).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    offsets = (loops * normals[:, None]).sum(axis=2).mean(axis=1, keepdims=True)
    horizontal = np.stack([-normals[:, 1], normals[:, 0], np.zeros(len(normals))], axis=1)
    side = np.where(np.abs(normals[:, 2:]) < 0.9, horizontal, [1.0, 0.0, 0.0])
    side /= np.sqrt((side * side).sum(axis=1, keepdims=True))
    axes = np.stack([side, _cross(normals, side)], axis=1)  # (F, 2, 3)
    along = (axes[:, :, None] * loops[:, None]).sum(axis=3)  # (F, 2, L)
    material, tint, fit = map(np.array, zip(*[sides] * (len(faces) - 2), lids, lids, strict=True))
    scale = np.where(fit[:, None], 1.0 / np.where(fit[:, None], np.ptp(along, axis=2), 1.0), 1.0)[..., None]
    shift = np.where(fit[:, None], -along.min(axis=2), 0.0)[..., None] * scale
    return Solids(
        planes=np.concatenate([normals, offsets], axis=1),
        uv=np.concatenate([axes * scale, shift], axis=2),
        material=material,
        tint=tint,
        owner=np.zeros(len(faces), dtype=np.intp),
        sizes=np.array([len(faces)]),
        vertices=np.concatenate([points, np.repeat(points[-1:], _MAX_VERTICES - len(points), axis=0)])[None],
    )


def _cross(a: Floats, b: Floats) -> Floats:
    """Cross products (..., 3); np.cross is slow on few vectors."""
    return np.stack([a[..., i] * b[..., j] - a[..., j] * b[..., i] for i, j in ((1, 2), (2, 0), (0, 1))], axis=-1)


def frustum(bottom: Rect, z_bottom: float, top: Rect, z_top: float, sides: Look, lids: Look | None = None) -> Solids:
    """A box whose top rectangle may differ from its bottom one: cabins, roofs, cones; faces -x, +x, -y, +y, bottom, top."""
    rects = [(sorted(rect[:2]), sorted(rect[2:]), z) for rect, z in ((bottom, z_bottom), (top, z_top))]
    return convex([(x, y, z) for xs, ys, z in rects for y in ys for x in xs], _BOX_FACES, sides, lids or sides)


def box(rect: Rect, z_bottom: float, z_top: float, sides: Look, lids: Look | None = None) -> Solids:
    """A box along the axes of its own frame."""
    return frustum(rect, z_bottom, rect, z_top, sides, lids)


def wheel(x: float, y0: float, y1: float, radius: float, tread: Look, flanks: Look) -> Solids:
    """An eight-sided wheel standing on z = 0, its axis along y."""
    r = radius / np.cos(np.pi / 8)  # flats, not corners, at `radius`: the wheel stays above the ground
    angles = (np.arange(8) + 0.5) * (np.pi / 4)
    ring = [(x + r * np.cos(a), radius + r * np.sin(a)) for a in angles]
    return convex([(px, y, pz) for y in sorted((y0, y1)) for px, pz in ring], _WHEEL_FACES, tread, flanks)


def ground(look: Look) -> Solids:
    """Everything below z = 0."""
    top = box((0, 1, 0, 1), -1, 0, look)
    return Solids._make([*(values[-1:] for values in top[:5]), np.array([1]), np.full((1, _MAX_VERTICES, 3), np.nan)])
