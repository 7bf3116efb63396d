"""Links that lead nowhere or to themselves: every task that walks the tree names them, and nothing else is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mapanything.errors import InputError
from mapanything.opv2v.check.run import CheckOptions, run_checks
from mapanything.opv2v.layout import COMPLETE, find_splits, scan

SPLIT, SCENARIO = "train", "2021_09_10_05_59_10"
PLACES = {
    "split": "test",
    "scenario": f"{SPLIT}/2021_09_11_00_00_00",
    "agent": f"{SPLIT}/{SCENARIO}/999",
    "cloud": f"{SPLIT}/{SCENARIO}/641/001040.pcd",
    "image": f"{SPLIT}/{SCENARIO}/650/001042_camera3.png",
}


@pytest.mark.parametrize("target", ["/no/such/disk", "."])
@pytest.mark.parametrize("place", PLACES)
def test_every_task_sees_the_same_tree(sample_root: Path, place: str, target: str) -> None:
    if target == "." and place in ("split", "scenario"):
        target = Path(PLACES[place]).name  # to itself
    link = sample_root / PLACES[place]
    link.unlink(missing_ok=True)
    link.symlink_to(Path(PLACES[place]).name if target == "." else target)
    before = sum(1 for _ in sample_root.rglob("*.yaml"))
    broken: list[str] = []
    folders = list(scan(sample_root, broken=broken))
    assert broken == [PLACES[place]]
    frames = [bits for folder in folders for bits in folder.frames.values()]
    assert len(frames) == before - sum(1 for _ in sample_root.rglob("data_protocol.yaml"))  # nothing else is lost
    assert sum(bits != COMPLETE for bits in frames) == (place in ("cloud", "image"))
    report = run_checks(CheckOptions(sample_root, None, level="quick", progress=False))
    assert [(p.kind, p.file) for p in report.problems] == [("dangling-link", PLACES[place])]
    assert report.num_frames == len(frames)


def test_a_folder_that_may_not_be_listed_is_still_an_error(sample_root: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may list everything")
    (sample_root / SPLIT).chmod(0)
    with pytest.raises(InputError, match="permissions"):
        list(scan(sample_root))


def test_the_root_one_level_too_high_is_told_from_any_folder_with_a_test_in_it(tmp_path: Path, sample_root: Path) -> None:
    (tmp_path / "a_program" / "test").mkdir(parents=True)
    (tmp_path / "z_opv2v").symlink_to(sample_root)
    with pytest.raises(InputError, match=r"give .*/z_opv2v$"):
        find_splits(tmp_path)
