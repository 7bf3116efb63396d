"""Confidence from agreement: of the views that could see a pixel's point, which share has the same depth there?"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from mapanything.geometry.rigid import invert
from mapanything.models.postprocess import MAX_PIXELS, Prediction

MIN_DEPTH = 0.04  # metres: nearer points are not looked for in another view


def confidence(prediction: Prediction, abs_threshold: float, rel_threshold: float) -> Tensor:
    """(B, V, H, W): inliers / (inliers + outliers) over the views whose frusta meet; 1 for a view that meets none.

    A pixel's point, seen from another view, is an inlier where that view's depth differs by less than
    `abs_threshold` metres + `rel_threshold` · z, else an outlier; points outside its image, or behind it, count for nothing.
    """
    b, v, height, width, _ = prediction.pts3d.shape
    if v == 1:
        return torch.ones_like(prediction.conf)
    depth, mask = prediction.depth_z[..., 0], prediction.non_ambiguous_mask
    world_from = prediction.camera_poses
    meets = frusta_meet(depth, prediction.intrinsics, world_from)  # (B, V, V)
    u, w = torch.meshgrid(*(torch.arange(n, device=depth.device, dtype=depth.dtype) for n in (width, height)), indexing="xy")
    k = prediction.intrinsics[:, :, None, None]
    lifted = torch.stack([(u - k[..., 0, 2]) / k[..., 0, 0] * depth, (w - k[..., 1, 2]) / k[..., 1, 1] * depth, depth], -1)
    usable = (depth > 0) & mask
    inliers, outliers = torch.zeros_like(depth), torch.zeros_like(depth)
    pairs = [(i, j) for i, j in itertools.product(range(v), repeat=2) if i != j]
    step = max(1, MAX_PIXELS // (b * height * width))
    for start in range(0, len(pairs), step):
        source, target = (list(column) for column in zip(*pairs[start : start + step], strict=True))
        target_from_source = invert(world_from)[:, target] @ world_from[:, source]  # (B, P, 4, 4)
        points = lifted[:, source].flatten(2, 3) @ target_from_source[..., :3, :3].mT + target_from_source[:, :, None, :3, 3]
        z = points[..., 2].view(b, -1, height, width)
        kj = prediction.intrinsics[:, target, None]
        x = (kj[..., 0, 0] * points[..., 0] / points[..., 2] + kj[..., 0, 2]).view_as(z)
        y = (kj[..., 1, 1] * points[..., 1] / points[..., 2] + kj[..., 1, 2]).view_as(z)
        seen = usable[:, source] & (z > MIN_DEPTH) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        seen = seen & meets[:, source, target][..., None, None]
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1).clip(-1, 1)
        there = F.grid_sample(
            depth[:, target].flatten(0, 1)[:, None], grid.nan_to_num().flatten(0, 1), mode="nearest", align_corners=True
        ).view_as(z)
        agrees = (z - there).abs() < abs_threshold + rel_threshold * z
        rows = torch.tensor(source, device=depth.device)
        inliers.index_add_(1, rows, (seen & agrees).to(depth.dtype))
        outliers.index_add_(1, rows, (seen & ~agrees).to(depth.dtype))
    alone = ~meets.any(2)[..., None, None]
    return torch.where(alone, 1.0, inliers / (inliers + outliers + 1e-10))


def frusta_meet(depth: Tensor, intrinsics: Tensor, world_from_camera: Tensor) -> Tensor:
    """Pairs of views whose frusta (nearest to farthest positive depth) have a point in common: (B, V, V) bool.

    Two convex bodies are apart just when an axis separates them that is normal to a face of one or to an edge of each
    (Gottschalk 1996).

    Args:
        depth: (B, V, H, W); intrinsics: (B, V, 3, 3); world_from_camera: (B, V, 4, 4).
    """
    b, v, height, width = depth.shape
    positive = depth > 0
    near = torch.where(positive, depth, torch.inf).amin((2, 3))
    far = torch.where(positive, depth, 0.0).amax((2, 3))
    empty = far <= 0
    near = torch.where(empty, 1.0, near)
    far = torch.where(empty, 1.0, far)
    corner = depth.new_tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1)[:, :, None]  # (B, V, 1, 2)
    slopes = (corner - intrinsics[:, :, None, :2, 2]) / focal
    rays = torch.cat([slopes, torch.ones_like(slopes[..., :1])], -1)  # (B, V, 4, 3) with z = 1
    points = torch.cat([rays * near[..., None, None], rays * far[..., None, None]], 2)
    points = points @ world_from_camera[..., :3, :3].mT + world_from_camera[..., None, :3, 3]  # (B, V, 8, 3)
    edges = rays @ world_from_camera[..., :3, :3].mT  # along the four corner rays
    right, down, forward = world_from_camera[..., :3, :3].unbind(-1)
    edges = torch.cat([edges, right[:, :, None], down[:, :, None]], 2)  # (B, V, 6, 3)
    sides = torch.linalg.cross(edges[:, :, :4], edges[:, :, [1, 2, 3, 0]])
    faces = torch.cat([sides, forward[:, :, None]], 2)  # (B, V, 5, 3)
    shape = (b, v, v)
    crossed = torch.linalg.cross(edges[:, :, None, :, None], edges[:, None, :, None, :]).flatten(3, 4)  # (B, V, V, 36, 3)
    axes = torch.cat(
        [faces[:, :, None].expand(*shape, -1, -1), faces[:, None].expand(*shape, -1, -1), crossed], 3
    )  # (B, V, V, 46, 3)
    first = torch.einsum("bijax,bikx->bijak", axes, points)
    second = torch.einsum("bijax,bjkx->bijak", axes, points)
    # An axis of length 0 (parallel edges) separates nothing: all its projections are 0.
    apart = (first.amax(-1) < second.amin(-1)) | (second.amax(-1) < first.amin(-1))
    meets = ~apart.any(-1) & ~(empty[:, :, None] | empty[:, None, :])
    return meets & ~torch.eye(v, dtype=torch.bool, device=depth.device)
