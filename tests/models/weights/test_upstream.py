"""Upstream's config, to ours and back. MAPANYTHING_SPEC_DIR names the folder with upstream's own lists, if there."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mapanything.errors import InputError
from mapanything.models.config import (
    EncoderConfig,
    GeometricInputsConfig,
    ModelConfig,
    MultiViewConfig,
    VehicleIdConfig,
    architectures,
)
from mapanything.models.mapanything import MapAnything
from mapanything.models.weights.names import canonical_name
from mapanything.models.weights.upstream import config_from_upstream, config_to_upstream, to_json
from tests.helpers.networks import TINY, V1, V1_1


@pytest.mark.parametrize("config", architectures().values(), ids=architectures())
def test_config_round_trip(config):
    upstream = config_to_upstream(config)
    assert config_from_upstream(upstream) == config
    text = to_json(upstream)
    assert "Infinity" not in text and config_from_upstream(json.loads(text)) == config
    assert ("dinov2" in upstream) == (config is TINY) and "vehicle_id" not in upstream


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_config_round_trip_of_any_network(data):
    def draw(strategy):
        return data.draw(strategy)

    heads, width = draw(st.sampled_from([1, 3, 4, 16])), draw(st.sampled_from([32, 64, 80]))
    ffn = draw(st.sampled_from(["mlp", "swiglu"]))
    ffn_dim = draw(st.integers(1, 900)) * (1 if ffn == "mlp" else 8)
    flags = [draw(st.booleans()) for _ in range(6)]
    config = ModelConfig(
        encoder=EncoderConfig(heads * width, heads, draw(st.integers(1, 40)), ffn, ffn_dim, 16, flags[0], flags[1]),
        multiview=MultiViewConfig(
            *(heads * width, heads, 5, ffn, ffn_dim, draw(st.sampled_from([None, 0.1])), (1, 4)), *flags[2:5]
        ),
        geometric_inputs=TINY.geometric_inputs.updated(
            dict.fromkeys(GeometricInputsConfig.probabilities(), draw(st.floats(0, 1)))
        ),
        heads=replace(TINY.heads, gradient_checkpointing=flags[5]),
        vehicle_id=VehicleIdConfig(num_roles=7, shuffle=False),
    )
    assert config_from_upstream(json.loads(to_json(config_to_upstream(config)))) == config


def test_width_that_upstream_cannot_say():
    with pytest.raises(InputError, match=r"multiview\.ffn_dim=250"):
        config_to_upstream(replace(TINY, multiview=replace(TINY.multiview, ffn_dim=250)))


def test_v1_needs_no_argument_that_its_release_did_not_have():
    text = to_json(config_to_upstream(V1))
    assert not any(
        word in text for word in ("use_register_tokens", "mlp_layer_str", "norm_returned", "keep_first", 'dinov2": {')
    )


@pytest.mark.parametrize(("name", "config"), [("v1", V1), ("v1_1", V1_1)])
def test_official_config_as_listed(spec, name, config, caplog):
    listed = json.loads((spec / f"state_dict_{name}.json").read_text())["config"]
    before = copy.deepcopy(listed)
    with caplog.at_level(logging.WARNING):
        assert config_from_upstream(listed) == config
    assert listed == before and not caplog.records  # nothing written into it (upstream does), nothing unknown

    def compare(ours, theirs, where=""):
        for entry, value in ours.items():
            if entry in theirs and isinstance(value, dict):
                compare(value, theirs[entry], f"{where}{entry}.")
            elif entry in theirs and entry != "name":
                assert value == theirs[entry], where + entry

    compare(config_to_upstream(config), listed)


def test_parity_configs(spec):
    stored = torch.load(spec / "parity.pt", weights_only=True)
    small = stored["v1_1_small"]["config"]
    config = config_from_upstream(small["model_config"], small["dinov2"])
    assert (config.encoder.depth, config.encoder.pos_grid, config.encoder.num_heads) == (3, 8, 4)
    assert config.multiview.taps == (1, 2) and config.multiview.class_token and not config.encoder.final_norm
    for entry in stored.values():
        config = config_from_upstream(entry["config"]["model_config"], entry["config"]["dinov2"])
        with torch.device("meta"):
            state = MapAnything(config).state_dict()
        shapes = {name: list(state[name].shape) for name in map(canonical_name, state) if not name.endswith("view_pos_table")}
        assert shapes == {key: list(shape) for key, shape in entry["keys"].items()}


def test_defaults_are_upstreams():
    values = config_to_upstream(V1)
    module = values["info_sharing_config"]["module_args"]
    for name in ("dim", "num_heads", "mlp_ratio", "init_values", "qkv_bias", "qk_norm", "norm_intermediate"):
        del module[name]
    del values["pred_head_config"]["feature_head"]["layer_dims"], values["pred_head_config"]["scale_head"]["hidden_dim"]
    for name in ("ray_dirs", "depth", "cam_rot", "cam_trans", "scale"):
        del values["geometric_input_config"][f"{name}_encoder_config"]["intermediate_dims"]
    assert config_from_upstream(values) == V1


CHANGES = {
    "encoder_config.encoder_str": "radio",
    "encoder_config.with_registers": True,
    "encoder_config.size": "huge",
    "info_sharing_config.model_type": "global_attention",
    "info_sharing_config.custom_positional_encoding": "rope",
    "info_sharing_config.module_args.qk_norm": True,
    "info_sharing_config.module_args.use_pe_for_non_reference_views": True,
    "info_sharing_config.module_args.indices": [5, 7, 11],
    "info_sharing_config.module_args.dim": "wide",
    "info_sharing_config.module_args": 3,
    "pred_head_config.adaptor_type": "campointmap+pose",
    "pred_head_config.type": "dpt",
    "pred_head_config.dpt_adaptor.depth_mode": "linear",
    "pred_head_config.scale_adaptor.vmax": 10.0,
    "geometric_input_config.depth_encoder_config.apply_pe": True,
    "geometric_input_config.cam_rot_encoder_config.intermediate_dims": [1, 2, 3],
    "geometric_input_config.overall_prob": 1.5,
    "info_sharing_mlp_layer_str": "relu",
    "encoder_config": None,
}


OWN_WORDS = {  # where the message says it in the words of our config
    "info_sharing_config.module_args.indices": r"multiview\.taps=\(5, 7, 11\)",
    "info_sharing_config.module_args.dim": "wrong kind",
}


@pytest.mark.parametrize("entry", CHANGES)
def test_what_this_network_cannot_do_is_refused_by_name(entry):
    values = config_to_upstream(V1_1)
    *path, name = entry.split(".")
    section = values
    for step in path:
        section = section[step]
    section[name] = CHANGES[entry]
    with pytest.raises(InputError, match=OWN_WORDS.get(entry, name)) as error:
        config_from_upstream(values)
    assert "\n" not in str(error.value)


def test_other_words_for_infinity_and_unknown_entries(caplog):
    values = config_to_upstream(V1_1)
    values["pred_head_config"]["dpt_adaptor"]["depth_vmax"] = "Infinity"
    values["pred_head_config"]["scale_adaptor"]["vmax"] = ".inf".strip(".")
    values["info_sharing_config"]["module_args"]["mlp_layer"] = "<class 'uniception.models.utils.transformer_blocks.Mlp'>"
    values["encoder_config"]["colour"] = "blue"
    with caplog.at_level(logging.WARNING):
        assert config_from_upstream(values) == V1_1
    assert [record.getMessage() for record in caplog.records] == [
        "config: encoder_config.colour: not known to this network, left aside"
    ]
