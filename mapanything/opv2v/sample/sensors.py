"""A vehicle's sensors in the synthetic street: its LiDAR's sweep, and its cameras' images and depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mapanything.geometry import carla
from mapanything.geometry.types import Floats
from mapanything.opv2v.sample import textures as tex
from mapanything.opv2v.sample.solids import Solids
from mapanything.opv2v.sample.street import ROAD, SIDE_ROAD, Shadow, Street, float32_values

Faces = NDArray[np.int32]
Window = tuple[slice, slice]  # rows, columns

# Six-vectors in the vehicle's frame: x, y, z, roll, yaw, pitch. The same for every vehicle of the real data set.
CAMERAS = ([2.5, 0, 1.0, 0, 0, 0], [0, 0.3, 1.8, 0, 100, 0], [0, -0.3, 1.8, 0, -100, 0], [-2.0, 0, 1.5, 0, 180, 0])
LIDAR = [-0.5, 0, 1.9, 0, 0, 0]

MAX_RANGE = 120.0
ELEVATION_DEG = (2.0, -25.0)
RANGE_NOISE = 0.02
# Measured on the real clouds: 81 % of the rays into the near ground come back. CARLA applies its rate of 0.1 twice.
RETURNED = 0.81
ATTENUATION = 0.004  # per metre

NEAR = 0.02  # metres: solids are clipped here when their outline in the image is bounded
HAZE = 900.0  # metres after which a colour is 63 % sky
FAR = 1000.0  # metres; farther is sky
_GROUND = 0  # the face of the ground


def mounted(vehicle_pose: ArrayLike, rig: ArrayLike) -> Floats:
    """The world pose (6,) of a sensor: values that a float32 holds, as CARLA reports them."""
    matrix = carla.ue_matrix_from_pose(vehicle_pose) @ carla.ue_matrix_from_pose(rig)
    return float32_values(carla.pose_from_ue_matrix(matrix))


class PinholeRays(NamedTuple):
    """Rays (x, y, 1) through the pixel centres of an image, OpenCV axes; `x` (W,) and `y` (H,)."""

    x: Floats
    y: Floats

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)

    def dot(self, n: Floats, window: Window) -> Floats:
        """n·d for the rays of a window."""
        return np.add.outer(n[1] * self.y[window[0]], n[0] * self.x[window[1]] + n[2])

    def windows(self, vertices: Floats) -> Iterator[tuple[int, Window]]:
        """Number of a solid and the pixels that it can cover, for every one in view of `vertices` (S, N, 3)."""
        front = vertices[..., 2] >= NEAR  # False for NaN
        whole = front.all(axis=1)
        low, high = np.full((2, len(vertices), 2), -np.inf)
        uv = vertices[whole, :, :2] / vertices[whole, :, 2:]
        low[whole], high[whole] = uv.min(axis=1), uv.max(axis=1)
        high[np.isnan(vertices[:, 0, 0])] = np.inf  # without bounds
        for k in np.flatnonzero(front.any(axis=1) & ~whole):
            # Where the hull crosses the near plane: segments from every corner before it to every one behind it.
            seen, behind = vertices[k, front[k]], vertices[k, ~front[k]]
            part = (seen[:, None, 2] - NEAR) / (seen[:, None, 2] - behind[None, :, 2])
            crossing = seen[:, None] + part[..., None] * (behind[None] - seen[:, None])
            seen = np.concatenate([seen, crossing.reshape(-1, 3)])
            uv = seen[:, :2] / seen[:, 2:]
            low[k], high[k] = uv.min(axis=0), uv.max(axis=0)
        left, right = np.searchsorted(self.x, low[:, 0] - 1e-9), np.searchsorted(self.x, high[:, 0] + 1e-9)
        top, bottom = np.searchsorted(self.y, low[:, 1] - 1e-9), np.searchsorted(self.y, high[:, 1] + 1e-9)
        for k in np.flatnonzero((left < right) & (top < bottom)).tolist():
            yield k, (slice(int(top[k]), int(bottom[k])), slice(int(left[k]), int(right[k])))


class SweepRays(NamedTuple):
    """A LiDAR's unit rays: E elevations by A azimuths spread evenly over the full circle, radians, Unreal axes."""

    elevation: Floats
    azimuth: Floats

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.elevation), len(self.azimuth)

    def dot(self, n: Floats, window: Window) -> Floats:
        """n·d for the rays of a window."""
        azimuth, elevation = self.azimuth[window[1]], self.elevation[window[0]]
        across = n[0] * np.cos(azimuth) + n[1] * np.sin(azimuth)
        return np.cos(elevation)[:, None] * across + (n[2] * np.sin(elevation))[:, None]

    def directions(self) -> Floats:
        """(E, A, 3)."""
        ce, se = np.cos(self.elevation)[:, None], np.sin(self.elevation)[:, None]
        return np.stack(np.broadcast_arrays(ce * np.cos(self.azimuth), ce * np.sin(self.azimuth), se), axis=-1)

    def windows(self, vertices: Floats) -> Iterator[tuple[int, Window]]:
        """Number of a solid and the rays that it can cover, for every one in reach; two windows where they wrap around."""
        rows, count = slice(0, len(self.elevation)), len(self.azimuth)
        step = 2 * np.pi / count
        middle = vertices.mean(axis=1)
        reach = np.sqrt(((vertices - middle[:, None]) ** 2).sum(axis=2)).max(axis=1)
        towards = np.arctan2(middle[:, 1], middle[:, 0])
        off = np.arctan2(vertices[..., 1], vertices[..., 0]) - towards[:, None]
        off = np.abs((off + np.pi) % (2 * np.pi) - np.pi).max(axis=1)
        in_reach = ~(np.sqrt((middle**2).sum(axis=1)) - reach > MAX_RANGE)  # True for NaN
        for k in np.flatnonzero(in_reach).tolist():
            if not off[k] <= 1.4:  # near or around the sensor's axis, or without bounds: every ray
                yield k, (rows, slice(0, count))
                continue
            start = int(np.floor((towards[k] - off[k] - self.azimuth[0]) / step)) % count
            stop = start + int(np.ceil(2 * off[k] / step)) + 2
            yield k, (rows, slice(start, min(stop, count)))
            if stop > count:
                yield k, (rows, slice(0, stop - count))


def cast(solids: Solids, rays: PinholeRays | SweepRays) -> tuple[Floats, Faces]:
    """Finds what each ray meets first, in float64: Open3D's float32 caster changes 7 depths in 8, and so the bytes.

    That one takes no less time (80 ms against 44 of the processor for a camera's 800x600 rays).
    The sensor sits at the solids' origin.
    On these grids of rays the *inverse* distance to a plane is linear in the ray's direction, so a solid costs an addition
    and a min or max per face and ray, no division. A face n·x <= h with h < 0 is one through which rays enter (at
    1/t = n·d/h), one with h > 0 lets them out; a ray hits the solid where min(entries) > max(exits, 0).

    Returns:
        inverse distance (rows, columns) in units of the ray's length (for `PinholeRays` 1/z), 0 where nothing is hit;
        the face's number, -1 where nothing is hit.
    """
    nearest = np.zeros(rays.shape)
    face = np.full(rays.shape, -1, dtype=np.int32)
    h = np.where(solids.planes[:, 3] == 0, 1e-300, solids.planes[:, 3])
    slopes = solids.planes[:, :3] / h[:, None]
    ends = np.cumsum(solids.sizes)
    for k, window in rays.windows(solids.vertices):
        faces = range(ends[k] - solids.sizes[k], ends[k])
        entries = [f for f in faces if h[f] < 0]
        if not entries:
            continue  # the sensor is inside
        entry = [rays.dot(slopes[f], window) for f in entries]
        last = entry[0]
        for values in entry[1:]:
            last = np.minimum(last, values)
        bound = nearest[window]
        hit = last > bound
        if not hit.any():
            continue
        for f in faces:
            if h[f] > 0:
                hit &= last > rays.dot(slopes[f], window)
        np.copyto(bound, last, where=hit)
        for f, values in zip(entries, entry, strict=True):
            face[window][hit if len(entries) == 1 else hit & (values == last)] = f
    return nearest, face


class Sweep(NamedTuple):
    """A LiDAR cloud."""

    points: Floats  # (N, 3) LiDAR frame, Unreal axes
    red: NDArray[np.uint8]  # (N,) intensity in 255ths
    owners: list[int]  # ids of the vehicles that a point lies on


def scan(world: Solids, lidar_pose: Floats, channels: int, points: int, rng: np.random.Generator) -> Sweep:
    """One sweep of `points` rays in `channels` lines, from the top line down, each from behind over left to right."""
    columns = round(points / channels)
    azimuth = -np.pi + 2 * np.pi / columns * np.arange(columns)
    rays = SweepRays(np.deg2rad(np.linspace(*ELEVATION_DEG, channels)), azimuth)
    inverse, face = cast(world.moved(np.linalg.inv(carla.ue_matrix_from_pose(lidar_pose))), rays)
    # Drawn for every ray, hit or not, so that one more leaf on a tree does not shift all other numbers.
    noise, lottery = rng.normal(0.0, RANGE_NOISE, rays.shape), rng.random(rays.shape)
    back = (inverse > 1.0 / MAX_RANGE) & (lottery < RETURNED)
    true_range = 1.0 / inverse[back]
    measured = true_range + noise[back]
    inside = measured < MAX_RANGE
    red = np.rint(255.0 * np.exp(-ATTENUATION * true_range[inside])).astype(np.uint8)
    hit = (rays.directions()[back] * measured[:, None])[inside].astype(np.float32)
    owners = np.unique(world.owner[face[back][inside]])
    return Sweep(hit, red, owners[owners > 0].tolist())


def pinhole_rays(intrinsics: Floats, height: int, width: int) -> PinholeRays:
    """Rays through the pixel centres; `intrinsics` (3, 3) with pixel centres at integer coordinates."""
    x = (np.arange(width) - intrinsics[0, 2]) / intrinsics[0, 0]
    return PinholeRays(x, (np.arange(height) - intrinsics[1, 2]) / intrinsics[1, 1])


def render(
    street: Street, world: Solids, shadows: list[Shadow], camera_cords: Floats, rays: PinholeRays, textures: tex.Textures
) -> tuple[NDArray[np.uint8], Floats]:
    """One camera's picture: what `cast` hit, textured, lit and seen through a little haze.

    Args:
        world: `street.solids(index)` without the agent itself; likewise `shadows`.
        camera_cords: (6,) CARLA pose.

    Returns:
        image (H, W, 3) uint8, and z-depth (H, W) float32 in metres, 0 where there is sky.
    """
    world_from_camera = carla.ue_matrix_from_pose(camera_cords)
    camera_from_world = np.linalg.inv(world_from_camera)
    local = world.moved(camera_from_world).moved(carla.CV_FROM_UE)
    inverse, face = cast(local, rays)
    visible = inverse > 1.0 / FAR
    face[~visible] = -1
    depth = np.where(visible, 1.0 / np.where(visible, inverse, 1.0), 0.0).astype(np.float32)
    image = _sky(street, rays, carla.cv_points(world_from_camera[2, :3]))
    at = np.flatnonzero(visible)
    colours = _surface(street, world, local, textures, face.ravel()[at], depth.ravel()[at], at, rays)
    shade = _shadows(street, world, shadows, face, depth, rays, camera_from_world @ street.world_from_street)
    colours *= shade.ravel()[at, None]
    haze = np.exp(depth.ravel()[at] * np.float32(-1.0 / HAZE))[:, None]
    image.reshape(-1, 3)[at] = colours * haze + street.horizon.astype(np.float32) * (1 - haze)
    _soften_edges(image, face)
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8), depth


def _sky(street: Street, rays: PinholeRays, up: Floats) -> Floats:
    """A gradient from horizon to zenith (H, W, 3)."""
    slope = np.add.outer(up[1] * rays.y, up[0] * rays.x + up[2]).astype(np.float32)
    slope /= np.sqrt(np.add.outer(rays.y**2 + 1.0, rays.x**2)).astype(np.float32)
    part = np.sqrt(np.clip(slope, 0.0, 1.0))[..., None]
    zenith, horizon = street.zenith.astype(np.float32), street.horizon.astype(np.float32)
    return horizon + (zenith - horizon) * part


def _surface(
    street: Street,
    world: Solids,
    local: Solids,
    textures: tex.Textures,
    face: Faces,
    depth: Floats,
    at: NDArray[np.intp],
    rays: PinholeRays,
) -> Floats:
    """Lit texture colours (N, 3), 0..255, of the pixels number `at`, which show `face` at `depth` (N,)."""
    rows, columns = np.divmod(at, rays.shape[1])
    x, y = rays.x[columns].astype(np.float32), rays.y[rows].astype(np.float32)
    towards = np.maximum(world.planes[:, :3] @ street.sun, 0.0)[:, None]
    # Surfaces that look up get more of the sky than those that look down.
    sky = (0.8 + 0.2 * world.planes[:, 2])[:, None]
    lit = (world.tint * (street.ambient * sky + street.sunlight * towards)).astype(np.float32)
    maps = local.uv.reshape(-1, 8).astype(np.float32)[face]
    u = (maps[:, 0] * x + maps[:, 1] * y + maps[:, 2]) * depth + maps[:, 3]
    v = (maps[:, 4] * x + maps[:, 5] * y + maps[:, 6]) * depth + maps[:, 7]
    # A pixel covers depth / f metres across the ray, stretched where the surface is seen at a slant.
    normal = local.planes[:, :3].astype(np.float32)[face]
    facing = np.abs(normal[:, 0] * x + normal[:, 1] * y + normal[:, 2]) / np.sqrt(x * x + y * y + 1)
    texel = depth * np.float32(rays.x[1] - rays.x[0]) / np.sqrt(np.maximum(facing, np.float32(0.003)))
    scale = np.hypot(maps[:, 0], np.hypot(maps[:, 1], maps[:, 2]))  # > 1 where the texture is fitted to a small face
    material = local.material[face]
    on_ground = np.flatnonzero(face == _GROUND)
    road, paint, yellow, wear = _road(street, textures, u[on_ground], v[on_ground], texel[on_ground])
    material[on_ground] = np.where(road, tex.ASPHALT, tex.GRASS)
    colour = textures.sample(material, u, v, texel * scale)
    colour[on_ground] *= wear[:, None]
    white = np.where(yellow[:, None], np.array([205, 165, 60], np.float32), np.array([218, 218, 212], np.float32))
    colour[on_ground] += paint[:, None] * (white - colour[on_ground])
    # Each face sees another part of the slow noise; the ground is face 0, so its noise does not jump from road to grass.
    shift = (7 * face).astype(np.float32)
    brightness = textures.slow(u + shift, v - shift)
    brightness[scale > 1.0001] = 1.0
    return colour * lit[face] * brightness[:, None]


def _band(value: Floats, half: float, blur: Floats) -> Floats:
    """The part of a pixel of size `blur` that lies within |value| < half."""
    return np.clip((np.float32(half) - np.abs(value)) / blur + np.float32(0.5), 0.0, 1.0) * np.minimum(1.0, 2 * half / blur)


def _stripes(value: Floats, period: float, half: float, blur: Floats) -> Floats:
    """`_band` in the middle of every period."""
    return _band((value % np.float32(period)) - np.float32(period / 2), half, blur)


def _road(
    street: Street, textures: tex.Textures, u: Floats, v: Floats, texel: Floats
) -> tuple[NDArray[np.bool_], Floats, NDArray[np.bool_], Floats]:
    """The ground at street coordinates (u, v): asphalt or not, and what is painted on it.

    Returns:
        whether it is road; how much of the paint's colour to add (0..1); whether that is yellow; how dark it is.
    """
    cross_x, heading = street.crossing
    c, s = np.float32(np.cos(heading)), np.float32(np.sin(heading))
    du = u - np.float32(cross_x)
    along, across = du * c + v * s, v * c - du * s
    far, off = np.abs(across), np.abs(v)
    main, side = off < ROAD, far < SIDE_ROAD
    blur = np.maximum(texel * np.float32(0.7), np.float32(0.01))
    open_road = np.clip((far - np.float32(10.0)) / blur, 0, 1)
    centre = _band(off - np.float32(0.16), 0.06, blur) * open_road
    lines = _band(off - np.float32(3.5), 0.075, blur) * _stripes(u, 9.0, 1.5, blur)
    lines = np.maximum(lines, _band(off - np.float32(7.0), 0.06, blur))
    lines = np.maximum(lines, _stripes(u, 6.6, 0.05, blur) * (off > 7.0)) * open_road  # bays to park in
    zebra = _stripes(v, 1.1, 0.27, blur) * _band(far - np.float32(7.4), 1.4, blur)
    stop = _band(far - np.float32(9.7), 0.2, blur) * ((v * across * np.sign(s) > 0) & (off < 7.0))
    lines = np.where(main, np.maximum(np.maximum(lines, zebra * (off < 7.0)), stop), np.float32(0))
    # The side road: a dashed middle and a stop line on the half that arrives.
    dashes = _band(across, 0.07, blur) * _stripes(along, 6.0, 1.2, blur)
    stop = _band(np.abs(along) - np.float32(10.6), 0.22, blur) * (along * across < 0)
    lines = np.where(side & ~main, np.maximum(dashes, stop), lines)
    paint = np.maximum(lines, centre * main).astype(np.float32)
    worn = np.clip(np.float32(2.2) * textures.cloud(u / 5, v / 5) - np.float32(0.1), 0.3, 1.0)
    # Repaired rectangles and manholes give every stretch of road its own look.
    iu, iv = np.floor(u / 7).astype(np.int32), np.floor(v / np.float32(3.5)).astype(np.int32)
    salt = int(abs(cross_x) * 9973.0)
    dice = (textures.macro[iu * 37 + iv * 11 + salt & 255, iu * 5 + iv * 71 & 255] * np.float32(97.0)) % np.float32(1.0)
    pu, pv = u / 7 - iu, v / np.float32(3.5) - iv
    patch = (dice < 0.35) & (np.abs(pu - 0.5) < 0.15 + dice) & (np.abs(pv - 0.5) < 0.48 - dice)
    hole = (dice > 0.8) & ((pu - 0.5) ** 2 * 49 + (pv - 0.5) ** 2 * np.float32(12.25) < 0.14)
    road = main | side
    wear = np.where(patch & road, np.float32(0.8), np.where(hole & road, np.float32(0.5), np.float32(1.0)))
    return road, paint * worn, main & (centre > lines), wear


def _shadows(
    street: Street,
    world: Solids,
    casters: list[Shadow],
    face: Faces,
    depth: Floats,
    rays: PinholeRays,
    camera_from_street: Floats,
) -> Floats:
    """Brightness (H, W): less than 1 where the sun does not reach the ground, or what lies flat on it."""
    shade = np.ones(face.shape, dtype=np.float32)
    flat = (world.planes[:, :3] @ street.world_from_street[:3, 2] > 0.999) & (world.owner == 0)
    flat &= np.isin(world.material, [tex.ASPHALT, tex.PAVING, tex.METAL])
    takes = np.append(flat, False)[face]  # -1, the sky, is the last
    sun = street.world_from_street[:3, :3].T @ street.sun
    lean = -sun[:2] / sun[2]  # how far a shadow moves per metre of height
    # Footprints, and where their tops' shadows fall: (K, 8, 3) in the street frame.
    x, y, heading, half_length, half_width, bottom, top = np.array(casters).T[..., None]
    c, s = np.cos(heading), np.sin(heading)
    i, j = half_length * [-1, -1, 1, 1], half_width * [-1, 1, -1, 1]
    foot = np.stack([x + c * i - s * j, y + s * i + c * j], axis=2)
    ends = np.concatenate([foot + lean * bottom[..., None], foot + lean * top[..., None]], axis=1)
    corners = np.concatenate([ends, np.zeros((*ends.shape[:2], 1))], axis=2)
    corners = carla.cv_points(corners @ camera_from_street[:3, :3].T + camera_from_street[:3, 3])
    rotation = carla.cv_points(camera_from_street[:3, :3].T)
    origin = -camera_from_street[:3, :3].T @ camera_from_street[:3, 3]
    for k, window in rays.windows(corners):
        mask = takes[window]
        if not mask.any():
            continue
        caster = casters[k]
        c, s = np.cos(caster.heading), np.sin(caster.heading)
        start = origin[:2] - (caster.x, caster.y)
        low, high = np.float32(caster.bottom), np.float32(caster.top)
        for axis, half in (((c, s), caster.half_length), ((-s, c), caster.half_width)):
            slope = rotation[0] * axis[0] + rotation[1] * axis[1]
            position = rays.dot(slope, window).astype(np.float32) * depth[window] + np.float32(start @ axis)
            step = np.float32(lean @ axis)  # at height t the point on the sun's ray is at position - step t
            if abs(step) < 1e-4:
                step = np.float32(1e-4)
            a, b = (position - np.float32(half)) / step, (position + np.float32(half)) / step
            low, high = np.maximum(low, np.minimum(a, b)), np.minimum(high, np.maximum(a, b))
        shade[window][(low < high) & mask] = 0.5
    return shade


def _soften_edges(image: Floats, face: Faces) -> None:
    """Blends pixels with their neighbours where different faces meet: cheap anti-aliasing, in place."""
    edge = np.zeros(face.shape, dtype=bool)
    across, down = face[:, 1:] != face[:, :-1], face[1:] != face[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    edge[[0, -1]] = edge[:, [0, -1]] = False
    rows, columns = np.nonzero(edge)
    near = image[rows - 1, columns] + image[rows + 1, columns] + image[rows, columns - 1] + image[rows, columns + 1]
    image[rows, columns] = np.float32(0.5) * image[rows, columns] + np.float32(0.125) * near
