"""Upstream's names of weights, to ours and back. MAPANYTHING_SPEC_DIR names the folder with upstream's own lists, if there."""

from __future__ import annotations

import json

import pytest

from mapanything.models.mapanything import MapAnything
from mapanything.models.weights.names import aliases, canonical_name, safetensors_names
from tests.helpers.networks import TINY


def test_names_of_one_weight():
    names = aliases("dpt_feature_head.scratch.layer2_rn.weight")
    assert sorted(names) == sorted(
        f"{head}.{inner}.weight"
        for head in ("dpt_feature_head", "dense_head.0")
        for inner in ("scratch.layer2_rn", "scratch.layer_rn.1", "input_process.1.1")
    )
    assert {canonical_name(name) for name in names} == {names[0]}
    assert aliases("dpt_regressor_head.conv2.0.bias") == ["dpt_regressor_head.conv2.0.bias", "dense_head.1.conv2.0.bias"]
    # Like one, but another weight: the projection before the 3×3 convolution.
    assert canonical_name("dense_head.0.input_process.1.0.1.weight") == "dpt_feature_head.input_process.1.0.1.weight"
    assert aliases("pose_head.proj.weight") == ["pose_head.proj.weight"]


def test_aliases_are_the_shared_tensors_of_the_model():
    model = MapAnything(TINY)
    shared: dict[int, set[str]] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        shared.setdefault(id(tensor), set()).add(key)
    groups: dict[str, set[str]] = {}
    for key in model.state_dict():
        groups.setdefault(canonical_name(key), set()).add(key)
    assert sorted(map(sorted, shared.values())) == sorted(map(sorted, groups.values()))
    assert all(names == set(aliases(name)) for name, names in groups.items())
    assert sum(len(names) > 1 for names in groups.values()) == 60


def test_safetensors_keeps_the_names_that_its_own_rule_keeps(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_model

    model = MapAnything(TINY)
    save_model(model, str(tmp_path / "model.safetensors"))
    kept, metadata = safetensors_names(model.state_dict())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(kept.values())
        assert {k: v for k, v in file.metadata().items() if k != "format"} == metadata


def test_safetensors_names_as_listed(spec):
    listed = json.loads((spec / "safetensors_alias_keys.json").read_text())
    kept, metadata = safetensors_names([*listed["kept_keys"], *listed["removed"]])
    assert sorted(kept.values()) == sorted(listed["kept_keys"]) and metadata == listed["metadata"]


@pytest.mark.parametrize("name", ["v1", "v1_1"])
def test_alias_groups_as_listed(spec, name):
    listed = json.loads((spec / f"state_dict_{name}.json").read_text())["aliases"]
    assert {first: set(aliases(first)) for first in listed} == {first: {first, *rest} for first, rest in listed.items()}
