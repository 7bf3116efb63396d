"""Fixtures that the tests of training runs share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mapanything.train import training
from tests.helpers.training_runs import settings


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs in this process as in the others: one thread, no launcher's environment."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCH_DIST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(generated_root: Path, generated_depth: Path) -> tuple[Path, Path]:
    """Image and depth root to train on."""
    return generated_root, generated_depth


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: tuple[Path, Path]) -> Path:
    """Folder of a run with the default settings that nothing happened to; not to be changed."""
    assert "RANK" not in os.environ
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert training.main(settings(folder, data)) == 0
    torch.set_num_threads(before)
    return folder
