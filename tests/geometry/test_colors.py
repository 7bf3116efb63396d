"""Colours: the two ways between sRGB and linear light, and colour maps at and beyond their ends."""

from __future__ import annotations

import numpy as np

from mapanything.geometry.colors import linear_from_srgb, map_colors, srgb_from_linear


def test_srgb_and_linear_light_are_each_others_inverse():
    """IEC 61966-2-1."""
    srgb = np.array([0, 10, 188, 255]) / 255
    assert np.rint(255 * linear_from_srgb(srgb)).tolist() == [0, 1, 128, 255]
    every = np.arange(256) / 255
    assert np.abs(srgb_from_linear(linear_from_srgb(every)) - every).max() < 1e-6


def test_a_colour_map_ends_where_its_range_ends():
    values = np.array([[-9.0, 0.0, 0.5], [1.0, 9.0, np.nan]])
    colors = map_colors(values, 0.0, 1.0)
    assert colors.shape == (2, 3, 3) and colors.dtype == np.uint8
    assert (colors[0, 0] == colors[0, 1]).all() and (colors[1, 0] == colors[1, 1]).all()
    assert (colors[1, 2] == colors[0, 0]).all()  # unknown: the low end
    assert (map_colors(values[0, 1:], 0.0, 1.0, "turbo_r")[0] == colors[1, 0]).all()
