"""The names of weights.

Upstream's modules refer to some layers twice, so that a state dict holds several names (aliases) of one tensor, and wrappers
put words of their own into them. Everything that reads or writes files knows each tensor by its *canonical* name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mapanything.errors import InputError

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")  # DistributedDataParallel's and torch.compile's
_PARTS = {"dense_head.0.": "dpt_feature_head.", "dense_head.1.": "dpt_regressor_head."}  # alias: canonical
_LAYER_ALIAS = re.compile(r"dpt_feature_head\.(?:scratch\.layer_rn\.(\d+)|input_process\.(\d+)\.1)\.(.*)")
_LAYER = re.compile(r"dpt_feature_head\.scratch\.layer(\d+)_rn\.(.*)")


def canonical_name(key: str) -> str:
    """The one name under which a tensor of a state dict is known here.

    `dense_head.0.*` is `dpt_feature_head.*`, `dense_head.1.*` is `dpt_regressor_head.*`; in the former
    `input_process.{k-1}.1` and `scratch.layer_rn.{k-1}` are `scratch.layer{k}_rn`.
    """
    key = _WRAPPERS.sub("", key)
    for alias, part in _PARTS.items():
        if key.startswith(alias):
            key = part + key[len(alias) :]
    if match := _LAYER_ALIAS.fullmatch(key):
        number = int(match[1] or match[2]) + 1
        return f"dpt_feature_head.scratch.layer{number}_rn.{match[3]}"
    return key


def canonical(tensors: Mapping[str, Tensor], source: Path | str = "the network") -> dict[str, Tensor]:
    """Each tensor of a state dict once, under its canonical name.

    Raises:
        InputError: two names of one tensor hold different values.
    """
    once: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = canonical_name(key)
        known = once.setdefault(name, tensor)
        if known is not tensor and not _same(known, tensor):
            raise InputError(f"{source}: the names that {name} has in it hold different values; fetch or save the file again")
    return once


def aliases(name: str) -> list[str]:
    """All names of a tensor, given its canonical one, which comes first."""
    names = [name]
    if match := _LAYER.fullmatch(name):
        k, rest = int(match[1]) - 1, match[2]
        names += [f"dpt_feature_head.scratch.layer_rn.{k}.{rest}", f"dpt_feature_head.input_process.{k}.1.{rest}"]
    for alias, part in _PARTS.items():
        names += [alias + n[len(part) :] for n in names if n.startswith(part)]
    return names


def safetensors_names(keys: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Names in a safetensors file, which holds each tensor once.

    Args:
        keys: of a state dict, with or without aliases.

    Returns:
        canonical name -> name in the file; and the file's metadata: each other alias -> the name in the file. Both are what
        safetensors' own `save_model` makes of upstream's model.
    """
    kept, metadata = {}, {}
    for name in dict.fromkeys(map(canonical_name, keys)):
        names = aliases(name)
        kept[name] = names[-1]  # dense_head.…, of a layer with three names the one in input_process
        metadata |= dict.fromkeys(names[:-1], names[-1])
    return kept, metadata


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)
