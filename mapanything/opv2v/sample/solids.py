"""Convex solids and an exact, fast ray caster for them: the geometry of the synthetic data set.

Notable: on the grid of a pinhole camera (or of a LiDAR's sweep) the *inverse* distance to a plane is linear in the
ray's direction, so a solid costs an addition and a min or max per face and pixel, no division. With the sensor at the
origin and a face n·x <= h: h < 0 means that rays enter through it (at 1/t = n·d/h), h > 0 that they leave. A ray hits
the solid when the last entry comes before the first exit: min(entries) > max(exits, 0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

MAX_VERTICES = 16
NEAR = 0.02  # metres: solids are clipped here when their outline in the image is bounded
_BOX_FACES = ((0, 2, 6, 4), (1, 5, 7, 3), (0, 4, 5, 1), (2, 3, 7, 6), (0, 1, 3, 2), (4, 6, 7, 5))  # -x +x -y +y -z +z


@dataclass(frozen=True, slots=True, eq=False)
class Solids:
    """S convex solids with F faces in all, in one frame.

    Attributes:
        planes: (F, 4) outward unit normal and h: inside is n·x <= h.
        uv: (F, 2, 4) texture coordinates of a point: uv[:, :, :3] @ x + uv[:, :, 3].
        material: (F,) index into textures.
        tint: (F, 3) colour that multiplies the texture.
        first: (S + 1,) where each solid's faces begin.
        vertices: (S, 16, 3), padded with repetitions; NaN for a solid without bounds (the ground).
        owner: (S,) id of the vehicle it belongs to, 0 for the rest.
    """

    planes: Float
    uv: Float
    material: NDArray[np.intp]
    tint: Float
    first: NDArray[np.intp]
    vertices: Float
    owner: NDArray[np.intp]

    def moved(self, matrix: Float, owner: int | None = None) -> Solids:
        """The same solids after the rigid transformation `matrix` (4, 4); optionally of another owner."""
        rotation, shift = matrix[:3, :3], matrix[:3, 3]
        normals = self.planes[:, :3] @ rotation.T
        axes = self.uv[..., :3] @ rotation.T
        return Solids(
            np.concatenate([normals, self.planes[:, 3:] + (normals @ shift)[:, None]], axis=1),
            np.concatenate([axes, self.uv[..., 3:] - (axes @ shift)[..., None]], axis=2),
            self.material,
            self.tint,
            self.first,
            self.vertices @ rotation.T + shift,
            self.owner if owner is None else np.full_like(self.owner, owner),
        )

    def without(self, owner: int) -> Solids:
        """All but one vehicle's solids."""
        keep = self.owner != owner
        sizes = np.diff(self.first)
        faces = np.repeat(keep, sizes)
        return Solids(
            self.planes[faces],
            self.uv[faces],
            self.material[faces],
            self.tint[faces],
            np.concatenate([[0], np.cumsum(sizes[keep])]),
            self.vertices[keep],
            self.owner[keep],
        )

    @property
    def face_owner(self) -> NDArray[np.intp]:
        """(F,) owner of each face."""
        return np.repeat(self.owner, np.diff(self.first))


def concatenate(parts: Sequence[Solids]) -> Solids:
    """All solids of all parts, in order."""
    starts = np.cumsum([0] + [len(p.planes) for p in parts])
    return Solids(
        np.concatenate([p.planes for p in parts]),
        np.concatenate([p.uv for p in parts]),
        np.concatenate([p.material for p in parts]),
        np.concatenate([p.tint for p in parts]),
        np.concatenate([p.first[:-1] + s for p, s in zip(parts, starts, strict=False)] + [starts[-1:]]),
        np.concatenate([p.vertices for p in parts]),
        np.concatenate([p.owner for p in parts]),
    )


def convex(
    vertices: Sequence[Sequence[float]],
    faces: Sequence[Sequence[int]],
    materials: Sequence[int],
    tints: Sequence[Sequence[float]],
    fit: Sequence[bool],
) -> Solids:
    """One convex solid from its corners and faces (loops of corner numbers, any sense of rotation).

    Texture coordinates are metres along the face (u horizontal, v upwards), or 0..1 across it where `fit` says so.
    """
    points = np.asarray(vertices, dtype=np.float64)
    centre = points.mean(axis=0)
    longest = max(map(len, faces))
    corners = points[[[*loop, *[loop[-1]] * (longest - len(loop))] for loop in faces]]  # (F, L, 3)
    # Newell's formula: also right where corners coincide (the tip of a cone, the padding)
    normals = _cross(corners - centre, np.roll(corners, -1, axis=1) - centre).sum(axis=1)
    normals /= np.sqrt((normals * normals).sum(axis=1, keepdims=True))
    normals *= np.where((normals * (corners.mean(axis=1) - centre)).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    offsets = (corners * normals[:, None]).sum(axis=2).mean(axis=1, keepdims=True)
    level = np.abs(normals[:, 2]) < 0.9
    horizontal = np.stack([-normals[:, 1], normals[:, 0], np.zeros(len(normals))], axis=1)
    side = np.where(level[:, None], horizontal, [1.0, 0.0, 0.0])
    side /= np.sqrt((side * side).sum(axis=1, keepdims=True))
    axes = np.stack([side, _cross(normals, side)], axis=1)  # (F, 2, 3)
    along = (axes[:, :, None] * corners[:, None]).sum(axis=3)  # (F, 2, L)
    low, span = along.min(axis=2), np.ptp(along, axis=2)
    fitted = np.asarray(fit)[:, None]
    scale = np.where(fitted, 1.0 / np.where(fitted, span, 1.0), 1.0)[..., None]
    uv = np.concatenate([axes * scale, np.where(fitted, -low, 0.0)[..., None] * scale], axis=2)
    padded = np.concatenate([points, np.repeat(points[-1:], MAX_VERTICES - len(points), axis=0)])
    return Solids(
        np.concatenate([normals, offsets], axis=1),
        uv,
        np.array(materials, dtype=np.intp),
        np.array(tints, dtype=np.float64),
        np.array([0, len(faces)]),
        padded[None],
        np.zeros(1, dtype=np.intp),
    )


def _cross(a: Float, b: Float) -> Float:
    """Cross products (..., 3); np.cross is slow on few vectors."""
    x, y, z = (a[..., i] * b[..., j] - a[..., j] * b[..., i] for i, j in ((1, 2), (2, 0), (0, 1)))
    return np.stack([x, y, z], axis=-1)


Rect = tuple[float, float, float, float]


def frustum(
    bottom: Rect,
    z_bottom: float,
    top: Rect,
    z_top: float,
    materials: int | Sequence[int],
    tints: Sequence[float] | Sequence[Sequence[float]],
    fit: bool | Sequence[bool] = False,
) -> Solids:
    """A box whose top rectangle (x0, x1, y0, y1) may differ from its bottom one: boxes, cabins, roofs, cones.

    Faces in the order -x, +x, -y, +y, bottom, top; one material, tint or fit for all, or six.
    """
    rects = ((bottom, z_bottom), (top, z_top))
    corners = [(r[i], r[2 + j], z) for r, z in rects for j in (0, 1) for i in (0, 1)]
    every = range(6)
    return convex(
        corners,
        _BOX_FACES,
        [materials] * 6 if isinstance(materials, int) else materials,
        tints if isinstance(tints[0], Sequence) else [tints for _ in every],  # type: ignore[arg-type]
        [fit] * 6 if isinstance(fit, bool) else fit,
    )


def box(
    rect: Rect,
    z_bottom: float,
    z_top: float,
    materials: int | Sequence[int],
    tints: Sequence[float] | Sequence[Sequence[float]],
    fit: bool | Sequence[bool] = False,
) -> Solids:
    """A box, axis-aligned in its own frame; `rect` is (x0, x1, y0, y1)."""
    return frustum(rect, z_bottom, rect, z_top, materials, tints, fit)


def wheel(x: float, y0: float, y1: float, radius: float, materials: Sequence[int], tints: Sequence[Sequence[float]]) -> Solids:
    """An eight-sided wheel standing on z = 0, its axis along y; materials and tints of (tread, flanks)."""
    angles = (np.arange(8) + 0.5) * (np.pi / 4)
    r = radius / np.cos(np.pi / 8)  # flats, not corners, at `radius`: the wheel stays above the ground
    ring = [(x + r * np.cos(a), radius + r * np.sin(a)) for a in angles]
    corners = [(px, y, pz) for y in (y0, y1) for px, pz in ring]
    loops = [(i, (i + 1) % 8, 8 + (i + 1) % 8, 8 + i) for i in range(8)] + [tuple(range(8)), tuple(range(8, 16))]
    which = [0] * 8 + [1, 1]
    return convex(corners, loops, [materials[w] for w in which], [tints[w] for w in which], [False] * 8 + [True, True])


def ground(tint: Sequence[float], material: int) -> Solids:
    """Everything below z = 0."""
    uv = np.array([[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]])
    nowhere = np.full((1, MAX_VERTICES, 3), np.nan)
    return Solids(
        np.array([[0.0, 0, 1, 0]]),
        uv,
        np.array([material]),
        np.array([tint], dtype=np.float64),
        np.array([0, 1]),
        nowhere,
        np.zeros(1, dtype=np.intp),
    )


Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True, eq=False)
class PinholeRays:
    """Rays (x, y, 1) through the pixels of an image, OpenCV axes; `x` (W,) and `y` (H,)."""

    x: Float
    y: Float

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)

    def dot(self, n: Float, window: Window) -> Float:
        """n·d for the rays of a window (rows, columns)."""
        return np.add.outer(n[1] * self.y[window[0]], n[0] * self.x[window[1]] + n[2])

    def windows(self, vertices: Float) -> Iterator[tuple[int, Window]]:
        """Number of a solid and the pixels that it can cover, for every one in view of `vertices` (S, N, 3)."""
        front = vertices[..., 2] >= NEAR  # False for NaN
        whole = front.all(axis=1)
        uv = vertices[whole, :, :2] / vertices[whole, :, 2:]
        low, high = np.full((len(vertices), 2), -np.inf), np.full((len(vertices), 2), -np.inf)
        low[whole], high[whole] = uv.min(axis=1), uv.max(axis=1)
        for k in np.flatnonzero(front.any(axis=1) & ~whole):
            # Where the hull crosses the near plane: segments from every corner before it to every one behind it.
            seen, behind = vertices[k, front[k]], vertices[k, ~front[k]]
            part = (seen[:, None, 2] - NEAR) / (seen[:, None, 2] - behind[None, :, 2])
            crossing = seen[:, None] + part[..., None] * (behind[None] - seen[:, None])
            seen = np.concatenate([seen, crossing.reshape(-1, 3)])
            low[k] = (seen[:, :2] / seen[:, 2:]).min(axis=0)
            high[k] = (seen[:, :2] / seen[:, 2:]).max(axis=0)
        boundless = np.isnan(vertices[:, 0, 0])
        low[boundless], high[boundless] = -np.inf, np.inf
        left, right = np.searchsorted(self.x, low[:, 0] - 1e-9), np.searchsorted(self.x, high[:, 0] + 1e-9)
        top, bottom = np.searchsorted(self.y, low[:, 1] - 1e-9), np.searchsorted(self.y, high[:, 1] + 1e-9)
        seen_at_all = (left < right) & (top < bottom)
        bounds = np.stack([top, bottom, left, right], axis=1).tolist()
        for k in np.flatnonzero(seen_at_all).tolist():
            yield k, (slice(*bounds[k][:2]), slice(*bounds[k][2:]))


@dataclass(frozen=True, slots=True, eq=False)
class SweepRays:
    """A LiDAR's unit rays: E elevations by A azimuths spread evenly over the full circle, radians, Unreal axes."""

    elevation: Float
    azimuth: Float
    max_range: float

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.elevation), len(self.azimuth)

    def dot(self, n: Float, window: Window) -> Float:
        azimuth, elevation = self.azimuth[window[1]], self.elevation[window[0]]
        across = n[0] * np.cos(azimuth) + n[1] * np.sin(azimuth)
        return np.cos(elevation)[:, None] * across + (n[2] * np.sin(elevation))[:, None]

    def directions(self) -> Float:
        """(E, A, 3)."""
        ce, se = np.cos(self.elevation)[:, None], np.sin(self.elevation)[:, None]
        return np.stack(np.broadcast_arrays(ce * np.cos(self.azimuth), ce * np.sin(self.azimuth), se), axis=-1)

    def windows(self, vertices: Float) -> Iterator[tuple[int, Window]]:
        rows, count = slice(0, len(self.elevation)), len(self.azimuth)
        step = 2 * np.pi / count
        middle = vertices.mean(axis=1)
        reach = np.sqrt(((vertices - middle[:, None]) ** 2).sum(axis=2)).max(axis=1)
        towards = np.arctan2(middle[:, 1], middle[:, 0])
        off = np.arctan2(vertices[..., 1], vertices[..., 0]) - towards[:, None]
        off = np.abs((off + np.pi) % (2 * np.pi) - np.pi).max(axis=1)
        in_reach = ~(np.sqrt((middle**2).sum(axis=1)) - reach > self.max_range)  # True for NaN
        for k in np.flatnonzero(in_reach).tolist():
            if not off[k] <= 1.4:  # near or around the sensor's axis, or without bounds: every ray
                yield k, (rows, slice(0, count))
                continue
            start = int(np.floor((towards[k] - off[k] - self.azimuth[0]) / step)) % count
            stop = start + int(np.ceil(2 * off[k] / step)) + 2
            yield k, (rows, slice(start, min(stop, count)))
            if stop > count:
                yield k, (rows, slice(0, stop - count))


def cast(solids: Solids, rays: PinholeRays | SweepRays) -> tuple[Float, NDArray[np.int32]]:
    """What each ray meets first; the sensor sits at the solids' origin.

    Returns:
        inverse distance (rows, columns) in units of the ray's length (for `PinholeRays` 1/z), 0 where nothing is hit;
        the face's number, -1 where nothing is hit.
    """
    nearest = np.zeros(rays.shape)
    face = np.full(rays.shape, -1, dtype=np.int32)
    h = np.where(solids.planes[:, 3] == 0, 1e-300, solids.planes[:, 3])
    slopes = solids.planes[:, :3] / h[:, None]
    for k, window in rays.windows(solids.vertices):
        faces = range(solids.first[k], solids.first[k + 1])
        entries = [f for f in faces if h[f] < 0]
        if not entries:
            continue  # the sensor is inside
        entry = [rays.dot(slopes[f], window) for f in entries]
        last = entry[0] if len(entry) == 1 else np.minimum.reduce(entry) if len(entry) > 2 else np.minimum(*entry)
        bound = nearest[window]
        hit = last > bound
        if not hit.any():
            continue
        exits = [rays.dot(slopes[f], window) for f in faces if h[f] > 0]
        for values in exits:
            hit &= last > values
        np.copyto(bound, last, where=hit)
        numbers = face[window]
        if len(entries) == 1:
            numbers[hit] = entries[0]
        else:
            for f, values in zip(entries, entry, strict=True):
                numbers[hit & (values == last)] = f
    return nearest, face
