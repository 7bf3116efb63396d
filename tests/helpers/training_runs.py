"""Training runs of seconds, for the tests: a network smaller than the tiny one, the tests' sample, one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[2]
MICRO = [
    "model=mapanything_tiny",
    *(f"model.encoder.{value}" for value in ("dim=24", "num_heads=2", "depth=2", "ffn_dim=32", "pos_grid=4")),
    *(f"model.multiview.{value}" for value in ("dim=24", "num_heads=2", "ffn_dim=32")),
    *(f"model.geometric_inputs.{value}" for value in ("dense_dims=[8,8,8]", "global_dims=[8,8,8]")),
    *(f"model.heads.{value}" for value in ("dpt_dim=8", "dpt_layer_dims=[8,8,8,8]", "scale_dim=8", "pose_blocks=0")),
]
SMALL = [
    "dataset.resolution=[42,28]",
    "machine.num_workers=0",
    "distributed.device=cpu",
    *(f"train_params.{value}" for value in ("lr=1e-3", "pictures=0", "print_every=1", "epochs=2")),
]


def settings(output: Path, data: tuple[Path, Path], *more: str) -> list[str]:
    """Overrides of a run into `output`; data: image and depth root."""
    places = [f"machine.opv2v_images_root={data[0]}", f"machine.opv2v_depth_root={data[1]}", f"output_dir={output}"]
    return [*MICRO, *SMALL, *places, *more]


def environment(**more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | more


def start(arguments: list[str], *, module: str = "mapanything.train.training", **env: str) -> subprocess.Popen[str]:
    """A run as a process of its own; its output comes together in `stdout`."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def run(arguments: list[str], **env: str) -> tuple[int, str]:
    return finish(start(arguments, **env))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def same(a: Path, b: Path) -> bool:
    """True where two checkpoints hold the same weights, bit for bit."""
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
