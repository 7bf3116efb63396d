"""Reading weights: PyTorch files, safetensors and hub-style folders, all as one `Checkpoint`.

Files are mapped, not read: opening one of 5 GB takes no memory, and only the weights of a training checkpoint are touched,
when they are copied (copying.py). Nothing in a file is executed: PyTorch files go through `weights_only=True`, and the few
harmless objects that upstream's training adds (its Hydra config, a NumPy scalar) are replaced by empty stand-ins.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mapanything.errors import InputError
from mapanything.models.weights.names import canonical

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of a hub-style folder
INDEX = f"{WEIGHTS}.index.json"  # instead of WEIGHTS: which weight is in which of several files

_ZIP, _LFS = b"PK\x03\x04", b"version https://git-lfs"
# What upstream's training stores beside weights. Only their names are looked at: in place of each stands an `_Inert`.
_HARMLESS = re.compile(
    r"(omegaconf|pathlib|collections|typing|numpy)\..*|argparse\.Namespace|builtins\.(dict|list|tuple|set|int|float|str|bool)"
)


@dataclass(frozen=True)
class Checkpoint:
    """A file or folder of weights, opened.

    Attributes:
        source: where it was read, for messages; `entries_source`: where its config was.
        tensors: canonical name -> weights on the CPU, of whatever kind of float the file has; mapped where `mapped`.
        entries: the config beside the weights (config.json, `model_config`), as it stands there; None: there is none.
        checksums: (size in bytes, CRC-32) of every part of a `.pth`; None: the file has none.
    """

    source: Path
    tensors: dict[str, Tensor]
    entries: Mapping[str, Any] | None = None
    entries_source: Path = Path()
    mapped: bool = True
    checksums: frozenset[tuple[int, int]] | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint of ours or upstream's, or any other file of weights (DINOv2's, say).

    Args:
        path: `.pth`/`.pt` with or without the key `model`, `.safetensors` with any one name of an alias group, or a folder
            with config.json and model.safetensors (or its shards). What kind of file it is, its content says.

    Raises:
        InputError: not there, not complete, not weights, or contradicting itself.
    """
    path = Path(path).expanduser()
    if not path.exists():
        hint = ""
        if not path.is_absolute() and len(path.parts) == 2:
            hint = f" (if that is a name on the Hugging Face hub: fetch its {CONFIG} and {WEIGHTS} and give their folder)"
        raise InputError(f"{path}: no such file or folder; nothing is downloaded here{hint}")
    found = _read_folder(path) if path.is_dir() else _read_file(path)
    return replace(found, source=path, tensors=canonical(found.tensors, path))


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and SHA-256 of its config.json and safetensors files."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for part in sorted([*path.glob("*.json"), *path.glob("*.safetensors")]):
        whole.update(f"{part.name} {checkpoint_sha256(part)}\n".encode())
    return whole.hexdigest()


def _read_folder(folder: Path) -> Checkpoint:
    if (folder / WEIGHTS).exists():
        found = _read_file(folder / WEIGHTS)
    elif (folder / INDEX).exists():
        found = _read_shards(folder)
    else:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".pth", ".pt", ".safetensors"))
        hint = f"give the file itself: {', '.join(others[:3])}" if others else f"give a folder with {CONFIG} and {WEIGHTS}"
        raise InputError(f"{folder}: no {WEIGHTS} in it; {hint}")
    if (folder / CONFIG).exists():
        found = replace(found, entries=_read_json(folder / CONFIG), entries_source=folder / CONFIG)
    return found


def _read_shards(folder: Path) -> Checkpoint:
    files = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(map(_is_name, files.values())):
        raise InputError(f"{folder / INDEX}: no `weight_map` of weights to files of this folder; fetch the folder again")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        part = _read_file(folder / name)
        if part.checksums is not None or not part.mapped:
            raise InputError(f"{folder / name}: is no safetensors file, which {INDEX} says; fetch the folder again")
        tensors |= part.tensors
    return Checkpoint(folder, tensors)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) < 256 and Path(value).name == value != ".."


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON ({error}); fetch it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: should be a group of entries, is {type(values).__name__}; fetch it again")
    return values


def _read_file(path: Path) -> Checkpoint:
    if not os.path.isfile(path):  # False, too, for a name that can't be one
        raise InputError(f"{path}: no such file; the folder is not complete, fetch it again")
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        raise InputError(f"{path}: is empty; fetch it again")
    if start.startswith(_LFS):
        raise InputError(f"{path}: is a pointer of git-LFS, not the weights; run `git lfs pull` where it came from")
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if not start.startswith((_ZIP, b"\x80")) and start.isascii() and start[:64].decode().isprintable():
        raise InputError(f"{path}: is a text ({start[:30].decode()!r}…), not weights; a failed download?")
    return _read_torch(path, is_zip=start.startswith(_ZIP))


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return Checkpoint(path, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118, it is no dictionary
    except SafetensorError as error:
        raise InputError(f"{path}: is damaged or not complete ({error}); fetch it again") from error


def _read_torch(path: Path, is_zip: bool) -> Checkpoint:
    checksums = _read_checksums(path) if is_zip else None
    content: Any = _load(path, is_zip)
    entries = None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        if isinstance(content.get("model_config"), Mapping):
            entries = content["model_config"]
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        what = f"a single {type(content).__name__}" if content is not None and not isinstance(content, Mapping) else "nothing"
        raise InputError(f"{path}: holds {what}, no weights by name; give a file with a state_dict")
    wrong = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} is no tensor; give a file with a state_dict, plain or under the key `model`")
    return Checkpoint(path, dict(content), entries, path, is_zip, checksums)


def _load(path: Path, is_zip: bool) -> Any:
    foreign = _foreign_objects(path) if is_zip else []
    stand_ins: list[Any] = [(_Inert, name) for name in foreign if _HARMLESS.fullmatch(name)]
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        others = [name for name in foreign if not _HARMLESS.fullmatch(name)]
        if others:
            what = f"holds more than weights ({others[0]}), which could run code; save its state_dict alone and give that"
        else:
            what = "can't be read as weights; it is damaged, or holds whole objects: save its state_dict alone and give that"
        raise InputError(f"{path}: {what}") from error
    except MemoryError:
        raise
    except Exception as error:  # what a damaged pickle raises can be anything
        if "TorchScript" in str(error):
            raise InputError(f"{path}: is a TorchScript program; give the state_dict of the model") from error
        raise _damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _read_checksums(path: Path) -> frozenset[tuple[int, int]]:
    """The table of contents of a `.pth`; InputError where the pickle, which says what is where, is not what was saved."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.filename.endswith("/data.pkl") and entry.CRC:
                    archive.read(entry)
    except MemoryError:
        raise
    except Exception as error:  # what damage makes zipfile raise can be anything
        raise _damaged(path, " ".join(str(error).split())[:200] or type(error).__name__) from error
    return frozenset((entry.file_size, entry.CRC) for entry in entries)


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: is damaged or not complete; fetch or copy it again ({why})")


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
