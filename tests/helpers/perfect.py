"""A perfect prediction: ground truth in the network's own form."""

from __future__ import annotations

import torch

from mapanything.datasets.views import View
from mapanything.geometry.rigid import quat_from_matrix
from mapanything.models.outputs import pose_matrices
from mapanything.models.postprocess import Prediction


def perfect_prediction(sample: list[View], world: torch.Tensor | None = None) -> Prediction:
    """A sample's ground truth, the mask where it is known; in any world (4, 4): the one that the network chose."""

    def stack(key: str) -> torch.Tensor:
        return torch.stack([view[key] for view in sample])[None]

    poses = stack("camera_pose").double()
    if world is not None:
        poses = world.double() @ poses
    trans, quats = poses[..., :3, 3].float(), quat_from_matrix(poses).float()
    cam = stack("pts3d_cam")
    points = (cam.double() @ poses[:, :, None, :3, :3].mT + poses[:, :, None, None, :3, 3]).float()
    mask = stack("valid_mask")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return Prediction(
        pts3d=points,
        pts3d_cam=cam,
        ray_directions=stack("ray_directions_cam"),
        depth_along_ray=stack("depth_along_ray"),
        cam_trans=trans,
        cam_quats=quats,
        metric_scaling_factor=torch.ones(1, 1),
        conf=torch.ones(mask.shape),
        non_ambiguous_mask=mask,
        non_ambiguous_mask_logits=torch.where(mask, 9.0, -9.0),
        img_no_norm=(stack("img").permute(0, 1, 3, 4, 2) * std + mean).clip(0, 1),
        depth_z=cam[..., 2:3],
        intrinsics=stack("camera_intrinsics"),
        camera_poses=pose_matrices(trans, quats),
        mask=mask[..., None],
    )
