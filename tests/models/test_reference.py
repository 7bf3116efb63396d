"""The slow reference against upstream's own numbers (parity.pt), and against itself where those numbers do not reach."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import reference, reference_layers, reference_masks, reference_network
from tests.helpers.reference_network import Selection

MODELS = ("v1_1_small", "v1_small")
CASES = ("img_2v_70x98", "intr_partial_3v_56x42", "intr_depth_2v_42x56", "pose_3v_42x56")


@pytest.fixture(scope="session")
def parity() -> dict[str, Any]:
    folder = os.environ.get("MAPANYTHING_SPEC_DIR")
    if not folder:
        pytest.skip("MAPANYTHING_SPEC_DIR is not set: no full set of upstream's reference outputs on this host")
    return torch.load(Path(folder) / "parity.pt", weights_only=True)


@pytest.fixture(scope="session", params=MODELS)
def network(
    request: pytest.FixtureRequest, parity: dict[str, Any]
) -> tuple[dict[str, Any], reference_layers.Weights, dict[str, Any]]:
    """Config, weights and cases of one small model."""
    entry = parity[request.param]
    assert tuple(entry["cases"]) == CASES
    return entry["config"], reference_layers.weights(entry["keys"], entry["view_pos_table"]), entry["cases"]


def deviation(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def assert_close(got: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]], tolerance: float) -> None:
    """Compares every tensor in `wanted`; booleans to 99.9 %."""
    assert len(got) == len(wanted)
    for v, (a, b) in enumerate(zip(got, wanted)):
        for key in b:
            assert a[key].shape == b[key].shape, key
            if b[key].dtype == torch.bool:
                assert (a[key] == b[key]).float().mean() >= 0.999, (v, key)
            else:
                assert deviation(a[key], b[key]) <= tolerance, (v, key)


# ------------------------------------------------------------------------------------------------------- against upstream


@pytest.mark.parametrize(("case", "dtype"), [*((case, torch.float32) for case in CASES), (CASES[3], torch.float64)])
def test_forward_is_upstreams(network: Any, case: str, dtype: torch.dtype) -> None:
    config, weights, cases = network
    views = reference.preprocess(cases[case]["views"], dtype=dtype)
    assert_close(reference_network.forward(config, weights, views, dtype=dtype), cases[case]["forward"], 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_infer_is_upstreams(network: Any, case: str) -> None:
    """Intrinsics have the tolerance of the rays here: rays along the image plane make them sensitive to rounding."""
    config, weights, cases = network
    out = reference.infer(config, weights, cases[case]["views"], **cases[case]["infer_kwargs"])
    assert_close(out, cases[case]["infer"], 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_post_processing_of_upstreams_own_outputs(network: Any, case: str) -> None:
    """No rounding of a network in between: masks equal to the pixel, intrinsics to 1e-5."""
    for out, wanted in zip(network[2][case]["forward"], network[2][case]["infer"]):
        for b in range(len(out["conf"])):
            rays = out["ray_directions"][b]
            assert deviation(reference.recover_intrinsics(rays), wanted["intrinsics"][b]) <= 1e-5
            pose = reference.pose_matrix(out["cam_quats"][b], out["cam_trans"][b])
            assert deviation(pose, wanted["camera_poses"][b]) <= 1e-5
            mask = (out["non_ambiguous_mask_logits"][b].sigmoid() > 0.5).numpy()
            depth = (rays * out["depth_along_ray"][b])[..., 2].numpy()
            at_normal = reference_masks.normal_edges(out["pts3d"][b].numpy(), mask, 5.0)
            mask = mask & ~(at_normal & reference_masks.depth_edges(depth, mask, 0.03))
            assert np.array_equal(mask, wanted["mask"][b, ..., 0].numpy())


# ---------------------------------------------------------------------------------------------------------- against itself


def mixed_views(seed: int = 0, batch: int = 2) -> list[dict[str, Any]]:
    """Three raw views of 28×42 with everything given, everything but the pose, and depth with rays."""
    rng = torch.Generator().manual_seed(seed)
    views: list[dict[str, Any]] = []
    for v in range(3):
        view = {"img": torch.randn(batch, 3, 28, 42, generator=rng), "data_norm_type": ["dinov2"]}
        k = torch.tensor([[40.0 + v, 0, 20], [0, 41, 13], [0, 0, 1]]).repeat(batch, 1, 1)
        view["intrinsics"] = k + torch.rand(batch, 3, 3, generator=rng)
        depth = 1 + 9 * torch.rand(batch, 28, 42, generator=rng)
        view["depth_z"] = depth * (torch.rand(batch, 28, 42, generator=rng) < 0.7)
        if v != 1:
            quats = torch.randn(batch, 4, generator=rng)
            poses = torch.eye(4).repeat(batch, 1, 1)
            poses[:, :3, :3] = torch.stack([reference_layers.matrix_from_quat(q) for q in quats])
            poses[:, :3, 3] = 3 * torch.randn(batch, 3, generator=rng)
            view["camera_poses"] = poses
        views.append(view)
    return views


def run(network: Any, views: list[dict[str, Any]], **kwargs: Any) -> list[dict[str, Tensor]]:
    """infer() without masks, in float64."""
    return reference.infer(network[0], network[1], views, apply_mask=False, dtype=torch.float64, **kwargs)


def assert_same(got: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]], tolerance: float = 1e-10) -> None:
    assert_close(got, [{key: x for key, x in out.items() if x.dtype != torch.bool} for out in wanted], tolerance)


def test_samples_of_a_batch_do_not_meet(network: Any) -> None:
    views = mixed_views()
    views[1]["is_metric_scale"] = torch.tensor([True, False])
    whole = run(network, views)
    for b in range(2):
        part = [{key: x[b : b + 1] if isinstance(x, Tensor) else x for key, x in view.items()} for view in views]
        assert_same(run(network, part), [{key: x[b : b + 1] for key, x in out.items()} for out in whole])


def test_other_spellings_of_the_same_inputs(network: Any) -> None:
    views = mixed_views()
    wanted = run(network, views)
    for view in views:
        view["depth_z"] = view["depth_z"][..., None]
        view["is_metric_scale"] = True
        k = view.pop("intrinsics").double()
        view["ray_directions"] = 3 * torch.stack([reference.rays_of(sample, 28, 42) for sample in k])
        if "camera_poses" in view:
            poses = view["camera_poses"].double()
            quats = torch.stack([reference_layers.quat_from_matrix(pose[:3, :3]) for pose in poses])
            view["camera_poses"] = (quats, poses[:, :3, 3])
    assert_same(run(network, views), wanted, 1e-6)


@pytest.mark.parametrize("flag", ["ignore_calibration_inputs", "ignore_depth_inputs", "ignore_pose_inputs"])
def test_an_ignored_input_is_a_missing_one(network: Any, flag: str) -> None:
    views = mixed_views()
    prepared = reference.preprocess(views, dtype=torch.float64, **{flag: True})
    missing = reference_network.forward(network[0], network[1], prepared, dtype=torch.float64)
    assert_same(run(network, views, **{flag: True}), missing)
    assert deviation(missing[0]["pts3d"], run(network, views)[0]["pts3d"]) > 1e-4


def test_ignored_scales_are_those_of_no_metric_scale(network: Any) -> None:
    views = mixed_views()
    ignored = run(network, views, ignore_depth_scale_inputs=True, ignore_pose_scale_inputs=True)
    for view in views:
        view["is_metric_scale"] = torch.zeros(2, dtype=torch.bool)
    assert_same(run(network, views), ignored)
    for factor, view in zip((2.0, 3.0, 0.5), views):  # each view's depth has its own norm
        view["depth_z"] = view["depth_z"] * factor
    for view in (views[0], views[2]):
        view["camera_poses"][:, :3, 3] *= 7
    assert_same(run(network, views), ignored, 1e-5)


def test_masks_choose_single_views_and_samples(network: Any) -> None:
    prepared = reference.preprocess(mixed_views(), dtype=torch.float64)
    off = torch.zeros(3, 2, dtype=torch.bool)
    cam = ~off
    cam[0, 1] = False  # view 0 of sample 1 is not selected, but the others are still relative to it

    def forward(selection: Selection) -> list[dict[str, Tensor]]:
        return reference_network.forward(network[0], network[1], prepared, selection, torch.float64)

    nothing = forward(Selection(False, False, False))
    assert_same(forward(Selection(off, off, off)), nothing)
    chosen, everything = forward(Selection(cam=cam)), forward(Selection())
    for a, b in zip(chosen, everything):
        assert deviation(a["pts3d"][:1], b["pts3d"][:1]) < 1e-10
        assert deviation(a["pts3d"][1:], b["pts3d"][1:]) > 1e-6


def test_one_view_alone_and_one_without_valid_depth(network: Any) -> None:
    views = mixed_views()[:1]
    views[0]["depth_z"] = torch.zeros_like(views[0]["depth_z"])
    out = reference.infer(network[0], network[1], views, use_multiview_confidence=True)[0]
    assert all(x.isfinite().all() for x in out.values())
    assert (out["conf"] == 1).all()


def test_masks_of_infer(network: Any) -> None:
    views = mixed_views()
    plain, kept = run(network, views), reference.infer(network[0], network[1], views, dtype=torch.float64, mask_edges=False)
    strict = reference.infer(network[0], network[1], views, apply_confidence_mask=True, confidence_percentile=25)
    for a, b, c in zip(plain, kept, strict):
        assert "mask" not in a
        assert torch.equal(b["mask"][..., 0], a["non_ambiguous_mask"])
        assert torch.equal(b["pts3d"], a["pts3d"] * b["mask"])
        confident = [conf > conf.quantile(0.25) for conf in c["conf"]]
        assert not (c["mask"][..., 0] & ~torch.stack(confident)).any()
        assert c["mask"].any()


# -------------------------------------------------------------------------------------------------------- single functions


@pytest.mark.parametrize("size", [(518, 392), (1036, 1008)])
def test_intrinsics_come_back_from_their_rays(size: tuple[int, int]) -> None:
    """The larger one by five rays."""
    k = torch.tensor([[400.5, 0, 200.25], [0, 410.75, 250.5], [0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(reference.recover_intrinsics(reference.rays_of(k, *size)), k, rtol=1e-9)


def test_position_embedding_is_torchs_resize_by_a_factor() -> None:
    table = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for height, width in [(5, 7), (11, 3), (8, 9)]:
        factor = ((height + 0.1) / 8, (width + 0.1) / 8)
        grid = table.reshape(1, 8, 8, 5).permute(0, 3, 1, 2)
        wanted = F.interpolate(grid, scale_factor=factor, mode="bicubic", align_corners=False)[0]
        assert torch.allclose(reference_network.position_embedding(table, height, width), wanted.flatten(1).T, atol=1e-9)
    assert reference_network.position_embedding(table, 8, 8) is table


@pytest.mark.parametrize("quat", [(9.0, 1, 2, 3), (1, 9, 2, 3), (1, 2, 9, 3), (1, 2, 3, 9), (1, 2, 9, -3)])
def test_quaternions(quat: tuple[float, ...]) -> None:
    q = F.normalize(torch.tensor(quat, dtype=torch.float64), dim=0)
    assert torch.allclose(reference_layers.quat_from_matrix(reference_layers.matrix_from_quat(q)), q if q[3] > 0 else -q)
    identity = reference_layers.quat_product(reference_layers.quat_inverse(3 * q), 3 * q)
    assert torch.allclose(identity, torch.tensor([0, 0, 0, 1.0], dtype=torch.float64))


def plane_view(shift: float, depth: float = 2.0) -> dict[str, Tensor]:
    """A camera moved by `shift` along x that sees the plane z = depth, 8×10."""
    pose = torch.eye(4)
    pose[0, 3] = shift
    return {
        "depth_z": torch.full((1, 8, 10, 1), depth),
        "intrinsics": torch.tensor([[[10.0, 0, 4.5], [0, 10, 3.5], [0, 0, 1]]]),
        "camera_poses": pose[None],
        "non_ambiguous_mask": torch.ones(1, 8, 10, dtype=torch.bool),
    }


def test_multiview_confidence() -> None:
    """A shift of 0.6 is three pixels at this depth: what leaves the other image or disagrees with it has none."""
    near, beside, wrong, away = plane_view(0), plane_view(0.6), plane_view(0), plane_view(50)
    wrong["depth_z"] = wrong["depth_z"].clone()
    wrong["depth_z"][:, :, :5] = 1.9
    assert (reference_masks.multiview_confidence([near], 0.02, 0.02)[0] == 1).all()
    a, b, c = reference_masks.multiview_confidence([near, beside, away], 0.02, 0.02)
    assert (c == 1).all()  # sees nobody
    assert (a[0, :, 3:] == 1).all() and (a[0, :, :3] == 0).all()
    assert (b[0, :, :7] == 1).all() and (b[0, :, 7:] == 0).all()
    a, b = reference_masks.multiview_confidence([near, wrong], 0.02, 0.01)
    assert (a[0, :, :5] == 0).all() and (a[0, :, 5:] == 1).all()
    near["non_ambiguous_mask"] = ~near["non_ambiguous_mask"]
    assert (reference_masks.multiview_confidence([near, wrong], 1, 1)[0] == 0).all()


def test_edges_need_both_a_turn_and_a_step() -> None:
    ys, xs = np.mgrid[:12, :16].astype(np.float32)
    depth = np.where(xs < 8, 2, 3).astype(np.float32)
    points = np.stack([(xs - 8) * depth / 10, (ys - 6) * depth / 10, depth], axis=-1)
    mask = np.ones((12, 16), dtype=bool)
    step = reference_masks.depth_edges(depth, mask, 0.03)
    assert step[:, 7:9].all() and not step[:, :7].any() and not step[:, 9:].any()
    turn = reference_masks.normal_edges(points, mask, 5.0)
    assert turn[:, 7:9].all() and not turn[:, :4].any() and not turn[:, 12:].any()
    mask[:, 8:] = False
    assert not reference_masks.depth_edges(depth, mask, 0.03).any()
    assert not reference_masks.normal_edges(points, np.zeros_like(mask), 5.0).any()
