"""Every parser of the project with small valid files of its kind, and what must hold where it takes a broken one.

A check raises InputError where the file is refused, which is fine, and anything else where something is wrong with us.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mapanything.arrays import npy_header
from mapanything.errors import InputError
from mapanything.opv2v import depth_root
from mapanything.opv2v.depth import read_depth
from mapanything.opv2v.exclude import read_exclude
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.index import load_index
from mapanything.opv2v.pcd import decode_pcd
from mapanything.opv2v.png import check_png, decode_rgb
from mapanything.pictures.cloud_files import read_cloud
from mapanything.pictures.predictions import read_prediction
from mapanything.results.record import SceneKey
from tests.helpers.file_bytes import npy_bytes, pcd_bytes, png_bytes
from tests.helpers.prediction_files import write_prediction
from tests.helpers.record_parsers import (
    any_image,
    evaluation_record,
    frame_list,
    hub_config,
    infer_record,
    sample_marker,
    small_weights,
)

SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample_opv2v" / "opv2v_images"
Check = Callable[[bytes], None]


@dataclass(frozen=True)
class Parser:
    """A parser under test. check: reads one file's bytes. own: makes its files, and the check, in an empty folder."""

    own: Callable[[Path], tuple[list[bytes], Check]]


def frame(folder: Path) -> tuple[list[bytes], Check]:
    def check(data: bytes) -> None:
        path.write_bytes(data)
        found = read_frame(path)
        assert np.isfinite(found.world_from_lidar).all() and found.plan_trajectory.shape[1:] == (3,)
        for camera in found.cameras:
            assert np.isfinite(camera.intrinsics).all() and np.isfinite(camera.camera_from_lidar).all()
            assert min(camera.image_size) > 0 and max(camera.image_size) <= 16384
        for vehicle in found.vehicles:
            assert np.isfinite(vehicle.world_from_box).all() and vehicle.half_size.shape == (3,)

    path = folder / "000069.yaml"
    return [_small_yaml()], check


def _small_yaml() -> bytes:
    """A frame of the sample with one camera and one vehicle: quick to parse 10,000 times."""
    import yaml

    content = yaml.safe_load(sorted(SAMPLE.rglob("*.yaml"))[1].read_bytes())
    content["vehicles"] = dict(list(content["vehicles"].items())[:1])
    return yaml.safe_dump({key: value for key, value in content.items() if key not in ("camera1", "camera2")}).encode()


def cloud(encoding: str) -> Parser:
    def own(folder: Path) -> tuple[list[bytes], Check]:
        path = folder / "000069.pcd"

        def check(data: bytes) -> None:
            found = decode_pcd(data, path)
            assert found.points.ndim == 2 and found.points.shape[1] == 3 and found.points.dtype == np.float32
            assert len(found.points) <= 8 * len(data)

        return [pcd_bytes(encoding)], check

    return Parser(own)


def image(folder: Path) -> tuple[list[bytes], Check]:
    """Colour images; a PNG has checksums: pixels that come out are those of a whole file."""
    originals = [png_bytes(mode) for mode in ("sub", "RGB", "L", "P", "RGBA")]
    path = folder / "000069.png"
    whole = [decode_rgb(data, path) for data in originals]

    def check(data: bytes) -> None:
        pixels = decode_rgb(data, path)
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
        assert any(np.array_equal(pixels, one) for one in whole) or has_right_checksums(data, path), "other pixels came out"

    return originals, check


def has_right_checksums(data: bytes, path: Path) -> bool:
    try:
        check_png(data, path)
    except InputError:
        return False
    return True


def depth_png(folder: Path) -> tuple[list[bytes], Check]:
    path = folder / "000069.png"
    originals = [png_bytes(mode) for mode in ("I;16", "L")]
    whole = []
    for data in originals:
        path.write_bytes(data)
        whole.append(read_depth(path))

    def check(data: bytes) -> None:
        path.write_bytes(data)
        depth = read_depth(path)
        assert depth.ndim == 2 and depth.dtype == np.float32
        assert any(np.array_equal(depth, one) for one in whole) or has_right_checksums(data, path), "another map came out"

    return originals, check


def depth_npy(folder: Path) -> tuple[list[bytes], Check]:
    def check(data: bytes) -> None:
        path.write_bytes(data)
        shape = npy_header(path).shape
        depth = read_depth(path)
        assert depth.shape == shape[:2] and depth.dtype == np.float32

    path = folder / "000069.npy"
    maps = np.linspace(0, 90, 48).reshape(6, 8)
    return [npy_bytes(maps.astype(kind)) for kind in (np.float32, np.float64, np.uint16)], check


def index_cache(folder: Path) -> tuple[list[bytes], Check]:
    """It is only a cache, with checksums: whatever happens to it, what comes out is what the YAML files say."""
    import os

    os.environ["MAPANYTHING_CACHE"] = str(folder / "cache")
    agent = folder / "root" / "train" / "2021_08_16_22_26_54" / "641"
    agent.mkdir(parents=True)
    for number in (68, 70):
        (agent / f"{number:06}.yaml").write_bytes(_small_yaml())
    right = load_index(folder / "root", "train", jobs=1)
    [file] = (folder / "cache").iterdir()

    def check(data: bytes) -> None:
        file.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load_index(folder / "root", "train", jobs=1)
        for name in ("frame", "bits", "stamp", "lidar_pose", "cords", "intrinsics", "error"):
            equal_nan = getattr(right, name).dtype.kind == "f"
            assert np.array_equal(getattr(found, name), getattr(right, name), equal_nan=equal_nan), name

    return [file.read_bytes()], check


def exclude(folder: Path) -> tuple[list[bytes], Check]:
    def check(data: bytes) -> None:
        path.write_bytes(data)
        for parts in read_exclude(path).entries:
            assert 2 <= len(parts) <= 4 and ".." not in parts

    path = folder / "exclude.txt"
    return [b"# a list\ntrain/2021_08_16_22_26_54/641/000069  # no image\nvalidate/b\r\ntest/a/641\n"], check


def depth_json(folder: Path) -> tuple[list[bytes], Check]:
    def check(data: bytes) -> None:
        (folder / depth_root.NAME).write_bytes(data)
        found = depth_root.read(folder)
        assert found is not None and found.source in depth_root.SOURCES and "\n" not in str(found)

    depth_root.write(folder, depth_root.DepthRoot("fused", "visible", {"jump": 0.3, "sides": 2, "word": "a b"}, version=3))
    return [(folder / depth_root.NAME).read_bytes()], check


def cloud_file(kind: str) -> Parser:
    def own(folder: Path) -> tuple[list[bytes], Check]:
        from mapanything.results.clouds import encode_glb, encode_ply

        points = np.linspace(-9, 9, 90, dtype=np.float32).reshape(30, 3)
        colours = np.arange(90, dtype=np.uint8).reshape(30, 3)
        if kind == "glb":
            originals = [encode_glb(points, colours)]
        else:
            head = (
                b"ply\nformat ascii 1.0\nelement vertex 30\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
            )
            text = io.BytesIO()
            np.savetxt(text, points, "%.6g")
            originals = [encode_ply(points, colours), head + text.getvalue()]
        path = folder / f"cloud.{kind}"

        def check(data: bytes) -> None:
            path.write_bytes(data)
            found, paint = read_cloud(path)
            assert found.ndim == 2 and found.shape[1] == 3 and found.dtype == np.float32 and len(found) <= len(data)
            assert paint is None or (paint.shape == found.shape and paint.dtype == np.uint8)

        return originals, check

    return Parser(own)


def prediction(name: str) -> Parser:
    def own(folder: Path) -> tuple[list[bytes], Check]:
        source = next(SAMPLE.glob("train/*/641/*.yaml"))
        key = SceneKey("train", source.parents[1].name, source.stem, ("641",), ((0, 1),))
        scene = write_prediction(SAMPLE, folder / "out", key)
        path = scene / name

        def check(data: bytes) -> None:
            path.write_bytes(data)
            found = read_prediction(scene)
            assert found.cloud.points.shape[1] == 3 and found.agent == found.agents[0]
            for view in found.views:
                assert view.folder.parent == scene and view.folder != scene
                depth = None
                with suppress(InputError):
                    depth = view.depth()
                assert depth is None or depth.shape == view.size[::-1]

        return [path.read_bytes()], check

    return Parser(own)


def checkpoint(kind: str) -> Parser:
    """Weights taken of a .pth must be those that were written; safetensors has no checksums."""

    def own(folder: Path) -> tuple[list[bytes], Check]:
        import torch
        from safetensors.torch import save_file

        from mapanything.models.weights.copying import Copying
        from mapanything.models.weights.read import read_checkpoint
        from mapanything.train.checkpoints import find_damage, read

        tensors = small_weights()
        path = folder / f"checkpoint-last.{kind}"
        if kind == "pth":
            torch.save({"model": tensors, "position": {"epoch": 3}, "format": 1}, path)
        else:
            save_file(tensors, path)

        def check(data: bytes) -> None:
            path.write_bytes(data)
            if kind == "pth" and find_damage(path) is None:
                whole = read(path)["model"]
                assert whole.keys() == tensors.keys() and all(torch.equal(whole[name], tensors[name]) for name in tensors)
            checkpoint = read_checkpoint(path)
            copying = Copying(checkpoint)
            for name, tensor in checkpoint.tensors.items():
                copying.copy(name, target := torch.empty_like(tensor))
                assert kind != "pth" or torch.equal(target, tensors[name]), f"another {name} came out"

        return [path.read_bytes()], check

    return Parser(own)


def run_files(name: str) -> Parser:
    """A run's files, as `./invoke runs` and a resumed run read them: whatever lies there, both go on."""

    def own(folder: Path) -> tuple[list[bytes], Check]:
        from omegaconf import OmegaConf

        from mapanything.tools.runs import table
        from mapanything.train import logs
        from mapanything.train.runs import find_runs

        entry = {"epoch": 1, "train_loss": 0.5, "validate_loss": 0.25, "seconds": 3.5, "best": True}
        status = {"state": "failed", "stage": 1, "epoch": 0.5, "epochs": 2, "reason": "x", "time": "2026-01-01T00:00:00"}
        contents = {
            "log.txt": "".join(json.dumps(entry | {"epoch": n}) + "\n" for n in (1, 2, 3)),
            "status.json": json.dumps(status, indent=1),
            "manifest.json": json.dumps({"starts": [{"started": "2026-01-01"}]}),
        }
        for file, text in contents.items():
            (folder / file).write_text(text)

        def check(data: bytes) -> None:
            (folder / name).write_bytes(data)
            runs = find_runs(folder)
            json.dumps(runs)
            assert len(table(runs)) == 1 + len(runs) == 2
            logs.forget_epochs(folder, 2)
            logs.write_status(folder, state="running")
            logs.write_manifest(folder, OmegaConf.create({}), {})
            assert json.loads((folder / "manifest.json").read_text())["starts"]

        return [contents[name].encode()], check

    return Parser(own)


PARSERS = {
    "yaml": Parser(frame),
    "pcd_ascii": cloud("ascii"),
    "pcd_binary": cloud("binary"),
    "pcd_compressed": cloud("binary_compressed"),
    "image_png": Parser(image),
    "depth_png": Parser(depth_png),
    "depth_npy": Parser(depth_npy),
    "index_cache": Parser(index_cache),
    "exclude": Parser(exclude),
    "depth_json": Parser(depth_json),
    "ply": cloud_file("ply"),
    "glb": cloud_file("glb"),
    "scene_json": prediction("scene.json"),
    "poses_json": prediction("poses.json"),
    "prediction_depth": prediction("641_camera0/depth.npy"),
    "prediction_mask": prediction("641_camera0/mask.npy"),
    "prediction_cloud": prediction("cloud.pcd"),
    "frame_list": Parser(frame_list),
    "any_image": Parser(any_image),
    "evaluation_record": Parser(evaluation_record),
    "infer_record": Parser(infer_record),
    "sample_marker": Parser(sample_marker),
    "hub_config": Parser(hub_config("config.json")),
    "hub_index": Parser(hub_config("model.safetensors.index.json")),
    "checkpoint_pth": checkpoint("pth"),
    "checkpoint_safetensors": checkpoint("safetensors"),
    "run_log": run_files("log.txt"),
    "run_status": run_files("status.json"),
    "run_manifest": run_files("manifest.json"),
}
