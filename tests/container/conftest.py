"""A Docker engine, the cpu image and a user's folders, for the tests that run containers; skipped where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "tests" / "fixtures" / "sample_opv2v"
UID = 1234 if os.geteuid() == 0 else os.getuid()  # another user than the image's own
VARIABLES = ("OPV2V_", "HOST_", "TORCH_VARIANT", "MAPANYTHING_", "EXPERIMENTS", "CHECKPOINTS", "VISUALIZATION_", "COMPOSE_")
VARIABLES += ("TENSORBOARD_", "CUDA_VISIBLE_DEVICES")


def docker(*arguments: str, timeout_s: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    return subprocess.run(
        ["docker", *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=timeout_s, **options
    )


@pytest.fixture(scope="session")
def image() -> str:
    """The cpu image's name."""
    if shutil.which("docker") is None or docker("version").returncode:
        pytest.skip("no Docker engine answers")
    name = os.environ.get("MAPANYTHING_IMAGE") or "mapanything-opv2v:cpu"
    if docker("image", "inspect", name).returncode:
        pytest.skip(f"there is no image {name}: ./invoke image --variant cpu --dev")
    return name


@dataclass
class Host:
    """A user's folders and .env."""

    folder: Path
    images: Path
    env_file: Path
    project: str

    def compose(self, *arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        command = ["compose", "--project-name", self.project, "--env-file", str(self.env_file), *arguments]
        return docker(*command, timeout_s=timeout_s)

    def run(
        self, service: str, *arguments: str, options: tuple[str, ...] = (), timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        return self.compose("run", "--rm", "-T", *options, service, *arguments, timeout_s=timeout_s)

    def shell(self, service: str, script: str) -> subprocess.CompletedProcess[str]:
        """A shell line in a service, without its entrypoint."""
        return self.run(service, "-c", script, options=("--entrypoint", "bash"))


@pytest.fixture
def host(image: str, tmp_path: Path) -> Iterator[Host]:
    """Real frames where this host has them, else the sample; empty folders that belong to the user."""
    real = os.environ.get("OPV2V_REAL_ROOT")
    images = Path(real) if real else SAMPLE / "opv2v_images"
    lines = {"OPV2V_IMAGES": images, "HOST_UID": UID, "HOST_GID": UID, "MAPANYTHING_IMAGE": image, "SHM_SIZE": "64m"}
    folders = {"OPV2V_DEPTH": "depth"} | {
        name.upper(): name for name in ("experiments", "checkpoints", "visualization_outputs")
    }
    for variable, name in folders.items():
        folder = tmp_path / name
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, UID, UID)
        lines[variable] = folder
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    made = Host(tmp_path, images, env_file, f"test-{os.getpid()}")
    yield made
    made.compose("down", "--volumes", "--timeout", "0")
