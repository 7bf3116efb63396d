"""Tells which network weights belong to: the config beside them says it, or else their names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mapanything.errors import InputError
from mapanything.models.config import ModelConfig, VehicleIdConfig, architectures
from mapanything.models.weights.read import Checkpoint
from mapanything.models.weights.upstream import config_from_upstream

VEHICLE_ID = "vehicle_id.embedding"  # the one weight that upstream does not have
MARKER = "info_sharing.view_pos_table"

Shapes = Mapping[str, Sequence[int]]


def identify(checkpoint: Checkpoint, overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """The config of the network that a checkpoint holds.

    Args:
        overrides: entries of ModelConfig that count instead of the checkpoint's, nested as in the Hydra config; switches,
            mostly.

    Raises:
        InputError: no MapAnything network, or none that we know and no config beside it; a config that is wrong, or says
            another network than the weights.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    if not {"scale_token", "encoder.model.cls_token", "info_sharing.norm.weight"} <= shapes.keys():
        hint = "; DINOv2's own weights go to load_dinov2" if "blocks.0.norm1.weight" in shapes else ""
        raise InputError(
            f"{checkpoint.source}: not the weights of a MapAnything network (they have names such as "
            f"{', '.join(list(shapes)[:2])}){hint}"
        )
    known = config_of(shapes)
    if checkpoint.entries is None:
        if known is None:
            raise InputError(
                f"{checkpoint.source}: none of the known networks ({_in_words(shapes)}); give a folder with the config.json "
                "that belongs to them, or a training checkpoint of ours, which has its config inside"
            )
        return known.updated(overrides or {})
    config = _config(checkpoint.entries, checkpoint.entries_source)
    if known is not None and known.widths() != config.widths():
        raise InputError(
            f"{checkpoint.entries_source}: says model={name_of(config) or 'another network'}, the weights beside it are those "
            f"of model={name_of(known)}; fetch both again from one place"
        )
    if VEHICLE_ID in shapes and not config.vehicle_id.num_roles:
        config = replace(config, vehicle_id=VehicleIdConfig(num_roles=shapes[VEHICLE_ID][0]))
    return config.updated(overrides or {})


def config_of(shapes: Shapes) -> ModelConfig | None:
    """The config that weights of these shapes tell, None where they cannot.

    Shapes do not show heads, intermediate outputs and the use of the class token, so only the `architectures` that we know
    can be told; with or without reference marker, with or without vehicle ID.

    Args:
        shapes: canonical name -> shape.
    """
    found = _widths_of_shapes(shapes)
    for config in architectures().values():
        if config.widths() == found:
            roles = shapes[VEHICLE_ID][0] if VEHICLE_ID in shapes else 0
            marker = replace(config.multiview, reference_marker=MARKER in shapes)
            return replace(config, multiview=marker, vehicle_id=VehicleIdConfig(num_roles=roles))
    return None


def name_of(config: ModelConfig) -> str | None:
    """`mapanything`, `mapanything_v1` or `mapanything_tiny`; None for another network. Switches do not count."""
    return next((name for name, known in architectures().items() if known.widths() == config.widths()), None)


def _config(entries: Mapping[str, Any], source: Path) -> ModelConfig:
    try:
        return config_from_upstream(entries) if "encoder_config" in entries else ModelConfig.from_dict(entries)
    except InputError as error:
        raise InputError(f"{source}: {_short(error)}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:  # a word or list for a number
        raise InputError(f"{source}: an entry is of the wrong kind ({_short(error)}); fetch it again") from error


def _short(error: Exception) -> str:
    """Cuts a message: in a damaged file a word may be any length."""
    text = str(error)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _in_words(shapes: Shapes) -> str:
    found = _widths_of_shapes(shapes)
    return (
        f"encoder of {found['encoder.depth']} blocks of {found['encoder.dim']}, "
        f"transformer of {found['multiview.depth']} blocks of {found['multiview.dim']}"
    )


def _widths_of_shapes(shapes: Shapes) -> dict[str, Any]:
    """The shapes' side of `ModelConfig.widths`."""

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
