"""The training loss: a sum of small terms over one normalised scene.

`Loss` stacks the views once, brings truth and prediction into one frame and scale (`Scene`, docs/network.md §7.2) and adds up
its terms (loss_terms.py, loss_options.py; which ones and how heavy stands in configs/loss). Everything is a tensor with the
axes (B samples, V views, ...): no loop over views or pairs, no shape that depends on data, nothing read back from the device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mapanything.geometry.rigid import quat_inverse, quat_multiply, rotate

log = logging.getLogger(__name__)

Views = Sequence[Mapping[str, Any]] | Mapping[str, Any]
EPS = 1e-8
USABLE = "_usable"  # ending of the entries of `LossOutput.terms` that are no losses
SPARSE = 0.1  # below this fraction of labelled pixels with labelled neighbours a term is as good as off


class LossOutput(NamedTuple):
    """The loss that a step needs, and the numbers that its log shows.

    total: scalar to call backward() on. terms: detached scalars; the terms' contributions, which add up to `total`, and for
    terms that need labelled neighbours an entry `<term>_usable`, the fraction of labelled pixels that have them.
    """

    total: Tensor
    terms: dict[str, Tensor]


class Stacked:
    """Entries (B, V, ...) of a batch or prediction, which is a list over views or has been stacked already.

    An entry is stacked when it is first asked for, so that images and strings cost nothing. Half precision becomes float32.
    """

    def __init__(self, views: Views) -> None:
        self._views = views
        self._stacked: dict[str, Tensor] = {}

    def __contains__(self, key: str) -> bool:
        return key in (self._views if isinstance(self._views, Mapping) else self._views[0])

    def __getitem__(self, key: str) -> Tensor:
        if key not in self:
            raise ValueError(f"the loss needs '{key}', which neither its data set nor its model gave")
        if key not in self._stacked:
            views = self._views
            value = views[key] if isinstance(views, Mapping) else torch.stack([view[key] for view in views], dim=1)
            self._stacked[key] = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        return self._stacked[key]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A scene in the frame of its view 0, divided by its points' mean distance from there (docs/network.md §7.2)."""

    pts3d: Tensor  # (B, V, H, W, 3)
    pts3d_cam: Tensor  # (B, V, H, W, 3)
    depth_along_ray: Tensor  # (B, V, H, W, 1)
    ray_directions: Tensor  # (B, V, H, W, 3), unit, as they were
    quats: Tensor  # (B, V, 4) xyzw, camera to view 0
    trans: Tensor  # (B, V, 3)

    @classmethod
    def scaled(
        cls, factor: Tensor, pts3d: Tensor, pts3d_cam: Tensor, depth: Tensor, rays: Tensor, quats: Tensor, trans: Tensor
    ) -> Geometry:
        """Lengths times `factor` (B or 1, V or 1)."""
        dense = factor[..., None, None, None]
        return cls(pts3d * dense, pts3d_cam * dense, depth * dense, rays, quats, trans * factor[..., None])


@dataclass(frozen=True, slots=True)
class Scene:
    """A batch as the terms see it."""

    true: Geometry
    pred: Geometry
    valid: Tensor  # (B, V, H, W) bool: the true depth is known
    labels: Tensor  # (B, V) number of valid pixels
    synthetic: Tensor  # (B, V) bool
    metric: Tensor  # (B,) bool: the truth is in metres (flag of view 0)
    true_size: Tensor  # (B,) metres where metric; 1e-8 without a valid pixel
    pred_size: Tensor  # (B,) metres; its gradient reaches the metric scaling factor alone
    batch: Stacked
    prediction: Stacked
    teacher: Stacked | None = None
    usable: dict[str, Tensor] = field(default_factory=dict)  # terms that need labelled neighbours note here how many have them

    @classmethod
    def build(cls, batch: Stacked, prediction: Stacked, teacher: Stacked | None = None, to_view0: bool = False) -> Scene:
        """Common frame and normalisation, docs/network.md §7.2.

        Args:
            to_view0: move the prediction into the frame of its own view 0 (networks without a reference view).
        """
        valid = batch["valid_mask"]
        labels = valid.sum((2, 3))
        count = labels.sum(1).to(batch["pts3d"].dtype) + EPS  # (B,)
        pred_points, pred_quats, pred_trans = (prediction[key] for key in ("pts3d", "cam_quats", "cam_trans"))
        poses = [(batch["camera_pose_quats"], batch["camera_pose_trans"]), (pred_quats, pred_trans)]
        # Both in one go (2, B, V, ...) where both have to move: poses are small, so that only the number of calls counts.
        quats, trans = (torch.stack(parts) for parts in zip(*poses[: 1 + to_view0]))
        inverse, moved_quats, moved_trans = in_view0(quats, trans)
        points = _points_in_view0(batch["pts3d"], inverse[0], trans[0])
        if to_view0:
            pred_points = _points_in_view0(pred_points, inverse[1], trans[1])
            pred_quats, pred_trans = moved_quats[1], moved_trans[1]
        true_size = (_distances(points, valid).sum(1) / count).clamp(min=EPS)
        true_factor = (1 / true_size)[:, None]
        # The network's own points are its metric points / s. Only the scale term may move s, all others see it divided out.
        scale = prediction["metric_scaling_factor"][..., 0]  # (B, V)
        raw = _distances(pred_points, valid) / scale
        pred_factor = 1 / (scale * (raw.sum(1) / count).clamp(min=EPS)[:, None])
        pred_size = ((raw.detach() * scale).sum(1) / count).clamp(min=EPS)
        true_cam, true_depth, true_rays = (batch[key] for key in ("pts3d_cam", "depth_along_ray", "ray_directions_cam"))
        pred_cam, pred_depth, pred_rays = (prediction[key] for key in ("pts3d_cam", "depth_along_ray", "ray_directions"))
        return cls(
            true=Geometry.scaled(true_factor, points, true_cam, true_depth, true_rays, moved_quats[0], moved_trans[0]),
            pred=Geometry.scaled(pred_factor, pred_points, pred_cam, pred_depth, pred_rays, pred_quats, pred_trans),
            valid=valid,
            labels=labels,
            synthetic=batch["is_synthetic"].bool(),
            metric=batch["is_metric_scale"][:, 0].bool(),
            true_size=true_size,
            pred_size=pred_size,
            batch=batch,
            prediction=prediction,
            teacher=teacher,
        )


def _distances(points: Tensor, valid: Tensor) -> Tensor:
    """Sums (B, V) of the distances from the origin of the valid ones of points (B, V, H, W, 3)."""
    return torch.where(valid, torch.linalg.vector_norm(points, dim=-1), 0).sum((2, 3))


def in_view0(quats: Tensor, trans: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Camera poses (..., V, 4), (..., V, 3) -> view 0's inverse rotation (..., 1, 4), and the poses in view 0's frame."""
    inverse = quat_inverse(quats[..., :1, :])
    return inverse, quat_multiply(inverse.expand_as(quats), quats), rotate(inverse, trans - trans[..., :1, :])


def _points_in_view0(points: Tensor, inverse: Tensor, trans: Tensor) -> Tensor:
    """World points (B, V, H, W, 3) in view 0's frame; `inverse` (B, 1, 4) its inverse rotation, `trans` (B, V, 3)."""
    return rotate(inverse[:, :, None, None], points - trans[:, :1, None, None])


class Term(Protocol):
    """A part of the loss: called with a scene it gives its weighted contributions, one per view (V,) or one in all ()."""

    def __call__(self, scene: Scene) -> Tensor: ...


class Loss(nn.Module):
    """Sum of `terms` over the views of a batch. Has no parameters.

    Args:
        terms: by name; the order is that of the log.
        to_view0: see `Scene.build`.

    `needs_teacher`: a term distils; forward() then needs a frozen network's prediction.
    """

    def __init__(self, terms: Mapping[str, Term], to_view0: bool = False) -> None:
        super().__init__()
        self.terms = dict(terms)
        self.to_view0 = to_view0
        self.needs_teacher = any(getattr(term, "needs_teacher", False) for term in self.terms.values())

    def forward(self, batch: Views, prediction: Views, teacher: Views | None = None) -> LossOutput:
        """The loss of a batch, computed in float32 whatever autocast says (float64 inputs stay float64).

        Args:
            batch: entries of docs/network.md §7.1, as datasets.views.collate gives them, or stacked (B, V, ...).
            prediction: entries of docs/network.md §5, as the network gives them, or stacked.
            teacher: the same of a frozen network, made without gradients, where `needs_teacher`.
        """
        device = (prediction if isinstance(prediction, Mapping) else prediction[0])["pts3d"].device.type
        with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
            scene = self.scene(batch, prediction, teacher)
            parts = {name: term(scene).sum() for name, term in self.terms.items()}
            total = torch.stack(list(parts.values())).sum()
        notes = {name + USABLE: fraction for name, fraction in scene.usable.items()}
        return LossOutput(total, {name: value.detach() for name, value in (parts | notes).items()})

    def scene(self, batch: Views, prediction: Views, teacher: Views | None = None) -> Scene:
        """The scene that the terms are called with."""
        stacked = Stacked(teacher) if teacher is not None else None
        return Scene.build(Stacked(batch), Stacked(prediction), stacked, self.to_view0)


class SparseNotice:
    """Says once per term that labels are too sparse for it: at what it gets when the log reads the device, never before."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, terms: Mapping[str, float]) -> None:
        """Looks at the `_usable` entries of `LossOutput.terms` after they have been read as numbers."""
        for key, fraction in terms.items():
            if key.endswith(USABLE) and fraction < SPARSE and key not in self._said:
                self._said.add(key)
                log.warning(
                    "loss term '%s': only %.1f %% of the labelled pixels have the neighbours it needs (sparse depth); "
                    "it counts there and is off everywhere else (docs/losses.md)",
                    key.removesuffix(USABLE),
                    100 * fraction,
                )
