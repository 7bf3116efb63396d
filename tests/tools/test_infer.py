"""infer: any selection, the same bytes whether run once, twice or killed in between, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from mapanything.errors import InputError
from mapanything.models.config import VehicleIdConfig
from mapanything.models.mapanything import MapAnything
from mapanything.opv2v.pcd import read_pcd
from mapanything.tools import infer
from tests.helpers.networks import TINY
from tests.helpers.process_table import children, command_line

REPOSITORY = Path(__file__).parents[2]
IMAGES = REPOSITORY / "tests" / "fixtures" / "sample_opv2v" / "opv2v_images"
DEPTH = IMAGES.parent / "opv2v_depth"
SIZE = ("--resolution", "84", "42")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny network that trusts most of its pixels."""
    torch.manual_seed(0)
    model = MapAnything(TINY)
    with torch.no_grad():
        model.get_parameter("dpt_regressor_head.conv2.2.bias")[5] = 3.0
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    model.eval().save_pretrained(folder)
    return folder


def command(checkpoint: Path, out: Path, *arguments: object, root: Path = IMAGES) -> list[str]:
    options = ("--root", root, "--checkpoint", checkpoint, "--save_pred_dir", out, "--device", "cpu", *SIZE, *arguments)
    return [*map(str, options)]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_single_and_coop_of_a_selection(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    single, coop = tmp_path / "single", tmp_path / "coop"
    assert infer.main(command(checkpoint, single, "--split", "train", "--agents", "650", "--frame", "1040-1041,001042")) == 0
    assert "2 scenes written" in capsys.readouterr().out
    found = sorted(p.parent.relative_to(single).as_posix() for p in single.rglob("scene.json"))
    assert found == [f"train/2021_09_10_05_59_10/650/{frame}" for frame in ("001040", "001042")]
    clouds = ("--cloud", "pcd,ply,glb")
    assert infer.main(command(checkpoint, coop, "--coop", "--main-agent", "650", "--limit", 1, *clouds)) == 0
    record = json.loads(next(coop.rglob("scene.json")).read_text())
    assert record["scene"]["agents"] == ["650", "641"] and len(record["scene"]["views"]) == 8
    assert record["inputs"] == ["images"] and record["made_with"]["model"] == "mapanything_tiny"
    folder = next(coop.rglob("scene.json")).parent
    assert len(read_pcd(folder / "cloud.pcd").points) == record["num_points"] > 1000
    assert np.load(folder / "641_camera3" / "depth.npy").shape == (42, 84)


def test_inputs_are_used_and_recorded(checkpoint: Path, tmp_path: Path):
    every = ("--inputs", "images,intrinsics,poses,depth", "--depth-root", DEPTH)
    for name, arguments in (("plain", ()), ("told", every)):
        assert infer.main(command(checkpoint, tmp_path / name, "--limit", 1, *arguments)) == 0
    plain, told = (next((tmp_path / name).rglob("scene.json")).parent for name in ("plain", "told"))
    assert json.loads((told / "poses.json").read_text())["inputs"] == ["images", "intrinsics", "poses", "depth"]
    assert (plain / "641_camera0" / "depth.npy").read_bytes() != (told / "641_camera0" / "depth.npy").read_bytes()


def test_two_runs_and_several_processes_give_the_same_bytes(checkpoint: Path, tmp_path: Path):
    clouds = ("--cloud", "pcd,ply,glb", "--split", "train")
    assert infer.main(command(checkpoint, tmp_path / "a", *clouds)) == 0
    assert infer.main(command(checkpoint, tmp_path / "b", *clouds)) == 0
    assert infer.main(command(checkpoint, tmp_path / "c", *clouds, "--device", "cpu,cpu")) == 0
    one = files(tmp_path / "a")
    assert one == files(tmp_path / "b") == files(tmp_path / "c") and len(one) == 4 * (4 * 4 + 3 + 2)


@pytest.mark.faults
def test_killed_run_goes_on_and_gives_the_same_bytes(checkpoint: Path, tmp_path: Path, capsys):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = [sys.executable, "-m", "mapanything.tools.infer", *command(checkpoint, killed, "--cloud", "pcd,glb")]
    process = subprocess.Popen(arguments, cwd=REPOSITORY, start_new_session=True)
    while not list(killed.rglob("scene.json")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = list(killed.rglob("scene.json"))
    assert done
    times = {path: path.stat().st_mtime_ns for path in done}
    capsys.readouterr()
    assert infer.main(command(checkpoint, killed, "--cloud", "pcd,glb")) == 0
    assert f"{8 - len(done)} scenes written, {len(done)} of 8 were there already" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    assert infer.main(command(checkpoint, whole, "--cloud", "pcd,glb")) == 0
    assert files(killed) == files(whole)


def test_another_run_in_the_same_folder_is_refused_unless_wanted(checkpoint: Path, tmp_path: Path):
    first = ("--limit", 1, "--split", "train")
    assert infer.main(command(checkpoint, tmp_path / "a", *first)) == 0
    with pytest.raises(InputError, match=r"resolution: \[84, 42\], now \[70, 42\]"):
        infer.main(command(checkpoint, tmp_path / "a", *first, "--resolution", "70x42"))
    assert infer.main(command(checkpoint, tmp_path / "a", *first, "--resolution", "70x42", "--overwrite")) == 0
    assert infer.main(command(checkpoint, tmp_path / "b", *first, "--resolution", "70x42")) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.faults
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_broken_scene_is_named_and_the_others_made(checkpoint: Path, sample_root: Path, tmp_path: Path, capsys, devices):
    broken = sample_root / "train" / "2021_09_10_05_59_10" / "641" / "001042_camera2.png"
    broken.write_bytes(broken.read_bytes()[:500])
    arguments = command(checkpoint, tmp_path / "out", "--split", "train", "--device", devices, root=sample_root)
    assert infer.main(arguments) == 1
    out = capsys.readouterr().out
    assert f"train/2021_09_10_05_59_10/641/001042: {broken}" in out and "3 scenes written" in out and "1 failed" in out


def test_several_devices_stop_at_what_stops_one(checkpoint: Path, tmp_path: Path):
    """A folder that can't be made (its name is a file's) ends all processes with one line."""
    target = tmp_path / "out" / "train" / "2021_09_10_05_59_10" / "650"
    target.parent.mkdir(parents=True)
    target.write_text("a file")
    done = subprocess.run(
        [sys.executable, "-m", "mapanything.tools.infer", *command(checkpoint, tmp_path / "out", "--device", "cpu,cpu")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and str(target) in done.stderr, done.stderr


@pytest.mark.faults
def test_killed_process_of_a_device_is_said_and_what_is_written_is_whole(checkpoint: Path, tmp_path: Path):
    arguments = command(checkpoint, tmp_path / "out", "--device", "cpu,cpu")
    process = subprocess.Popen(
        [sys.executable, "-m", "mapanything.tools.infer", *arguments],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    workers: list[int] = []
    while len(workers) < 2 and process.poll() is None:
        time.sleep(0.02)
        workers = [pid for pid in children(process.pid) if b"spawn_main" in command_line(pid)]
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and len(errors.splitlines()) == 1 and "was killed (signal 9" in errors, errors
    assert infer.main(arguments) == 0


@pytest.mark.faults
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_interrupted_is_one_line(checkpoint: Path, tmp_path: Path, devices: str):
    process = subprocess.Popen(
        [sys.executable, "-m", "mapanything.tools.infer", *command(checkpoint, tmp_path / "out", "--device", devices)],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list((tmp_path / "out").rglob("*.npy")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_ctrl_c_while_processes_start_is_not_lost(checkpoint: Path, tmp_path: Path, monkeypatch):
    begun = []
    start = SpawnProcess.start

    def interrupted(process: SpawnProcess) -> None:
        start(process)
        os.kill(os.getpid(), signal.SIGINT)
        begun.append(process)

    monkeypatch.setattr(SpawnProcess, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        infer.main(command(checkpoint, tmp_path / "out", "--device", "cpu,cpu"))
    assert len(begun) == 2
    for process in begun:
        process.join(30)
        assert process.exitcode == -signal.SIGTERM


def test_a_scene_with_more_vehicles_than_the_network_knows_is_named(tmp_path: Path, capsys):
    MapAnything(replace(TINY, vehicle_id=VehicleIdConfig(num_roles=1))).save_pretrained(tmp_path / "one")
    assert infer.main(command(tmp_path / "one", tmp_path / "out", "--coop", "--limit", 1)) == 1
    assert "train/2021_09_10_05_59_10/641/001040: view 4, key agent_id" in capsys.readouterr().out


@pytest.mark.faults
def test_full_disk_is_one_line_and_leaves_no_finished_scene(checkpoint: Path, tmp_path: Path, monkeypatch):
    from mapanything import files as package_files

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package_files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        infer.main(command(checkpoint, tmp_path / "out"))
    assert not files(tmp_path / "out")


@pytest.mark.faults
def test_too_little_space_is_said_before(checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(infer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="free some"):
        infer.main(command(checkpoint, tmp_path / "out"))


WRONG = [
    (["--frame", "000001"], "no frame '000001'"),
    (["--frame", "000001-000002"], "no frame '000001-000002'"),
    (["--agents", "7"], "no agent '7'"),
    (["--split", "holiday"], "no split 'holiday'"),
    (["--root", "/nowhere"], "/nowhere: no such folder"),
    (["--checkpoint", "/nowhere/x.pth"], "/nowhere/x.pth: no such file"),
    (["--save_pred_dir", f"{__file__}/x"], "test_infer.py: is no folder"),
    (["--save_pred_dir", "/proc/x"], "/proc: is not writable"),
    (["--inputs", "images,truth"], "unknown 'truth'"),
    (["--inputs", "images,intrinsics,depth", "--depth-root", "/nowhere"], "/nowhere: no such depth folder"),
    (["--resolution", "100", "42"], "multiples of 14"),
    (["--resolution", "big"], "give width and height"),
    (["--cloud", "las"], "--cloud las: give some of pcd, ply, glb"),
    (["--device", "cuda:99"], "--device cuda:99: not on this machine"),
    (["--coop", "--main-agent", "7"], "agent '7' is in no scene"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(a)[:40] for a, _ in WRONG])
def test_bad_input_is_one_line(checkpoint: Path, tmp_path: Path, arguments: list[str], message: str):
    if "/proc" in " ".join(arguments) and os.access("/proc", os.W_OK):
        message = "/proc"  # root may write everywhere, and is told so only when it tries
    with pytest.raises(InputError) as error:
        infer.main(command(checkpoint, tmp_path / "out", *arguments))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_checkpoint_is_asked_for():
    with pytest.raises(InputError, match="--checkpoint: give the network"):
        infer.main(["--root", str(IMAGES)])


def test_command_line_says_it_in_one_line(checkpoint: Path, tmp_path: Path):
    arguments = command(checkpoint, tmp_path / "out", "--frame", "000001")
    done = subprocess.run(
        [sys.executable, "-m", "mapanything.tools.infer", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this host")
def test_a_card_gives_the_same_bytes_twice_whatever_memory_is_free(checkpoint: Path, tmp_path: Path):
    arguments = ("--device", "cuda:0", "--coop", "--cloud", "pcd,ply,glb")
    assert infer.main(command(checkpoint, tmp_path / "a", *arguments)) == 0
    taken = torch.empty(torch.cuda.mem_get_info(0)[0] * 3 // 4, dtype=torch.uint8, device="cuda:0")
    assert infer.main(command(checkpoint, tmp_path / "b", *arguments)) == 0
    del taken
    one = files(tmp_path / "a")
    assert one == files(tmp_path / "b")
