"""Frames that the viewer finds on the disk, and how it loads them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mapanything.errors import InputError
from mapanything.opv2v.layout import FrameKey, Selection
from mapanything.viewer.frames import Catalog, Loader, load_frame
from tests.helpers.prediction_files import main_agent_scene, write_prediction


def test_catalog_lists_what_there_is(generated_root: Path):
    catalog = Catalog(generated_root)
    assert [split for split, _ in catalog.scenarios] == ["train", "validate"]
    key = catalog.first(Selection(splits=("validate",)))
    assert key == FrameKey("validate", "2021_09_05_07_39_11", "641", "000751")
    assert catalog.agents(key.split, key.scenario) == ("641", "650")
    assert catalog.frames(key.split, key.scenario, "650") == ("000751", "000753")
    assert catalog.prediction(key) is None
    with pytest.raises(InputError, match="no agent '7'"):
        catalog.first(Selection(agents=("7",)))


def test_folders_without_data_are_refused(tmp_path: Path, generated_root: Path):
    with pytest.raises(InputError, match="no such folder"):
        Catalog(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no scenario"):
        Catalog(tmp_path)
    with pytest.raises(InputError, match="holds no prediction"):
        Catalog(generated_root, tmp_path)


def test_missing_parts_are_problems_and_broken_ones_errors(sample_root: Path, tmp_path: Path):
    key = Catalog(sample_root).first()
    prediction = write_prediction(sample_root, tmp_path, main_agent_scene(key), clouds=("ply",))
    (prediction / "cloud.ply").write_bytes(b"ply\nbroken")
    folder = sample_root / key.split / key.scenario / key.agent
    (folder / f"{key.frame}_camera2.png").unlink()
    (folder / f"{key.frame}.pcd").unlink()
    catalog = Catalog(sample_root, tmp_path)
    frame = load_frame(catalog, key)
    assert [image is None for image in frame.images[:4]] == [False, False, True, False]
    assert len(frame.scene.clouds[0].points) == 0 and frame.prediction is None
    assert len(frame.problems) == 3 and all("\n" not in line for line in frame.problems)

    (folder / f"{key.frame}.yaml").write_text("{")
    with pytest.raises(InputError, match=rf"{key.frame}\.yaml"):
        load_frame(catalog, key)
    (folder / f"{key.frame}.yaml").unlink()
    with pytest.raises(InputError, match="no frame"):
        load_frame(catalog, key)


def test_loader_keeps_the_latest_and_tries_again_what_failed(sample_root: Path):
    catalog = Catalog(sample_root)
    first = catalog.first()
    second = replace(first, frame=catalog.frames(first.split, first.scenario, first.agent)[1])
    loader = Loader(catalog, max_bytes=1)
    try:
        frame = loader.request(first).result(30)
        assert loader.request(first).result(30) is frame
        loader.request(second).result(30)
        loader.request(second)
        assert loader.cached() == (second,)  # one is kept however large it is
        assert loader.request(first).result(30) is not frame

        yaml = sample_root / second.split / second.scenario / second.agent / f"{second.frame}.yaml"
        os.rename(yaml, yaml.with_suffix(".aside"))
        loader.request(first).result(30)
        loader._frames.pop(second, None)
        with pytest.raises(InputError):
            loader.request(second).result(30)
        os.rename(yaml.with_suffix(".aside"), yaml)
        assert loader.request(second).result(30).key == second
        positions = loader.request_positions(first.split, first.scenario).result(30)
        assert {track.shape for track in positions.values()} == {(2, 3)}
    finally:
        loader.close()
