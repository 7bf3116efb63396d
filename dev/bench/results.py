"""The suite `bench results`: comparing point clouds, and what the files cost that a scene is written to.

    Chamfer, 2 x 200,000    both ways, against Open3D's own search with the points as they come
    BEV IoU                 against the cells as rows of np.unique, and as voxels of Open3D; the faster is the reference
    infer with its files    the stream of `infer`, reading and writing everything, against the network alone: the same
                            scenes, in memory already. Scenes per second with files over those without

SciPy's cKDTree is the other usual search; it is no part of the lock, so it is not here (docs/metrics.md compared it once).
Each side has to find the same numbers, else the suite fails.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from dev.bench.data import copies, own_cache, small_sample, threads
from dev.bench.model import random_network
from dev.bench.timing import Figure, compare, compare_fastest
from mapanything.evaluation.metrics import Grid, chamfer
from mapanything.inference.predict import predict_scene
from mapanything.inference.select import find_scenes, load_scene
from mapanything.inference.stream import InferenceJob, infer_here
from mapanything.models.mapanything import MapAnything
from mapanything.results.clouds import ENCODERS
from mapanything.results.record import SceneKey, Settings

Float = NDArray[np.float64]
POINTS = 200_000
SCENES = {"cuda": 48, "cpu": 8}
SIZE = {"cuda": (518, 392), "cpu": (252, 196)}  # stage 1's, and a quarter of it


def measure(rounds: int) -> tuple[list[Figure], str]:
    """The figures, and a word on the network that they were measured with."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = "mapanything" if device.type == "cuda" else "mapanything_tiny"
    predicted, true = scans(POINTS)
    figures = [distances(predicted, true, rounds), overlap(predicted, true, rounds), export(model, device, min(rounds, 5))]
    note = "" if device.type == "cuda" else "; a small network beside writers on the same cores: not the case of a GPU"
    return figures, f"{model} on {device.type}{note}"


def scans(count: int) -> tuple[Float, Float]:
    """Two clouds (N, 3) like a LiDAR's, OpenCV axes, their points in no order; the same every time."""
    rng = np.random.default_rng(0)
    angle, distance = rng.uniform(0, 2 * np.pi, (2, count)), rng.gamma(2, 12, (2, count))
    height = np.where(rng.random((2, count)) < 0.6, 1.9, rng.uniform(-4, 1.9, (2, count)))
    points = np.stack([distance * np.cos(angle), height, distance * np.sin(angle)], axis=-1)
    a, b = points + rng.normal(0, 0.1, points.shape)
    return a, b


def same(ours: float, theirs: dict[str, float]) -> None:
    for reference, value in theirs.items():
        if not np.isclose(ours, value, rtol=1e-9, atol=0):
            raise RuntimeError(f"should find the same: {value} ({reference}), here {ours}")


# Clouds


def distances(predicted: Float, true: Float, rounds: int) -> Figure:
    def ours() -> float:
        return chamfer(predicted, true, POINTS, np.random.default_rng(0))["chamfer_m"]

    reference = "Open3D's compute_point_cloud_distance"
    same(ours(), {reference: plain_chamfer(predicted, true)})
    return compare(f"Chamfer, 2 x {POINTS:,}", ours, reference, lambda: plain_chamfer(predicted, true), 1, rounds)


def plain_chamfer(predicted: Float, true: Float) -> float:
    import open3d as o3d

    a, b = (o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points)) for points in (predicted, true))
    there, back = a.compute_point_cloud_distance(b), b.compute_point_cloud_distance(a)
    return (np.asarray(there).mean().item() + np.asarray(back).mean().item()) / 2


def overlap(predicted: Float, true: Float, rounds: int) -> Figure:
    grid = Grid()
    references = {
        "cells as rows of np.unique": lambda: unique_iou(grid, predicted, true),
        "cells as Open3D's voxels": lambda: voxel_iou(grid, predicted, true),
    }
    same(grid.iou(predicted, true), {name: reference() for name, reference in references.items()})
    return compare_fastest(f"BEV IoU, 2 x {POINTS:,}", lambda: grid.iou(predicted, true), references, 1, rounds)


def unique_iou(grid: Grid, predicted: Float, true: Float) -> float:
    def cells(points: Float) -> set[tuple[int, ...]]:
        plane = np.floor((points[:, [0, 2]] + grid.extent) / grid.cell).astype(int)
        plane = plane[((plane >= 0) & (plane < 2 * grid.extent / grid.cell)).all(axis=1)]
        return set(map(tuple, np.unique(plane, axis=0).tolist()))

    a, b = cells(predicted), cells(true)
    return len(a & b) / len(a | b)


def voxel_iou(grid: Grid, predicted: Float, true: Float) -> float:
    import open3d as o3d

    extent = grid.extent

    def cells(points: Float) -> set[tuple[int, ...]]:
        flat = points * (1, 0, 1)
        flat = flat[((flat >= -extent) & (flat < extent)).all(axis=1)]
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(flat))
        voxels = o3d.geometry.VoxelGrid.create_from_point_cloud_within_bounds(
            cloud, grid.cell, np.array([-extent, -grid.cell / 2, -extent]), np.array([extent, grid.cell / 2, extent])
        )
        return {tuple(voxel.grid_index.tolist()) for voxel in voxels.get_voxels()}

    a, b = cells(predicted), cells(true)
    return len(a & b) / len(a | b)


# Files


def export(name: str, device: torch.device, rounds: int) -> Figure:
    """Every file there is, of scenes of one vehicle. The network is there already: how long it takes to load is not asked."""
    count, size = SCENES[device.type], SIZE[device.type]
    model = random_network(name, device)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        work = Path(folder)
        images, _ = copies(small_sample(work), work, count)
        with own_cache(work / "cache"):
            keys = find_scenes(images)
            settings = Settings("single", ("images",), size, "opv2v", tuple(ENCODERS), {}, {})
            amp = "bf16" if device.type == "cuda" else "fp32"
            job = InferenceJob(images, None, work / "predictions", Path("none"), amp, settings)
            scenes = [load_scene(images, None, key, size) for key in keys]

            def with_files() -> None:
                with patch.object(MapAnything, "from_pretrained", lambda *_, **__: model):
                    infer_here(job, keys, str(device), complain)

            def alone() -> None:
                for scene in scenes:
                    predict_scene(model, scene.views, settings.inputs, use_amp=amp != "fp32", amp_dtype=amp)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)

            # One thread: on a CPU the writers have the other cores then, as they have all of them beside a GPU.
            with threads(1):
                return compare(f"infer {count} scenes with files", with_files, "the network alone", alone, 0.9, rounds)


def complain(key: SceneKey, problem: str) -> None:
    if problem:
        raise RuntimeError(f"{key}: {problem}")
