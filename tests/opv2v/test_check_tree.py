"""Problems of folders, agents and roots, planted into a sample; what is selected; and the real frames."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapanything.errors import InputError
from mapanything.opv2v.check import content, scan
from mapanything.opv2v.check.content import _vehicles_differ
from mapanything.opv2v.check.report import Problem
from mapanything.opv2v.check.run import CheckOptions, run_checks
from mapanything.opv2v.check.scan import KNOWN_DEFECTS
from mapanything.opv2v.frame import Frame
from mapanything.opv2v.layout import DepthLayout, FrameKey, FramePaths, Selection
from tests.helpers.broken_sample import LEVELS, Sample, keep, kinds, set_entry
from tests.helpers.file_bytes import png_of


@pytest.fixture
def sample(sample_root: Path, sample_depth_root: Path) -> Sample:
    return Sample(sample_root, sample_depth_root)


def remove_frame(folder: Path, frame: str) -> None:
    for path in folder.glob(f"{frame}*"):
        path.unlink()


def test_differing_frame_lists_are_one_problem_an_agent(sample: Sample) -> None:
    remove_frame(sample.agent, sample.key.frame)
    for level in LEVELS:
        (problem,) = sample.check(level).problems
        assert (problem.kind, problem.place) == ("frames-differ", "/".join(str(sample.key).split("/")[:3]))
        assert sample.key.frame in problem.message


def test_empty_folders(sample: Sample) -> None:
    (sample.scenario / "999").mkdir()
    (sample.scenario.parent / "2021_01_01_00_00_00").mkdir()
    found = [(problem.kind, problem.place) for problem in sample.check("deep").problems]
    split = sample.key.split
    expected = [
        ("empty-agent", f"{split}/{sample.key.scenario}/999"),
        ("empty-scenario", f"{split}/2021_01_01_00_00_00"),
    ]
    assert sorted(found) == expected


@pytest.mark.parametrize("place", ["validate", "{split}/2021_01_01_00_00_00", "{split}/{scenario}/999"])
def test_dangling_folders(sample: Sample, place: str) -> None:
    path = sample.root / place.format(split=sample.key.split, scenario=sample.key.scenario)
    if path.exists():
        shutil.rmtree(path)
    path.symlink_to("/nowhere/at/all")
    report = sample.check("standard", selection=Selection() if place == "validate" else Selection((sample.key.split,)))
    (problem,) = report.problems
    assert (problem.kind, problem.file) == ("dangling-link", str(path.relative_to(sample.root)))


@pytest.mark.parametrize("alias", ["test_culver_city", "test_culvercity"])
def test_one_split_under_two_names(sample: Sample, alias: str) -> None:
    (sample.root / alias).symlink_to(sample.key.split)
    (problem,) = sample.check("quick", depth=None).problems
    assert (problem.kind, problem.split) == ("same-split", alias)


def test_both_names_of_culver_city(sample: Sample) -> None:
    for name in ("test_culver_city", "test_culvercity"):
        shutil.copytree(sample.root / sample.key.split, sample.root / name)
    (problem,) = sample.check("quick", depth=None).problems
    assert (problem.kind, problem.split) == ("same-split", "test_culvercity")


def test_depth_of_another_data_set(sample: Sample) -> None:
    (sample.depth.root / sample.key.split / "2021_01_01_00_00_00").mkdir()
    (problem,) = sample.check("quick").problems
    assert (problem.kind, problem.place) == ("depth-orphan", f"{sample.key.split}/2021_01_01_00_00_00")


@pytest.mark.parametrize("known", KNOWN_DEFECTS, ids=lambda known: known.scenario)
def test_known_defects_are_named_but_no_verdict(sample: Sample, known: scan.Known) -> None:
    for root in (sample.root, sample.depth.root):
        os.rename(root / sample.key.split / sample.key.scenario, root / sample.key.split / known.scenario)
        scenario = root / sample.key.split / known.scenario
        if known.agent:
            os.rename(scenario / sample.key.agent, scenario / known.agent)
        for path in scenario.glob(f"*/{sample.key.frame}*") if known.frame else ():
            os.rename(path, path.with_name(path.name.replace(sample.key.frame, known.frame)))
    report = sample.check("deep")
    assert kinds(report) == {"known-defect"}
    assert not report.is_bad
    agents = len(sample.others) + 1 if known.frame else 1
    assert len(report.problems) == agents
    assert {problem.scenario for problem in report.problems} == {known.scenario}
    assert all(problem.message == known.message for problem in report.problems)


def test_unreadable_file_and_folder(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so permissions can't be planted: the calls are."""
    read_bytes, file_sizes = content.read_bytes, scan.file_sizes

    def fail(path: Path) -> Any:
        if path == sample.image:
            raise InputError(f"{path}: Input/output error") from OSError(5, "Input/output error")
        return read_bytes(path)

    monkeypatch.setattr(content, "read_bytes", fail)
    (problem,) = sample.check("deep").problems
    assert (problem.kind, problem.message) == ("unreadable", "Input/output error")

    def refuse(folder: Path) -> Any:
        if folder == sample.agent:
            raise PermissionError(13, "Permission denied")
        return file_sizes(folder)

    monkeypatch.setattr(scan, "file_sizes", refuse)
    (problem,) = sample.check("deep").problems
    assert (problem.kind, problem.message) == ("unreadable", "Permission denied")


def test_a_moved_vehicle_is_seen_by_comparing_agents(sample: Sample) -> None:
    frames = {key: frame for key, frame in sample.frames.items() if key.scenario == sample.key.scenario}
    pairs = [
        (a, vehicle.id)
        for a, frame in frames.items()
        for b, other in frames.items()
        if a < b and a.frame == b.frame
        for vehicle in frame.vehicles
        if vehicle.id in {v.id for v in other.vehicles}
    ]
    assert pairs, "the sample has no vehicle that two agents list"
    key, vehicle = pairs[0]
    sample.yaml = FramePaths(sample.root, key).yaml
    sample.edit_yaml(lambda data: set_entry(data["vehicles"][vehicle]["location"], 2, 0.77))
    assert kinds(sample.check("standard")) == set()
    report = sample.check("deep")
    assert kinds(report) == {"vehicle-differs"}
    assert key in {FrameKey(*problem[:4]) for problem in report.problems}
    assert {problem.frame for problem in report.problems} == {key.frame}


class Listed:
    """A frame with vehicles at given places, all that `_vehicles_differ` looks at."""

    def __init__(self, **places: float) -> None:
        self.vehicles = [Box(int(name[1:]), x) for name, x in places.items()]


class Box:
    def __init__(self, number: int, x: float) -> None:
        self.id, self.world_from_box = number, np.eye(4)
        self.world_from_box[0, 3] = x


def outvoted(**frames: Listed) -> list[str]:
    given: dict[FrameKey, Any] = {FrameKey("train", "s", agent, "000001"): frame for agent, frame in frames.items()}
    typed: dict[FrameKey, Frame] = given
    problems: list[Problem] = _vehicles_differ(typed)
    return [problem.agent for problem in problems]


def test_the_majority_is_right_about_vehicles() -> None:
    right = {"v1": 1.0, "v2": 2.0}
    assert outvoted(a=Listed(**right), b=Listed(**right), c=Listed(v1=1.0, v9=5.0)) == []
    assert outvoted(a=Listed(v1=1.0, v2=2.5), b=Listed(**right), c=Listed(**right)) == ["a"]
    assert outvoted(a=Listed(v1=1.5), b=Listed(**right)) == ["a", "b"]
    assert outvoted(a=Listed(v1=1.0005), b=Listed(**right)) == []


def test_many_problems_are_all_named_in_one_run(sample: Sample) -> None:
    sample.image.unlink()
    keep(sample.files.image(0), 0.5)
    sample.edit_depth(lambda d: d * 2)
    remove_frame(sample.others[0], sample.key.frame)
    assert kinds(sample.check("deep")) == {"missing-image", "corrupt-image", "depth-differs", "frames-differ"}


def test_selection_narrows_what_is_checked(sample: Sample) -> None:
    sample.image.unlink()
    sample.map.unlink()
    key = sample.key
    whole = sample.check("quick")
    assert sample.check("quick", selection=Selection(*((part,) for part in whole.problems[0][:4]))).num_frames == 1
    others = Selection(agents=(sample.others[0].name,))
    assert sample.check("deep", selection=others).problems == []
    for wrong in (
        Selection(("train_x",)),
        Selection((), ("x",)),
        Selection((), (), ("x",)),
        Selection((), (), (), ("1",)),
    ):
        with pytest.raises(InputError, match=str(sample.root)):
            sample.check("quick", selection=wrong)
    assert key.frame in sample.check("quick", selection=Selection(frames=(key.frame,))).problems[0].file


def test_extra_files_of_opv2v_are_known_and_others_noted(sample: Sample) -> None:
    for name in ("bev_dynamic.png", "bev_visibility_corp.png", "view.png", "depth0.png", "32.pcd", "camera0_depth.npy"):
        (sample.agent / f"000069_{name}").touch()
    (sample.agent / ".DS_Store").touch()
    (sample.agent / "000069 (1).pcd").touch()
    report = sample.check("quick")
    assert report.problems == []
    assert [os.path.basename(name) for name in report.unknown] == ["000069 (1).pcd"]


def test_roots_that_are_a_level_off(sample: Sample) -> None:
    for root in (sample.root.parent, sample.root / sample.key.split, sample.scenario, sample.root / "nothing"):
        with pytest.raises(InputError, match=r"give|too"):
            run_checks(CheckOptions(root))
    for depth in (sample.depth.root.parent, sample.depth.root / sample.key.split, sample.root / "nothing"):
        with pytest.raises(InputError, match="--depth-root"):
            run_checks(CheckOptions(sample.root, DepthLayout(depth)))


def test_huge_promises_are_not_believed(sample: Sample) -> None:
    """Sizes in headers cost nothing: neither is memory taken nor are pixels made for them."""
    sample.image.write_bytes(png_of(9_999, 9_999, zlib.compress(b"\0" * 1000)))
    head = b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 99999999\nHEIGHT 1\nDATA binary_compressed\n"
    sample.pcd.write_bytes(head + struct.pack("<II", 8, 99999999 * 12) + b"\0" * 8)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (99999, 99999)})
    sample.map.write_bytes(buffer.getvalue())
    assert kinds(sample.check("deep")) == {"image-size", "corrupt-cloud", "corrupt-depth"}


@pytest.mark.real
def test_real_frames_have_no_problem(real_root: Path) -> None:
    report = run_checks(CheckOptions(real_root, level="deep"))
    assert report.problems == []
    assert report.num_frames > 0


@pytest.mark.real
def test_real_yaml_lacks_every_image_and_cloud(real_yaml_root: Path) -> None:
    report = run_checks(CheckOptions(real_yaml_root, level="deep", jobs=2))
    assert kinds(report) == {"missing-image", "missing-cloud"}
    files = {problem.file for problem in report.problems}
    assert len(files) == len(report.problems) == 5 * report.num_frames == 5 * len(list(real_yaml_root.glob("*/*/*/*.yaml")))


@pytest.mark.real
@pytest.mark.parametrize("turn", [(1, -1, 1), (-1, -1, 1)], ids=["mirrored", "turned round"])
def test_real_cloud_that_is_misplaced(real_root: Path, tmp_path: Path, turn: tuple[int, int, int]) -> None:
    for agent in sorted(real_root.glob("*/*/[0-9]*")):
        root = tmp_path / agent.name
        # Not the modes: the real files may be read-only.
        shutil.copytree(agent, root / "train" / "s" / agent.name, copy_function=shutil.copyfile)
        sample = Sample.__new__(Sample)
        for sample.pcd in sorted(root.glob("*/*/*/*.pcd")):
            sample.edit_points(lambda points: points * np.array(turn))
        report = run_checks(CheckOptions(root, level="deep"))
        assert kinds(report) == {"cloud-misplaced"}
