"""Random scenes for the loss's tests: views that could be a data set's, and predictions that could be a network's."""

from __future__ import annotations

import torch
from torch import Tensor

from mapanything.geometry.rigid import matrix_from_quat

LEAVES = ("pts3d", "pts3d_cam", "ray_directions", "depth_along_ray", "cam_trans", "cam_quats")
LEAVES += ("metric_scaling_factor", "conf", "non_ambiguous_mask_logits")


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _geometry(rays: Tensor, depth: Tensor, quats: Tensor, trans: Tensor) -> tuple[Tensor, Tensor]:
    cam = rays * depth
    return cam, cam @ matrix_from_quat(quats).mT[:, None] + trans[:, None, None]


def random_scene(
    num_views: int = 3,
    num_samples: int = 2,
    *,
    seed: int = 0,
    size: tuple[int, int] = (10, 12),
    labelled: float = 0.8,
    synthetic: list[bool] | None = None,
    metric: list[bool] | None = None,
    empty: tuple[tuple[int, int], ...] = (),
    dtype: torch.dtype = torch.float64,
    error: float = 0.2,
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """A batch and a prediction, lists over views. `empty`: (view, sample) without a valid pixel; error: how wrong it is."""
    rng = torch.Generator().manual_seed(seed)
    height, width = size
    b = num_samples

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=dtype)

    y, x = torch.meshgrid(torch.linspace(-0.7, 0.7, height), torch.linspace(-1, 1, width), indexing="ij")
    grid = torch.stack([x, y, torch.ones_like(x)], -1).to(dtype)
    scale = torch.exp(noise(b, 1) * 0.3)
    batch, preds = [], []
    for view in range(num_views):
        rays = unit(grid + 0.02 * noise(b, height, width, 3))
        depth = torch.exp(1.5 + 0.3 * noise(b, height, width, 1)) + 2 * y[..., None].to(dtype)
        quats, trans = unit(noise(b, 4)), 3 * noise(b, 3)
        valid = torch.rand(b, height, width, generator=rng) < labelled
        for v, sample in empty:
            if v == view:
                valid[sample] = False
        known = depth * valid[..., None]
        cam, world = _geometry(rays, known, quats, trans)
        pose = torch.eye(4, dtype=dtype).repeat(b, 1, 1)
        pose[:, :3, :3], pose[:, :3, 3] = matrix_from_quat(quats), trans
        batch.append(
            {
                "camera_pose": pose,
                "camera_pose_quats": quats,
                "camera_pose_trans": trans,
                "pts3d": world,
                "pts3d_cam": cam,
                "ray_directions_cam": rays,
                "depth_along_ray": known,
                "valid_mask": valid,
                "non_ambiguous_mask": torch.rand(b, height, width, generator=rng) < 0.9,
                "is_synthetic": torch.tensor([True] * b if synthetic is None else synthetic),
                "is_metric_scale": torch.tensor([True] * b if metric is None else metric),
                "agent_id": torch.full((b,), view // 2),
            }
        )
        rays = unit(rays + error * 0.1 * noise(b, height, width, 3))
        depth = depth * torch.exp(error * noise(b, height, width, 1))
        quats, trans = unit(quats + error * noise(b, 4)), trans + error * noise(b, 3)
        cam, world = _geometry(rays, depth, quats, trans)
        preds.append(
            {
                "pts3d": world,
                "pts3d_cam": cam,
                "ray_directions": rays,
                "depth_along_ray": depth,
                "cam_trans": trans,
                "cam_quats": quats,
                "metric_scaling_factor": scale.clone(),
                "conf": 1 + torch.exp(noise(b, height, width)),
                "non_ambiguous_mask_logits": 2 * noise(b, height, width),
            }
        )
    return batch, preds


def leaves(preds: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The prediction with every tensor a leaf of its own that wants a gradient."""
    return [{key: value.detach().clone().requires_grad_() for key, value in view.items()} for view in preds]


def gradients(total: Tensor, preds: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """d total / d every leaf; 0 where it has no part in it."""
    flat = [value for view in preds for value in view.values()]
    found = iter(torch.autograd.grad(total, flat, allow_unused=True))
    return [{key: _or_zero(next(found), value) for key, value in view.items()} for view in preds]


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
