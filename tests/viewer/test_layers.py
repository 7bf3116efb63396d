"""Layers of a frame that a client sees, and how clouds are cut for its browser."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mapanything.geometry.colors import linear_from_srgb
from mapanything.geometry.rigid import quat_from_matrix
from mapanything.opv2v.layout import Selection
from mapanything.pictures.colors import agent_color
from mapanything.pictures.hidden import HIDDEN_COLOR
from mapanything.pictures.render import View
from mapanything.pictures.scenes import Boxes, Cloud
from mapanything.viewer.browser import IMAGES, LABELS, Browser, look_from, view_of
from mapanything.viewer.frames import Catalog, ViewerFrame, load_frame, shuffled
from mapanything.viewer.layers import (
    CHUNK_POINTS,
    FIRST_POINTS,
    Look,
    chunk_end,
    near,
    tiles,
    visible_layers,
)
from tests.helpers.prediction_files import main_agent_scene, write_prediction


@pytest.fixture
def frame(generated_root: Path) -> ViewerFrame:
    catalog = Catalog(generated_root)
    return load_frame(catalog, catalog.first())


class Scene:
    """Takes what viser's scene takes, and remembers which nodes there are and what was sent."""

    def __init__(self) -> None:
        self.nodes: dict[str, Any] = {}
        self.sent: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def add(path: str, *args: Any, **options: Any) -> Any:
            node = SimpleNamespace(name=path, kind=name, args=args, visible=True, **{"point_size": None, **options})
            node.remove = lambda: [self.nodes.pop(k) for k in list(self.nodes) if k == path or k.startswith(path + "/")]
            self.nodes[path] = node
            self.sent.append(path)
            return node

        return add if name.startswith("add_") else lambda *_, **__: None


class Client:
    """The part of viser's client that `Browser` uses."""

    def __init__(self) -> None:
        self.scene, self.camera = Scene(), SimpleNamespace()

    def atomic(self) -> Any:
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_tiles_hold_every_point_within_a_centimetre():
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.uniform(-150, 150, (40_000, 3)), rng.normal(0, 20, (40_000, 3))]).astype(np.float32)
    points[:, 1] *= 0.3
    colors = np.arange(len(points), dtype=np.uint32).view(np.uint8).reshape(-1, 4)[:, :3]  # tells which point it is
    found = np.full(points.shape, np.nan)
    kinds = set()
    for tile in tiles(points, colors):
        rows = np.pad(tile.colors, ((0, 0), (0, 1))).copy().view(np.uint32).ravel()
        found[rows] = tile.points.astype(np.float64) + tile.centre
        kinds.add(tile.points.dtype.name)
    assert kinds == {"float16", "float32"}
    assert np.abs(found - points).max() < 0.008
    assert np.abs(points.astype(np.float16) - points).max() > 0.03  # what the tiles are for


def test_chunks_cover_a_cloud_without_gap():
    total, ends = 2_000_000, [0]
    while ends[-1] < total:
        ends.append(chunk_end(ends[-1], total))
    assert ends[1] == FIRST_POINTS and ends[-1] == total
    assert all(0 < b - a <= CHUNK_POINTS for a, b in itertools.pairwise(ends))
    assert chunk_end(0, 10) == 10


def test_first_points_are_a_fair_sample():
    line = np.zeros((50_000, 3), np.float32)
    line[:, 0] = np.linspace(0, 100, len(line))
    line[7] = np.nan
    cloud = shuffled(Cloud(line, np.array([1, 2, 3], np.uint8)))
    assert len(cloud.points) == len(cloud.colors) == len(line) - 1
    counts, _ = np.histogram(cloud.points[:1000, 0], bins=10, range=(0, 100))
    assert counts.min() > 60
    assert (shuffled(Cloud(line, np.array([1, 2, 3], np.uint8))).points == cloud.points).all()


def test_range_and_number_of_points():
    points = np.array([[10, 0, 0], [0, 0, -30], [50, 0, 0], [0, 90, 5]], np.float32)
    cloud = Cloud(points, np.zeros((4, 3), np.uint8))
    assert near(cloud, 20, 9).points.tolist() == points[[0, 3]].tolist()  # a square on the ground: height does not count
    assert near(cloud, 300, 3).points.tolist() == points[:3].tolist()


def cloud_of(frame: ViewerFrame, look: Look, name: str) -> Cloud:
    item = visible_layers(frame, look)[name].make()
    assert isinstance(item, Cloud)
    return item


def test_layers_switch_what_they_say(frame: ViewerFrame):
    everything = visible_layers(frame, Look())
    agents = [agent.key.agent for agent in frame.scene.agents]
    assert set(everything) == {*(f"lidar/{a}" for a in agents), *(f"axes/{a}" for a in agents), "boxes", "cameras"}
    for name in ("lidar", "boxes", "cameras", "axes"):
        less = visible_layers(frame, replace(Look(), **{name: False}))
        assert {layer.split("/")[0] for layer in everything.keys() - less.keys()} == {name}
    assert f"lidar/{agents[1]}" not in visible_layers(frame, Look(hidden=frozenset(agents[1:2])))
    assert (cloud_of(frame, Look(lidar_colors="agent"), f"lidar/{agents[1]}").colors == agent_color(1)).all()
    plain, marked = (cloud_of(frame, Look(lidar_colors=color), f"lidar/{agents[0]}") for color in ("height", "hidden"))
    magenta = (marked.colors == HIDDEN_COLOR).all(axis=1)
    assert np.array_equal(marked.points, plain.points) and 0 < magenta.mean() < 0.5
    assert np.array_equal(marked.colors[~magenta], plain.colors[~magenta])
    boxes = everything["boxes"].make()
    assert isinstance(boxes, Boxes) and boxes.labels == frame.scene.boxes.labels
    assert np.abs(cloud_of(frame, Look(max_range=20), f"lidar/{agents[0]}").points[:, [0, 2]]).max() <= 20
    positions = {agent: np.zeros((3, 3)) for agent in agents}
    assert "paths/" + agents[0] in visible_layers(frame, Look(paths=True), positions)
    assert "paths/" + agents[0] not in visible_layers(frame, Look(), positions)


def test_prediction_and_its_error(generated_root: Path, tmp_path: Path):
    key = Catalog(generated_root).first(Selection(splits=("validate",)))
    write_prediction(generated_root, tmp_path, main_agent_scene(key))
    catalog = Catalog(generated_root, tmp_path)
    assert catalog.first() == key  # not the data set's first: what there is a prediction of
    frame = load_frame(catalog, key)
    assert frame.prediction is not None
    in_its_images_colors = frame.prediction.cloud.colors
    assert (cloud_of(frame, Look(), "prediction").colors == in_its_images_colors).all()
    assert "predicted cameras" in visible_layers(frame, Look())
    without = visible_layers(frame, Look(prediction=False))
    assert "prediction" not in without and "predicted cameras" not in without
    assert not frame.has_error
    assert (cloud_of(frame, Look(error=True), "prediction").colors == in_its_images_colors).all()  # not measured yet
    frame.error()
    error = cloud_of(frame, Look(error=True, prediction=False), "prediction")
    assert frame.has_error and len(np.unique(error.colors, axis=0)) > 3


def test_only_what_changed_is_sent(frame: ViewerFrame):
    client, look = Client(), Look()
    browser, scene = Browser(client), client.scene
    browser.show(visible_layers(frame, look), frame, look)
    assert {"/boxes/lines", "/cameras/lines", f"/{LABELS}/{frame.scene.boxes.labels[0]}", f"/{IMAGES}/0"} <= set(scene.nodes)
    total = sum(len(cloud.points) for cloud in frame.scene.clouds)
    assert browser.points() == (total, total)
    scene.sent.clear()

    hidden = replace(look, boxes=False, lidar=False)
    browser.show(visible_layers(frame, hidden), frame, hidden)
    assert not scene.nodes["/boxes"].visible and not scene.nodes[f"/{LABELS}"].visible
    assert browser.points() == (0, 0)
    larger = replace(look, point_size=0.2)
    browser.show(visible_layers(frame, larger), frame, larger)
    assert scene.nodes["/boxes"].visible and scene.sent == []
    assert {node.point_size for node in scene.nodes.values() if node.kind == "add_point_cloud"} == {0.2}

    browser.show(visible_layers(frame, replace(look, lidar_colors="agent")), frame, look)
    assert scene.sent and all(name.startswith("/lidar/") for name in scene.sent)
    browser.clear()
    assert scene.nodes == {}


def test_nodes_of_the_last_frame_are_replaced_or_go(generated_root: Path):
    catalog = Catalog(generated_root)
    key = catalog.first()
    frames = [load_frame(catalog, replace(key, frame=name)) for name in catalog.frames(key.split, key.scenario, key.agent)]
    client, look = Client(), Look()
    browser = Browser(client)
    for frame in frames:
        browser.show(visible_layers(frame, look), frame, look)
    fresh = Client()
    Browser(fresh).show(visible_layers(frames[-1], look), frames[-1], look)
    assert set(client.scene.nodes) == set(fresh.scene.nodes)
    without = replace(look, boxes=False)
    browser.show(visible_layers(frames[0], without), frames[0], without)
    assert not any(name.startswith(("/boxes", f"/{LABELS}")) for name in client.scene.nodes)


def test_large_cloud_comes_in_chunks_and_its_first_one_can_be_shown_alone(frame: ViewerFrame):
    points = np.random.default_rng(0).uniform(-50, 50, (FIRST_POINTS + CHUNK_POINTS + 1, 3)).astype(np.float32)
    points[:, 1] = 0
    cloud = Cloud(points, np.zeros(points.shape, np.uint8), frame.scene.clouds[0].label)
    frame.scene = replace(frame.scene, clouds=(cloud,))
    client, look = Client(), Look()
    browser = Browser(client)
    browser.show(visible_layers(frame, look), frame, look)
    assert browser.points() == (FIRST_POINTS, len(points))
    assert [browser.refine(look) for _ in range(3)] == [True, True, False]
    assert browser.points() == (len(points), len(points))
    sizes = [len(node.args[0]) for node in client.scene.nodes.values() if node.kind == "add_point_cloud"]
    assert sum(sizes) == len(points)
    assert browser.bytes_sent == 9 * len(points)
    browser.show_fine(False)
    fine = [name for name, node in client.scene.nodes.items() if node.kind == "add_frame" and not node.visible]
    assert fine == [f"/lidar/{cloud.label}/fine"]
    browser.show_fine(True)
    assert client.scene.nodes[fine[0]].visible


def test_path_with_gaps_and_colours_of_lines(frame: ViewerFrame):
    agent = frame.scene.main.key.agent
    track = np.array([[0, 0, 0], [1, 0, 0], [np.nan] * 3, [3, 0, 0], [4, 0, 0.0]])
    positions = {a.key.agent: track for a in frame.scene.agents}
    client, look = Client(), Look(paths=True)
    Browser(client).show(visible_layers(frame, look, positions), frame, look)
    points, colors = client.scene.nodes[f"/paths/{agent}/lines"].args
    assert points.shape == colors.shape == (2, 2, 3) and np.isfinite(points).all()
    assert (colors == np.rint(255 * linear_from_srgb(agent_color(0) / 255))).all()  # sRGB would be drawn too pale


def test_a_clients_view_is_the_pictures():
    view = View.look_at((3, -8, -20), (1, 0, 5), fov_deg=50, width=1621, height=1080)
    client = Client()
    look_from(client, view)
    camera = client.camera
    assert np.allclose(camera.position, (3, -8, -20)) and np.isclose(camera.fov, np.deg2rad(50))
    forward = np.subtract(camera.look_at, camera.position)
    assert np.allclose(forward / np.linalg.norm(forward), view.world_from_camera[:3, 2])
    # viser says the same back as a quaternion, and with the window's size.
    camera.wxyz = quat_from_matrix(view.world_from_camera)[[3, 0, 1, 2]]
    camera.aspect = 1621 / 1080
    seen = view_of(client, Look())
    assert np.allclose(seen.world_from_camera, view.world_from_camera) and np.allclose(seen.intrinsics, view.intrinsics)
