"""`python -m mapanything.tools.viz`: pictures of the declared size, and one clear line where there can be none."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from mapanything.errors import InputError
from mapanything.inference.select import find_scenes
from mapanything.opv2v.depth import read_depth, write_depth_png
from mapanything.opv2v.layout import FrameKey, scan, scan_agent
from mapanything.pictures import plots
from mapanything.pictures.colors import BOX_COLOR, PREDICTED
from mapanything.pictures.picture import add_prediction, scene_picture
from mapanything.pictures.plots import CELL_WIDTH, POSE_SIZE, image_sheet, image_sheet_size
from mapanything.pictures.predictions import read_prediction
from mapanything.pictures.scenes import Boxes, Cameras, build_scene, read_timestamp
from mapanything.results.clouds import encode_ply
from mapanything.tools import viz, viz_newest, viz_predictions, viz_scenes, viz_sequence
from tests.helpers.prediction_files import write_prediction


def keys(root: Path) -> list[FrameKey]:
    return [folder.key(frame) for folder in scan(root) for frame in folder.frames]


def sheet_size(root: Path, key: FrameKey) -> tuple[int, int]:
    width, height = Image.open(root / f"{key}_camera0.png").size
    scale = -(-CELL_WIDTH // width)
    return image_sheet_size(width * scale, height * scale)


@pytest.mark.parametrize("command", ["pose", "frame"])
def test_a_picture_of_the_declared_size_the_same_every_time(command: str, sample_root: Path, tmp_path: Path):
    key = keys(sample_root)[-1]
    named = ["--split", key.split, "--sequence", key.scenario, "--agent", key.agent, "--frame", key.frame]
    for name in ("a.png", "b.png"):
        viz.main([command, "--dataset_root", str(sample_root), *named, "--output", str(tmp_path / name)])
    size = POSE_SIZE if command == "pose" else sheet_size(sample_root, key)
    image = Image.open(tmp_path / "a.png")
    assert image.size == size
    assert np.asarray(image).std() > 20
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_defaults_take_the_first_frame_and_a_dated_place(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "opv2v_images").symlink_to(sample_root.resolve())
    monkeypatch.chdir(tmp_path)
    viz.main(["pose", "--no-3d"])
    path = Path(capsys.readouterr().out.strip())
    key = keys(sample_root)[0]
    assert path.name == f"pose_{key.split}_{key.scenario}_{key.agent}_{key.frame}.png"
    assert path.parent.parent == Path("visualization_outputs")
    assert Image.open(path).size == POSE_SIZE


@pytest.mark.parametrize(
    "options",
    ["--max_range 15", "--camera_size 5", "--point-size 3", "--single", "--no_3d"]
    + [f"--hide {layer}" for layer in ("cloud", "boxes", "cameras", "axes", "paths", "names")],
)
def test_options_of_pose_change_the_picture(options: str, sample_root: Path, tmp_path: Path):
    images = []
    for i, extra in enumerate(([], options.split())):
        path = tmp_path / f"{i}.png"
        viz.main(["pose", "--root", str(sample_root), "--output", str(path), *extra])
        images.append(np.asarray(Image.open(path)))
    assert (images[0] != images[1]).any(axis=2).sum() > 300


def test_a_hidden_cloud_is_not_said_to_have_no_points(sample_root: Path, monkeypatch: pytest.MonkeyPatch):
    figures = []
    monkeypatch.setattr(plots, "png_bytes", lambda figure: figures.append(figure) or b"")
    monkeypatch.setattr(viz_scenes, "save", lambda args, name, data: 0)
    for options in ([], ["--hide", "cloud"]):
        viz.main(["pose", "--no_3d", "--root", str(sample_root), *options])
    shown, hidden = (" ".join(text.get_text() for text in figure.texts) for figure in figures)
    assert " points" in shown and " points" not in hidden and "km/h" in hidden


def test_the_sheet_shows_its_images_pixel_for_pixel():
    images = np.random.default_rng(0).integers(0, 255, (4, 150, 233, 3), dtype=np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(image_sheet(list(images), "abcd", "title", "note"))).convert("RGB"))
    assert sheet.shape[1::-1] == image_sheet_size(233, 150)
    for i, image in enumerate(images):
        left, top = 20 + i % 2 * (233 + 12), 90 + i // 2 * (150 + 44)
        assert (sheet[top : top + 150, left : left + 233] == image).all()


@pytest.mark.parametrize("name", ["split", "scenario", "agent", "frame"])
@pytest.mark.parametrize("command", ["pose", "frame", "boxes", "depth"])
def test_unknown_names_are_named(command: str, name: str, sample_root: Path, tmp_path: Path):
    with pytest.raises(InputError, match="777777"):
        viz.main([command, "--root", str(sample_root), f"--{name}", "777777", "--output", str(tmp_path / "a.png")])
    assert not (tmp_path / "a.png").exists()


def test_missing_and_broken_images_and_clouds(sample_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    key = keys(sample_root)[0]
    output = ["--output", str(tmp_path / "a.png")]
    command = ["frame", "--root", str(sample_root), *output]
    (sample_root / f"{key}_camera1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"camera1\.png"):
        viz.main(command)
    (sample_root / f"{key}_camera2.png").unlink()
    with pytest.raises(InputError, match=r"camera2\.png: image is missing;"):
        viz.main(command)
    (sample_root / f"{key}_camera3.png").unlink()
    with pytest.raises(InputError, match=r"camera2\.png: image is missing and 1 more"):
        viz.main(command)
    (sample_root / f"{key}.pcd").unlink()
    with pytest.raises(InputError, match=r"\.pcd"):
        viz.main(command)
    capsys.readouterr()
    viz.main(["pose", "--no-3d", "--root", str(sample_root), *output])  # boxes and cameras are still worth a picture
    assert f"{key.agent} is drawn without its cloud" in capsys.readouterr().err


def test_no_clouds_at_all(sample_root: Path, tmp_path: Path):
    for path in sample_root.rglob("*.pcd"):
        path.unlink()
    viz.main(["pose", "--root", str(sample_root), "--output", str(tmp_path / "a.png")])
    assert Image.open(tmp_path / "a.png").size == POSE_SIZE


@pytest.fixture
def prediction(sample_root: Path, tmp_path: Path) -> Path:
    return write_prediction(sample_root, tmp_path / "predicted", find_scenes(sample_root, mode="coop")[0])


def draw(path: Path, *arguments: object) -> np.ndarray:
    viz.main([*map(str, arguments), "--output", str(path)])
    return np.asarray(Image.open(path).convert("RGB"))


def test_boxes_are_the_cloud_with_boxes(sample_root: Path, tmp_path: Path):
    root = ("--dataset-root", sample_root)
    cloud = draw(tmp_path / "a.png", "cloud", *root)
    boxes = draw(tmp_path / "b.png", "boxes", *root, "--max_range", 60, "--camera_size", 2, "--no_gui")
    nameless = draw(tmp_path / "c.png", "cloud", *root, "--hide", "names")
    hidden = draw(tmp_path / "d.png", "boxes", *root, "--hide", "boxes,names", "--offscreen")
    above_the_legend = slice(0, 1000)
    assert (cloud[above_the_legend] != boxes[above_the_legend]).any(-1).sum() > 1000
    assert (nameless[above_the_legend] != hidden[above_the_legend]).any(-1).sum() <= 5


@pytest.mark.parametrize("view", ["top", "chase", "camera2", "fit"])
def test_one_view_only(view: str, sample_root: Path, tmp_path: Path):
    image = draw(tmp_path / "a.png", "boxes", "--root", sample_root, "--view", view, "--single", "--color", "agent")
    assert image.shape[1] in (1000, 1320) and image.std() > 5


def test_cloud_files_and_predictions(sample_root: Path, prediction: Path, tmp_path: Path):
    key = keys(sample_root)[0]
    files = [sample_root / f"{key}.pcd", prediction / "cloud.pcd"]
    assert draw(tmp_path / "a.png", "cloud", *files).shape[1] == 1920
    both = draw(tmp_path / "b.png", "cloud", "--root", sample_root, "--prediction", prediction)
    plain = draw(tmp_path / "c.png", "cloud", "--root", sample_root)
    assert both.shape != plain.shape or (both != plain).any()
    assert draw(tmp_path / "d.png", "cloud", "--root", tmp_path / "nowhere", "--prediction", prediction).shape[1] == 1920
    with pytest.raises(InputError, match="either cloud files or"):
        viz.main(["cloud", str(files[0]), "--prediction", str(prediction)])


def test_compare_prediction_and_files(sample_root: Path, prediction: Path, tmp_path: Path):
    data = ("compare", "--root", sample_root, "--prediction", prediction.parents[3])
    pictures = [draw(tmp_path / f"{view}.png", *data, "--view", view) for view in ("chase", "top", "camera0", "fit")]
    assert all(picture.std() > 5 for picture in pictures)
    key = keys(sample_root)[0]
    true = sample_root / f"{key}.pcd"
    files = draw(tmp_path / "f.png", "compare", "--pred_pcd", true, "--gt-pcd", true, "--max_range", 30)
    assert (files == PREDICTED).all(-1).sum() < (pictures[0] == PREDICTED).all(-1).sum()  # nothing but the legend


@pytest.mark.parametrize("options", [["--camera_size", "4"], *(["--hide", name] for name in ("cameras", "rings", "names"))])
def test_options_of_compare_change_the_picture(options: list[str], sample_root: Path, prediction: Path, tmp_path: Path):
    data = ("compare", "--root", sample_root, "--prediction", prediction)
    assert (draw(tmp_path / "a.png", *data) != draw(tmp_path / "b.png", *data, *options)).any(axis=2).sum() > 100


def test_circles_of_files_are_around_the_origin_and_those_of_a_frame_around_its_lidar(
    sample_root: Path, prediction: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    figures = []
    monkeypatch.setattr(viz_predictions, "save", lambda args, name, data: 0)
    monkeypatch.setattr(viz_predictions.canvas, "png_bytes", figures.append)
    true = str(sample_root / f"{keys(sample_root)[0]}.pcd")
    viz.main(["compare", "--pred_pcd", true, "--gt_pcd", true])
    viz.main(["compare", "--root", str(sample_root), "--prediction", str(prediction)])
    words = [" ".join(text.get_text() for text in figure.texts) for figure in figures]
    assert "distance from the origin" in words[0] and "distance from the main agent's LiDAR" in words[1]


def test_over_a_prediction_agents_do_not_have_the_colours_of_predicted_and_true(sample_root: Path, prediction: Path):
    predicted = read_prediction(prediction)
    folders = [scan_agent(sample_root, predicted.split, predicted.scenario, name) for name in predicted.agents]
    agents = read_timestamp(folders, predicted.agent, predicted.frame)
    picture = add_prediction(scene_picture(build_scene(agents), 60.0, "t"), predicted)
    assert {tuple(name.color) for name in picture.names} == {tuple(BOX_COLOR)}
    assert all(isinstance(item, Boxes) and (item.colors == BOX_COLOR).all() for item in picture.layers["boxes"])


def test_clouds_that_are_not_to_be_seen_are_said(tmp_path: Path, capsys: pytest.CaptureFixture):
    points = np.random.default_rng(0).uniform(-5, 5, (100, 3)).astype(np.float32)
    for name, cloud in {"near": points, "far": points + np.array([0, 0, 300], np.float32), "nan": points * np.nan}.items():
        (tmp_path / f"{name}.ply").write_bytes(encode_ply(cloud, np.full(cloud.shape, 200, np.uint8)))
    said = {}
    for name, *options in (("near",), ("far",), ("far", "--view", "fit"), ("nan", "--view", "fit")):
        draw(tmp_path / "a.png", "cloud", tmp_path / f"{name}.ply", "--axes", "opencv", *options)
        said[name, *options] = capsys.readouterr().err
    assert said["near",] == said["far", "--view", "fit"] == ""
    assert "0 of 100 points are in range; give --max-range 305 or --view fit" in said["far",]
    assert "nan.ply: has no points" in said["nan", "--view", "fit"]
    with pytest.raises(InputError, match=r"^no 'camera0' in this scene; it has no cameras"):
        viz.main(["cloud", str(tmp_path / "near.ply"), "--view", "camera0"])


def test_compare_says_what_is_missing(sample_root: Path, prediction: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    empty = tmp_path / "empty.ply"
    empty.write_bytes(encode_ply(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)))
    root = ["--root", str(sample_root)]
    for arguments, words in (
        ([], "what is to be compared"),
        (["--pred_pcd", "a.pcd"], "give both"),
        (["--pred_pcd", str(empty), "--gt_pcd", str(empty)], "no points to compare"),
        (["--prediction", str(tmp_path / "empty")], "no scene.json"),
        (["--prediction", str(tmp_path / "gone")], "no such folder"),
        (["--prediction", str(prediction), "--frame", "999999"], "none of its 1 scenes is of frame 999999"),
    ):
        with pytest.raises(InputError, match=words):
            viz.main(["compare", *root, *arguments])
    for path in sample_root.rglob("*.pcd"):
        path.unlink()
    with pytest.raises(InputError, match="no LiDAR point to compare with"):
        viz.main(["compare", *root, "--prediction", str(prediction)])


def test_depth_with_maps_from_the_lidar_and_predicted(
    sample_root: Path, sample_depth_root: Path, prediction: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # where no data/opv2v_depth lies
    root = ("depth", "--root", sample_root)
    lidar = draw(tmp_path / "a.png", *root)
    maps = draw(tmp_path / "b.png", *root, "--depth_root", sample_depth_root)
    predicted = draw(tmp_path / "c.png", *root, "--prediction", prediction)
    assert lidar.shape == maps.shape and (lidar != maps).any() and predicted.shape[0] > lidar.shape[0]
    for path in list(sample_depth_root.rglob("*_depth.npy")):
        write_depth_png(path.with_suffix(".png"), read_depth(path))
        path.unlink()
    pngs = draw(tmp_path / "d.png", *root, "--depth_root", sample_depth_root)
    assert (np.abs(pngs.astype(int) - maps) > 8).any(-1).mean() < 0.01
    with pytest.raises(InputError, match=r"camera0_depth\.npy"):
        viz.main(["depth", "--root", str(sample_root), "--depth_root", str(tmp_path)])


@pytest.mark.parametrize("name", ["a.gif", "a.mp4", "folder"])
def test_sequences(name: str, sample_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    options = ["--root", str(sample_root), "--view", "top", "--jobs", "1", "--width", "300", "--output", str(tmp_path / name)]
    assert viz.main(["sequence", "boxes", *options]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / name}: 2 frames")
    if name == "folder":
        frames = sorted(path.stem for path in (tmp_path / name).iterdir())
        assert frames == [key.frame for key in keys(sample_root)[:2]]
        assert Image.open(tmp_path / name / f"{frames[0]}.png").size[0] == 300
    if name == "a.gif":
        with Image.open(tmp_path / name) as gif:
            assert len(list(ImageSequence.Iterator(gif))) == 2


def test_a_sequence_is_the_same_on_two_processes(sample_root: Path, tmp_path: Path):
    for jobs in ("1", "2"):
        out = ["--output", str(tmp_path / jobs), "--jobs", jobs]
        viz.main(["sequence", "pose", "--no_3d", "--root", str(sample_root), *out])
    assert len(list((tmp_path / "1").iterdir())) == 2
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_a_killed_process_of_a_sequence_is_one_line(sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def submit(*_: object) -> Future:
        raise BrokenProcessPool

    monkeypatch.setattr(viz_sequence.ProcessPoolExecutor, "submit", submit)
    with pytest.raises(InputError, match="a process that draws was killed"):
        viz.main(["sequence", "--root", str(sample_root), "--jobs", "2", "--output", str(tmp_path / "out")])


def test_frames_of_a_sequence(sample_root: Path, tmp_path: Path):
    first = keys(sample_root)[0]
    out = ["--root", str(sample_root), "--view", "chase", "--jobs", "1", "--output", str(tmp_path / "out")]
    viz.main(["sequence", "cloud", *out, "--frame", f"{first.frame}-{first.frame}", "--width", "200"])
    assert [path.stem for path in (tmp_path / "out").iterdir()] == [first.frame]
    with pytest.raises(InputError, match="no frame '1-5'; it has 2, from"):
        viz.main(["sequence", *out, "--frame", "1-5"])


def test_a_sequence_of_a_prediction_has_the_frames_that_it_has(sample_root: Path, tmp_path: Path):
    scenes = [scene for scene in find_scenes(sample_root, mode="single") if scene.split == "validate"]
    for scene in scenes[1:]:
        write_prediction(sample_root, tmp_path / "predicted", scene)
    out = ["--root", str(sample_root), "--prediction", str(tmp_path / "predicted"), "--jobs", "1", "--width", "100"]
    viz.main(["sequence", "cloud", *out, "--output", str(tmp_path / "out")])
    main = scenes[1].main_agent
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {s.frame for s in scenes[1:] if s.main_agent == main}
    with pytest.raises(InputError, match=f"predicted: no frame '{scenes[0].frame}'; it has "):
        viz.main(["sequence", *out, "--frame", scenes[0].frame])


def test_a_sequence_has_no_window(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        viz.main(["sequence", "--window"])
    assert "unrecognized arguments: --window" in capsys.readouterr().err


def test_alone_it_draws_a_prediction_of_other_data_than_the_linked_ones(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    scene = find_scenes(sample_root, mode="single")[0]
    write_prediction(sample_root, tmp_path / "experiments" / "infer", scene)
    shutil.rmtree(sample_root / scene.split)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "opv2v_images").symlink_to(sample_root.resolve())
    monkeypatch.chdir(tmp_path)
    viz.main([])
    assert "newest prediction" in (line := capsys.readouterr().out)
    assert Path(line.split(": ")[1].strip()).name.startswith(f"cloud_{scene.split}_")


def test_alone_it_draws_what_is_newest(
    sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with pytest.raises(InputError, match="nothing to draw"):
        viz.main([])
    (work / "data").mkdir()
    (work / "data" / "opv2v_images").symlink_to(sample_root.resolve())
    folder = write_prediction(sample_root, work / "experiments" / "infer", find_scenes(sample_root, mode="single")[0])
    os.utime(folder / "scene.json", (2e9, 2e9))
    run = work / "experiments" / "opv2v_ft_stage1"
    run.mkdir()
    (run / "log.txt").write_text('{"epoch": 1, "train_loss": 2.0}\n')
    assert viz_newest.newest() == (folder.relative_to(work), "prediction")
    viz.main([])
    assert "newest prediction" in capsys.readouterr().out
    os.utime(run / "log.txt", (2.1e9, 2.1e9))
    viz.main([])
    line = capsys.readouterr().out
    assert line.startswith("newest run, experiments/opv2v_ft_stage1: ") and line.count("\n") == 1
    assert Path(line.split(": ")[1].strip()).exists()
    shutil.rmtree(work / "experiments")
    viz.main([])
    assert capsys.readouterr().out.startswith("first frame of data/opv2v_images: ")


def test_window_gets_the_layers(sample_root: Path, prediction: Path, monkeypatch: pytest.MonkeyPatch):
    from mapanything.pictures import window

    calls = []
    monkeypatch.setattr(window, "show", lambda layers, **options: calls.append((layers, options)))
    root = ["--root", str(sample_root), "--window"]
    predicted = ["--prediction", str(prediction)]
    for arguments in (["pose"], ["boxes", "--hide", "cameras"], ["cloud", *predicted], ["compare", *predicted]):
        assert viz.main([*arguments, *root]) == 0
    pose, boxes, cloud, compare = (layers for layers, _ in calls)
    assert pose["cloud"] and pose["boxes"] and any(isinstance(item, Cameras) for item in pose["cameras"])
    assert not any(isinstance(item, Cameras) for item in boxes["cameras"])
    assert cloud["ground_truth"] and compare["ground_truth"] and len(compare["cameras"]) == 2
    assert all(options["snapshot"].suffix == ".png" and options["title"] for _, options in calls)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mapanything.tools.viz", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_one_line_and_exit_code_2(sample_root: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for arguments in (
        ("frame", "--root", str(sample_root), "--output", str(tmp_path / "file" / "a.png")),
        ("pose", "--root", str(tmp_path / "nowhere")),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("error: ")
    for arguments in (("pose", "--max_range", "-1"), ("pose", "--output", "a.jpg"), ("frame", "--point_size", "2")):
        done = run(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_the_tool_imports_neither_open3d_nor_torch_for_its_help():
    code = "import sys, mapanything.tools.viz; print({'open3d', 'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.real
@pytest.mark.parametrize("command", ["pose", "frame", "cloud", "boxes", "depth"])
def test_real_frames(command: str, real_root: Path, tmp_path: Path):
    for agent in ("4279", "4288"):
        path = tmp_path / f"{agent}.png"
        viz.main([command, "--root", str(real_root), "--agent", agent, "--output", str(path)])
        size = {"pose": POSE_SIZE, "frame": image_sheet_size(800, 600)}.get(command)
        assert Image.open(path).size == size or (size is None and Image.open(path).width >= 1880)
