"""Encoders, multi-view transformer, heads and forward pass of the reference network.

reference.py says how it is written; § are sections of docs/network.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.reference_layers import (
    PATCH,
    Views,
    Weights,
    block,
    conv,
    count,
    gelu,
    layer_norm,
    linear,
    matrix_from_quat,
    quat_inverse,
    quat_product,
    rows,
)


@dataclass(frozen=True)
class Selection:
    """The given inputs that are used (§1.2): for each a bool, or a bool tensor (V, B). What a view lacks is off anyway."""

    rays: bool | Tensor = True
    depth: bool | Tensor = True
    cam: bool | Tensor = True
    ignore_depth_scale: bool | Tensor = False
    ignore_pose_scale: bool | Tensor = False


def at(flag: bool | Tensor, v: int, b: int) -> bool:
    """The entry of view `v` and sample `b` of a flag that is a bool or (V, B)."""
    return bool(flag[v, b]) if isinstance(flag, Tensor) else flag


# ------------------------------------------------------------------------------------------------------ image encoder (§2)


def encode_image(config: dict[str, Any], p: Weights, img: Tensor) -> tuple[Tensor, Tensor]:
    """img (3, H, W) -> patches (N, C_e), class token (C_e,)."""
    name = "encoder.model"
    patches = F.conv2d(img[None], p[f"{name}.patch_embed.proj.weight"], p[f"{name}.patch_embed.proj.bias"], stride=PATCH)[0]
    height, width = patches.shape[1:]
    table = p[f"{name}.pos_embed"][0]  # (1 + M·M, C_e)
    x = torch.cat([p[f"{name}.cls_token"][0] + table[:1], rows(patches) + position_embedding(table[1:], height, width)])
    for i in range(count(p, f"{name}.blocks")):
        x = block(p, f"{name}.blocks.{i}", x, config["dinov2"]["num_heads"])
    if f"{name}.norm.weight" in p:
        x = layer_norm(p, f"{name}.norm", x)
    return x[1:], x[0]


def position_embedding(table: Tensor, height: int, width: int) -> Tensor:
    """table (M·M, C) resized to (height·width, C) patches."""
    side = math.isqrt(len(table))
    if height == width == side:
        return table
    grid = table.reshape(side, side, -1)
    down = cubic_matrix(side, height, (height + 0.1) / side).to(table.dtype)
    across = cubic_matrix(side, width, (width + 0.1) / side).to(table.dtype)
    return torch.einsum("ym,xn,mnc->yxc", down, across, grid).flatten(0, 1)


def cubic_matrix(source: int, target: int, factor: float) -> Tensor:
    """(target, source) weights of the bicubic (A = −0.75) samples at (i + 0.5) / factor − 0.5, borders replicated."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        x = (i + 0.5) / factor - 0.5
        first = math.floor(x) - 1
        for j in range(first, first + 4):
            d = abs(x - j)
            if d <= 1:
                weight = 1.25 * d**3 - 2.25 * d**2 + 1
            else:
                weight = -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3
            matrix[i, min(max(j, 0), source - 1)] += weight
    return matrix


# --------------------------------------------------------------------------------------------------- geometric inputs (§1)


def dense_encoder(p: Weights, name: str, x: Tensor) -> Tensor:
    """(c, H, W) -> (N, C_e) (§1.6)."""
    channels, height, width = x.shape
    x = x.reshape(channels, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 2, 4, 1, 3).flatten(0, 2)
    x = conv(p, f"{name}.conv_in", x)
    last = count(p, f"{name}.encoder") - 1
    for i in range(last):
        unit = f"{name}.encoder.{i}"
        y = conv(p, f"{unit}.conv2", gelu(conv(p, f"{unit}.conv1", x)))
        shortcut = conv(p, f"{unit}.shortcut", x) if f"{unit}.shortcut.weight" in p else x
        x = gelu(y + shortcut)
    return layer_norm(p, f"{name}.norm_layer", rows(conv(p, f"{name}.encoder.{last}", x)))


def global_encoder(p: Weights, name: str, x: Tensor) -> Tensor:
    """(c,) -> (C_e,) (§1.7)."""
    for layer in ("encoder.0.0.0.0", "encoder.0.0.1", "encoder.0.1"):
        x = gelu(linear(p, f"{name}.{layer}", x))
    return layer_norm(p, f"{name}.norm_layer", linear(p, f"{name}.encoder.1", x))


def depth_norm(depth: Tensor) -> Tensor:
    """Mean of the positive distances in depth (H, W, 1)."""
    valid = depth > 0
    return ((depth * valid).sum() / (valid.sum() + 1e-8)).clamp(min=1e-8)


def relative_poses(views: Views, b: int, chosen: list[bool]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Rotations V·(4,), normalised translations V·(3,) relative to view 0, and their norm, of sample `b` (§1.5)."""
    dtype = views[0]["img"].dtype
    quats, trans = [], []
    for view, use in zip(views, chosen):
        q, t = torch.tensor([0, 0, 0, 1], dtype=dtype), torch.zeros(3, dtype=dtype)
        if use:
            inverse = quat_inverse(views[0]["camera_pose_quats"][b])
            rotation = matrix_from_quat(inverse)
            q = quat_product(inverse, view["camera_pose_quats"][b])
            t = rotation @ view["camera_pose_trans"][b] - rotation @ views[0]["camera_pose_trans"][b]
        quats.append(q)
        trans.append(t)
    lengths = torch.stack([t.norm() for t in trans])
    norm = (lengths.sum() / ((lengths > 0).sum() + 1e-8)).clamp(min=1e-8)
    return quats, [t / norm for t in trans], norm


def fuse(p: Weights, views: Views, selection: Selection, patches: list[Tensor], b: int) -> list[Tensor]:
    """Adds sample `b`'s geometric features to its image features, V·(N, C_e), and normalises (§1.3 to §1.8)."""
    with_cam = [at(selection.cam, v, b) and "camera_pose_quats" in view for v, view in enumerate(views)]
    quats, trans, trans_norm = relative_poses(views, b, with_cam)
    fused = []
    for v, view in enumerate(views):
        height, width = view["img"].shape[2:]
        dtype = view["img"].dtype
        metric = bool(view["is_metric_scale"][b]) if "is_metric_scale" in view else False
        with_rays = at(selection.rays, v, b) and "ray_directions_cam" in view
        with_depth = at(selection.depth, v, b) and "depth_along_ray" in view

        rays = view["ray_directions_cam"][b] if with_rays else torch.zeros(height, width, 3, dtype=dtype)
        depth, scale = torch.zeros(height, width, 1, dtype=dtype), torch.zeros((), dtype=dtype)
        if with_depth:
            depth = view["depth_along_ray"][b]
            scale = depth_norm(depth)
            depth = depth / scale
        size = depth.norm(dim=-1, keepdim=True)
        depth = depth / size.clamp(min=1e-8) * torch.log1p(size)

        x = patches[v]
        x = x + dense_encoder(p, "ray_dirs_encoder", rays.permute(2, 0, 1)) * with_rays
        x = x + dense_encoder(p, "depth_encoder", depth.permute(2, 0, 1)) * with_depth
        use_scale = with_depth and metric and not at(selection.ignore_depth_scale, v, b)
        x = x + global_encoder(p, "depth_scale_encoder", (scale + 1e-8).log()[None]) * use_scale
        x = x + global_encoder(p, "cam_rot_encoder", quats[v]) * with_cam[v]
        x = x + global_encoder(p, "cam_trans_encoder", trans[v]) * with_cam[v]
        use_scale = with_cam[v] and metric and not at(selection.ignore_pose_scale, v, b)
        x = x + global_encoder(p, "cam_trans_scale_encoder", (trans_norm + 1e-8).log()[None]) * use_scale
        fused.append(layer_norm(p, "fusion_norm_layer", x))
    return fused


# --------------------------------------------------------------------------------------------- multi-view transformer (§3)


def share_information(
    config: dict[str, Any], p: Weights, patches: list[Tensor], class_tokens: list[Tensor]
) -> tuple[list[list[Tensor]], Tensor]:
    """One sample: V·(N, C_e) and V·(C_e,) -> [intermediate][view] (N, C), and the scale token (C,)."""
    settings = config["model_config"]["info_sharing_config"]["module_args"]
    count_patches = len(patches[0])
    tokens = list(patches)
    if config["model_config"].get("use_register_tokens_from_encoder", False):
        tokens = [torch.cat([x, token[None]]) for x, token in zip(patches, class_tokens)]
    scale = p["scale_token"][None]
    if "info_sharing.proj_embed.weight" in p:
        tokens = [linear(p, "info_sharing.proj_embed", x) for x in tokens]
        scale = linear(p, "info_sharing.proj_embed", scale)
    if "info_sharing.view_pos_table" in p:
        tokens[0] = tokens[0] + p["info_sharing.view_pos_table"][0]

    taken = []
    depth = count(p, "info_sharing.self_attention_blocks")
    for i in range(depth):
        name = f"info_sharing.self_attention_blocks.{i}"
        if i % 2 == 0:
            everything = block(p, name, torch.cat([*tokens, scale]), settings["num_heads"])
            *tokens, scale = everything.split([len(x) for x in tokens] + [1])
        else:
            tokens = [block(p, name, x, settings["num_heads"]) for x in tokens]
        if i in settings["indices"] or i == depth - 1:
            taken.append([layer_norm(p, "info_sharing.norm", x)[:count_patches] for x in tokens])
    return taken, layer_norm(p, "info_sharing.norm", scale)[0]


# ---------------------------------------------------------------------------------------------------------------- heads (§4)


def dense_head(p: Weights, features: list[Tensor], height: int, width: int) -> Tensor:
    """Four maps (·, h, w) -> (6, H, W) (§4.1)."""
    name = "dpt_feature_head"
    levels = []
    for k, x in enumerate(features):
        x = conv(p, f"{name}.input_process.{k}.0.0", x)
        resample = f"{name}.input_process.{k}.0.1"
        if k < 2:
            weight = p[f"{resample}.weight"]
            x = F.conv_transpose2d(x[None], weight, p[f"{resample}.bias"], stride=weight.shape[-1])[0]
        elif k == 3:
            x = conv(p, resample, x, stride=2)
        levels.append(conv(p, f"{name}.scratch.layer{k + 1}_rn", x))

    path = refine(p, f"{name}.scratch.refinenet4", levels[3], None)
    path = path[:, : levels[2].shape[1], : levels[2].shape[2]]
    for k in (3, 2, 1):
        path = refine(p, f"{name}.scratch.refinenet{k}", path, levels[k - 1])

    x = conv(p, "dpt_regressor_head.conv1", path)
    x = F.interpolate(x[None], size=(height, width), mode="bilinear", align_corners=True)[0]
    return conv(p, "dpt_regressor_head.conv2.2", torch.relu(conv(p, "dpt_regressor_head.conv2.0", x)))


def refine(p: Weights, name: str, a: Tensor, b: Tensor | None) -> Tensor:
    """Fuse(a, b) of §4.1: (c, y, x) -> (c, 2y, 2x)."""
    if b is not None:
        a = a + residual_unit(p, f"{name}.resConfUnit1", b)
    a = residual_unit(p, f"{name}.resConfUnit2", a)
    a = F.interpolate(a[None], scale_factor=2, mode="bilinear", align_corners=True)[0]
    return conv(p, f"{name}.out_conv", a)


def residual_unit(p: Weights, name: str, x: Tensor) -> Tensor:
    return x + conv(p, f"{name}.conv2", torch.relu(conv(p, f"{name}.conv1", torch.relu(x))))


def pose_head(p: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Last map (C, h, w) -> translation (3,), unit quaternion (4,) (§4.2, §5)."""
    x = conv(p, "pose_head.proj", x)
    for i in range(count(p, "pose_head.res_conv")):
        y = x
        for k in (1, 2, 3):
            y = torch.relu(conv(p, f"pose_head.res_conv.{i}.res_conv{k}", y))
        x = x + y
    x = rows(x).mean(dim=0)
    for k in (0, 2):
        x = torch.relu(linear(p, f"pose_head.more_mlps.{k}", x))
    quat = linear(p, "pose_head.fc_rot", x)
    return linear(p, "pose_head.fc_t", x), quat / quat.norm().clamp(min=1e-8)


def scale_head(p: Weights, token: Tensor) -> Tensor:
    """Scale token (C,) -> metric scale (1,) (§4.3, §5)."""
    x = linear(p, "scale_head.proj", token)
    for i in range(count(p, "scale_head.mlp")):
        x = torch.relu(linear(p, f"scale_head.mlp.{i}.0", x))
    return linear(p, "scale_head.output_proj", x).exp().clamp(min=1e-8)


# ------------------------------------------------------------------------------------------------------------- forward (§5)


@torch.no_grad()
def forward(
    config: dict[str, Any],
    weights: Weights,
    views: Views,
    selection: Selection | None = None,
    dtype: torch.dtype = torch.float32,
) -> Views:
    """Pre-processed views (§1.1) -> a dictionary per view (§5). config: of the parity file."""
    selection = selection or Selection()
    p = {key: value.to(dtype) for key, value in weights.items()}
    views = [
        {key: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for key, x in view.items()}
        for view in views
    ]
    assert views[0]["data_norm_type"][0] == "dinov2"
    batch = len(views[0]["img"])
    samples = [forward_sample(config, p, views, selection, b) for b in range(batch)]
    return [{key: torch.stack([sample[v][key] for sample in samples]) for key in samples[0][v]} for v in range(len(views))]


def forward_sample(config: dict[str, Any], p: Weights, views: Views, selection: Selection, b: int) -> Views:
    """Sample `b` of `forward`, without the batch axis."""
    height, width = views[0]["img"].shape[2:]
    grid = (height // PATCH, width // PATCH)
    encoded = [encode_image(config, p, view["img"][b]) for view in views]
    fused = fuse(p, views, selection, [patches for patches, _ in encoded], b)
    taken, scale_token = share_information(config, p, fused, [token for _, token in encoded])
    scale = scale_head(p, scale_token)

    outputs = []
    for v in range(len(views)):
        features = [x.T.unflatten(1, grid) for x in (fused[v], *(stage[v] for stage in taken))]  # (c, h, w)
        dense = dense_head(p, features, height, width).permute(1, 2, 0)  # (H, W, 6)
        trans, quat = pose_head(p, features[-1])
        rays = dense[..., :3] / dense[..., :3].norm(dim=-1, keepdim=True).clamp(min=1e-8)
        depth = dense[..., 3:4].exp()
        in_camera = rays * depth
        in_world = in_camera @ matrix_from_quat(quat).T + trans
        outputs.append(
            {
                "pts3d": in_world * scale,
                "pts3d_cam": in_camera * scale,
                "ray_directions": rays,
                "depth_along_ray": depth * scale,
                "cam_trans": trans * scale,
                "cam_quats": quat,
                "metric_scaling_factor": scale,
                "conf": 1 + dense[..., 4].exp(),
                "non_ambiguous_mask": dense[..., 5].sigmoid() > 0.5,
                "non_ambiguous_mask_logits": dense[..., 5],
            }
        )
    return outputs
