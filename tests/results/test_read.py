"""Predictions are read as they were written, whatever axes and files they have; damaged ones say so in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mapanything.errors import InputError
from mapanything.geometry import carla
from mapanything.geometry.rigid import invert, transform
from mapanything.inference.select import find_scenes, frame_key
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import FramePaths
from mapanything.opv2v.pcd import read_pcd
from mapanything.pictures.colors import ERROR_RANGE, agent_color, error_colors
from mapanything.pictures.predictions import error_cloud, error_distances, read_prediction
from mapanything.pictures.scenes import Cloud
from mapanything.results.read import find_predictions
from mapanything.results.record import SceneKey
from tests.helpers.prediction_files import SIZE, write_prediction


@pytest.fixture
def key(sample_root: Path) -> SceneKey:
    return find_scenes(sample_root, mode="coop")[0]


def test_found_in_order_and_whole_ones_only(sample_root: Path, tmp_path: Path):
    keys = find_scenes(sample_root, mode="single")
    folders = [write_prediction(sample_root, tmp_path / "out", key, clouds=()) for key in reversed(keys[:3])]
    assert find_predictions(tmp_path / "out") == sorted(folders)
    assert find_predictions(folders[0]) == [folders[0]]
    (folders[0] / "scene.json").unlink()
    assert find_predictions(tmp_path / "out") == sorted(folders[1:])
    with pytest.raises(InputError, match="no such folder"):
        find_predictions(tmp_path / "nowhere")


@pytest.mark.parametrize("axes", ["opv2v", "opencv"])
@pytest.mark.parametrize("clouds", [("pcd",), ("ply",), ("glb",), ()])
def test_cloud_lies_in_the_main_agents_frame(
    clouds: tuple[str, ...], axes: str, sample_root: Path, tmp_path: Path, key: SceneKey
):
    predicted = read_prediction(write_prediction(sample_root, tmp_path, key, clouds=clouds, axes=axes))
    assert (predicted.split, predicted.scenario, predicted.agent, predicted.frame) == tuple(str(key).split("/"))
    assert predicted.agents == key.agents and predicted.inputs == ("images",)
    # Slow and obvious: every trusted pixel of every view, through the true poses.
    main = read_frame(FramePaths(sample_root, frame_key(key, key.main_agent)).yaml)
    want = []
    for agent, k in key.views:
        camera = read_frame(FramePaths(sample_root, frame_key(key, agent)).yaml).cameras[k]
        pixels = [((u - 41.5) / 40 * 8, (v - 20.5) / 40 * 8, 8.0) for v in range(SIZE[1]) for u in range(SIZE[0] // 2)]
        want.append(transform(invert(main.world_from_lidar) @ camera.world_from_camera, np.array(pixels)))
    assert np.abs(predicted.cloud.points - np.concatenate(want)).max() < 1e-3
    expected = np.stack([agent_color(key.agents.index(agent)) for agent, _ in key.views])
    assert (predicted.cameras.colors == expected).all()
    if clouds:
        assert len(np.unique(predicted.cloud.colors, axis=0)) > 10  # the images' own
    else:
        assert (predicted.cloud.colors.reshape(len(key.views), -1, 3) == expected[:, None]).all()


def test_depths_and_cameras(sample_root: Path, tmp_path: Path, key: SceneKey):
    predicted = read_prediction(write_prediction(sample_root, tmp_path, key))
    depth = predicted.views[0].depth()
    assert depth.shape == (42, 80) and (depth[:, :40] == 8).all() and (depth[:, 40:] == 0).all()
    assert predicted.cameras.labels == tuple(f"{agent} camera{k}" for agent, k in key.views)
    assert (predicted.cameras.sizes == SIZE).all()


def test_a_camera_that_is_not_finite_is_left_out(sample_root: Path, tmp_path: Path, key: SceneKey):
    folder = write_prediction(sample_root, tmp_path, key, clouds=())
    poses = json.loads((folder / "poses.json").read_text())
    poses["views"][1]["lidar_from_camera"][0][3] = float("nan")
    (folder / "poses.json").write_text(json.dumps(poses))
    predicted = read_prediction(folder)
    assert len(predicted.cameras) == len(predicted.views) - 1 == len(key.views) - 1
    assert np.isfinite(predicted.cloud.points).all() and len(predicted.cloud.points) == 40 * 42 * (len(key.views) - 1)


def damage_record(folder: Path, **values: object) -> None:
    record = json.loads((folder / "scene.json").read_text())
    (folder / "scene.json").write_text(json.dumps(record | values))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "scene.json").write_text("{"), "scene.json: is no JSON"),
        (lambda folder: (folder / "scene.json").write_text("[1]"), "no JSON object"),
        (lambda folder: damage_record(folder, format=99), "has format 99"),
        (lambda folder: damage_record(folder, frame_of="nowhere"), "frame_of"),
        (lambda folder: damage_record(folder, frame_of=["opv2v"]), "frame_of"),
        (lambda folder: damage_record(folder, scene={"split": 3}), "does not name"),
        (lambda folder: (folder / "poses.json").unlink(), "poses.json: missing"),
        (lambda folder: (folder / "poses.json").write_text('{"views": [{"name": "../../x"}]}'), "view 0"),
        (lambda folder: (folder / "cloud.pcd").write_bytes((folder / "cloud.pcd").read_bytes()[:-5]), "cloud.pcd.*truncated"),
    ],
)
def test_damaged_scenes_are_one_clear_line(damage, words: str, sample_root: Path, tmp_path: Path, key: SceneKey):
    folder = write_prediction(sample_root, tmp_path, key)
    damage(folder)
    with pytest.raises(InputError, match=words) as caught:
        read_prediction(folder)
    assert "\n" not in str(caught.value)


def test_a_view_never_leads_out_of_the_folder(sample_root: Path, tmp_path: Path, key: SceneKey):
    folder = write_prediction(sample_root, tmp_path, key, clouds=())
    poses = json.loads((folder / "poses.json").read_text())
    for name in ("..", "a/b", "/etc", ""):
        poses["views"][0]["name"] = name
        (folder / "poses.json").write_text(json.dumps(poses))
        with pytest.raises(InputError, match="view 0"):
            read_prediction(folder)


def test_depths_and_masks_of_another_kind_are_one_clear_line(sample_root: Path, tmp_path: Path, key: SceneKey):
    folder = write_prediction(sample_root, tmp_path, key)
    view = read_prediction(folder).views[0]
    depth, mask = (np.load(view.folder / name) for name in ("depth.npy", "mask.npy"))
    for name, wrong in (("mask.npy", mask.astype(np.uint8)), ("depth.npy", depth[None]), ("depth.npy", depth[:-1])):
        np.save(view.folder / name, wrong)
        with pytest.raises(InputError, match="make the scene again") as caught:
            view.depth()
        assert str(view.folder) in str(caught.value)
        np.save(view.folder / name, mask if name == "mask.npy" else depth)
    assert (view.depth() == np.where(mask, depth, 0)).all()


def test_a_number_too_large_for_a_float(sample_root: Path, tmp_path: Path, key: SceneKey):
    folder = write_prediction(sample_root, tmp_path, key, clouds=())
    poses = json.loads((folder / "poses.json").read_text())
    poses["views"][0]["intrinsics"][0][0] = 10**400
    (folder / "poses.json").write_text(json.dumps(poses))
    with pytest.raises(InputError, match="view 0"):
        read_prediction(folder)


def test_error_is_the_distance_to_the_nearest_lidar_point():
    rng = np.random.default_rng(0)
    predicted, lidar = rng.normal(size=(200, 3)) * 9, rng.normal(size=(90, 3)) * 9
    want = np.linalg.norm(predicted[:, None] - lidar[None], axis=2).min(axis=1)
    predicted = np.concatenate([predicted, [[np.nan, 0, 0]]])
    lidar = np.concatenate([lidar, [[np.inf, 0, 0]]])
    got = error_distances(predicted, lidar)
    assert np.abs(got[:-1] - want).max() < 1e-9 and np.isnan(got[-1])
    cloud = error_cloud(Cloud(predicted, np.zeros(3, np.uint8)), lidar)
    assert len(cloud.points) == 200 and (cloud.colors == error_colors(want)).all()
    assert np.isinf(error_distances(predicted[:3], np.zeros((0, 3)))).all()
    assert len(error_cloud(Cloud(np.zeros((0, 3)), np.zeros(3, np.uint8)), lidar).points) == 0


def test_error_colours_grow_lighter_and_stay_at_their_ends():
    distances = np.geomspace(*ERROR_RANGE, 60)
    light = error_colors(distances) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) >= -1.0).all() and light[-1] > light[0] + 120
    ends = error_colors(np.array([0.0, ERROR_RANGE[0], ERROR_RANGE[1], 1e9, np.inf]))
    assert (ends[0] == ends[1]).all() and (ends[2:] == ends[2]).all()


def test_a_true_cloud_has_no_error(sample_root: Path, key: SceneKey):
    points = carla.cv_points(read_pcd(FramePaths(sample_root, frame_key(key, key.main_agent)).pcd).points)
    assert error_distances(points, points).max() == 0
