"""The suite `bench data`: index, clouds, loader, projection, check-data; each beside its plain reference."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from dev.bench.timing import Figure, compare
from mapanything.datasets.opv2v import OPV2VDataset
from mapanything.datasets.views import IMAGE_MEAN, IMAGE_STD
from mapanything.geometry import carla
from mapanything.opv2v.depth import lidar_depth, read_depth, write_depth_npy
from mapanything.opv2v.frame import Frame, read_frame
from mapanything.opv2v.index import load_index
from mapanything.opv2v.layout import COMPLETE, AgentFolder, DepthLayout, scan
from mapanything.opv2v.pcd import read_pcd
from mapanything.opv2v.png import read_image
from mapanything.opv2v.yaml_file import read_yaml

COPIES = 72  # of one real frame, as links: enough that the cost of starting does not show
SKELETON = 36_000  # agent-frames of the full data set
RESOLUTION = (518, 392)


def measure(root: Path | None, rounds: int) -> tuple[list[Figure], str]:
    """The figures, and a word on the data they were measured on."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, threads(1):  # per core: what one loader process has
        work = Path(folder)
        source = "generated" if root is None else "as given by --root"
        images, depth = copies(small_sample(work) if root is None else root, work, COPIES)
        with own_cache(work / "cache"):
            return [
                _index(images, rounds),
                _cloud(images, rounds),
                _loader(images, depth, rounds),
                _projection(images, rounds),
                _deep_check(images, depth, rounds),
                _quick_check(work),
            ], source


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's threads, for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def small_sample(work: Path) -> Path:
    """The image root of two generated agent-frames."""
    from mapanything.opv2v.sample.writer import SampleOptions, write_sample

    write_sample(work / "sample", SampleOptions(splits=("train",), scenarios=1, agents=2, frames=1))
    return work / "sample" / "opv2v_images"


def _first_complete(root: Path) -> tuple[AgentFolder, str]:
    for folder in scan(root):
        for name, bits in folder.frames.items():
            if bits == COMPLETE:
                return folder, name
    from mapanything.errors import InputError

    raise InputError(f"{root}: no complete agent-frame (YAML, cloud and four images) to measure with")


def copies(root: Path, work: Path, count: int) -> tuple[Path, Path]:
    """A data set of `count` frames of one vehicle, all links to the first complete one, with depth made from its cloud."""
    folder, name = _first_complete(root)
    images, depth = work / "images", work / "depth"
    agent = Path("train/2021_01_01_00_00_00/641")
    (images / agent).mkdir(parents=True)
    frame = read_frame(folder.path / f"{name}.yaml")
    points = read_pcd(folder.path / f"{name}.pcd").points
    maps = [lidar_depth(points, camera, *camera.image_size) for camera in frame.cameras]
    suffixes = [".yaml", ".pcd", *(f"_camera{k}.png" for k in range(4))]
    for copy in range(count):
        number = f"{69 + 2 * copy:06d}"
        for suffix in suffixes:
            os.symlink((folder.path / f"{name}{suffix}").resolve(), images / agent / f"{number}{suffix}")
        for k, values in enumerate(maps):
            write_depth_npy(depth / agent / f"{number}_camera{k}_depth.npy", values)
    return images, depth


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("MAPANYTHING_CACHE")
    os.environ["MAPANYTHING_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("MAPANYTHING_CACHE")
        if before is not None:
            os.environ["MAPANYTHING_CACHE"] = before


def _frames(images: Path) -> list[Path]:
    return [folder.path / name for folder in scan(images) for name in folder.frames]


def _index(images: Path, rounds: int) -> Figure:
    files = [path.with_suffix(".yaml") for path in _frames(images)]

    def pure() -> None:
        for path in files:
            with open(path) as file:
                yaml.load(file, yaml.SafeLoader)

    load_index(images, "train")
    return compare("index load", lambda: load_index(images, "train"), "PyYAML's pure loader", pure, 50, rounds)


def _cloud(images: Path, rounds: int) -> Figure:
    import open3d

    path = _frames(images)[0].with_suffix(".pcd")
    return compare(
        "cloud read",
        lambda: read_pcd(path),
        "open3d.io.read_point_cloud",
        lambda: open3d.io.read_point_cloud(path),
        4,
        rounds,
    )


def _loader(images: Path, depth: Path, rounds: int) -> Figure:
    dataset = OPV2VDataset(images, depth, split="train", resolution=RESOLUTION)
    frames, k = _frames(images), iter(range(10**9))
    return compare(
        "loader, one sample",
        lambda: dataset[next(k) % len(dataset)],
        "PyYAML's pure loader, Pillow with Lanczos, NumPy",
        lambda: _plain_sample(frames[next(k) % len(frames)], images, depth),
        2.5,
        rounds,
    )


def _plain_sample(frame: Path, images: Path, depth: Path) -> list[dict[str, np.ndarray]]:
    """The same sample as one would write it first: parse, open, resize, crop, compute, view after view."""
    from PIL import Image

    with open(f"{frame}.yaml") as file:
        data = yaml.load(file, yaml.SafeLoader)
    world_from_lidar = carla.cv_pose(data["lidar_pose"])
    views = []
    for k in range(4):
        camera = data[f"camera{k}"]
        pose = np.linalg.inv(world_from_lidar) @ carla.cv_pose(camera["cords"])
        intrinsics = carla.cv_intrinsics(camera["intrinsic"])
        image = Image.open(f"{frame}_camera{k}.png").convert("RGB")
        z = np.load(depth / frame.relative_to(images).parent / f"{frame.name}_camera{k}_depth.npy")
        width, height = RESOLUTION
        scale = max(width / image.width, height / image.height)
        size = int(image.width * scale + 1e-6), int(image.height * scale + 1e-6)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS))[top : top + height, left : left + width]
        z = np.asarray(Image.fromarray(z).resize(size, Image.Resampling.NEAREST))[top : top + height, left : left + width]
        intrinsics[0] *= size[0] / image.width
        intrinsics[1] *= size[1] / image.height
        u, v = np.meshgrid(np.arange(width), np.arange(height))
        x, y = (u - intrinsics[0, 2] + left) / intrinsics[0, 0], (v - intrinsics[1, 2] + top) / intrinsics[1, 1]
        rays = np.stack([x, y, np.ones_like(z)], axis=-1)
        points = rays * z[..., None]
        norm = np.linalg.norm(rays, axis=-1, keepdims=True)
        img = (pixels.astype(np.float32) / 255 - np.array(IMAGE_MEAN, np.float32)) / np.array(IMAGE_STD, np.float32)
        views.append(
            {
                "img": img.transpose(2, 0, 1),
                "camera_pose": pose,
                "ray_directions_cam": (rays / norm).astype(np.float32),
                "depth_along_ray": (z[..., None] * norm).astype(np.float32),
                "pts3d_cam": points.astype(np.float32),
                "pts3d": (points @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32),
                "valid_mask": z > 0,
            }
        )
    return views


def _projection(images: Path, rounds: int) -> Figure:
    frame = _frames(images)[0]
    parsed, points = read_frame(frame.with_suffix(".yaml")), read_pcd(frame.with_suffix(".pcd")).points
    camera = parsed.cameras[0]
    return compare(
        "cloud -> depth map",
        lambda: lidar_depth(points, camera, *camera.image_size),
        "a z-buffer loop in Python",
        lambda: _loop_depth(points, parsed),
        30,
        min(rounds, 3),
    )


def _loop_depth(points: np.ndarray, frame: Frame) -> np.ndarray:
    camera = frame.cameras[0]
    width, height = camera.image_size
    matrix, k = camera.camera_from_lidar.tolist(), camera.cv_intrinsics.tolist()
    depth = np.zeros((height, width), np.float32)
    for px, py, pz in carla.cv_points(points).tolist():
        x, y, z = (row[0] * px + row[1] * py + row[2] * pz + row[3] for row in matrix[:3])
        if z >= 0.1:
            u, v = int(k[0][0] * x / z + k[0][2] + 0.5), int(k[1][1] * y / z + k[1][2] + 0.5)
            if 0 <= u < width and 0 <= v < height and (depth[v, u] == 0 or z < depth[v, u]):
                depth[v, u] = z
    return depth


def _check(*arguments: str) -> None:
    command = [sys.executable, "-m", "mapanything.tools.check_opv2v", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")


def _deep_check(images: Path, depth: Path, rounds: int) -> Figure:
    """Both inside this process, one core: the check's own start-up is not what is measured."""
    from mapanything.opv2v.check.run import CheckOptions, run_checks

    def pure() -> None:
        for path in _frames(images):
            read_yaml(path.with_suffix(".yaml"))
            read_pcd(path.with_suffix(".pcd"))
            for k in range(4):
                read_image(path.with_name(f"{path.name}_camera{k}.png"))
                read_depth(depth / path.relative_to(images).parent / f"{path.name}_camera{k}_depth.npy")

    options = CheckOptions(images, DepthLayout(depth), level="deep", progress=False)
    return compare("check-data --deep", lambda: run_checks(options), "decoding the same files only", pure, 0.85, rounds)


def _quick_check(work: Path) -> Figure:
    """A tree of the full data set's size, its files empty, cold caches where this user may drop them; goal: 20 s."""
    root = work / "skeleton"
    per_agent = 180
    for number in range(SKELETON // per_agent):
        folder = root / "train" / f"2021_01_01_00_{number // 4 // 60:02d}_{number // 4 % 60:02d}" / str(640 + number % 4)
        folder.mkdir(parents=True)
        for frame in range(per_agent):
            for suffix in (".yaml", ".pcd", "_camera0.png", "_camera1.png", "_camera2.png", "_camera3.png"):
                os.close(os.open(folder / f"{69 + 2 * frame:06d}{suffix}", os.O_CREAT | os.O_WRONLY))
    cold = _drop_caches()
    start = time.perf_counter()
    _check("--root", str(root), "--quick")
    elapsed = 1000 * (time.perf_counter() - start)
    shutil.rmtree(root)
    return Figure(
        f"check-data --quick, {'cold' if cold else 'warm'}", elapsed, f"20 s for {SKELETON} agent-frames", 20_000.0, 1
    )


def _drop_caches() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True
