"""Which network do these weights belong to? Their names and shapes say nearly everything."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mapanything.errors import InputError
from mapanything.models.config import ARCHITECTURES, ModelConfig, VehicleIdConfig

VEHICLE_ID = "vehicle_id.embedding"  # the one weight that upstream does not have
MARKER = "info_sharing.view_pos_table"

Shapes = Mapping[str, Sequence[int]]


def is_mapanything(shapes: Shapes) -> bool:
    """Whether the (canonical) names are a MapAnything network's at all."""
    return "scale_token" in shapes and "encoder.model.cls_token" in shapes and "info_sharing.norm.weight" in shapes


def known_config(shapes: Shapes) -> ModelConfig | None:
    """The config of the network that weights of these shapes belong to, None where that cannot be told.

    Shapes do not show heads, intermediate outputs and the use of the class token, so only the architectures that we know
    (`ARCHITECTURES`) can be told; with or without reference marker, with or without vehicle ID.

    Args:
        shapes: canonical name -> shape.
    """
    found = _widths_of_shapes(shapes)
    for config in ARCHITECTURES.values():
        if _widths(config) == found:
            roles = shapes[VEHICLE_ID][0] if VEHICLE_ID in shapes else 0
            marker = replace(config.multiview, reference_marker=MARKER in shapes)
            return replace(config, multiview=marker, vehicle_id=VehicleIdConfig(num_roles=roles))
    return None


def config_of(shapes: Shapes, source: str = "the weights") -> ModelConfig:
    """As `known_config`.

    Raises:
        InputError: another network; `source` needs its config beside it.
    """
    config = known_config(shapes)
    if config is None:
        raise InputError(
            f"{source}: none of the known networks ({describe(shapes)}); give a folder with the config.json that belongs to "
            "them, or a training checkpoint of ours, which has its config inside"
        )
    return config


def name_of(config: ModelConfig) -> str | None:
    """`mapanything`, `mapanything_v1` or `mapanything_tiny`; None for another network. Switches do not count."""
    return next((name for name, known in ARCHITECTURES.items() if _widths(known) == _widths(config)), None)


def describe(shapes: Shapes) -> str:
    """In words for a message."""
    found = _widths_of_shapes(shapes)
    name = next((name for name, known in ARCHITECTURES.items() if _widths(known) == found), None)
    if name:
        return f"model={name}"
    return (
        f"encoder of {found['encoder.depth']} blocks of {found['encoder.dim']}, "
        f"transformer of {found['multiview.depth']} blocks of {found['multiview.dim']}"
    )


def _widths(config: ModelConfig) -> dict[str, Any]:
    """Everything of a config that shapes show."""
    encoder, multi, heads = config.encoder, config.multiview, config.heads
    return {
        "encoder.dim": encoder.dim,
        "encoder.depth": encoder.depth,
        "encoder.ffn": (encoder.ffn, encoder.ffn_dim),
        "encoder.pos_grid": encoder.pos_grid,
        "encoder.final_norm": encoder.final_norm,
        "multiview.dim": multi.dim,
        "multiview.depth": multi.depth,
        "multiview.ffn": (multi.ffn, multi.ffn_dim),
        "multiview.layer_scale": multi.layer_scale is not None,
        "dense_dims": tuple(config.geometric_inputs.dense_dims),
        "global_dims": tuple(config.geometric_inputs.global_dims),
        "dpt_dim": heads.dpt_dim,
        "dpt_layer_dims": tuple(heads.dpt_layer_dims),
        "pose_blocks": heads.pose_blocks,
        "scale_dim": heads.scale_dim,
    }


def _widths_of_shapes(shapes: Shapes) -> dict[str, Any]:
    def size(name: str, axis: int = 0) -> int | None:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) > axis else None

    def count(pattern: str) -> int:
        return len({match[1] for name in shapes if (match := re.match(pattern, name))})

    def ffn(blocks: str) -> tuple[str, int | None]:
        if f"{blocks}.0.mlp.w3.weight" in shapes:
            return "swiglu", size(f"{blocks}.0.mlp.w3.weight", 1)
        return "mlp", size(f"{blocks}.0.mlp.fc1.weight")

    encoder, multi = "encoder.model.blocks", "info_sharing.self_attention_blocks"
    dense, rotation = "ray_dirs_encoder", "cam_rot_encoder.encoder"
    return {
        "encoder.dim": size("encoder.model.cls_token", 2),
        "encoder.depth": count(r"encoder\.model\.blocks\.(\d+)\."),
        "encoder.ffn": ffn(encoder),
        "encoder.pos_grid": math.isqrt(max((size("encoder.model.pos_embed", 1) or 1) - 1, 0)),
        "encoder.final_norm": "encoder.model.norm.weight" in shapes,
        "multiview.dim": size("info_sharing.norm.weight"),
        "multiview.depth": count(r"info_sharing\.self_attention_blocks\.(\d+)\."),
        "multiview.ffn": ffn(multi),
        "multiview.layer_scale": f"{multi}.0.ls1.gamma" in shapes,
        "dense_dims": tuple(size(f"{dense}.{n}.weight") for n in ("conv_in", "encoder.0.conv1", "encoder.1.conv1")),
        "global_dims": tuple(size(f"{rotation}.{n}.weight") for n in ("0.0.0.0", "0.0.1", "0.1")),
        "dpt_dim": size("dpt_feature_head.scratch.layer1_rn.weight"),
        "dpt_layer_dims": tuple(size(f"dpt_feature_head.input_process.{k}.0.0.weight") for k in range(4)),
        "pose_blocks": count(r"pose_head\.res_conv\.(\d+)\."),
        "scale_dim": size("scale_head.proj.weight"),
    }
