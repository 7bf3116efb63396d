"""The index: equal to the YAML files, and never older than the tree."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from mapanything.errors import InputError
from mapanything.files import cache_dir
from mapanything.opv2v import index as index_module
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.index import load_index
from mapanything.opv2v.layout import COMPLETE, PCD


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MAPANYTHING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def parsed(monkeypatch) -> list[Path]:
    """The files that were parsed, in order."""
    calls: list[Path] = []
    parse = index_module._parse
    monkeypatch.setattr(index_module, "_parse", lambda path: calls.append(path) or parse(path))
    return calls


def test_index_holds_what_the_files_say(sample_root):
    index = load_index(sample_root, "train")
    assert len(index) > 2 and (index.bits == COMPLETE).all() and (index.error == "").all()
    for row in range(len(index)):
        frame = read_frame(sample_root / f"{index.key(row)}.yaml")
        assert np.array_equal(index.world_from_lidar(row), frame.world_from_lidar)
        for camera in frame.cameras:
            k = camera.index
            assert np.array_equal(index.cv_intrinsics(row)[k], camera.cv_intrinsics)
            own = index.lidar_from_camera(row, row)[k]
            assert np.abs(own @ camera.camera_from_lidar - np.eye(4)).max() < 1e-9


def test_second_load_parses_nothing(sample_root, parsed):
    first = load_index(sample_root, "train")
    assert len(parsed) == len(first)
    second = load_index(sample_root, "train")
    assert len(parsed) == len(first)
    for name in index_module._ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_a_changed_file_is_parsed_again_and_only_that(sample_root, parsed):
    first = load_index(sample_root, "train")
    parsed.clear()
    path = sample_root / f"{first.key(1)}.yaml"
    text = path.read_text()
    path.write_text(text.replace("lidar_pose:\n- ", "lidar_pose:\n- 1000", 1))
    second = load_index(sample_root, "train")
    assert parsed == [path]
    assert second.lidar_pose[1, 0] != first.lidar_pose[1, 0]
    assert np.array_equal(second.lidar_pose[2:], first.lidar_pose[2:])


def test_files_that_come_and_go_are_seen(sample_root, parsed):
    first = load_index(sample_root, "train")
    parsed.clear()
    gone, bare = sample_root / f"{first.key(0)}.yaml", sample_root / f"{first.key(1)}.pcd"
    folder = sample_root / "train" / str(first.scenario[0])
    shutil.copytree(folder / str(first.agent[0]), folder / "9999")
    gone.unlink()
    bare.unlink()
    second = load_index(sample_root, "train")
    keys = [str(second.key(row)) for row in range(len(second))]
    assert any("/9999/" in key for key in keys)
    assert not second.bits[keys.index(str(first.key(1)))] & PCD
    assert all("/9999/" in str(path) for path in parsed)


def test_broken_yaml_is_kept_as_an_error(sample_root):
    first = load_index(sample_root, "train")
    path = sample_root / f"{first.key(0)}.yaml"
    path.write_text("camera0: [")
    second = load_index(sample_root, "train")
    assert str(path) in second.error[0] and (second.error[1:] == "").all()
    assert np.isnan(second.lidar_pose[0]).all()
    assert load_index(sample_root, "train").error[0] == second.error[0]


def test_a_file_that_could_not_be_read_is_tried_again(sample_root, monkeypatch):
    """New permissions change neither its size nor its time."""

    def refused(path: Path) -> None:
        raise InputError(f"{path}: Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "read_frame", refused)
        assert (load_index(sample_root, "train").error != "").all()
    assert (load_index(sample_root, "train").error == "").all()


def test_root_whose_name_is_no_text(sample_root, tmp_path):
    root = sample_root.rename(tmp_path / os.fsdecode(b"d\xfcr"))
    assert np.array_equal(load_index(root, "train").cords, load_index(root, "train").cords)


def test_user_without_a_home_has_a_cache(monkeypatch):
    for name in ("MAPANYTHING_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert str(os.getuid()) in cache_dir().name


@pytest.mark.parametrize("damage", [b"", b"not an archive", None])
def test_damaged_cache_is_made_again(sample_root, cache, damage):
    first = load_index(sample_root, "train")
    (file,) = cache.glob("index-*.npz")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] if damage is None else damage)
    with pytest.warns(UserWarning, match="made again"):
        second = load_index(sample_root, "train")
    assert np.array_equal(first.cords, second.cords)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_index(sample_root, "train")


def test_two_roots_do_not_share_a_cache(sample_root, tmp_path):
    first = load_index(sample_root, "train")
    other = tmp_path / "other"
    shutil.copytree(sample_root, other)
    path = other / f"{first.key(0)}.yaml"
    stat = path.stat()
    path.write_text(path.read_text().replace("lidar_pose:\n- ", "lidar_pose:\n- 9", 1)[: stat.st_size])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_index(other, "train").lidar_pose[0, 0] != first.lidar_pose[0, 0]


def test_many_files_are_parsed_by_several_processes(sample_root, monkeypatch):
    alone = load_index(sample_root, "train", jobs=1)
    shutil.rmtree(os.environ["MAPANYTHING_CACHE"])
    monkeypatch.setattr(index_module, "_INLINE", 0)
    together = load_index(sample_root, "train", jobs=2)
    assert np.array_equal(alone.cords, together.cords)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_cache_only_costs_time(sample_root, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    with pytest.warns(UserWarning, match="not cached"):
        assert len(load_index(sample_root, "train"))
