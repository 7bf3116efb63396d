"""Colours of the synthetic street: what `cast` hit, textured, lit and seen through a little haze."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry import carla
from mapanything.opv2v.sample import texture as tex
from mapanything.opv2v.sample.scene import ROAD, SIDE_ROAD, Light, Shadow, Street
from mapanything.opv2v.sample.solids import MAX_VERTICES, PinholeRays, Solids, cast

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

HAZE = 900.0  # metres after which a colour is 63 % sky
FAR = 1000.0  # metres; farther is sky
_GROUND = 0  # the face of the ground


def pinhole_rays(intrinsics: Float, height: int, width: int) -> PinholeRays:
    """Rays through the pixel centres; `intrinsics` (3, 3) with pixel centres at integer coordinates."""
    x = (np.arange(width) - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height) - intrinsics[1, 2]) / intrinsics[1, 1]
    return PinholeRays(x, y)


def render(
    street: Street,
    world: Solids,
    index: int,
    agent: int,
    camera_cords: Float,
    rays: PinholeRays,
    textures: tex.Textures,
) -> tuple[NDArray[np.uint8], Float32]:
    """One camera's picture.

    Args:
        world: `street.solids(index)` without the agent itself.
        camera_cords: (6,) CARLA pose.

    Returns:
        image (H, W, 3) uint8, and z-depth (H, W) float32 in metres, 0 where there is sky.
    """
    world_from_camera = carla.ue_matrix_from_pose(camera_cords)
    local = _cv_solids(world.moved(np.linalg.inv(world_from_camera)))
    inverse, face = cast(local, rays)
    visible = inverse > 1.0 / FAR
    face[~visible] = -1
    depth = np.where(visible, 1.0 / np.where(visible, inverse, 1.0), 0.0).astype(np.float32)
    up = carla.cv_points(world_from_camera[2, :3])
    image = _sky(street.light, rays, up)
    at = np.flatnonzero(visible)
    rows, columns = np.divmod(at, rays.shape[1])
    x, y = rays.x[columns].astype(np.float32), rays.y[rows].astype(np.float32)
    camera_from_street = np.linalg.inv(world_from_camera) @ street.world_from_street
    colours = _surface(street, world, local, textures, face.ravel()[at], depth.ravel()[at], x, y, rays, camera_from_street)
    shade = _shadows(street, index, agent, face, depth, rays, camera_from_street)
    colours *= shade.ravel()[at, None]
    haze = np.exp(depth.ravel()[at] * np.float32(-1.0 / HAZE))[:, None]
    colours = colours * haze + street.light.horizon.astype(np.float32) * (1 - haze)
    image.reshape(-1, 3)[at] = colours
    _soften_edges(image, face)
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8), depth


def _cv_solids(solids: Solids) -> Solids:
    """Solids of a camera's Unreal frame in its OpenCV frame."""
    return Solids(
        np.concatenate([carla.cv_points(solids.planes[:, :3]), solids.planes[:, 3:]], axis=1),
        np.concatenate([carla.cv_points(solids.uv[..., :3]), solids.uv[..., 3:]], axis=2),
        solids.material,
        solids.tint,
        solids.first,
        carla.cv_points(solids.vertices),
        solids.owner,
    )


def _sky(light: Light, rays: PinholeRays, up: Float) -> Float32:
    """A gradient from horizon to zenith (H, W, 3)."""
    slope = np.add.outer(up[1] * rays.y, up[0] * rays.x + up[2]).astype(np.float32)
    slope /= np.sqrt(np.add.outer(rays.y**2 + 1.0, rays.x**2)).astype(np.float32)
    part = np.sqrt(np.clip(slope, 0.0, 1.0))[..., None]
    zenith, horizon = light.zenith.astype(np.float32), light.horizon.astype(np.float32)
    return horizon + (zenith - horizon) * part


def _surface(
    street: Street,
    world: Solids,
    local: Solids,
    textures: tex.Textures,
    face: NDArray[np.int32],
    depth: Float32,
    x: Float32,
    y: Float32,
    rays: PinholeRays,
    camera_from_street: Float,
) -> Float32:
    """Lit texture colours (N, 3) of the pixels with rays (x, y, 1)."""
    light = street.light
    towards = np.maximum(world.planes[:, :3] @ light.sun, 0.0)[:, None]
    # Surfaces that look up get more of the sky than those that look down.
    sky = (0.8 + 0.2 * world.planes[:, 2])[:, None]
    lit = (world.tint * (light.ambient * sky + light.sunlight * towards)).astype(np.float32)
    maps = local.uv.reshape(-1, 8).astype(np.float32)[face]
    u = (maps[:, 0] * x + maps[:, 1] * y + maps[:, 2]) * depth + maps[:, 3]
    v = (maps[:, 4] * x + maps[:, 5] * y + maps[:, 6]) * depth + maps[:, 7]
    # A pixel covers depth / f metres across the ray, stretched where the surface is seen at a slant.
    pixel = np.float32(rays.x[1] - rays.x[0])
    normal = local.planes[:, :3].astype(np.float32)[face]
    facing = np.abs(normal[:, 0] * x + normal[:, 1] * y + normal[:, 2]) / np.sqrt(x * x + y * y + 1)
    across = depth * pixel
    texel = across / np.sqrt(np.maximum(facing, np.float32(0.003)))
    scale = np.hypot(maps[:, 0], np.hypot(maps[:, 1], maps[:, 2]))  # > 1 where the texture is fitted to a small face
    material = local.material[face]
    on_ground = np.flatnonzero(face == _GROUND)
    ground_u, ground_v, ground_texel = u[on_ground], v[on_ground], texel[on_ground]
    road, paint, yellow, wear = _road(street, textures, ground_u, ground_v, ground_texel)
    material[on_ground] = np.where(road, tex.ASPHALT, tex.GRASS)
    colour = textures.sample(material, u, v, texel * scale)
    colour[on_ground] *= wear[:, None]
    white = np.where(yellow[:, None], np.float32([205, 165, 60]), np.float32([218, 218, 212]))
    colour[on_ground] += paint[:, None] * (white - colour[on_ground])
    # Each face sees another part of the slow noise; the ground's must not jump where road meets grass.
    shift = (7 * face).astype(np.float32)
    shift[on_ground] = 0
    brightness = textures.slow(u + shift, v - shift)
    brightness[scale > 1.0001] = 1.0
    return colour * lit[face] * brightness[:, None]


def _band(value: Float32, half: float, blur: Float32) -> Float32:
    """How much of a pixel of size `blur` lies within |value| < half."""
    return np.clip((np.float32(half) - np.abs(value)) / blur + np.float32(0.5), 0.0, 1.0) * np.minimum(1.0, 2 * half / blur)


def _road(
    street: Street, textures: tex.Textures, u: Float32, v: Float32, texel: Float32
) -> tuple[NDArray[np.bool_], Float32, NDArray[np.bool_], Float32]:
    """What is painted on the ground at street coordinates (u, v).

    Returns:
        whether it is road; how much of the paint's colour to add (0..1); whether that is yellow; how dark it is.
    """
    cross_x, heading = street.crossing
    c, s = np.float32(np.cos(heading)), np.float32(np.sin(heading))
    du = u - np.float32(cross_x)
    along, across = du * c + v * s, v * c - du * s
    far = np.abs(across)
    main, side = np.abs(v) < ROAD, np.abs(across) < SIDE_ROAD
    blur = np.maximum(texel * np.float32(0.7), np.float32(0.01))
    open_road = np.clip((far - np.float32(10.0)) / blur, 0, 1)
    centre = _band(np.abs(v) - np.float32(0.16), 0.06, blur) * open_road
    dash = _band((u % np.float32(9.0)) - np.float32(4.5), 1.5, blur)
    lines = _band(np.abs(v) - np.float32(3.5), 0.075, blur) * dash
    lines = np.maximum(lines, _band(np.abs(v) - np.float32(7.0), 0.06, blur))
    bays = _band((u % np.float32(6.6)) - np.float32(3.3), 0.05, blur) * (np.abs(v) > 7.0)
    lines = np.maximum(lines, bays) * open_road
    zebra = _band((v % np.float32(1.1)) - np.float32(0.55), 0.27, blur) * _band(far - np.float32(7.4), 1.4, blur)
    stop = _band(far - np.float32(9.7), 0.2, blur) * ((v * across * np.sign(s) > 0) & (np.abs(v) < 7.0))
    lines = np.where(main, np.maximum(np.maximum(lines, zebra * (np.abs(v) < 7.0)), stop), np.float32(0))
    # The side road: a dashed middle and a stop line on the half that arrives.
    side_dash = _band(across, 0.07, blur) * _band((along % np.float32(6.0)) - np.float32(3.0), 1.2, blur)
    side_stop = _band(np.abs(along) - np.float32(10.6), 0.22, blur) * (along * across < 0)
    lines = np.where(side & ~main, np.maximum(side_dash, side_stop), lines)
    paint = np.maximum(lines, centre * main).astype(np.float32)
    worn = np.clip(np.float32(2.2) * textures.cloud(u / 5, v / 5) - np.float32(0.1), 0.3, 1.0)
    # Repaired rectangles and manholes give every stretch of road its own look.
    iu, iv = np.floor(u / 7).astype(np.int32), np.floor(v / np.float32(3.5)).astype(np.int32)
    salt = int(abs(cross_x) * 9973.0)
    table = textures.macro[np.bitwise_and(iu * 37 + iv * 11 + salt, 255), np.bitwise_and(iu * 5 + iv * 71, 255)]
    dice = (table * np.float32(97.0)) % np.float32(1.0)
    pu, pv = u / 7 - iu, v / np.float32(3.5) - iv
    patch = (dice < 0.35) & (np.abs(pu - 0.5) < 0.15 + dice) & (np.abs(pv - 0.5) < 0.48 - dice)
    hole = (dice > 0.8) & ((pu - 0.5) ** 2 * 49 + (pv - 0.5) ** 2 * np.float32(12.25) < 0.14)
    wear = np.where(patch, np.float32(0.8), np.where(hole, np.float32(0.5), np.float32(1.0)))
    road = main | side
    wear = np.where(road, wear, np.float32(1.0))
    return road, paint * worn, main & (centre > lines), wear


def _shadows(
    street: Street,
    index: int,
    agent: int,
    face: NDArray[np.int32],
    depth: Float32,
    rays: PinholeRays,
    camera_from_street: Float,
) -> Float32:
    """Brightness (H, W): less than 1 where the sun does not reach the ground."""
    shade = np.ones(face.shape, dtype=np.float32)
    casters = [*street.shadows, *street.car_shadows(index, agent)]
    sun = street.world_from_street[:3, :3].T @ street.light.sun
    lean = -sun[:2] / sun[2]  # how far a shadow moves per metre of height
    outline = np.array([_outline(caster, lean) for caster in casters])
    corners = np.concatenate([outline, np.zeros((*outline.shape[:2], 1))], axis=2)
    corners = carla.cv_points(corners @ camera_from_street[:3, :3].T + camera_from_street[:3, 3])
    flat = np.append(street.flat, np.zeros(max(face.max() + 1 - len(street.flat), 0) + 1, dtype=bool))  # -1: not flat
    takes = flat[face]
    rotation = carla.cv_points(camera_from_street[:3, :3].T)
    origin = -camera_from_street[:3, :3].T @ camera_from_street[:3, 3]
    dark = np.float32(0.5)
    for k, window in rays.windows(np.repeat(corners, MAX_VERTICES // corners.shape[1], axis=1)):
        mask = takes[window]
        if not mask.any():
            continue
        caster = casters[k]
        c, s = np.cos(caster.heading), np.sin(caster.heading)
        z = depth[window]
        start = origin[:2] - (caster.x, caster.y)
        inside: NDArray[np.bool_] | None = None
        low: Float32 | np.float32 = np.float32(caster.bottom)
        high: Float32 | np.float32 = np.float32(caster.top)
        for axis, half in (((c, s), caster.half_length), ((-s, c), caster.half_width)):
            slope = rotation[0] * axis[0] + rotation[1] * axis[1]
            position = rays.dot(slope, window).astype(np.float32) * z + np.float32(start @ axis)
            step = np.float32(lean @ axis)  # at height t the point on the sun's ray is at position - step t
            if abs(step) < 1e-4:
                step = np.float32(1e-4)
            a, b = (position - np.float32(half)) / step, (position + np.float32(half)) / step
            low, high = np.maximum(low, np.minimum(a, b)), np.minimum(high, np.maximum(a, b))
        inside = (low < high) & mask
        shade[window][inside] = dark
    return shade


def _outline(caster: Shadow, lean: Float) -> Float:
    """Corners (8, 2) of a footprint and of where its top's shadow falls, street coordinates."""
    c, s = np.cos(caster.heading), np.sin(caster.heading)
    corners = np.array([[i * caster.half_length, j * caster.half_width] for i in (-1, 1) for j in (-1, 1)])
    foot = corners @ np.array([[c, s], [-s, c]]) + (caster.x, caster.y)
    return np.concatenate([foot + lean * caster.bottom, foot + lean * caster.top])


def _soften_edges(image: Float32, face: NDArray[np.int32]) -> None:
    """Blends pixels with their neighbours where different faces meet: cheap anti-aliasing, in place."""
    edge = np.zeros(face.shape, dtype=bool)
    across, down = face[:, 1:] != face[:, :-1], face[1:] != face[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    edge[[0, -1]] = edge[:, [0, -1]] = False
    rows, columns = np.nonzero(edge)
    around = image[rows - 1, columns] + image[rows + 1, columns] + image[rows, columns - 1] + image[rows, columns + 1]
    image[rows, columns] = np.float32(0.5) * image[rows, columns] + np.float32(0.125) * around
