"""Reading weights: PyTorch files, safetensors and hub-style folders, all as one `Checkpoint`.

Files are mapped, not read: opening one of 5 GB takes no memory, and only the weights of a training checkpoint are touched;
those of a `.pth` are compared with its checksums (mapped.py). Nothing in a file is executed: PyTorch files go through
`weights_only=True`, and the few harmless objects that upstream's training adds (its Hydra config, a NumPy scalar) are replaced
by empty stand-ins.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mapanything.errors import InputError
from mapanything.files import read_json
from mapanything.models.architecture import VEHICLE_ID, config_of, is_mapanything, known_config
from mapanything.models.config import ModelConfig, VehicleIdConfig
from mapanything.models.mapped import check_weights, drop_pages, read_checksums
from mapanything.models.names import canonical_name
from mapanything.models.upstream import config_from_upstream

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of a hub-style folder
INDEX = f"{WEIGHTS}.index.json"  # instead of WEIGHTS: which weight is in which of several files

_ZIP, _LFS = b"PK\x03\x04", b"version https://git-lfs"
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")  # DistributedDataParallel's and torch.compile's
# What upstream's training stores beside weights. Only their names are looked at: in place of each stands an `_Inert`.
_HARMLESS = re.compile(
    r"(omegaconf|pathlib|collections|typing|numpy)\..*|argparse\.Namespace|builtins\.(dict|list|tuple|set|int|float|str|bool)"
)


@dataclass(frozen=True)
class Checkpoint:
    """What a file or folder holds.

    Attributes:
        tensors: canonical name -> weights on the CPU, of whatever kind of float the file has; mapped where `mapped`.
        config: of the network, from beside the weights (config.json, `model_config`) or else from their shapes.
        source: where it was read, for messages.
    """

    tensors: dict[str, Tensor]
    config: ModelConfig | None
    source: Path
    mapped: bool

    def known_config(self) -> ModelConfig:
        """The config; InputError where neither the file nor the shapes tell it."""
        if self.config is not None:
            return self.config
        return config_of({name: tensor.shape for name, tensor in self.tensors.items()}, str(self.source))

    def copy_to(self, name: str, target: Tensor) -> None:
        """Copies one weight; the file's pages behind it leave this process's memory.

        A copy, although the mapping itself could serve as weights (it is private, pages that are written to become one's
        own): a file that somebody writes over, or whose server goes away, would change the weights of a running model or
        kill it, and the first step of training copies every page anyway. Page by page, so that memory never holds both.
        """
        tensor = self.tensors[name]
        target.copy_(tensor)
        if self.mapped:
            drop_pages(tensor)


def plain_name(key: str) -> str:
    """A name without what DistributedDataParallel and torch.compile put into it."""
    return _WRAPPERS.sub("", key)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint of ours or upstream's.

    Args:
        path: `.pth`/`.pt` with or without the key `model`, `.safetensors` with any one name of an alias group, or a folder
            with config.json and model.safetensors (or its shards). What kind of file it is, its content says.
    Raises:
        InputError: not there, not complete, not weights, not this network's, or contradicting itself.
    """
    path = Path(path).expanduser()
    weights, config, mapped = _read(path)
    tensors: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = canonical_name(plain_name(key))
        known = tensors.setdefault(name, tensor)
        if known is not tensor and not _same(known, tensor):
            raise InputError(f"{path}: the names that {name} has in it hold different values; fetch or save the file again")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if not is_mapanything(shapes):
        hint = "; DINOv2's own weights go to load_dinov2" if "blocks.0.norm1.weight" in shapes else ""
        raise InputError(f"{path}: not the weights of a MapAnything network (they have names such as {_first(shapes)}){hint}")
    if config is None:
        config = known_config(shapes)
    elif VEHICLE_ID in shapes and not config.vehicle_id.num_roles:
        config = replace(config, vehicle_id=VehicleIdConfig(num_roles=shapes[VEHICLE_ID][0]))
    return Checkpoint(tensors, config, path, mapped)


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and SHA-256 of its config.json and safetensors files."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for part in sorted([*path.glob("*.json"), *path.glob("*.safetensors")]):
        whole.update(f"{part.name} {checkpoint_sha256(part)}\n".encode())
    return whole.hexdigest()


def read_tensors(path: str | Path) -> Checkpoint:
    """Any file of weights (DINOv2's, say) under its own names; otherwise as `read_checkpoint`."""
    path = Path(path).expanduser()
    weights, config, mapped = _read(path)
    return Checkpoint({plain_name(key): tensor for key, tensor in weights.items()}, config, path, mapped)


def _read(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None, bool]:
    if not path.exists():
        hint = (
            ""
            if path.is_absolute() or len(path.parts) != 2
            else (f" (if that is a name on the Hugging Face hub: fetch its {CONFIG} and {WEIGHTS} and give their folder)")
        )
        raise InputError(f"{path}: no such file or folder; nothing is downloaded here{hint}")
    if path.is_dir():
        return _read_folder(path)
    return _read_file(path)


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], ModelConfig | None, bool]:
    if (folder / WEIGHTS).exists():
        weights, config, mapped = _read_file(folder / WEIGHTS)
    elif (folder / INDEX).exists():
        weights, config, mapped = {}, None, True
        files = _json(folder / INDEX).get("weight_map")
        if not isinstance(files, dict) or not all(map(_is_name, files.values())):
            raise InputError(f"{folder / INDEX}: no `weight_map` of weights to files of this folder; fetch the folder again")
        for name in sorted(set(files.values())):
            weights |= _read_file(folder / name)[0]
    else:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".pth", ".pt", ".safetensors"))
        hint = f"give the file itself: {', '.join(others[:3])}" if others else f"give a folder with {CONFIG} and {WEIGHTS}"
        raise InputError(f"{folder}: no {WEIGHTS} in it; {hint}")
    if (folder / CONFIG).exists():
        config = _config(_json(folder / CONFIG), folder / CONFIG)
    return weights, config, mapped


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) < 256 and Path(value).name == value != ".."


def _read_file(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None, bool]:
    if not os.path.isfile(path):  # False, too, for a name that can't be one
        raise InputError(f"{path}: no such file; the folder is not complete, fetch it again")
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        raise InputError(f"{path}: is empty; fetch it again")
    if start.startswith(_LFS):
        raise InputError(f"{path}: is a pointer of git-LFS, not the weights; run `git lfs pull` where it came from")
    if start[8:9] == b"{":
        return _read_safetensors(path), None, True
    if not start.startswith((_ZIP, b"\x80")) and start.isascii() and start[:64].decode().isprintable():
        raise InputError(f"{path}: is a text ({start[:30].decode()!r}…), not weights; a failed download?")
    return _read_torch(path, is_zip=start.startswith(_ZIP))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dictionary
    except SafetensorError as error:
        raise InputError(f"{path}: is damaged or not complete ({error}); fetch it again") from error


def _read_torch(path: Path, is_zip: bool) -> tuple[dict[str, Tensor], ModelConfig | None, bool]:
    stand_ins: list[tuple[Any, str]] = []
    if is_zip:
        checksums = read_checksums(path)
        stand_ins = [(_Inert, name) for name in _foreign_objects(path) if _HARMLESS.fullmatch(name)]
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        foreign = [name for name in _foreign_objects(path) if not _HARMLESS.fullmatch(name)] if is_zip else []
        if foreign:
            what = f"holds more than weights ({foreign[0]}), which could run code; save its state_dict alone and give that"
        else:
            what = "can't be read as weights; it is damaged, or holds whole objects: save its state_dict alone and give that"
        raise InputError(f"{path}: {what}") from error
    except MemoryError:
        raise
    except Exception as error:  # what a damaged pickle raises can be anything
        if "TorchScript" in str(error):
            raise InputError(f"{path}: is a TorchScript program; give the state_dict of the model") from error
        raise InputError(
            f"{path}: is damaged or not complete; fetch or copy it again ({str(error).splitlines()[0]})"
        ) from error
    config = None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        if isinstance(content.get("model_config"), Mapping):
            config = _config(content["model_config"], path)
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        what = f"a single {type(content).__name__}" if content is not None and not isinstance(content, Mapping) else "nothing"
        raise InputError(f"{path}: holds {what}, no weights by name; give a file with a state_dict")
    wrong = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} is no tensor; give a file with a state_dict, plain or under the key `model`")
    if is_zip:
        check_weights(path, content, checksums)
    return dict(content), config, is_zip


class _Inert:
    """Stands for an object that is not wanted; takes whatever its pickle does to it and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


def _foreign_objects(path: Path) -> list[str]:
    """Names of what a pickle would have to import besides torch's own; nothing is imported or called to find them."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # damaged: loading will say so
        return []


def _config(values: Mapping[str, Any], source: Path) -> ModelConfig:
    try:
        return config_from_upstream(values) if "encoder_config" in values else ModelConfig.from_dict(values)
    except InputError as error:
        raise InputError(f"{source}: {_short(error)}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # a word or a list where a number should be
        raise InputError(f"{source}: an entry is of the wrong kind ({_short(error)}); fetch it again") from error


def _short(error: Exception) -> str:
    """In a damaged file a word may be any length."""
    text = str(error)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _json(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: should be a group of entries, is {type(values).__name__}; fetch it again")
    return values


def _same(a: Tensor, b: Tensor) -> bool:
    if a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride():
        return True
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _first(names: Mapping[str, Any]) -> str:
    return ", ".join(list(names)[:2]) or "none"
