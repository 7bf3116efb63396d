"""docker-compose.yml as it is written: what holds for every service, read without Docker."""

from __future__ import annotations

import re

import pytest
import yaml

import tasks

from .conftest import REPOSITORY

TEXT = (REPOSITORY / "docker-compose.yml").read_text("utf-8")
SERVICES: dict[str, dict] = yaml.safe_load(TEXT)["services"]
NO_TASKS = {"dev", "gpu", "tensorboard"}


def reserves_gpu(service: dict) -> bool:
    return "deploy" in service


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_the_task_of_its_name(name: str) -> None:
    command = SERVICES[name]["entrypoint"][len(["tini", "-s", "--", "entrypoint"]) :]
    if name in NO_TASKS:
        assert name not in tasks.namespace.tasks
    else:
        assert name in tasks.namespace.tasks
        assert command == [name]


@pytest.mark.parametrize("name", SERVICES)
def test_service_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] or name == "dev"
    assert service["network_mode"] == "none" or name in ("dev", "tensorboard", "viewer")
    # What serves pages starts with `docker compose up`; no task does.
    assert service["profiles"] == ([] if "ports" in service else ["run"])
    assert reserves_gpu(service) == (service["environment"].get("MAPANYTHING_GPU") == 1)
    for mount in service["volumes"]:
        if mount["target"].startswith("/workspace/data/"):
            assert mount.get("read_only") or (name, mount["target"]) == ("make-depth", "/workspace/data/opv2v_depth")
        assert mount["type"] == "volume" or mount["source"] == "." or mount["bind"] == {"create_host_path": False}


def test_looking_at_data_needs_no_gpu() -> None:
    assert not any(
        reserves_gpu(SERVICES[name]) for name in ("check-data", "make-depth", "viz", "doctor", "dev", "tensorboard")
    )
    assert reserves_gpu(SERVICES["gpu"])


def test_every_variable_is_explained() -> None:
    explained = (REPOSITORY / ".env.example").read_text("utf-8")
    used = set(re.findall(r"\$\{(\w+)", TEXT)) | {"CUDA_VISIBLE_DEVICES"}
    # pip's own variables are explained in the README.
    assert {name for name in used if not re.search(rf"^#?{name}=", explained, re.M)} == set()
    for name in re.findall(r"^#?(\w+)=", explained, re.M):
        assert name in TEXT, f"{name} is explained, but nothing reads it"
