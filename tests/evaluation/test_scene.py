"""A whole scene measured: a predictor without fault, ones with a known fault, and odd ones."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapanything.evaluation import metrics
from mapanything.evaluation.scene import COLUMNS, POSE_COLUMNS, Options, Truth, measure
from mapanything.geometry.rigid import invert, transform
from tests.helpers.known_errors import HEIGHT, WIDTH, brute_force, make_truth, moved, perfect, pose, scaled, turn_deg

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


def test_groups_cover_every_view_and_pixel():
    truth = make_truth(views=8)
    measured = measure(perfect(truth), truth, Options(), np.random.default_rng(0))
    for kind in ("camera", "agent", "role", "distance"):
        pixels = [figures["num_pixels"] for k, _, figures in measured.groups if k == kind]
        assert sum(pixels) == truth.valid.sum() <= 8 * HEIGHT * WIDTH
    assert [group for kind, group, _ in measured.groups if kind == "role"] == ["main", "other 1"]
    assert set(POSE_COLUMNS) <= set(measured.groups[0][2])
