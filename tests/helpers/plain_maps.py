"""Depth maps of a LiDAR's sweeps without any test of what the cameras see."""

from __future__ import annotations

from pathlib import Path

from mapanything.opv2v.depth import lidar_depth, write_depth_npy
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import DepthLayout, FramePaths, scan
from mapanything.opv2v.pcd import read_pcd


def lidar_root(images: Path, root: Path) -> DepthLayout:
    """Plain maps, as the versions before depth.json made them."""
    layout = DepthLayout(root)
    for folder in scan(images):
        for name in folder.frames:
            paths = FramePaths(images, folder.key(name))
            points = read_pcd(paths.pcd).points
            for one in read_frame(paths.yaml).cameras:
                write_depth_npy(layout.path(paths.key, one.index), lidar_depth(points, one, *one.image_size))
    return layout
