"""Colours and what they mean, in every picture and in the viewer; (3,) uint8 where nothing else is said."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.colors import map_colors

Colors = NDArray[np.uint8]

BACKGROUND = (16 / 255, 21 / 255, 28 / 255)
DARK, LIGHT, GRID = "#10151c", "#e6ebf0", "#3a4653"  # DARK is the same as BACKGROUND
# By role: the main agent, then the others in order. None of them is a colour of the height scale's dark blue end.
AGENT_COLORS: Colors = np.array(
    [[255, 145, 0], [0, 229, 255], [140, 255, 60], [180, 130, 255], [255, 235, 60], [255, 90, 90], [0, 200, 150]],
    dtype=np.uint8,
)
# Seen apart by every kind of eye, on a dark ground: Okabe and Ito's orange and sky blue, brighter.
PREDICTED, TRUE = AGENT_COLORS[0], AGENT_COLORS[1]
TRUE_BELOW: Colors = np.array([70, 150, 190], np.uint8)  # of points that something else is shown over
BOX_COLOR: Colors = np.array([235, 240, 245], np.uint8)
RING_COLOR: Colors = np.array([96, 110, 126], np.uint8)
RING_TEXT: Colors = np.array([160, 175, 190], np.uint8)
AXIS_COLORS: Colors = np.array([[255, 70, 70], [70, 220, 70], [80, 140, 255]], np.uint8)

HEIGHT_RANGE = (-1.0, 5.0)  # metres above the road: kerbs, cars and walls spread over the colours, bridges saturate
DEPTH_RANGE = (1.5, 120.0)  # metres, logarithmically: red near, blue far
ERROR_RANGE = (0.1, 10.0)  # metres, logarithmically; the same in every picture
ERROR_TICKS = (0.1, 0.3, 1.0, 3.0, 10.0)
ERROR_MAP = "plasma"  # its luminance rises all the way, which every eye sees; its first fifth is lost on a dark ground
ERROR_MAP_START = 0.2


def rgb(color: Colors | str) -> tuple[float, float, float] | str:
    """A colour as Matplotlib takes it; one of its own words stays."""
    if isinstance(color, str):
        return color
    red, green, blue = (np.asarray(color) / 255.0).tolist()
    return red, green, blue


def agent_color(role: int) -> Colors:
    """The colour (3,) of role 0 (main agent), 1, 2..."""
    return AGENT_COLORS[role % len(AGENT_COLORS)]


def height_colors(points: NDArray[np.floating], ground: float) -> Colors:
    """Colours (N, 3) by height above the road; `ground` as `scenes.ground_height` gives it."""
    return map_colors(ground - points[:, 1], *HEIGHT_RANGE)


def depth_colors(depth: NDArray[np.floating]) -> Colors:
    """Colours (N, 3) of z-depths (N,) in metres, over `DEPTH_RANGE`."""
    low, high = np.log(DEPTH_RANGE)
    return map_colors(np.log(np.maximum(depth, 1e-3)), low, high, "turbo_r")


def error_colors(distances: NDArray[np.floating]) -> Colors:
    """Colours (N, 3) of distances (N,) in metres, over `ERROR_RANGE`: violet is near, yellow is far."""
    low, high = np.log(ERROR_RANGE)
    start = low - (high - low) * ERROR_MAP_START / (1 - ERROR_MAP_START)
    return map_colors(np.log(np.clip(distances, *ERROR_RANGE)), start, high, ERROR_MAP)
