"""The tests of faults use what other rooms' tests make files and runs with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

for room in ("opv2v", "visualization", "train"):
    folder = str(Path(__file__).parents[1] / room)
    if folder not in sys.path:
        sys.path.append(folder)


@pytest.fixture(scope="session")
def data(generated_root: Path, generated_depth: Path) -> tuple[Path, Path]:
    """Image and depth root to train on."""
    return generated_root, generated_depth
