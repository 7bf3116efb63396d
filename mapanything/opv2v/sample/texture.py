"""Procedural textures of the synthetic data set: tiles with mip levels, so that far surfaces do not turn into noise.

A texture is a function of surface coordinates only, so a point looks the same from every camera. All tiles and levels
lie in one flat array of packed pixels: a look-up is one gather per corner of the bilinear filter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Rng = np.random.Generator

SIZE = 512  # texels along a tile
LEVELS = 10  # 512, 256, ... 1

# Numbers of the materials; TILE_METRES says how large a tile is (u, v); 1 for those fitted to a face.
ASPHALT, PAVING, GRASS, BRICK, PLASTER, FACADE, SHOP, GLASS, PAINT, TYRE, BARK, LEAVES, METAL, HILL, SIGN, PANEL = range(16)
TILE_METRES = np.array(
    [[4, 4], [4, 4], [5, 5], [2.4, 2.4], [6, 6], [12, 12.8], [10, 4.2], [1, 1],
     [3, 3], [1, 1], [1.2, 2.4], [3, 3], [1, 1], [60, 60], [1, 1], [8, 6]],
    dtype=np.float32,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Textures:
    """All tiles: `texels` packed RGBA, `base[m, l]` where level l of material m begins, `macro` a slow brightness."""

    texels: NDArray[np.uint32]
    base: NDArray[np.int32]
    macro: Float32

    def sample(self, material: NDArray[np.intp], u: Float32, v: Float32, texel: Float32) -> Float32:
        """Colours (N, 3), 0..255, at (u, v) metres on a surface; a pixel covers `texel` (N,) metres there."""
        tile = TILE_METRES[material]
        level = np.log2(np.maximum(texel / tile.min(axis=1) * SIZE, 1.0))
        level = np.minimum(level + 0.1, LEVELS - 1).astype(np.int32)
        size = np.right_shift(np.int32(SIZE), level)
        base = self.base[material, level]
        x = u / tile[:, 0] * size - np.float32(0.5)
        y = v / tile[:, 1] * size - np.float32(0.5)
        fx, fy = np.floor(x), np.floor(y)
        ix, iy = fx.astype(np.int32), fy.astype(np.int32)
        x -= fx
        y -= fy
        mask = size - 1
        x0, x1 = ix & mask, (ix + 1) & mask
        y0, y1 = base + (iy & mask) * size, base + ((iy + 1) & mask) * size
        top = _mix(self._texels(y0 + x0), self._texels(y0 + x1), x)
        return _mix(top, _mix(self._texels(y1 + x0), self._texels(y1 + x1), x), y)

    def _texels(self, index: NDArray[np.int32]) -> Float32:
        packed = self.texels[index]
        return packed.view(np.uint8).reshape(-1, 4)[:, :3].astype(np.float32)

    def slow(self, u: Float32, v: Float32) -> Float32:
        """A brightness around 1 (N,) that varies over metres and repeats late: no two places look the same."""
        near, far = np.float32(1 / 37.0), np.float32(1 / 151.0)
        return np.float32(0.62) + np.float32(0.38) * (self.cloud(u * near, v * near) + self.cloud(v * far, u * far))

    def cloud(self, u: Float32, v: Float32) -> Float32:
        """Slow noise (N,) in 0..1 around 0.5; repeats at every 1."""
        x, y = u * np.float32(256), v * np.float32(256)
        fx, fy = np.floor(x), np.floor(y)
        ix, iy = fx.astype(np.int32) & 255, fy.astype(np.int32) & 255
        x, y = x - fx, y - fy
        jx = (ix + 1) & 255
        iy, jy = iy << 8, ((iy + 1) & 255) << 8
        flat = self.macro.ravel()
        top, bottom = flat[iy + ix], flat[jy + ix]
        top += (flat[iy + jx] - top) * x
        bottom += (flat[jy + jx] - bottom) * x
        return top + (bottom - top) * y


def _mix(a: Float32, b: Float32, part: Float32) -> Float32:
    b -= a
    b *= part[:, None]
    b += a
    return b


def noise(rng: Rng, size: int, first: int, last: int, gain: float = 0.6) -> Float32:
    """Tileable value noise (size, size), mean 0, deviation 1: octaves of `first`, 2 `first`, ... `last` cells."""
    total = np.zeros((size, size), dtype=np.float32)
    weight = 1.0
    while first <= min(last, size):
        grid = rng.standard_normal((first, first), dtype=np.float32)
        at = np.arange(size) * first / size
        low = at.astype(np.intp)
        part = (at - low).astype(np.float32)
        part = part * part * (3 - 2 * part)
        high = (low + 1) % first
        grid = (grid[:, low] * (1 - part) + grid[:, high] * part) * np.float32(weight)
        total += grid[low] * (1 - part[:, None]) + grid[high] * part[:, None]
        weight *= gain
        first *= 2
    return (total - total.mean()) / total.std()


def _speckle(rng: Rng, colour: tuple[float, float, float], strength: float, first: int = 8, gain: float = 0.8) -> Float32:
    """A colour with noise at every scale, and a little of it in hue."""
    grey = noise(rng, SIZE, first, SIZE, gain)
    hue = np.stack([noise(rng, SIZE, 16, 128) for _ in range(3)], axis=-1)
    return np.asarray(colour, dtype=np.float32) * (1 + strength * grey[..., None] + 0.15 * strength * hue)


def _bricks(rng: Rng, columns: int, rows: int, shifted: bool, joint: float, colour: tuple[float, float, float]) -> Float32:
    """Stones with joints; every second row is shifted by half a stone where `shifted` says so."""
    image = _speckle(rng, colour, 0.10, 32)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    row = np.floor(y * rows).astype(np.intp)
    across = x * columns + (0.5 * (row % 2) if shifted else 0.0)
    column = np.floor(across).astype(np.intp) % columns
    image *= (0.75 + 0.5 * rng.random((rows, columns), dtype=np.float32))[row, column][..., None]
    in_joint = ((across % 1.0) * SIZE / columns < joint) | (((y * rows) % 1.0) * SIZE / rows < joint)
    image[in_joint] = np.asarray([150, 146, 138], np.float32) * (0.8 + 0.1 * noise(rng, SIZE, 64, SIZE)[in_joint, None])
    return image


def _facade(rng: Rng) -> Float32:
    """4 by 4 windows of 3 m by 3.2 m bays in plaster, each with its own curtains, glass and shade."""
    image = _speckle(rng, (214, 208, 198), 0.06, 16)
    cell = SIZE // 4
    for row in range(4):
        image[row * cell : row * cell + 7] *= 0.72  # a ledge between the storeys
        for column in range(4):
            left, width = int(rng.integers(26, 36)), int(rng.integers(54, 70))
            y0, x0, height = row * cell + 34, column * cell + left, 74
            image[y0 - 6 : y0 + height + 6, x0 - 6 : x0 + width + 6] = rng.uniform(225, 250)
            glass = np.linspace(95, 45, height, dtype=np.float32)[:, None, None] * np.float32([0.75, 0.95, 1.15])
            glass = np.repeat(glass * np.float32(rng.uniform(0.5, 1.3)), width, axis=1)
            if rng.random() < 0.5:
                drawn = int(rng.integers(15, height))
                glass[height - drawn :] = np.float32(rng.uniform(120, 215) + rng.uniform(-22, 22, 3))
            image[y0 : y0 + height, x0 : x0 + width] = glass
            image[y0 : y0 + height, x0 + width // 2 - 2 : x0 + width // 2 + 2] = 230
            if rng.random() < 0.6:
                image[y0 + height // 3 : y0 + height // 3 + 3, x0 : x0 + width] = 230
    return image


def _shops(rng: Rng) -> Float32:
    """Shop windows with doors, signs above and goods behind the glass."""
    image = _speckle(rng, (120, 112, 104), 0.08, 16)
    x = 0
    while x < SIZE - 60:
        width = int(rng.integers(80, 150))
        image[40:330, x + 8 : x + width] = rng.uniform(20, 70, 3) + rng.uniform(0, 30)
        for _ in range(9):
            left, top = x + 8 + int(rng.integers(0, max(1, width - 40))), 60 + int(rng.integers(0, 200))
            image[top : top + int(rng.integers(15, 50)), left : min(left + int(rng.integers(12, 40)), x + width)] = (
                rng.uniform(30, 230, 3)
            )
        image[370:470, x + 8 : x + width] = rng.uniform(40, 190) + rng.uniform(-60, 60, 3)
        for stroke in range(x + 18, x + width - 12, 9):
            height = int(rng.integers(20, 60))
            image[420 - height // 2 : 420 + height // 2, stroke : stroke + int(rng.integers(3, 7))] = rng.uniform(200, 255)
        x += width + int(rng.integers(6, 20))
    return image


def _car_window(rng: Rng) -> Float32:
    """Dark glass between posts, to be multiplied by the car's colour; fitted to one face."""
    image = np.full((SIZE, SIZE, 3), 235, dtype=np.float32)
    shade = np.linspace(30, 85, SIZE, dtype=np.float32)[:, None, None] * np.float32([0.85, 1.0, 1.1])
    for x0, x1 in ((40, 240), (268, 472)):
        image[60:470, x0:x1] = shade[60:470]
        for _ in range(3):
            at = int(rng.integers(x0, x1 - 50))
            image[90:330, at : at + 45] *= rng.uniform(0.4, 1.5)
    return image


def _sign(rng: Rng) -> Float32:
    image = np.full((SIZE, SIZE, 3), 245, dtype=np.float32)
    image[30:-30, 30:-30] = (40, 70, 160)
    for row in range(80, 430, 70):
        for x in range(70, 430, 40):
            if rng.random() < 0.75:
                image[row : row + 40, x : x + int(rng.integers(8, 30))] = 245
    return image


def _panels(rng: Rng) -> Float32:
    """A modern front: bands of glass in panels of metal."""
    image = _speckle(rng, (190, 195, 200), 0.03, 16)
    for row in range(4):
        top = row * 128
        for column in range(8):
            left = column * 64
            image[top + 30 : top + 120, left + 2 : left + 62] = np.float32([52, 70, 84]) * rng.uniform(0.6, 1.7)
    return image


def _wheel(rng: Rng) -> Float32:
    y, x = (np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5) * 2
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    image = np.full((SIZE, SIZE, 3), 34, dtype=np.float32) + 4 * noise(rng, SIZE, 32, SIZE)[..., None]
    image[(radius < 0.62) & ((np.cos(5 * angle) > 0.1) | (radius > 0.55) | (radius < 0.18))] = (150, 152, 156)
    return image


def _tiles(rng: Rng) -> list[Callable[[], Float32]]:
    """One maker per material, in the order of their numbers."""
    grass = (88, 104, 60)
    return [
        lambda: _speckle(rng, (112, 113, 116), 0.11, 32, 1.0),
        lambda: _bricks(rng, 8, 8, True, 3, (172, 164, 152)),
        lambda: _speckle(rng, grass, 0.24, 4, 0.9),
        lambda: _bricks(rng, 10, 32, True, 2.5, (168, 96, 76)),
        lambda: _speckle(rng, (205, 198, 184), 0.07, 4, 0.8),
        lambda: _facade(rng),
        lambda: _shops(rng),
        lambda: _car_window(rng),
        lambda: _speckle(rng, (238, 238, 240), 0.035, 4),
        lambda: _wheel(rng),
        lambda: _speckle(rng, (110, 88, 66), 0.3, 16),
        lambda: _speckle(rng, (92, 118, 62), 0.42, 8, 0.95),
        lambda: _speckle(rng, (150, 152, 155), 0.06, 8),
        lambda: _speckle(rng, (104, 120, 92), 0.25, 4, 0.8),
        lambda: _sign(rng),
        lambda: _panels(rng),
    ]


@lru_cache(maxsize=1)
def textures(seed: int) -> Textures:
    """The tiles of a data set; built in about a second, once per process."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x7E57]))
    pieces: list[NDArray[np.uint32]] = []
    base = np.zeros((len(TILE_METRES), LEVELS), dtype=np.int32)
    total = 0
    for number, make in enumerate(_tiles(rng)):
        image = np.clip(make(), 0, 255)
        for level in range(LEVELS):
            packed = np.zeros((*image.shape[:2], 4), dtype=np.uint8)
            packed[..., :3] = np.rint(image)
            pieces.append(packed.view(np.uint32).ravel())
            base[number, level] = total
            total += pieces[-1].size
            if level < LEVELS - 1:
                image = 0.25 * (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2])
    macro = 0.5 + 0.22 * noise(rng, 256, 4, 256, 0.75)
    return Textures(np.concatenate(pieces), base, np.clip(macro, 0.0, 1.0).astype(np.float32))
