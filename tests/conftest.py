"""Data for the tests: a copy of the tiny synthetic sample, and the real frames where this host has them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SAMPLE = Path(__file__).parent / "fixtures" / "sample_opv2v"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=int, metavar="N", help="the long tests of faults too, N broken files per parser")


def pytest_configure() -> None:
    # Ctrl-C means something to the programs that tests start, also where a shell in the background has it ignored.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Nothing that hypothesis tries has a time limit: on a busy machine any example can take a second.
    calm = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("busy", parent=settings.default, **calm)
    settings.load_profile("busy")


@pytest.fixture
def sample_root(tmp_path: Path) -> Path:
    """Image root of the synthetic sample: a copy, so that a test may break it."""
    return Path(shutil.copytree(SAMPLE / "opv2v_images", tmp_path / "sample" / "opv2v_images"))


@pytest.fixture
def sample_depth_root(tmp_path: Path) -> Path:
    """Depth root of the synthetic sample, a copy too."""
    return Path(shutil.copytree(SAMPLE / "opv2v_depth", tmp_path / "sample" / "opv2v_depth"))


@pytest.fixture(scope="session")
def generated_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's image root without the mark that keeps it out of training; not to be changed by a test."""
    return _unmarked("opv2v_images", tmp_path_factory)


@pytest.fixture(scope="session")
def generated_depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The depth root of `generated_root`."""
    return _unmarked("opv2v_depth", tmp_path_factory)


def _unmarked(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("generated") / name
    return Path(shutil.copytree(SAMPLE / name, target, ignore=shutil.ignore_patterns(".tests-only")))


@pytest.fixture
def real_root() -> Path:
    """Image root with complete real frames."""
    return _from_environment("OPV2V_REAL_ROOT")


@pytest.fixture
def real_yaml_root() -> Path:
    """Image root with real YAML files only."""
    return _from_environment("OPV2V_REAL_YAML_ROOT")


@pytest.fixture
def pcd_root() -> Path:
    """Folder with one real cloud in several encodings."""
    return _from_environment("OPV2V_PCD_ROOT")


def _from_environment(name: str) -> Path:
    value = os.environ.get(name)
    if not value:
        pytest.skip(f"{name} is not set: no real data on this host")
    path = Path(value)
    assert path.is_dir(), f"{name}={value} is no folder"
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none; torch is only asked where there are such tests.

    Those marked `faults(long=True)` are left out without `--faults N`.
    """
    if not config.getoption("--faults"):
        long = [item for item in items if any(mark.kwargs.get("long") for mark in item.iter_markers("faults"))]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this host"))
