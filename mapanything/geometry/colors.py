"""Numbers as colours: Matplotlib's colour maps, and the step between sRGB and linear light (IEC 61966-2-1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def map_colors(values: NDArray[np.floating], low: float, high: float, name: str = "turbo") -> NDArray[np.uint8]:
    """Values (...) -> (..., 3) uint8 by a Matplotlib colour map; what lies outside low..high gets the end's colour."""
    from matplotlib import colormaps

    table = colormaps[name](np.linspace(0.0, 1.0, 256), bytes=True)[:, :3]
    index = np.clip((values - low) * (255.999 / (high - low)), 0, 255)
    return table[np.nan_to_num(index, nan=0.0).astype(np.uint8)]


def linear_from_srgb(srgb: ArrayLike) -> NDArray[np.float64]:
    """Linear light of sRGB values, both in 0..1."""
    srgb = np.asarray(srgb, np.float64)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(linear: ArrayLike) -> NDArray[np.float64]:
    """sRGB values of linear light, both in 0..1."""
    linear = np.asarray(linear, np.float64)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
