"""Terms for the group's open problems, each off unless its config is added: `+loss/option=height_prior` (docs/losses.md).

They look at metres, so only at metric samples, and at the prediction as it stands, not at the normalised one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mapanything.train.loss_terms import log_compress, masked_mean, relative_quats, relative_trans, robust, robust_rotation
from mapanything.train.losses import EPS, Scene, Stacked, in_view0


@dataclass(frozen=True)
class HeightPrior:
    """Unlabelled pixels predicted higher above the ground than anything in a street is: floating layers, mostly of sky.

    Heights are those of the predicted depth along the predicted ray from the true camera. The gradient moves the network's
    own depth alone: a prior must not be satisfied by a tilted camera, a bent ray or a smaller scale. It grows with the
    logarithm of the excess, so that a few far points do not outweigh the rest.

    max_height: metres above the ground under the main agent; what lies below is free.
    lidar_height: metres of the world's origin, the main agent's LiDAR, above that ground (OpenCV axes: y points down).
    """

    weight: float = 0.1
    max_height: float = 15.0
    lidar_height: float = 1.9

    def __call__(self, scene: Scene) -> Tensor:
        scale = scene.prediction["metric_scaling_factor"]  # (B, V, 1)
        depth = scene.prediction["depth_along_ray"][..., 0] * (scale.detach() / scale)[..., None]
        down = scene.batch["camera_pose"][..., 1, :]  # (B, V, 4): the world's y of a point in the camera's frame
        steepness = (scene.prediction["ray_directions"].detach() * down[:, :, None, None, :3]).sum(-1)
        height = self.lidar_height - (steepness * depth + down[..., 3, None, None])
        unlabelled = ~scene.valid & scene.metric[:, None, None, None]
        return self.weight * masked_mean(torch.log1p((height - self.max_height).clamp(min=0)), unlabelled)


@dataclass(frozen=True)
class _KnownPoses:
    """Relative camera poses of some pairs of views, in metres, against the truth; through metres it also teaches scale."""

    weight: float = 0.1
    rotation_weight: float = 1.0

    def _loss(self, scene: Scene, counted: Tensor, compress: bool) -> Tensor:
        """counted: pairs (B, V, V) bool. compress: ℓog of the distances, for those of tens of metres."""
        quats = torch.stack([scene.prediction["cam_quats"], scene.batch["camera_pose_quats"]])
        trans = torch.stack([scene.prediction["cam_trans"], scene.batch["camera_pose_trans"]])
        places = relative_trans(quats, trans)
        rotation, place = robust_rotation(*relative_quats(quats)), robust(*(log_compress(places) if compress else places))
        return self.weight * masked_mean(self.rotation_weight * rotation + place, counted & scene.metric[:, None, None])

    @staticmethod
    def _same_vehicle(scene: Scene) -> Tensor:
        agent = scene.batch["agent_id"]  # (B, V)
        return agent[:, :, None] == agent[:, None]


@dataclass(frozen=True)
class RigConsistency(_KnownPoses):
    """Cameras of one vehicle are bolted to it: between them the predicted poses must be the rig's, to centimetres."""

    def __call__(self, scene: Scene) -> Tensor:
        same = self._same_vehicle(scene)
        itself = torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)
        return self._loss(scene, same & ~itself, compress=False)


@dataclass(frozen=True)
class VehicleConsistency(_KnownPoses):
    """Vehicles know where they are to each other: the predicted poses between cameras of different vehicles must say the same.

    The standard relative terms hold these pairs too, but in one mean with those of a rig and in units of the scene's size.
    """

    def __call__(self, scene: Scene) -> Tensor:
        return self._loss(scene, ~self._same_vehicle(scene), compress=True)


@dataclass(frozen=True)
class DistilledScale:
    """The size of the scene in metres as a frozen teacher sees it: what fine-tuning on few scenes forgets first.

    ρ of the logarithms of the mean depths, over what the teacher does not take for sky. Moves the scaling factor alone.
    """

    needs_teacher: ClassVar[bool] = True
    weight: float = 0.1

    def __call__(self, scene: Scene) -> Tensor:
        teacher, mask = _teacher(scene)
        scale = scene.prediction["metric_scaling_factor"][..., None, None]  # (B, V, 1, 1, 1)
        depth = scene.prediction["depth_along_ray"]
        student = _mean_depth((depth / scale).detach() * scale, mask)
        return (
            self.weight * robust(student.log()[:, None], _mean_depth(teacher["depth_along_ray"], mask).log()[:, None]).mean()
        )


@dataclass(frozen=True)
class DistilledPose:
    """A frozen teacher's camera poses relative to view 0, in units of each one's own mean depth: scale is another term's."""

    needs_teacher: ClassVar[bool] = True
    weight: float = 0.1

    def __call__(self, scene: Scene) -> Tensor:
        teacher, mask = _teacher(scene)
        sides = scene.prediction, teacher
        sizes = torch.stack([_mean_depth(side["depth_along_ray"], mask) for side in sides])
        quats, trans = (torch.stack([side[key] for side in sides]) for key in ("cam_quats", "cam_trans"))
        _, quats, trans = in_view0(quats, trans)  # (2, B, V, 4), (2, B, V, 3)
        return self.weight * (robust_rotation(*quats) + robust(*(trans / sizes[..., None, None]))).mean(0)


def _teacher(scene: Scene) -> tuple[Stacked, Tensor]:
    """The teacher's prediction and where it sees something, (B, V, H, W) bool."""
    teacher = scene.teacher
    if teacher is None:
        raise ValueError("a distillation term needs the teacher's prediction: Loss(batch, prediction, teacher)")
    seen = "non_ambiguous_mask" in teacher
    return teacher, teacher["non_ambiguous_mask"] if seen else torch.ones_like(scene.valid)


def _mean_depth(depth: Tensor, mask: Tensor) -> Tensor:
    """Means (B,) of depth (B, V, H, W, 1) where the mask is set."""
    total = torch.where(mask, depth[..., 0], 0).sum((1, 2, 3))
    return (total / mask.sum((1, 2, 3)).clamp(min=1)).clamp(min=EPS)
