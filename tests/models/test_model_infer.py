"""`infer` and `predict`: what they refuse, what they leave as it was, what they offer beyond upstream."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mapanything.geometry.rigid import matrix_from_quat, quat_from_matrix
from mapanything.models.mapanything import MapAnything
from mapanything.models.outputs import pose_matrices
from mapanything.models.postprocess import MASKED
from tests.helpers.networks import TINY
from tests.helpers.weight_files import embedding

H, W = 28, 42


@pytest.fixture(scope="module")
def model() -> MapAnything:
    torch.manual_seed(0)
    return MapAnything(TINY).eval()


def make(num_views: int = 2, batch: int = 1) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    return [{"img": torch.randn(batch, 3, H, W, generator=generator), "data_norm_type": ["dinov2"]} for _ in range(num_views)]


def intrinsics(batch: int = 1) -> torch.Tensor:
    return torch.tensor([[[40.0, 0, 20], [0, 40, 14], [0, 0, 1]]]).repeat(batch, 1, 1)


def poses(num_views: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    quats = torch.nn.functional.normalize(torch.randn(batch, num_views, 4, generator=generator), dim=-1)
    return pose_matrices(3 * torch.randn(batch, num_views, 3, generator=generator), quats)


WRONG = {
    "no views": (lambda v: v.clear(), "no views"),
    "unknown key": (lambda v: v[1].update(depht=1), "view 1, key depht: unknown"),
    "no image": (lambda v: v[1].pop("img"), "view 1, key img: NoneType"),
    "channels last": (lambda v: v[0].update(img=torch.zeros(1, H, W, 3)), r"view 0, key img: \(1, 28, 42, 3\)"),
    "bytes": (lambda v: v[1].update(img=torch.zeros(1, 3, H, W, dtype=torch.uint8)), "view 1, key img: torch.uint8"),
    "another size": (lambda v: v[1].update(img=torch.zeros(1, 3, H, H)), r"view 1, key img: \(1, 3, 28, 28\), but view 0"),
    "another batch": (lambda v: v[1].update(img=torch.zeros(2, 3, H, W)), r"view 1, key img: \(2, 3, 28, 42\), but view 0"),
    "not in patches": (lambda v: v[0].update(img=torch.zeros(1, 3, 30, W)), "view 0, key img.*multiples of 14"),
    "NaN": (lambda v: v[1]["img"].fill_(torch.nan), "view 1, key img: holds NaN"),
    "no norm type": (lambda v: v[1].pop("data_norm_type"), "view 1, key data_norm_type: missing"),
    "another norm type": (lambda v: v[0].update(data_norm_type=["identity"]), "view 0, key data_norm_type: 'identity'"),
    "K and rays": (
        lambda v: v[1].update(intrinsics=intrinsics(), ray_directions=torch.ones(1, H, W, 3)),
        "view 1, key intrinsics: given beside ray_directions",
    ),
    "K of another shape": (lambda v: v[1].update(intrinsics=torch.eye(3)), r"view 1, key intrinsics: \(3, 3\)"),
    "K without focal length": (lambda v: v[1].update(intrinsics=torch.zeros(1, 3, 3)), "view 1, key intrinsics: a focal"),
    "depth without rays": (lambda v: v[1].update(depth_z=torch.ones(1, H, W)), "view 1, key depth_z: given without"),
    "depth of another size": (
        lambda v: v[1].update(intrinsics=intrinsics(), depth_z=torch.ones(1, W, H)),
        r"view 1, key depth_z: \(1, 42, 28\)",
    ),
    "negative depth": (
        lambda v: v[1].update(intrinsics=intrinsics(), depth_z=-torch.ones(1, H, W)),
        "view 1, key depth_z: holds negative",
    ),
    "infinite depth": (
        lambda v: v[1].update(intrinsics=intrinsics(), depth_z=torch.full((1, H, W), torch.inf)),
        "view 1, key depth_z: holds NaN or infinity",
    ),
    "pose without view 0's": (lambda v: v[1].update(camera_poses=torch.eye(4)[None]), "view 0, key camera_poses: missing"),
    "pose of another shape": (
        lambda v: v[0].update(camera_poses=torch.eye(3)[None]),
        r"view 0, key camera_poses: \(1, 3, 3\)",
    ),
    "pose tuple of another shape": (
        lambda v: v[0].update(camera_poses=(torch.zeros(1, 3), torch.zeros(1, 4))),
        "view 0, key camera_poses: tuple",
    ),
    "quaternion 0": (
        lambda v: v[0].update(camera_poses=(torch.zeros(1, 4), torch.zeros(1, 3))),
        "view 0, key camera_poses: a quaternion of length 0",
    ),
    "flag as text": (lambda v: v[1].update(is_metric_scale="yes"), "view 1, key is_metric_scale: str"),
    "role without embedding": (None, "view 1, key agent_id"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_that_names_view_and_key(case: str, model: MapAnything):
    views = make()
    spoil, message = WRONG[case]
    if spoil is None:
        model = MapAnything(replace(TINY, vehicle_id=replace(TINY.vehicle_id, num_roles=2))).eval()
        views[1]["agent_id"] = 2
    else:
        spoil(views)
    with pytest.raises(ValueError, match=message) as error:
        model.infer(views)
    assert "\n" not in str(error.value)


def test_unknown_options_are_refused(model: MapAnything):
    with pytest.raises(TypeError, match="mask_edge"):
        model.infer(make(), mask_edge=True)
    with pytest.raises(ValueError, match="amp_dtype='half'"):
        model.infer(make(), amp_dtype="half")
    with pytest.raises(ValueError, match="minibatch_size=0"):
        model.infer(make(), minibatch_size=0)


def test_nothing_stays_behind(model: MapAnything, monkeypatch: pytest.MonkeyPatch):
    """Neither after success nor after an exception: config, mode, random state, and what a later call gives."""
    state, config = torch.get_rng_state(), model.config
    before = model.infer(make())
    with monkeypatch.context() as patch:
        patch.setattr(model.info_sharing, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.infer([{**view, "intrinsics": intrinsics()} for view in make()])
    assert model.config == config and torch.equal(torch.get_rng_state(), state) and not torch.is_autocast_enabled("cpu")
    for a, b in zip(before, model.infer(make()), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_views_are_not_changed(model: MapAnything):
    views = [{**view, "intrinsics": intrinsics(), "depth_z": torch.rand(1, H, W)} for view in make()]
    copies = [{k: v.clone() if torch.is_tensor(v) else list(v) for k, v in view.items()} for view in views]
    model.infer(views)
    for view, copy in zip(views, copies, strict=True):
        assert all(torch.equal(view[k], v) if torch.is_tensor(v) else view[k] == v for k, v in copy.items())


def test_both_shapes_of_depth_and_all_kinds_of_flags_mean_the_same(model: MapAnything):
    depth = torch.rand(1, H, W) * 9
    results = []
    for z in (depth, depth[..., None]):
        for flag in (True, torch.ones(1, dtype=torch.bool), torch.tensor(True), None):
            view = make(1)[0] | {"intrinsics": intrinsics(), "depth_z": z, "is_metric_scale": flag}
            results.append(model.infer([view], use_amp=False, apply_mask=False)[0]["pts3d"])
    assert all(torch.equal(results[0], other) for other in results[1:])
    view = make(1)[0] | {"intrinsics": intrinsics(), "depth_z": depth, "is_metric_scale": False}
    assert not torch.equal(results[0], model.infer([view], use_amp=False, apply_mask=False)[0]["pts3d"])


def test_masked_points_can_be_kept(model: MapAnything):
    kept = model.infer(make(3), keep_unmasked=True)
    plain = model.infer(make(3), apply_mask=False)
    assert "mask" not in plain[0]
    masked = sum(int((~view["mask"]).sum()) for view in kept)
    assert masked > 0
    for a, b in zip(kept, plain, strict=True):
        for key in MASKED:
            assert torch.equal(a[f"{key}_unmasked"], b[key])
            assert torch.equal(a[key], torch.where(a["mask"], b[key], 0.0))


def test_prediction_is_typed_and_unmasked(model: MapAnything):
    prediction = model.predict(make(3, batch=2))
    assert prediction.pts3d.shape == (2, 3, H, W, 3) and prediction.mask is not None
    assert prediction.mask.shape == (2, 3, H, W, 1) and (prediction.depth_along_ray > 0).all()
    assert prediction.camera_poses.shape == (2, 3, 4, 4) and prediction.intrinsics.shape == (2, 3, 3, 3)


def test_alignment_undoes_any_similarity(model: MapAnything):
    """Given poses that are the predicted ones, moved, turned and scaled: the aligned result fits them exactly."""
    views = make(3, batch=2)
    plain = model.predict(views, ignore_pose_inputs=True, use_amp=False)
    turn, shift, scale = matrix_from_quat(torch.tensor([0.3, -0.2, 0.5, 0.7])), torch.tensor([5.0, -2.0, 1.0]), 3.5
    target = plain.camera_poses.clone()
    target[..., :3, :3] = turn @ plain.camera_poses[..., :3, :3]
    target[..., :3, 3] = scale * plain.camera_poses[..., :3, 3] @ turn.T + shift
    for i, view in enumerate(views):
        view["camera_poses"] = target[:, i]
    aligned = model.predict(views, ignore_pose_inputs=True, use_amp=False, align_to_inputs=True)
    assert torch.allclose(aligned.camera_poses, target, atol=1e-3)
    assert torch.allclose(aligned.pts3d, scale * plain.pts3d @ turn.T + shift, atol=1e-2, rtol=1e-3)
    assert torch.allclose(aligned.depth_z, scale * plain.depth_z, rtol=1e-3)
    assert torch.allclose(aligned.metric_scaling_factor, scale * plain.metric_scaling_factor, rtol=1e-3)
    points = (aligned.pts3d_cam @ aligned.camera_poses[:, :, None, :3, :3].mT) + aligned.camera_poses[:, :, None, None, :3, 3]
    assert torch.allclose(points, aligned.pts3d, atol=1e-3, rtol=1e-3)
    assert torch.allclose(quat_from_matrix(aligned.camera_poses), quat_from_matrix(target), atol=1e-3)


def test_alignment_with_one_pose_keeps_the_scale(model: MapAnything):
    views = make(3)
    views[0]["camera_poses"] = poses(1)[:, 0]
    plain = model.predict(views, use_amp=False)
    aligned = model.predict(views, use_amp=False, align_to_inputs=True)
    assert torch.allclose(aligned.camera_poses[:, 0], views[0]["camera_poses"], atol=1e-4)
    assert torch.equal(aligned.depth_z, plain.depth_z)
    with pytest.raises(ValueError, match="align_to_inputs"):
        model.infer(make(2), align_to_inputs=True)


def test_alignment_never_mirrors(model: MapAnything):
    views = make(4)
    for i, view in enumerate(views):
        view["camera_poses"] = poses(4)[:, i]
    aligned = model.predict(views, align_to_inputs=True)
    assert torch.allclose(torch.linalg.det(aligned.camera_poses[..., :3, :3]), torch.ones(1, 4), atol=1e-4)


def test_a_role_embedding_of_zero_changes_no_bit_and_another_does():
    torch.manual_seed(0)
    plain = MapAnything(TINY).eval()
    with_id = MapAnything(replace(TINY, vehicle_id=replace(TINY.vehicle_id, num_roles=3))).eval()
    missing, unexpected = with_id.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["vehicle_id.embedding"] and not unexpected
    views = [view | {"agent_id": torch.tensor([role])} for view, role in zip(make(3), (0, 1, 1), strict=True)]
    for a, b in zip(plain.infer(make(3)), with_id.infer(views), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    with torch.no_grad():
        embedding(with_id)[1] += 1
    changed = with_id.infer(views, apply_mask=False)
    assert not torch.equal(changed[1]["pts3d"], plain.infer(make(3), apply_mask=False)[1]["pts3d"])
    same = with_id.infer([view | {"agent_id": 0} for view in make(3)])
    assert torch.equal(same[1]["pts3d"], plain.infer(make(3))[1]["pts3d"])


def test_roles_are_shuffled_in_training_but_the_main_agents():
    from mapanything.models.vehicle_id import shuffled

    torch.manual_seed(0)
    roles = torch.tensor([[0, 0, 1, 1, 2, 3]]).repeat(500, 1)
    new = shuffled(roles, 5)
    assert (new[:, :2] == 0).all() and (new[:, 2] == new[:, 3]).all()
    assert ((new[:, 2] != new[:, 4]) & (new[:, 4] != new[:, 5])).all()
    counts = torch.bincount(new[:, 4], minlength=5)
    assert counts[0] == 0 and (counts[1:] > 80).all()  # 125 each on average
    assert torch.equal(shuffled(roles[:, :4], 2), roles[:, :4])
