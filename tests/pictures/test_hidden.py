"""Returns that a camera cannot see have a colour of their own, where it is asked for."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mapanything.geometry import carla
from mapanything.opv2v.depth import lidar_depth
from mapanything.opv2v.layout import scan
from mapanything.pictures.canvas import png_bytes
from mapanything.pictures.depth import DepthView, draw_depths
from mapanything.pictures.hidden import HIDDEN_COLOR, hidden_depth, return_colors
from mapanything.pictures.overlay import project_points
from mapanything.pictures.plots import frame_png
from mapanything.pictures.scenes import AgentFrame, read_timestamp


@pytest.fixture
def agents(sample_root) -> tuple[AgentFrame, ...]:
    folders = list(scan(sample_root))
    first = [folder for folder in folders if (folder.split, folder.scenario) == (folders[0].split, folders[0].scenario)]
    return read_timestamp(first, first[0].agent, next(iter(first[0].frames)))


def magenta(picture: bytes) -> int:
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    return int((pixels == HIDDEN_COLOR).all(axis=-1).sum())


def test_frame_marks_hidden_returns_only_where_asked(agents):
    assert magenta(frame_png(agents, 3)) == 0
    assert magenta(frame_png(agents, 3, mark_hidden=True)) > 20


def test_what_is_marked_is_what_the_labels_leave_out(agents):
    agent = agents[0]
    points = agent.lidar_points()
    found = 0
    for camera, colors in zip(agent.frame.cameras, return_colors(points, agent.frame.cameras), strict=True):
        size = camera.image_size
        hidden = hidden_depth(points, camera, *size)
        every = lidar_depth(carla.ue_points(points), camera, *size)
        assert ((hidden == 0) | (hidden == every)).all()
        uv, z, index = project_points(points, camera.camera_from_lidar, camera.cv_intrinsics, *size)
        column, row = np.floor(uv + 0.5).astype(int).T
        nearest = np.isclose(every[row, column], z, rtol=1e-5)  # others are under it in the same pixel
        marked = (colors[index] == HIDDEN_COLOR).all(axis=1)
        assert np.array_equal(marked[nearest], hidden[row, column][nearest] > 0)
        found += int((hidden > 0).sum())
    assert found > 10


def test_depth_sheet_marks_hidden_returns(agents):
    agent = agents[0]
    camera = agent.frame.cameras[0]
    hidden = hidden_depth(agent.lidar_points(), camera, *camera.image_size)
    image = np.zeros((*hidden.shape, 3), np.uint8)
    true = lidar_depth(carla.ue_points(agent.lidar_points()), camera, *camera.image_size)
    plain, marked = (png_bytes(draw_depths("", [DepthView("", image, true, hidden=map_)])) for map_ in (None, hidden))
    assert magenta(plain) == 0 and (magenta(marked) > 0) == bool(hidden.any())
