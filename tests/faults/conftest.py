"""The tests of faults use what other rooms' tests make files and runs with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mapanything.models.mapanything import MapAnything
from tests.helpers.networks import TINY


@pytest.fixture(scope="session")
def data(generated_root: Path, generated_depth: Path) -> tuple[Path, Path]:
    """Image and depth root to train on."""
    return generated_root, generated_depth


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network with random weights, as a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    MapAnything(TINY).eval().save_pretrained(folder)
    return folder
