"""make-depth: right by a slow projection, resumable, never half a file, and every broken frame named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from mapanything.arrays import PNG_SCALE
from mapanything.files import TEMPORARY
from mapanything.opv2v.depth import read_depth
from mapanything.opv2v.depth_root import read
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import scan
from mapanything.opv2v.pcd import read_pcd
from mapanything.opv2v.yaml_file import read_yaml
from tests.helpers.plain_maps import lidar_root


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mapanything.tools.make_depth", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


def slow_depth(points: np.ndarray, camera) -> np.ndarray:
    """The projection, spelt out (docs/conventions.md): X_cv = C (extrinsic [X; 1]), u = fx x/z + cx, the pixel is floor(u)."""
    width, height = camera.image_size
    depth = np.zeros((height, width), np.float32)
    for point in points.astype(np.float64):
        forward, right, up, _ = camera.extrinsic @ np.append(point, 1)
        x, y, z = right, -up, forward
        if z < 0.1:
            continue
        u, v = (
            camera.intrinsics[0, 0] * x / z + camera.intrinsics[0, 2],
            camera.intrinsics[1, 1] * y / z + camera.intrinsics[1, 2],
        )
        if 0 <= u < width and 0 <= v < height:
            cell = int(v), int(u)
            depth[cell] = z if depth[cell] == 0 else min(depth[cell], z)
    return depth


def check_against_slow(root: Path, depth_root: Path) -> None:
    for folder in scan(root):
        for name in folder.frames:
            frame, cloud = read_frame(folder.path / f"{name}.yaml"), read_pcd(folder.path / f"{name}.pcd")
            for camera in frame.cameras:
                made = read_depth(depth_root / f"{folder.key(name)}_camera{camera.index}_depth.npy")
                slow = slow_depth(cloud.points, camera)
                # A point within rounding of a pixel's border may fall to either side.
                assert ((made > 0) != (slow > 0)).sum() <= 2
                both = (made > 0) & (slow > 0)
                assert both.sum() > 20 and (np.abs(made - slow)[both] > 1e-4).sum() <= 2
        break


def test_frames_of_fewer_cameras_count_as_done(sample_root, tmp_path):
    path = next(sample_root.rglob("*/*/*/*.yaml"))
    path.write_text(yaml.dump({name: value for name, value in read_yaml(path).items() if name != "camera2"}))
    arguments = ("--root", sample_root, "--depth-root", tmp_path / "d", "--jobs", 1)
    frames = len(list(sample_root.rglob("*.pcd")))
    assert f"{4 * frames - 1} depth maps written for {frames} agent-frames, 0 of {frames} had" in run(*arguments).stdout
    assert (
        f": 0 depth maps written for 0 agent-frames, {frames} of {frames} had theirs already, 0 failed"
        in run(*arguments).stdout
    )


def test_plain_maps_of_earlier_versions_stay_until_all_are_made_anew(sample_root, sample_depth_root, tmp_path):
    maps = lidar_root(sample_root, tmp_path / "d").root
    before = {path: path.read_bytes() for path in maps.rglob("*.npy")}
    arguments = ("--root", sample_root, "--depth-root", maps, "--jobs", 1)
    done = run(*arguments)
    assert (
        done.returncode == 0 and "holds plain LiDAR maps, made without visibility; --overwrite makes them anew" in done.stdout
    )
    next(iter(before)).unlink()
    for more in ((), ("--overwrite", "--split", "train")):
        mixed = run(*arguments, *more)
        assert mixed.returncode == 2 and mixed.stderr.count("\n") == 1 and "or make all maps anew: --overwrite" in mixed.stderr
    assert all(path.read_bytes() == data for path, data in [*before.items()][1:])
    anew = run(*arguments, "--overwrite")
    assert anew.returncode == 0 and f"{len(before) - 1} maps of another kind removed" in anew.stdout
    kind = read(maps)
    assert kind is not None and kind.method == "visible" and len(list(maps.rglob("*.npy"))) == len(before)
    rendered = run("--root", sample_root, "--depth-root", sample_depth_root, "--overwrite")
    assert rendered.returncode == 2 and "holds rendered maps (ray casting)" in rendered.stderr


def test_maps_are_right(sample_root, tmp_path):
    done = run("--root", sample_root, "--depth-root", tmp_path / "d", "--visibility", "off", "--format", "both", "--jobs", 2)
    assert done.returncode == 0, done.stderr
    check_against_slow(sample_root, tmp_path / "d")
    for npy in (tmp_path / "d").rglob("*.npy"):
        metres, steps = read_depth(npy), read_depth(npy.with_suffix(".png"))
        assert np.array_equal(metres > 0, steps > 0)
        assert np.abs(metres - steps).max() <= 0.5 / PNG_SCALE + 1e-6


@pytest.mark.real
def test_real_maps_are_right(real_root, tmp_path):
    assert run("--root", real_root, "--depth-root", tmp_path, "--visibility", "off").returncode == 0
    check_against_slow(real_root, tmp_path)


@pytest.mark.real
def test_real_labels_are_seen(real_root, tmp_path):
    """The plain map lets road and walls shine through the car ahead of agent 4288, a third of its labels."""
    for name, *options in (("plain", "--visibility", "off"), ("seen",)):
        assert run("--root", real_root, "--depth-root", tmp_path / name, *options).returncode == 0
    plain, seen = (
        {path.relative_to(root): read_depth(path) for path in sorted(root.rglob("*.npy"))}
        for root in (tmp_path / "plain", tmp_path / "seen")
    )
    assert all(np.array_equal(seen[name], np.where(seen[name] > 0, depth, 0)) for name, depth in plain.items())
    shares = {f"{n.parts[-2]}/{n.name[7:14]}": (seen[n] > 0).sum() / (depth > 0).sum() for n, depth in plain.items()}
    assert shares["4288/camera0"] < 0.5 and min(v for n, v in shares.items() if n != "4288/camera0") > 0.85


def test_what_the_camera_cannot_see_is_left_out_and_the_root_says_so(sample_root, tmp_path):
    assert run("--root", sample_root, "--depth-root", tmp_path / "plain", "--visibility", "off").returncode == 0
    assert run("--root", sample_root, "--depth-root", tmp_path / "seen").returncode == 0
    fewer = 0
    for path in (tmp_path / "plain").rglob("*.npy"):
        plain, seen = read_depth(path), read_depth(tmp_path / "seen" / path.relative_to(tmp_path / "plain"))
        assert np.array_equal(seen[seen > 0], plain[seen > 0]) and (seen > 0).sum() > 0.5 * (plain > 0).sum()
        fewer += (plain > 0).sum() - (seen > 0).sum()
    assert fewer > 0
    plain_root, seen_root = read(tmp_path / "plain"), read(tmp_path / "seen")
    assert plain_root and plain_root.is_plain and seen_root and seen_root.method == "visible"


def test_fused_maps_add_to_the_seen_ones(sample_root, tmp_path):
    folder = next(scan(sample_root))
    only = ("--scenario", folder.scenario, "--agent", folder.agent)
    for name, *options in (("seen",), ("fused", "--fuse"), ("one", "--fuse", *only)):
        done = run("--root", sample_root, "--depth-root", tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
    added = 0
    for path in (tmp_path / "seen").rglob("*.npy"):
        name = path.relative_to(tmp_path / "seen")
        seen, fused = read_depth(path), read_depth(tmp_path / "fused" / name)
        assert np.array_equal(fused[seen > 0], seen[seen > 0])
        added += (fused > 0).sum() - (seen > 0).sum()
        if (tmp_path / "one" / name).exists():
            assert np.array_equal(read_depth(tmp_path / "one" / name), fused)  # the others are asked, chosen or not
    made = read(tmp_path / "fused")
    assert added > 0 and made and made.source == "fused" and any((tmp_path / "one").rglob("*.npy"))


def test_a_second_run_makes_only_what_is_missing(sample_root, tmp_path):
    run("--root", sample_root, "--depth-root", tmp_path / "d")
    files = sorted((tmp_path / "d").rglob("*.npy"))
    times = {path: path.stat().st_mtime_ns for path in files}
    files[3].unlink()
    assert "1 depth maps written" in run("--root", sample_root, "--depth-root", tmp_path / "d").stdout
    assert files[3].exists() and all(path.stat().st_mtime_ns == times[path] for path in files if path != files[3])


@pytest.mark.faults
def test_broken_frames_are_named_and_the_others_made(sample_root, tmp_path):
    clouds = sorted(sample_root.rglob("*.pcd"))
    clouds[0].write_bytes(b"not a cloud")
    clouds[1].unlink()
    done = run("--root", sample_root, "--depth-root", tmp_path / "d", "--jobs", 2)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(clouds[0]) in done.stdout and f"{clouds[1].with_suffix('')}: has no cloud" in done.stdout
    assert len(list((tmp_path / "d").rglob("*.npy"))) == 4 * (len(clouds) - 2)


@pytest.mark.faults
def test_killed_run_leaves_only_whole_files(sample_root, tmp_path):
    for delay in (0.3, 0.4, 0.5, 0.6):
        command = [sys.executable, "-m", "mapanything.tools.make_depth", "--root", sample_root, "--depth-root"]
        process = subprocess.Popen([*map(str, command), str(tmp_path / "d"), "--jobs", "2"], start_new_session=True)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in (tmp_path / "d").rglob("*.npy"):
            read_depth(path)  # raises when it is not whole
    agent = next(scan(sample_root))
    old = tmp_path / "d" / agent.split / agent.scenario / agent.agent / f"{TEMPORARY}old"
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_bytes(b"half")
    os.utime(old, (0, 0))
    (old.parent / f"{next(iter(agent.frames))}_camera0_depth.npy").unlink(missing_ok=True)
    assert run("--root", sample_root, "--depth-root", tmp_path / "d").returncode == 0
    assert len(list((tmp_path / "d").rglob("*_depth.npy"))) == 4 * len(list(sample_root.rglob("*.pcd")))
    assert not old.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "/nowhere"], "/nowhere: no such folder"),
        (["--split", "holiday"], "no split 'holiday'"),
        (["--frame", "1"], "no frame '1'"),
        (["--depth-root", __file__], "test_make_depth.py: is no folder"),
        (["--depth-root", f"{__file__}/x"], "test_make_depth.py: is no folder"),
        (["--fuse", "--visibility", "off"], "leave out --visibility off"),
        (["--depth-pattern", "{frame}.npy"], "must use {scenario}, {agent}, {frame}, {camera}"),
    ],
)
def test_bad_input_is_one_line(sample_root, tmp_path, arguments, message):
    done = run("--root", sample_root, "--depth-root", tmp_path / "d", *arguments)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.faults
def test_full_disk_is_said_before(sample_root, tmp_path, monkeypatch):
    from mapanything.errors import InputError
    from mapanything.opv2v.layout import DepthLayout
    from mapanything.tools import make_depth

    monkeypatch.setattr(make_depth.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="free some"):
        make_depth._check_space(make_depth.Work(sample_root, DepthLayout(tmp_path / "d"), ("npy",), False), 10)
