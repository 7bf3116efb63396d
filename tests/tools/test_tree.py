"""`./invoke tree` on small skeletons of empty files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mapanything.errors import InputError
from mapanything.opv2v.layout import Selection
from mapanything.tools.tree import lines

FILES = (".yaml", ".pcd", *(f"_camera{k}.png" for k in range(4)))


def add(root: Path, agent: str, frames: list[str], *, split: str = "train", without: str = "") -> Path:
    folder = root / split / "2021_08_16_22_26_54" / agent
    folder.mkdir(parents=True, exist_ok=True)
    for frame in frames:
        for name in FILES:
            if name != without:
                (folder / f"{frame}{name}").touch()
    return folder


def show(root: Path, depth: Path | None = None, **selection: tuple[str, ...]) -> str:
    return "\n".join(lines(root, depth, Selection(**selection)))


def test_scenarios_vehicles_frames_and_totals(tmp_path: Path) -> None:
    add(tmp_path, "641", ["000069", "000071", "000073"])
    add(tmp_path, "1045", ["000069", "000071"], without="_camera3.png")
    add(tmp_path, "-1", ["000069"], split="validate")
    shown = show(tmp_path)
    assert "641  3 frames 000069..000073, complete" in shown
    assert "1045  2 frames 000069..000071, missing 2 camera3" in shown
    assert "train: 1 scenario, 2 vehicles, 5 agent-frames, 3 complete" in shown
    assert "validate: 1 scenario, 1 vehicle, 1 agent-frame, 1 complete" in shown


def test_gaps_and_unusual_steps_are_named(tmp_path: Path) -> None:
    add(tmp_path, "641", ["000069", "000071", "000075", "000077"])
    add(tmp_path, "650", ["000010", "000011", "000012"])
    add(tmp_path, "700", [])
    shown = show(tmp_path)
    assert "4 frames 000069..000077, 1 gap, complete" in shown
    assert "3 frames 000010..000012 step 1, complete" in shown
    assert "700  no frames" in shown


def test_depth_maps_are_counted_whatever_their_naming(tmp_path: Path) -> None:
    add(tmp_path / "images", "641", ["000069", "000071"])
    depth = tmp_path / "depth/train/2021_08_16_22_26_54/641"
    depth.mkdir(parents=True)
    names = [
        "000069_camera0_depth.npy",
        "000069_camera0_depth.png",
        "000071_depth3.png",
        "000099_camera0_depth.npy",
        "x",
    ]
    for name in names:
        (depth / name).touch()
    shown = show(tmp_path / "images", tmp_path / "depth")
    assert "641  2 frames 000069..000071, complete, 2 depth maps" in shown
    assert "2 complete, 2 depth maps" in shown


def test_links_are_resolved(tmp_path: Path) -> None:
    add(tmp_path / "disk", "641", ["000069"])
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert f"images {tmp_path / 'link'} -> {tmp_path / 'disk'}" in show(tmp_path / "link")


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    add(tmp_path, "641", ["000069", "000071"])
    add(tmp_path, "650", ["000069"])
    shown = show(tmp_path, agents=("641",), frames=("000071",))
    assert "641  1 frame 000071..000071" in shown
    assert "650" not in shown
    with pytest.raises(InputError, match="no agent '999'"):
        show(tmp_path, agents=("999",))


@pytest.mark.parametrize("name", ["2021_01_01_00_00_00\x1b]0;x\x07", "2021_01_01_00_00_00\nvalidate", "2021_01_01_00_00_00\r"])
def test_a_folder_s_name_is_one_line_and_no_command(sample_root: Path, name: str) -> None:
    next((sample_root / "train").iterdir()).rename(sample_root / "train" / name)
    for module in ("tree", "check_opv2v"):
        command = [sys.executable, "-m", f"mapanything.tools.{module}", "--root", str(sample_root)]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not any(byte < 32 and byte != 10 for byte in done.stdout)
        assert module != "tree" or ascii(name)[1:-1].replace(r"\n", r"\x0a").replace(r"\r", r"\x0d").encode() in done.stdout
