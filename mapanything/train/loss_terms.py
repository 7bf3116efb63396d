"""MapAnything's loss terms (docs/network.md §7.3 and §7.4): each a few lines from a `Scene` to one number per view.

A term returns its weighted contributions (V,); what is empty contributes 0. Names of the formulas as in docs/losses.md:
ℓog(x) = x/‖x‖·log(1 + ‖x‖), and ρ(a, b), Barron's general robust loss (CVPR 2019) with α = 0.5, c = 0.05.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mapanything.geometry.rigid import quat_inverse, quat_multiply, rotate
from mapanything.train.losses import EPS, Scene

ROBUST_SCALE = 0.05


def log_compress(x: Tensor) -> Tensor:
    """ℓog: vectors (..., C) keep their direction, their length becomes log(1 + length)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (torch.log1p(norm) / norm.clamp(min=EPS))


def robust(a: Tensor, b: Tensor) -> Tensor:
    """ρ of vectors (..., C) -> (...): quadratic near 0, growing as the square root far from it."""
    return _robust_of_squared((a - b).square().sum(-1))


def robust_rotation(a: Tensor, b: Tensor) -> Tensor:
    """ρ of quaternions (..., 4) -> (...); q and -q are the same rotation, the nearer one counts."""
    return _robust_of_squared(torch.minimum((a - b).square().sum(-1), (a + b).square().sum(-1)))


def _robust_of_squared(distance: Tensor) -> Tensor:
    return 3 * ((distance / (1.5 * ROBUST_SCALE**2) + 1) ** 0.25 - 1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Means (V,) of values (B, V, ...) where the mask is set, all samples of a view together; 0 where it is not set at all."""
    dims = [dim for dim in range(values.ndim) if dim != 1]
    return torch.where(mask, values, 0).sum(dims) / mask.sum(dims).clamp(min=1)


def trimmed_mean(values: Tensor, valid: Tensor, keep_all: Tensor, percent: float) -> Tensor:
    """Means (V,) of the smallest valid values: outliers in real data are mostly wrong labels.

    Args:
        values, valid: (B, V, H, W).
        keep_all: (B, V) bool: samples that keep every valid value; of the others the `percent` % largest are left out.
    """
    values, valid = values.flatten(2), valid.flatten(2)
    count = valid.sum(-1)
    keep = torch.where(keep_all, count, (count * (100 - percent)).div(100, rounding_mode="floor").long())
    # Sorted with the invalid ones last, the kept ones are the first `keep`: a mask, whose shape does not depend on the data.
    ordered = torch.where(valid, values, torch.inf).sort(-1).values
    kept = torch.arange(values.shape[-1], device=values.device) < keep[..., None]
    return torch.where(kept, ordered, 0).sum((0, 2)) / keep.sum(0).clamp(min=1)


@dataclass(frozen=True)
class Pixels:
    """Per pixel: world points, camera points or depth against the truth, ρ(ℓog, ℓog).

    exclude_percent: largest values of a real (not synthetic) sample that are left out.
    confidence_alpha: weigh by the predicted confidence c instead, ρ·c - α·log c, which makes the network say where it is
    unsure (DUSt3R, CVPR 2024, eq. 4); nothing is left out then.
    """

    quantity: Literal["pts3d", "pts3d_cam", "depth_along_ray"]
    weight: float = 1.0
    exclude_percent: float = 5
    confidence_alpha: float | None = None

    def __call__(self, scene: Scene) -> Tensor:
        pred, true = (log_compress(getattr(side, self.quantity)) for side in (scene.pred, scene.true))
        loss = self.weight * robust(pred, true)
        if self.confidence_alpha is None:
            return trimmed_mean(loss, scene.valid, scene.synthetic, self.exclude_percent)
        confidence = scene.prediction["conf"]
        return masked_mean(loss * confidence - self.confidence_alpha * confidence.log(), scene.valid)


@dataclass(frozen=True)
class Rays:
    """Unit rays against the truth, every pixel: the camera is known where the depth is not."""

    weight: float = 1.0

    def __call__(self, scene: Scene) -> Tensor:
        return self.weight * robust(scene.pred.ray_directions, scene.true.ray_directions).mean((0, 2, 3))


@dataclass(frozen=True)
class Poses:
    """Camera poses against the truth: absolute (in the frame of view 0), relative to every other view, or both in one mean.

    What the two have in common. Poses are looked at as a table (B, V, V) whose entry [i, j] is view j as view i sees it and
    whose diagonal holds the absolute poses; the entries of a row belong to its view.
    """

    weight: float = 1.0
    absolute: bool = True
    relative: bool = False

    def _table(self, relative: Tensor, absolute: Tensor) -> tuple[Tensor, Tensor]:
        """(2, B, V, V, C) with (2, B, V, C) put on its diagonal, prediction and truth."""
        pred, true = torch.where(self._diagonal(absolute)[..., None], absolute[:, :, :, None], relative).unbind()
        return pred, true

    def _counted(self, pred: Tensor) -> Tensor:
        """(B, V, V) bool of a table (B, V, V, C)."""
        return torch.where(self._diagonal(pred), self.absolute, self.relative).expand(pred.shape[:-1])

    @staticmethod
    def _diagonal(like: Tensor) -> Tensor:
        return torch.eye(like.shape[2], dtype=torch.bool, device=like.device)


class Rotations(Poses):
    """ρ of the quaternions."""

    def __call__(self, scene: Scene) -> Tensor:
        quats = torch.stack([scene.pred.quats, scene.true.quats])
        pred, true = self._table(relative_quats(quats), quats)
        return self.weight * masked_mean(robust_rotation(pred, true), self._counted(pred))


class Translations(Poses):
    """ρ of the places. Only views with a valid pixel count: without any the scene has no scale."""

    def __call__(self, scene: Scene) -> Tensor:
        trans = torch.stack([scene.pred.trans, scene.true.trans])
        quats = torch.stack([scene.pred.quats, scene.true.quats])
        pred, true = self._table(relative_trans(quats, trans), trans)
        labelled = scene.labels > 0
        counted = self._counted(pred) & labelled[:, :, None] & labelled[:, None]
        return self.weight * masked_mean(robust(pred, true), counted)


def relative_quats(quats: Tensor) -> Tensor:
    """(..., V, 4) -> (..., V, V, 4): entry [i, j] is the rotation of view j as view i sees it, q_i⁻¹ ⊗ q_j."""
    return quat_multiply(*torch.broadcast_tensors(quat_inverse(quats)[..., None, :], quats[..., None, :, :]))


def relative_trans(quats: Tensor, trans: Tensor) -> Tensor:
    """(..., V, 4), (..., V, 3) -> (..., V, V, 3): entry [i, j] is the place of view j as view i sees it, R_iᵀ(t_j - t_i)."""
    return rotate(quat_inverse(quats)[..., None, :], trans[..., None, :, :] - trans[..., None, :])


@dataclass(frozen=True)
class MetricScale:
    """Size of the scene in metres, ρ(ℓog, ℓog), over metric samples with a valid pixel. Moves the scaling factor alone."""

    weight: float = 1.0

    def __call__(self, scene: Scene) -> Tensor:
        counted = (scene.metric & (scene.true_size > EPS))[:, None]
        loss = robust(torch.log1p(scene.pred_size)[:, None], torch.log1p(scene.true_size)[:, None])
        return self.weight * masked_mean(loss[:, None], counted)[0]


def _dense_mask(scene: Scene) -> Tensor:
    """Pixels (B, V, H, W) whose surface is known: labels of synthetic samples, which have no noise."""
    return scene.valid & scene.synthetic[..., None, None]


def _fraction(neighbours: Tensor, mask: Tensor) -> Tensor:
    """The fraction of labelled pixels that have neighbours, 0 to 1; 1 where nothing is labelled and so nothing is missing."""
    count = mask.sum()
    return torch.where(count > 0, (neighbours.sum() / count).clamp(max=1), 1.0)


@dataclass(frozen=True)
class Normals:
    """Angle between surface normals, of synthetic samples (MoGe, CVPR 2025: local geometry beyond single points).

    Each cell of 2x2 pixels has four normals, one per corner, of the corner and its two neighbours in the cell; one counts
    where its three pixels are labelled, so that sparse depth switches itself off. Angles are clamped to [1°, 90°] and
    weighed as a Huber loss does with β = 3°.

    min_usable: a view with fewer usable cells per labelled pixel than this takes no part. 0: the published loss.
    """

    weight: float = 1.0
    min_usable: float = 0.0

    def __call__(self, scene: Scene) -> Tensor:
        mask = _dense_mask(scene)
        # Unlabelled points are put to 0: a sample without any label has no scale, and what it has could overflow.
        # Coordinates first, x of all points beside each other, which a CPU can vectorise (docs/benchmarks.md).
        points = (side.pts3d_cam.movedim(-1, 0).contiguous() for side in (scene.pred, scene.true))
        pred, true = (torch.where(mask, side, 0) for side in points)
        corners = self._corners(mask)
        if self.min_usable:
            found = corners.any(0).sum((2, 3))
            corners = corners & (found >= self.min_usable * scene.labels)[..., None, None]
        angles = _angle(self._normals(pred), self._normals(true))
        loss = (corners * _huber(angles)).sum((0, 1, 3, 4))
        cells = corners.any(0).sum((0, 2, 3))
        scene.usable["normal"] = _fraction(cells, mask)
        return self.weight * loss / (cells.clamp(min=1) * (4 * max(mask.shape[-2:])))

    @staticmethod
    def _normals(points: Tensor) -> Tensor:
        """Points (3, B, V, H, W) -> normals (3, 4, B, V, H-1, W-1), of any length, at corners rd, ru, lu, ld of each cell."""
        right = points[..., 1:] - points[..., :-1]
        down = points[..., 1:, :] - points[..., :-1, :]
        above, below, at_left, at_right = right[..., :-1, :], right[..., 1:, :], down[..., :-1], down[..., 1:]
        edges = [(at_right, below), (at_right, above), (at_left, above), (at_left, below)]
        return torch.stack([_cross(vertical, horizontal) for vertical, horizontal in edges], 1)

    @staticmethod
    def _corners(mask: Tensor) -> Tensor:
        """(B, V, H, W) -> (4, B, V, H-1, W-1), corners in the order of `_normals`: one and its two neighbours are labelled."""
        lu, ru, ld, rd = mask[..., :-1, :-1], mask[..., :-1, 1:], mask[..., 1:, :-1], mask[..., 1:, 1:]
        left, right = lu & ld, ru & rd
        return torch.stack([right & ld, right & lu, left & ru, left & rd])


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """Angles (...) in radians between vectors (3, ...) of any length, clamped to [1°, 90°]."""
    # No vector_norm, which is slow on a CPU along a first axis. The clamp stops the infinite slope at 0.
    sine = _cross(a, b).square().sum(0).clamp(min=1e-37).sqrt() + 1e-12
    return torch.atan2(sine, (a * b).sum(0)).clamp(math.radians(1), math.radians(90))


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross products of vectors (3, ...). torch.linalg.cross is not vectorised on a CPU."""
    return a.roll(-1, 0) * b.roll(1, 0) - a.roll(1, 0) * b.roll(-1, 0)


def _huber(angle: Tensor) -> Tensor:
    return F.smooth_l1_loss(angle, torch.zeros_like(angle), reduction="none", beta=math.radians(3))


@dataclass(frozen=True)
class GradientMatching:
    """Differences of ℓog(z) between neighbours at strides 1, 2, 4, 8, of synthetic samples (MegaDepth, CVPR 2018, eq. 5).

    A difference counts where both pixels are labelled, so that sparse depth switches itself off.
    """

    weight: float = 1.0
    strides: tuple[int, ...] = (1, 2, 4, 8)

    def __call__(self, scene: Scene) -> Tensor:
        mask = _dense_mask(scene)
        pred, true = log_compress(torch.stack([side.pts3d_cam[..., 2:] for side in (scene.pred, scene.true)]))[..., 0].unbind()
        error = torch.where(mask, pred - true, 0)
        across, down = _neighbours(mask)
        scene.usable["gradient_matching"] = _fraction((across.sum() + down.sum()) / 2, mask)
        parts = (self._at(error[..., ::n, ::n], mask[..., ::n, ::n]) for n in self.strides)
        return self.weight * reduce(torch.add, parts)

    @staticmethod
    def _at(error: Tensor, mask: Tensor) -> Tensor:
        across, down = _neighbours(mask)
        loss = across * (error[..., 1:] - error[..., :-1]).abs().clamp(max=100)
        loss_down = down * (error[..., 1:, :] - error[..., :-1, :]).abs().clamp(max=100)
        return (loss.sum((0, 2, 3)) + loss_down.sum((0, 2, 3))) / mask.sum((0, 2, 3)).clamp(min=1)


def _neighbours(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of set pixels of (..., H, W): side by side (..., H, W-1), one above the other (..., H-1, W)."""
    return mask[..., 1:] & mask[..., :-1], mask[..., 1:, :] & mask[..., :-1, :]


@dataclass(frozen=True)
class AmbiguityMask:
    """Binary cross entropy of the mask that leaves out sky and the like, where the truth knows which it is."""

    weight: float = 1.0

    def __call__(self, scene: Scene) -> Tensor:
        logits = scene.prediction["non_ambiguous_mask_logits"]
        target = scene.batch["non_ambiguous_mask"].to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        # Of a data set that does not say (upstream's, parity files), all pixels count.
        known = scene.batch["mask_known"] if "mask_known" in scene.batch else torch.ones_like(target, dtype=torch.bool)
        return self.weight * masked_mean(loss, known)
