"""Layout of the files: what is found, what a wrong root is told, and that file names from outside stay names."""

from __future__ import annotations

import pytest

from mapanything.errors import InputError
from mapanything.opv2v.layout import (
    COMPLETE,
    PCD,
    YAML,
    DepthLayout,
    FrameKey,
    FramePaths,
    Selection,
    agent_order,
    find_splits,
    scan,
)


def plant(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


SCENARIO = "train/2021_08_16_22_26_54"


def test_files_of_a_frame_are_found_and_others_told_apart(tmp_path):
    cameras = [f"{SCENARIO}/641/000069_camera{k}.png" for k in range(4)]
    plant(tmp_path, f"{SCENARIO}/641/000069.yaml", f"{SCENARIO}/641/000069.pcd", *cameras)
    plant(tmp_path, f"{SCENARIO}/641/000071.yaml", f"{SCENARIO}/data_protocol.yaml")
    plant(tmp_path, f"{SCENARIO}/641/000069_bev_lane.png", f"{SCENARIO}/641/000069_camera4.png", f"{SCENARIO}/641/.x")
    (folder,) = scan(tmp_path)
    assert folder.frames == {"000069": COMPLETE, "000071": YAML}
    assert folder.others == [".x", "000069_bev_lane.png", "000069_camera4.png"]
    key = folder.key("000069")
    assert str(key) == f"{SCENARIO}/641/000069"
    assert FramePaths(tmp_path, key).image(2).exists() and FramePaths(tmp_path, key).yaml.exists()


def test_agents_keep_opencoods_order_with_all_roadside_units_last():
    agents = ["-2", "641", "1045", "-1", "650", "99"]
    assert sorted(agents, key=agent_order) == ["1045", "641", "650", "99", "-1", "-2"]


def test_agents_may_have_different_frames(tmp_path):
    plant(tmp_path, f"{SCENARIO}/641/000069.yaml", f"{SCENARIO}/650/000071.pcd", f"{SCENARIO}/-1/000069.yaml")
    found = {folder.agent: folder.frames for folder in scan(tmp_path)}
    assert found == {"641": {"000069": YAML}, "650": {"000071": PCD}, "-1": {"000069": YAML}}


@pytest.mark.parametrize("name", ["test_culver_city", "test_culvercity"])
def test_both_names_of_culver_city(tmp_path, name):
    plant(tmp_path, f"{name}/s/1/000001.yaml")
    assert find_splits(tmp_path) == [name]
    for asked in ("test_culver_city", "test_culvercity"):
        assert find_splits(tmp_path, [asked]) == [name]


def test_selection_narrows_and_unknown_names_are_said(tmp_path):
    plant(tmp_path, f"{SCENARIO}/641/000069.yaml", f"{SCENARIO}/641/000071.yaml", "test/other/650/000069.yaml")
    chosen = Selection(splits=("train",), agents=("641",), frames=("000071",))
    assert [(f.scenario, list(f.frames)) for f in scan(tmp_path, chosen)] == [("2021_08_16_22_26_54", ["000071"])]
    for wrong, message in [
        (Selection(splits=("validate",)), "no split 'validate'; it has train, test"),
        (Selection(scenarios=("x",)), "no scenario 'x'"),
        (Selection(agents=("641", "9")), "no agent '9'"),
        (Selection(frames=("000069", "5")), "no frame '5'"),
    ]:
        with pytest.raises(InputError, match=message):
            list(scan(tmp_path, wrong))


def test_wrong_roots_are_told_what_to_give(tmp_path):
    plant(tmp_path, f"data/{SCENARIO}/641/000069.yaml")
    cases = {
        tmp_path: f"one level too high: give {tmp_path / 'data'}",
        tmp_path / "data/train": f"one level too low: give {tmp_path / 'data'}",
        tmp_path / "data" / SCENARIO: f"two levels too low: give {tmp_path / 'data'}",
        tmp_path / "nothing": "no such folder",
    }
    for root, message in cases.items():
        with pytest.raises(InputError) as error:
            find_splits(root)
        assert message in str(error.value) and str(root) in str(error.value)
    (tmp_path / "link").symlink_to(tmp_path / "unplugged")
    with pytest.raises(InputError, match=r"link to .*unplugged, which is not there"):
        find_splits(tmp_path / "link")


def test_what_cannot_be_looked_at_is_named(tmp_path):
    with pytest.raises(InputError, match="name too long"):
        find_splits(tmp_path / ("a" * 300))


def test_links_are_followed(tmp_path):
    plant(tmp_path, f"disk/{SCENARIO}/641/000069.yaml")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/train").symlink_to(tmp_path / "disk/train")
    assert [folder.agent for folder in scan(tmp_path / "root")] == ["641"]


def test_depth_paths():
    key = FrameKey("train", "s", "641", "000069")
    from pathlib import Path

    assert DepthLayout(Path("d")).path(key, 2) == Path("d/train/s/641/000069_camera2_depth.npy")
    opv2v_h = DepthLayout(Path("d"), "{split}/{scenario}/{agent}/{frame}_depth{camera}.png")
    assert opv2v_h.path(key, 0) == Path("d/train/s/641/000069_depth0.png")


_NAMES = "{scenario}/{agent}/{frame}"


@pytest.mark.parametrize(
    "pattern",
    [
        "{frame}.npy",
        "{frame.__class__}{camera}.npy",
        f"{_NAMES}{{camera!r}}.npy",
        "{nothing}",
        "{",
        "",
        "{scenario}/{frame}_{camera}.npy",  # two vehicles would share a file
        "{agent}/{frame}_{camera}.npy",  # two scenarios would
        f"{_NAMES}.depth{{camera}}",  # no suffix: make-depth would cut at the first dot
        f"{_NAMES}_{{camera}}.exr",
    ],
)
def test_depth_patterns_that_cannot_be(tmp_path, pattern):
    with pytest.raises(InputError, match="depth pattern"):
        DepthLayout(tmp_path, pattern)
