"""Upstream's config, the arguments of its constructor (a hub folder's config.json), to ours and back.

Upstream builds many networks from it. Ours is one family, so most entries can have one value only. The tables here name the
entries of both by their path, in dots.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from mapanything.errors import InputError
from mapanything.models.config import PATCH, EncoderConfig, GeometricInputsConfig, ModelConfig

log = logging.getLogger(__name__)

# DINOv2's sizes: width, heads, blocks, kind and width of the feed-forward layers.
_DINOV2 = {
    "small": (384, 6, 12, "mlp", 1536),
    "base": (768, 12, 12, "mlp", 3072),
    "large": (1024, 16, 24, "mlp", 4096),
    "giant": (1536, 24, 40, "swiglu", 4096),
}
_POS_GRID = 37  # of all of them: trained at 518 pixels
_FFN = {"mlp": "mlp", "swiglufused": "swiglu", "swiglu": "swiglu"}

_SECTIONS = ("encoder_config", "info_sharing_config", "pred_head_config", "geometric_input_config")
_ENCODER, _SHARING, _HEADS, _GEOMETRIC = _SECTIONS
_MODULE, _FEATURE = f"{_SHARING}.module_args", f"{_HEADS}.feature_head"
_ENCODERS = {"ray_dirs": 3, "depth": 1, "cam_rot": 4, "cam_trans": 3, "scale": 1}  # of other inputs: channels
_DENSE, _GLOBAL = ("ray_dirs", "depth"), ("cam_rot", "cam_trans", "scale")
_REPRESENTATION = "raydirs+depth+pose+confidence+mask"

# Upstream's entry: ours, and what upstream takes where it is absent.
_ENTRIES: dict[str, tuple[str, Any]] = {
    f"{_ENCODER}.gradient_checkpointing": ("encoder.gradient_checkpointing", False),
    f"{_ENCODER}.norm_returned_features": ("encoder.final_norm", True),
    f"{_MODULE}.dim": ("multiview.dim", 768),
    f"{_MODULE}.num_heads": ("multiview.num_heads", 12),
    f"{_MODULE}.depth": ("multiview.depth", 12),
    f"{_MODULE}.init_values": ("multiview.layer_scale", None),
    f"{_MODULE}.indices": ("multiview.taps", ()),
    f"{_MODULE}.distinguish_ref_and_non_ref_views": ("multiview.reference_marker", True),
    f"{_MODULE}.gradient_checkpointing": ("multiview.gradient_checkpointing", False),
    "use_register_tokens_from_encoder": ("multiview.class_token", False),
    f"{_FEATURE}.feature_dim": ("heads.dpt_dim", 256),
    f"{_FEATURE}.layer_dims": ("heads.dpt_layer_dims", (96, 192, 384, 768)),
    f"{_HEADS}.pose_head.num_resconv_block": ("heads.pose_blocks", 2),
    f"{_HEADS}.scale_head.hidden_dim": ("heads.scale_dim", 196),
    f"{_HEADS}.gradient_checkpointing": ("heads.gradient_checkpointing", False),
}
for _field in fields(GeometricInputsConfig):
    if _field.name in GeometricInputsConfig.probabilities():
        _ENTRIES[f"{_GEOMETRIC}.{_field.name}"] = (f"geometric_inputs.{_field.name}", _field.default)
_UNKNOWN_TO_V1 = (
    f"{_ENCODER}.norm_returned_features",
    "use_register_tokens_from_encoder",
)  # its release; left out if they can

# What this network computes in one way only; an absent entry has that value upstream, but those of `_ONLY` are written.
_ADAPTORS: dict[str, dict[str, Any]] = {
    "dpt_adaptor": {
        "ray_directions_mode": "linear",
        "ray_directions_normalize_to_unit_sphere": True,
        "ray_directions_normalize_to_unit_image_plane": False,
        "ray_directions_vmin": -math.inf,
        "ray_directions_vmax": math.inf,
        "ray_directions_clamp_min_of_z_dir": False,
        "ray_directions_z_dir_min": -math.inf,
        "depth_mode": "exp",
        "depth_vmin": 0,
        "depth_vmax": math.inf,
        "confidence_type": "exp",
        "confidence_vmin": 1,
        "confidence_vmax": math.inf,
    },
    "pose_adaptor": {
        "cam_trans_mode": "linear",
        "cam_trans_vmin": -math.inf,
        "cam_trans_vmax": math.inf,
        "quaternions_mode": "linear",
        "quaternions_normalize": True,
        "quaternions_vmin": -math.inf,
        "quaternions_vmax": math.inf,
    },
    "scale_adaptor": {"mode": "exp", "vmin": 1e-8, "vmax": math.inf},
}
_ONLY: dict[str, Any] = {
    f"{_ENCODER}.encoder_str": "dinov2",
    f"{_ENCODER}.data_norm_type": "dinov2",
    f"{_ENCODER}.with_registers": False,
    f"{_ENCODER}.patch_size": PATCH,
    f"{_SHARING}.model_type": "alternating_attention",
    f"{_SHARING}.model_return_type": "intermediate_features",
    f"{_SHARING}.custom_positional_encoding": None,
    f"{_MODULE}.norm_intermediate": True,
    f"{_MODULE}.qkv_bias": True,
    f"{_MODULE}.qk_norm": False,
    f"{_HEADS}.type": "dpt+pose",
    f"{_HEADS}.adaptor_type": _REPRESENTATION,
    f"{_FEATURE}.hooks": [0, 1, 2, 3],
    f"{_HEADS}.regressor_head.output_dim": 6,
    f"{_HEADS}.pose_head.rot_representation_dim": 4,
    f"{_HEADS}.scale_head.output_dim": 1,
}
_ONLY |= {f"{_HEADS}.{adaptor}.{name}": only for adaptor, values in _ADAPTORS.items() for name, only in values.items()}
_ONLY |= {f"{_GEOMETRIC}.{name}_encoder_config.encoder_str": "dense_rep_encoder" for name in _DENSE}
_ONLY |= {f"{_GEOMETRIC}.{name}_encoder_config.encoder_str": "global_rep_encoder" for name in _GLOBAL}
_OF_DINOV2 = {"patch_size": PATCH, "num_register_tokens": 0, "interpolate_offset": 0.1, "interpolate_antialias": False}
_CHECKED = _ONLY | {f"dinov2.{name}": only for name, only in _OF_DINOV2.items()}
_CHECKED |= {f"{_GEOMETRIC}.{name}_encoder_config.patch_size": PATCH for name in _DENSE}
_CHECKED |= {f"{_FEATURE}.patch_size": PATCH, f"{_HEADS}.pose_head.patch_size": PATCH}
_CHECKED |= {f"{_MODULE}.{name}": 0 for name in ("proj_drop", "attn_drop", "drop_path")}
_CHECKED |= {f"{_MODULE}.use_{name}": False for name in ("scalable_softmax", "entropy_scaling", "pe_for_non_reference_views")}
_CHECKED |= {f"{_MODULE}.custom_positional_encoding": None}

# Read in other ways; and of no meaning, wherever they stand: where start weights come from, how it is computed, what upstream
# fills in by itself from other entries.
_READ = {
    f"{_ENCODER}.keep_first_n_layers",
    f"{_MODULE}.mlp_ratio",
    "info_sharing_mlp_layer_str",
    f"{_FEATURE}.checkpoint_gradient",
    f"{_HEADS}.regressor_head.checkpoint_gradient",
}
_READ |= {f"{_GEOMETRIC}.{name}_encoder_config.{entry}" for name in _ENCODERS for entry in ("intermediate_dims", "apply_pe")}
_READ |= {
    f"dinov2.{name}" for name in ("embed_dim", "num_heads", "depth", "ffn_layer", "mlp_ratio", "img_size", "kept_blocks")
}
_START = ("name", "pretrained_checkpoint_path", "load_specific_pretrained_submodules", "specific_pretrained_submodules")
_HOW = ("torch_hub_force_reload", "torch_hub_pretrained", "uses_torch_hub", "use_pytorch_sdpa", "disable_torch_compile_for_pe")
_FILLED = ("input_embed_dim", "enc_embed_dim", "input_feature_dim", "input_feature_dims", "in_chans", "adaptor_config", "size")
_FILLED_TOO = ("fusion_norm_layer", "mlp_layer", "max_num_views_for_pe", "use_rand_idx_pe_for_non_reference_views")
_IGNORED = {*_START, *_HOW, *_FILLED, *_FILLED_TOO, "vehicle_id"}  # the last is ours, and read as a whole
_KNOWN = {*_ENTRIES, *_CHECKED, *_READ}
_GROUPS = {key[:place] for key in _KNOWN for place, letter in enumerate(key) if letter == "."}


def config_from_upstream(model_config: Mapping[str, Any], dinov2: Mapping[str, Any] | None = None) -> ModelConfig:
    """Our config for the network that upstream's constructor builds from these arguments.

    Args:
        model_config: the top level of a hub folder's config.json. An entry `dinov2` is read like the argument, an entry
            `vehicle_id` is ours; both are written by `config_to_upstream`.
        dinov2: describes an image encoder that is none of DINOv2's sizes: embed_dim, num_heads, depth, ffn_layer, mlp_ratio,
            img_size (of the position embedding), kept_blocks.

    Raises:
        InputError: an entry that asks for what this network does not compute, by name. Entries that nobody knows are logged
            and left aside: weights of other shapes will not load.
    """
    whole = dict(model_config) if dinov2 is None else {**model_config, "dinov2": dinov2}
    for name in _SECTIONS:
        if whole.get(name) is None:
            raise InputError(f"config: no {name}; give the arguments of upstream's MapAnything, as in its config.json")
    given = dict(_leaves(whole))
    unknown = []
    for key, value in given.items():
        if key in _CHECKED and not _equal(value, _CHECKED[key]):
            raise InputError(f"config: {key}={value!r}; this network only knows {_CHECKED[key]!r}")
        if key in _GROUPS and value is not None:
            raise InputError(f"config: {key} is {value!r}; it should be a group of entries")
        if key not in _KNOWN | _GROUPS and not _IGNORED & set(key.split(".")):
            unknown.append(key)
    if unknown:
        log.warning("config: %s: not known to this network, left aside", ", ".join(unknown))
    own: dict[str, Any] = {"vehicle_id": whole.get("vehicle_id") or {}}
    for key, (name, default) in _ENTRIES.items():
        value = given.get(key, default)
        _put(own, name, bool(value) if isinstance(default, bool) else default if value is None else value)
    own["heads"]["gradient_checkpointing"] |= bool(given.get(f"{_FEATURE}.checkpoint_gradient"))
    multi = own["multiview"]
    multi["ffn"] = _ffn(given.get("info_sharing_mlp_layer_str", "mlp"), "info_sharing_mlp_layer_str")
    try:
        own["geometric_inputs"]["dense_dims"] = _widths(given, _DENSE, (588, 768, 1024))
        own["geometric_inputs"]["global_dims"] = _widths(given, _GLOBAL, (128, 256, 512))
        multi["ffn_dim"] = _ffn_dim(multi["ffn"], multi["dim"], given.get(f"{_MODULE}.mlp_ratio", 4))
        own["encoder"] |= _encoder(whole[_ENCODER], whole.get("dinov2"))
        return ModelConfig.from_dict(own)
    except (TypeError, ValueError) as error:  # a word where a number should be
        raise InputError(f"config: a value of the wrong kind ({error})") from error


def config_to_upstream(config: ModelConfig) -> dict[str, Any]:
    """Arguments with which upstream's constructor builds the same network; `config_from_upstream` gives `config` back.

    What upstream cannot say is added only where it is so: `dinov2` for an image encoder of another size, `vehicle_id`.

    Raises:
        InputError: a width that no ratio of upstream's gives.
    """
    own = dict(_leaves(config.to_dict()))
    encoder, multi = config.encoder, config.multiview
    size = _size_of(encoder)
    large = size or ("giant" if encoder.ffn == "swiglu" else "large")
    whole = size is not None and encoder.depth == _DINOV2[size][2]
    values = _ONLY | {key: own[name] for key, (name, _) in _ENTRIES.items()}
    for key in _UNKNOWN_TO_V1:
        if values[key] == _ENTRIES[key][1]:
            del values[key]
    values |= {
        "name": "mapanything",
        f"{_ENCODER}.name": f"dinov2_{large}" + ("" if whole else f"_{encoder.depth}_layers"),
        f"{_ENCODER}.size": large,
        f"{_ENCODER}.uses_torch_hub": True,
        f"{_MODULE}.name": f"aat_{multi.depth}_layers_ifr",
        f"{_MODULE}.size": f"{multi.depth}_layers",
        f"{_MODULE}.mlp_ratio": _mlp_ratio(multi.ffn, multi.dim, multi.ffn_dim, "multiview"),
        f"{_FEATURE}.checkpoint_gradient": config.heads.gradient_checkpointing,
        f"{_HEADS}.regressor_head.checkpoint_gradient": config.heads.gradient_checkpointing,
    }
    if not whole:
        values[f"{_ENCODER}.keep_first_n_layers"] = encoder.depth
    if multi.ffn == "swiglu":
        values["info_sharing_mlp_layer_str"] = "swiglufused"
    for adaptor in _ADAPTORS:
        values[f"{_HEADS}.{adaptor}.name"] = f"{_REPRESENTATION}+scale"
    for name, channels in _ENCODERS.items():
        where = f"{_GEOMETRIC}.{name}_encoder_config"
        values[f"{where}.name"] = {"cam_rot": "cam_rot_quats"}.get(name, name) + "_encoder"
        values[f"{where}.in_chans"] = channels
        values[f"{where}.intermediate_dims"] = own[f"geometric_inputs.{'dense' if name in _DENSE else 'global'}_dims"]
        if name in _DENSE:
            values[f"{where}.apply_pe"] = False
    upstream: dict[str, Any] = {}
    for key, value in values.items():
        _put(upstream, key, value)
    if not size:
        upstream["dinov2"] = _OF_DINOV2 | {
            "embed_dim": encoder.dim,
            "num_heads": encoder.num_heads,
            "depth": encoder.depth,
            "ffn_layer": "mlp" if encoder.ffn == "mlp" else "swiglufused",
            "mlp_ratio": _mlp_ratio(encoder.ffn, encoder.dim, encoder.ffn_dim, "encoder"),
            "img_size": encoder.pos_grid * PATCH,
            "kept_blocks": encoder.depth,
        }
    if config.vehicle_id.num_roles:
        upstream["vehicle_id"] = config.vehicle_id.to_dict()
    return upstream


def to_json(upstream: Mapping[str, Any]) -> str:
    """The text of a config.json.

    Limits are infinite: upstream writes `Infinity`, which is no JSON; `1e999` is, and every reader of floating-point numbers,
    Python's too, takes it for infinity.
    """
    return json.dumps(upstream, indent=2).replace("Infinity", "1e999") + "\n"


def _leaves(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a nested mapping by their paths."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *groups, name = key.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[name] = value


def _equal(value: Any, only: Any) -> bool:
    if isinstance(value, str) and isinstance(only, float):  # YAML and JSON writers have several words for infinity
        value = {"infinity": math.inf, "-infinity": -math.inf, "inf": math.inf, "-inf": -math.inf}.get(value.lower(), value)
    return list(value) == only if isinstance(only, list) and isinstance(value, (list, tuple)) else value == only


def _widths(given: Mapping[str, Any], names: tuple[str, ...], default: tuple[int, ...]) -> list[int]:
    found: dict[str, list[int]] = {}
    for name in names:
        where = f"{_GEOMETRIC}.{name}_encoder_config"
        if name in _DENSE and given.get(f"{where}.apply_pe", True):  # upstream's default is on
            raise InputError(f"config: {where}.apply_pe is on; this network has no position encoding there")
        found[f"{where}.intermediate_dims"] = list(given.get(f"{where}.intermediate_dims", default))
    first = next(iter(found.values()))
    for where, own in found.items():
        if own != first:
            raise InputError(f"config: {where}={own}; here they are {first} for all of {', '.join(names)}")
    return first


def _encoder(values: Mapping[str, Any], dinov2: Mapping[str, Any] | None) -> dict[str, Any]:
    if dinov2 is None:
        size = values.get("size", "large")
        if size not in _DINOV2:
            raise InputError(f"config: encoder_config.size={size!r}; there are {', '.join(_DINOV2)}")
        dim, num_heads, blocks, ffn, ffn_dim = _DINOV2[size]
        pos_grid = _POS_GRID
    else:
        missing = [name for name in ("embed_dim", "num_heads", "depth") if name not in dinov2]
        if missing:
            raise InputError(f"config: dinov2.{missing[0]} is missing")
        dim, num_heads, blocks = dinov2["embed_dim"], dinov2["num_heads"], dinov2["depth"]
        ffn = _ffn(dinov2.get("ffn_layer", "mlp"), "dinov2.ffn_layer")
        ffn_dim = _ffn_dim(ffn, dim, dinov2.get("mlp_ratio", 4))
        pos_grid = dinov2.get("img_size", _POS_GRID * PATCH) // PATCH
        blocks = dinov2.get("kept_blocks") or blocks
    depth = values.get("keep_first_n_layers") or blocks
    return {"dim": dim, "num_heads": num_heads, "depth": depth, "ffn": ffn, "ffn_dim": ffn_dim, "pos_grid": pos_grid}


def _size_of(encoder: EncoderConfig) -> str | None:
    for size, (dim, num_heads, blocks, ffn, ffn_dim) in _DINOV2.items():
        same = (encoder.dim, encoder.num_heads, encoder.ffn, encoder.ffn_dim) == (dim, num_heads, ffn, ffn_dim)
        if same and encoder.pos_grid == _POS_GRID and encoder.depth <= blocks:
            return size
    return None


def _ffn(word: str, where: str) -> str:
    if word not in _FFN:
        raise InputError(f"config: {where}={word!r}; this network knows {', '.join(_FFN)}")
    return _FFN[word]


def _ffn_dim(ffn: str, dim: int, ratio: float) -> int:
    hidden = int(dim * ratio)
    return hidden if ffn == "mlp" else (int(hidden * 2 / 3) + 7) // 8 * 8  # so that SwiGLU has as many weights


def _mlp_ratio(ffn: str, dim: int, ffn_dim: int, where: str) -> float:
    hidden = ffn_dim if ffn == "mlp" else ffn_dim * 3 // 2
    for ratio in (hidden // dim, hidden / dim, math.nextafter(hidden / dim, math.inf), (hidden + 1) / dim):
        if _ffn_dim(ffn, dim, ratio) == ffn_dim:
            return ratio
    raise InputError(f"model config: {where}.ffn_dim={ffn_dim}: upstream rounds the width of SwiGLU up to a multiple of 8")
