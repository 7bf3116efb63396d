"""evaluate as it is typed: the table comes out of one command, and one line says what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mapanything.errors import InputError
from mapanything.evaluation.run import prepare_out
from mapanything.models.mapanything import MapAnything
from mapanything.tools import evaluate
from tests.helpers.networks import TINY

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "tests" / "fixtures" / "sample_opv2v"
DATA = ("--root", str(SAMPLE / "opv2v_images"), "--depth-root", str(SAMPLE / "opv2v_depth"), "--resolution", "70", "42")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    MapAnything(TINY).eval().save_pretrained(folder)
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mapanything.tools.evaluate", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.slow
def test_table_of_three_models_from_one_command(checkpoint: Path, tmp_path: Path):
    models = [f"{name}={checkpoint}" for name in ("pretrain", "stage1", "stage2")]
    truth = ("--truth-root", SAMPLE / "opv2v_depth")
    done = run("--models", *models, *DATA, *truth, "--sample", 1, "--worst", 0, "--out", tmp_path / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    lines = done.stdout.splitlines()
    assert "pose m / °, single" in lines[0] and [line.split("|")[1].strip() for line in lines[2:5]] == [
        "pretrain",
        "stage1",
        "stage2",
    ]
    assert lines[-1].endswith("summary.md: scenes single 1, coop 1, 0 failed; inputs: images")
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert record["models"]["stage1"]["model"] == "mapanything_tiny"
    assert record["provenance"]["device"] == "cpu"
    labels = record["labels"]
    assert labels["maps"]["source"] == "rendered" and labels["count"] > 10_000 and labels["left_out"] == 0
    assert set(labels["floor"]) == {"single", "coop"} and labels["floor"]["single"]["abs_rel"] == 0
    assert re.search(
        r"Labels: rendered maps \(ray casting\); [\d,]+, none left out\.", (tmp_path / "out/summary.md").read_text()
    )

    again = run("--models", models[0], *DATA, "--out", tmp_path / "out")
    assert again.returncode == 2
    assert again.stderr.strip() == (
        f"error: {tmp_path / 'out'}: is not empty; give --overwrite to replace the evaluation there, or another --out"
    )


BAD = [
    (["--models", "x"], "--models x: give NAME=PATH"),
    (["--models", "a b=/x"], "--models a: give NAME=PATH"),
    (["--models", "a=nowhere.pth"], "nowhere.pth: no such checkpoint (--models a)"),
    (["--models", "a={tiny}", "a={tiny}"], "a is there twice"),
    (["--models", "a=README.md"], "README.md"),
    (["--models", "a={tiny}", "--inputs", "depth"], "inputs: the network always sees the images"),
    (["--models", "a={tiny}", "--rank-by", "beauty"], "--rank-by beauty: no such column; there are pose_translation_m"),
    (["--models", "a={tiny}", "--resolution", "70"], "--resolution 70: give width and height"),
    (["--models", "a={tiny}", "--resolution", "70x40"], "multiples of 14"),
    (["--models", "a={tiny}", "--z-range", "1", "-3"], "--z-range 1 -3: give the lower height first"),
    (["--models", "a={tiny}", "--z-range=-3,high"], "--z-range -3,high: give two numbers"),
    (["--models", "a={tiny}", "--z-range", "nan", "1"], "--z-range"),
    (["--models", "a={tiny}", "--depth-root", "none"], "--depth-root none: then the true cloud is --reference lidar"),
    (["--models", "a={tiny}", "--depth-root", "nowhere"], "nowhere: no such depth folder"),
    (["--models", "a={tiny}", "--truth-root", "nowhere"], "nowhere: no such depth folder"),
    (["--models", "a={tiny}", "--root", "nowhere"], "nowhere: no such folder"),
    (["--models", "a={tiny}", "--device", "cuda:99"], "--device cuda:99: not on this machine"),
    (["--models", "a={tiny}", "--device", "cpu,cpu"], "--device cpu,cpu: give one device"),
    (["--models", "a={tiny}", "--frames", "nowhere.txt"], "nowhere.txt: No such file"),
    (["--models", "a={tiny}", "--frames", "x.txt", "--split", "train"], "--frames: the list says which frames"),
    (["--models", "a={tiny}", "--split", "moon"], "has no split 'moon'"),
    (["--models", "a={tiny}", "--sample", "1000"], "a sample of 1000 timestamps was asked for"),
    (["--models", "a={tiny}", "--bev-cell", "1e-6"], "more than 20000 cells a side"),
    (["--models", "a={tiny}", "--num-views", "1"], "num_views=1: each of the 2 agents gives a view at least"),
    (["--models", "a={tiny}", "--out", "README.md"], "README.md: is no folder"),
]


@pytest.mark.parametrize(("arguments", "problem"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line(arguments: list[str], problem: str, checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    words = [argument.replace("{tiny}", str(checkpoint)) for argument in arguments]
    common = [*DATA, "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(InputError) as caught:
        evaluate.main([*common, *words])
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.parametrize(
    "arguments", [[], ["--sample", "0"], ["--seed", "-1"], ["--mode", "all"], ["--radius", "0"], ["--worst", "x"]]
)
def test_bad_words_are_argparses(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        evaluate.main([*(["--models", "a=README.md"] if arguments else []), *arguments])
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err.splitlines()[-1]


def test_models_with_commas_and_spaces(tmp_path: Path):
    for name in ("a", "b c", "d"):
        (tmp_path / name).touch()
    found = evaluate.parse_models([f"x={tmp_path}/a, y={tmp_path}/b c", f"z={tmp_path}/d"])
    assert found == {"x": tmp_path / "a", "y": tmp_path / "b c", "z": tmp_path / "d"}


def test_overwrite_removes_what_the_old_evaluation_wrote_and_nothing_else(tmp_path: Path):
    outside = tmp_path / "outside.txt"
    for path in (outside, tmp_path / "out" / "mine.txt", tmp_path / "out" / "worst" / "a.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    names = ["worst/a.png", "gone.png", "../outside.txt", str(outside)]
    (tmp_path / "out" / "summary.json").write_text(json.dumps({"files": names}))
    with pytest.raises(InputError, match="is not empty"):
        prepare_out(tmp_path / "out", overwrite=False)
    prepare_out(tmp_path / "out", overwrite=True)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"outside.txt", "mine.txt"}
    (tmp_path / "out" / "summary.json").write_text("[]")
    prepare_out(tmp_path / "out", overwrite=True)
    prepare_out(tmp_path / "new", overwrite=False)


@pytest.mark.faults
@pytest.mark.slow
def test_killed_run_leaves_whole_files_only(checkpoint: Path, tmp_path: Path):
    models = [f"{name}={checkpoint}" for name in ("a", "b")]
    arguments = ["--models", *models, *DATA, "--worst", "1", "--split", "train", "--device", "cpu", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mapanything.tools.evaluate", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not any(tmp_path.rglob("*.png")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".tmp-")]
    assert found and "summary.json" not in {path.name for path in found}
    for path in found:
        assert path.read_bytes()[-8:] == b"IEND\xaeB`\x82", path  # a PNG's last words
    done = run(*arguments, "--overwrite", "--sample", "1", "--worst", "0")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "summary.json").exists()
