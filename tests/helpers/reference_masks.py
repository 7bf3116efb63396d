"""Edge mask and multi-view confidence of the reference's `infer`, pixel by pixel.

reference.py says how it is written; § are sections of docs/network.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.helpers.reference_layers import Views

# ---------------------------------------------------------------------------------------------------------- edge mask (§6.4)


def neighbours(y: int, x: int, shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The pixels of the 3×3 window of (y, x), cut at the border."""
    for i in range(max(y - 1, 0), min(y + 2, shape[0])):
        for j in range(max(x - 1, 0), min(x + 2, shape[1])):
            yield i, j


def surface_normals(points: NDArray, mask: NDArray) -> tuple[NDArray, NDArray]:
    """points (H, W, 3), mask (H, W) -> normals (H, W, 3), normal mask (H, W)."""
    padded, inside = np.pad(points, ((1, 1), (1, 1), (0, 0))), np.pad(mask, 1)
    ring = [(-1, 0), (0, -1), (1, 0), (0, 1), (-1, 0)]  # up, left, down, right, up
    normals, normal_mask = np.zeros_like(points), np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        total = np.zeros(3, dtype=points.dtype)
        for (ay, ax), (by, bx) in pairwise(ring):
            a, b, centre = (y + 1 + ay, x + 1 + ax), (y + 1 + by, x + 1 + bx), (y + 1, x + 1)
            if inside[a] and inside[b] and inside[centre]:
                normal = cross(padded[a] - padded[centre], padded[b] - padded[centre])
                total = total + normal / (length(normal) + points.dtype.type(1e-12))
                normal_mask[y, x] = True
        normals[y, x] = total / (length(total) + points.dtype.type(1e-12))
    return normals, normal_mask


def cross(a: NDArray, b: NDArray) -> NDArray:
    """(3,) of (3,) and (3,): what np.cross does, which is slow on single vectors."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def length(x: NDArray) -> np.floating:
    """Norm of (3,), in x's own precision."""
    return np.sqrt(x[0] * x[0] + x[1] * x[1] + x[2] * x[2])


def normal_edges(points: NDArray, mask: NDArray, threshold_deg: float) -> NDArray:
    """(H, W) bool: a change of the normal near the pixel. NaN where arccos got more than 1 is kept until the pooling.

    The normals are divided by their norm once more, which the specification does not say: it decides which cosines round
    to more than 1, and only so do all masks of the parity file come out to the pixel.
    """
    normals, normal_mask = surface_normals(points, mask)
    for y, x in np.ndindex(mask.shape):
        normals[y, x] /= length(normals[y, x]) + points.dtype.type(1e-12)
    angles = np.zeros(mask.shape, dtype=points.dtype)
    with np.errstate(invalid="ignore"):
        for y, x in np.ndindex(mask.shape):
            window = [0.0]
            for i, j in neighbours(y, x, mask.shape):  # edge padding repeats pixels that are in the window anyway
                if normal_mask[i, j]:
                    products = normals[y, x] * normals[i, j]
                    window.append(np.arccos(products[0] + products[1] + products[2]))
            angles[y, x] = np.max(window)  # NaN if any is
    edges = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        window = [angles[i, j] for i, j in neighbours(y, x, mask.shape) if not np.isnan(angles[i, j])]
        edges[y, x] = bool(window) and max(window) > np.deg2rad(threshold_deg)
    return edges


def depth_edges(depth: NDArray, mask: NDArray, threshold: float) -> NDArray:
    """(H, W) bool: the spread of the masked depths in 3×3 is large for the pixel's depth. False outside the mask."""
    edges = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask)):
        window = [depth[i, j] for i, j in neighbours(y, x, mask.shape) if mask[i, j]]
        with np.errstate(divide="ignore", invalid="ignore"):
            edges[y, x] = (max(window) - min(window)) / depth[y, x] > threshold
    return edges


# ----------------------------------------------------------------------------------------------- multi-view confidence (§6.4)


def multiview_confidence(outputs: Views, abs_thresh: float, rel_thresh: float) -> list[Tensor]:
    """Share of the other views that see a pixel's point where the pixel has it: V·(B, H, W).

    outputs: with depth_z (B, H, W, 1), intrinsics (B, 3, 3), camera_poses (B, 4, 4), non_ambiguous_mask (B, H, W).
    """
    confidences = []
    for i, source in enumerate(outputs):
        partners = [j for j in range(len(outputs)) if j != i and frusta_overlap(source, outputs[j])]
        confidence = torch.ones_like(source["depth_z"][..., 0])
        if partners:
            for b in range(len(confidence)):
                inliers, outliers = torch.zeros_like(confidence[b]), torch.zeros_like(confidence[b])
                for j in partners:
                    valid, inlier = agreement(source, outputs[j], b, abs_thresh, rel_thresh)
                    inliers += valid & inlier
                    outliers += valid & ~inlier
                confidence[b] = inliers / (inliers + outliers + 1e-10)
        confidences.append(confidence)
    return confidences


def agreement(
    source: dict[str, Any], target: dict[str, Any], b: int, abs_thresh: float, rel_thresh: float
) -> tuple[Tensor, Tensor]:
    """Pixels whose points in `source` fall into `target`, and those whose depth agrees there: (H, W) bool each."""
    depth, other = source["depth_z"][b, ..., 0], target["depth_z"][b, ..., 0]
    height, width = depth.shape
    k, pose = source["intrinsics"][b], source["camera_poses"][b]
    xs, ys = torch.arange(width).expand(height, width), torch.arange(height)[:, None].expand(height, width)
    in_source = torch.stack([(xs - k[0, 2]) / k[0, 0] * depth, (ys - k[1, 2]) / k[1, 1] * depth, depth], dim=-1)
    in_world = in_source @ pose[:3, :3].T + pose[:3, 3]
    k, pose = target["intrinsics"][b], target["camera_poses"][b]
    x, y, z = ((in_world - pose[:3, 3]) @ pose[:3, :3]).unbind(dim=-1)
    u, v = k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2]
    valid = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (z > 0.04)
    valid = valid & (depth > 0) & source["non_ambiguous_mask"][b]
    column, row = nearest(u, width), nearest(v, height)
    return valid, (z - other[row, column]).abs() < abs_thresh + rel_thresh * z


def nearest(u: Tensor, size: int) -> Tensor:
    """The pixel that grid_sample(mode="nearest", align_corners=True) takes for coordinates u of an axis of `size`."""
    grid = (2 * u / (size - 1) - 1).clamp(-1, 1).nan_to_num(0)
    return ((grid + 1) / 2 * (size - 1)).round().long()


def frusta_overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """True where the views' frusta meet: no axis of a face, or of two edges, separates them. Batch element 0 only.

    The specification does not say how frusta are intersected, nor whether they end at pixel centres or borders.
    """
    frustum_a, frustum_b = frustum(a), frustum(b)
    if frustum_a is None or frustum_b is None:
        return False
    (corners_a, faces_a, edges_a), (corners_b, faces_b, edges_b) = frustum_a, frustum_b
    axes = [*faces_a, *faces_b, *(np.cross(p, q) for p in edges_a for q in edges_b)]
    for axis in (axis for axis in axes if np.linalg.norm(axis) > 1e-9):  # less: parallel edges
        along_a, along_b = corners_a @ axis, corners_b @ axis
        if along_a.max() < along_b.min() or along_b.max() < along_a.min():
            return False
    return True


def frustum(view: dict[str, Any]) -> tuple[NDArray, list[NDArray], list[NDArray]] | None:
    """World corners (8, 3) between the least and greatest positive depth, normals of the faces, directions of the edges."""
    depth = view["depth_z"][0, ..., 0].double().numpy()
    height, width = depth.shape
    if not (depth > 0).any():
        return None
    k, pose = view["intrinsics"][0].double().numpy(), view["camera_poses"][0].double().numpy()
    rays = []
    for x, y in ((0, 0), (width, 0), (width, height), (0, height)):
        rays.append(pose[:3, :3] @ np.array([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], 1]))
    corners = [pose[:3, 3] + ray * z for z in (depth[depth > 0].min(), depth.max()) for ray in rays]
    right, down = pose[:3, 0], pose[:3, 1]
    sides = [ray / np.linalg.norm(ray) for ray in rays]
    faces = [pose[:3, 2], np.cross(right, sides[0]), np.cross(right, sides[2])]
    faces += [np.cross(down, sides[0]), np.cross(down, sides[1])]
    return np.stack(corners), faces, [right, down, *sides]
