"""The whole of an evaluation on the generated sample: the tables, the same bytes twice, and no way in for ground truth."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mapanything.datasets.views import View
from mapanything.errors import InputError
from mapanything.evaluation import run as module
from mapanything.evaluation.report import Row, Summary, metrics_csv
from mapanything.evaluation.run import EvaluationJob, Model, evaluate, ranked
from mapanything.evaluation.scene import COLUMNS, Measured, Options
from mapanything.evaluation.scene_list import SceneChoice, list_scenes, read_frames
from mapanything.inference import predict, stream
from mapanything.inference.predict import USES, predict_scene, scene_views
from mapanything.inference.select import depth_layout, find_scenes, load_scene
from mapanything.models.mapanything import MapAnything
from mapanything.models.postprocess import Prediction
from mapanything.opv2v.layout import Selection
from mapanything.results.record import SceneKey
from tests.helpers.networks import TINY

SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample_opv2v"
IMAGES, DEPTH = SAMPLE / "opv2v_images", SAMPLE / "opv2v_depth"
SIZE = (70, 42)
BOTH = SceneChoice(selection=Selection(splits=("train", "validate")))
TWO = SceneChoice(selection=BOTH.selection, sample=2)


def save_network(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    network = MapAnything(TINY)
    with torch.no_grad():
        network.get_parameter("dpt_regressor_head.conv2.2.bias")[5] = 3.0  # trusts most of its pixels
    network.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, ...]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return tuple(
        Model(name, save_network(folder / name, seed), {"checkpoint_sha256": name})
        for seed, name in enumerate(("pretrain", "stage1", "stage2"))
    )


@pytest.fixture(scope="module")
def network(checkpoints: tuple[Model, ...]) -> MapAnything:
    return MapAnything.from_pretrained(checkpoints[0].path)


def make_job(
    out: Path, models: tuple[Model, ...], choice: SceneChoice = BOTH, root: Path = IMAGES, **options: Any
) -> EvaluationJob:
    options = {"resolution": SIZE, "worst": 0, "depth_root": DEPTH, "scenes": list_scenes(root, choice)} | options
    return EvaluationJob(root=root, out=out, models=models, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def table(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


# The whole


@pytest.mark.slow
def test_table_comes_out_and_is_the_same_twice(checkpoints: tuple[Model, ...], tmp_path: Path):
    for run in ("a", "b"):
        summary = evaluate(make_job(tmp_path / run, checkpoints, TWO))
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    timing = [json.loads(found.pop("timing.json")) for found in (a, b)]
    assert a == b
    assert set(a) == {"metrics.csv", "groups.csv", "summary.json", "summary.md", "plots/metrics.png", "plots/groups.png"}
    assert json.loads(a["summary.json"])["files"] == sorted([*set(a) - {"summary.json"}, "timing.json"])

    rows = table(a["metrics.csv"])
    assert len(rows) == 3 * 2 * 2
    assert list(rows[0])[-len(COLUMNS) :] == list(COLUMNS)
    parts = {(row["model"], row["mode"]) for row in rows}
    assert parts == {(model, mode) for model in ("pretrain", "stage1", "stage2") for mode in ("single", "coop")}
    for model, mode in parts:
        of_part = [row for row in rows if (row["model"], row["mode"]) == (model, mode)]
        assert [row["num_views"] for row in of_part] == ["4" if mode == "single" else "8"] * 2
        for name in ("pose_translation_m", "depth_rmse_m", "chamfer_m", "abs_metric_scaling_factor_minus_1"):
            mean = np.mean([float(row[name]) for row in of_part])
            assert summary.whole[model, mode][name].mean == pytest.approx(mean, rel=1e-6), name
    # Both modes are about the same timestamps and main agents.
    names = ("split", "scenario", "frame", "agent")
    single, coop = ({tuple(row[k] for k in names) for row in rows if row["mode"] == mode} for mode in ("single", "coop"))
    assert single == coop

    kinds = {(row["kind"], row["group"]) for row in table(a["groups.csv"])}
    assert {("camera", "camera0"), ("agent", "641"), ("role", "other 1"), ("distance", "80+ m")} <= kinds
    text = a["summary.md"].decode()
    lines = text.splitlines()
    header = next(i for i, line in enumerate(lines) if "pose m / °, single | pose m / °, coop | scale error, single" in line)
    assert [line.split("|")[1].strip() for line in lines[header + 2 : header + 5]] == ["pretrain", "stage1", "stage2"]
    assert "The network saw: images." in text and "Ground truth was among" not in text
    assert timing[0]["models"]["stage1"]["coop"]["points_per_second"] > 0
    record = json.loads(a["summary.json"])
    assert record["results"]["stage2"]["coop"]["metrics"]["chamfer_m"]["count"] == 2
    assert record["inputs"] == ["images"] and record["modes"]["single"]["resolution"] == list(SIZE)


@pytest.mark.slow
def test_worst_and_representative_scenes(checkpoints: tuple[Model, ...], tmp_path: Path):
    for run in ("a", "b"):
        options = {"worst": 1, "representative": True, "rank_by": "depth_rmse_m"}
        job = make_job(tmp_path / run, checkpoints[:1], TWO, **options)
        summary = evaluate(job)
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert {k: v for k, v in a.items() if k != "timing.json"} == {k: v for k, v in b.items() if k != "timing.json"}
    rows = table(a["metrics.csv"])
    for mode in ("single", "coop"):
        of_mode = sorted((r for r in rows if r["mode"] == mode), key=lambda r: -float(r["depth_rmse_m"]))
        worst = sorted(name for name in a if name.startswith(f"worst/pretrain_{mode}/"))
        expected = [f"{i:02d}_{r['split']}_{r['scenario']}_{r['agent']}_{r['frame']}" for i, r in enumerate(of_mode[:1], 1)]
        assert [Path(name).stem for name in worst] == expected
        for place, row in (("worst", of_mode[0]), ("best", of_mode[-1])):
            scene = f"representative/pretrain_{mode}/{place}/{row['split']}/{row['scenario']}/{row['agent']}/{row['frame']}"
            assert {f"{scene}/cloud.ply", f"{scene}/scene.json", f"{scene}/641_camera0/depth.npy"} <= set(a)
            assert f"representative/pretrain_{mode}/{place}.png" in a
    assert set(json.loads(a["summary.json"])["files"]) == set(a) - {"summary.json"}
    assert isinstance(summary, Summary)


def test_lidar_as_reference_needs_no_depth(checkpoints: tuple[Model, ...], tmp_path: Path):
    options = Options(reference="lidar")
    summary = evaluate(
        make_job(tmp_path / "out", checkpoints[:1], SceneChoice(BOTH.selection, sample=1), depth_root=None, options=options)
    )
    for mode in ("single", "coop"):
        found = summary.whole["pretrain", mode]
        assert found["chamfer_m"].count == found["pose_rotation_deg"].count == 1
        assert found["depth_rmse_m"].count == found["scale_error"].count == 0
    assert "LiDAR sweeps" in (tmp_path / "out" / "summary.md").read_text()
    # Two vehicles' sweeps against one's.
    rows = table(files(tmp_path / "out")["metrics.csv"])
    points = {row["mode"]: float(row["num_points_true"]) for row in rows}
    assert points["coop"] > 1.5 * points["single"]


def test_sweeps_of_both_vehicles_meet_in_one_frame():
    """The road is flat in the generated town: below both vehicles it has one height."""
    from mapanything.evaluation.scene import Truth

    key = find_scenes(IMAGES, Selection(splits=("train",)), "coop", min_agents=2)[0]
    scene = load_scene(IMAGES, None, key, SIZE)
    cloud = Truth.of(scene, IMAGES, "lidar").cloud
    assert cloud is not None
    other = scene.lidar_from_camera[4][:3, 3]
    near = [cloud[np.hypot(*(cloud - place)[:, [0, 2]].T) < 15] for place in (np.zeros(3), other)]
    road = [np.median(part[part[:, 1] > 1.0, 1]) for part in near]
    assert road[0] == pytest.approx(road[1], abs=0.15)


def test_scene_that_cannot_be_read_is_named_and_left_out(
    checkpoints: tuple[Model, ...], sample_root: Path, sample_depth_root: Path, tmp_path: Path
):
    next(sample_depth_root.rglob("641/000751_camera2_depth.npy")).write_bytes(b"broken")
    told: list[str] = []
    job = make_job(tmp_path / "out", checkpoints[:2], root=sample_root, depth_root=sample_depth_root)
    summary = evaluate(job, told.append)
    assert summary.num_scenes["pretrain", "single"] == summary.num_scenes["stage1", "coop"] == 3
    problems = json.loads((tmp_path / "out" / "summary.json").read_text())["problems"]
    assert [name.split("/")[-1] for name in problems] == ["000751", "000751"]
    assert len(told) == 2 * 8 and sum(map(bool, told)) == 4
    for path in sample_root.rglob("*_camera0.png"):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match="no scene could be read"):
        evaluate(job)


def test_killed_run_leaves_no_summary(checkpoints: tuple[Model, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    real = module.write_atomic

    def stop(path: Path, data: bytes) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, data)

    monkeypatch.setattr(module, "write_atomic", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(make_job(tmp_path / "out", checkpoints[:1], TWO))
    assert "summary.json" not in written and set(files(tmp_path / "out")) == {"metrics.csv", "groups.csv", "plots/metrics.png"}


# Ground truth


def predictions(monkeypatch: pytest.MonkeyPatch, job: EvaluationJob) -> list[tuple[list[dict[str, Any]], bytes]]:
    """The network's inputs and its answers, scene by scene."""
    seen: list[tuple[list[dict[str, Any]], bytes]] = []
    real = MapAnything.predict

    def spy(self: MapAnything, views: list[dict[str, Any]], **options: Any) -> Any:
        out = real(self, views, **options)
        tensors = (out.pts3d, out.camera_poses, out.depth_z, out.conf, out.mask, out.metric_scaling_factor)
        seen.append((views, b"".join(t.numpy().tobytes() for t in tensors if t is not None)))
        return out

    with monkeypatch.context() as patch:
        patch.setattr(MapAnything, "predict", spy)
        evaluate(job)
    return seen


def test_changed_ground_truth_changes_figures_but_no_prediction(
    checkpoints: tuple[Model, ...],
    sample_root: Path,
    sample_depth_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def job(out: str) -> EvaluationJob:
        return make_job(tmp_path / out, checkpoints[:1], root=sample_root, depth_root=sample_depth_root)

    before = predictions(monkeypatch, job("before"))
    assert len(before) == 8
    for views, _ in before:
        assert all(set(view) == {"img", "data_norm_type"} for view in views)
    for path in sample_depth_root.rglob("*.npy"):
        np.save(path, 3 * np.load(path) + 1)
    changed = 0
    for path in sample_root.rglob("*.yaml"):
        lines = path.read_text().splitlines(keepends=True)
        inside = False
        for i, line in enumerate(lines):  # every pose of every camera: each place 2 m off
            inside = line.strip() == "cords:" or (inside and line.strip().startswith("- "))
            if inside and line.strip() != "cords:":
                head, value = line.rsplit("- ", 1)
                lines[i] = f"{head}- {float(value) + 2.0 + 0.1 * (i % 7)}\n"
                changed += 1
        path.write_text("".join(lines))
    assert changed == 8 * 4 * 6  # 8 agent-frames, 4 cameras, 6 numbers
    for path in sample_root.rglob("*.pcd"):
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    after = predictions(monkeypatch, job("after"))
    assert [said for _, said in before] == [said for _, said in after]
    old, new = (table(files(tmp_path / out)["metrics.csv"]) for out in ("before", "after"))
    for name in ("pose_translation_m", "pose_rotation_deg", "depth_rmse_m", "scale_error", "chamfer_m"):
        assert all(a[name] != b[name] for a, b in zip(old, new, strict=True)), name
    assert [a["abs_metric_scaling_factor_minus_1"] for a in old] == [b["abs_metric_scaling_factor_minus_1"] for b in new]


@pytest.fixture(scope="module")
def known(network: MapAnything) -> tuple[list[View], Prediction]:
    """A sample and what the network says of it."""
    key = find_scenes(IMAGES, Selection(splits=("train",)), "coop", num_views=5)[0]
    sample = load_scene(IMAGES, depth_layout(DEPTH), key, SIZE).views
    return sample, predict_scene(network, sample)


@settings(max_examples=10)
@given(data=st.data())
def test_only_images_reach_the_network(network: MapAnything, known: tuple[list[View], Prediction], data: st.DataObject):
    """Whatever a sample holds besides the images, and whatever is added to it: the prediction is the same, bit for bit."""
    sample, said = known
    sample = [dict(view) for view in sample]
    keys = sorted(set(sample[0]) - set(USES["images"]))
    changed = data.draw(st.sets(st.sampled_from(keys), min_size=1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    for view in sample:
        for name in changed:
            value = view[name]
            if isinstance(value, torch.Tensor):
                view[name] = torch.rand(value.shape, generator=generator).mul(9).to(value.dtype)
            else:
                view[name] = "changed" if isinstance(value, str) else 1
        # The names under which `model.infer` takes geometry.
        view["camera_poses"], view["depth_z"] = torch.eye(4), torch.rand(SIZE[1], SIZE[0], generator=generator)
        view["intrinsics"], view["ray_directions"] = torch.eye(3), torch.rand(SIZE[1], SIZE[0], 3, generator=generator)
    again = predict_scene(network, sample)
    for name in ("pts3d", "camera_poses", "depth_z", "conf", "mask", "metric_scaling_factor", "intrinsics"):
        assert torch.equal(getattr(said, name), getattr(again, name)), name


def test_inputs_that_were_asked_for_are_said_everywhere(checkpoints: tuple[Model, ...], tmp_path: Path):
    inputs = ("images", "intrinsics", "poses", "depth")
    evaluate(make_job(tmp_path / "out", checkpoints[:1], SceneChoice(BOTH.selection, sample=1), inputs=inputs))
    assert "**Ground truth was among the inputs" in (tmp_path / "out" / "summary.md").read_text()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["inputs"] == list(inputs)
    key = find_scenes(IMAGES, BOTH.selection)[0]
    views = scene_views(load_scene(IMAGES, depth_layout(DEPTH), key, SIZE).views, inputs)
    assert {"intrinsics", "camera_poses", "depth_z"} <= set(views[0])


def test_perfect_network_gets_perfect_figures(checkpoints: tuple[Model, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The loop as it is, with a network that is told the truth behind its back."""
    from mapanything.geometry.rigid import quat_from_matrix

    def cheat(network: MapAnything, sample: list[dict[str, Any]], *_: Any, **__: Any) -> Any:
        said = predict_scene(network, sample)
        poses = torch.stack([view["camera_pose"] for view in sample])[None]
        said.camera_poses, said.cam_trans, said.cam_quats = poses, poses[..., :3, 3], quat_from_matrix(poses)
        said.pts3d_cam = torch.stack([view["pts3d_cam"] for view in sample])[None]
        said.mask = torch.stack([view["valid_mask"] for view in sample])[None, ..., None]
        said.metric_scaling_factor = torch.ones(1, 1)
        return said

    monkeypatch.setattr(predict, "predict_scene", cheat)
    summary = evaluate(make_job(tmp_path / "out", checkpoints[:1]))
    for mode in ("single", "coop"):
        found = {name: stats.mean for name, stats in summary.whole["pretrain", mode].items()}
        for name in ("auc_5", "auc_20_vggt", "bev_iou", "filtered_bev_iou", "depth_delta_1_25", "pose_fit_scale"):
            # A point on the edge of a cell falls to either side of it, by the rounding of poses to float32.
            assert found[name] == pytest.approx(1, abs=5e-3 if "bev" in name else 1e-5), name
        for name in ("pose_translation_m", "pose_rotation_deg", "scale_error", "depth_rmse_m", "filtered_chamfer_m"):
            assert found[name] == pytest.approx(0, abs=2e-4), name


# Which scenes


def test_sample_is_seeded_and_the_same_for_both_modes():
    drawn = [list_scenes(IMAGES, SceneChoice(BOTH.selection, sample=2, seed=seed)) for seed in range(8)]
    assert drawn[3] == list_scenes(IMAGES, SceneChoice(BOTH.selection, sample=2, seed=3))
    assert len({str([str(key) for key in of["coop"]]) for of in drawn}) > 1
    for of in drawn:
        assert [str(key) for key in of["single"]] == [str(key) for key in of["coop"]]
        assert len(of["coop"]) == 2 and of["coop"][0].agents == ("641", "650") and of["single"][0].agents == ("641",)
    with pytest.raises(InputError, match="a sample of 9 timestamps was asked for, but there are 4"):
        list_scenes(IMAGES, SceneChoice(BOTH.selection, sample=9))


def test_every_agent_and_splits():
    every = list_scenes(IMAGES, SceneChoice(BOTH.selection, every_agent=True), ("single",))
    assert list(every) == ["single"] and len(every["single"]) == 8
    assert {key.split for key in list_scenes(IMAGES, SceneChoice())["coop"]} == {"validate"}  # there is no test split
    assert {key.split for key in list_scenes(IMAGES, SceneChoice(selection=Selection(splits=("train",))))["coop"]} == {"train"}


def test_list_file(tmp_path: Path):
    path = tmp_path / "frames.txt"
    path.write_text(
        "# ours\n\ntrain/2021_09_10_05_59_10/001042  # late\nvalidate/2021_09_05_07_39_11/650/000751\n"
        "train/2021_09_10_05_59_10/001042\n"
    )
    assert read_frames(path)[4] == ("validate", "2021_09_05_07_39_11", "650", "000751")
    found = list_scenes(IMAGES, SceneChoice(frames=path))
    assert [key.agents for key in found["coop"]] == [("641", "650"), ("650", "641")]
    assert [str(key) for key in found["single"]] == [str(key) for key in found["coop"]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no frame"),
        ("train/x", "line 1: 'train/x'; give split/scenario/frame"),
        ("train/2021_09_10_05_59_10/641/late", "line 1"),
        ("train/2021_09_10_05_59_10/001041", "no frame '001041'"),
        ("\ntrain/nowhere/001042", "line 2 or after: .*no scenario 'nowhere'"),
        ("nothing/2021_09_10_05_59_10/001042", "has no split 'nothing'"),
        ("train/2021_09_10_05_59_10/999/001042", "line 1: agent 999 is not at this timestamp"),
    ],
)
def test_bad_list_file(tmp_path: Path, text: str, problem: str):
    path = tmp_path / "frames.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=problem):
        list_scenes(IMAGES, SceneChoice(frames=path))


def test_list_of_timestamps_with_one_vehicle(tmp_path: Path, sample_root: Path):
    shutil.rmtree(sample_root / "train" / "2021_09_10_05_59_10" / "650")
    path = tmp_path / "frames.txt"
    path.write_text("train/2021_09_10_05_59_10/001042")
    with pytest.raises(InputError, match="with 2 agents or more"):
        list_scenes(sample_root, SceneChoice(frames=path))
    assert len(list_scenes(sample_root, SceneChoice(frames=path, min_agents=1))["coop"]) == 1
    path.unlink()
    with pytest.raises(InputError, match=r"frames.txt: .*No such file"):
        list_scenes(sample_root, SceneChoice(frames=path))


# Tables


def test_ranking_and_numbers():
    key = SceneKey("test", "s", "1", ("641",), ((0,),))
    values = [3.0, float("nan"), 1.0, 2.0, 3.0]
    rows = [Row("m", "single", key, Measured(dict.fromkeys(COLUMNS, value), [])) for value in values]
    assert ranked(rows, "chamfer_m", True) == [rows[0], rows[4], rows[3], rows[2]]
    assert ranked(rows, "bev_iou", False) == [rows[2], rows[3], rows[0], rows[4]]
    found = table(metrics_csv(rows))
    assert [row["chamfer_m"] for row in found] == ["3", "nan", "1", "2", "3"]


def test_reconstruction_is_what_is_measured():
    """No second reading of the network's output: what infer exports is what is measured."""
    assert module.reconstruct_scene is stream.reconstruct_scene is predict.reconstruct_scene
