"""The options: off unless asked for, nothing to say about a perfect prediction, the right direction otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from mapanything.geometry.rigid import matrix_from_quat, quat_from_matrix
from mapanything.train.loss_options import DistilledPose, DistilledScale, HeightPrior, RigConsistency, VehicleConsistency
from mapanything.train.loss_terms import Normals
from mapanything.train.losses import Loss
from tests.helpers.loss_inputs import gradients, leaves, random_scene

CONFIGS = Path(__file__).parents[2] / "configs"
ADDS = {
    "height_prior": {"height_prior"},
    "rig_consistency": {"rig_consistency"},
    "vehicle_consistency": {"vehicle_consistency"},
    "distillation": {"distilled_scale", "distilled_pose"},
    "no_sparse_normals": set(),
}


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(overrides=["+loss=overall_loss", *overrides]).loss


def evaluate(term, batch, preds, teacher=None):
    """Value, and gradients of every leaf."""
    preds = leaves(preds)
    output = Loss({"term": term})(batch, preds, teacher)
    return float(output.total.detach()), gradients(output.total, preds)


def improves(term, batch, preds, teacher=None, keys=None, step: float = 1e-4) -> bool:
    """A small step against the gradient makes the loss smaller."""
    before, grads = evaluate(term, batch, preds, teacher)
    moved = [{k: v - step * g[k] if keys is None or k in keys else v for k, v in p.items()} for p, g in zip(preds, grads)]
    return evaluate(term, batch, moved, teacher)[0] < before


def moving(grads) -> set[str]:
    return {key for view in grads for key, gradient in view.items() if (gradient != 0).any()}


# Configs


def test_options_are_off_by_default():
    standard = set(composed().train.terms)
    assert not standard & set().union(*ADDS.values())
    assert instantiate(composed().train).terms["normal"].min_usable == 0


def test_every_option_is_tested():
    assert set(ADDS) == {path.stem for path in (CONFIGS / "loss/option").glob("*.yaml")}


@pytest.mark.parametrize("name", ADDS)
def test_an_option_adds_its_terms_to_training_alone(name):
    plain, config = composed(), composed(f"+loss/option={name}")
    loss = instantiate(config.train)
    assert set(loss.terms) == set(plain.train.terms) | ADDS[name]
    assert config.validate == plain.validate and set(config) == set(plain)
    assert loss.needs_teacher == (name == "distillation")
    batch, preds = random_scene(dtype=torch.float32)
    assert loss(batch, preds, preds).total.isfinite()


def test_options_can_be_combined():
    loss = instantiate(composed("+loss/option=[height_prior,rig_consistency]", "loss.train.terms.height_prior.weight=2").train)
    assert loss.terms["height_prior"] == HeightPrior(2.0) and "rig_consistency" in loss.terms


# Height prior


def street(camera_height: float = 1.0):
    """One view in the main agent's LiDAR frame, 1.9 m above the ground, looking ahead; nothing labelled."""
    batch, preds = random_scene(1, 1, labelled=0.0)
    pose = torch.eye(4, dtype=torch.float64)
    pose[1, 3] = 1.9 - camera_height  # y points down
    batch[0] |= {"camera_pose": pose[None]}
    return batch, preds


def with_depth(preds, depth: float):
    return [p | {"depth_along_ray": torch.full_like(p["depth_along_ray"], depth)} for p in preds]


def test_height_prior_leaves_a_street_alone():
    batch, preds = street()
    value, grads = evaluate(HeightPrior(), batch, with_depth(preds, 10.0))  # at most about 1 + 6 m high
    assert value == 0 and not moving(grads)


def test_height_prior_pulls_floating_pixels_down():
    batch, preds = street()
    high = with_depth(preds, 100.0)
    value, grads = evaluate(HeightPrior(), batch, high)
    assert value > 0
    # The network's own depth: the metric depth, and the scaling factor exactly against it.
    assert moving(grads) == {"depth_along_ray", "metric_scaling_factor"}
    gradient = grads[0]["depth_along_ray"][0, ..., 0]
    up = high[0]["ray_directions"][0, ..., 1] < -0.15
    assert (gradient[up] > 0).all() and (gradient[high[0]["ray_directions"][0, ..., 1] > 0] == 0).all()
    assert improves(HeightPrior(), batch, high, keys={"depth_along_ray"})
    through_scale = (gradient * high[0]["depth_along_ray"][0, ..., 0]).sum() / high[0]["metric_scaling_factor"][0]
    torch.testing.assert_close(grads[0]["metric_scaling_factor"][0], -through_scale)


def test_height_prior_value():
    batch, preds = street(camera_height=1.0)
    rays = torch.zeros_like(preds[0]["ray_directions"])
    rays[..., 1] = -1.0  # straight up
    value, _ = evaluate(HeightPrior(weight=1, max_height=15), batch, [with_depth(preds, 24.0)[0] | {"ray_directions": rays}])
    assert value == pytest.approx(torch.log1p(torch.tensor(10.0)).item())  # 25 m high


def test_height_prior_is_for_unlabelled_metric_pixels():
    batch, preds = street()
    high = with_depth(preds, 100.0)
    labelled = [batch[0] | {"valid_mask": torch.ones_like(batch[0]["valid_mask"])}]
    assert evaluate(HeightPrior(), labelled, high)[0] == 0
    assert evaluate(HeightPrior(), [batch[0] | {"is_metric_scale": torch.tensor([False])}], high)[0] == 0


# Known poses


def perfect(batch, preds):
    return [
        p | {"cam_quats": view["camera_pose_quats"].clone(), "cam_trans": view["camera_pose_trans"].clone()}
        for view, p in zip(batch, preds)
    ]


def moved_rigidly(preds, views):
    """The cameras of some views in another world frame: their poses to each other stay."""
    quat = torch.tensor([0.1, -0.3, 0.2, 0.9], dtype=torch.float64)
    rotation, shift = matrix_from_quat(quat), torch.tensor([5.0, -1.0, 3.0], dtype=torch.float64)
    out = [dict(view) for view in preds]
    for v in views:
        matrix = rotation @ matrix_from_quat(preds[v]["cam_quats"])
        out[v] |= {"cam_quats": quat_from_matrix(matrix), "cam_trans": preds[v]["cam_trans"] @ rotation.T + shift}
    return out


@pytest.mark.parametrize("term", [RigConsistency(), VehicleConsistency()])
def test_known_poses(term):
    batch, preds = random_scene(4, 2)  # two vehicles of two cameras
    value, _ = evaluate(term, batch, perfect(batch, preds))
    assert value == pytest.approx(0, abs=1e-9)
    value, _ = evaluate(term, batch, moved_rigidly(perfect(batch, preds), range(4)))
    assert value == pytest.approx(0, abs=1e-6)
    value, grads = evaluate(term, batch, preds)
    assert value > 0 and moving(grads) == {"cam_quats", "cam_trans"}
    assert improves(term, batch, preds)
    others = [view | {"is_metric_scale": torch.tensor([False, False])} for view in batch]
    assert evaluate(term, others, preds)[0] == 0


def test_a_vehicle_at_the_wrong_place_breaks_no_rig():
    batch, preds = random_scene(4, 1)
    displaced = moved_rigidly(perfect(batch, preds), [2, 3])
    assert evaluate(RigConsistency(), batch, displaced)[0] == pytest.approx(0, abs=1e-6)
    assert evaluate(VehicleConsistency(), batch, displaced)[0] > 0.1


def test_one_vehicle_or_one_view_has_no_pairs():
    batch, preds = random_scene(2, 1)
    assert evaluate(VehicleConsistency(), batch, preds)[0] == 0
    batch, preds = random_scene(1, 1)
    value, grads = evaluate(RigConsistency(), batch, preds)
    assert value == 0 and not moving(grads)


def test_agents_must_be_known():
    batch, preds = random_scene(2, 1)
    for view in batch:
        del view["agent_id"]
    with pytest.raises(ValueError, match="'agent_id'"):
        evaluate(RigConsistency(), batch, preds)


# Distillation


def test_a_student_equal_to_its_teacher():
    batch, preds = random_scene()
    for term in (DistilledScale(), DistilledPose()):
        assert evaluate(term, batch, preds, preds)[0] == pytest.approx(0, abs=1e-9)


def test_distilled_scale():
    batch, teacher = random_scene(2, 1)
    metric = ("pts3d", "pts3d_cam", "depth_along_ray", "cam_trans", "metric_scaling_factor")

    def sized(factor: float):
        return [{key: value * factor if key in metric else value for key, value in view.items()} for view in teacher]

    student = sized(2.0)
    value, grads = evaluate(DistilledScale(), batch, student, teacher)
    assert value > 0 and moving(grads) == {"metric_scaling_factor"}
    assert all((view["metric_scaling_factor"] > 0).all() for view in grads)  # twice too big
    assert evaluate(DistilledScale(), batch, sized(1.9), teacher)[0] < value
    assert evaluate(DistilledPose(), batch, student, teacher)[0] == pytest.approx(0, abs=1e-9)


def test_distilled_pose():
    batch, teacher = random_scene(3, 2, seed=1)
    _, student = random_scene(3, 2, seed=2)
    value, grads = evaluate(DistilledPose(), batch, student, teacher)
    assert value > 0 and moving(grads) == {"cam_quats", "cam_trans", "depth_along_ray"}
    assert improves(DistilledPose(), batch, student, teacher)
    assert evaluate(DistilledPose(), batch, moved_rigidly(teacher, range(3)), teacher)[0] == pytest.approx(0, abs=1e-6)


def test_distillation_does_not_look_at_the_teachers_sky():
    batch, teacher = random_scene(2, 1)
    mask = torch.rand(teacher[0]["conf"].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    teacher = [view | {"non_ambiguous_mask": mask} for view in teacher]
    student = [dict(view) for view in teacher]
    for view in student:
        view["depth_along_ray"] = torch.where(mask[..., None], view["depth_along_ray"], 1000.0)
        del view["non_ambiguous_mask"]
    assert evaluate(DistilledScale(), batch, student, teacher)[0] == pytest.approx(0, abs=1e-9)


def test_distillation_needs_a_teacher():
    batch, preds = random_scene()
    with pytest.raises(ValueError, match="teacher"):
        Loss({"scale": DistilledScale()})(batch, preds)


# Sparse normals


def test_sparse_normals_can_be_switched_off():
    batch, preds = random_scene(2, 1, labelled=0.15, size=(28, 42))
    batch[1]["valid_mask"][:] = True
    scene = Loss({}).scene(batch, preds)
    everywhere, dense = Normals()(scene), Normals(min_usable=0.25)(scene)
    assert everywhere[0] > 0 and dense[0] == 0
    assert dense[1] == everywhere[1] > 0


@pytest.mark.parametrize("name", [*ADDS])
def test_options_read_nothing_back(name):
    loss = instantiate(composed(f"+loss/option={name}").train)
    batch, preds = random_scene(dtype=torch.float32)
    views = [[{key: value.to("meta") for key, value in view.items()} for view in side] for side in (batch, preds, preds)]
    assert loss(*views).total.device.type == "meta"
