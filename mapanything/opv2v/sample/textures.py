"""Procedural textures of the synthetic data set: tiles with mip levels, so that far surfaces do not turn into noise.

A texture is a function of surface coordinates only, so a point looks the same from every camera. All tiles and levels
lie in one flat array of packed pixels: a look-up is one gather per corner of the bilinear filter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.types import Floats

Ints = NDArray[np.int32]
Rng = np.random.Generator

SIZE = 512  # texels along a tile
LEVELS = 10  # 512, 256, ... 1

# Numbers of the materials, and how large a tile of each is (u, v) in metres; 1 for those stretched over a face.
ASPHALT, PAVING, GRASS, BRICK, PLASTER, FACADE, SHOP, GLASS, PAINT, TYRE, BARK, LEAVES, METAL, HILL, SIGN, PANEL = range(16)
_TILE_U = [4, 4, 5, 2.4, 6, 12, 10, 1, 3, 1, 1.2, 3, 1, 60, 1, 8]
_TILE_V = [4, 4, 5, 2.4, 6, 12.8, 4.2, 1, 3, 1, 2.4, 3, 1, 60, 1, 6]
TILE_METRES = np.array([_TILE_U, _TILE_V], dtype=np.float32).T.copy()


class Textures(NamedTuple):
    """All tiles: `texels` packed RGBA, `base[m, l]` where level l of material m begins, `macro` (256, 256) slow noise."""

    texels: NDArray[np.uint32]
    base: Ints
    macro: Floats

    def sample(self, material: NDArray[np.intp], u: Floats, v: Floats, texel: Floats) -> Floats:
        """Colours (N, 3), 0..255, at (u, v) metres on a surface; a pixel covers `texel` (N,) metres there."""
        tile = TILE_METRES[material]
        level = np.log2(np.maximum(texel / tile.min(axis=1) * SIZE, 1.0))
        level = np.minimum(level + 0.1, LEVELS - 1).astype(np.int32)
        size = np.right_shift(np.int32(SIZE), level)
        x, y = (metres / tile[:, axis] * size - np.float32(0.5) for axis, metres in enumerate((u, v)))
        return _bilinear(self._colours, x, y, size, self.base[material, level])

    def _colours(self, index: Ints) -> Floats:
        return self.texels[index].view(np.uint8).reshape(-1, 4)[:, :3].astype(np.float32)

    def slow(self, u: Floats, v: Floats) -> Floats:
        """A brightness around 1 (N,) that varies over metres and repeats late: no two places look the same."""
        near, far = np.float32(1 / 37.0), np.float32(1 / 151.0)
        return np.float32(0.62) + np.float32(0.38) * (self.cloud(u * near, v * near) + self.cloud(v * far, u * far))

    def cloud(self, u: Floats, v: Floats) -> Floats:
        """Slow noise (N,) in 0..1 around 0.5; repeats at every 1."""
        return _bilinear(lambda index: self.macro.reshape(-1, 1)[index], u * np.float32(256), v * np.float32(256), 256)[:, 0]


def _bilinear(look_up: Callable[[Ints], Floats], x: Floats, y: Floats, size: int | Ints, base: int | Ints = 0) -> Floats:
    """Blends `look_up`'s (N, C) between the four texels at (x, y) of a repeating square of `size` texels, from `base` on."""
    fx, fy = np.floor(x), np.floor(y)
    ix, iy, mask = fx.astype(np.int32), fy.astype(np.int32), size - 1
    x0, x1 = ix & mask, (ix + 1) & mask
    y0, y1 = base + (iy & mask) * size, base + ((iy + 1) & mask) * size
    x, y = (x - fx)[:, None], (y - fy)[:, None]
    top = _mix(look_up(y0 + x0), look_up(y0 + x1), x)
    return _mix(top, _mix(look_up(y1 + x0), look_up(y1 + x1), x), y)


def _mix(a: Floats, b: Floats, part: Floats) -> Floats:
    """a + (b - a) part, in the memory of `b`."""
    b -= a
    b *= part
    b += a
    return b


def _noise(rng: Rng, size: int, first: int, last: int, gain: float = 0.6) -> Floats:
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


def _speckle(rng: Rng, colour: tuple[float, float, float], strength: float, first: int = 8, gain: float = 0.8) -> Floats:
    """A colour with noise at every scale, and a little of it in hue."""
    grey = _noise(rng, SIZE, first, SIZE, gain)
    hue = np.stack([_noise(rng, SIZE, 16, 128) for _ in range(3)], axis=-1)
    return np.asarray(colour, dtype=np.float32) * (1 + strength * grey[..., None] + 0.15 * strength * hue)


def _bricks(rng: Rng, columns: int, rows: int, joint: float, colour: tuple[float, float, float]) -> Floats:
    """Stones with joints; every second row is shifted by half a stone."""
    image = _speckle(rng, colour, 0.10, 32)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    row = np.floor(y * rows).astype(np.intp)
    across = x * columns + 0.5 * (row % 2)
    column = np.floor(across).astype(np.intp) % columns
    image *= (0.75 + 0.5 * rng.random((rows, columns), dtype=np.float32))[row, column][..., None]
    in_joint = ((across % 1.0) * SIZE / columns < joint) | (((y * rows) % 1.0) * SIZE / rows < joint)
    image[in_joint] = np.array([150, 146, 138], np.float32) * (0.8 + 0.1 * _noise(rng, SIZE, 64, SIZE)[in_joint, None])
    return image


def _facade(rng: Rng) -> Floats:
    """4 by 4 windows of 3 m by 3.2 m bays in plaster, each with its own curtains, glass and shade."""
    image = _speckle(rng, (214, 208, 198), 0.06, 16)
    cell = SIZE // 4
    for row in range(4):
        image[row * cell : row * cell + 7] *= 0.72  # a ledge between the storeys
        for column in range(4):
            left, width = int(rng.integers(26, 36)), int(rng.integers(54, 70))
            y0, x0, height = row * cell + 34, column * cell + left, 74
            image[y0 - 6 : y0 + height + 6, x0 - 6 : x0 + width + 6] = rng.uniform(225, 250)
            glass = np.linspace(95, 45, height, dtype=np.float32)[:, None, None] * np.array([0.75, 0.95, 1.15], np.float32)
            glass = np.repeat(glass * np.float32(rng.uniform(0.5, 1.3)), width, axis=1)
            if rng.random() < 0.5:
                drawn = int(rng.integers(15, height))
                glass[height - drawn :] = np.float32(rng.uniform(120, 215) + rng.uniform(-22, 22, 3))
            image[y0 : y0 + height, x0 : x0 + width] = glass
            image[y0 : y0 + height, x0 + width // 2 - 2 : x0 + width // 2 + 2] = 230
            if rng.random() < 0.6:
                image[y0 + height // 3 : y0 + height // 3 + 3, x0 : x0 + width] = 230
    return image


def _shops(rng: Rng) -> Floats:
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


def _car_window(rng: Rng) -> Floats:
    """Dark glass between posts, to be multiplied by the car's colour; fitted to one face."""
    image = np.full((SIZE, SIZE, 3), 235, dtype=np.float32)
    shade = np.linspace(30, 85, SIZE, dtype=np.float32)[:, None, None] * np.array([0.85, 1.0, 1.1], np.float32)
    for x0, x1 in ((40, 240), (268, 472)):
        image[60:470, x0:x1] = shade[60:470]
        for _ in range(3):
            at = int(rng.integers(x0, x1 - 50))
            image[90:330, at : at + 45] *= rng.uniform(0.4, 1.5)
    return image


def _sign(rng: Rng) -> Floats:
    image = np.full((SIZE, SIZE, 3), 245, dtype=np.float32)
    image[30:-30, 30:-30] = (40, 70, 160)
    for row in range(80, 430, 70):
        for x in range(70, 430, 40):
            if rng.random() < 0.75:
                image[row : row + 40, x : x + int(rng.integers(8, 30))] = 245
    return image


def _panels(rng: Rng) -> Floats:
    """A modern front: bands of glass in panels of metal."""
    image = _speckle(rng, (190, 195, 200), 0.03, 16)
    for row in range(4):
        top = row * 128
        for column in range(8):
            left = column * 64
            image[top + 30 : top + 120, left + 2 : left + 62] = np.array([52, 70, 84], np.float32) * rng.uniform(0.6, 1.7)
    return image


def _wheel(rng: Rng) -> Floats:
    y, x = (np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE - 0.5) * 2
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    image = np.full((SIZE, SIZE, 3), 34, dtype=np.float32) + 4 * _noise(rng, SIZE, 32, SIZE)[..., None]
    image[(radius < 0.62) & ((np.cos(5 * angle) > 0.1) | (radius > 0.55) | (radius < 0.18))] = (150, 152, 156)
    return image


def _tiles(rng: Rng) -> Iterator[Floats]:
    """The tile (SIZE, SIZE, 3) of every material, in the order of their numbers."""
    yield _speckle(rng, (112, 113, 116), 0.11, 32, 1.0)
    yield _bricks(rng, 8, 8, 3, (172, 164, 152))
    yield _speckle(rng, (88, 104, 60), 0.24, 4, 0.9)
    yield _bricks(rng, 10, 32, 2.5, (168, 96, 76))
    yield _speckle(rng, (205, 198, 184), 0.07, 4)
    yield _facade(rng)
    yield _shops(rng)
    yield _car_window(rng)
    yield _speckle(rng, (238, 238, 240), 0.035, 4)
    yield _wheel(rng)
    yield _speckle(rng, (110, 88, 66), 0.3, 16)
    yield _speckle(rng, (92, 118, 62), 0.42, 8, 0.95)
    yield _speckle(rng, (150, 152, 155), 0.06, 8)
    yield _speckle(rng, (104, 120, 92), 0.25, 4)
    yield _sign(rng)
    yield _panels(rng)


@lru_cache(maxsize=1)
def textures(seed: int) -> Textures:
    """The tiles of a data set; built in about a second, once per process."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x7E57]))
    pieces: list[NDArray[np.uint32]] = []
    for tile in _tiles(rng):
        image = np.clip(tile, 0, 255)
        for level in range(LEVELS):
            packed = np.zeros((*image.shape[:2], 4), dtype=np.uint8)
            packed[..., :3] = np.rint(image)
            pieces.append(packed.view(np.uint32).ravel())
            if level < LEVELS - 1:
                image = 0.25 * (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2])
    base = np.cumsum([0, *(piece.size for piece in pieces[:-1])], dtype=np.int32).reshape(-1, LEVELS)
    macro = np.clip(0.5 + 0.22 * _noise(rng, 256, 4, 256, 0.75), 0.0, 1.0)
    return Textures(np.concatenate(pieces), base, macro.astype(np.float32))
