"""A slow, obvious MapAnything for the tests: every formula of the specification as a loop over views and samples.

Nothing here is shared with mapanything.models, and nothing is batched: one image (H, W) at a time, plain functions on a
dictionary of parameters, attention written out. `dtype` of `forward` and `infer` may be torch.float64; AMP and chunking
are left out, so their arguments of `infer` have no effect. (§ are sections of docs/network.md.)

Shapes: B batch, V views, h = H/14, w = W/14, N = h·w patches, C_e and C channels of the encoder and the transformer.
Quaternions are xyzw, poses camera to world, OpenCV axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.helpers.reference_layers import Views, Weights, matrix_from_quat, quat_from_matrix
from tests.helpers.reference_masks import depth_edges, multiview_confidence, normal_edges
from tests.helpers.reference_network import Selection, forward

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


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
            assert rays is not None
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
