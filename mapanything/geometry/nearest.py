"""Exact distances to nearest neighbours.

The k-d tree is Open3D's (nanoflann, all cores). Points are put in Morton order first: queries that follow each other then
walk the same branches, and what they meet lies side by side in memory. That is two to three times as fast as Open3D with the
points as they come (docs/benchmarks.md has figures), as long as ordering costs little: so each axis is read once, and code
and index are sorted as one number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.types import Float

MORTON_STEPS = (1 << 10) - 1  # 10 bits per axis make a 32-bit code
PROBES = 1000  # points that say where most of them are


def nearest_distances(queries: Float, reference: Float) -> Float:
    """(N,) exact distances of queries (N, 3) to the nearest of the reference points (M, 3); inf where there are none."""
    if not len(queries) or not len(reference):
        return np.full(len(queries), np.inf)
    order = morton_order(queries)
    out = np.empty(len(queries))
    out[order] = _ordered_distances(queries.take(order, axis=0), reference.take(morton_order(reference), axis=0))
    return out


def _ordered_distances(queries: Float, reference: Float) -> Float:
    import open3d

    vectors = open3d.utility.Vector3dVector
    clouds = [open3d.geometry.PointCloud(vectors(np.ascontiguousarray(points, np.float64))) for points in (queries, reference)]
    return np.asarray(clouds[0].compute_point_cloud_distance(clouds[1]))


def morton_order(points: Float) -> NDArray[np.intp]:
    """Indices that sort finite points (N, 3) along a Z-order curve; those in one of its cells as they come.

    Its cube holds most of the points, with room around them. Those outside count as on its faces: a few far ones would
    otherwise make the cells so large that all others fall into the same.
    """
    probes = points[:: -(-len(points) // PROBES)]
    low, high = np.percentile(probes, (2, 98), axis=0)
    low, high = low - (high - low), high + (high - low)
    side = float((high - low).max())
    code = np.zeros(len(points), np.uint32)
    if side > 0:
        for axis, corner in enumerate(low):
            inside = np.clip(points[:, axis], corner, corner + side)
            code |= _spread_bits(((inside - corner) * (MORTON_STEPS / side)).astype(np.uint32)) << np.uint32(axis)
    keys = code.astype(np.uint64) << np.uint64(32) | np.arange(len(points), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.intp)


def _spread_bits(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The ten lowest bits with two zeros between each and the next."""
    x = (x | x << np.uint32(16)) & np.uint32(0x030000FF)
    x = (x | x << np.uint32(8)) & np.uint32(0x0300F00F)
    x = (x | x << np.uint32(4)) & np.uint32(0x030C30C3)
    return (x | x << np.uint32(2)) & np.uint32(0x09249249)
