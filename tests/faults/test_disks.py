"""Read-only and full disks: one line, exit code 2, and nothing half under its final name."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from mapanything.errors import InputError
from mapanything.models.mapanything import MapAnything
from tests.helpers.namespaces import assert_one_line, read_only, run_with, small_disk
from tests.helpers.networks import TINY
from tests.helpers.training_runs import settings

pytestmark = pytest.mark.faults
SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample_opv2v"
IMAGES, DEPTH = SAMPLE / "opv2v_images", SAMPLE / "opv2v_depth"


def module(name: str, *arguments: object) -> list[str]:
    return ["-m", f"mapanything.{name}", *map(str, arguments)]


def infer(checkpoint: Path, out: Path) -> list[str]:
    data = ("--root", IMAGES, "--resolution", "84", "42", "--device", "cpu")
    return module("tools.infer", "--checkpoint", checkpoint, "--out", out, *data)


def evaluate(checkpoint: Path, out: Path) -> list[str]:
    data = ("--root", IMAGES, "--depth-root", DEPTH, "--resolution", "70", "42", "--device", "cpu", "--sample", 1)
    return module("tools.evaluate", "--models", f"a={checkpoint}", "--out", out, *data)


def make_depth(_: Path, out: Path) -> list[str]:
    return module("tools.make_depth", "--root", IMAGES, "--depth-root", out, "--jobs", 1)


def report(_: Path, out: Path) -> list[str]:
    return module("tools.check_opv2v", "--root", IMAGES, "--depth-root", DEPTH, "--report", out / "r.json", "--jobs", 1)


def sample(_: Path, out: Path) -> list[str]:
    return module("tools.make_sample", "--output", out / "sample", "--jobs", 1)


LONG = [pytest.param(tool, marks=pytest.mark.faults(long=True)) for tool in (sample, infer, evaluate)]


@pytest.mark.parametrize("tool", [make_depth, report, *LONG], ids=lambda tool: tool.__name__)
def test_read_only(tool, checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert_one_line(run_with(read_only(out), tool(checkpoint, out)), str(out))
    assert not list(out.iterdir())


def test_too_little_shared_memory_for_the_loaders(tmp_path, data):
    arguments = settings(tmp_path / "out", data, "machine.num_workers=2")
    done = run_with(small_disk(Path("/dev/shm"), 200), module("train.training", *arguments))
    assert_one_line(done, "/dev/shm", "SHM_SIZE", "No space left")


@pytest.mark.faults(long=True)
def test_training_into_a_read_only_folder(tmp_path, data):
    out = tmp_path / "out"
    out.mkdir()
    done = run_with(read_only(out), module("train.training", *settings(out / "run", data)))
    assert_one_line(done, "output_dir", str(out))


def test_read_only_data_is_enough_to_train_on(tmp_path, data):
    """Nothing is written beside the data; without a cache folder that can be written to, it only takes longer."""
    cache = tmp_path / "cache"
    cache.mkdir()
    mounts = " && ".join(read_only(folder) for folder in (data[0], data[1], cache))
    arguments = module("train.training", *settings(tmp_path / "run", data, "train_params.epochs=1"))
    done = run_with(f"export MAPANYTHING_CACHE={cache}; {mounts}", arguments)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "index is not cached" in done.stdout + done.stderr


@pytest.mark.faults(long=True)
@pytest.mark.parametrize("tool", [infer, evaluate, report, make_depth], ids=lambda tool: tool.__name__)
def test_read_only_data_and_weights_are_enough(tool, checkpoint, tmp_path):
    """Mounted as the containers do it, without a cache folder that can be written to."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    cache.mkdir()
    mounts = " && ".join(read_only(folder) for folder in (SAMPLE, checkpoint, cache))
    done = run_with(f"export MAPANYTHING_CACHE={cache}; {mounts}", tool(checkpoint, out))
    text = done.stdout + done.stderr
    assert done.returncode == 0 and "Traceback" not in text, text
    assert any(out.iterdir())


@pytest.mark.parametrize("tool", [infer, evaluate], ids=lambda tool: tool.__name__)
def test_a_flipped_bit_in_the_weights(tool, tmp_path):
    """One line before anything is written, not a result of other weights."""
    torch.manual_seed(0)
    model = MapAnything(TINY)
    path, out = tmp_path / "a.pth", tmp_path / "out"
    torch.save({"model": model.state_dict()}, path)
    data = bytearray(path.read_bytes())
    data[data.find(model.pose_head.proj.weight.detach().numpy().tobytes()) + 5000] ^= 64
    path.write_bytes(data)
    _, _, name, *arguments = ["python", *tool(path, out)]
    with pytest.raises(InputError, match=r"a\.pth: is damaged \(pose_head\.proj\.weight is not what was saved"):
        importlib.import_module(name).main([str(argument) for argument in arguments])
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("tool", [make_depth, report, *LONG], ids=lambda tool: tool.__name__)
def test_full_disk(tool, checkpoint, tmp_path):
    """A disk too small for the result: said before or when it is full."""
    out = tmp_path / "out"
    out.mkdir()
    full = f"head -c 60k /dev/zero > {out}/other" if tool is report else "true"
    done = run_with(f"{small_disk(out, 60)}; {full}", tool(checkpoint, out))
    assert_one_line(done, str(out))


@pytest.mark.faults(long=True)
@pytest.mark.parametrize("kib", [16, 100, 400, 900])
def test_disk_that_fills_up_while_training(kib, tmp_path, data):
    """Whatever it is that does not fit: the log, the events of TensorBoard or a checkpoint."""
    out = tmp_path / "out"
    out.mkdir()
    done = run_with(small_disk(out, kib), module("train.training", *settings(out / "run", data)))
    text = done.stdout + done.stderr
    assert done.returncode == 2 and "Traceback" not in text, text
    assert "No space left on device" in text or "the disk is full" in text, text


@pytest.mark.faults(long=True)
def test_maps_on_a_full_disk_are_whole_or_not_there(tmp_path):
    """make_depth asks for space before; here it gets less than it was told."""
    out = tmp_path / "out"
    out.mkdir()
    code = f"""
import shutil, sys
from pathlib import Path
from mapanything.opv2v.depth import read_depth
from mapanything.tools import make_depth
make_depth.shutil.disk_usage = lambda _: type("Usage", (), {{"free": 1 << 40}})()
sys.argv = ["make-depth", "--root", {str(IMAGES)!r}, "--depth-root", {str(out)!r}, "--jobs", "1"]
code = make_depth.main()
names = sorted(Path({str(out)!r}).rglob("*_depth.npy"))
for path in names:
    read_depth(path)
print("whole maps:", len(names), "leftovers:", len([p for p in Path({str(out)!r}).rglob("*") if p.is_file()]) - len(names))
sys.exit(code)
"""
    done = run_with(small_disk(out, 100), ["-c", code])
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "No space left on device" in done.stdout and "leftovers: 0" in done.stdout, done.stdout
    assert "whole maps: 0" not in done.stdout
