"""Scenes hold what the frames say, in the main agent's LiDAR frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mapanything.errors import InputError
from mapanything.geometry.camera import project
from mapanything.geometry.colors import map_colors
from mapanything.geometry.rigid import invert, rotation_error, transform
from mapanything.opv2v.layout import AgentFolder, scan
from mapanything.pictures.colors import agent_color
from mapanything.pictures.scenes import AgentFrame, Cameras, build_scene, cameras_of, read_timestamp, vehicle_boxes


def first_scenario(root: Path) -> list[AgentFolder]:
    folders = list(scan(root))
    return [f for f in folders if (f.split, f.scenario) == (folders[0].split, folders[0].scenario)]


def first_timestamp(root: Path) -> tuple[AgentFrame, ...]:
    folders = first_scenario(root)
    return read_timestamp(folders, folders[0].agent, next(iter(folders[0].frames)))


def check_timestamp(agents: tuple[AgentFrame, ...]) -> None:
    """Checks what holds for every timestamp, real or generated."""
    scene = build_scene(agents)
    main = agents[0].frame
    lidar_from_world = invert(main.world_from_lidar)
    listed = {str(v.id) for agent in agents for v in agent.frame.vehicles}
    assert set(scene.boxes.labels) == listed
    assert len(scene.clouds) == len(scene.axes) == len(agents)
    assert len(scene.cameras) == 4 * len(agents)

    # Every box encloses a LiDAR point of an agent that lists it: noise 2 cm, a hand's breadth of slack.
    points = np.concatenate([cloud.points for cloud in scene.clouds])
    for pose, half, label in zip(scene.boxes.world_from_box, scene.boxes.half_size, scene.boxes.labels):
        inside = np.abs(transform(invert(pose), points)) <= half + 0.15
        assert inside.all(axis=1).any(), label

    for pose in (*scene.boxes.world_from_box, *scene.cameras.world_from_camera):
        assert rotation_error(pose) < 1e-9
    for i, agent in enumerate(agents):
        moved = transform(lidar_from_world @ agent.frame.world_from_lidar, agent.lidar_points().astype(np.float64))
        assert np.abs(moved - scene.clouds[i].points).max() < 1e-3
        assert np.allclose(scene.axes[i].world_from_axes, lidar_from_world @ agent.frame.world_from_ego)
        colors = scene.cameras.colors[4 * i : 4 * i + 4]
        assert (colors == agent_color(i)).all()
        if agent.key.agent in scene.boxes.labels:
            assert (scene.boxes.colors[scene.boxes.labels.index(agent.key.agent)] == agent_color(i)).all()
    # The main vehicle looks along +z of the world, and stands below its LiDAR.
    assert scene.axes[0].world_from_axes[2, 2] > 0.99
    assert 1.5 < scene.axes[0].world_from_axes[1, 3] < 2.5


def test_sample_timestamp(sample_root: Path):
    check_timestamp(first_timestamp(sample_root))


@pytest.mark.real
def test_real_timestamps(real_root: Path):
    folders = first_scenario(real_root)
    for folder in folders:
        check_timestamp(read_timestamp(folders, folder.agent, next(iter(folder.frames))))


def test_range_cuts_points_and_boxes(sample_root: Path):
    agents = first_timestamp(sample_root)
    scene = build_scene(agents, max_range=20.0)
    points = np.concatenate([cloud.points for cloud in scene.clouds])
    assert 0 < len(points) < sum(len(cloud.points) for cloud in build_scene(agents).clouds)
    assert np.abs(points[:, [0, 2]]).max() <= 20.0
    assert np.abs(scene.boxes.world_from_box[:, [0, 2], 3]).max(initial=0) <= 20.0


def test_boxes_have_their_front_ahead_and_sizes_along_their_axes(sample_root: Path):
    boxes = vehicle_boxes(first_timestamp(sample_root))
    corners, headings = boxes.corners(), boxes.headings()
    for i in range(len(boxes)):
        local = transform(invert(boxes.world_from_box[i]), corners[i])
        assert np.allclose(np.abs(local), boxes.half_size[i])
        tick = transform(invert(boxes.world_from_box[i]), headings[i])
        assert tick[1, 2] > boxes.half_size[i, 2]
        assert np.allclose(tick[:, 1], boxes.half_size[i, 1])
    points, edges, colors = boxes.lines()
    assert points.shape == (10 * len(boxes), 3)
    assert edges.shape == (13 * len(boxes), 2)
    assert colors.shape == (13 * len(boxes), 3)
    lengths = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1).reshape(-1, 13)
    assert np.allclose(np.sort(lengths[:, :12], axis=1), np.sort(np.repeat(2 * boxes.half_size, 4, axis=1), axis=1))


def test_frusta_end_at_the_images_corners(sample_root: Path):
    cameras: Cameras = cameras_of(first_timestamp(sample_root), 3.0)
    frusta = cameras.frusta()
    for i in range(len(cameras)):
        local = transform(invert(cameras.world_from_camera[i]), frusta[i])
        assert np.allclose(local[0], 0)
        assert np.allclose(local[1:, 2], 3.0)
        width, height = cameras.sizes[i]
        want = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
        assert np.allclose(project(local[1:], cameras.intrinsics[i])[0], want)


def test_an_agent_without_the_frame_is_left_out_and_the_main_one_must_have_it(sample_root: Path):
    folders = first_scenario(sample_root)
    frame = next(iter(folders[0].frames))
    other = folders[1]
    other.frames = {name: bits for name, bits in other.frames.items() if name != frame}
    agents = read_timestamp(folders, folders[0].agent, frame)
    assert other.agent not in [agent.key.agent for agent in agents]
    with pytest.raises(InputError, match=f"{other.agent}: no frame '{frame}'"):
        read_timestamp(folders, other.agent, frame)


def test_map_colors_takes_the_ends_outside_its_range():
    colors = map_colors(np.array([-5.0, 0.0, 1.0, 9.0, np.nan]), 0.0, 1.0)
    assert colors.dtype == np.uint8
    assert (colors[0] == colors[1]).all()
    assert (colors[2] == colors[3]).all()
    assert (colors[4] == colors[0]).all()
