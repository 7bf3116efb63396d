"""The network that weights belong to: what a config beside them says, and what their shapes do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mapanything.errors import InputError
from mapanything.models.config import ModelConfig, architectures
from mapanything.models.mapanything import MapAnything
from mapanything.models.weights.identify import config_of, name_of
from mapanything.models.weights.names import canonical_name
from tests.helpers.networks import TINY, V1_1
from tests.helpers.weight_files import saved, state

load = MapAnything.from_pretrained


def test_a_config_beside_the_weights_tells_what_shapes_do_not(tmp_path):
    config = replace(
        TINY,
        multiview=replace(TINY.multiview, taps=(0, 3 - 1), num_heads=2, depth=3),
        encoder=replace(TINY.encoder, num_heads=6),
    )
    other = MapAnything(config)
    with pytest.raises(InputError, match=r"none of the known networks \(encoder of 4 blocks of 96, transformer of 3 blocks"):
        load(saved(state(other), tmp_path / "a.pth"))
    assert load(saved({"model": state(other), "model_config": config.to_dict()}, tmp_path / "b.pth")).config == config
    other.save_pretrained(tmp_path / "hub")
    assert load(tmp_path / "hub").config == config


@pytest.mark.parametrize("name", architectures())
@pytest.mark.parametrize("roles", [0, 5])
@pytest.mark.parametrize("marker", [True, False])
def test_shapes_tell_the_architecture(name, roles, marker):
    known = architectures()[name]
    values = known.to_dict()
    values["vehicle_id"]["num_roles"], values["multiview"]["reference_marker"] = roles, marker
    config = ModelConfig.from_dict(values)
    with torch.device("meta"):
        model = MapAnything(config)
    state = model.state_dict()
    assert ("vehicle_id.embedding" in state) == (roles > 0) and ("info_sharing.view_pos_table" in state) == marker
    if roles:
        assert tuple(state["vehicle_id.embedding"].shape) == (roles, known.encoder.dim)
    assert config_of({canonical_name(key): tensor.shape for key, tensor in state.items()}) == config


def test_switches_do_not_change_the_name():
    values = V1_1.to_dict()
    values["encoder"]["gradient_checkpointing"] = True
    assert name_of(ModelConfig.from_dict(values)) == "mapanything"
    values["encoder"]["depth"] = 23
    assert name_of(ModelConfig.from_dict(values)) is None
