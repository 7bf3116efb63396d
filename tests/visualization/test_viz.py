"""`python -m mapanything.tools.viz`: pictures of the declared size, and one clear line where there can be none."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapanything.errors import InputError
from mapanything.opv2v.layout import FrameKey, scan
from mapanything.tools import viz
from mapanything.visualization.plots import POSE_SIZE, image_sheet, image_sheet_size


def keys(root: Path) -> list[FrameKey]:
    return [folder.key(frame) for folder in scan(root) for frame in folder.frames]


def sheet_size(root: Path, key: FrameKey) -> tuple[int, int]:
    width, height = Image.open(root / f"{key}_camera0.png").size
    scale = -(-viz.CELL_WIDTH // width)
    return image_sheet_size(width * scale, height * scale)


@pytest.mark.parametrize("command", ["pose", "frame"])
def test_a_picture_of_the_declared_size_the_same_every_time(command: str, sample_root: Path, tmp_path: Path):
    key = keys(sample_root)[-1]
    named = ["--split", key.split, "--sequence", key.scenario, "--agent", key.agent, "--frame", key.frame]
    for name in ("a.png", "b.png"):
        viz.main([command, "--dataset_root", str(sample_root), *named, "--output", str(tmp_path / name)])
    size = POSE_SIZE if command == "pose" else sheet_size(sample_root, key)
    image = Image.open(tmp_path / "a.png")
    assert image.size == size
    assert np.asarray(image).std() > 20
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_defaults_take_the_first_frame_and_a_dated_place(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "opv2v_images").symlink_to(sample_root.resolve())
    monkeypatch.chdir(tmp_path)
    viz.main(["pose", "--no-3d"])
    path = Path(capsys.readouterr().out.strip())
    key = keys(sample_root)[0]
    assert path.name == f"pose_{key.split}_{key.scenario}_{key.agent}_{key.frame}.png"
    assert path.parent.parent == Path("visualization_outputs")
    assert Image.open(path).size == POSE_SIZE


@pytest.mark.parametrize(
    "options", [["--max_range", "15"], ["--camera_size", "5"], ["--point-size", "3"], ["--single"], ["--no_3d"]]
)
def test_options_of_pose_change_the_picture(options: list[str], sample_root: Path, tmp_path: Path):
    images = []
    for i, extra in enumerate(([], options)):
        path = tmp_path / f"{i}.png"
        viz.main(["pose", "--root", str(sample_root), "--output", str(path), *extra])
        images.append(np.asarray(Image.open(path)))
    assert (images[0] != images[1]).any(axis=2).sum() > 500


def test_the_sheet_shows_its_images_pixel_for_pixel():
    images = np.random.default_rng(0).integers(0, 255, (4, 150, 233, 3), dtype=np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(image_sheet(list(images), "abcd", "title", "note"))).convert("RGB"))
    assert sheet.shape[1::-1] == image_sheet_size(233, 150)
    for i, image in enumerate(images):
        left, top = 20 + i % 2 * (233 + 12), 90 + i // 2 * (150 + 44)
        assert (sheet[top : top + 150, left : left + 233] == image).all()


@pytest.mark.parametrize("name", ["split", "scenario", "agent", "frame"])
@pytest.mark.parametrize("command", ["pose", "frame"])
def test_unknown_names_are_named(command: str, name: str, sample_root: Path, tmp_path: Path):
    with pytest.raises(InputError, match="777777"):
        viz.main([command, "--root", str(sample_root), f"--{name}", "777777", "--output", str(tmp_path / "a.png")])
    assert not (tmp_path / "a.png").exists()


def test_missing_and_broken_images_and_clouds(sample_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    key = keys(sample_root)[0]
    output = ["--output", str(tmp_path / "a.png")]
    command = ["frame", "--root", str(sample_root), *output]
    (sample_root / f"{key}_camera1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"camera1\.png"):
        viz.main(command)
    (sample_root / f"{key}_camera2.png").unlink()
    with pytest.raises(InputError, match=r"camera2\.png: image is missing;"):
        viz.main(command)
    (sample_root / f"{key}_camera3.png").unlink()
    with pytest.raises(InputError, match=r"camera2\.png: image is missing and 1 more"):
        viz.main(command)
    (sample_root / f"{key}.pcd").unlink()
    with pytest.raises(InputError, match=r"\.pcd"):
        viz.main(command)
    capsys.readouterr()
    viz.main(["pose", "--no-3d", "--root", str(sample_root), *output])  # boxes and cameras are still worth a picture
    assert f"{key.agent} is drawn without its cloud" in capsys.readouterr().err


def test_no_clouds_at_all(sample_root: Path, tmp_path: Path):
    for path in sample_root.rglob("*.pcd"):
        path.unlink()
    viz.main(["pose", "--root", str(sample_root), "--output", str(tmp_path / "a.png")])
    assert Image.open(tmp_path / "a.png").size == POSE_SIZE


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mapanything.tools.viz", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_one_line_and_exit_code_2(sample_root: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for arguments in (
        ("frame", "--root", str(sample_root), "--output", str(tmp_path / "file" / "a.png")),
        ("pose", "--root", str(tmp_path / "nowhere")),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("error: ")
    for arguments in (("pose", "--max_range", "-1"), ("pose", "--output", "a.jpg"), ("frame", "--point_size", "2")):
        done = run(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_the_tool_imports_neither_open3d_nor_torch_for_its_help():
    code = "import sys, mapanything.tools.viz; print({'open3d', 'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.real
@pytest.mark.parametrize("command", ["pose", "frame"])
def test_real_frames(command: str, real_root: Path, tmp_path: Path):
    for agent in ("4279", "4288"):
        path = tmp_path / f"{agent}.png"
        viz.main([command, "--root", str(real_root), "--agent", agent, "--output", str(path)])
        size = POSE_SIZE if command == "pose" else image_sheet_size(800, 600)
        assert Image.open(path).size == size
