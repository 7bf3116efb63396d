"""A slow, obvious MapAnything for the tests: every formula of the specification as a loop over views and samples.

Nothing here is shared with mapanything.models, and nothing is batched: one image (H, W) at a time, plain functions on a
dictionary of parameters, attention written out. `dtype` of `forward` and `infer` may be torch.float64; AMP and chunking
are left out, so their arguments of `infer` have no effect. (§ is the specification's section.)

Shapes: B batch, V views, h = H/14, w = W/14, N = h·w patches, C_e and C channels of the encoder and the transformer.
Quaternions are xyzw, poses camera to world, OpenCV axes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PATCH = 14
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
Views = list[dict[str, Any]]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Selection:
    """Which given inputs are used (§1.2): for each a bool, or a bool tensor (V, B). What a view lacks is off anyway."""

    rays: bool | Tensor = True
    depth: bool | Tensor = True
    cam: bool | Tensor = True
    ignore_depth_scale: bool | Tensor = False
    ignore_pose_scale: bool | Tensor = False


def at(flag: bool | Tensor, v: int, b: int) -> bool:
    """The entry of view `v` and sample `b` of a flag that is a bool or (V, B)."""
    return bool(flag[v, b]) if isinstance(flag, Tensor) else flag


def weights(keys: dict[str, Sequence[int]], view_pos_table: Tensor) -> Weights:
    """Every parameter drawn from its own name (§11). keys: name -> shape; view_pos_table (1, C)."""
    values = {}
    for key, shape in keys.items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        r = torch.from_numpy(rng.standard_normal(size=tuple(shape), dtype=np.float32))
        if key.endswith("gamma"):
            value = 0.5 + 0.2 * r
        elif key.endswith("weight") and "norm" in key:
            value = 1 + 0.2 * r
        elif key.endswith("bias"):
            value = 0.1 * r
        elif key.endswith(("cls_token", "scale_token")):
            value = 0.5 * r
        elif key.endswith("pos_embed"):
            value = 0.3 * r
        else:
            value = r * 1.2 / math.sqrt(math.prod(shape) / shape[0])
            if key == "dpt_regressor_head.conv2.2.weight":
                value = value * 0.1
        values[key] = value
    values["info_sharing.view_pos_table"] = view_pos_table
    return values


# ---------------------------------------------------------------------------------------------- quaternions and poses (§9)


def quat_product(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product (4,) of p (4,) and q (4,)."""
    px, py, pz, pw = p
    qx, qy, qz, qw = q
    return torch.stack(
        [
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
            pw * qw - px * qx - py * qy - pz * qz,
        ]
    )


def quat_inverse(q: Tensor) -> Tensor:
    """Conjugate over squared norm, (4,)."""
    x, y, z, w = q
    return torch.stack([-x, -y, -z, w]) / (q * q).sum()


def matrix_from_quat(q: Tensor) -> Tensor:
    """Rotation (3, 3) of q (4,), which is normalised first."""
    x, y, z, w = q / q.norm()
    return torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]),
            torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]),
            torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]),
        ]
    )


def quat_from_matrix(m: Tensor) -> Tensor:
    """Quaternion (4,) with w ≥ 0 of a rotation (3, 3), from the largest of its four components."""
    squares = torch.stack(  # 4x², 4y², 4z², 4w²
        [
            1 + m[0, 0] - m[1, 1] - m[2, 2],
            1 - m[0, 0] + m[1, 1] - m[2, 2],
            1 - m[0, 0] - m[1, 1] + m[2, 2],
            1 + m[0, 0] + m[1, 1] + m[2, 2],
        ]
    )
    xy, xz, yz = m[1, 0] + m[0, 1], m[2, 0] + m[0, 2], m[2, 1] + m[1, 2]  # 4xy, ...
    xw, yw, zw = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]  # 4xw, ...
    largest = int(squares.argmax())
    products = [
        [squares[0], xy, xz, xw],
        [xy, squares[1], yz, yw],
        [xz, yz, squares[2], zw],
        [xw, yw, zw, squares[3]],
    ][largest]  # 4 · largest · (x, y, z, w)
    q = torch.stack(products) / (2 * squares[largest].sqrt())
    return -q if q[3] < 0 else q


# ------------------------------------------------------------------------------------------------- pre-processing (§6.2)


def preprocess(
    views: Views,
    *,
    ignore_calibration_inputs: bool = False,
    ignore_depth_inputs: bool = False,
    ignore_pose_inputs: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Views:
    """infer()'s views -> forward()'s views (§1.1).

    The flags leave a modality out after the conversion (depth needs the rays), which must be the same as leaving it in and
    switching it off in the `Selection`, as §6.3 has it.
    """
    prepared = []
    for view in views:
        img = view["img"].to(dtype)  # (B, 3, H, W)
        batch, _, height, width = img.shape
        new = {"img": img, "data_norm_type": view["data_norm_type"]}
        rays = None  # (B, H, W, 3)
        if "intrinsics" in view:
            rays = torch.stack([rays_of(k, height, width) for k in view["intrinsics"].to(dtype)])
        elif "ray_directions" in view:
            given = view["ray_directions"].to(dtype)
            rays = given / (given.norm(dim=-1, keepdim=True) + 1e-8)
        if rays is not None and not ignore_calibration_inputs:
            new["ray_directions_cam"] = rays
        if "depth_z" in view and not ignore_depth_inputs:
            z = view["depth_z"].to(dtype).reshape(batch, height, width, 1)
            new["depth_along_ray"] = (z * rays / rays[..., 2:3]).norm(dim=-1, keepdim=True)
        if "camera_poses" in view and not ignore_pose_inputs:
            poses = view["camera_poses"]
            if isinstance(poses, Tensor):  # (B, 4, 4)
                quats = torch.stack([quat_from_matrix(pose[:3, :3]) for pose in poses.to(dtype)])
                trans = poses.to(dtype)[:, :3, 3]
            else:
                quats, trans = (part.to(dtype) for part in poses)
            new["camera_pose_quats"], new["camera_pose_trans"] = quats, trans
        metric = view.get("is_metric_scale", True)
        if not isinstance(metric, Tensor):
            metric = torch.tensor(bool(metric))
        new["is_metric_scale"] = metric.reshape(-1).expand(batch)
        prepared.append(new)
    return prepared


def rays_of(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Unit rays (H, W, 3) through integer pixel coordinates, of intrinsics (3, 3)."""
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    rays = torch.ones(height, width, 3, dtype=intrinsics.dtype)
    rays[..., 0] = (torch.arange(width)[None, :] - cx) / fx
    rays[..., 1] = (torch.arange(height)[:, None] - cy) / fy
    return rays / rays.norm(dim=-1, keepdim=True)


# --------------------------------------------------------------------------------------------------------- building blocks


def linear(p: Weights, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def layer_norm(p: Weights, name: str, x: Tensor) -> Tensor:
    """Over the last axis."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def conv(p: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """(c, h, w) -> (c', h', w'); padded so that stride 1 keeps the size."""
    weight = p[f"{name}.weight"]
    return F.conv2d(x[None], weight, p.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)[0]


def rows(x: Tensor) -> Tensor:
    """(c, h, w) -> (h·w, c), row-major."""
    return x.flatten(1).T


def attention(p: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Softmax attention among the tokens x (n, c)."""
    q, k, v = linear(p, f"{name}.qkv", x).chunk(3, dim=-1)
    out = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1)):  # (n, d) each
        out.append(torch.softmax(qh @ kh.T / math.sqrt(qh.shape[-1]), dim=-1) @ vh)
    return linear(p, f"{name}.proj", torch.cat(out, dim=-1))


def feed_forward(p: Weights, name: str, x: Tensor) -> Tensor:
    if f"{name}.w12.weight" in p:
        a, b = linear(p, f"{name}.w12", x).chunk(2, dim=-1)
        return linear(p, f"{name}.w3", a * torch.sigmoid(a) * b)
    return linear(p, f"{name}.fc2", gelu(linear(p, f"{name}.fc1", x)))


def block(p: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Pre-norm transformer block on x (n, c), with layer scale where there are gammas."""
    x = x + p.get(f"{name}.ls1.gamma", 1) * attention(p, f"{name}.attn", layer_norm(p, f"{name}.norm1", x), heads)
    return x + p.get(f"{name}.ls2.gamma", 1) * feed_forward(p, f"{name}.mlp", layer_norm(p, f"{name}.norm2", x))


def count(p: Weights, prefix: str) -> int:
    """How many of prefix.0., prefix.1., ... there are."""
    return len({key[len(prefix) + 1 :].split(".")[0] for key in p if key.startswith(prefix + ".")})


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
    """Adds sample `b`'s geometric features to its image features, V·(N, C_e), and normalises (§1.3 to 1.8)."""
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


# --------------------------------------------------------------------------------------------------------------- infer (§6)


def infer_selection(
    ignore_calibration_inputs: bool = False,
    ignore_depth_inputs: bool = False,
    ignore_pose_inputs: bool = False,
    ignore_depth_scale_inputs: bool = False,
    ignore_pose_scale_inputs: bool = False,
) -> Selection:
    """The selection that infer()'s flags mean (§6.3)."""
    return Selection(
        rays=not ignore_calibration_inputs,
        depth=not ignore_depth_inputs,
        cam=not ignore_pose_inputs,
        ignore_depth_scale=ignore_depth_scale_inputs,
        ignore_pose_scale=ignore_pose_scale_inputs,
    )


@torch.no_grad()
def infer(
    config: dict[str, Any],
    weights: Weights,
    views: Views,
    *,
    memory_efficient_inference: bool = True,
    minibatch_size: int | None = None,
    use_amp: bool = True,
    amp_dtype: str = "bf16",
    apply_mask: bool = True,
    mask_edges: bool = True,
    edge_normal_threshold: float = 5.0,
    edge_depth_threshold: float = 0.03,
    apply_confidence_mask: bool = False,
    confidence_percentile: float = 10,
    use_multiview_confidence: bool = False,
    multiview_conf_depth_abs_thresh: float = 0.02,
    multiview_conf_depth_rel_thresh: float = 0.02,
    dtype: torch.dtype = torch.float32,
    **ignore_flags: bool,
) -> Views:
    """Raw views (§6.1, not validated) -> a dictionary per view (§6.4). The first four arguments have no effect here."""
    prepared = preprocess(views, dtype=dtype)
    outputs = forward(config, weights, prepared, infer_selection(**ignore_flags), dtype)
    for view, out in zip(prepared, outputs):
        pictures = view["img"].permute(0, 2, 3, 1)
        out["img_no_norm"] = (pictures * pictures.new_tensor(STD) + pictures.new_tensor(MEAN)).clamp(0, 1)
        out["depth_z"] = out["pts3d_cam"][..., 2:3]
        out["intrinsics"] = torch.stack([recover_intrinsics(rays) for rays in out["ray_directions"]])
        out["camera_poses"] = torch.stack([pose_matrix(q, t) for q, t in zip(out["cam_quats"], out["cam_trans"])])
    if use_multiview_confidence:
        confidences = multiview_confidence(outputs, multiview_conf_depth_abs_thresh, multiview_conf_depth_rel_thresh)
        for out, confidence in zip(outputs, confidences):
            out["conf"] = confidence
    if apply_mask:
        for out in outputs:
            masks = []
            for b, mask in enumerate(out["non_ambiguous_mask"].numpy()):
                if apply_confidence_mask:
                    conf = out["conf"][b].numpy()
                    mask = mask & (conf > np.quantile(conf, confidence_percentile / 100))
                if mask_edges:
                    points, depth = out["pts3d"][b].numpy(), out["depth_z"][b, ..., 0].numpy()
                    at_normal = normal_edges(points, mask, edge_normal_threshold)
                    mask = mask & ~(at_normal & depth_edges(depth, mask, edge_depth_threshold))
                masks.append(torch.from_numpy(mask))
            out["mask"] = torch.stack(masks)[..., None]
            for key in ("pts3d", "pts3d_cam", "depth_along_ray", "depth_z"):
                out[key] = out[key] * out["mask"]
    return outputs


def pose_matrix(quat: Tensor, trans: Tensor) -> Tensor:
    """(4, 4) of (4,) and (3,)."""
    pose = torch.eye(4, dtype=quat.dtype)
    pose[:3, :3] = matrix_from_quat(quat)
    pose[:3, 3] = trans
    return pose


def recover_intrinsics(rays: Tensor) -> Tensor:
    """Pinhole intrinsics (3, 3) that explain rays (H, W, 3) best (§6.4)."""
    height, width = rays.shape[:2]
    slope_x, slope_y = rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2]  # (H, W)
    if height * width > 10**6:
        fx, cx = fit_three(slope_x[height // 2, :])
        fy, cy = fit_three(slope_y[:, width // 2])
    else:
        ys = range(0, height, max(1, height // 50))
        xs = range(0, width, max(1, width // 50))
        grid = [(y, x) for y in ys for x in xs]
        fx, cx = fit_line([slope_x[y, x] for y, x in grid], [x for _, x in grid])
        fy, cy = fit_line([slope_y[y, x] for y, x in grid], [y for y, _ in grid])
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=rays.dtype)


def fit_line(slopes: list[Tensor], pixels: list[int]) -> tuple[float, float]:
    """f and c that minimise Σ (c + f·slope − pixel)², by the normal equations."""
    s, x, n = torch.stack(slopes), torch.tensor(pixels, dtype=slopes[0].dtype), len(pixels)
    a, b, c, d = float((s * s).sum()), float(s.sum()), float((s * x).sum()), float(x.sum())
    determinant = a * n - b * b
    return (n * c - b * d) / determinant, (a * d - b * c) / determinant


def fit_three(slopes: Tensor) -> tuple[float, float]:
    """f and c from three of the slopes (n,) along a line: the mean of the two gradients, and the middle one."""
    n = len(slopes)
    first, middle, last = n // 4, n // 2, 3 * n // 4
    f = (middle - first) / (slopes[middle] - slopes[first]) / 2 + (last - middle) / (slopes[last] - slopes[middle]) / 2
    return float(f), float(middle - f * slopes[middle])


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
    """Where the points of `source` fall into `target`, and where the depth there agrees: (H, W) bool each."""
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
    """Whether the views' frusta meet: no face, and no pair of edges, has an axis that separates them. Batch element 0 only.

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
