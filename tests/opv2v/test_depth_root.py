"""depth.json: what the maps of a root are is said, recognised where it is not, and never two things."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapanything.errors import InputError
from mapanything.opv2v import depth_root
from mapanything.opv2v.depth import write_depth_npy, write_depth_png
from mapanything.opv2v.depth_root import PLAIN, DepthRoot, claim, look, maps_of, read, recognise
from mapanything.opv2v.layout import DepthLayout, FrameKey

KEY = FrameKey("train", "2021_08_16_22_26_54", "641", "000069")
VISIBLE = DepthRoot("lidar", "visible", {"jump": 0.3, "seed": 1, "carried on": True}, version=2)
PLAIN_LIDAR = DepthRoot("lidar", PLAIN)


def a_map(dense: bool) -> np.ndarray:
    depth = np.zeros((60, 80), np.float32)
    depth[20:, :] = 9
    if not dense:
        depth[np.arange(60) % 5 != 0] = 0
    return depth


def root_with(folder: Path, dense: bool, cameras=range(4), pattern: str = DepthLayout(Path()).pattern) -> DepthLayout:
    layout = DepthLayout(folder, pattern)
    for camera in cameras:
        path = layout.path(KEY, camera)
        (write_depth_npy if path.suffix == ".npy" else write_depth_png)(path, a_map(dense))
    return layout


def test_what_is_written_is_read(tmp_path):
    assert read(tmp_path) is None and look(DepthLayout(tmp_path)) is None
    depth_root.write(tmp_path, VISIBLE)
    assert read(tmp_path) == VISIBLE and look(DepthLayout(tmp_path)) == VISIBLE
    assert str(VISIBLE) == "LiDAR maps (visible, carried on True, jump 0.3, seed 1)"
    assert json.loads((tmp_path / "depth.json").read_text()) == VISIBLE.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"format": 2}',
        *(
            json.dumps(VISIBLE.to_dict() | {key: value})
            for key, value in [
                ("source", "stereo"),
                ("source", ["lidar"]),
                ("method", "a\nb"),
                ("method", "x" * 81),
                ("parameters", [1]),
                ("parameters", {"a": float("nan")}),
                ("parameters", {"a": 10**400}),
                ("parameters", {"a": {}}),
                ("parameters", {"a": "\x1b[2J"}),
                ("parameters", {str(n): n for n in range(65)}),
                ("version", 1.5),
                ("version", True),
            ]
        ),
        json.dumps(VISIBLE.to_dict() | {"more": "x" * 70_000}),
    ],
)
def test_a_record_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "depth.json").write_text(text)
    with pytest.raises(InputError, match=r"depth\.json: does not say what the maps are \(.*\); restore it") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_record_that_is_no_file_is_one_line(tmp_path):
    (tmp_path / "depth.json").mkdir()
    with pytest.raises(InputError, match="no file"):
        read(tmp_path)


def test_a_root_without_a_record_is_told_by_its_maps(tmp_path):
    assert recognise(root_with(tmp_path / "a", dense=False)) == PLAIN_LIDAR
    assert "plain LiDAR maps, made without visibility" in str(PLAIN_LIDAR) and PLAIN_LIDAR.is_plain and not VISIBLE.is_plain
    seen = recognise(root_with(tmp_path / "b", dense=True))
    assert seen is not None and seen.source == "rendered"
    layout = root_with(tmp_path / "c", dense=False, pattern="{split}/{scenario}/{agent}/{frame}_camera{camera}_depth.png")
    assert recognise(layout) == PLAIN_LIDAR


def test_opv2v_h_is_told_by_its_8_bits_and_colour_pictures_are_no_maps(tmp_path):
    layout = DepthLayout(tmp_path, "{split}/{scenario}/{agent}/{frame}_depth{camera}.png")
    path = layout.path(KEY, 0)
    path.parent.mkdir(parents=True)
    Image.fromarray(np.full((6, 8, 3), 7, np.uint8)).save(layout.path(KEY, 1))
    assert list(maps_of(layout)) == []
    Image.fromarray(np.full((6, 8), 7, np.uint8)).save(path)
    seen = recognise(layout)
    assert list(maps_of(layout)) == [path] and seen is not None and seen.source == "opv2v-h"


def test_a_record_that_the_maps_contradict_is_said(tmp_path):
    layout = root_with(tmp_path, dense=False)
    depth_root.write(tmp_path, DepthRoot("rendered", "ray casting"))
    with pytest.raises(InputError, match=r"depth\.json says rendered maps .* but the maps are a LiDAR's"):
        look(layout)


def test_a_root_is_claimed_once_and_the_same_kind_goes_on(tmp_path):
    layout = DepthLayout(tmp_path / "new")
    assert claim(layout, VISIBLE) == 0 and read(layout.root) == VISIBLE
    root_with(layout.root, dense=False)
    before = [path.read_bytes() for path in sorted(maps_of(layout))]
    assert claim(layout, VISIBLE) == 0
    assert [path.read_bytes() for path in sorted(maps_of(layout))] == before and len(before) == 4


@pytest.mark.parametrize("other", [PLAIN_LIDAR, DepthRoot("lidar", "visible", {"jump": 0.2}), DepthRoot("fused", "visible")])
def test_maps_of_two_kinds_are_refused(tmp_path, other):
    layout = root_with(tmp_path, dense=False)
    depth_root.write(tmp_path, VISIBLE)
    with pytest.raises(InputError, match=r"holds LiDAR maps .* give another --depth-root, or make all maps anew: --overwrite"):
        claim(layout, other)
    assert read(tmp_path) == VISIBLE and len(list(maps_of(layout))) == 4


def test_plain_maps_of_earlier_versions_are_not_mixed_but_may_be_replaced(tmp_path):
    layout = root_with(tmp_path, dense=False)
    picture = layout.path(KEY, 0).with_name("000069_camera0.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(picture)
    with pytest.raises(InputError, match="holds plain LiDAR maps"):
        claim(layout, VISIBLE)
    assert claim(layout, VISIBLE, replace=True) == 4
    assert read(tmp_path) == VISIBLE and list(maps_of(layout)) == [] and picture.exists()
    layout = root_with(tmp_path / "b", dense=False)
    assert claim(layout, PLAIN_LIDAR) == 0 and read(layout.root) == PLAIN_LIDAR


def test_replacing_removes_no_picture_whatever_the_pattern(tmp_path):
    layout = root_with(tmp_path, dense=False, pattern="{split}/{scenario}/{agent}/{frame}_camera{camera}.npy")
    picture = layout.path(KEY, 0).with_suffix(".png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(picture)
    assert claim(layout, VISIBLE, replace=True) == 4 and picture.exists()


def test_rendered_maps_are_never_replaced(tmp_path):
    layout = root_with(tmp_path, dense=True)
    with pytest.raises(InputError, match=r"holds rendered maps .*; give another --depth-root$"):
        claim(layout, VISIBLE, replace=True)
    assert len(list(maps_of(layout))) == 4 and read(tmp_path) is None


def test_generated_samples_say_that_they_are_rendered(tmp_path):
    from mapanything.opv2v.sample.writer import DEPTH, SampleOptions, write_sample

    options = SampleOptions(splits=("train",), scenarios=1, agents=2, frames=1, width=64, height=48, lidar_points=2000)
    write_sample(tmp_path / "s", options)
    said = look(DepthLayout(tmp_path / "s" / DEPTH))
    assert said == DepthRoot("rendered", "ray casting")
    write_sample(tmp_path / "s", options, overwrite=True)
    assert read(tmp_path / "s" / DEPTH) == said
