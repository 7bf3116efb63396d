"""The image and the compose file, run for real: the same results as on the host, and nothing a container may not do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mapanything.opv2v.depth import read_depth

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


def test_viz_alone_draws_the_mounted_data(host: Host, tmp_path: Path) -> None:
    drawn = host.run("viz")
    assert drawn.returncode == 0, drawn.stderr
    assert "first frame of data/opv2v_images: visualization_outputs/" in drawn.stdout
    (picture,) = files(tmp_path / "visualization_outputs")
    assert picture.name.startswith("pose_") and picture.stat().st_uid == UID


@pytest.mark.parametrize("kind", ["pose", "frame", "cloud", "boxes", "depth"])
def test_pictures_are_the_hosts(host: Host, tmp_path: Path, kind: str) -> None:
    drawn = host.run("viz", kind, "--output", f"visualization_outputs/{kind}.png")
    assert drawn.returncode == 0, drawn.stderr
    inside, own = tmp_path / "visualization_outputs" / f"{kind}.png", tmp_path / f"{kind}.png"
    on_host("viz", kind, "--root", host.images, "--output", own)  # depth: there is none, the LiDAR's is drawn
    if own.read_bytes() != inside.read_bytes():
        # The 3D views are the host's Mesa or GPU against the image's Mesa; all else is the same to the last bit.
        assert kind in ("pose", "cloud", "boxes")
        one, two = (np.asarray(Image.open(path).convert("RGB"), np.float32) for path in (own, inside))
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
    """The suite on mounted data, on a read-only root, by another user than the image's own.

    Where the place matters (files, pictures, windows, processes); everything else is tested on the host.
    """
    rooms = (
        "opv2v/test_index.py",
        "opv2v/test_bad_files.py",
        "opv2v/test_file_bombs.py",
        "opv2v/test_png_and_depth.py",
        "pictures/test_render.py",
        "pictures/test_window.py",
        "pictures/test_video.py",
        "tools/test_check_opv2v.py",
        "tools/test_make_depth.py",
        "tools/test_viewer_tool.py",
        "datasets/test_opv2v.py",
        "results/test_export.py",
        "models/test_model_infer.py",
        "train/test_training.py",
    )
    real = ("-e", "OPV2V_REAL_ROOT=data/opv2v_images") if "OPV2V_REAL_ROOT" in os.environ else ()
    done = host.run("test", "--", "-m", "not slow", *(f"tests/{room}" for room in rooms), options=real, timeout_s=1200)
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


@pytest.mark.parametrize("service", ["check-data", "make-depth", "viz", "demo", "doctor", "gpu", "test"])
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


def test_gpus_reach_the_services_that_ask_for_them(host: Host) -> None:
    """The engine tells NVIDIA's hook what to hand in by this variable; a stand-in for the hook will do here."""
    seen = {}
    for service in ("gpu", "viz"):
        options = ("-e", "NVIDIA_VISIBLE_DEVICES=untouched", "--entrypoint", "printenv")
        done = host.run(service, "NVIDIA_VISIBLE_DEVICES", options=options)
        if service == "gpu" and done.returncode and "could not select device driver" in done.stderr:
            # What a user without the toolkit reads: the words by which .env.example and `doctor` explain it.
            assert 'could not select device driver "nvidia"' in done.stderr
            assert 'could not select device driver "nvidia"' in (REPOSITORY / ".env.example").read_text()
            pytest.skip("this engine has no NVIDIA hook")
        seen[service] = done.stdout
    assert seen == {"gpu": "all\n", "viz": "untouched\n"}


@pytest.mark.skipif(bool(glob("/dev/nvidia[0-9]*")), reason="has a GPU")
def test_gpu_services_say_what_to_install(host: Host) -> None:
    with host.env_file.open("a") as file:
        file.write("CUDA_VISIBLE_DEVICES=1,3\nHOST_NAME=rechner7\n")
    done = host.run("gpu", "bash", "-c", "echo $CUDA_VISIBLE_DEVICES $HOSTNAME")
    if "could not select device driver" in done.stderr:
        pytest.skip("this engine has no NVIDIA hook")
    assert done.stdout == "1,3 rechner7\n"
    assert "container: no GPU in this container" in done.stderr
    assert "nvidia-container-toolkit" in done.stderr


def test_processes_find_each_other_without_a_network(host: Host, tmp_path: Path) -> None:
    """torchrun asks for the address of its own host name, which nobody but /etc/hosts knows there."""
    code = "import torch, torch.distributed as d; d.init_process_group('gloo'); t = torch.ones(1); d.all_reduce(t)\n"
    code += "open(f'experiments/{d.get_rank()}', 'w').write(str(t.item()))\n"
    # Python would tear gloo's threads down in any order at its end, and now and then abort over it.
    code += "d.barrier(); d.destroy_process_group()\n"
    (tmp_path / "experiments" / "sum.py").write_text(code)
    command = "timeout 120 torchrun --standalone --nproc-per-node 2 experiments/sum.py"
    done = host.shell("viz", command)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / "experiments" / str(rank)).read_text() for rank in range(2)] == ["2.0", "2.0"]


def test_pages_are_served_to_this_host_only_and_read_only(host: Host, tmp_path: Path) -> None:
    ports = dict(zip(("tensorboard", "viewer"), free_ports(2), strict=True))
    with host.env_file.open("a") as file:
        file.writelines(f"{service.upper()}_PORT={port}\n" for service, port in ports.items())
    code = "from torch.utils.tensorboard import SummaryWriter; writer = SummaryWriter('experiments/run1'); "
    code += "writer.add_scalar('loss', 1.5, 0); writer.close()"
    assert host.run("viz", "-c", code, options=("--entrypoint", "python")).returncode == 0
    # Without a service's name: what serves pages starts, and nothing that works on data.
    started = host.compose("up", "--detach", "--wait")
    assert started.returncode == 0, started.stderr
    listed = [json.loads(line) for line in host.compose("ps", "--format", "json").stdout.splitlines()]
    assert {service["Service"]: service["Health"] for service in listed} == dict.fromkeys(ports, "healthy")
    for service in listed:
        published = {(part["URL"], part["PublishedPort"]) for part in service["Publishers"]}
        assert published == {("127.0.0.1", ports[service["Service"]])}
        for place in ("experiments/x", "data/opv2v_images/x"):
            tried = host.compose("exec", "-T", service["Service"], "touch", place)
            assert tried.returncode != 0, place
    deadline, runs = time.monotonic() + 30, []
    while runs != ["run1"] and time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{ports['tensorboard']}/data/runs", timeout=10) as answer:
            runs = json.load(answer)
        time.sleep(0.2)
    assert runs == ["run1"]
    with urllib.request.urlopen(f"http://127.0.0.1:{ports['viewer']}", timeout=10) as answer:
        assert b"<html" in answer.read().lower()
    assert "container:" not in host.compose("logs").stdout
    assert host.compose("down").returncode == 0


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def test_what_ran_can_be_named(host: Host, image: str) -> None:
    code = "import json; from mapanything.environment import fingerprint; print(json.dumps(fingerprint()))"
    told = json.loads(host.run("viz", "-c", code, options=("--entrypoint", "python")).stdout)
    baked = json.loads(
        docker("run", "--rm", "--network=none", "--entrypoint=cat", image, "/opt/mapanything/image.json").stdout
    )
    assert told["image_contents"] == baked["contents"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", baked["contents"])
    assert told["code_sha256"] == baked["code_sha256"]
    lock = (REPOSITORY / "requirements" / "cpu.txt").read_bytes()
    assert told["lock_sha256"] == hashlib.sha256(lock).hexdigest()
    revision = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]["Labels"]["org.opencontainers.image.revision"]
    assert [told["commit"], told["dirty"]] == (
        [None, None] if revision == "unknown" else [revision[:40], "-dirty" in revision]
    )
    shown = host.run("doctor").stdout
    assert f"contents {told['image_contents'][:19]}" in shown
    assert "link-data" not in shown


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


def whole_maps(folder: Path) -> list[Path]:
    """Depth maps under their final names."""
    return [path for path in files(folder) if path.suffix in (".npy", ".png") and not path.name.startswith(".")]


def test_killed_make_depth_leaves_whole_maps_only(host: Host, tmp_path: Path) -> None:
    """Killed at several moments, each time with other files under way; the next run completes what is there."""
    done = 0
    for run, wait_s in enumerate((0.0, 0.05, 0.3)):
        name = f"{host.project}-depth{run}"
        # All again, so that there is something to write at every moment.
        command = ("run", "-T", "--detach", "--name", name, "make-depth", "--format", "both", "--overwrite", "--jobs", "2")
        before = time.time()
        assert host.compose(*command).returncode == 0
        deadline = time.monotonic() + 60
        while not any(path.stat().st_mtime > before for path in whole_maps(tmp_path / "depth")):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(wait_s)
        docker("kill", name)
        docker("wait", name)
        done += docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout != "137\n"
        docker("rm", name)
        for path in whole_maps(tmp_path / "depth"):
            read_depth(path)
    assert done < 3  # at least one was killed at work
    assert host.run("make-depth", "--format", "both").returncode == 0
    on_host("make_depth", "--root", host.images, "--depth-root", tmp_path / "own-depth", "--format", "both")
    own = files(tmp_path / "own-depth")
    made = [tmp_path / "depth" / path.relative_to(tmp_path / "own-depth") for path in own]
    assert [path.read_bytes() for path in own] == [path.read_bytes() for path in made]


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
