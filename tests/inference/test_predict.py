"""The door between a sample and the network: what passes it, and that nothing else ever does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mapanything.datasets.opv2v import OPV2VCoopDataset, OPV2VDataset
from mapanything.datasets.views import View
from mapanything.errors import InputError
from mapanything.geometry.rigid import matrix_from_quat
from mapanything.inference.predict import USES, parse_inputs, predict_scene, reconstruct, scene_views
from mapanything.inference.select import SceneSample, find_scenes, frame_key, load_scene
from mapanything.models.config import VehicleIdConfig
from mapanything.models.mapanything import MapAnything
from mapanything.opv2v.layout import DepthLayout, Selection
from tests.helpers.networks import TINY
from tests.helpers.perfect import perfect_prediction

SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample_opv2v"
IMAGES, DEPTH = SAMPLE / "opv2v_images", SAMPLE / "opv2v_depth"
SIZE = (84, 42)
EVERY_INPUT = [set(), {"intrinsics"}, {"poses"}, {"intrinsics", "depth"}, {"intrinsics", "poses", "depth"}]


def scenes(mode: str, depth_root: Path | None = DEPTH, **options: Any) -> Iterator[SceneSample]:
    depth = None if depth_root is None else DepthLayout(depth_root)
    for key in find_scenes(IMAGES, mode=mode, **options):
        yield load_scene(IMAGES, depth, key, SIZE)


def coop_scene() -> SceneSample:
    return next(scenes("coop"))


@cache
def shared_sample() -> list[View]:
    """The sample, for tests that change nothing in it."""
    return coop_scene().views


@pytest.fixture(scope="module")
def model() -> MapAnything:
    torch.manual_seed(0)
    return MapAnything(TINY).eval()


def scrambled(value, rng: np.random.Generator):
    """Something of the same kind and shape, but other values."""
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bool:
            return torch.from_numpy(rng.random(tuple(value.shape)) < 0.5)
        return torch.from_numpy(rng.normal(size=tuple(value.shape)) * 100).to(value.dtype)
    if isinstance(value, bool):
        return not value
    return f"{value}?" if isinstance(value, str) else int(rng.integers(0, 9))


def same(a: list[dict], b: list[dict]) -> bool:
    def equal(x, y):
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return all(x.keys() == y.keys() and all(equal(x[key], y[key]) for key in x) for x, y in zip(a, b, strict=True))


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(EVERY_INPUT), st.booleans())
def test_changed_ground_truth_never_changes_what_the_network_sees(seed: int, named: set[str], vehicle_id: bool):
    inputs = {"images", *named}
    sample = shared_sample()
    allowed = {entry for name in inputs for entry in USES[name]} | ({"agent_id"} if vehicle_id else set())
    rng = np.random.default_rng(seed)
    changed = [{k: v if k in allowed else scrambled(v, rng) for k, v in view.items()} for view in sample]
    changed = [view | {"a future entry": torch.ones(3)} for view in changed]
    before = scene_views(sample, inputs, vehicle_id)
    assert same(before, scene_views(changed, inputs, vehicle_id))
    without = [{k: v for k, v in view.items() if k in allowed} for view in sample]
    assert same(before, scene_views(without, inputs, vehicle_id))


def test_changed_ground_truth_never_changes_a_prediction(model: MapAnything):
    sample, rng = coop_scene().views, np.random.default_rng(0)
    changed = [{k: v if k in USES["images"] else scrambled(v, rng) for k, v in view.items()} for view in sample]
    before, after = predict_scene(model, sample, use_amp=False), predict_scene(model, changed, use_amp=False)
    assert all(torch.equal(getattr(before, name), getattr(after, name)) for name in vars(before))
    told = predict_scene(model, sample, {"images", "poses"}, use_amp=False)
    assert not torch.equal(before.pts3d, told.pts3d)


@pytest.mark.parametrize("depth_root", [None, DEPTH])
@pytest.mark.parametrize("mode", ["single", "coop"])
def test_depth_on_the_disk_changes_no_view(mode: str, depth_root: Path | None):
    """Neither which views there are nor what they show depends on the maps."""
    known = [scene_views(scene.views) for scene in scenes(mode, num_views=6)]
    other = [scene_views(scene.views) for scene in scenes(mode, depth_root, num_views=6)]
    assert len(known) == len(other) and all(same(a, b) for a, b in zip(known, other, strict=True))


def test_views_have_what_was_asked_for_and_nothing_else():
    sample = coop_scene().views
    plain = {"img", "data_norm_type"}
    assert all(view.keys() == plain for view in scene_views(sample))
    view = scene_views(sample, {"images", "intrinsics", "poses", "depth"}, vehicle_id=True)[-1]
    assert view.keys() == plain | {"intrinsics", "camera_poses", "depth_z", "agent_id"}
    assert view["img"].shape == (1, 3, SIZE[1], SIZE[0]) and view["agent_id"].tolist() == [1]
    assert torch.equal(view["depth_z"][0] > 0, sample[-1]["valid_mask"])


def test_a_view_without_known_depth_has_none():
    sample = coop_scene().views
    sample[2]["valid_mask"][:] = False
    views = scene_views(sample, {"images", "intrinsics", "depth"})
    assert ["depth_z" in view for view in views] == [i != 2 for i in range(len(views))]


def test_vehicle_id_is_told_only_to_a_model_that_has_it(model: MapAnything, monkeypatch: pytest.MonkeyPatch):
    sample = coop_scene().views
    seen: list[list[dict[str, Any]]] = []
    real = MapAnything.predict

    def spy(self: MapAnything, views: list[dict[str, Any]], **options: Any) -> Any:
        seen.append(views)
        return real(self, views, **options)

    monkeypatch.setattr(MapAnything, "predict", spy)
    for network in (model, MapAnything(replace(TINY, vehicle_id=VehicleIdConfig(num_roles=7))).eval()):
        predict_scene(network, sample, use_amp=False)
    assert all("agent_id" not in view for view in seen[0])
    assert [int(view["agent_id"]) for view in seen[1]] == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("inputs", "message"), [("images,pose", "unknown 'pose'"), ("poses", "images"), ("images,depth", "needs intrinsics")]
)
def test_wrong_inputs_are_one_line(inputs: str, message: str):
    with pytest.raises(InputError, match=message):
        parse_inputs(inputs)


def test_predicted_world_is_made_view_0s_camera():
    """Whatever world the network chose, points and poses come out about view 0, and in the LiDAR's frame where they are."""
    scene = coop_scene()
    quat = torch.tensor([0.2, -0.4, 0.1, 0.9], dtype=torch.float64)
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3], world[:3, 3] = matrix_from_quat(quat), torch.tensor([3.0, -20.0, 7.0])
    for chosen in (None, world):
        made = reconstruct(perfect_prediction(scene.views, chosen))
        assert np.abs(made.view0_from_camera[0] - np.eye(4)).max() < 1e-12
        poses = scene.lidar_from_view0 @ made.view0_from_camera
        assert np.abs(poses - scene.lidar_from_camera).max() < 2e-5
        truth = np.stack([view["pts3d"].numpy() for view in scene.views])
        assert np.abs(made.points(scene.lidar_from_view0) - truth)[made.mask].max() < 1e-4


def test_points_that_are_no_numbers_are_never_trusted():
    prediction = perfect_prediction(coop_scene().views)
    prediction.pts3d_cam[0, 1, 3, 4] = torch.nan
    prediction.mask = None
    made = reconstruct(prediction)
    assert not made.mask[1, 3, 4] and made.mask.sum() == made.mask.size - 1


# Scenes


@pytest.mark.parametrize("mode", ["single", "coop"])
def test_scenes_are_the_data_sets_samples(mode: str):
    if mode == "single":
        dataset = OPV2VDataset(IMAGES, DEPTH, resolution=SIZE, allow_tests_only=True)
    else:
        dataset = OPV2VCoopDataset(IMAGES, DEPTH, resolution=SIZE, allow_tests_only=True)
    found = {scene.views[0]["label"]: scene for scene in scenes(mode)}
    assert len(found) == len(dataset)
    for i in range(len(dataset)):
        sample = dataset[i]
        views = found[sample[0]["label"]].views
        for a, b in zip(sample, views, strict=True):
            assert a.keys() - b.keys() == {"idx"} and b.keys() <= a.keys()
            for key in b:
                assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key], key


def names(selection: Selection, **options) -> list[str]:
    return [str(key) for key in find_scenes(IMAGES, selection, **options)]


def test_ranges_lists_and_limits():
    every = names(Selection(splits=("train",)))
    assert len(every) == 4
    assert names(Selection(splits=("train",), frames=("001000-001041",))) == [n for n in every if n.endswith("001040")]
    assert names(Selection(splits=("train",), frames=("1040-1042",))) == every
    assert names(Selection(frames=("001041-001050", "000751"))) == [n for n in names(Selection()) if n[-1] in "12"]
    assert names(Selection(), limit=3) == names(Selection())[:3]
    for wrong in ("001043-001050", "001041"):
        with pytest.raises(InputError, match=f"no frame '{wrong}'"):
            names(Selection(splits=("train",), frames=("001040-001042", wrong)))


def test_main_agent_and_views_of_a_coop_scene():
    first = find_scenes(IMAGES, mode="coop")[0]
    assert first.agents == ("641", "650") and len(first.views) == 8
    other = find_scenes(IMAGES, mode="coop", main_agent="650", num_views=6)[0]
    assert other.agents == ("650", "641") and other.cameras == ((0, 1, 2, 3), (0, 1))
    two = find_scenes(IMAGES, mode="coop", num_views=3, min_agents=2)[0]
    assert two.cameras == ((0, 1), (0,))
    only = find_scenes(IMAGES, Selection(agents=("650",)), "coop")[0]
    assert only.agents == ("650",)
    with pytest.raises(InputError, match="3 agents or more"):
        find_scenes(IMAGES, mode="coop", min_agents=3)


def test_what_is_missing_is_left_out_and_said(sample_root: Path):
    folder = sample_root / "train" / "2021_09_10_05_59_10"
    (folder / "641" / "001040.yaml").unlink()
    (folder / "650" / "001042_camera1.png").unlink()
    with pytest.warns(UserWarning, match=r"1 agent-frames have no YAML.*641/001040"):
        keys = find_scenes(sample_root, Selection(splits=("train",)), "coop")
    assert [(key.frame, key.agents) for key in keys] == [("001040", ("650",)), ("001042", ("641", "650"))]
    assert keys[1].cameras[1] == (0, 2, 3)


def test_missing_depth_is_an_error_only_where_it_is_an_input(sample_root: Path, sample_depth_root: Path):
    key = find_scenes(sample_root, Selection(splits=("train",)))[0]
    layout = DepthLayout(sample_depth_root)
    layout.path(frame_key(key, "641"), 2).unlink()
    scene = load_scene(sample_root, layout, key, SIZE)
    assert [bool(view["valid_mask"].any()) for view in scene.views] == [True, True, False, True]
    with pytest.raises(InputError, match="no depth map, but depth is an input"):
        load_scene(sample_root, layout, key, SIZE, need_depth=True)


@pytest.mark.faults
def test_a_broken_image_is_one_line_that_names_it(sample_root: Path):
    path = sample_root / "train" / "2021_09_10_05_59_10" / "641" / "001040_camera1.png"
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="001040_camera1"):
        load_scene(sample_root, None, find_scenes(sample_root)[0], SIZE)
