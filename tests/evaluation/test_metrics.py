"""Every metric against a plain reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapanything.evaluation import metrics, statistics
from mapanything.evaluation.scene import Options
from mapanything.geometry.rigid import rotation_angle_deg
from tests.helpers.known_errors import brute_force, pose, turn_deg

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
