"""A prediction's folder as `./invoke infer` writes it, made of the ground truth; without a network, hence quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mapanything.geometry.camera import rays
from mapanything.geometry.rigid import invert
from mapanything.inference.select import frame_key
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import NUM_CAMERAS, FrameKey, FramePaths
from mapanything.opv2v.png import read_image
from mapanything.results.export import write_scene
from mapanything.results.reconstruction import Reconstruction
from mapanything.results.record import SceneKey, Settings, scene_folder

SIZE = (80, 42)


def main_agent_scene(key: FrameKey) -> SceneKey:
    """The scene of an agent-frame alone, with all its cameras."""
    return SceneKey(key.split, key.scenario, key.frame, (key.agent,), (tuple(range(NUM_CAMERAS)),))


def write_prediction(
    root: Path, out: Path, key: SceneKey, *, clouds: tuple[str, ...] = ("pcd",), axes: str = "opv2v", depth: float = 8.0
) -> Path:
    """A wall `depth` metres in front of every camera, at the true poses; the left half of each image is trusted."""
    frames = {agent: read_frame(FramePaths(root, frame_key(key, agent)).yaml) for agent in key.agents}
    cameras = [frames[agent].cameras[k] for agent, k in key.views]
    world_from_camera = np.stack([camera.world_from_camera for camera in cameras])
    width, height = SIZE
    k = np.array([[40.0, 0, 41.5], [0, 40.0, 20.5], [0, 0, 1]])
    points = (rays(k, height, width) * depth).astype(np.float32)
    mask = np.zeros((len(cameras), height, width), bool)
    mask[:, :, : width // 2] = True
    colours = np.stack(
        [read_image(FramePaths(root, frame_key(key, agent)).image(c))[:height, :width] for agent, c in key.views]
    )
    made = Reconstruction(
        points_cam=np.repeat(points[None], len(cameras), axis=0),
        view0_from_camera=invert(world_from_camera[0]) @ world_from_camera,
        intrinsics=np.repeat(k[None], len(cameras), axis=0),
        mask=mask,
        conf=np.ones(mask.shape, np.float32),
        colours=colours,
        metric_scaling_factor=1.0,
    )
    lidar_from_view0 = invert(frames[key.main_agent].world_from_lidar) @ world_from_camera[0]
    mode = "coop" if len(key.agents) > 1 else "single"
    settings = Settings(mode, ("images",), SIZE, axes, clouds, {"model": "none"}, {"commit": None})
    folder = scene_folder(out, key)
    write_scene(folder, key, made, lidar_from_view0, settings)
    return folder
