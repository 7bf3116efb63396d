"""`./invoke doctor`: its verdict on findings that are made up here, and on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest

from mapanything.environment import Fingerprint, fingerprint
from mapanything.tools import doctor
from mapanything.tools.doctor import FAIL, GIB, OK, WARNING, Row

CARD = ["NVIDIA GeForce RTX 3090", 24 * GIB]


@pytest.fixture(autouse=True)
def _on_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run in the image as well; what is said in containers is asked for where it is tested."""
    monkeypatch.delenv("MAPANYTHING_CONTAINER", raising=False)


def status(rows: list[Row]) -> dict[str, str]:
    return {row.name: row.status for row in rows}


def test_python() -> None:
    assert doctor.check_python((3, 11, 2))[0].status == OK
    assert doctor.check_python((3, 10, 0))[0].status == FAIL


def test_packages_against_the_lock() -> None:
    def version_of(name: str) -> str | None:
        found = {"numpy": "1.0", "matplotlib": None}
        return found[name] if name in found else doctor.installed_version(name)

    rows = doctor.check_packages(version_of)
    wrong = {row.name: row.found for row in rows if row.status == FAIL}
    assert wrong["numpy"] == "1.0"
    assert wrong["matplotlib"] == "missing"
    assert all(row.remedy for row in rows if row.status == FAIL)


@pytest.mark.parametrize(
    ("driver", "torch", "expected"),
    [
        (None, {"cuda": None, "cards": []}, {"NVIDIA driver": WARNING}),
        ("580.95.05", {"cuda": "13.0", "cards": [CARD]}, {"NVIDIA driver": OK, "CUDA": OK, "GPU 0": OK}),
        (
            "580.95.05",
            {"cuda": "13.0", "cards": [["GTX 1080", 8 * GIB]]},
            {"NVIDIA driver": OK, "CUDA": OK, "GPU 0": WARNING},
        ),
        ("580.95.05", {"cuda": "13.0", "cards": []}, {"NVIDIA driver": OK, "CUDA": FAIL}),
        ("580.95.05", {"cuda": None, "cards": []}, {"NVIDIA driver": OK, "CUDA": WARNING}),
        ("535.183.01", {"cuda": None, "cards": []}, {"NVIDIA driver": OK, "CUDA": WARNING}),
        ("535.183.01", {"cuda": "12.8", "cards": [CARD]}, {"NVIDIA driver": OK, "CUDA": OK, "GPU 0": OK}),
        ("535.183.01", {"cuda": "13.0", "cards": []}, {"NVIDIA driver": WARNING, "CUDA": WARNING}),
        ("470.256.02", {"cuda": None, "cards": []}, {"NVIDIA driver": WARNING, "CUDA": WARNING}),
        ("580.95.05", {}, {"torch": FAIL}),
    ],
)
def test_driver_cuda_and_cards(driver: str | None, torch: dict, expected: dict[str, str]) -> None:
    rows = doctor.check_gpu(driver, lambda: (torch, "died of signal 11"))
    assert status(rows) == expected
    assert all(row.remedy for row in rows if row.status != OK)


@pytest.mark.parametrize(
    ("shm", "disk", "expected"),
    [(64 << 20, 500 * GIB, (WARNING, OK)), (16 * GIB, 10 * GIB, (OK, WARNING)), (16 * GIB, 1 << 20, (OK, FAIL))],
)
def test_space(shm: int, disk: int, expected: tuple[str, str]) -> None:
    rows = doctor.check_space(shm, disk)
    assert tuple(row.status for row in rows) == expected
    assert all(row.remedy for row in rows if row.status != OK)


def test_data_mounts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (tmp_path / "disk/train/2021_08_16_22_26_54").mkdir(parents=True)
    data.mkdir()
    (data / "opv2v_images").symlink_to(tmp_path / "disk")
    (data / "opv2v_depth").symlink_to(tmp_path / "unmounted")
    images, depth = doctor.check_data(tmp_path)
    assert (images.status, images.found) == (OK, f"-> {tmp_path / 'disk'}: train 1 scenarios")
    assert depth.status == WARNING
    assert "unmounted" in depth.found
    assert depth.remedy == "./invoke link-data --depth DIR"
    (data / "opv2v_depth").unlink()
    (data / "opv2v_depth").mkdir()
    assert doctor.check_data(tmp_path)[1].remedy == "make-depth makes depth maps; or ./invoke link-data --depth DIR"
    assert [row.status for row in doctor.check_data(tmp_path / "nothing")] == [WARNING, WARNING]


def test_in_a_container_data_is_mounted_not_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPANYTHING_CONTAINER", "1")
    (tmp_path / "data/opv2v_depth").mkdir(parents=True)
    images, depth = doctor.check_data(tmp_path)
    assert (images.status, depth.status) == (WARNING, WARNING)
    assert images.remedy.startswith("mount it: set OPV2V_IMAGES in .env")
    assert depth.remedy.startswith("make-depth makes depth maps; or mount it: set OPV2V_DEPTH in .env")
    assert "link-data" not in images.remedy + depth.remedy
    (row,) = [row for row in doctor.check_gpu("580.1", lambda: ({"cuda": None, "cards": []}, "")) if row.name == "CUDA"]
    assert "TORCH_VARIANT=cuda13 in .env" in row.remedy


@pytest.mark.parametrize(
    ("driver", "cuda", "remedy"),
    [
        ("580.1", None, "MAPANYTHING_TORCH=cuda13 ./invoke doctor"),
        ("535.1", None, "MAPANYTHING_TORCH=cuda12 ./invoke doctor"),
        ("535.1", "13.0", "MAPANYTHING_TORCH=cuda12 ./invoke doctor"),
        ("470.1", None, "update the driver"),
        ("470.1", "12.8", "update the driver"),
    ],
)
def test_driver_says_which_torch_to_take(driver: str, cuda: str | None, remedy: str) -> None:
    rows = doctor.check_gpu(driver, lambda: ({"cuda": cuda, "cards": []}, ""))
    assert next(row.remedy for row in rows if row.remedy).startswith(remedy)


@pytest.mark.skipif(bool(glob("/dev/nvidia[0-9]*")), reason="has a GPU")
def test_in_a_container_cards_must_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPANYTHING_CONTAINER", "1")
    row = doctor.check_gpu("580.95.05", lambda: ({"cuda": "13.0", "cards": []}, ""))[-1]
    assert (row.name, row.status) == ("CUDA", WARNING)
    assert "docker compose run --rm gpu" in row.remedy
    assert "install nvidia-container-toolkit" in row.remedy


@pytest.mark.parametrize(
    ("driver", "programs", "expected"),
    [
        (None, {"docker"}, []),
        ("580.1", set(), []),
        ("580.1", {"docker"}, [WARNING]),
        ("580.1", {"docker", "nvidia-ctk"}, [OK]),
        ("580.1", {"docker", "nvidia-container-runtime-hook"}, [OK]),
    ],
)
def test_docker_without_the_toolkit(driver: str | None, programs: set[str], expected: list[str]) -> None:
    rows = doctor.check_docker(driver, programs.__contains__)
    assert [row.status for row in rows] == expected
    assert all("install nvidia-container-toolkit" in row.remedy for row in rows if row.status != OK)


def test_identity_is_what_a_manifest_names() -> None:
    found: Fingerprint = {**fingerprint(), "commit": "c" * 40, "dirty": True, "code_sha256": "d" * 64, "lock_sha256": "e" * 64}
    image: Fingerprint = {**found, "image_contents": "sha256:" + "f" * 64}
    shown = {row.name: row.found for row in doctor.check_identity(image)}
    assert shown == {
        "code": f"{'c' * 12}, changed since (sha256 {'d' * 12})",
        "lock": f"sha256 {'e' * 12}",
        "image": f"contents sha256:{'f' * 12}",
    }
    nothing: Fingerprint = {**found, "commit": None, "dirty": None, "lock_sha256": None, "image_contents": None}
    unknown = doctor.check_identity(nothing)
    assert [row.found for row in unknown] == [f"no commit known (sha256 {'d' * 12})", "not made from a lock"]


def test_rendering_draws_a_picture() -> None:
    assert doctor.check_rendering()[0].status == OK


@pytest.mark.parametrize(
    ("drawn", "problem", "remedy"),
    [
        ({}, "ImportError: libusb-1.0.so.0: cannot open shared object file", doctor.APT_LINE),
        ({}, "died of signal 11", "import open3d"),
        ({"size": [2, 2], "spread": 0.0}, "", "libgl1-mesa-dri"),
    ],
)
def test_rendering_failures_have_a_remedy(drawn: dict, problem: str, remedy: str) -> None:
    row = doctor.check_rendering(lambda: (drawn, problem))[0]
    assert row.status == FAIL
    assert remedy in row.remedy


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os; os.kill(os.getpid(), 11)", "died of signal 11"),
        ("import time; time.sleep(60)", "no answer within 1 s"),
        ("raise RuntimeError('no EGL')", "RuntimeError: no EGL"),
        ("pass", ""),
    ],
)
def test_a_crash_is_a_finding(code: str, problem: str) -> None:
    assert doctor.run_python(code, 1) == ({}, problem)


@pytest.mark.parametrize(("worst", "exit_code"), [(OK, 0), (WARNING, 0), (FAIL, 1)])
def test_exit_code_and_json(
    worst: str, exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row("numpy", OK, "2", "2"), Row("matplotlib", OK, "3", "3"), Row("thing", worst, "found", "wanted", "remedy")]
    monkeypatch.setattr(doctor, "examine", lambda: rows)
    monkeypatch.setattr(sys, "argv", ["doctor", "--json"])
    assert doctor.main() == exit_code
    told = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in told["rows"]] == ["numpy", "matplotlib", "thing"]
    assert sum(told["count"].values()) == 3
    assert told["fingerprint"] == fingerprint()
    monkeypatch.setattr(sys, "argv", ["doctor"])
    assert doctor.main() == exit_code
    table = capsys.readouterr().out
    assert "2 as locked" in table
    assert "-> remedy" in table


def test_this_environment_is_as_locked() -> None:
    """Everything is, in .venv and in the image; elsewhere (another environment) the rows say what is not."""
    command = [sys.executable, "-m", "mapanything.tools.doctor", "--json"]
    done = subprocess.run(command, cwd=doctor.ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert done.returncode == (1 if told["count"]["fail"] else 0)
