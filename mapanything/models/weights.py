"""Weights into a network and out of it.

`load` builds the network that a file holds, `load_into` fills one that is there, `load_dinov2` gives one its start weights
for training from scratch, `save_pretrained` writes a folder that upstream can read too. Nothing is downloaded, and nothing
is loaded silently: a weight too few, too many or of another shape is an error that says what the file would fit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mapanything.errors import InputError
from mapanything.files import flush, umask
from mapanything.models.architecture import VEHICLE_ID, describe
from mapanything.models.checkpoint import CONFIG, INDEX, WEIGHTS, Checkpoint, plain_name, read_checkpoint, read_tensors
from mapanything.models.config import ModelConfig
from mapanything.models.names import canonical_name, safetensors_names
from mapanything.models.upstream import config_to_upstream, to_json

log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)


def load(
    model_class: type[Model],
    path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Model:
    """The network of a checkpoint, in eval mode. Memory never holds more than the network and one weight.

    Args:
        model_class: built as `model_class(config)`.
        path: see `read_checkpoint`.
        overrides: entries of ModelConfig that count instead of the file's, nested as in the Hydra config; switches, mostly.
            A network with vehicle ID takes a file without: its embeddings are zero then.
        device: where the weights go, one by one.
    Raises:
        InputError: see `read_checkpoint`; a network that only its config would tell; weights that do not fit.
    """
    checkpoint = read_checkpoint(path)
    config = ModelConfig.from_dict(_merged(checkpoint.known_config().to_dict(), overrides or {}))
    with torch.device("meta"):
        model = model_class(config)
    targets = _targets(model)
    _check(checkpoint, targets)
    state = {}
    for name, target in targets.items():
        state[name] = torch.zeros(target.shape, dtype=target.dtype, device=device)
        if name in checkpoint.tensors:
            checkpoint.copy_to(name, state[name])
    model.load_state_dict({key: state[_name(key)] for key in model.state_dict()}, assign=True)
    return model.eval()


@torch.no_grad()
def load_into(model: nn.Module, path: str | Path) -> None:
    """A checkpoint's weights into a network that is there, in place and in its precision: the start of a fine-tuning.

    Args:
        model: on any device, bare or wrapped (DistributedDataParallel, torch.compile). Vehicle ID as in `load`.
    Raises:
        InputError: the weights do not fit; nothing is changed then.
    """
    checkpoint = read_checkpoint(path)
    targets = _targets(model)
    _check(checkpoint, targets)
    for name, target in targets.items():
        if name in checkpoint.tensors:
            checkpoint.copy_to(name, target)
        else:
            target.zero_()


@torch.no_grad()
def load_dinov2(model: nn.Module, path: str | Path) -> bool:
    """DINOv2's weights into the image encoder and, where more blocks are left over than the encoder keeps and they fit, into
    the multi-view transformer with DINOv2's final norm. So starts the training of v1.1 (ViT-g: 24 blocks and 16); in v1 the
    transformer stays random. Source: docs/network.md §10.

    Args:
        model: with a `config`.
        path: a file of DINOv2's repository, without registers, e.g. dinov2_vitg14_pretrain.pth.
    Returns:
        Whether the transformer got its weights.
    Raises:
        InputError: another model's weights, or of another size; nothing is changed then.
    """
    checkpoint, config = read_tensors(path), _config(model)
    given = {name: tensor for name, tensor in checkpoint.tensors.items() if name != "mask_token"}
    where, kept = checkpoint.source, config.encoder.depth
    if "register_tokens" in given:
        raise InputError(f"{where}: DINOv2 with registers; give the weights without (…_pretrain.pth, not …_reg4_pretrain.pth)")
    if "blocks.0.norm1.weight" not in given or "patch_embed.proj.weight" not in given:
        raise InputError(f"{where}: not the weights of DINOv2's repository (names such as blocks.0.norm1.weight)")
    targets = _targets(model)
    blocks = 1 + max(int(match[1]) for name in given if (match := re.match(r"blocks\.(\d+)\.", name)))
    moves: dict[str, str] = {}  # target: source
    for name in targets:
        if name.startswith("encoder.model."):
            moves[name] = name.removeprefix("encoder.model.")
    transformer = {}
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
    for name, source_name in moves.items():
        checkpoint.copy_to(source_name, targets[name])
    log.info("%s: DINOv2 into the encoder%s", where, " and the multi-view transformer" if fits else "; the rest stays random")
    return fits


def save_pretrained(model: nn.Module, folder: str | Path) -> None:
    """Writes config.json and model.safetensors, with upstream's names, as safetensors' own `save_model` would.

    The files are written aside, flushed to the disk and renamed: what a killed process leaves is no half checkpoint.

    Args:
        model: with a `config`; bare or wrapped.
        folder: new, empty, or such a folder already, whose two files are replaced.
    Raises:
        InputError: the folder holds something else; no space, no permission.
    """
    folder = Path(folder).expanduser().resolve()
    exists = folder.is_dir() and any(folder.iterdir())
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder")
    if exists and not any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        raise InputError(f"{folder}: holds other things than a checkpoint; give a new or empty folder")
    names, metadata = safetensors_names(map(plain_name, model.state_dict()))
    text = to_json(config_to_upstream(_config(model)))
    tensors = {names[name]: tensor.detach().cpu().contiguous() for name, tensor in _targets(model).items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
        try:
            save_file(tensors, aside / WEIGHTS, metadata=metadata)
            (aside / CONFIG).write_text(text)
            # What safetensors and mkdtemp make is the owner's alone.
            with contextlib.suppress(OSError):  # SMB, WSL drives and object stores know no modes
                aside.chmod(0o777 & ~umask())
                (aside / WEIGHTS).chmod(0o666 & ~umask())
            for path in (aside / WEIGHTS, aside / CONFIG, aside):
                flush(path)
            if exists:
                # Never new weights beside the old config: weights alone can be read, for the known networks.
                (folder / CONFIG).unlink(missing_ok=True)
                os.replace(aside / WEIGHTS, folder / WEIGHTS)
                os.replace(aside / CONFIG, folder / CONFIG)
                flush(folder)
            else:
                os.replace(aside, folder)
            flush(folder.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder}: can't be written ({reason}); free space or fix permissions") from error


def _name(key: str) -> str:
    return canonical_name(plain_name(key))


def _targets(model: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> the model's own tensor, each once."""
    targets: dict[str, Tensor] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        targets.setdefault(_name(key), tensor)
    return targets


def _config(model: nn.Module) -> ModelConfig:
    return getattr(model, "module", model).config


def _check(checkpoint: Checkpoint, targets: Mapping[str, Tensor]) -> None:
    """Raises InputError with all that is wrong, in one line."""
    given, source = checkpoint.tensors, checkpoint.source
    if VEHICLE_ID in given and (VEHICLE_ID not in targets or given[VEHICLE_ID].shape[0] != targets[VEHICLE_ID].shape[0]):
        roles, own = given[VEHICLE_ID].shape[0], len(targets.get(VEHICLE_ID, ()))
        raise InputError(
            f"{source}: was trained with vehicle ID for {roles} roles, this network has {own or 'none'}; "
            f"set model.vehicle_id.num_roles={roles}"
        )
    missing = [name for name in targets if name not in given and name != VEHICLE_ID]
    unexpected = [name for name in given if name not in targets]
    shapes = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(target.shape)}"
        for name, target in targets.items()
        if name in given and given[name].shape != target.shape
    ]
    kinds = [f"{name} is {tensor.dtype}" for name, tensor in given.items() if not tensor.is_floating_point()]
    parts = [
        f"{len(items)} {what} ({', '.join(items[:3])}{', …' if len(items) > 3 else ''})"
        for items, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (shapes, "of another shape"),
            (kinds, "no floats"),
        )
        if items
    ]
    if parts:
        own, fits = (describe({name: t.shape for name, t in tensors.items()}) for tensors in (targets, given))
        hint = f"; the file would fit {fits}, this network is {own}" if fits != own else ""
        raise InputError(f"{source}: the weights do not fit this network: {'; '.join(parts)}{hint}")


def _merged(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(values.get(name), dict):
            value = _merged(values[name], value)
        values[name] = value
    return values
