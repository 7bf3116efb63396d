"""Drawing for one's own scripts, without a display: import from here, copy nothing.

    from mapanything.utils.opv2v_viz import View, draw_lidar_and_boxes, save_view_png

    save_view_png(scene, "scene.png")                                       # a Scene, or a list of what it holds
    save_view_png([open3d_cloud, open3d_lines], "mine.png", View.look_at(eye=(0, -20, -30), target=(0, 0, 10)))
    image = draw_lidar_and_boxes(agents, camera=0)                          # (H, W, 3) uint8
    write_png(Path("front.png"), image)

`agents` and `scene` come from mapanything.utils.opv2v_pointclouds. The public names are those in `__all__`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mapanything.errors import InputError
from mapanything.geometry.colors import map_colors
from mapanything.opv2v.png import read_image
from mapanything.pictures.colors import depth_colors, height_colors
from mapanything.pictures.overlay import draw_boxes, draw_points, project_points
from mapanything.pictures.render import View, chase_view, fitted_view, render, save_view_png, write_png
from mapanything.pictures.scenes import AgentFrame, vehicle_boxes
from mapanything.pictures.viewpoints import camera_view, top_view

__all__ = [
    "View",
    "camera_view",
    "chase_view",
    "depth_colors",
    "draw_boxes",
    "draw_lidar_and_boxes",
    "draw_points",
    "fitted_view",
    "height_colors",
    "map_colors",
    "project_points",
    "render",
    "save_view_png",
    "top_view",
    "write_png",
]


def draw_lidar_and_boxes(agents: Sequence[AgentFrame], camera: int) -> NDArray[np.uint8]:
    """An image (H, W, 3) of the first agent with its own LiDAR points and the boxes that any of the agents lists.

    Raises:
        InputError: the image, the cloud or the camera's entry in the YAML is missing or broken.
    """
    agent = agents[0]
    view = next((view for view in agent.frame.cameras if view.index == camera), None)
    if view is None:
        raise InputError(f"{agent.paths.yaml}: has no camera{camera}")
    boxes = vehicle_boxes(agents).without(agent.key.agent)
    image = read_image(agent.paths.image(camera))
    image = draw_points(image, agent.lidar_points(), view.camera_from_lidar, view.cv_intrinsics)
    return draw_boxes(image, boxes, view.camera_from_lidar, view.cv_intrinsics)
