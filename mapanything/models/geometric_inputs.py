"""Rays, depth and poses that are known beforehand, as features beside those of the images.

Each input may be there for any view. `choose` decides, per sample and view, which of those that are there the network gets
to see: all draws are made on the device, so nothing waits for it. Absent inputs cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mapanything.errors import InputError
from mapanything.geometry.rigid import quat_inverse, quat_multiply, rotate
from mapanything.models.config import PATCH, GeometricInputsConfig
from mapanything.models.layers import LayerNorm

EPS = 1e-8


class ResBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; GELU after the addition."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.shortcut = nn.Conv2d(in_dim, dim, 1) if in_dim != dim else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv2(F.gelu(self.conv1(x))) + self.shortcut(x))


class DenseEncoder(nn.Module):
    """A map (R, c, H, W) -> patch features (R, N, C)."""

    def __init__(self, channels: int, dims: Sequence[int], out_dim: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels * PATCH**2, dims[0], 3, padding=1)
        self.encoder = nn.Sequential(ResBlock(dims[0], dims[1]), ResBlock(dims[1], dims[2]), nn.Conv2d(dims[2], out_dim, 1))
        self.norm_layer = LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.conv_in(F.pixel_unshuffle(x, PATCH)))
        return self.norm_layer(x.flatten(2).transpose(1, 2))


class GlobalEncoder(nn.Module):
    """A vector (…, c) -> a feature (…, C) for a whole view. The nesting is that of the checkpoints' names."""

    def __init__(self, channels: int, dims: Sequence[int], out_dim: int) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(channels, dims[0]), nn.GELU())
        middle = nn.Sequential(nn.Sequential(inner, nn.Linear(dims[0], dims[1]), nn.GELU()), nn.Linear(dims[1], dims[2]))
        self.encoder = nn.Sequential(nn.Sequential(*middle, nn.GELU()), nn.Linear(dims[2], out_dim))
        self.norm_layer = LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_layer(self.encoder(x))


@dataclass(frozen=True)
class Gathered:
    """One kind of input of the views that have it: `values` (B, len(views), …), `views` their numbers."""

    values: Tensor
    views: tuple[int, ...]


def gather(views: Sequence[Mapping[str, Any]], key: str) -> Gathered | None:
    """The input `key` of all views that hold it, in float32; None where none does."""
    numbers = tuple(i for i, view in enumerate(views) if view.get(key) is not None)
    if not numbers:
        return None
    return Gathered(torch.stack([views[i][key] for i in numbers], 1).float(), numbers)


def metric_flags(views: Sequence[Mapping[str, Any]], batch: int, device: torch.device) -> Tensor:
    """(B, V) bool: is the scale of a view's depth and pose in metres? A missing flag means no; a bool counts for the batch."""
    flags = []
    for view in views:
        flag = view.get("is_metric_scale")
        if not isinstance(flag, Tensor):
            flag = torch.full((batch,), bool(flag), device=device)
        flags.append(flag.to(device).bool().expand(batch))
    return torch.stack(flags, 1)


@dataclass(frozen=True)
class Choice:
    """The inputs that the network gets to see: (B, V) masks of rays, depth and poses, None where a kind is off for good; the
    metric flags for depth and poses (B, V); and the share of the depth pixels to take away, a scalar tensor, or None."""

    rays: Tensor | None
    depth: Tensor | None
    pose: Tensor | None
    depth_metric: Tensor | None
    pose_metric: Tensor | None
    removed: Tensor | None


def _chance(probability: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """True with a probability. Certainties draw nothing, so that inference leaves the random state as it is."""
    if probability <= 0 or probability >= 1:
        return torch.full(shape, probability >= 1, device=device)
    return torch.rand(shape, device=device) < probability


def choose(
    config: GeometricInputsConfig, batch: int, num_views: int, metric: Tensor | None, device: torch.device
) -> Choice | None:
    """Draws the choices of docs/network.md §1.2; None where nothing can be chosen.

    Upstream draws in part on the CPU and from counts that have to be read from the GPU; here every draw is made for all
    samples and views at once: the same distribution, another stream of numbers.
    """
    if config.overall_prob <= 0 or config.dropout_prob >= 1:
        return None
    shape = (batch, num_views)
    seen = _chance(config.overall_prob, (batch, 1), device) & _chance(1 - config.dropout_prob, shape, device)

    def kind(probability: float) -> Tensor | None:
        return None if probability <= 0 else seen & _chance(probability, (batch, 1), device)

    rays, depth, pose = kind(config.ray_dirs_prob), kind(config.depth_prob), kind(config.cam_prob)
    removed = depth_metric = pose_metric = None
    if depth is not None and config.sparse_depth_prob > 0 and config.sparsification_removal_percent > 0:
        removed = _chance(config.sparse_depth_prob, (), device) * config.sparsification_removal_percent
    if metric is not None and depth is not None:
        depth_metric = metric & ~_chance(config.depth_scale_norm_all_prob, shape, device)
    if metric is not None and pose is not None:
        pose_metric = metric & ~_chance(config.pose_scale_norm_all_prob, shape, device)
    return Choice(rays, depth, pose, depth_metric, pose_metric, removed)


def thin_out(depth: Tensor, selected: Tensor, removed: Tensor) -> Tensor:
    """Takes `removed` (0 to 1) of the known pixels away: of each view, from all its selected samples jointly.

    Args:
        depth: (B, K, H, W), 0 = unknown.
        selected: (B, K) bool.
        removed: scalar tensor.
    """
    b, k = selected.shape
    keys = torch.rand_like(depth)
    keys = torch.where((depth > 0) & selected[:, :, None, None], keys, 2.0)  # never the smallest
    flat = keys.transpose(0, 1).reshape(k, -1)  # a view's samples in one row
    number = ((flat < 2).sum(1) * removed).floor().long()  # pixels to go, per view
    ordered = flat.sort(1).values
    ordered = torch.cat([ordered, ordered.new_full((k, 1), 2.0)], 1)
    threshold = ordered.gather(1, number[:, None])  # the smallest key that stays
    gone = (flat < threshold).view(k, b, *depth.shape[2:]).transpose(0, 1)
    return torch.where(gone, 0.0, depth)


def spread(features: Tensor, views: tuple[int, ...], num_views: int) -> Tensor:
    """(B, len(views), …) -> (B, V, …), zeros for the other views."""
    if len(views) == num_views:
        return features
    zeros = torch.zeros_like(features[:, 0])
    rows = dict(zip(views, features.unbind(1), strict=True))
    return torch.stack([rows.get(v, zeros) for v in range(num_views)], 1)


def pick(mask: Tensor, views: tuple[int, ...]) -> Tensor:
    """The columns `views` of (B, V)."""
    return mask if len(views) == mask.shape[1] else torch.stack([mask[:, v] for v in views], 1)


def relative_poses(quats: Tensor, trans: Tensor, selected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Poses in the frame of view 0 and the size of the rig.

    Args:
        quats, trans: (B, V, 4) and (B, V, 3), camera to any world; views without a pose hold anything finite.
        selected: (B, V) bool; the others become the identity.

    Returns:
        quats (B, V, 4), translations (B, V, 3) divided by the size, the size (B, 1): the mean length of those
        translations that are not 0, 1e-8 where all are (a quirk of the trained networks, kept).
    """
    inverse = quat_inverse(quats[:, :1])
    identity = torch.zeros_like(quats)
    identity[..., 3] = 1.0
    relative = torch.where(selected[..., None], quat_multiply(inverse, quats), identity)
    turned = rotate(inverse, trans)  # once: view 0's own must cancel to 0 exactly, or it would count below
    moved = torch.where(selected[..., None], turned - turned[:, :1], 0.0)
    length = moved.norm(dim=-1)  # (B, V)
    size = (length.sum(1, keepdim=True) / ((length > 0).sum(1, keepdim=True) + EPS)).clip(min=EPS)
    return relative, moved / size[..., None], size


class GeometricFeatures(nn.Module):
    """Base class of the network for this part: the six encoders under the names that checkpoints have for them."""

    def __init__(self, config: GeometricInputsConfig, dim: int) -> None:
        super().__init__()
        self.ray_dirs_encoder = DenseEncoder(3, config.dense_dims, dim)
        self.depth_encoder = DenseEncoder(1, config.dense_dims, dim)
        self.depth_scale_encoder = GlobalEncoder(1, config.global_dims, dim)
        self.cam_rot_encoder = GlobalEncoder(4, config.global_dims, dim)
        self.cam_trans_encoder = GlobalEncoder(3, config.global_dims, dim)
        self.cam_trans_scale_encoder = GlobalEncoder(1, config.global_dims, dim)

    def geometric_features(self, views: Sequence[Mapping[str, Any]], config: GeometricInputsConfig) -> list[Tensor]:
        """Features of rays, depths and poses, to be added to those of the patches: tensors that broadcast to (B, V, N, C)."""
        batch, num_views, device = views[0]["img"].shape[0], len(views), views[0]["img"].device
        rays, depth = gather(views, "ray_directions_cam"), gather(views, "depth_along_ray")
        quats, trans = gather(views, "camera_pose_quats"), gather(views, "camera_pose_trans")
        if config.overall_prob <= 0 or all(x is None for x in (rays, depth, quats)):
            return []
        metric = metric_flags(views, batch, device) if depth is not None or quats is not None else None
        choice = choose(config, batch, num_views, metric, device)
        if choice is None:
            return []
        features = []
        if rays is not None and choice.rays is not None:
            features.append(self._rays(rays, choice.rays, num_views))
        if depth is not None and choice.depth is not None:
            features.append(self._depth(depth, choice, num_views))
        if quats is not None and choice.pose is not None:
            if trans is None or trans.views != quats.views:
                raise InputError("camera_pose_quats and camera_pose_trans belong together: a view has both or neither")
            if quats.views[0] != 0:
                raise InputError(
                    f"view 0, key camera_pose_quats: missing, but view {quats.views[0]} has a pose; "
                    "poses are taken relative to view 0's"
                )
            features.append(self._pose(quats, trans.values, choice, num_views))
        return features

    def _rays(self, rays: Gathered, selected: Tensor, num_views: int) -> Tensor:
        mask = pick(selected, rays.views)  # (B, K)
        x = torch.where(mask[..., None, None, None], rays.values, 0.0)
        features = self.ray_dirs_encoder(x.flatten(0, 1).permute(0, 3, 1, 2)).unflatten(0, mask.shape)
        return spread(features * mask[..., None, None], rays.views, num_views)

    def _depth(self, depth: Gathered, choice: Choice, num_views: int) -> Tensor:
        assert choice.depth is not None and choice.depth_metric is not None
        mask, metric = pick(choice.depth, depth.views), pick(choice.depth_metric, depth.views)
        x = torch.where(mask[..., None, None], depth.values[..., 0], 0.0)  # (B, K, H, W)
        if choice.removed is not None:
            x = thin_out(x, mask, choice.removed)
        known = x > 0
        mean = (torch.where(known, x, 0.0).sum((2, 3)) / (known.sum((2, 3)) + EPS)).clip(min=EPS)  # (B, K)
        x = log_compress((x / mean[..., None, None])[..., None])[..., 0]
        features = self.depth_encoder(x.flatten(0, 1)[:, None]).unflatten(0, mask.shape) * mask[..., None, None]
        scale = self.depth_scale_encoder((mean + EPS).log()[..., None]) * (mask & metric)[..., None]
        return spread(features + scale[:, :, None], depth.views, num_views)

    def _pose(self, quats: Gathered, trans: Tensor, choice: Choice, num_views: int) -> Tensor:
        assert choice.pose is not None and choice.pose_metric is not None
        mask = spread(pick(choice.pose, quats.views), quats.views, num_views)
        relative, moved, size = relative_poses(
            spread(quats.values, quats.views, num_views), spread(trans, quats.views, num_views), mask
        )
        scale = self.cam_trans_scale_encoder((size + EPS).log()[..., None])  # (B, 1, C)
        features = (self.cam_rot_encoder(relative) + self.cam_trans_encoder(moved)) * mask[..., None]
        return (features + scale * (mask & choice.pose_metric)[..., None])[:, :, None]


def log_compress(x: Tensor) -> Tensor:
    """x / |x| · log(1 + |x|), the norm taken over the last axis."""
    norm = x.norm(dim=-1, keepdim=True)
    return x / norm.clip(min=EPS) * norm.log1p()
