"""A layer on or off changes what it should and nothing else; sheets, comparisons and depth pictures say what they show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mapanything.geometry.camera import project
from mapanything.geometry.rigid import invert, transform
from mapanything.opv2v.layout import scan
from mapanything.pictures import curves
from mapanything.pictures.canvas import axes_at, figure_image, new_figure, png_bytes
from mapanything.pictures.colors import LIGHT, PREDICTED, TRUE, agent_color, depth_colors
from mapanything.pictures.comparison import compare, draw_comparison
from mapanything.pictures.curves import draw_run
from mapanything.pictures.depth import DepthView, draw_depths, paint
from mapanything.pictures.picture import (
    LAYERS,
    Picture,
    cloud_picture,
    draw_panel,
    draw_sheet,
    draw_view,
    rings_of,
    scene_picture,
)
from mapanything.pictures.plots import BIRDS_EYE, LEFT, POSE_SIZE, TOP, draw_birds_eye
from mapanything.pictures.scenes import (
    Boxes,
    Cloud,
    Rings,
    Trajectory,
    build_scene,
    read_positions,
    read_timestamp,
    trajectories,
)
from mapanything.pictures.viewpoints import chase_view

SIZE = (320, 200)


@pytest.fixture
def picture(sample_root: Path) -> Picture:
    folders = list(scan(sample_root))
    folders = [f for f in folders if f.scenario == folders[0].scenario]
    frames = list(folders[0].frames)
    agents = read_timestamp(folders, folders[0].agent, frames[0])
    scene = build_scene(agents, max_range=40)
    return scene_picture(replace(scene, paths=trajectories(agents, read_positions(folders, frames))), 40.0, "title")


@pytest.mark.parametrize("view", ["top", "chase", "camera0"])
def test_a_hidden_layer_takes_its_pixels_with_it_and_no_others(view: str, picture: Picture):
    full = draw_panel(picture, view, SIZE, 2.0).image
    inside = view.startswith("camera")
    for layer in LAYERS:
        alone = picture.without(set(LAYERS) - {layer})
        without = draw_panel(picture.without([layer]), view, SIZE, 2.0).image
        with_it, none = (draw_panel(shown, view, SIZE, 2.0).image for shown in (alone, picture.without(LAYERS)))
        drawn = (with_it != none).any(-1)
        changed = (full != without).any(-1)
        # A few: where a circle and a LiDAR point lie equally far away, the depth buffer's rounding decides.
        assert (changed & ~drawn).sum() <= 5, layer
        if not picture.layers.get(layer):
            assert layer == "ground_truth"
        elif not (inside or layer == "paths"):  # paths of two frames are short; frusta and circles are no use from inside
            assert changed.any(), layer


def test_trajectories_pass_through_the_vehicles(sample_root: Path):
    folders = list(scan(sample_root))
    folders = [f for f in folders if f.scenario == folders[0].scenario]
    frames = list(folders[0].frames)
    del folders[1].frames[frames[1]]
    positions = read_positions(folders, frames)
    agents = read_timestamp(folders, folders[0].agent, frames[0])
    paths = trajectories(agents, positions)
    for i, (path, axes) in enumerate(zip(paths, build_scene(agents).axes, strict=True)):
        assert path.label == axes.label and (path.color == agent_color(i)).all()
        assert np.allclose(path.points[0], axes.world_from_axes[:3, 3])
    assert np.isfinite(paths[0].points).all() and np.isnan(paths[1].points[1]).all()


def test_lines_of_paths_and_rings():
    points, edges, colors = Trajectory(np.arange(12.0).reshape(4, 3), "a", agent_color(0)).lines()
    assert edges.tolist() == [[0, 1], [1, 2], [2, 3]] and len(colors) == 3 and len(points) == 4
    assert len(Trajectory(np.zeros((0, 3)), "a", agent_color(0)).lines()[1]) == 0
    points, edges, _ = Rings((10.0, 20.0), ground=1.5).lines()
    assert (points[:, 1] == 1.5).all()
    assert np.allclose(np.unique(np.hypot(points[:, 0], points[:, 2]).round(6)), [10, 20])
    assert (np.bincount(edges.ravel()) == 2).all()  # closed
    assert len(Rings(()).lines()[1]) == 0
    assert rings_of(60.0, 2.0).radii == (10, 20, 30, 40, 50, 60) and rings_of(130.0, 2.0).radii == (20, 40, 60, 80, 100, 120)


def test_sheet_and_single_view_hold_what_they_should(picture: Picture):
    sheet = figure_image(draw_sheet(picture, 1.5))
    assert sheet.shape[1] == 1920 and sheet.std() > 15
    one = figure_image(draw_view(picture, "chase", 1.5))
    assert one.shape[1] == 1320
    assert png_bytes(draw_view(picture, "top", 1.5)) == png_bytes(draw_view(picture, "top", 1.5))


def test_clouds_alone_and_empty_ones():
    for points in (np.zeros((0, 3)), np.array([[np.nan, 0, 0], [1, 0, 5]])):
        picture = cloud_picture([Cloud(points, PREDICTED, "mine")], 30.0, 1.9, "t")
        assert figure_image(draw_sheet(picture, 1.5)).shape[1] == 1920
        assert figure_image(draw_view(picture, "fit", 1.5)).shape[1] == 1320


def marks_of(figure: object) -> str:
    return "\n".join(text.get_text() for text in figure.texts)  # type: ignore[attr-defined]


def test_comparison_says_the_figures_and_tells_both_apart():
    rng = np.random.default_rng(0)
    truth = np.column_stack([rng.uniform(-8, 8, 400), np.full(400, 1.0), rng.uniform(4, 30, 400)])
    predicted = np.concatenate([truth - np.array([0, 0.25, 0]), [[np.nan, 0, 0]]])
    comparison = compare(Cloud(predicted, np.array([200, 200, 200], np.uint8)), truth)
    assert np.abs(comparison.to_truth - 0.25).max() < 0.25 and len(comparison.to_truth) == 400
    view = chase_view(300, 200, point_size=3.0, background=(0, 0, 0))
    figure = draw_comparison(comparison, "t", view, 30.0)
    words = marks_of(figure)
    assert f"median {np.median(comparison.to_truth):.2f} m" in words and "prediction: 400 points" in words
    image = figure_image(figure)
    alone = figure_image(draw_comparison(compare(comparison.prediction, truth[:0]), "t", view, 30.0))
    panel = (slice(52 + 38 + 200 + 38, 52 + 2 * (38 + 200)), slice(20, 320))  # over each other
    for color, where in ((PREDICTED, image), (TRUE, image), (PREDICTED, alone)):
        assert (where[panel] == color).all(-1).any()
    assert not (alone[panel] == TRUE).all(-1).any()
    assert "true points to the prediction: no points" in marks_of(
        draw_comparison(compare(comparison.prediction, truth[:0]), "t", view, 30.0)
    )


@pytest.mark.parametrize("from_above", [True, False])
def test_two_empty_clouds_are_compared_without_complaint(from_above: bool):
    none = np.zeros((0, 3))
    view = chase_view(100, 80)
    assert figure_image(draw_comparison(compare(Cloud(none, PREDICTED), none), "t", view, 30.0, from_above=from_above)).size


def test_sparse_depth_is_dots_where_it_is_known_the_smallest_on_top():
    depth = np.zeros((60, 100), np.float32)
    depth[30, 50], depth[30, 51], depth[0, 0] = 20, 4, 9
    image = np.full((60, 100, 3), 200, np.uint8)
    painted = paint(depth, depth > 0, image, depth_colors, 100, dense=False)
    grey = painted[50, 50]
    assert (grey == int(200 * 0.35)).all()
    at = {tuple(p) for p in np.argwhere((painted != grey).any(-1)).tolist()}
    assert at == {(v, u) for v in (29, 30, 31) for u in (49, 50, 51, 52)} | {(0, 0), (0, 1), (1, 0), (1, 1)}
    near, far = depth_colors(np.array([4.0, 20.0]))
    assert (painted[30, 50] == near).all() and (painted[30, 49] == far).all()
    large = paint(depth, depth > 0, image, depth_colors, 300, dense=False)
    assert (large[91, 154] == near).all()  # pixel centres stay where they are


def test_dense_depth_is_shown_pixel_for_pixel_and_unknown_is_black():
    depth = np.random.default_rng(0).uniform(2, 80, (30, 50)).astype(np.float32)
    depth[:3] = 0
    painted = paint(depth, depth > 0, np.zeros((30, 50, 3), np.uint8), depth_colors, 50, dense=True)
    assert (painted[:3] == 0).all() and (painted[3:].reshape(-1, 3) == depth_colors(depth[3:].ravel())).all()


def test_from_above_no_vehicles_number_covers_a_cameras(generated_root: Path):
    folder = next(iter(scan(generated_root)))
    scene = build_scene(read_timestamp([folder], folder.agent, next(iter(folder.frames))))
    places = np.tile(np.eye(4), (12, 1, 1))
    places[:, [0, 2], 3] = [(x, z) for x in (-7, 7) for z in range(-9, 9, 3)]  # left and right of the main agent
    boxes = Boxes(places, np.full((12, 3), 1.0), tuple(str(700 + i) for i in range(12)), np.full((12, 3), 255, np.uint8))
    figure = new_figure(*POSE_SIZE)
    draw_birds_eye(axes_at(figure, LEFT, TOP, BIRDS_EYE, BIRDS_EYE), replace(scene, boxes=boxes), 60.0)
    figure_image(figure)
    texts = [text for axes in figure.axes for text in axes.texts]
    digits, numbers = ([text.get_window_extent() for text in texts if text.get_fontsize() == size] for size in (8, 9))
    assert len(digits) == 4 and len(numbers) > 6
    assert not any(digit.overlaps(number) for digit in digits for number in numbers)


def test_a_prediction_is_drawn_dense_however_little_of_it_is_trusted():
    image = np.full((30, 50, 3), 200, np.uint8)
    lines, predicted = np.zeros((30, 50), np.float32), np.zeros((30, 50), np.float32)
    lines[::3], predicted[:2, :5] = 10, 12
    figure = draw_depths("t", [DepthView("a", image, lines, predicted)])
    _, true, trusted, difference = (shown.get_array() for shown in figure.images)
    assert (trusted[-1] == 0).all()  # untrusted: black, no darkened image
    assert (true[-1, 0] == int(200 * 0.35)).all() and (difference[-1, 0] == int(200 * 0.35)).all()


def test_depth_sheet_compares_where_both_are_known():
    image = np.zeros((30, 50, 3), np.uint8)
    true = np.full((30, 50), 10.0, np.float32)
    predicted = np.full((30, 50), 12.0, np.float32)
    predicted[:15] = 0
    words = marks_of(draw_depths("t", [DepthView("a", image, true, predicted)]))
    assert "750 pixels compared: median difference 2.00 m" in words and "RMSE 2.00 m, AbsRel 0.200" in words
    assert "no pixel" in marks_of(draw_depths("t", [DepthView("a", image, true, predicted * 0)]))
    assert "compared" not in marks_of(draw_depths("t", [DepthView("a", image, true), DepthView("b", image, None)]))


def test_run_curves_take_what_the_log_holds():
    entries = [
        {"epoch": e, "train_loss": 2.0 / e, "validate_loss": float("nan"), "train_pose": 1, "best": True} for e in (1, 2)
    ]
    for log, picture in ((entries, None), ([], None), (entries, np.zeros((40, 80, 3), np.uint8))):
        assert draw_run("name", log, picture).startswith(b"\x89PNG")


def test_run_curves_are_of_all_losses_and_nothing_else_with_legible_numbers(monkeypatch: pytest.MonkeyPatch):
    terms = ["loss", *(f"term{i:02}" for i in range(10))]
    entries = [{"epoch": e, "validate_seconds": 1.0, "train_normal_usable": 0.9, "seconds": 3.0} for e in range(1, 4)]
    for entry in entries:
        entry |= {f"{kind}_{term}": 30.0 ** -entry["epoch"] for term in terms for kind in ("train", "validate")}
    figures = []
    monkeypatch.setattr(curves, "png_bytes", figures.append)
    for log in (entries, entries[:1]):
        draw_run("name", log)
        figure_image(figures[-1])
        assert [axes.get_title() for axes in figures[-1].axes] == terms
        for axes in figures[-1].axes:
            ticks = [*axes.get_yticklabels(which="both"), *axes.get_xticklabels(which="both")]
            assert {tick.get_color() for tick in ticks if tick.get_text()} == {LIGHT}
            low, high = axes.get_xlim()
            shown = [tick.get_text() for tick in axes.get_xticklabels() if low <= tick.get_position()[0] <= high]
            assert shown == [str(entry["epoch"]) for entry in log]


def test_names_are_where_their_points_are(picture: Picture):
    panel = draw_panel(picture, "chase", SIZE, 1.0)
    assert panel.view is not None
    agents = [name for name in panel.names if name.text.startswith("agent")]
    assert len(agents) == 2
    uv, z = project(transform(invert(panel.view.world_from_camera), agents[0].point[None]), panel.view.intrinsics)
    assert z[0] > 0 and ((uv >= 0) & (uv < SIZE)).all()
