"""The import paths of the group's scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from mapanything.errors import InputError
from mapanything.geometry.rigid import invert, transform
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import scan
from mapanything.opv2v.pcd import read_pcd
from mapanything.utils import opv2v_pointclouds, opv2v_viz


def test_every_public_name_exists():
    for module in (opv2v_pointclouds, opv2v_viz):
        for name in module.__all__:
            assert getattr(module, name) is not None


def test_clouds_in_the_three_frames(sample_root: Path):
    folder = next(scan(sample_root))
    pcd = folder.path / f"{next(iter(folder.frames))}.pcd"
    stored = read_pcd(pcd).points
    lidar = opv2v_pointclouds.load_cloud(pcd)
    world = opv2v_pointclouds.load_cloud(str(pcd), "world")
    assert (opv2v_pointclouds.load_cloud(pcd, "unreal") == stored).all()
    assert (lidar == np.column_stack([stored[:, 1], -stored[:, 2], stored[:, 0]])).all()
    back = transform(invert(read_frame(pcd.with_suffix(".yaml")).world_from_lidar), world)
    assert np.abs(back - lidar).max() < 1e-6
    with pytest.raises(ValueError, match="unreal"):
        opv2v_pointclouds.load_cloud(pcd, cast(Any, "camera"))


def test_agents_scene_and_picture(sample_root: Path, tmp_path: Path):
    folder = next(scan(sample_root))
    frame = next(iter(folder.frames))
    agents = opv2v_pointclouds.load_agents(sample_root, folder.split, folder.scenario, frame, folder.agent)
    assert agents[0].key == folder.key(frame)
    assert len(agents) > 1
    scene = opv2v_pointclouds.build_scene(agents)
    image = opv2v_viz.save_view_png(scene, tmp_path / "scene.png", opv2v_viz.chase_view(320, 180))
    assert image.shape == (180, 320, 3)
    assert (image != 255).any()
    overlay = opv2v_viz.draw_lidar_and_boxes(agents, camera=0)
    width, height = agents[0].frame.cameras[0].image_size
    assert overlay.shape == (height, width, 3)
    with pytest.raises(InputError, match="camera7"):
        opv2v_viz.draw_lidar_and_boxes(agents, camera=7)
    with pytest.raises(InputError, match="777777"):
        opv2v_pointclouds.load_agents(sample_root, folder.split, folder.scenario, "777777", folder.agent)


def test_culver_city_is_found_by_either_name(sample_root: Path):
    folder = next(scan(sample_root))
    (sample_root / folder.split).rename(sample_root / "test_culver_city")
    frame = next(iter(folder.frames))
    agents = opv2v_pointclouds.load_agents(sample_root, "test_culvercity", folder.scenario, frame, folder.agent)
    assert agents[0].key.split == "test_culver_city"
