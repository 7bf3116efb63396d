"""The image and the compose file, run for real: the same results as on the host, and nothing a container may not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from .conftest import REPOSITORY, UID, Host, docker

pytestmark = [pytest.mark.container, pytest.mark.slow]


def on_host(module: str, *arguments: object) -> None:
    command = [sys.executable, "-m", f"mapanything.tools.{module}", *map(str, arguments)]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_depth_and_report_are_the_hosts(host: Host, tmp_path: Path) -> None:
    made = host.run("make-depth")
    assert made.returncode == 0, made.stderr
    assert "container:" not in made.stderr
    maps = files(tmp_path / "depth")
    assert maps
    assert {path.stat().st_uid for path in maps} == {UID}
    on_host("make_depth", "--root", host.images, "--depth-root", tmp_path / "own-depth")
    own = files(tmp_path / "own-depth")
    assert [path.read_bytes() for path in own] == [path.read_bytes() for path in maps]

    checked = host.run("check-data", "--deep", "--report", "visualization_outputs/check.json")
    report = json.loads((tmp_path / "visualization_outputs" / "check.json").read_text())
    command = ["--root", host.images, "--depth-root", tmp_path / "depth", "--deep", "--report", tmp_path / "own.json"]
    verdict = subprocess.run(
        [sys.executable, "-m", "mapanything.tools.check_opv2v", *map(str, command)], cwd=REPOSITORY, capture_output=True
    )
    own_report = json.loads((tmp_path / "own.json").read_text())
    assert checked.returncode == verdict.returncode
    for one in (report, own_report):
        del one["options"]["root"], one["options"]["depth_root"], one["versions"]["python"]
    assert report == own_report


def test_viz_alone_draws_the_hosts_pictures(host: Host, tmp_path: Path) -> None:
    drawn = host.run("viz")
    assert drawn.returncode == 0, drawn.stderr
    assert "the pictures are in visualization_outputs/" in drawn.stderr
    pictures = files(tmp_path / "visualization_outputs")
    assert [path.name.split("_")[0] for path in pictures] == ["frame", "pose"]
    assert {path.stat().st_uid for path in pictures} == {UID}
    for kind, picture in zip(("frame", "pose"), pictures):
        own = tmp_path / f"{kind}.png"
        on_host("viz", kind, "--root", host.images, "--output", own)
        if own.read_bytes() != picture.read_bytes():
            # The 3D view is the host's Mesa or GPU against the image's Mesa; all else is the same to the last bit.
            assert kind == "pose"
            one, two = (np.asarray(Image.open(path).convert("RGB"), np.float32) for path in (own, picture))
            assert one.shape == two.shape
            assert np.abs(one - two).mean() < 1.0


def test_viz_with_arguments_is_the_task(host: Host, tmp_path: Path) -> None:
    drawn = host.run("viz", "frame", "--output", "experiments/x.png")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "experiments" / "x.png").is_file()
    refused = host.run("viz", "frame", "--agent", "nobody")
    assert refused.returncode == 2
    assert "error: " in refused.stderr


def test_tests_pass_inside(host: Host) -> None:
    """A part of them, with the mounted data; the whole run takes minutes."""
    real = ("-e", "OPV2V_REAL_ROOT=data/opv2v_images") if "OPV2V_REAL_ROOT" in os.environ else ()
    done = host.run("test", "--match", "frame or carla or viz or render", options=real)
    assert done.returncode == 0, done.stdout
    assert " failed" not in done.stdout
    assert not real or "OPV2V_REAL_ROOT is not set" not in done.stdout


def test_nothing_but_results_can_be_written(host: Host) -> None:
    for place in ("data/opv2v_images", "data/opv2v_depth", "mapanything", "/usr/local", "/etc"):
        tried = host.shell("check-data", f"touch {place}/x")
        assert "Read-only file system" in tried.stderr, place
    assert host.shell("make-depth", "touch data/opv2v_depth/x").returncode == 0
    assert "Read-only file system" in host.shell("make-depth", "touch data/opv2v_images/x").stderr
    assert (
        host.shell("viz", 'touch ~/x /tmp/x /cache/x experiments/x visualization_outputs/x "$MAPANYTHING_CACHE"x').returncode
        == 0
    )


@pytest.mark.parametrize("service", ["check-data", "make-depth", "viz", "demo", "doctor", "test"])
def test_services_have_no_rights_and_no_network(host: Host, service: str) -> None:
    seen = host.shell(
        service, "id -u; id -g; ls /sys/class/net; grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs)' /proc/self/status"
    )
    rights = "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n"
    assert seen.stdout == f"{UID}\n{UID}\nlo\n{rights}"


def test_variables_and_folders_that_are_missing(host: Host, tmp_path: Path) -> None:
    lines = host.env_file.read_text()
    host.env_file.write_text("HOST_UID=1\n")
    unset = host.compose("config", "--quiet")
    assert unset.returncode != 0
    assert "OPV2V_IMAGES is missing a value: set it in .env" in unset.stderr
    nowhere = tmp_path / "nowhere"
    host.env_file.write_text(lines.replace(f"OPV2V_IMAGES={host.images}", f"OPV2V_IMAGES={nowhere}"))
    refused = host.run("check-data")
    assert refused.returncode != 0
    assert f"bind source path does not exist: {nowhere}" in refused.stderr
    assert not nowhere.exists()


def test_tasks_are_the_hosts_and_the_rest_runs_as_it_is(image: str) -> None:
    listed = subprocess.run([sys.executable, "-m", "invoke", "--list"], cwd=REPOSITORY, capture_output=True, text=True)
    for command in (("--list",), ("invoke", "--list"), ("./invoke", "--list")):
        done = docker("run", "--rm", "--network=none", image, *command)
        assert done.stdout == listed.stdout, done.stderr
    assert docker("run", "--rm", "--network=none", image, "echo", "a  b").stdout == "a  b\n"
    assert docker("run", "--rm", "--network=none", image, "bash", "-c", "exit 7").returncode == 7
    elsewhere = docker("run", "--rm", "--network=none", "--workdir=/", image, "tree", "--root", "nowhere")
    assert (elsewhere.returncode, elsewhere.stderr.count("Traceback")) == (2, 0)


def test_a_clone_in_dev_keeps_its_own_environment(host: Host) -> None:
    before = (REPOSITORY / ".venv" / ".made-from").stat() if (REPOSITORY / ".venv" / ".made-from").exists() else None
    done = host.run("dev", "bash", "-c", "./invoke --version && python -c 'import mapanything; print(mapanything.__file__)'")
    assert done.returncode == 0, done.stderr
    assert "/workspace/mapanything/__init__.py" in done.stdout
    assert before is None or (REPOSITORY / ".venv" / ".made-from").stat().st_mtime_ns == before.st_mtime_ns


def test_what_is_missing_is_said_first(image: str, tmp_path: Path) -> None:
    """No GPU, a small /dev/shm, a folder that belongs to somebody else: a line each, and only where it matters."""
    plain = docker("run", "--rm", "--network=none", image, "true")
    assert (plain.returncode, plain.stderr) == (0, "")
    tmp_path.chmod(0o755)
    mount = f"type=bind,source={tmp_path},target=/workspace/experiments"
    said = docker("run", "--rm", "--user=4321:4321", "--env=MAPANYTHING_GPU=1", "--mount", mount, image, "true")
    lines = said.stderr.splitlines()
    assert said.returncode == 0
    assert any(line.startswith("container: experiments is not writable for uid 4321: set HOST_UID") for line in lines)
    assert any("/dev/shm has only 64 MB" in line for line in lines)
    assert any("torch for the CPU only" in line for line in lines)


def test_any_user_can_work_on_a_read_only_root(image: str) -> None:
    options = [
        "--rm",
        "--network=none",
        "--read-only",
        "--user=4321:4321",
        "--tmpfs=/tmp:exec",
        "--tmpfs=/cache:exec,mode=1777",
    ]
    code = "import torch, open3d, matplotlib.pyplot as p; p.figure(); f = torch.compile(lambda x: x.sin() + 1); "
    code += "print(f(torch.zeros(3)).tolist())"
    done = docker("run", *options, image, "python", "-c", code)
    assert done.stdout == "[1.0, 1.0, 1.0]\n", done.stderr


def test_windows_have_a_virtual_display(image: str) -> None:
    done = docker("run", "--rm", "--network=none", image, "xvfb-run", "-a", "xdotool", "getdisplaygeometry")
    assert len(done.stdout.split()) == 2, done.stderr


def test_killed_container_leaves_whole_files_only(host: Host, tmp_path: Path) -> None:
    """A sample is being written by several processes when the container is killed."""
    size = ("--scenarios", "2", "--frames", "20", "--agents", "2")
    for wait_s in (0.0, 0.7):
        name = f"{host.project}-killed"
        command = ("run", "--rm", "-T", "--detach", "--name", name, "--entrypoint", "entrypoint", "demo", "make-sample")
        target = tmp_path / "experiments" / f"sample{wait_s}"
        started = host.compose(*command, "--output", f"experiments/{target.name}", *size)
        assert started.returncode == 0, started.stderr
        deadline = time.monotonic() + 60
        while len(list(target.rglob("*.png"))) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(wait_s)
        assert docker("kill", name).returncode == 0
        docker("wait", name)
        left = [path for path in files(target) if not path.name.startswith(".")]
        assert left
        for path in left:
            if path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".npy":
                np.load(path)
            elif path.suffix == ".yaml":
                assert yaml.safe_load(path.read_text())


def test_image_is_small_and_carries_no_settings(image: str) -> None:
    shown = json.loads(docker("image", "inspect", image).stdout)[0]
    assert shown["Size"] <= 2.2e9
    assert shown["Config"]["User"] == "1000"
    assert shown["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    variables = dict(line.split("=", 1) for line in shown["Config"]["Env"])
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility,graphics"
    assert not [name for name in variables if name.startswith("PIP_")]
    # A layer of ours says no address; what the base image says is its own.
    own = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout.split("ARG DEBIAN_SNAPSHOT=")[0]
    assert "://" not in own
    search = ["find", "/run", "/tmp", "/root", "/var/lib/apt/lists", "/var/cache/pip", "-type", "f", "-size", "+0"]
    left = docker("run", "--rm", "--network=none", "--user=0", "--entrypoint", search[0], image, *search[1:])
    assert [path for path in left.stdout.splitlines() if "/.bashrc" not in path and "/.profile" not in path] == []
