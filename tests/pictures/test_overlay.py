"""Overlays lie where the slow, obvious computation says."""

from __future__ import annotations

import numpy as np
import pytest

from mapanything.geometry.camera import project
from mapanything.pictures.colors import depth_colors
from mapanything.pictures.overlay import (
    NEAR,
    box_segments,
    clip_near,
    clip_to_image,
    draw_boxes,
    draw_points,
    enlarge,
    project_points,
)
from mapanything.pictures.scenes import BOX_EDGES, Boxes

K = np.array([[300.0, 0, 159.5], [0, 310.0, 119.5], [0, 0, 1]])
GREY = np.full((240, 320, 3), 90, np.uint8)


def make_box(centre: tuple[float, float, float], half: tuple[float, float, float] = (1, 0.8, 2)) -> Boxes:
    pose = np.eye(4)
    c, s = np.cos(0.4), np.sin(0.4)
    pose[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    pose[:3, 3] = centre
    return Boxes(pose[None], np.array([half], float), ("7",), np.array([[255, 0, 0]], np.uint8))


def changed(image: np.ndarray) -> np.ndarray:
    """(N, 2) column and row of the pixels that differ from grey."""
    return np.argwhere((image != GREY).any(axis=2))[:, ::-1]


def test_a_point_is_drawn_at_its_projection():
    rng = np.random.default_rng(0)
    for _ in range(50):
        z = rng.uniform(0.2, 120)
        point = np.array([[rng.uniform(-0.5, 0.5) * z, rng.uniform(-0.36, 0.36) * z, z]])
        camera_from_points = np.eye(4)
        camera_from_points[:3, 3] = rng.normal(size=3) * 5
        image = draw_points(GREY, point - camera_from_points[:3, 3], camera_from_points, K, size=1)
        at = changed(image)
        assert len(at) == 1
        assert np.abs(at[0] - project(point, K)[0][0]).max() <= 0.5
        assert (image[at[0][1], at[0][0]] == depth_colors(point[:, 2])[0]).all()


def test_the_nearest_point_is_on_top():
    ray = np.array([[0.1, 0.05, 1.0]])
    depths = np.array([30.0, 4.0, 80.0, 12.0])
    image = draw_points(GREY, ray * depths[:, None], np.eye(4), K, size=5)
    pixels = image[changed(image)[:, 1], changed(image)[:, 0]]
    assert len(pixels) == 25
    assert (pixels == depth_colors(np.array([4.0]))).all()


def test_given_colours_follow_their_points():
    points = np.array([[0, 0, -1], [-1, 0, 5], [1, 0, 5.0]])
    colors = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]], np.uint8)
    image = draw_points(GREY, points, np.eye(4), K, colors=colors, size=1)
    assert image[120, 100].tolist() == [2, 2, 2]  # column 99.5, row 119.5: halves go up
    assert image[120, 220].tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    "point", [(0, 0, -5), (0, 0, 0), (0, 0, NEAR / 2), (100, 0, 5), (0, -100, 5), (np.nan, 0, 5), (0, 0, np.nan)]
)
def test_nothing_is_drawn_for_points_outside_the_view(point: tuple[float, float, float]):
    assert len(project_points(np.array([point], float), np.eye(4), K, 320, 240)[2]) == 0
    assert (draw_points(GREY, np.array([point], float), np.eye(4), K) == GREY).all()


def test_points_at_the_border_and_none_at_all():
    corner = np.array([[(0 - 159.5) / 300, (0 - 119.5) / 310, 1.0]]) * 9
    assert {tuple(p) for p in changed(draw_points(GREY, corner, np.eye(4), K, size=3))} == {
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    }
    assert (draw_points(GREY, np.zeros((0, 3)), np.eye(4), K) == GREY).all()


def test_clipping_at_the_near_plane_equals_dense_sampling():
    rng = np.random.default_rng(1)
    starts, ends = rng.normal(size=(2, 300, 3)) * 2
    got_starts, got_ends, visible = clip_near(starts, ends, 0.5)
    share = np.linspace(0, 1, 4001)[:, None]
    for i in range(len(starts)):
        samples = starts[i] + share * (ends[i] - starts[i])
        kept = samples[samples[:, 2] >= 0.5]
        assert visible[i] == (len(kept) > 0) or abs(max(starts[i, 2], ends[i, 2]) - 0.5) < 1e-3
        if len(kept):
            assert np.abs(got_starts[i] - kept[0]).max() < 5e-3
            assert np.abs(got_ends[i] - kept[-1]).max() < 5e-3
    assert got_starts[visible, 2].min() >= 0.5
    assert got_ends[visible, 2].min() >= 0.5


def test_clipping_to_the_image_equals_dense_sampling():
    rng = np.random.default_rng(2)
    share = np.linspace(0, 1, 20001)[:, None]
    for _ in range(200):
        start, end = rng.uniform(-300, 700, (2, 2))
        samples = start + share * (end - start)
        inside = ((samples >= 0) & (samples <= [320, 240])).all(axis=1)
        got = clip_to_image(start, end, 320, 240, margin=0)
        assert (got is not None) == inside.any()
        if got is not None:
            assert np.abs(got[0] - samples[inside][0]).max() < 0.2
            assert np.abs(got[1] - samples[inside][-1]).max() < 0.2
    assert clip_to_image(np.array([5.0, 300]), np.array([9.0, 300]), 320, 240) is None


def slow_segments(boxes: Boxes) -> list[list[np.ndarray]]:
    """The visible part of every edge and tick by walking along it in small steps."""
    out = []
    for corners, tick in zip(boxes.corners(), boxes.headings()):
        points = np.concatenate([corners, tick])
        for a, b in [*BOX_EDGES.tolist(), [8, 9]]:
            samples = points[a] + np.linspace(0, 1, 200001)[:, None] * (points[b] - points[a])
            kept = samples[samples[:, 2] >= NEAR]
            if len(kept):
                out.append([project(kept[0], K)[0], project(kept[-1], K)[0]])
    return out


@pytest.mark.parametrize("centre", [(0, 0, 8), (0.5, 0.2, 1.5), (1, 0, 0), (-1, 1, -0.5)])
def test_box_edges_equal_a_slow_reference(centre: tuple[float, float, float]):
    boxes = make_box(centre)
    got, owner = box_segments(boxes, np.eye(4), K)
    want = np.array(slow_segments(boxes))
    assert got.shape == want.shape
    assert (owner == 0).all()
    # At the near plane a step of 2e-5 of an edge is up to a few tenths of a pixel.
    assert np.abs(got - want).max() < 0.5 + 1e-4 * np.abs(want).max()


def test_edges_are_drawn_where_they_project_and_nothing_else_changes():
    boxes = make_box((0.3, 0.1, 9))
    image = draw_boxes(GREY, boxes, np.eye(4), K, labels=False)
    red = np.argwhere((image[..., 0] > 110) & (image[..., 1] < 80))[:, ::-1]
    samples = np.concatenate([a + np.linspace(0, 1, 400)[:, None] * (b - a) for a, b in box_segments(boxes, np.eye(4), K)[0]])
    gap = np.linalg.norm(red[:, None] - samples[None], axis=2)
    assert gap.min(axis=1).max() <= 2.0  # every red pixel is near an edge
    assert gap.min(axis=0).max() <= 1.5  # and every part of an edge has its red pixel
    at = changed(image)
    assert np.linalg.norm(at[:, None] - samples[None], axis=2).min(axis=1).max() <= 3.0  # outline and all


def test_a_box_behind_the_camera_draws_nothing():
    boxes = make_box((0, 0, -8))
    assert len(box_segments(boxes, np.eye(4), K)[0]) == 0
    assert (draw_boxes(GREY, boxes, np.eye(4), K) == GREY).all()
    none = boxes.select(np.zeros(1, bool))
    assert (draw_boxes(GREY, none, np.eye(4), K) == GREY).all()


def test_a_box_around_the_camera_and_beside_it_is_cut_not_mirrored():
    pose = np.eye(4)
    pose[0, 3] = 1.2
    box = Boxes(pose[None], np.array([[0.5, 0.8, 6.0]]), ("7",), np.array([[255, 0, 0]], np.uint8))
    image = draw_boxes(GREY, box, np.eye(4), K, labels=False)
    at = changed(image)
    assert len(at)
    assert at[:, 0].min() > 160  # all of it lies to the right of the camera


def test_enlarging_keeps_a_point_on_its_place():
    image, k = enlarge(GREY, K, 960, 720)
    assert image.shape == (720, 960, 3)
    point = np.array([1.0, -0.5, 7.0])
    small, large = project(point, K)[0], project(point, k)[0]
    assert np.allclose((small + 0.5) * 3, large + 0.5)
