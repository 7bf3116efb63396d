"""Generates a synthetic OPV2V data set that readers cannot tell from the real one, with dense depth beside it.

`write_sample` writes {output}/opv2v_images and {output}/opv2v_depth. The same options give the same bytes, however many
processes share the work: every random number belongs to (seed, split, scenario, frame, agent).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mapanything.arrays import npy_bytes
from mapanything.errors import InputError
from mapanything.files import read_json, write_atomic
from mapanything.geometry import carla
from mapanything.geometry.types import Floats
from mapanything.opv2v import depth_root
from mapanything.opv2v.layout import NUM_CAMERAS, SPLITS, TESTS_ONLY, DepthLayout, FrameKey, FramePaths
from mapanything.opv2v.sample.files import data_protocol, encode_pcd, encode_png, encode_yaml, frame_data
from mapanything.opv2v.sample.sensors import CAMERAS, LIDAR, mounted, pinhole_rays, render, scan
from mapanything.opv2v.sample.street import Street, make_street
from mapanything.opv2v.sample.textures import textures
from mapanything.processes import holding_ctrl_c

IMAGES, DEPTH = "opv2v_images", "opv2v_depth"
MARKER = ".generated-sample.json"
MAX_FRAMES = 200  # after 20 seconds the fastest vehicle would drive off the street's end
# Names that stand for broken recordings in the real data set; `check-data` would rightly complain about them.
_TAKEN_NAMES = {"2021_09_09_13_20_58", "2021_08_20_21_10_24", "2021_08_18_09_02_56"}


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """The data set to generate: `scenarios` of every split (or one number for each), `agents` and `frames` per scenario,
    `lidar_points` rays per sweep."""

    seed: int = 0
    splits: tuple[str, ...] = ("train", "validate", "test")
    scenarios: int | tuple[int, ...] = 2
    agents: int = 3
    frames: int = 4
    width: int = 800
    height: int = 600
    lidar_channels: int = 32
    lidar_points: int = 50_000
    depth: bool = True
    tests_only: bool = False

    def __post_init__(self) -> None:
        limits = {
            "seed": (self.seed, 0, 2**32 - 1),
            "agents": (self.agents, 2, 7),
            "frames": (self.frames, 1, MAX_FRAMES),
            "image width": (self.width, 16, 8192),
            "image height": (self.height, 16, 8192),
            "LiDAR channels": (self.lidar_channels, 1, 256),
            "LiDAR points": (self.lidar_points, self.lidar_channels * 8, 5_000_000),
        }
        counts = [("scenarios", (count, 1, 1000)) for count in self.scenarios_of_splits()]
        for name, (value, low, high) in [*counts, *limits.items()]:
            if not low <= value <= high:
                raise InputError(f"{name}: {value} is out of range; give {low} to {high}")
        unknown = [split for split in self.splits if split not in SPLITS]
        if unknown or not self.splits or len(set(self.splits)) < len(self.splits):
            raise InputError(f"splits: {','.join(self.splits) or 'none'}; give some of {', '.join(SPLITS)}, each once")
        if len(self.scenarios_of_splits()) != len(self.splits):
            given = ",".join(map(str, self.scenarios_of_splits()))
            raise InputError(f"scenarios: {given}; give one number, or one for each of {','.join(self.splits)}")

    def scenarios_of_splits(self) -> tuple[int, ...]:
        """The number of scenarios of each of `splits`."""
        return (self.scenarios,) * len(self.splits) if isinstance(self.scenarios, int) else self.scenarios


class Scenario(NamedTuple):
    """One scenario's names, decided before anything is drawn."""

    split: str
    number: int
    name: str
    agents: tuple[int, ...]
    first_frame: int

    def rng(self, seed: int, *key: int) -> np.random.Generator:
        """The random numbers that belong to `key` in this scenario, whoever draws them and when."""
        return np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(self.split), self.number, *key]))


def scenarios_of(options: SampleOptions) -> list[Scenario]:
    """Every scenario that the options ask for, in OPV2V's naming: date, actor ids, six-digit frames two apart."""
    scenarios: list[Scenario] = []
    names = set(_TAKEN_NAMES)
    for split, count in zip(options.splits, options.scenarios_of_splits(), strict=True):
        for number in range(count):
            scenario = Scenario(split, number, "", (), 0)
            rng = scenario.rng(options.seed)
            name = next(name for name in _names(rng) if name not in names)
            names.add(name)
            if number == 0:
                agents = [641 + 9 * k for k in range(options.agents)]
            else:
                agents = (rng.integers(200, 9000) + np.cumsum(rng.integers(1, 12, options.agents))).tolist()
            scenarios.append(scenario._replace(name=name, agents=tuple(agents), first_frame=int(rng.integers(30, 3200))))
    return scenarios


def _names(rng: np.random.Generator) -> Iterator[str]:
    while True:
        month, day = rng.integers(8, 10), rng.integers(1, 29)
        hour, minute, second = rng.integers(0, 24), rng.integers(0, 60), rng.integers(0, 60)
        yield f"2021_{month:02d}_{day:02d}_{hour:02d}_{minute:02d}_{second:02d}"


@lru_cache(maxsize=2)
def street_of(seed: int, scenario: Scenario) -> Street:
    """The scenario's world."""
    return make_street(scenario.rng(seed, 1), scenario.agents)


def intrinsics(width: int, height: int) -> Floats:
    """OPV2V's pinhole matrix, CARLA's convention: 100 degrees wide, principal point in the middle."""
    focal = width / (2.0 * np.tan(100.0 * np.pi / 360.0))
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def write_frame(output: Path, options: SampleOptions, scenario: Scenario, index: int) -> None:
    """Writes everything of all agents at one timestamp."""
    street = street_of(options.seed, scenario)
    world, poses = street.solids(index), street.poses(index)
    matrix = intrinsics(options.width, options.height)
    rays = pinhole_rays(carla.cv_intrinsics(matrix), options.height, options.width)
    depth_layout = DepthLayout(output / DEPTH)
    for agent in scenario.agents:
        rng = scenario.rng(options.seed, 2, index, agent)
        key = FrameKey(scenario.split, scenario.name, str(agent), f"{scenario.first_frame + 2 * index:06d}")
        paths = FramePaths(output / IMAGES, key)
        others, shadows = world.without(agent), street.shadows_at(index, agent)
        lidar, cameras = mounted(poses[agent], LIDAR), [mounted(poses[agent], rig) for rig in CAMERAS]
        sweep = scan(others, lidar, options.lidar_channels, options.lidar_points, rng)
        data = frame_data(street, index, agent, lidar, cameras, matrix, sweep.owners, rng)
        if (scenario.number + SPLITS.index(scenario.split)) % 2 == 0:  # some of the real files have the key
            data["RSU"] = False
        write_atomic(paths.yaml, encode_yaml(data), durable=False)
        write_atomic(paths.pcd, encode_pcd(sweep.points, sweep.red), durable=False)
        for k in range(NUM_CAMERAS):
            image, depth = render(street, others, shadows, cameras[k], rays, textures(options.seed))
            write_atomic(paths.image(k), encode_png(image), durable=False)
            if options.depth:
                write_atomic(depth_layout.path(key, k), npy_bytes(depth), durable=False)


def write_sample(output: Path, options: SampleOptions, jobs: int = 1, overwrite: bool = False, progress: bool = False) -> int:
    """Writes a data set below `output`.

    Args:
        jobs: processes that share the work; the bytes do not depend on it.
        overwrite: replaces a data set that this function wrote earlier; files that it did not write stay.
        progress: shows a bar on stderr.

    Returns:
        The number of agent-frames written.

    Raises:
        InputError: `output` holds something else, or can't be written.
    """
    if not 1 <= jobs <= 256:
        raise InputError(f"jobs: {jobs} is out of range; give 1 to 256")
    _prepare(output, overwrite)
    scenarios = scenarios_of(options)
    _mark(output, options, scenarios, finished=False)
    if options.depth:
        depth_root.write(output / DEPTH, depth_root.DepthRoot("rendered", "ray casting"))
    for scenario in scenarios:
        street = street_of(options.seed, scenario)
        protocol = data_protocol(scenario.name, street, scenario.agents, options.lidar_channels, options.lidar_points)
        path = output / IMAGES / scenario.split / scenario.name / "data_protocol.yaml"
        write_atomic(path, encode_yaml(protocol), durable=False)
    items = [(output, options, scenario, index) for scenario in scenarios for index in range(options.frames)]
    with tqdm(total=len(items) * options.agents, unit="frame", disable=not progress, desc="agent-frames") as bar:
        for _ in _written(items, min(jobs, len(items))):
            bar.update(options.agents)
    _mark(output, options, scenarios, finished=True)
    return len(items) * options.agents


def _written(items: list[tuple[Path, SampleOptions, Scenario, int]], jobs: int) -> Iterator[None]:
    """Writes every frame; yields after each."""
    if jobs == 1:
        for item in items:
            yield write_frame(*item)
        return
    # spawn: a forked child of a process with threads (BLAS, torch) may hang
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        with holding_ctrl_c():
            pending = [pool.submit(write_frame, *item) for item in items]
        for future in as_completed(pending):
            yield future.result()
    except BrokenProcessPool as error:
        raise InputError("a worker process died, perhaps for lack of memory; try fewer --jobs") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _mark(output: Path, options: SampleOptions, scenarios: list[Scenario], finished: bool) -> None:
    """Says in every root who made it, how, and whether all of it is there."""
    names: dict[str, list[str]] = {}
    for scenario in scenarios:
        names.setdefault(scenario.split, []).append(scenario.name)
    facts = {"generated_by": "mapanything.tools.make_sample", "options": asdict(options)}
    text = json.dumps(facts | {"scenarios": names, "finished": finished}, indent=2)
    for root in (output, output / IMAGES, output / DEPTH):
        if options.depth or root.name != DEPTH:
            write_atomic(root / MARKER, f"{text}\n".encode())
            if options.tests_only:
                write_atomic(root / TESTS_ONLY, b"Synthetic data for tests: no training run accepts this root.\n")


_OURS = re.compile(r"\d{6}(\.yaml|\.pcd|_camera[0-3]\.png|_camera[0-3]_depth\.npy)\Z|\.tmp-|data_protocol\.yaml\Z")


def _prepare(output: Path, overwrite: bool) -> None:
    """Makes sure that `output` is empty, or empties it of what an earlier run wrote."""
    try:
        if not output.exists() and not output.is_symlink():
            return
        if not output.is_dir():
            raise InputError(f"{output}: is no folder; give a new or empty one")
        if not any(output.iterdir()):
            return
        if not (output / MARKER).is_file():
            raise InputError(f"{output}: is not empty and holds no generated sample; give a new or empty folder")
        if not overwrite:
            raise InputError(f"{output}: already holds a generated sample; give --overwrite to replace it, or another folder")
        _remove_sample(output)
    except OSError as error:
        raise InputError(f"{output}: {error.strerror or error}; check the path and its permissions") from error


def _remove_sample(output: Path) -> None:
    """Deletes what the marker's run wrote, file by file; a foreign file, its folder and what is behind links stay."""
    try:
        folders = [(split, name) for split, names in read_json(output / MARKER)["scenarios"].items() for name in names]
        if not all(split in SPLITS and re.fullmatch(r"[\d_]+", name) for split, name in folders):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{output / MARKER}: is damaged, so what is ours is not known; remove the folder yourself") from error
    (output / DEPTH / depth_root.NAME).unlink(missing_ok=True)
    for root in (output / IMAGES, output / DEPTH):
        for split, name in folders:
            scenario = root / split / name
            if any(folder.is_symlink() for folder in (root, root / split, scenario)) or not scenario.is_dir():
                continue
            for agent in [path for path in scenario.iterdir() if path.is_dir() and not path.is_symlink()]:
                _remove_files(agent)
            _remove_files(scenario)
            _remove_if_empty(root / split)
        for marker in (MARKER, TESTS_ONLY):
            (root / marker).unlink(missing_ok=True)
        _remove_if_empty(root)
    (output / TESTS_ONLY).unlink(missing_ok=True)


def _remove_files(folder: Path) -> None:
    for path in list(folder.iterdir()):
        if _OURS.match(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
