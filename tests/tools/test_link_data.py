"""`./invoke link-data`: what it links, what it refuses, and that it changes nothing when it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mapanything.errors import InputError
from mapanything.tools import link_data


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "disk" / "opv2v"
    (root / "train" / "2021_08_16_22_26_54" / "641").mkdir(parents=True)
    return root


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    return tmp_path / "data" / "opv2v_images"


def test_links_and_replaces(images: Path, mount: Path, tmp_path: Path) -> None:
    assert link_data.link(mount, images).endswith("(train)")
    assert mount.resolve() == images
    other = tmp_path / "other"
    (other / "test_culver_city").mkdir(parents=True)
    link_data.link(mount, other)
    assert mount.resolve() == other
    assert [path.name for path in mount.parent.iterdir()] == ["opv2v_images"]


def test_replaces_a_dangling_link_and_an_empty_folder(images: Path, mount: Path, tmp_path: Path) -> None:
    mount.parent.mkdir()
    mount.symlink_to(tmp_path / "gone")
    link_data.link(mount, images)
    assert mount.resolve() == images
    mount.unlink()
    mount.mkdir()
    link_data.link(mount, images)
    assert mount.resolve() == images


def test_keeps_a_folder_with_something_in_it(images: Path, mount: Path) -> None:
    (mount / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="not an empty folder"):
        link_data.link(mount, images)
    assert (mount / "train").is_dir()


@pytest.mark.parametrize(
    ("below", "hint"),
    [
        ("..", "one level too high: give .*opv2v"),
        ("train", "one level too low: give .*opv2v$"),
        ("train/2021_08_16_22_26_54", "two levels too low: give .*opv2v$"),
        ("no_such_folder", "no such folder"),
    ],
)
def test_names_the_right_level(images: Path, mount: Path, below: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        link_data.link(mount, images / below)
    assert not mount.exists()


def test_a_link_cannot_point_at_itself(images: Path) -> None:
    with pytest.raises(InputError, match="the folder itself"):
        link_data.link(images, images)
    assert (images / "train").is_dir()


def test_command_changes_nothing_when_one_is_wrong(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_data, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["link_data", "--images", str(images), "--depth", str(images / "train")])
    with pytest.raises(InputError, match="too low"):
        link_data.main()
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(sys, "argv", ["link_data", "--images", str(images), "--depth", str(images)])
    assert link_data.main() == 0
    assert (tmp_path / "data/opv2v_depth/train").is_dir()


def test_command_wants_something_to_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["link_data"])
    with pytest.raises(InputError, match="--images DIR"):
        link_data.main()
