"""Where vehicles were over the frames of a scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mapanything.geometry.rigid import invert, transform
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import YAML, AgentFolder, FramePaths
from mapanything.pictures.scenes import AgentFrame, Float, Trajectory, agent_color, world_from_vehicle


def read_positions(folders: Sequence[AgentFolder], frames: Sequence[str]) -> dict[str, Float]:
    """Where each agent is at each of the frames: (F, 3) in CARLA's world, OpenCV axes; NaN where it lacks the frame.

    Raises:
        InputError: a YAML is broken.
    """
    positions = {}
    for folder in folders:
        positions[folder.agent] = np.full((len(frames), 3), np.nan)
        for i, frame in enumerate(frames):
            if folder.frames.get(frame, 0) & YAML:
                path = FramePaths(folder.path.parents[2], folder.key(frame)).yaml
                positions[folder.agent][i] = world_from_vehicle(read_frame(path))[:3, 3]
    return positions


def trajectories(agents: Sequence[AgentFrame], positions: Mapping[str, Float]) -> tuple[Trajectory, ...]:
    """The paths of the agents, in the first one's LiDAR frame; `positions` as `read_positions` gives them."""
    lidar_from_world = invert(agents[0].frame.world_from_lidar)
    return tuple(
        Trajectory(transform(lidar_from_world, positions[agent.key.agent]), agent.key.agent, agent_color(role))
        for role, agent in enumerate(agents)
    )
