"""Parts that learn, and their rates: groups, frozen and unused parts, warm-up and cosine."""

from __future__ import annotations

import pytest
import torch

from mapanything.errors import InputError
from mapanything.models.config import ModelConfig, VehicleIdConfig
from mapanything.models.mapanything import MapAnything
from mapanything.train.optim import OptimConfig, freeze, make_optimizer, set_rates, unused_parts
from tests.helpers.networks import TINY

AUGMENTED = {
    "overall_prob": 0.9,
    "dropout_prob": 0.05,
    "ray_dirs_prob": 0.5,
    "depth_prob": 0.5,
    "cam_prob": 0.5,
    "sparse_depth_prob": 0.5,
    "sparsification_removal_percent": 0.9,
}


def network(inputs: dict[str, float] | None = None, roles: int = 0) -> MapAnything:
    values = TINY.to_dict()
    values["geometric_inputs"] |= inputs or {}
    values["vehicle_id"] = VehicleIdConfig(num_roles=roles).to_dict()
    return MapAnything(ModelConfig.from_dict(values))


def test_rate_over_the_epochs():
    config = OptimConfig(lr=1.0, epochs=10, warmup_fraction=0.1, min_lr_fraction=1e-3)
    assert config.factor(0) == 0 and config.factor(0.25) == 0.25 and config.factor(1) == 1
    assert config.factor(5.5) == pytest.approx(1e-3 + 0.999 * 0.5)
    assert config.factor(10) == pytest.approx(1e-3) == config.factor(11)
    assert all(config.factor(e / 10) >= config.factor((e + 1) / 10) for e in range(10, 100))
    assert OptimConfig(lr=1.0, epochs=1, warmup_fraction=0).factor(0) == 1


def test_groups_by_prefix_and_decay():
    model = network()
    config = OptimConfig(
        lr=1e-4, epochs=2, submodule_lr={"encoder.model.pos": 3e-6, "encoder": 5e-6, "scale_head": 0}, betas=[0.9, 0.95]
    )
    freeze(model, config, model.config.geometric_inputs)
    optimizer = make_optimizer(model, config)
    names = {id(p): n for n, p in model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen[name] = (group["base_lr"], group["weight_decay"])
            assert (group["weight_decay"] > 0) == (parameter.ndim > 1 and not name.endswith(".bias"))
            assert parameter.requires_grad
    assert seen["encoder.model.pos_embed"] == (3e-6, 0.05)
    assert seen["encoder.model.blocks.0.attn.qkv.weight"] == (5e-6, 0.05)
    assert seen["encoder.model.blocks.0.attn.qkv.bias"] == (5e-6, 0.0)
    assert seen["scale_token"] == (1e-4, 0.0) and seen["pose_head.proj.weight"] == (1e-4, 0.05)
    assert not any(name.startswith(("scale_head", "ray_dirs_encoder")) for name in seen)
    assert set_rates(optimizer, config, 0.1) == pytest.approx(0.5e-4)
    assert {round(g["lr"] / g["base_lr"], 9) for g in optimizer.param_groups} == {0.5}
    assert optimizer.defaults["betas"] == (0.9, 0.95)


@pytest.mark.parametrize(
    ("inputs", "roles", "unused"),
    [({}, 0, 6), (AUGMENTED, 3, 0), (AUGMENTED | {"cam_prob": 0.0}, 0, 3), (AUGMENTED | {"dropout_prob": 1.0}, 0, 6)],
)
def test_every_parameter_that_learns_gets_a_gradient(inputs, roles, unused, generated_root, generated_depth):
    """DDP would wait for one that does not, and nothing looks for such parameters."""
    from mapanything.datasets.opv2v import OPV2VCoopDataset
    from mapanything.datasets.views import collate
    from mapanything.train.loss_parity import load_loss
    from mapanything.train.objective import Objective

    torch.manual_seed(0)
    model = network(inputs, roles)
    count = freeze(model, OptimConfig(lr=1e-4, epochs=1), model.config.geometric_inputs)
    assert len(unused_parts(model.config.geometric_inputs)) == unused and (count["unused"] > 0) == (unused > 0)
    scenes = OPV2VCoopDataset(generated_root, generated_depth, split="train", resolution=(42, 28))
    loss = load_loss("overall_loss/train_criterion")
    Objective(model, loss, loss, amp=False)(collate([scenes[0]]))[0].backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_train_only():
    model = network(roles=2)
    count = freeze(model, OptimConfig(lr=1e-4, epochs=1, train_only=["vehicle_id"]), model.config.geometric_inputs)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["vehicle_id.embedding"]
    assert count["trained"] == 2 * 96


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0}, "lr > 0"),
        ({"epochs": 0}, "epochs >= 1"),
        ({"betas": [0.9]}, "two numbers"),
        ({"warmup_fraction": 1}, "warm-up below 1"),
        ({"train_only": ["vehicle_id"]}, "num_roles=N"),
        ({"submodule_lr": {"enkoder": 1}}, "starts with 'enkoder'"),
        ({"submodule_lr": {"": 0}}, "nothing is left to train"),
    ],
)
def test_what_cannot_be_is_said(values, message):
    with pytest.raises(InputError, match=message) as caught:
        freeze(network(), OptimConfig(**({"lr": 1e-4, "epochs": 1} | values)), TINY.geometric_inputs)
    assert "\n" not in str(caught.value)
