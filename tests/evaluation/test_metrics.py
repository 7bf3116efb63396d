"""Every metric against a plain reference, on a predictor without fault, and on ones with a known fault."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapanything.evaluation import metrics, statistics
from mapanything.evaluation.scene import COLUMNS, POSE_COLUMNS, Options, Truth, measure
from mapanything.geometry.rigid import invert, rotation_angle_deg, transform
from tests.helpers.known_errors import HEIGHT, WIDTH, make_truth, moved, perfect, pose, scaled, turn_deg

ZERO = [
    "pose_translation_m",
    "pose_rotation_deg",
    "pose_fit_translation_m",
    "pose_fit_rotation_deg",
    "scale_error",
    "abs_metric_scaling_factor_minus_1",
    "depth_rmse_m",
    "depth_mae_m",
    "depth_abs_rel",
    "depth_scaled_rmse_m",
    "depth_scaled_mae_m",
    "depth_scaled_abs_rel",
    "chamfer_m",
    "chamfer_pred_to_true_m",
    "chamfer_true_to_pred_m",
    "filtered_chamfer_m",
    "filtered_chamfer_pred_to_true_m",
    "filtered_chamfer_true_to_pred_m",
]
ONE = [
    "auc_5",
    "auc_10",
    "auc_20",
    "auc_5_vggt",
    "auc_10_vggt",
    "auc_20_vggt",
    "pose_fit_scale",
    "scale_ratio",
    "depth_delta_1_25",
    "depth_scaled_delta_1_25",
    "depth_median_scale",
    "bev_iou",
    "filtered_bev_iou",
]


def values_of(prediction, truth, options=None):
    return measure(prediction, truth, options or Options(), np.random.default_rng(0)).values


@pytest.fixture
def truth() -> Truth:
    return make_truth()


# The whole of a scene


@pytest.mark.parametrize("views", [2, 3, 4, 8])
def test_perfect_predictor_is_perfect(views):
    truth = make_truth(views, views)
    # More points than may look for their neighbour: still exact, since all of them can be one.
    measured = measure(perfect(truth), truth, Options(chamfer_points=50), np.random.default_rng(0))
    for name in ZERO:
        assert measured.values[name] == pytest.approx(0, abs=2e-6 if "rotation" in name else 1e-12), name
    for name in ONE:
        assert measured.values[name] == pytest.approx(1, abs=1e-7 if "auc" in name else 1e-12), name
    assert (
        measured.values["num_points"]
        == measured.values["num_points_true"]
        == measured.values["num_pixels"]
        == truth.valid.sum()
    )
    assert (
        set(measured.values) == {*ZERO, *ONE, "num_points", "num_points_true", "num_pixels", "mask_fraction"} == set(COLUMNS)
    )
    for kind, group, figures in measured.groups:
        for name, value in figures.items():
            if not math.isnan(value) and name != "num_pixels":
                assert value == pytest.approx(1 if "delta" in name else 0, abs=2e-6), (kind, group, name)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 1.5, 4.0])
def test_known_scale_error_is_reported(truth, factor):
    values = values_of(scaled(perfect(truth), factor), truth)
    baselines = np.linalg.norm((invert(truth.lidar_from_camera[0]) @ truth.lidar_from_camera)[1:, :3, 3], axis=1)
    depth = truth.points_cam[truth.valid][:, 2].astype(np.float64)
    expected = {
        "scale_ratio": factor,
        "scale_error": abs(factor - 1),
        "abs_metric_scaling_factor_minus_1": abs(factor - 1),
        "pose_fit_scale": 1 / factor,
        "pose_translation_m": abs(factor - 1) * baselines.mean(),
        "depth_abs_rel": abs(factor - 1),
        "depth_mae_m": abs(factor - 1) * depth.mean(),
        "depth_rmse_m": abs(factor - 1) * math.sqrt((depth**2).mean()),
        "depth_delta_1_25": float(0.8 < factor < 1.25),
        "depth_median_scale": 1 / factor,
        **dict.fromkeys(("pose_fit_translation_m", "pose_fit_rotation_deg", "depth_scaled_rmse_m", "depth_scaled_abs_rel"), 0),
        **dict.fromkeys(("auc_5", "auc_20_vggt", "depth_scaled_delta_1_25"), 1),  # directions do not know the scale
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-6, abs=1e-5), name
    assert values["chamfer_m"] > 0.1


@pytest.mark.parametrize("degrees", [0.001, 3.0, 7.0, 90.0, 179.0])
def test_known_rotation_error_is_reported(truth, degrees):
    measured = measure(moved(perfect(truth), 2, turn_deg(degrees)), truth, Options(), np.random.default_rng(0))
    assert measured.values["pose_rotation_deg"] == pytest.approx(degrees / 3, rel=1e-6)
    assert measured.values["pose_translation_m"] == pytest.approx(0, abs=1e-12)
    # Three of six pairs have this camera. Seen from it (it is the first of one pair), the other's direction turns as well,
    # but by no more than itself.
    for threshold in metrics.AUC_THRESHOLDS_DEG:
        one = max(0, 1 - degrees / threshold)
        assert measured.values[f"auc_{threshold}"] == pytest.approx((3 + 3 * one) / 6, abs=1e-7)
    groups = {(kind, group): figures for kind, group, figures in measured.groups}
    assert groups["camera", "camera2"]["pose_rotation_deg"] == pytest.approx(degrees, rel=1e-6)
    assert groups["role", "other 1"]["pose_rotation_deg"] == pytest.approx(degrees / 2, rel=1e-6)
    assert groups["agent", "641"]["pose_rotation_deg"] == pytest.approx(0, abs=2e-6)
    assert math.isnan(groups["camera", "camera0"]["pose_rotation_deg"])  # view 0 is right by definition


def test_known_translation_error_is_reported(truth):
    change = np.eye(4)
    change[:3, 3] = [0.3, 0.0, 0.4]
    values = values_of(moved(perfect(truth), 1, change), truth)
    assert values["pose_translation_m"] == pytest.approx(0.5 / 3)
    assert values["pose_rotation_deg"] == pytest.approx(0, abs=2e-6)
    assert 0 < values["pose_fit_translation_m"] < 0.5


def test_known_depth_error_is_reported(truth):
    predicted = perfect(truth)
    points = predicted.points_cam.copy()
    points[..., 2] += 1.0
    points[1, ..., 2] += 1.0  # this view is 2 m off
    measured = measure(replace(predicted, points_cam=points), truth, Options(), np.random.default_rng(0))
    off = np.where(np.nonzero(truth.valid)[0] == 1, 2.0, 1.0)
    depth = truth.points_cam[truth.valid][:, 2].astype(np.float64)
    assert measured.values["depth_mae_m"] == pytest.approx(off.mean(), rel=1e-6)
    assert measured.values["depth_rmse_m"] == pytest.approx(math.sqrt((off**2).mean()), rel=1e-6)
    assert measured.values["depth_abs_rel"] == pytest.approx((off / depth).mean(), rel=1e-6)
    groups = {(kind, group): figures for kind, group, figures in measured.groups}
    assert groups["camera", "camera1"]["depth_mae_m"] == pytest.approx(2, rel=1e-6)
    assert groups["camera", "camera3"]["depth_mae_m"] == pytest.approx(1, rel=1e-6)
    distance = np.linalg.norm(truth.points_cam[truth.valid].astype(np.float64), axis=1)
    for name, low, high in (("0-10 m", 0, 10), ("20-40 m", 20, 40), ("80+ m", 80, np.inf)):
        inside = (distance >= low) & (distance < high)
        assert groups["distance", name]["num_pixels"] == inside.sum() > 0
        assert groups["distance", name]["depth_mae_m"] == pytest.approx(off[inside].mean(), rel=1e-6)


def test_where_the_network_puts_its_world_does_not_matter(truth):
    rng = np.random.default_rng(1)
    predicted = moved(scaled(perfect(truth), 1.1), 2, turn_deg(5))
    other = replace(predicted, view0_from_camera=invert(pose(rng)) @ predicted.view0_from_camera)
    other = replace(other, view0_from_camera=invert(other.view0_from_camera[0]) @ other.view0_from_camera)
    a, b = values_of(predicted, truth), values_of(other, truth)
    assert a == pytest.approx(b, rel=1e-6, abs=1e-7)


def test_mask_does_not_hide_wrong_depths_but_cleans_the_cloud(truth):
    predicted = perfect(truth)
    points = predicted.points_cam.copy()
    wrong = np.zeros_like(truth.valid)
    wrong[:, 0] = truth.valid[:, 0]
    points[wrong] *= 10
    shown = values_of(replace(predicted, points_cam=points), truth)
    hidden = values_of(replace(predicted, points_cam=points, mask=truth.valid & ~wrong), truth)
    assert hidden["depth_abs_rel"] == shown["depth_abs_rel"] > 0.1
    assert hidden["chamfer_pred_to_true_m"] < 1e-12
    assert shown["chamfer_pred_to_true_m"] > 1


def test_lidar_can_be_the_true_cloud(truth):
    cloud = np.random.default_rng(2).uniform(-20, 20, (500, 3))
    values = values_of(perfect(truth), replace(truth, cloud=cloud))
    assert values["num_points_true"] == 500
    assert values["depth_abs_rel"] == 0
    ours = np.concatenate([transform(p, c[ok]) for p, c, ok in zip(truth.lidar_from_camera, truth.points_cam, truth.valid)])
    assert values["chamfer_true_to_pred_m"] == pytest.approx(brute_force(cloud, ours).mean())


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1), st.sampled_from(["nan", "inf", "zero", "huge", "none", "backwards"]))
def test_nothing_odd_crashes_or_warns(views, seed, kind):
    rng = np.random.default_rng(seed)
    truth = make_truth(seed % 1000, views)
    if rng.random() < 0.3:
        truth = replace(truth, valid=np.zeros_like(truth.valid))
    predicted = perfect(truth)
    points, poses = predicted.points_cam.copy(), predicted.view0_from_camera.copy()
    where = rng.random(points.shape[:3]) < rng.choice([0.2, 1.0])
    change = {"nan": np.nan, "inf": np.inf, "zero": 0.0, "huge": 1e30, "none": 5.0, "backwards": -3.0}[kind]
    points[where] = change
    if rng.random() < 0.5:
        poses[rng.integers(views)] = np.nan if kind == "nan" else 1e20 if kind == "huge" else 0.0
    mask = np.isfinite(points).all(-1) & (rng.random(points.shape[:3]) < rng.choice([0.0, 0.5, 1.0]))
    predicted = replace(predicted, points_cam=points, view0_from_camera=poses, mask=mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = measure(predicted, truth, Options(), np.random.default_rng(0))
    assert set(measured.values) == set(COLUMNS)
    for name, value in measured.values.items():
        assert isinstance(value, float), name
        if "auc" in name or "iou" in name or "delta" in name:
            assert math.isnan(value) or 0 <= value <= 1, name
        elif "scale" not in name:
            assert math.isnan(value) or value >= 0, name


def test_values_where_nothing_can_be_measured(truth):
    one = make_truth(views=1)
    values = values_of(perfect(one), one)
    for name in COLUMNS:
        assert math.isnan(values[name]) == (name.startswith(("pose", "auc"))), name

    unknown = replace(truth, valid=np.zeros_like(truth.valid))
    values = values_of(replace(perfect(truth)), unknown)
    for name in COLUMNS:
        nothing = name.startswith(("depth", "scale", "chamfer", "filtered", "bev"))
        assert math.isnan(values[name]) == nothing, name

    values = values_of(replace(perfect(truth), mask=np.zeros_like(truth.valid)), truth)
    assert values["bev_iou"] == values["num_points"] == values["depth_abs_rel"] == 0
    assert math.isnan(values["chamfer_m"])

    far = np.eye(4)
    far[0, 3] = 1e4
    cloud = transform(far, np.random.default_rng(0).uniform(-20, 20, (50, 3)))
    values = values_of(perfect(truth), replace(truth, cloud=cloud))
    assert values["bev_iou"] == 0
    assert values["chamfer_m"] > 9000
    assert math.isnan(values["filtered_chamfer_m"])

    broken = replace(perfect(truth), points_cam=np.full_like(truth.points_cam, np.nan), mask=np.zeros_like(truth.valid))
    values = values_of(replace(broken, view0_from_camera=np.full((4, 4, 4), np.nan)), truth)
    assert values["depth_delta_1_25"] == values["auc_5"] == values["bev_iou"] == 0
    assert math.isnan(values["pose_translation_m"]) and math.isnan(values["depth_rmse_m"])


# Poses


def test_relative_pose_errors_are_those_of_a_loop():
    rng = np.random.default_rng(3)
    a, b = np.stack([pose(rng) for _ in range(6)]), np.stack([pose(rng) for _ in range(6)])
    translation, rotation = metrics.relative_pose_errors(a, b)
    for i in range(1, 6):
        p, t = np.linalg.inv(a[0]) @ a[i], np.linalg.inv(b[0]) @ b[i]
        assert translation[i - 1] == pytest.approx(np.linalg.norm(p[:3, 3] - t[:3, 3]))
        cosine = (np.trace(p[:3, :3].T @ t[:3, :3]) - 1) / 2
        assert rotation[i - 1] == pytest.approx(np.rad2deg(np.arccos(cosine)))


@pytest.mark.parametrize("views", [2, 3, 4, 9])
@pytest.mark.parametrize("layout", ["any", "plane", "line", "place"])
def test_similarity_is_found_again(views, layout):
    rng = np.random.default_rng(views)
    true = np.stack([pose(rng) for _ in range(views)])
    true[:, :3, 3] *= {"any": [1, 1, 1], "plane": [1, 0, 1], "line": [0, 0, 1], "place": [0, 0, 0]}[layout]
    true = pose(rng) @ true
    factor = 1.0 if layout == "place" else 2.5
    known = metrics.Similarity(factor, pose(rng)[:3, :3], np.array([1.0, 2.0, 3.0]))
    predicted = known.poses(true)
    fit = metrics.fit_similarity(predicted, true)
    assert fit.scale == pytest.approx(1 / factor)
    np.testing.assert_allclose(fit.rotation, known.rotation.T, atol=1e-9)
    assert np.linalg.det(fit.rotation) == pytest.approx(1)
    translation, rotation = metrics.fitted_pose_errors(predicted, true)
    assert translation.max() < 1e-9 and rotation.max() < 1e-5


def test_similarity_is_the_best_one():
    rng = np.random.default_rng(4)
    true = np.stack([pose(rng) for _ in range(5)])
    predicted = true.copy()
    predicted[:, :3, 3] = 0.3 * predicted[:, :3, 3] @ pose(rng)[:3, :3].T + rng.normal(size=(5, 3))
    fit = metrics.fit_similarity(predicted, true)

    def cost(s, r, t):
        return np.square(s * predicted[:, :3, 3] @ r.T + t - true[:, :3, 3]).sum()

    best = cost(fit.scale, fit.rotation, fit.translation)
    for _ in range(200):
        r = fit.rotation @ turn_deg(rng.normal(), int(rng.integers(3)))[:3, :3]
        assert cost(fit.scale * np.exp(0.01 * rng.normal()), r, fit.translation + 0.01 * rng.normal(size=3)) >= best


def test_mirrored_rig_is_not_fitted_by_a_mirror():
    rng = np.random.default_rng(5)
    true = np.stack([pose(rng) for _ in range(6)])
    mirrored = true.copy()
    mirrored[:, 0, 3] *= -1
    fit = metrics.fit_similarity(mirrored, true)
    assert np.linalg.det(fit.rotation) == pytest.approx(1)
    assert metrics.fitted_pose_errors(mirrored, true)[0].mean() > 0.1


@pytest.mark.parametrize("fold", [False, True])
def test_pair_errors_are_those_of_a_loop(fold):
    rng = np.random.default_rng(6)
    a, b = np.stack([pose(rng) for _ in range(5)]), np.stack([pose(rng) for _ in range(5)])
    expected = []
    for i in range(5):
        for j in range(i + 1, 5):
            p, t = np.linalg.inv(a[i]) @ a[j], np.linalg.inv(b[i]) @ b[j]
            cosine = p[:3, 3] @ t[:3, 3] / np.linalg.norm(p[:3, 3]) / np.linalg.norm(t[:3, 3])
            angle = np.rad2deg(np.arccos(abs(cosine) if fold else cosine))
            expected.append(max(rotation_angle_deg(p, t), angle))
    np.testing.assert_allclose(metrics.pair_errors_deg(a, b, fold=fold), expected)


def test_pairs_without_a_baseline():
    rng = np.random.default_rng(7)
    true = np.stack([pose(rng) for _ in range(2)])
    together = true.copy()
    together[:, :3, 3] = 0
    turned = together.copy()
    turned[1] = turned[1] @ turn_deg(8)
    assert metrics.pair_errors_deg(turned, together) == pytest.approx(8)  # truly in one place: the rotation alone
    assert metrics.pair_errors_deg(true, together) == pytest.approx(0, abs=1e-5)
    assert metrics.pair_errors_deg(together, true) == pytest.approx(90)


@given(st.lists(st.floats(0, 180), max_size=30), st.sampled_from([5, 10, 20]))
def test_auc_is_the_area_below_the_recall_curve(errors, threshold):
    errors = np.array(errors)
    if not len(errors):
        assert math.isnan(metrics.auc(errors, threshold))
        return
    steps = np.linspace(0, threshold, 4001)
    recall = (errors[None] <= ((steps[:-1] + steps[1:]) / 2)[:, None]).mean(axis=1)
    assert metrics.auc(errors, threshold) == pytest.approx(recall.mean(), abs=1e-3)
    # VGGT's own code: a histogram of whole degrees, cumulated.
    histogram, _ = np.histogram(errors, bins=np.arange(threshold + 1))
    vggt = np.mean(np.cumsum(histogram / len(errors)))
    on_the_edge = (errors == threshold).any()  # its last bin is closed
    if not on_the_edge:
        assert metrics.auc_whole_degrees(errors, threshold) == pytest.approx(vggt)
    assert 0 <= metrics.auc_whole_degrees(errors, threshold) - metrics.auc(errors, threshold) <= 1 / threshold + 1e-12


# Depth


@given(st.lists(st.tuples(st.floats(-5, 500), st.floats(0.1, 500)), min_size=1, max_size=40))
def test_depth_errors_are_those_of_a_loop(pairs):
    p, t = (np.array(column) for column in zip(*pairs))
    found = metrics.depth_errors(p, t)
    n = len(pairs)
    assert found["rmse_m"] == pytest.approx(math.sqrt(sum((a - b) ** 2 for a, b in pairs) / n))
    assert found["mae_m"] == pytest.approx(sum(abs(a - b) for a, b in pairs) / n)
    assert found["abs_rel"] == pytest.approx(sum(abs(a - b) / b for a, b in pairs) / n)
    assert found["delta_1_25"] == sum(a > 0 and a < 1.25 * b and b < 1.25 * a for a, b in pairs) / n


def test_depths_that_are_not_finite_are_no_hits():
    found = metrics.depth_errors(np.array([1.0, np.nan, np.inf, 2.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    assert found == {"rmse_m": math.sqrt(0.5), "mae_m": 0.5, "abs_rel": 0.5, "delta_1_25": 0.25}


def test_distance_bands():
    bands = metrics.distance_band(np.array([0.0, 9.99, 10.0, 39.0, 80.0, 1e9]), Options().bands)
    assert bands.tolist() == [0, 0, 1, 2, 4, 4]
    assert Options().band_names() == ["0-10 m", "10-20 m", "20-40 m", "40-80 m", "80+ m"]


# Clouds


def brute_force(queries, reference):
    return np.array([min((np.linalg.norm(q - r) for r in reference), default=np.inf) for q in queries])


@settings(max_examples=60)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["any", "same", "line", "far", "equal", "grid"]),
)
def test_nearest_neighbours_are_those_of_brute_force(n, m, seed, kind):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, 3)) * 20, rng.normal(size=(m, 3)) * 20
    if kind == "same":
        a, b = np.zeros((n, 3)), np.ones((m, 3))
    elif kind == "line":
        a[:, :2], b[:, 1:] = 0, 0
    elif kind == "far":
        b += 1e6
    elif kind == "equal":
        a = b.copy()
    elif kind == "grid":
        a, b = np.round(a / 10), np.round(b / 10)
    np.testing.assert_allclose(metrics.nearest_distances(a, b), brute_force(a, b), rtol=1e-12, atol=1e-12)


def test_chamfer_is_that_of_loops():
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(70, 3)), rng.normal(size=(90, 3)) + 1
    there, back = brute_force(a, b).mean(), brute_force(b, a).mean()
    found = metrics.chamfer(a, b, 1000, rng)
    assert found["chamfer_pred_to_true_m"] == pytest.approx(there)
    assert found["chamfer_true_to_pred_m"] == pytest.approx(back)
    assert found["chamfer_m"] == pytest.approx((there + back) / 2)
    some = [metrics.chamfer(a, b, 30, np.random.default_rng(i))["chamfer_m"] for i in range(300)]
    assert np.mean(some) == pytest.approx((there + back) / 2, rel=0.02)  # a part of the points gives no other figure


@settings(max_examples=40)
@given(st.integers(0, 50), st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 1.0, 7.0]), st.sampled_from([1.0, 10.0]))
def test_cells_are_those_of_a_loop(n, seed, cell, extent):
    points = np.random.default_rng(seed).uniform(-15, 15, (n, 3))
    grid = metrics.Grid(cell, extent)
    cells = math.ceil(2 * extent / cell)
    expected = set()
    for x, _, z in points:
        i, j = math.floor((x + extent) / cell), math.floor((z + extent) / cell)
        if 0 <= i < cells and 0 <= j < cells:
            expected.add((i, j))
    assert {tuple(place) for place in np.argwhere(grid.occupied(points)).tolist()} == expected


def test_overlap_from_above():
    grid = metrics.Grid(1.0, 10.0)
    a = np.array([[0.5, 0, 0.5], [1.5, 5, 0.5], [2.5, 0, 0.5]])
    assert grid.iou(a, a[1:] + np.array([0, 3, 0])) == pytest.approx(2 / 3)  # height does not count
    assert grid.iou(a, a + 5) == 0
    assert grid.iou(np.zeros((0, 3)), a) == 0
    assert math.isnan(grid.iou(a, np.zeros((0, 3))))
    assert math.isnan(grid.iou(a + 100, a + 100))


def test_region_is_opv2vs_z_and_a_radius():
    region = metrics.Region(-3, 1, 50)
    points = np.array([[0, 2.9, 0], [0, 3.1, 0], [0, -0.9, 0], [0, -1.1, 0], [30, 0, 39], [30, 0, 41]], dtype=float)
    assert region.inside(points).tolist() == [True, False, True, False, True, False]


# Many scenes


def test_statistics_are_numpys_and_skip_what_is_not_finite():
    values = np.array([3.0, np.nan, 1.0, 2.0, np.inf, 10.0])
    kept = np.array([3.0, 1.0, 2.0, 10.0])
    found = statistics.describe(values, 0, "x")
    assert (found.count, found.mean, found.median, found.std) == (4, 4.0, 2.5, pytest.approx(kept.std()))
    assert found.low < found.mean < found.high
    assert found == statistics.describe(values, 0, "x")
    assert found != statistics.describe(values, 1, "x")
    nothing = statistics.describe([np.nan], 0, "x")
    assert nothing.count == 0 and math.isnan(nothing.mean)
    assert statistics.describe([], 0, "x").to_dict() == {"count": 0} | dict.fromkeys(
        ("mean", "median", "std", "p25", "p75", "low", "high")
    )
    one = statistics.describe([5.0], 0, "x")
    assert (one.count, one.mean, one.std) == (1, 5.0, 0.0) and math.isnan(one.low) and math.isnan(one.high)
    assert statistics.bootstrap_interval([5.0, 5.0], 0) == (5.0, 5.0)


def test_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(9)
    hits = 0
    for i in range(300):
        low, high = statistics.bootstrap_interval(rng.exponential(size=60), i)
        hits += low <= 1.0 <= high
    assert 0.88 < hits / 300 < 0.99


def test_groups_cover_every_view_and_pixel():
    truth = make_truth(views=8)
    measured = measure(perfect(truth), truth, Options(), np.random.default_rng(0))
    for kind in ("camera", "agent", "role", "distance"):
        pixels = [figures["num_pixels"] for k, _, figures in measured.groups if k == kind]
        assert sum(pixels) == truth.valid.sum() <= 8 * HEIGHT * WIDTH
    assert [group for kind, group, _ in measured.groups if kind == "role"] == ["main", "other 1"]
    assert set(POSE_COLUMNS) <= set(measured.groups[0][2])
