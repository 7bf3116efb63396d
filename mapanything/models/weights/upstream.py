"""Upstream's config, the arguments of its constructor (a hub folder's config.json), to ours and back.

Upstream builds many networks from it. Ours is one family, so most entries can have one value only; those are the tables here.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from mapanything.errors import InputError
from mapanything.models.config import (
    PATCH,
    EncoderConfig,
    GeometricInputsConfig,
    HeadsConfig,
    ModelConfig,
    MultiViewConfig,
    VehicleIdConfig,
)

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
_ENCODERS = ("ray_dirs", "depth", "cam_rot", "cam_trans", "scale")
_DENSE, _GLOBAL = _ENCODERS[:2], _ENCODERS[2:]
_REPRESENTATION = "raydirs+depth+pose+confidence+mask"


def _encoder_section(encoder: str) -> str:
    return f"geometric_input_config.{encoder}_encoder_config"


# What this network computes in one way only: (section, entry) -> the only value; an absent entry has that value upstream.
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
_ONLY: dict[str, dict[str, Any]] = {
    "encoder_config": {"encoder_str": "dinov2", "data_norm_type": "dinov2", "with_registers": False, "patch_size": PATCH},
    "info_sharing_config": {
        "model_type": "alternating_attention",
        "model_return_type": "intermediate_features",
        "custom_positional_encoding": None,
    },
    "info_sharing_config.module_args": {
        "norm_intermediate": True,
        "qkv_bias": True,
        "qk_norm": False,
        "proj_drop": 0,
        "attn_drop": 0,
        "drop_path": 0,
        "use_pe_for_non_reference_views": False,
        "use_scalable_softmax": False,
        "use_entropy_scaling": False,
        "custom_positional_encoding": None,
    },
    "pred_head_config": {"type": "dpt+pose", "adaptor_type": _REPRESENTATION},
    "pred_head_config.feature_head": {"hooks": [0, 1, 2, 3], "patch_size": PATCH},
    "pred_head_config.regressor_head": {"output_dim": 6},
    "pred_head_config.pose_head": {"rot_representation_dim": 4, "patch_size": PATCH},
    "pred_head_config.scale_head": {"output_dim": 1},
    "dinov2": {
        "patch_size": PATCH,
        "num_register_tokens": 0,
        "interpolate_offset": 0.1,
        "interpolate_antialias": False,
    },
}
_ONLY |= {f"pred_head_config.{name}": values for name, values in _ADAPTORS.items()}
_ONLY |= {_encoder_section(name): {"encoder_str": "dense_rep_encoder", "patch_size": PATCH} for name in _DENSE}
_ONLY |= {_encoder_section(name): {"encoder_str": "global_rep_encoder"} for name in _GLOBAL}

# No meaning for the computation: where start weights come from; what upstream fills in by itself; how it computes.
_START = ("name", "pretrained_checkpoint_path", "load_specific_pretrained_submodules", "specific_pretrained_submodules")
_FILLED = ("input_embed_dim", "enc_embed_dim", "input_feature_dim", "input_feature_dims", "in_chans", "adaptor_config", "size")
_FILLED_TOO = ("fusion_norm_layer", "mlp_layer", "init_values", "max_num_views_for_pe")
_HOW = ("torch_hub_force_reload", "torch_hub_pretrained", "uses_torch_hub", "use_pytorch_sdpa")
_HOW_TOO = ("disable_torch_compile_for_pe", "use_rand_idx_pe_for_non_reference_views")
_IGNORED = frozenset(_START + _FILLED + _FILLED_TOO + _HOW + _HOW_TOO)

_SECTIONS = ("encoder_config", "info_sharing_config", "pred_head_config", "geometric_input_config")
_MODULE = ("indices", "depth", "dim", "num_heads", "mlp_ratio", "init_values")
_READ: dict[str, tuple[str, ...]] = {
    "": (*_SECTIONS, "use_register_tokens_from_encoder", "info_sharing_mlp_layer_str", "dinov2", "vehicle_id"),
    "encoder_config": ("gradient_checkpointing", "norm_returned_features", "keep_first_n_layers"),
    "info_sharing_config": ("module_args",),
    "info_sharing_config.module_args": (*_MODULE, "gradient_checkpointing", "distinguish_ref_and_non_ref_views"),
    "pred_head_config": ("feature_head", "regressor_head", "pose_head", "scale_head", "gradient_checkpointing", *_ADAPTORS),
    "pred_head_config.feature_head": ("feature_dim", "layer_dims", "checkpoint_gradient"),
    "pred_head_config.regressor_head": ("checkpoint_gradient",),
    "pred_head_config.pose_head": ("num_resconv_block",),
    "pred_head_config.scale_head": ("hidden_dim",),
    "geometric_input_config": (*(f"{n}_encoder_config" for n in _ENCODERS), *GeometricInputsConfig.probabilities()),
    "dinov2": ("embed_dim", "num_heads", "depth", "ffn_layer", "mlp_ratio", "img_size", "kept_blocks"),
}
_READ |= {_encoder_section(name): ("intermediate_dims", "apply_pe") for name in _ENCODERS}


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
    sections: dict[str, Mapping[str, Any]] = {"": whole} | {
        where: _section(whole, where) for where in (*_ONLY, "geometric_input_config")
    }
    unknown = []
    for where, values in sections.items():
        only = _ONLY.get(where, {})
        for name, value in only.items():
            if name in values and not _equal(values[name], value):
                raise InputError(f"config: {_join(where, name)}={values[name]!r}; this network only knows {value!r}")
        unknown += [_join(where, n) for n in values if n not in only and n not in _READ.get(where, ()) and n not in _IGNORED]
    if unknown:
        log.warning("config: %s: not known to this network, left aside", ", ".join(unknown))

    module, heads = sections["info_sharing_config.module_args"], sections["pred_head_config"]
    feature = sections["pred_head_config.feature_head"]
    dim, geometric = module.get("dim", 768), sections["geometric_input_config"]
    try:
        return ModelConfig(
            encoder=_encoder(sections["encoder_config"], whole.get("dinov2")),
            multiview=MultiViewConfig(
                dim=dim,
                num_heads=module.get("num_heads", 12),
                depth=module.get("depth", 12),
                ffn=(ffn := _ffn(whole.get("info_sharing_mlp_layer_str", "mlp"), "info_sharing_mlp_layer_str")),
                ffn_dim=_ffn_dim(ffn, dim, module.get("mlp_ratio", 4)),
                layer_scale=module.get("init_values"),
                taps=tuple(module.get("indices") or ()),
                class_token=bool(whole.get("use_register_tokens_from_encoder", False)),
                reference_marker=bool(module.get("distinguish_ref_and_non_ref_views", True)),
                gradient_checkpointing=bool(module.get("gradient_checkpointing", False)),
            ),
            geometric_inputs=GeometricInputsConfig(
                dense_dims=_widths(sections, _DENSE, (588, 768, 1024)),
                global_dims=_widths(sections, _GLOBAL, (128, 256, 512)),
                **{name: geometric[name] for name in GeometricInputsConfig.probabilities() if name in geometric},
            ),
            heads=HeadsConfig(
                dpt_dim=feature.get("feature_dim", 256),
                dpt_layer_dims=tuple(feature.get("layer_dims", (96, 192, 384, 768))),
                pose_blocks=sections["pred_head_config.pose_head"].get("num_resconv_block", 2),
                scale_dim=sections["pred_head_config.scale_head"].get("hidden_dim", 196),
                gradient_checkpointing=bool(heads.get("gradient_checkpointing") or feature.get("checkpoint_gradient")),
            ),
            vehicle_id=VehicleIdConfig.from_dict(whole.get("vehicle_id") or {}),
        )
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # a word where a number should be
        raise InputError(f"config: a value of the wrong kind ({error})") from error


def config_to_upstream(config: ModelConfig) -> dict[str, Any]:
    """Arguments with which upstream's constructor builds the same network; `config_from_upstream` gives `config` back.

    What upstream cannot say is added only where it is so: `dinov2` for an image encoder of another size, `vehicle_id`.

    Raises:
        InputError: a width that no ratio of upstream's gives.
    """
    encoder, multi, geometric, heads = config.encoder, config.multiview, config.geometric_inputs, config.heads
    size = _size_of(encoder)
    large = "giant" if encoder.ffn == "swiglu" else "large"
    blocks = _DINOV2[size][2] if size else None
    encoder_config: dict[str, Any] = _ONLY["encoder_config"] | {
        "name": f"dinov2_{size or large}" + ("" if encoder.depth == blocks else f"_{encoder.depth}_layers"),
        "size": size or large,
        "uses_torch_hub": True,
        "gradient_checkpointing": encoder.gradient_checkpointing,
    }
    if not encoder.final_norm:  # the release of v1 did not know this argument
        encoder_config["norm_returned_features"] = False
    if encoder.depth != blocks:
        encoder_config["keep_first_n_layers"] = encoder.depth
    module_args: dict[str, Any] = {
        "name": f"aat_{multi.depth}_layers_ifr",
        "indices": list(multi.taps),
        "norm_intermediate": True,
        "size": f"{multi.depth}_layers",
        "depth": multi.depth,
        "distinguish_ref_and_non_ref_views": multi.reference_marker,
        "gradient_checkpointing": multi.gradient_checkpointing,
        "dim": multi.dim,
        "num_heads": multi.num_heads,
        "mlp_ratio": _mlp_ratio(multi.ffn, multi.dim, multi.ffn_dim, "multiview"),
        "qkv_bias": True,
        "qk_norm": False,
        "init_values": multi.layer_scale,
    }
    pred_head_config: dict[str, Any] = _ONLY["pred_head_config"] | {
        "feature_head": {
            "feature_dim": heads.dpt_dim,
            "hooks": [0, 1, 2, 3],
            "checkpoint_gradient": heads.gradient_checkpointing,
            "layer_dims": list(heads.dpt_layer_dims),
        },
        "regressor_head": {"output_dim": 6, "checkpoint_gradient": heads.gradient_checkpointing},
        "pose_head": {"num_resconv_block": heads.pose_blocks, "rot_representation_dim": 4},
        "scale_head": {"output_dim": 1, "hidden_dim": heads.scale_dim},
        "gradient_checkpointing": heads.gradient_checkpointing,
    }
    for name, values in _ADAPTORS.items():
        pred_head_config[name] = {"name": f"{_REPRESENTATION}+scale"} | values
    geometric_input_config: dict[str, Any] = {name: getattr(geometric, name) for name in geometric.probabilities()}
    for name, channels in zip(_ENCODERS, (3, 1, 4, 3, 1)):
        dense = name in _DENSE
        geometric_input_config[f"{name}_encoder_config"] = {
            "name": {"cam_rot": "cam_rot_quats"}.get(name, name) + "_encoder",
            "in_chans": channels,
            "encoder_str": _ONLY[_encoder_section(name)]["encoder_str"],
            "intermediate_dims": list(geometric.dense_dims if dense else geometric.global_dims),
        } | ({"apply_pe": False} if dense else {})
    upstream: dict[str, Any] = {
        "name": "mapanything",
        "encoder_config": encoder_config,
        "info_sharing_config": _ONLY["info_sharing_config"] | {"module_args": module_args},
        "pred_head_config": pred_head_config,
        "geometric_input_config": geometric_input_config,
    }
    if multi.class_token:  # these two are not known to the release of v1 either
        upstream["use_register_tokens_from_encoder"] = True
    if multi.ffn == "swiglu":
        upstream["info_sharing_mlp_layer_str"] = "swiglufused"
    if not size:
        upstream["dinov2"] = _ONLY["dinov2"] | {
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


def _section(whole: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    values: Any = whole
    for name in where.split(".") if where else ():
        values = values.get(name)
        if values is None:
            if where in _SECTIONS:
                raise InputError(f"config: no {where}; give the arguments of upstream's MapAnything, as in its config.json")
            return {}
        if not isinstance(values, Mapping):
            raise InputError(f"config: {where}: {name} is {values!r}; it should be a group of entries")
    return values


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _equal(value: Any, only: Any) -> bool:
    if isinstance(value, str) and isinstance(only, float):  # YAML and JSON writers have several words for infinity
        value = {"infinity": math.inf, "-infinity": -math.inf, "inf": math.inf, "-inf": -math.inf}.get(value.lower(), value)
    return list(value) == only if isinstance(only, list) and isinstance(value, (list, tuple)) else value == only


def _widths(sections: Mapping[str, Mapping[str, Any]], names: tuple[str, ...], default: tuple[int, ...]) -> tuple[int, ...]:
    widths = None
    for name in names:
        where = _encoder_section(name)
        if name in _DENSE and sections[where].get("apply_pe", True):  # upstream's default is on
            raise InputError(f"config: {where}.apply_pe is on; this network has no position encoding there")
        own = tuple(sections[where].get("intermediate_dims", default))
        if widths not in (None, own):
            raise InputError(f"config: {where}.intermediate_dims={own}; here they are {widths} for all of {', '.join(names)}")
        widths = own
    assert widths is not None
    return widths


def _encoder(values: Mapping[str, Any], dinov2: Mapping[str, Any] | None) -> EncoderConfig:
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
    return EncoderConfig(
        dim=dim,
        num_heads=num_heads,
        depth=values.get("keep_first_n_layers") or blocks,
        ffn=ffn,
        ffn_dim=ffn_dim,
        pos_grid=pos_grid,
        final_norm=bool(values.get("norm_returned_features", True)),
        gradient_checkpointing=bool(values.get("gradient_checkpointing", False)),
    )


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
