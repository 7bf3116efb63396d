"""Adds to the network's outputs what `infer` gives: intrinsics, pose matrices, z-depth, images, and the mask of what to trust.

All of it batched, on the device of the outputs. The tests for edges follow MoGe's (Wang et al. 2024, arXiv:2410.19115) as
upstream uses them, rounding included: on smooth surfaces they compare angles near 0, where float32 decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mapanything.geometry.rigid import matrix_from_quat, quat_from_matrix
from mapanything.models.outputs import EPS, Outputs, pose_matrices, unstack

MAX_PIXELS = 1 << 22  # of one step of the edge tests, which hold some 30 numbers per pixel
LARGE_IMAGE = 10**6  # pixels from which on intrinsics come from five rays
MASKED = ("pts3d", "pts3d_cam", "depth_along_ray", "depth_z")


@dataclass
class Prediction(Outputs):
    """`Outputs` and what follows from them. Nothing is masked: `mask` says what to trust, the values stay."""

    img_no_norm: Tensor  # (B, V, H, W, 3) in 0..1
    depth_z: Tensor  # (B, V, H, W, 1)
    intrinsics: Tensor  # (B, V, 3, 3), pixel centres at integer coordinates
    camera_poses: Tensor  # (B, V, 4, 4)
    mask: Tensor | None  # (B, V, H, W, 1) bool; None where none was asked for

    def masked_views(self, keep_unmasked: bool = False) -> list[dict[str, Any]]:
        """One dictionary per view as upstream gives it: points and depths are 0 outside the mask.

        Args:
            keep_unmasked: points and depths as they were, too, under `{key}_unmasked`.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.mask is None:
            del values["mask"]
        else:
            if keep_unmasked:
                values |= {f"{key}_unmasked": values[key] for key in MASKED}
            values |= {key: torch.where(self.mask, values[key], 0.0) for key in MASKED}
        return unstack(values, self.pts3d.shape[1])


def intrinsics_from_rays(rays: Tensor) -> Tensor:
    """Rays (R, H, W, 3) -> the pinhole cameras (R, 3, 3) that fit them.

    x = cx + fx·(rx/rz) by least squares over a grid of some 50 × 50 pixels, rows likewise; of large images five rays of the
    middle row and column are enough.
    """
    _, height, width, _ = rays.shape
    if height * width > LARGE_IMAGE:
        fx, cx = _line_through_three(rays[:, height // 2, :, 0], rays[:, height // 2, :, 2])
        fy, cy = _line_through_three(rays[:, :, width // 2, 1], rays[:, :, width // 2, 2])
    else:
        row_step, column_step = max(1, height // 50), max(1, width // 50)
        grid = rays[:, ::row_step, ::column_step].double()
        x = torch.arange(0, width, column_step, device=rays.device, dtype=torch.float64)
        y = torch.arange(0, height, row_step, device=rays.device, dtype=torch.float64)
        fx, cx = _line(grid[..., 0] / grid[..., 2], x[None, None, :])
        fy, cy = _line(grid[..., 1] / grid[..., 2], y[None, :, None])
    matrix = torch.zeros(len(rays), 3, 3, dtype=rays.dtype, device=rays.device)
    matrix[:, 0, 0], matrix[:, 0, 2], matrix[:, 1, 1], matrix[:, 1, 2] = (n.to(rays.dtype) for n in (fx, cx, fy, cy))
    matrix[:, 2, 2] = 1.0
    return matrix


def _line(slopes: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares of pixels = c + f·slopes over (R, h, w): f and c, each (R,)."""
    pixels = pixels.expand_as(slopes)
    mean_slope, mean_pixel = slopes.mean((1, 2)), pixels.mean((1, 2))
    centred = slopes - mean_slope[:, None, None]
    f = (centred * (pixels - mean_pixel[:, None, None])).sum((1, 2)) / (centred * centred).sum((1, 2))
    return f, mean_pixel - f * mean_slope


def _line_through_three(side: Tensor, forward: Tensor) -> tuple[Tensor, Tensor]:
    """f and c (R,) from the rays (R, n) at a quarter, half and three quarters of a row: the mean of two slopes."""
    n = side.shape[1]
    first, middle, last = n // 4, n // 2, 3 * n // 4
    a, b, c = (side[:, i] / forward[:, i] for i in (first, middle, last))
    f = ((middle - first) / (b - a) + (last - middle) / (c - b)) / 2
    return f, middle - f * b


def confidence_mask(conf: Tensor, percentile: float) -> Tensor:
    """(R, H, W): above this percentile of the image's own confidences (interpolated linearly)."""
    flat = conf.flatten(1).sort(1).values
    place = percentile / 100 * (flat.shape[1] - 1)
    below = min(int(place), flat.shape[1] - 1)
    above = min(below + 1, flat.shape[1] - 1)
    threshold = flat[:, below] + (flat[:, above] - flat[:, below]) * (place - below)
    return conf > threshold[:, None, None]


def edge_mask(points: Tensor, depth: Tensor, mask: Tensor, normal_threshold_deg: float, depth_threshold: float) -> Tensor:
    """Pixels at a jump of depth that is also a fold of the surface; there the network interpolates between two surfaces.

    Args:
        points: (R, H, W, 3).
        depth: (R, H, W) z-depth.
        mask: (R, H, W) bool: the pixels that count.
        normal_threshold_deg: a fold is an angle between neighbouring normals above this.
        depth_threshold: a jump is a difference of depths in a 3×3 window above this share of the depth.

    Returns:
        (R, H, W) bool.
    """
    edges = [
        _depth_edge(depth[rows], mask[rows], depth_threshold) & _normal_edge(points[rows], mask[rows], normal_threshold_deg)
        for rows in _chunks(len(points), depth[0].numel())
    ]
    return torch.cat(edges)


def _chunks(num_rows: int, pixels: int) -> Iterator[slice]:
    step = max(1, MAX_PIXELS // pixels)
    for start in range(0, num_rows, step):
        yield slice(start, start + step)


def _depth_edge(depth: Tensor, mask: Tensor, threshold: float) -> Tensor:
    nowhere = torch.full_like(depth, -torch.inf)
    highest = F.max_pool2d(torch.where(mask, depth, nowhere), 3, stride=1, padding=1)
    lowest = -F.max_pool2d(torch.where(mask, -depth, nowhere), 3, stride=1, padding=1)
    return (highest - lowest) / depth > threshold


Vector = tuple[Tensor, Tensor, Tensor]  # x, y, z, each (R, H, W); products are written out so that no fused
# multiply-add of some kernel rounds otherwise than the reference does


def _dot(a: Vector, b: Vector) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _unit(a: Vector) -> Vector:
    square = _dot(a, a)
    # torch's float32 root on a CPU is a unit in the last place off now and then; through float64 it is rounded correctly.
    root = square.double().sqrt().to(square.dtype) if square.device.type == "cpu" else square.sqrt()
    length = root + 1e-12
    return a[0] / length, a[1] / length, a[2] / length


def _shifted(padded: Tensor, dy: int, dx: int) -> Tensor:
    """The inside of (R, H+2, W+2), moved: at (y, x) stands what was at (y + dy, x + dx) of the unpadded image."""
    height, width = padded.shape[-2] - 2, padded.shape[-1] - 2
    return padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]


def normals(points: Tensor, mask: Tensor) -> tuple[Vector, Tensor]:
    """Normals of a surface given per pixel: the mean of the four triangles around each pixel, where these are in the mask.

    Args:
        points: (R, H, W, 3); mask: (R, H, W) bool.

    Returns:
        x, y, z (R, H, W), 0 where there is no normal, and where there is one, (R, H, W) bool.
    """
    centre = points.unbind(-1)
    padded = [F.pad(c, (1, 1, 1, 1)) for c in centre]
    known = F.pad(mask, (1, 1, 1, 1))
    around = {"up": (-1, 0), "left": (0, -1), "down": (1, 0), "right": (0, 1)}
    side: dict[str, Vector] = {}
    there: dict[str, Tensor] = {}
    for name, (dy, dx) in around.items():
        side[name] = tuple(_shifted(p, dy, dx) - c for p, c in zip(padded, centre, strict=True))  # type: ignore[assignment]
        there[name] = _shifted(known, dy, dx)
    total: list[Tensor] | None = None
    valid = torch.zeros_like(mask)
    for a, b in (("up", "left"), ("left", "down"), ("down", "right"), ("right", "up")):
        ok = there[a] & there[b] & mask
        part = [torch.where(ok, c, 0.0) for c in _unit(_cross(side[a], side[b]))]
        total = part if total is None else [t + p for t, p in zip(total, part, strict=True)]
        valid = valid | ok
    assert total is not None
    return _unit((total[0], total[1], total[2])), valid


def _normal_edge(points: Tensor, mask: Tensor, threshold_deg: float) -> Tensor:
    normal, valid = normals(points, mask)
    normal = _unit(normal)  # a second time: it changes the rounding, and with it some pixels
    padded = [F.pad(n[:, None], (1, 1, 1, 1), mode="replicate")[:, 0] for n in normal]
    known = F.pad(valid[:, None].float(), (1, 1, 1, 1), mode="replicate")[:, 0] > 0
    largest = torch.zeros_like(normal[0])
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            # Rounding can take a cosine above 1; its angle is NaN then, and so is the largest angle of this pixel …
            angle = torch.acos(_dot(normal, tuple(_shifted(p, dy, dx) for p in padded)))  # type: ignore[arg-type]
            largest = torch.maximum(largest, torch.where(_shifted(known, dy, dx), angle, 0.0))
    # … which its neighbours then do not count.
    largest = torch.where(largest.isnan(), -torch.inf, largest)
    return F.max_pool2d(largest, 3, stride=1, padding=1) > threshold_deg * torch.pi / 180


@dataclass(frozen=True)
class Options:
    """Options of `infer` for what follows the network, upstream's names and defaults (docs/network.md §6)."""

    apply_mask: bool = True
    mask_edges: bool = True
    edge_normal_threshold: float = 5.0
    edge_depth_threshold: float = 0.03
    apply_confidence_mask: bool = False
    confidence_percentile: float = 10
    use_multiview_confidence: bool = False
    multiview_conf_depth_abs_thresh: float = 0.02
    multiview_conf_depth_rel_thresh: float = 0.02


def predict(outputs: Outputs, images: Tensor, options: Options, multiview_confidence: Callable[..., Tensor]) -> Prediction:
    """Outputs of the network and its (normalised) images (B, V, 3, H, W) -> everything that `infer` gives."""
    b, v, height, width, _ = outputs.pts3d.shape
    mean = images.new_tensor([0.485, 0.456, 0.406])
    std = images.new_tensor([0.229, 0.224, 0.225])
    depth_z = outputs.pts3d_cam[..., 2:3]
    prediction = Prediction(
        **{f.name: getattr(outputs, f.name) for f in fields(Outputs)},
        img_no_norm=(images.permute(0, 1, 3, 4, 2) * std + mean).clip(0, 1),
        depth_z=depth_z,
        intrinsics=intrinsics_from_rays(outputs.ray_directions.flatten(0, 1)).unflatten(0, (b, v)),
        camera_poses=pose_matrices(outputs.cam_trans, outputs.cam_quats),
        mask=None,
    )
    if options.use_multiview_confidence:
        prediction.conf = multiview_confidence(
            prediction, options.multiview_conf_depth_abs_thresh, options.multiview_conf_depth_rel_thresh
        )
    if options.apply_mask:
        mask = outputs.non_ambiguous_mask.flatten(0, 1)
        if options.apply_confidence_mask:
            mask = mask & confidence_mask(prediction.conf.flatten(0, 1), options.confidence_percentile)
        if options.mask_edges:
            points, depth = outputs.pts3d.flatten(0, 1), depth_z.flatten(0, 1)[..., 0]
            mask = mask & ~edge_mask(points, depth, mask, options.edge_normal_threshold, options.edge_depth_threshold)
        prediction.mask = mask.view(b, v, height, width, 1)
    return prediction


def align(prediction: Prediction, poses: Tensor, given: Tensor) -> Prediction:
    """The prediction moved, turned and scaled as a whole so that its cameras fit given ones best.

    The turn is the mean of the turns that the single cameras ask for (orthogonal Procrustes); scale and shift then follow
    from the camera centres by least squares (Umeyama 1991). Centres alone could not say how to turn a rig on a line. With
    one camera, or all in one place, the scale is left as it is.

    Args:
        poses: (B, V, 4, 4) camera to world; where none is given, anything.
        given: (V,) bool, on the CPU: which views have a pose.
    """
    which = [i for i, has in enumerate(given.tolist()) if has]
    target, own = poses[:, which].double(), prediction.camera_poses[:, which].double()
    u, _, vt = torch.linalg.svd((target[..., :3, :3] @ own[..., :3, :3].mT).sum(1))
    sign = torch.ones_like(u[:, 0])
    sign[:, 2] = torch.linalg.det(u @ vt)
    rotation = (u * sign[:, None]) @ vt  # (B, 3, 3)
    centres, turned = target[..., :3, 3], own[..., :3, 3] @ rotation.mT
    target_mean, own_mean = centres.mean(1, keepdim=True), turned.mean(1, keepdim=True)
    spread = (turned - own_mean).square().sum((1, 2))
    fit = ((turned - own_mean) * (centres - target_mean)).sum((1, 2)) / spread.clip(min=1e-300)
    scale = torch.where((spread > EPS**2) & (fit > 0), fit, 1.0)  # (B,)
    shift = target_mean[:, 0] - scale[:, None] * own_mean[:, 0]
    dtype = prediction.pts3d.dtype
    rotation, scale, shift = rotation.to(dtype), scale.to(dtype), shift.to(dtype)
    s = scale[:, None, None, None, None]
    trans = scale[:, None, None] * (prediction.cam_trans @ rotation.mT) + shift[:, None]
    quats = quat_from_matrix(rotation[:, None] @ matrix_from_quat(prediction.cam_quats))
    points = prediction.pts3d.flatten(1, 3) @ rotation.mT
    return replace(
        prediction,
        pts3d=s * points.view_as(prediction.pts3d) + shift[:, None, None, None],
        pts3d_cam=s * prediction.pts3d_cam,
        depth_along_ray=s * prediction.depth_along_ray,
        depth_z=s * prediction.depth_z,
        cam_trans=trans,
        cam_quats=quats,
        camera_poses=pose_matrices(trans, quats),
        metric_scaling_factor=scale[:, None] * prediction.metric_scaling_factor,
    )
