"""Networks onto the disk: as upstream can read them, and never half."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_model

from mapanything.errors import InputError
from mapanything.files import umask
from mapanything.models.mapanything import MapAnything
from mapanything.models.weights import save
from mapanything.models.weights.names import safetensors_names
from tests.helpers.networks import TINY
from tests.helpers.weight_files import assert_equal, tiny_model, vehicle_model

load = MapAnything.from_pretrained


@pytest.fixture(scope="module")
def model() -> MapAnything:
    return tiny_model()


@pytest.fixture(scope="module")
def with_vehicles() -> MapAnything:
    return vehicle_model()


def test_saved_folder_is_upstreams(model, tmp_path):
    model.save_pretrained(tmp_path / "deep" / "hub")
    folder = tmp_path / "deep" / "hub"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder.stat().st_mode & 0o777) == 0o777 & ~umask()
    assert all((path.stat().st_mode & 0o777) == 0o666 & ~umask() for path in folder.iterdir())
    with safe_open(folder / "model.safetensors", "pt") as file:
        kept, metadata = safetensors_names(model.state_dict())
        assert set(file.keys()) == set(kept.values()) and file.metadata() == metadata
    other = MapAnything(TINY)
    load_model(other, folder / "model.safetensors", strict=True)  # how upstream's hub class loads it
    assert_equal(other, model)
    assert json.loads((folder / "config.json").read_text())["encoder_config"]["encoder_str"] == "dinov2"


def test_saving_replaces_a_checkpoint_and_nothing_else(model, with_vehicles, tmp_path):
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    folder = tmp_path / "hub"
    model.save_pretrained(folder)
    (folder / "README.md").write_text("mine")
    with_vehicles.save_pretrained(folder)
    assert_equal(load(folder), with_vehicles)
    assert (folder / "README.md").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other things"):
        model.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="is a file"):
        model.save_pretrained(folder / "README.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "hub", "other"]


@pytest.mark.faults
def test_a_full_disk_leaves_the_old_checkpoint(model, with_vehicles, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "hub")

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save, "save_file", full)
    for folder in (tmp_path / "hub", tmp_path / "new"):
        with pytest.raises(InputError, match="can't be written \\(No space left on device\\)"):
            with_vehicles.save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
    assert_equal(load(tmp_path / "hub"), model)
