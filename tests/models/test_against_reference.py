"""The network against the slow reference, for inputs and options of which no numbers of upstream's are stored."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mapanything.geometry.rigid import matrix_from_quat
from mapanything.models import geometric_inputs, parity, postprocess
from mapanything.models.inputs import prepare, rays_from_intrinsics
from mapanything.models.mapanything import MapAnything
from mapanything.models.multiview_confidence import confidence
from mapanything.models.weights.upstream import config_from_upstream
from tests.helpers import reference, reference_network

FIXTURE = Path(__file__).parents[1] / "fixtures" / "parity" / "network.pt"
SLOW = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # the reference is too slow to look for the smallest failure
    suppress_health_check=[HealthCheck.too_slow],
)


@cache
def network(name: str) -> tuple[MapAnything, dict[str, Any], dict[str, Tensor]]:
    """Ours, and the reference's config and weights."""
    stored = torch.load(FIXTURE, weights_only=True)[name]
    model = MapAnything(config_from_upstream(stored["config"]["model_config"], stored["config"]["dinov2"])).eval()
    weights = parity.drawn_weights(stored["keys"]) | {"info_sharing.view_pos_table": stored["view_pos_table"]}
    model.load_state_dict(weights, strict=False)
    return model, stored["config"], weights


def make_views(draw: Any, generator: torch.Generator) -> list[dict[str, Any]]:
    """Views as people may hand them to `infer`."""
    batch, num_views = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    height, width = draw(st.sampled_from([(28, 42), (42, 28), (56, 56), (14, 14)]))
    posed = draw(st.booleans())
    views = []
    for number in range(num_views):
        view: dict[str, Any] = {
            "img": torch.randn(batch, 3, height, width, generator=generator),
            "data_norm_type": ["dinov2"],
        }
        rays = draw(st.sampled_from([None, "intrinsics", "ray_directions"]))
        if rays == "intrinsics":
            focal = width * (0.6 + torch.rand(batch, 2, generator=generator))
            centre = torch.tensor([width / 2, height / 2]) + torch.randn(batch, 2, generator=generator)
            k = torch.eye(3).repeat(batch, 1, 1)
            k[:, 0, 0], k[:, 1, 1], k[:, :2, 2] = focal[:, 0], focal[:, 1], centre
            view["intrinsics"] = k
        elif rays == "ray_directions":
            directions = torch.randn(batch, height, width, 3, generator=generator)
            directions[..., 2] = directions[..., 2].abs() + 0.5
            view["ray_directions"] = 2.5 * directions  # of any length
        if rays and draw(st.booleans()):
            depth = 30 * torch.rand(batch, height, width, generator=generator)
            depth[torch.rand(depth.shape, generator=generator) < draw(st.sampled_from([0.0, 0.9, 1.0]))] = 0
            view["depth_z"] = depth[..., None] if draw(st.booleans()) else depth
        if posed and (number == 0 or draw(st.booleans())):
            quats = torch.nn.functional.normalize(torch.randn(batch, 4, generator=generator), dim=1)
            trans = 5 * torch.randn(batch, 3, generator=generator) * draw(st.sampled_from([0.0, 1.0]))
            if draw(st.booleans()):
                view["camera_poses"] = (quats, trans)
            else:
                matrix = torch.eye(4).repeat(batch, 1, 1)
                matrix[:, :3, :3], matrix[:, :3, 3] = matrix_from_quat(quats), trans
                view["camera_poses"] = matrix
        flag = draw(st.sampled_from([None, True, False, "tensor"]))
        if flag == "tensor":
            view["is_metric_scale"] = torch.rand(batch, generator=generator) < 0.5
        elif flag is not None:
            view["is_metric_scale"] = flag
        views.append(view)
    return views


def assert_equal_views(ours: list[dict], theirs: list[dict], skip: tuple[str, ...] = ()) -> None:
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert set(a) == set(b)
        for key in set(b) - set(skip):
            if not isinstance(b[key], Tensor):
                continue
            assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, (number, key)
            if b[key].dtype == torch.bool:
                assert (a[key] != b[key]).float().mean() <= 2e-3, (number, key)
            else:
                difference = (a[key] - b[key]).abs() / b[key].abs().max().clip(min=1e-6)
                # With random weights some rays are short before they are normalised: rounding shows there, and only there.
                assert (difference > 1e-4).float().mean() <= 1e-3 and difference.max() < 1e-2, (number, key)


@pytest.mark.parametrize("name", ["v1_1_small", "v1_small"])
@SLOW
@given(st.data())
def test_infer_for_any_combination_of_inputs(name: str, data: st.DataObject):
    model, config, weights = network(name)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    views = make_views(data.draw, generator)
    ignored = [f"ignore_{kind}_inputs" for kind in ("calibration", "depth", "pose", "depth_scale", "pose_scale")]
    flags: dict[str, Any] = {key: data.draw(st.booleans()) for key in ignored if data.draw(st.booleans())}
    ours = model.infer(views, use_amp=False, apply_mask=False, **flags)
    theirs = reference.infer(config, weights, views, apply_mask=False, **flags)
    # Intrinsics and masks follow from these; on random rays they multiply rounding (their own tests are below).
    assert_equal_views(ours, theirs, skip=("intrinsics", "non_ambiguous_mask"))


@pytest.mark.parametrize("name", ["v1_1_small", "v1_small"])
@SLOW
@given(st.data())
def test_forward_with_any_choice_of_inputs_per_view_and_sample(name: str, data: st.DataObject):
    """Any choice that training can make: it is drawn here and given to both."""
    model, config, weights = network(name)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    prepared = prepare(make_views(data.draw, generator), torch.device("cpu"))
    batch, num_views = prepared[0]["img"].shape[0], len(prepared)
    for view in prepared:
        view["is_metric_scale"] = torch.as_tensor(view["is_metric_scale"]).expand(batch)
    rays, depth, pose, no_depth_scale, no_pose_scale = (torch.rand(5, batch, num_views, generator=generator) < 0.6).unbind(0)

    def chosen(_config: Any, _batch: int, _views: int, metric: Tensor | None, _device: Any) -> geometric_inputs.Choice:
        depth_metric, pose_metric = (None, None) if metric is None else (metric & ~no_depth_scale, metric & ~no_pose_scale)
        return geometric_inputs.Choice(rays, depth, pose, depth_metric, pose_metric, None)

    on = replace(model.config, geometric_inputs=replace(model.config.geometric_inputs, overall_prob=1.0))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(geometric_inputs, "choose", chosen)
        ours = model.stacked(prepared, config=on).views()
    selection = reference.Selection(rays.T, depth.T, pose.T, no_depth_scale.T, no_pose_scale.T)
    assert_equal_views(ours, reference_network.forward(config, weights, prepared, selection), skip=("non_ambiguous_mask",))


def surface(generator: torch.Generator, height: int, width: int, batch: int = 2) -> postprocess.Outputs:
    """Something like a scene: a tilted plane with boxes on it, seen by two cameras, holes in the mask, some noise."""
    v, u = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    rays = torch.stack([(u - width / 2) / width, (v - height / 2) / width, torch.ones_like(u)], -1)
    rays = (rays / rays.norm(dim=-1, keepdim=True)).expand(batch, 2, height, width, 3).clone()
    depth = 4 + 0.02 * v + 0.01 * u + 0.003 * torch.rand(batch, 2, height, width, generator=generator)
    depth[:, :, height // 4 : height // 2, width // 3 : width // 2] -= 1.5
    points = rays * depth[..., None]
    quats = torch.nn.functional.normalize(
        torch.tensor([0, 0, 0, 1.0]) + 0.05 * torch.randn(batch, 2, 4, generator=generator), dim=-1
    )
    trans = 0.3 * torch.randn(batch, 2, 3, generator=generator)
    world = (matrix_from_quat(quats)[:, :, None, None] @ points[..., None])[..., 0] + trans[:, :, None, None]
    logits = torch.randn(batch, 2, height, width, generator=generator) + 2.5
    conf = 1 + torch.rand(batch, 2, height, width, generator=generator)
    return postprocess.Outputs(
        world, points, rays, depth[..., None], trans, quats, torch.ones(batch, 1), conf, logits.sigmoid() > 0.5, logits
    )


@SLOW
@given(st.data())
def test_masks_and_confidence_of_a_surface(data: st.DataObject):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    outputs = surface(generator, *data.draw(st.sampled_from([(28, 42), (30, 23)])))
    options = {
        "mask_edges": data.draw(st.booleans()),
        "edge_normal_threshold": data.draw(st.sampled_from([0.5, 5.0, 30.0])),
        "edge_depth_threshold": data.draw(st.sampled_from([0.001, 0.03, 0.3])),
        "apply_confidence_mask": data.draw(st.booleans()),
        "confidence_percentile": data.draw(st.sampled_from([0, 10, 33.3, 100])),
        "use_multiview_confidence": data.draw(st.booleans()),
    }
    images = torch.randn(2, 2, 3, *outputs.conf.shape[2:], generator=generator)
    views = [{"img": images[:, i]} for i in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "preprocess", lambda views, **_: views)
        patch.setattr(reference, "forward", lambda *_: outputs.views())
        theirs = reference.infer({}, {}, views, **options)
    ours = postprocess.predict(outputs, images, postprocess.Options(**options), confidence).masked_views()
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        # Angles are compared with float32 cosines near 1, where the last bit of an arc cosine may decide.
        assert (a["mask"] != b["mask"]).float().mean() <= 1e-3
        for key in ("img_no_norm", "intrinsics", "camera_poses", "pts3d", "depth_z", "depth_along_ray", "pts3d_cam", "conf"):
            assert torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-4), key


def test_intrinsics_of_a_large_image_come_back():
    k = torch.tensor([[[900.0, 0, 611.5], [0, 880.0, 400.25], [0, 0, 1]]])
    rays = rays_from_intrinsics(k.double(), 1000, 1100)
    assert torch.allclose(postprocess.intrinsics_from_rays(rays), k.double(), rtol=1e-9)
    assert torch.allclose(postprocess.intrinsics_from_rays(rays.float()), k, rtol=1e-4)
