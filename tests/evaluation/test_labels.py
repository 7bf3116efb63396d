"""Labels of an evaluation: only what cameras see is scored, and it is said what is left out and what a perfect map gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mapanything.evaluation.labels import Labels
from mapanything.inference.select import find_scenes, frame_key, load_scene
from mapanything.opv2v import depth_root
from mapanything.opv2v.depth import read_depth
from mapanything.opv2v.depth_root import DepthRoot, look
from mapanything.opv2v.layout import DepthLayout
from mapanything.opv2v.sample.writer import DEPTH, IMAGES, SampleOptions, write_sample
from tests.helpers.plain_maps import lidar_root

SIZE = (280, 210)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One timestamp of three vehicles."""
    folder = tmp_path_factory.mktemp("street")
    write_sample(folder / "s", SampleOptions(seed=3, splits=("train",), scenarios=1, frames=1, width=280, height=210))
    lidar_root(folder / "s" / IMAGES, folder / "plain")
    return folder


def test_labels_that_the_camera_cannot_see_are_left_out(street):
    images, plain, rendered = street / "s" / IMAGES, DepthLayout(street / "plain"), DepthLayout(street / "s" / DEPTH)
    key = find_scenes(images, mode="coop")[0]
    scene, truth = load_scene(images, plain, key, SIZE), load_scene(images, rendered, key, SIZE)
    assert truth.num_hidden == 0 and truth.num_labels > 100_000
    assert 0.01 < scene.num_hidden / scene.num_labels < 0.15

    def wrong(views) -> float:
        """Part of the labels that lie more than half a metre behind the surface that is seen."""
        labels = np.stack([view["pts3d_cam"][..., 2].numpy() for view in views])
        seen = np.stack([view["pts3d_cam"][..., 2].numpy() for view in truth.views])
        both = (labels > 0) & (seen > 0)
        return float((labels - seen > 0.5)[both].mean())

    depth_root.write(street / "plain", DepthRoot("lidar", "visible"))  # as if they had been tested
    try:
        everything = load_scene(images, DepthLayout(street / "plain", "./" + plain.pattern), key, SIZE)
    finally:
        (street / "plain" / "depth.json").unlink()
    assert everything.num_hidden == 0 and everything.num_labels == scene.num_labels
    assert wrong(scene.views) < 0.5 * wrong(everything.views)


def test_a_perfect_map_has_a_floor(street):
    images, plain, rendered = street / "s" / IMAGES, DepthLayout(street / "plain"), DepthLayout(street / "s" / DEPTH)
    key = find_scenes(images, mode="single")[0]
    truth = load_scene(images, rendered, key, SIZE)
    labels = Labels(look(plain))
    labels.note("single", load_scene(images, plain, key, SIZE), truth)
    labels.note("single", truth, None)  # of another model: the same scene counts once
    said = labels.to_dict()
    found, count = [], 0
    for view in range(4):
        depth, true = (read_depth(layout.path(frame_key(key, key.main_agent), view)) for layout in (plain, rendered))
        count += int((depth > 0).sum())
        both = (depth > 0) & (true > 0)
        found.append(np.abs(true - depth)[both] / depth[both])
    assert said["count"] == count and 0 < said["left_out"] < 0.15 * count
    # The hidden ones make most of what a perfect map is blamed for.
    assert 0 < said["floor"]["single"]["abs_rel"] < np.concatenate(found).mean()
    assert (
        said["maps"]["method"] == "z-buffer" and "left out" in labels.text() and "A perfect map would score" in labels.text()
    )
    same = Labels(look(rendered))
    same.note("single", truth, truth)
    assert same.to_dict()["floor"]["single"] == {"rmse_m": 0.0, "mae_m": 0.0, "abs_rel": 0.0, "delta_1_25": 1.0}
    assert Labels(None).text() == "No depth label is known."
