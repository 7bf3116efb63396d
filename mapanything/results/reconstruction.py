"""One scene's prediction, in NumPy: what a network's output becomes before it is measured, drawn or written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """One scene's prediction on the CPU. Its world is view 0's camera: the network only nearly puts it there, so every pose
    is taken relative to the one it gave view 0. OpenCV axes, metres.

    Attributes:
        points_cam: (V, H, W, 3) float32, each view's points in its own camera's frame; z is the z-depth.
        view0_from_camera: (V, 4, 4) float64; [0] is the identity.
        intrinsics: (V, 3, 3) float64 of the (resized, cropped) images, pixel centres at integer coordinates.
        mask: (V, H, W) bool, what to trust; points that are not finite are never in it.
        conf: (V, H, W) float32, 1 and more.
        colours: (V, H, W, 3) uint8 RGB.
        metric_scaling_factor: of the network, relative to its normalised scene; not an error of scale.
    """

    points_cam: NDArray[np.float32]
    view0_from_camera: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    mask: NDArray[np.bool_]
    conf: NDArray[np.float32]
    colours: NDArray[np.uint8]
    metric_scaling_factor: float

    @property
    def depth_z(self) -> NDArray[np.float32]:
        """The z-depth (V, H, W), unmasked."""
        return self.points_cam[..., 2]

    def points(self, world_from_view0: NDArray[np.float64]) -> NDArray[np.float32]:
        """The points (V, H, W, 3) of all views, unmasked, in the world that view 0's pose `world_from_view0` leads to."""
        out = np.empty_like(self.points_cam)
        for points, moved, pose in zip(self.points_cam, out, world_from_view0 @ self.view0_from_camera, strict=True):
            # One product of float32 per view; offsets are those of a rig and its neighbours, so float32 loses micrometres.
            np.matmul(points.reshape(-1, 3), pose[:3, :3].T.astype(np.float32), out=moved.reshape(-1, 3))
            moved += pose[:3, 3].astype(np.float32)
        return out
