"""docs/network.md §7 word by word, slow: one view, one sample, one pair at a time, with boolean indexing. What the fast loss
is tested against. Works in the dtype of its inputs. Shares no code with the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Weights:
    pts3d: float = 1.0
    cam_pts3d: float = 1.0
    depth_along_ray: float = 1.0
    ray_directions: float = 1.0
    pose_quats: float = 1.0
    pose_trans: float = 1.0
    scale: float = 1.0
    normal: float = 3.0
    gradient_matching: float = 3.0
    mask: float = 0.3


HIGHPM = Weights(1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.3, 0.3, 0.03)

# criterion of a parity file -> (weights, confidence, absolute poses, relative poses, prediction moved to its view 0)
CRITERIA = {
    "overall_loss/train_criterion": (Weights(), True, True, False, False),
    "overall_loss/test_criterion": (Weights(), False, True, False, False),
    "overall_loss_highpm_plus_rel_pose/train_criterion": (HIGHPM, True, True, True, False),
    "overall_loss_highpm_plus_rel_pose_no_conf/train_criterion": (HIGHPM, False, True, True, False),
    "overall_loss_highpm_plus_rel_pose_no_conf_no_ref_view/train_criterion": (HIGHPM, False, False, True, True),
}


def conjugate(q: Tensor) -> Tensor:
    return torch.stack([-q[0], -q[1], -q[2], q[3]]) / (q * q).sum()


def multiply(a: Tensor, b: Tensor) -> Tensor:
    u, s, v, t = a[:3], a[3], b[:3], b[3]
    return torch.cat([s * v + t * u + torch.linalg.cross(u, v), (s * t - u @ v)[None]])


def rotation(q: Tensor) -> Tensor:
    x, y, z, w = q / q.norm()
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row) for row in rows])


def log_vector(x: Tensor) -> Tensor:
    n = x.norm(dim=-1, keepdim=True)
    return x / n.clamp(min=1e-8) * torch.log1p(n)


def rho(a: Tensor, b: Tensor) -> Tensor:
    return 3 * ((((a - b) ** 2).sum(-1) / (1.5 * 0.05**2) + 1) ** 0.25 - 1)


def rho_quat(a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(rho(a, b), rho(a, -b))


def size_of(points: list[Tensor], masks: list[Tensor]) -> Tensor:
    """avg_dis of one sample: points and masks per view."""
    total = torch.stack([p[m].norm(dim=-1).sum() for p, m in zip(points, masks)]).sum()
    count = sum(int(m.sum()) for m in masks)
    return (total / (count + 1e-8)).clamp(min=1e-8)


def normal_loss(pred: list[Tensor], true: list[Tensor], masks: list[Tensor]) -> Tensor:
    """The term of one view; lists over its samples."""
    height, width = masks[0].shape
    total, cells = pred[0].new_zeros(()), 0
    for p, t, m in zip(pred, true, masks):
        any_corner = torch.zeros(height - 1, width - 1, dtype=torch.bool)
        sides = []
        for points in (p, t):
            corner = {
                "lu": points[:-1, :-1],
                "ru": points[:-1, 1:],
                "ld": points[1:, :-1],
                "rd": points[1:, 1:],
            }
            sides.append(corner)
        valid = {"lu": m[:-1, :-1], "ru": m[:-1, 1:], "ld": m[1:, :-1], "rd": m[1:, 1:]}
        for at, first, second in (("rd", "ru", "ld"), ("ru", "lu", "rd"), ("lu", "ld", "ru"), ("ld", "rd", "lu")):
            ok = valid[at] & valid[first] & valid[second]
            any_corner |= ok
            a, b = (torch.linalg.cross(s[first][ok] - s[at][ok], s[second][ok] - s[at][ok]) for s in sides)
            e = torch.atan2(torch.linalg.cross(a, b).norm(dim=-1) + 1e-12, (a * b).sum(-1))
            e = e.clamp(math.radians(1), math.radians(90))
            beta = math.radians(3)
            total = total + torch.where(e < beta, e * e / (2 * beta), e - beta / 2).sum()
        cells += int(any_corner.sum())
    return total / (cells * 4 * max(height, width)) if cells else total


def gradient_loss(pred: list[Tensor], true: list[Tensor], masks: list[Tensor]) -> Tensor:
    loss = pred[0].new_zeros(())
    for stride in (1, 2, 4, 8):
        total, count = pred[0].new_zeros(()), 0
        for p, t, m in zip(pred, true, masks):
            m = m[::stride, ::stride]
            count += int(m.sum())
            p, t = (log_vector(side[::stride, ::stride, 2:])[..., 0] for side in (p, t))
            d = torch.where(m, p - t, torch.zeros_like(p))
            across, down = m[:, 1:] & m[:, :-1], m[1:] & m[:-1]
            total = total + (d[:, 1:] - d[:, :-1])[across].abs().clamp(max=100).sum()
            total = total + (d[1:] - d[:-1])[down].abs().clamp(max=100).sum()
        if count:
            loss = loss + total / count
    return loss


def reference_loss(batch, preds, weights, confidence, absolute, relative, to_view0) -> tuple[Any, dict[str, Any]]:
    """-> total, {term: sum over views of its contributions}."""
    num_views, num_samples = len(batch), len(batch[0]["valid_mask"])
    zero = preds[0]["pts3d"].new_zeros(())
    true: list[list[Any]] = [[None] * num_samples for _ in range(num_views)]
    pred: list[list[Any]] = [[None] * num_samples for _ in range(num_views)]
    true_size, pred_size = [], []
    masks = [[batch[v]["valid_mask"][b] for b in range(num_samples)] for v in range(num_views)]
    for b in range(num_samples):
        q0, t0 = batch[0]["camera_pose_quats"][b], batch[0]["camera_pose_trans"][b]
        p0, c0 = preds[0]["cam_quats"][b], preds[0]["cam_trans"][b]
        for v in range(num_views):
            view, out = batch[v], preds[v]
            true[v][b] = {
                "pts3d": (view["pts3d"][b] - t0) @ rotation(q0),
                "cam_pts3d": view["pts3d_cam"][b],
                "depth_along_ray": view["depth_along_ray"][b],
                "ray_directions": view["ray_directions_cam"][b],
                "q": multiply(conjugate(q0), view["camera_pose_quats"][b]),
                "t": (view["camera_pose_trans"][b] - t0) @ rotation(q0),
            }
            s = out["metric_scaling_factor"][b]
            points, q, t = out["pts3d"][b], out["cam_quats"][b], out["cam_trans"][b]
            if to_view0:
                points, t, q = (points - c0) @ rotation(p0), (t - c0) @ rotation(p0), multiply(conjugate(p0), q)
            pred[v][b] = {
                "pts3d": points / s,
                "cam_pts3d": out["pts3d_cam"][b] / s,
                "depth_along_ray": out["depth_along_ray"][b] / s,
                "ray_directions": out["ray_directions"][b],
                "q": q,
                "t": t / s,
            }
        own = [masks[v][b] for v in range(num_views)]
        true_size.append(size_of([true[v][b]["pts3d"] for v in range(num_views)], own))
        scaled = [pred[v][b]["pts3d"].detach() * preds[v]["metric_scaling_factor"][b] for v in range(num_views)]
        pred_size.append(size_of(scaled, own))
        norm = size_of([pred[v][b]["pts3d"] for v in range(num_views)], own)
        for v in range(num_views):
            for key in ("pts3d", "cam_pts3d", "depth_along_ray", "t"):
                true[v][b][key] = true[v][b][key] / true_size[b]
                pred[v][b][key] = pred[v][b][key] / norm

    terms: dict[str, Any] = dict.fromkeys(vars(weights), zero)
    for v in range(num_views):
        for key in ("pts3d", "cam_pts3d", "depth_along_ray"):
            kept = []
            for b in range(num_samples):
                m = masks[v][b]
                loss = getattr(weights, key) * rho(log_vector(pred[v][b][key]), log_vector(true[v][b][key]))[m]
                if key == "pts3d" and confidence:
                    c = preds[v]["conf"][b][m]
                    kept.append(loss * c - 0.2 * torch.log(c))
                elif batch[v]["is_synthetic"][b]:
                    kept.append(loss)
                else:
                    kept.append(loss.sort().values[: int(len(loss) * 95 / 100)])
            kept = torch.cat(kept)
            if len(kept):
                terms[key] = terms[key] + kept.mean()
        rays = [rho(pred[v][b]["ray_directions"], true[v][b]["ray_directions"]) for b in range(num_samples)]
        terms["ray_directions"] = terms["ray_directions"] + weights.ray_directions * torch.stack(rays).mean()

        quats, trans = [], []
        for b in range(num_samples):
            here = bool(masks[v][b].any())
            if absolute:
                quats.append(rho_quat(pred[v][b]["q"], true[v][b]["q"]))
                if here:
                    trans.append(rho(pred[v][b]["t"], true[v][b]["t"]))
            for j in range(num_views):
                if not relative or j == v:
                    continue
                pair_q, pair_t = [], []
                for side in (pred, true):
                    q, t = side[v][b]["q"], side[v][b]["t"]
                    pair_q.append(multiply(conjugate(q), side[j][b]["q"]))
                    pair_t.append(rotation(conjugate(q)) @ (side[j][b]["t"] - t))
                quats.append(rho_quat(*pair_q))
                if here and bool(masks[j][b].any()):
                    trans.append(rho(*pair_t))
        if quats:
            terms["pose_quats"] = terms["pose_quats"] + weights.pose_quats * torch.stack(quats).mean()
        if trans:
            terms["pose_trans"] = terms["pose_trans"] + weights.pose_trans * torch.stack(trans).mean()

        dense = [masks[v][b] & bool(batch[v]["is_synthetic"][b]) for b in range(num_samples)]
        cams = [side[v][b]["cam_pts3d"] for side in (pred, true) for b in range(num_samples)]
        sides = cams[:num_samples], cams[num_samples:]
        terms["normal"] = terms["normal"] + weights.normal * normal_loss(*sides, dense)
        terms["gradient_matching"] = terms["gradient_matching"] + weights.gradient_matching * gradient_loss(*sides, dense)
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        ambiguity = batch[v]["non_ambiguous_mask"].to(preds[v]["non_ambiguous_mask_logits"].dtype)
        terms["mask"] = terms["mask"] + weights.mask * bce(preds[v]["non_ambiguous_mask_logits"], ambiguity)
    metric = [b for b in range(num_samples) if batch[0]["is_metric_scale"][b] and true_size[b] > 1e-8]
    if metric:
        losses = [rho(torch.log1p(pred_size[b])[None], torch.log1p(true_size[b])[None]) for b in metric]
        terms["scale"] = weights.scale * torch.stack(losses).mean()
    return sum(terms.values()), terms
