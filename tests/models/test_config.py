"""configs/model composes with Hydra and builds the networks of config.py, which have exactly upstream's weights."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mapanything.errors import InputError
from mapanything.models.config import GeometricInputsConfig, ModelConfig, architecture, architectures
from mapanything.models.mapanything import MapAnything
from mapanything.models.weights.identify import name_of
from tests.helpers.networks import V1_1

CONFIGS = Path(__file__).parents[2] / "configs"
# Of upstream's state dict: entries, unique parameters, sha256 of sorted "key shape dtype" lines. From state_dict_*.json.
UPSTREAM = {
    "mapanything": (812, 1_228_491_222, "dcb9905ae9e21ea6c8f7a6af8951167dd61d05054cb9747473d56c45a5219d68"),
    "mapanything_v1": (880, 563_335_382, "a57621b6e254abf370d837efbaff65d8abbfff608dfa2b6ddeb6821897135b6b"),
}


def composed(name: str, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(overrides=["+machine=default", f"+model={name}", *overrides]).model


def on_meta(config: ModelConfig) -> MapAnything:
    with torch.device("meta"):
        return MapAnything(config)


def test_every_model_config_is_an_architecture():
    assert sorted(architectures()) == sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))


@pytest.mark.parametrize("name", architectures())
def test_config_builds_its_architecture(name):
    config = composed(name)
    with torch.device("meta"):
        model = instantiate(config)
    assert type(model) is MapAnything and model.config == architectures()[name] and model.training
    # Every entry is there, so that each can be overridden without a plus sign.
    sections = architectures()["mapanything"].to_dict()
    assert set(config) == {"_target_", "_convert_", "pretrained", "dinov2", *sections}
    for section, values in sections.items():
        assert set(config[section]) == set(values)


def test_tiny_starts_from_random_weights_on_the_cpu():
    model = instantiate(composed("mapanything_tiny"))
    assert not any(p.is_meta for p in model.parameters()) and model.config == architectures()["mapanything_tiny"]


def test_overrides_of_the_notes():
    config = composed(
        "mapanything",
        "model.pretrained='${machine.root_experiments_dir}/opv2v_coop_stage2_full/checkpoint-best.pth'",
        "model.encoder.gradient_checkpointing=true",
        *(f"model.geometric_inputs.{name}=0.5" for name in GeometricInputsConfig.probabilities()),
        "model.vehicle_id.num_roles=7",
    )
    assert config.pretrained == "experiments/opv2v_coop_stage2_full/checkpoint-best.pth"
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    built = ModelConfig.from_dict({str(k): v for k, v in values.items() if k in V1_1.to_dict()})
    assert built.encoder.gradient_checkpointing and not built.multiview.gradient_checkpointing
    assert built.geometric_inputs.cam_prob == 0.5 and built.vehicle_id.num_roles == 7 and name_of(built) == "mapanything"
    with pytest.raises(ConfigCompositionException):
        composed("mapanything", "model.encoder.no_such_entry=1")


@pytest.mark.parametrize("name", UPSTREAM)
def test_official_networks_have_upstreams_weights(name):
    entries, parameters, digest = UPSTREAM[name]
    model = on_meta(architectures()[name])
    state = {key: ("x".join(map(str, t.shape)), str(t.dtype).removeprefix("torch.")) for key, t in model.state_dict().items()}
    if folder := os.environ.get("MAPANYTHING_SPEC_DIR"):  # for a difference that can be read
        file = {"mapanything": "state_dict_v1_1.json", "mapanything_v1": "state_dict_v1.json"}[name]
        listed = json.loads((Path(folder) / file).read_text())["state_dict"]
        assert state == {key: ("x".join(map(str, v["shape"])), v["dtype"]) for key, v in listed.items()}
    lines = sorted(f"{key} {shape} {dtype}" for key, (shape, dtype) in state.items())
    assert len(state) == entries and sum(p.numel() for p in model.parameters()) == parameters
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


@pytest.mark.parametrize(
    ("section", "entry", "value", "message"),
    [
        ("encoder", "dim", "abc", "a whole number from 1"),
        ("encoder", "num_heads", 0, "a whole number from 1"),
        ("encoder", "depth", True, "a whole number from 1"),
        ("multiview", "depth", 5000, "a whole number from 1 to 200"),
        ("heads", "pose_blocks", 201, "a whole number from 0 to 200"),
        ("encoder", "pos_grid", 4294967296, "to 100000"),
        ("encoder", "final_norm", 1, "true or false"),
        ("encoder", "ffn", ["mlp"], "a word"),
        ("multiview", "taps", 3, "whole numbers from 0"),
        ("multiview", "layer_scale", "x" * 100, "a number"),
        ("heads", "dpt_layer_dims", [1, 2, 3, None], "whole numbers from 1"),
        ("geometric_inputs", "overall_prob", None, "a number"),
        ("vehicle_id", "num_roles", -1, "a whole number from 0"),
    ],
)
def test_entries_of_another_kind_are_one_line(section, entry, value, message):
    with pytest.raises(InputError, match=message) as caught:
        V1_1.updated({section: {entry: value}})
    assert f"model.{section}.{entry}=" in str(caught.value) and len(str(caught.value)) < 150
    with pytest.raises(InputError, match="group of entries"):
        V1_1.updated({section: 3})


def test_an_architecture_that_there_is_not():
    with pytest.raises(InputError, match=r"mapanything_v2: no such network; there are mapanything, mapanything_tiny, "):
        architecture("mapanything_v2")
