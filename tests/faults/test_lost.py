"""Things that go away or jump while they are needed: files, loader processes, the clock; and two runs in one folder."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from mapanything.errors import InputError
from mapanything.files import TEMPORARY, remove_stale_temporaries, writing_alone
from mapanything.opv2v.check.content import Context, FrameFiles, check_timestamp
from mapanything.opv2v.depth import read_depth
from mapanything.opv2v.index import load_index
from mapanything.opv2v.layout import COMPLETE, DepthLayout, FrameKey, FramePaths, scan
from mapanything.tools import evaluate, infer
from mapanything.tools.make_depth import Work, make_depth
from mapanything.train import checkpoints, training
from mapanything.train.loop import Trainer
from tests.helpers.process_table import children
from tests.helpers.training_runs import log_of, settings, start, weights

pytestmark = pytest.mark.faults
REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"


def first_key(root: Path) -> FrameKey:
    folder = next(scan(root))
    return folder.key(next(iter(folder.frames)))


# Files that vanish after the folder was read


@pytest.mark.parametrize("suffix", [".yaml", ".pcd", "_camera1.png"])
@pytest.mark.parametrize("deep", [False, True])
def test_file_vanishes_during_a_check(sample_root: Path, suffix: str, deep: bool) -> None:
    key = first_key(sample_root)
    Path(f"{FramePaths(sample_root, key).yaml.with_suffix('')}{suffix}").unlink()
    problems = list(check_timestamp(Context(sample_root, None, deep), [FrameFiles(key, COMPLETE, 0)]))
    assert any(problem.file.endswith(suffix) for problem in problems)


@pytest.mark.parametrize("name", ["yaml", "pcd"])
def test_file_vanishes_during_make_depth(sample_root: Path, tmp_path: Path, name: str) -> None:
    work = Work(sample_root, DepthLayout(tmp_path / "d"), ("npy",), False)
    key = first_key(sample_root)
    victim = getattr(FramePaths(sample_root, key), name)
    victim.unlink()
    written, problem = make_depth(work, key)
    assert written == 0 and str(victim) in problem and "No such file" in problem


def test_file_vanishes_between_index_and_step(tmp_path, sample_root, sample_depth_root, capfd, monkeypatch):
    for mark in (sample_root, sample_depth_root, sample_root.parent):
        (mark / ".tests-only").unlink(missing_ok=True)
    victim = sorted((sample_depth_root / "train").rglob("*_depth.npy"))[5]
    step = Trainer._step

    def remove_it(self, *arguments):
        victim.unlink(missing_ok=True)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", remove_it)
    out = tmp_path / "run"
    assert training.main(settings(out, (sample_root, sample_depth_root))) == 2
    error = capfd.readouterr().err
    assert str(victim) in error and error.count("\n") == 1
    assert checkpoints.find_damage(out / checkpoints.LAST) is None


@pytest.mark.parametrize("name", ["yaml", "image", "depth"])
@pytest.mark.parametrize(
    "tool", [infer, pytest.param(evaluate, marks=pytest.mark.faults(long=True))], ids=["infer", "evaluate"]
)
def test_file_vanishes_after_the_scenes_were_chosen(
    tool, name, checkpoint, sample_root, sample_depth_root, tmp_path, capsys, monkeypatch
):
    """The scene is named, the others are made."""
    key = first_key(sample_root)
    paths = FramePaths(sample_root, key)
    victim = {"yaml": paths.yaml, "image": paths.image(2), "depth": DepthLayout(sample_depth_root).path(key, 1)}[name]
    go_on = tool.code_and_provenance

    def remove_it(*arguments):
        victim.unlink()
        return go_on(*arguments)

    monkeypatch.setattr(tool, "code_and_provenance", remove_it)
    given = ["--root", sample_root, "--depth-root", sample_depth_root, "--out", tmp_path / "out", "--device", "cpu"]
    given += ["--inputs", "images,intrinsics,depth", "--split", key.split, "--resolution", 70, 42]
    if tool is infer:
        given += ["--checkpoint", checkpoint]
    else:
        given += ["--models", f"a={checkpoint}", "--mode", "single", "--every-agent", "--worst", 0]
    assert tool.main([*map(str, given)]) == 1
    told = capsys.readouterr().out
    assert str(victim) in told and "1 failed" in told, told


# Clocks


@pytest.mark.parametrize("shift", [-(10**8), 10**8], ids=["past", "future"])
def test_index_after_the_clock_jumped(sample_root, tmp_path, monkeypatch, shift):
    """A file that changed is read again, whether its time is later than before, earlier, or still to come."""
    monkeypatch.setenv("MAPANYTHING_CACHE", str(tmp_path / "cache"))
    before = load_index(sample_root, "train", jobs=1)
    path = FramePaths(sample_root, before.key(0)).yaml
    other = FramePaths(sample_root, before.key(1)).yaml
    path.write_bytes(other.read_bytes())
    os.utime(path, (time.time() + shift, time.time() + shift))
    after = load_index(sample_root, "train", jobs=1)
    assert (after.lidar_pose[0] == before.lidar_pose[1]).all() and not (before.lidar_pose[0] == before.lidar_pose[1]).all()
    assert (load_index(sample_root, "train", jobs=1).lidar_pose[0] == after.lidar_pose[0]).all()


def test_leftovers_after_the_clock_jumped(tmp_path):
    """Files that seem to come from the future may be a live run's: only what is older than an hour goes."""
    for name, age in (("old", 7200), ("new", 60), ("future", -7200)):
        path = tmp_path / f"{TEMPORARY}{name}"
        path.write_bytes(b"")
        os.utime(path, (time.time() - age, time.time() - age))
    remove_stale_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{TEMPORARY}future", f"{TEMPORARY}new"]


@pytest.mark.parametrize("direction", [-3600, pytest.param(3600, marks=pytest.mark.faults(long=True))])
def test_training_while_the_clock_jumps(tmp_path, data, monkeypatch, direction):
    """An hour at every look at the clock: saved neither at every step nor never, and no figure of time is negative."""
    ticks = count(1)
    monkeypatch.setattr(time, "time", lambda: 2e9 + direction * next(ticks))
    saves = []
    save = Trainer._save
    monkeypatch.setattr(Trainer, "_save", lambda self: (saves.append(1), save(self)))
    assert training.main(settings(tmp_path / "run", data)) == 0
    assert len(saves) == 2  # one at each epoch's end
    assert all(entry["seconds"] > 0 and entry["data_seconds"] >= 0 for entry in log_of(tmp_path / "run"))


# Two runs in one folder


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """Another process writes into the folder."""
    folder.mkdir(exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
    os.close(handle)


def test_second_infer_and_evaluate_in_one_folder_refuse(checkpoint, tmp_path):
    root, out = TESTS / "fixtures" / "sample_opv2v" / "opv2v_images", tmp_path / "out"
    depth = root.parent / "opv2v_depth"
    commands = {
        infer: ["--checkpoint", checkpoint, "--resolution", "84", "42", "--limit", 1],
        evaluate: ["--models", f"a={checkpoint}", "--resolution", "70", "42", "--depth-root", depth, "--overwrite"],
    }
    for tool, arguments in commands.items():
        with taken(out), pytest.raises(InputError, match="another run is writing here; wait for it"):
            tool.main([*map(str, arguments), "--root", str(root), "--out", str(out), "--device", "cpu"])
        assert not list(out.iterdir())


def test_a_folder_is_free_again_when_its_run_was_killed(tmp_path):
    code = "from pathlib import Path; from mapanything.files import writing_alone\n"
    code += f"with writing_alone(Path({str(tmp_path)!r}), '-o'): print('in', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout is not None and process.stdout.readline() == b"in\n"
    with pytest.raises(InputError, match="another run"), writing_alone(tmp_path, "-o"):
        pass
    process.kill()
    process.communicate()
    with writing_alone(tmp_path, "-o"):
        pass


@pytest.mark.faults(long=True)
def test_two_make_depths_at_once_are_harmless(sample_root, tmp_path):
    """Both write the same bytes, each file whole; so they may: for two splits at once, that is useful."""
    command = [sys.executable, "-m", "mapanything.tools.make_depth", "--root", str(sample_root), "--jobs", "1"]
    pair = [subprocess.Popen([*command, "--depth-root", str(tmp_path / "both")], cwd=REPOSITORY) for _ in range(2)]
    assert [process.wait(60) for process in pair] == [0, 0]
    subprocess.run([*command, "--depth-root", str(tmp_path / "one")], cwd=REPOSITORY, check=True)
    one, both = (
        {path.relative_to(tmp_path / name): path for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("one", "both")
    )
    assert one and one.keys() == both.keys()
    for name, path in one.items():
        assert both[name].read_bytes() == path.read_bytes()
        read_depth(path)


# Processes


def test_killed_loader_process_ends_training_in_seconds_with_one_line(tmp_path, data):
    """Killed as a kernel does it that runs out of memory."""
    out = tmp_path / "run"
    more = ("machine.num_workers=2", "train_params.epochs=1000", "train_params.save_every_minutes=0")
    process = start(settings(out, data, *more))
    log, victims = out / "console.log", []
    while process.poll() is None and not victims:
        time.sleep(0.05)
        if (out / checkpoints.LAST).exists() and log.exists() and "step" in log.read_text():
            victims = children(process.pid)
    os.kill(victims[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "Traceback" not in output, output
    errors = [line for line in output.splitlines() if "error" in line]
    assert len(errors) == 1 and "loader process" in errors[0] and "out of memory?" in errors[0], output
    assert checkpoints.find_damage(out / checkpoints.LAST) is None and weights(out / checkpoints.LAST)
