"""Turns the heads' raw numbers into geometry: rays, depths, poses, points, in metres."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mapanything.geometry.rigid import matrix_from_quat, rotate

EPS = 1e-8


@dataclass
class Outputs:
    """The network's answer to a batch of scenes. Lengths are metres where the network knows the scale; cameras are OpenCV,
    poses camera to world, the world is about view 0's camera (by training, not by construction)."""

    pts3d: Tensor  # (B, V, H, W, 3) in the world
    pts3d_cam: Tensor  # (B, V, H, W, 3) in the camera's frame
    ray_directions: Tensor  # (B, V, H, W, 3) unit
    depth_along_ray: Tensor  # (B, V, H, W, 1)
    cam_trans: Tensor  # (B, V, 3)
    cam_quats: Tensor  # (B, V, 4) xyzw
    metric_scaling_factor: Tensor  # (B, 1): what points, depths and translations have been multiplied by
    conf: Tensor  # (B, V, H, W), 1 and more
    non_ambiguous_mask: Tensor  # (B, V, H, W) bool
    non_ambiguous_mask_logits: Tensor  # (B, V, H, W)

    def views(self) -> list[dict[str, Any]]:
        """One dictionary per view, upstream's keys; tensors without the V axis (views of the stacked ones)."""
        return unstack({f.name: getattr(self, f.name) for f in fields(self)}, self.pts3d.shape[1])


def unstack(values: dict[str, Tensor], num_views: int) -> list[dict[str, Any]]:
    """Stacked tensors (B, V, …) -> a dictionary per view. The scale belongs to the scene: every view gets the same tensor."""
    columns = {k: [v] * num_views if k == "metric_scaling_factor" else v.unbind(1) for k, v in values.items()}
    return [{key: column[i] for key, column in columns.items()} for i in range(num_views)]


def normalised(x: Tensor) -> Tensor:
    """x divided by its length along the last axis, which counts as 1e-8 at least."""
    return x / x.norm(dim=-1, keepdim=True).clip(min=EPS)


def assemble(dense: Tensor, trans: Tensor, quats: Tensor, log_scale: Tensor, num_views: int) -> Outputs:
    """The outputs of the heads, made into geometry (docs/network.md §5).

    Args:
        dense: (B·V, 6, H, W): ray x, y, z, log depth, log (confidence - 1), mask logit.
        trans, quats: (B·V, 3), (B·V, 4).
        log_scale: (B, 1).
    """
    dense = dense.unflatten(0, (-1, num_views))  # (B, V, 6, H, W)
    trans, quats = trans.unflatten(0, (-1, num_views)), normalised(quats.unflatten(0, (-1, num_views)))
    rays = normalised(dense[:, :, :3].permute(0, 1, 3, 4, 2))
    scale = log_scale.exp().clip(min=EPS)  # (B, 1)
    depth = dense[:, :, 3].exp()[..., None] * scale[:, :, None, None, None]
    trans = trans * scale[:, :, None]
    points_cam = rays * depth
    points = rotate(quats[:, :, None, None], points_cam) + trans[:, :, None, None]
    logits = dense[:, :, 5]
    return Outputs(
        pts3d=points,
        pts3d_cam=points_cam,
        ray_directions=rays,
        depth_along_ray=depth,
        cam_trans=trans,
        cam_quats=quats,
        metric_scaling_factor=scale,
        conf=1 + dense[:, :, 4].exp(),
        non_ambiguous_mask=logits.sigmoid() > 0.5,
        non_ambiguous_mask_logits=logits,
    )


def pose_matrices(trans: Tensor, quats: Tensor) -> Tensor:
    """(…, 3) and (…, 4) -> (…, 4, 4)."""
    matrix = torch.zeros(*trans.shape[:-1], 4, 4, dtype=trans.dtype, device=trans.device)
    matrix[..., :3, :3] = matrix_from_quat(quats)
    matrix[..., :3, 3] = trans
    matrix[..., 3, 3] = 1.0
    return matrix
