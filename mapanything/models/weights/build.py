"""A network from a config and weights; a weight too few, too many or of another shape is an error, never silence."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from mapanything.errors import InputError
from mapanything.models.config import ModelConfig
from mapanything.models.weights.copying import Copying
from mapanything.models.weights.identify import VEHICLE_ID
from mapanything.models.weights.names import canonical, canonical_name
from mapanything.models.weights.read import Checkpoint, read_checkpoint

log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)


def build_network(
    model_class: type[Model], config: ModelConfig, checkpoint: Checkpoint, device: torch.device | str = "cpu"
) -> Model:
    """The network with a checkpoint's weights, in eval mode. Memory never holds more than the network and one weight.

    Args:
        model_class: built as `model_class(config)`.
        config: what `identify` says. A network with vehicle ID takes weights without: its embeddings are zero then.
        device: where the weights go, one by one.

    Raises:
        InputError: weights that do not fit, or that are not what was saved.
    """
    with torch.device("meta"):
        model = model_class(config)
    targets = canonical(model.state_dict(keep_vars=True))
    _check_fit(checkpoint, targets)
    weights, copying = {}, Copying(checkpoint)
    for name, target in targets.items():
        weights[name] = torch.zeros(target.shape, dtype=target.dtype, device=device)
        if name in checkpoint.tensors:
            copying.copy(name, weights[name])
    model.load_state_dict({key: weights[canonical_name(key)] for key in model.state_dict()}, assign=True)
    return model.eval()


def _check_fit(checkpoint: Checkpoint, targets: Mapping[str, Tensor]) -> None:
    """Raises InputError with all that is wrong, in one line."""
    given, source = checkpoint.tensors, checkpoint.source
    if VEHICLE_ID in given and (VEHICLE_ID not in targets or given[VEHICLE_ID].shape[0] != targets[VEHICLE_ID].shape[0]):
        roles, own = given[VEHICLE_ID].shape[0], len(targets.get(VEHICLE_ID, ()))
        raise InputError(
            f"{source}: was trained with vehicle ID for {roles} roles, this network has {own or 'none'}; "
            f"set model.vehicle_id.num_roles={roles}"
        )
    shared = [name for name in targets if name in given]
    problems = {
        "missing": [name for name in targets if name not in given and name != VEHICLE_ID],
        "unexpected": [name for name in given if name not in targets],
        "of another shape": [
            f"{name} is {tuple(given[name].shape)}, not {tuple(targets[name].shape)}"
            for name in shared
            if given[name].shape != targets[name].shape
        ],
        "no floats": [f"{name} is {tensor.dtype}" for name, tensor in given.items() if not tensor.is_floating_point()],
    }
    parts = [
        f"{len(items)} {what} ({', '.join(items[:3])}{', …' if len(items) > 3 else ''})"
        for what, items in problems.items()
        if items
    ]
    if parts:
        raise InputError(f"{source}: the weights do not fit this network: {'; '.join(parts)}")


@torch.no_grad()
def load_dinov2(model: nn.Module, config: ModelConfig, path: str | Path) -> bool:
    """Puts DINOv2's weights into the image encoder and, where more blocks are left over than the encoder keeps and they fit,
    into the multi-view transformer with DINOv2's final norm. So starts the training of v1.1 (ViT-g: 24 blocks and 16); in v1
    the transformer stays random. Source: docs/network.md §10.

    Args:
        model: on the CPU; `config` is its own.
        path: a file of DINOv2's repository, without registers, e.g. dinov2_vitg14_pretrain.pth.

    Returns:
        Whether the transformer got its weights.

    Raises:
        InputError: another model's weights, or of another size; nothing is changed then. A file that is damaged.
    """
    checkpoint = read_checkpoint(path)
    given = {name: tensor for name, tensor in checkpoint.tensors.items() if name != "mask_token"}
    where, kept = checkpoint.source, config.encoder.depth
    if "register_tokens" in given:
        raise InputError(f"{where}: DINOv2 with registers; give the weights without (…_pretrain.pth, not …_reg4_pretrain.pth)")
    if "blocks.0.norm1.weight" not in given or "patch_embed.proj.weight" not in given:
        raise InputError(f"{where}: not the weights of DINOv2's repository (names such as blocks.0.norm1.weight)")
    targets = canonical(model.state_dict(keep_vars=True))
    blocks = 1 + max(int(match[1]) for name in given if (match := re.match(r"blocks\.(\d+)\.", name)))
    moves = {name: name.removeprefix("encoder.model.") for name in targets if name.startswith("encoder.model.")}
    transformer = {}  # target: source, too
    if blocks >= kept + config.multiview.depth:
        for name in targets:
            if match := re.fullmatch(r"info_sharing\.self_attention_blocks\.(\d+)\.(.+)", name):
                transformer[name] = f"blocks.{kept + int(match[1])}.{match[2]}"
            elif name.startswith("info_sharing.norm."):
                transformer[name] = name.removeprefix("info_sharing.")
    fits = bool(transformer) and all(t in given and given[t].shape == targets[n].shape for n, t in transformer.items())
    moves |= transformer if fits else {}
    wrong = [n for n, source in moves.items() if source not in given or given[source].shape != targets[n].shape]
    if wrong:
        source = given.get(moves[wrong[0]])
        width = given["blocks.0.norm1.weight"].shape[0]
        raise InputError(
            f"{where}: does not fit the encoder (width {config.encoder.dim}, {kept} blocks, positions of "
            f"{config.encoder.pos_grid}²; the file: width {width}, {blocks} blocks): {moves[wrong[0]]} "
            + ("is missing" if source is None else f"is {tuple(source.shape)}, not {tuple(targets[wrong[0]].shape)}")
        )
    copying = Copying(checkpoint)
    for name, source_name in moves.items():
        copying.copy(source_name, targets[name])
    log.info("%s: DINOv2 into the encoder%s", where, " and the multi-view transformer" if fits else "; the rest stays random")
    return fits
