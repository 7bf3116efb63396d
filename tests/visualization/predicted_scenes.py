"""A prediction as `invoke infer` writes it, made of a frame's own LiDAR points."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mapanything.inference.clouds import encode_ply
from mapanything.opv2v.layout import FrameKey, scan_agent
from mapanything.visualization.scenes import build_scene, read_timestamp


def write_prediction(out: Path, root: Path, key: FrameKey, shift: float = 0.0) -> Path:
    """The scene's folder below `out`: the main agent's points moved `shift` metres down, its own cameras."""
    folders = [scan_agent(root, key.split, key.scenario, key.agent)]
    scene = build_scene(read_timestamp(folders, key.agent, key.frame))
    points = scene.clouds[0].points + np.array([0, shift, 0], np.float32)
    folder = out / key.split / key.scenario / key.agent / key.frame
    folder.mkdir(parents=True)
    (folder / "cloud.ply").write_bytes(encode_ply(points, np.full(points.shape, 180, np.uint8), "opencv", ""))
    views = [
        {"name": f"{key.agent}_camera{k}", "agent": key.agent, "camera": k, "image_size": [518, 392]}
        | {"intrinsics": [[217, 0, 258.5], [0, 217, 195.5], [0, 0, 1]], "lidar_from_camera": pose.tolist()}
        for k, pose in enumerate(scene.cameras.world_from_camera)
    ]
    (folder / "poses.json").write_text(json.dumps({"views": views}))
    names = {"split": key.split, "scenario": key.scenario, "main_agent": key.agent, "frame": key.frame}
    record = {"format": 1, "frame_of": "opencv", "inputs": ["images"], "scene": names | {"agents": [key.agent]}}
    (folder / "scene.json").write_text(json.dumps(record))
    return folder
