"""Weights onto the disk, in a folder that upstream can read too."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from mapanything.errors import InputError
from mapanything.files import flush, umask
from mapanything.models.config import ModelConfig
from mapanything.models.weights.names import canonical, safetensors_names
from mapanything.models.weights.read import CONFIG, INDEX, WEIGHTS
from mapanything.models.weights.upstream import config_to_upstream, to_json


def save_pretrained(model: nn.Module, config: ModelConfig, folder: str | Path) -> None:
    """Writes config.json and model.safetensors, with upstream's names, as safetensors' own `save_model` would.

    The files are written aside, flushed to the disk and renamed: what a killed process leaves is no half checkpoint.

    Args:
        model: of this `config`; bare or wrapped.
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
    state = model.state_dict(keep_vars=True)
    names, metadata = safetensors_names(state)
    text = to_json(config_to_upstream(config))
    tensors = {names[name]: tensor.detach().cpu().contiguous() for name, tensor in canonical(state).items()}
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
