"""Reads options that several tools have: which data, image sizes, devices; names what makes a result."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapanything.environment import fingerprint
from mapanything.errors import InputError
from mapanything.opv2v.layout import Selection


def selection(args: argparse.Namespace) -> Selection:
    """The selection of --split, --scenario, --agent and --frame. An id that starts with a dash is given as --agent=-1."""

    def names(given: list[str] | str | None) -> tuple[str, ...]:
        if not isinstance(given, list):
            return (given,) if given else ()
        return tuple(dict.fromkeys(name.strip() for value in given for name in value.split(",") if name.strip()))

    return Selection(names(args.split), names(args.scenario), names(args.agent), names(args.frame))


def parse_resolution(words: Sequence[str] | None) -> tuple[int, int] | None:
    """Width and height of `--resolution W H`, WxH or W,H.

    Raises:
        InputError: no two multiples of the network's patch size.
    """
    if words is None:
        return None
    from mapanything.datasets.views import check_resolution

    numbers = " ".join(words).replace("x", " ").replace(",", " ").split()
    if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise InputError(f"--resolution {' '.join(words)}: give width and height, e.g. 518 392")
    return check_resolution([int(number) for number in numbers])


def parse_devices(text: str) -> list[str]:
    """torch's names for `--device`: cpu, cuda (all GPUs), cuda:N, several with commas; auto: all GPUs, else cpu.

    Raises:
        InputError: there is no such device.
    """
    import torch

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if text == "auto":
        return gpus or ["cpu"]
    found: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name == "cuda" and gpus:
            found += gpus
        elif name == "cpu" or name in gpus:
            found.append(name)
        else:
            raise InputError(f"--device {name}: not on this machine, which has {', '.join(['cpu', *gpus])}")
    if not found:
        raise InputError("--device: give cpu or cuda")
    return found


def parse_device(text: str) -> str:
    """The first of `parse_devices`, for what works on one.

    Raises:
        InputError: there is no such device; several.
    """
    if "," in text:
        raise InputError(f"--device {text}: give one device")
    return parse_devices(text)[0]


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """The network that a checkpoint holds, as records name it. Raises InputError: it can't be read."""
    from mapanything.models.weights.identify import identify, name_of
    from mapanything.models.weights.read import checkpoint_sha256, read_checkpoint

    config = identify(read_checkpoint(path))
    return {
        "model": name_of(config) or "another network",
        "checkpoint_sha256": checkpoint_sha256(path),
        "vehicle_id_roles": config.vehicle_id.num_roles,
    }


def code_and_provenance(root: Path, devices: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The code that decides what a result is; and where it came from, which tells a person and decides nothing."""
    import torch

    found = fingerprint()
    gpus = sorted({torch.cuda.get_device_name(name) for name in devices if name != "cpu"})
    provenance = {"root": str(root), "device": ", ".join(gpus) or "cpu", "commit": found["commit"]}
    provenance |= {"image_contents": found["image_contents"], "python": found["python"], "torch": torch.__version__}
    return {"code_sha256": found["code_sha256"], "lock_sha256": found["lock_sha256"]}, provenance
