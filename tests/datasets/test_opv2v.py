"""The data sets on generated data: poses against the raw files, view selection, determinism, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mapanything.datasets.opv2v import CoopOptions, OPV2VCoopDataset, OPV2VDataset, SceneOptions
from mapanything.datasets.views import View, collate
from mapanything.errors import InputError
from mapanything.geometry import camera, carla
from mapanything.geometry.rigid import invert, transform
from mapanything.opv2v import depth_root
from mapanything.opv2v.depth import write_depth_npy
from mapanything.opv2v.depth_root import DepthRoot
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.pcd import read_pcd

SMALL = {"resolution": (126, 98), "split": "train"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("MAPANYTHING_CACHE", str(tmp_path_factory.mktemp("cache")))


def coop(root: Path, depth: Path | None = None, **changes) -> OPV2VCoopDataset:
    options = {"coop_min_agents": 1, "coop_min_num_views": 1, "coop_max_num_views": None, "num_views": 28} | SMALL
    return OPV2VCoopDataset(root, depth, **(options | changes))


def frame_of(root: Path, view: View):
    split, scenario, _, frame = view["label"].split("/")
    return read_frame(root / split / scenario / view["agent"] / f"{frame}.yaml")


def test_world_is_the_main_agents_lidar_frame(generated_root, generated_depth):
    """Each pose equals the way through the raw six-vectors, and LiDAR points land in the pixels that say their depth."""
    for dataset in (OPV2VDataset(generated_root, generated_depth, **SMALL), coop(generated_root, generated_depth)):
        views = dataset[0]
        main = frame_of(generated_root, views[0])
        assert views[0]["agent_id"] == 0
        for v in views:
            frame = frame_of(generated_root, v)
            own = next(c for c in frame.cameras if c.name == v["camera"])
            expected = invert(main.world_from_lidar) @ carla.cv_pose(own.cords)
            assert np.abs(v["camera_pose"].numpy() - expected).max() < 1e-4
        first = views[0]
        cloud = read_pcd(generated_root / f"{first['label']}.pcd")
        points = carla.cv_points(cloud.points.astype(np.float64))
        points = transform(invert(first["camera_pose"].double().numpy()), points)
        uv, z = camera.project(points, first["camera_intrinsics"].double().numpy())
        with np.errstate(invalid="ignore"):
            inside = (z > 0) & (np.abs(uv - [62.5, 48.5]) < [62, 48]).all(axis=1)
        column, row = np.rint(uv[inside]).astype(int).T
        along = np.linalg.norm(points[inside], axis=1)
        known = first["depth_along_ray"][row, column, 0].numpy()
        near = (known > 0) & (along < 30)
        assert near.sum() > 50
        assert np.median(np.abs(known[near] / along[near] - 1)) < 0.06  # the road at a slant, pixels are coarse


def test_single_vehicle_scenes_are_all_agent_frames(generated_root, generated_depth):
    dataset = OPV2VDataset(generated_root, generated_depth, **SMALL)
    assert len(dataset) == len(list(generated_root.glob("train/*/*/*.pcd")))
    views = dataset[len(dataset) - 1]
    assert [v["camera"] for v in views] == ["camera0", "camera1", "camera2", "camera3"]
    assert len({v["agent"] for v in views}) == 1 and {v["agent_id"] for v in views} == {0}
    assert len({v["instance"] for v in views}) == 4


def test_main_agent_is_641_where_it_is_there(generated_root):
    agents = sorted({p.name for p in generated_root.glob("train/*/*") if p.is_dir()})
    assert "641" in agents
    for scene in coop(generated_root):
        folder = generated_root / "train" / scene[0]["label"].split("/")[1]
        there = sorted(p.name for p in folder.iterdir() if p.is_dir())
        assert scene[0]["agent"] == ("641" if "641" in there else there[0])
    last = coop(generated_root, coop_main_agent=agents[-1], max_scenes=1)[0]
    assert last[0]["agent"] == agents[-1] or agents[-1] not in {v["agent"] for v in last}
    policy = coop(generated_root, coop_main_agent=None, coop_main_agent_policy="random", max_scenes=1)
    seen = set()
    for epoch in range(20):
        policy.set_epoch(epoch)
        seen.add(policy[0][0]["agent"])
    assert len(seen) > 1


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8])
def test_view_counts_and_roles(generated_root, count):
    dataset = coop(generated_root, augment=True)
    for scene in range(len(dataset)):
        views = dataset[scene, count]
        roles = [v["agent_id"] for v in views]
        assert len(views) == count == len({v["instance"] for v in views})
        assert roles == sorted(roles) and set(roles) == set(range(max(roles) + 1))
        assert len({v["agent"] for v in views}) == max(roles) + 1


def test_fewest_agents_each_give_a_view(generated_root):
    dataset = coop(generated_root, coop_min_agents=2, coop_min_num_views=2, num_views=8)
    assert len({v["agent"] for v in dataset[0, 2]}) == 2
    assert len({v["agent"] for v in dataset[0, 4]}) == 2
    with pytest.raises(ValueError, match="2 to 8"):
        dataset[0, 9]


def test_single_vehicles_among_the_samples(generated_root):
    """A share of the samples is what stage 1 sees, other vehicles in every epoch; the others are as without it."""
    plain = coop(generated_root, coop_min_num_views=8)
    dataset = coop(generated_root, coop_min_num_views=8, coop_single_share=0.5, augment=True)
    assert len(dataset) == 2 * len(plain)
    alone = range(len(plain), len(dataset))
    assert {(dataset.min_views(i), dataset.max_views(i)) for i in alone} == {(4, 4)}
    assert {dataset.min_views(i) for i in range(len(plain))} == {8}
    shown = []
    for epoch in range(6):
        dataset.set_epoch(epoch)
        for scene in alone:
            views = dataset[scene]
            assert len(views) == 4 and {view["agent_id"] for view in views} == {0}
            assert {view["agent"] for view in views} == {views[0]["label"].split("/")[2]}
            shown.append(views[0]["label"])
    vehicles = {str(index.key(row)) for index in dataset.indices for _, rows in plain.scenes for row in rows}
    assert set(shown) == vehicles
    assert [len(dataset[scene]) for scene in range(len(plain))] == [8] * len(plain)


def test_agents_of_a_timestamp_are_intersected(generated_root, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(generated_root, root)
    before = coop(root, coop_min_agents=2)
    label = before[0][0]["label"]
    split, scenario, _, frame = label.split("/")
    for folder in sorted((root / split / scenario).iterdir())[1:]:
        for path in folder.glob(f"{frame}*") if folder.is_dir() else ():
            path.unlink()
    after = coop(root, coop_min_agents=2)
    assert len(after) == len(before) - 1
    assert all(views[0]["label"] != label for views in (after[i] for i in range(len(after))))
    assert len(coop(root)) == len(before)  # one agent is enough here


@pytest.mark.filterwarnings("ignore:.*lack an image")
def test_frames_without_an_image_are_left_out_and_said(generated_root, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(generated_root, root)
    full = OPV2VDataset(root, **SMALL)
    (root / f"{full[0][0]['label']}_camera3.png").unlink()
    with pytest.warns(UserWarning, match="1 lack an image"):
        less = OPV2VDataset(root, **SMALL)
    assert len(less) == len(full) - 1
    variable = OPV2VDataset(root, allow_variable_view_count=True, min_num_views_allowed=3, **SMALL)
    assert len(variable) == len(full) and [v["camera"] for v in variable[0]] == ["camera0", "camera1", "camera2"]


def test_excluded_frames_are_left_out(generated_root, tmp_path):
    full = OPV2VDataset(generated_root, **SMALL)
    label = full[0][0]["label"]
    (tmp_path / "exclude.txt").write_text(f"{label}  # planted\n")
    less = OPV2VDataset(generated_root, exclude=tmp_path / "exclude.txt", **SMALL)
    assert len(less) == len(full) - 1 and less[0][0]["label"] != label


def equal(a: list[View], b: list[View]) -> bool:
    if len(a) != len(b):
        return False
    return all(
        torch.equal(x[k], y[k]) if isinstance(x[k], torch.Tensor) else x[k] == y[k]
        for x, y in zip(a, b, strict=True)
        for k in x
    )


def test_a_sample_depends_on_seed_epoch_and_index_alone(generated_root, generated_depth):
    first, second = (coop(generated_root, generated_depth, augment=True, seed=5) for _ in range(2))
    _ = second[1, 3], torch.rand(3)
    assert equal(first[0, 5], second[0, 5])
    second.set_epoch(1)
    assert not equal(first[0, 5], second[0, 5])
    assert not equal(first[0, 5], coop(generated_root, generated_depth, augment=True, seed=6)[0, 5])


def test_workers_give_what_one_process_gives(generated_root, generated_depth):
    dataset = OPV2VDataset(generated_root, generated_depth, augment=True, **SMALL)
    dataset.set_epoch(3)
    alone = [collate([dataset[i]]) for i in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=collate, persistent_workers=True)
    for expected, batch in zip(alone, loader, strict=True):
        assert equal(expected, batch)
    dataset.set_epoch(4)  # workers that live on must see it
    changed = list(loader)
    assert not equal(alone[0], changed[0])
    assert equal(collate([dataset[0]]), changed[0])


def test_validation_is_the_same_in_every_epoch(generated_root):
    dataset = coop(generated_root)
    first = dataset[0]
    dataset.set_epoch(9)
    assert equal(first, dataset[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_views": 0}, "coop_min_agents"),
        ({"num_views": 4, "coop_min_num_views": 5}, "coop_min_num_views"),
        ({"coop_min_agents": 40}, "coop_min_agents"),
        ({"coop_main_agent_policy": "best"}, "first or random"),
        ({"split": "nowhere"}, "no split"),
        ({"max_scenes": -1}, "from 1 on"),
        ({"resolution": (100, 100)}, "multiples of 14"),
        ({"coop_min_agents": 20, "num_views": 28}, "no scene"),
        ({"depth_pattern": "{split.__class__}"}, "pattern"),
        ({"seed": -1}, "seed=-1"),
        ({"mask_reach": 2}, "from 0 to 1"),
        ({"coop_single_share": 1.0}, "from 0 to less than 1"),
        ({"coop_single_share": 0.5, "num_views": 3, "coop_min_num_views": 3}, "no vehicle can show 4 views"),
    ],
)
def test_options_that_cannot_be(generated_root, generated_depth, options, message):
    with pytest.raises(InputError, match=message):
        coop(generated_root, generated_depth, **options)


def test_files_that_break_later_are_named(generated_root, generated_depth, tmp_path):
    root, depth = tmp_path / "images", tmp_path / "depth"
    shutil.copytree(generated_root, root)
    shutil.copytree(generated_depth, depth)
    dataset = OPV2VDataset(root, depth, **SMALL)
    label = dataset[0][0]["label"]
    image, npy = root / f"{label}_camera0.png", depth / f"{label}_camera0_depth.npy"
    npy.write_bytes(npy.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"camera0_depth\.npy: truncated"):
        dataset[0]
    np.save(npy, np.zeros((10, 10), np.float32))
    with pytest.raises(InputError, match="10x10"):
        dataset[0]
    image.write_bytes(image.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"camera0\.png"):
        dataset[0]
    image.unlink()
    with pytest.raises(InputError, match=r"camera0\.png"):
        dataset[0]


def test_self_check_of_the_notes(generated_root, generated_depth, tmp_path):
    """Run as the notes do, as a script, from somewhere else."""
    script = Path(__file__).parents[2] / "mapanything/datasets/opv2v.py"
    command = [sys.executable, str(script), "--root", str(generated_root), "--depth_root", str(generated_depth)]
    done = subprocess.run([*command, "--max_scenes", "1"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 scenes" in done.stdout.splitlines()
    wrong = subprocess.run([*command[:3], str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and str(tmp_path) in wrong.stderr


def test_generated_data_may_be_trained_on_but_not_fixtures(generated_root, tmp_path):
    root = tmp_path / "opv2v_images"
    shutil.copytree(generated_root, root)
    OPV2VDataset(root, **SMALL)
    for place in (root, tmp_path):
        (place / ".tests-only").write_text(json.dumps({}))
        with pytest.raises(InputError, match="never get into training"):
            OPV2VDataset(root, **SMALL)
        (place / ".tests-only").unlink()


@pytest.mark.real
def test_real_frame_loads_with_depth_made_from_its_clouds(real_root, tmp_path):
    command = [sys.executable, "-m", "mapanything.tools.make_depth", "--root", str(real_root)]
    subprocess.run([*command, "--depth-root", str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    views = OPV2VCoopDataset(real_root, tmp_path, resolution=(448, 252))[0]
    assert [v["agent"] for v in views] == ["4279"] * 4 + ["4288"] * 4
    assert all(0.01 < v["valid_mask"].float().mean() < 0.12 for v in views)
    # 43 to 48 m apart, on one street
    assert 40 < float(views[4]["camera_pose_trans"].norm()) < 50 and abs(views[4]["camera_pose_trans"][1]) < 2


@pytest.mark.parametrize(
    ("kind", "synthetic"),
    [
        (None, True),
        (DepthRoot("rendered", "ray casting"), True),
        (DepthRoot("lidar", "visible"), False),
        (DepthRoot("opv2v-h", "8 bit"), False),
    ],
)
def test_a_label_is_believed_for_what_its_root_says(generated_root, generated_depth, tmp_path, kind, synthetic):
    """Only what was rendered has exact neighbours, and sky where nothing is known."""
    depth = Path(shutil.copytree(generated_depth, tmp_path / "depth"))
    (depth / "depth.json").unlink()
    if kind is not None:
        depth_root.write(depth, kind)
    views = OPV2VDataset(generated_root, depth, **SMALL)[0]
    for view, known in zip(views, OPV2VDataset(generated_root, generated_depth, **SMALL)[0], strict=True):
        assert view["is_synthetic"] is synthetic and torch.equal(view["pts3d_cam"], known["pts3d_cam"])
        assert torch.equal(view["non_ambiguous_mask"], known["valid_mask"])
        assert torch.equal(view["mask_known"], torch.ones_like(known["valid_mask"]) if synthetic else known["valid_mask"])


def test_maps_that_contradict_their_root_are_refused(generated_root, tmp_path):
    for path in generated_root.glob("train/*/*/*_camera0.png"):
        lines = np.zeros((44, 80), np.float32)
        lines[20::5, ::2] = 9
        write_depth_npy(tmp_path / path.relative_to(generated_root).with_name(f"{path.stem}_depth.npy"), lines)
    depth_root.write(tmp_path, DepthRoot("rendered", "ray casting"))
    with pytest.raises(InputError, match=r"depth\.json says rendered maps .* a LiDAR's"):
        OPV2VDataset(generated_root, tmp_path, num_views=1, **SMALL)


def test_options_are_frozen_and_checked_without_data():
    assert CoopOptions(num_views=10, coop_max_num_views=None, coop_min_num_views=4).min_views == 4
    assert SceneOptions().min_views == 4 and SceneOptions(allow_variable_view_count=True).min_views == 1
    with pytest.raises(InputError, match="multiples of 14"):
        SceneOptions(resolution=(500, 392))
    with pytest.raises(AttributeError):
        SceneOptions().seed = 1  # pyright: ignore[reportAttributeAccessIssue] # that it frozen
