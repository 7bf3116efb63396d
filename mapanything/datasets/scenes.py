"""OPV2V for training: one vehicle's views (`OPV2VDataset`), or those of all vehicles at a timestamp (`OPV2VCoopDataset`).

The world of a sample is the LiDAR frame of its main agent, OpenCV axes. No YAML is parsed here (opv2v/index.py). What a
sample is made of depends on (seed, epoch, index) alone, whatever worker makes it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mapanything.datasets.views import Augmentation, Framed, View, check_resolution, make_view
from mapanything.errors import InputError
from mapanything.geometry.types import Float
from mapanything.opv2v import depth_root as depth_roots
from mapanything.opv2v.depth import clean_depth, read_depth
from mapanything.opv2v.exclude import read_exclude
from mapanything.opv2v.index import SplitIndex, load_index
from mapanything.opv2v.layout import (
    CAMERA,
    DEPTH_PATTERN,
    NUM_CAMERAS,
    TESTS_ONLY,
    YAML,
    DepthLayout,
    FrameKey,
    FramePaths,
    agent_order,
    find_splits,
    is_folder,
    is_rsu,
)
from mapanything.opv2v.png import read_image

Scene = tuple[int, tuple[int, ...]]  # number of the split's index, rows of the agents there


@dataclass(frozen=True)
class SceneOptions:
    """The samples that a data set makes, and how.

    Attributes:
        split: one of OPV2V's, or several; None: all that are there.
        resolution: (W, H) of the views, multiples of 14.
        num_views: views of a sample; with a variable number, the most.
        allow_variable_view_count: samples may have fewer views than `num_views`, down to `min_num_views_allowed`.
        augment: colour jitter and so on, and a random choice where there is one; off for validation.
        seed: of all random choices. exclude: file that `check-data --write-exclude` wrote.
        depth_pattern: where a depth map lies below the depth root. max_scenes: keep the first so many scenes.
        allow_tests_only: accept a root that is marked as test data. mask_reach: see `make_view`.

    Raises:
        InputError: options that contradict, or no such value.
    """

    split: str | Sequence[str] | None = None
    resolution: Sequence[int] = (518, 392)
    num_views: int = NUM_CAMERAS
    allow_variable_view_count: bool = False
    min_num_views_allowed: int = 1
    augment: bool = False
    seed: int = 0
    exclude: str | Path | None = None
    depth_pattern: str = DEPTH_PATTERN
    max_scenes: int | None = None
    allow_tests_only: bool = False
    mask_reach: float | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        check_resolution(list(self.resolution))
        most, fewest = self.num_views, self.min_num_views_allowed
        if most < 1 or not 1 <= fewest <= most:
            raise InputError(f"num_views={most} and min_num_views_allowed={fewest}: need 1 <= min <= num")
        if self.seed < 0 or (self.max_scenes is not None and self.max_scenes < 1):
            raise InputError(
                f"seed={self.seed}, max_scenes={self.max_scenes}: give a seed from 0 on and a number of scenes from 1 on"
            )
        if self.mask_reach is not None and not 0 <= self.mask_reach <= 1:
            raise InputError(f"mask_reach={self.mask_reach}: give null, or a part of the images' width, from 0 to 1")

    @property
    def min_views(self) -> int:
        return self.min_num_views_allowed if self.allow_variable_view_count else self.num_views


@dataclass(frozen=True)
class CoopOptions(SceneOptions):
    """Those of `SceneOptions`, and how several vehicles make a sample.

    Attributes:
        coop_min_agents: fewest vehicles; each gives a view at least.
        coop_min_num_views: fewest views; coop_max_num_views: most, None: num_views.
        coop_main_agent: the main agent where it is there; else coop_main_agent_policy: 'first' (OpenCOOD's order, roadside
            units last) or 'random'.
        coop_single_share: of all samples of an epoch, the part that shows one vehicle alone with its four cameras, in its own
            world, as stage 1 does; every epoch other ones. Without any, several vehicles are learnt at the price of what
            was known of one (docs/opv2v_coop_training_summary.md).
    """

    num_views: int = 8
    allow_variable_view_count: bool = True
    coop_min_agents: int = 2
    coop_min_num_views: int = 8
    coop_max_num_views: int | None = 8
    coop_main_agent: str | int | None = "641"
    coop_main_agent_policy: str = "first"
    coop_single_share: float = 0.0

    def __post_init__(self) -> None:
        most = self.num_views if self.coop_max_num_views is None else min(self.num_views, self.coop_max_num_views)
        if not 1 <= self.coop_min_agents <= most:
            raise InputError(f"coop_min_agents={self.coop_min_agents}: each agent gives a view at least, and there are {most}")
        if self.coop_min_num_views > most:
            raise InputError(
                f"coop_min_num_views={self.coop_min_num_views} is more than num_views={self.num_views} or "
                f"coop_max_num_views={self.coop_max_num_views} allow"
            )
        if self.coop_main_agent_policy not in ("first", "random"):
            raise InputError(f"coop_main_agent_policy={self.coop_main_agent_policy!r}: give first or random")
        if not 0 <= self.coop_single_share < 1:
            raise InputError(f"coop_single_share={self.coop_single_share}: give a part of the samples, from 0 to less than 1")
        # What counts of both names: frozen, so set as dataclasses do it themselves.
        object.__setattr__(self, "num_views", most)
        fewest = max(self.min_num_views_allowed, self.coop_min_num_views, self.coop_min_agents)
        object.__setattr__(self, "min_num_views_allowed", fewest)
        super().__post_init__()


class OPV2VScenes(Dataset):
    """Agent-frames that can be used, whose cameras become views: common to both data sets.

    Args:
        root: image root. depth_root: depth root; None: no depth, every valid_mask is empty.

    Attributes:
        depth_kind: what the depth maps are; None: nobody knows, each is taken for what it looks like.

    Raises:
        InputError: a root or split that is not there, depth maps of two kinds, or no scene at all.
    """

    def __init__(self, root: str | Path, depth_root: str | Path | None, options: SceneOptions) -> None:
        self.root, self.options = Path(root), options
        self.depth = None if depth_root is None else DepthLayout(Path(depth_root), options.depth_pattern)
        self.resolution = check_resolution(list(options.resolution))
        self.augmentation = Augmentation() if options.augment else None
        # In shared memory, so that workers that are kept alive between epochs see a new epoch too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        if not options.allow_tests_only:
            _refuse_tests_only(self.root)
        if self.depth is not None and not is_folder(self.depth.root):
            raise InputError(f"{self.depth.root}: no such depth folder; `./invoke make-depth` makes one, `link-data` links it")
        self.depth_kind = None if self.depth is None else depth_roots.look(self.depth)
        splits = find_splits(self.root, [options.split] if isinstance(options.split, str) else options.split or ())
        self.indices: list[SplitIndex] = [load_index(self.root, name, progress=options.progress) for name in splits]
        self._cameras = [self._usable_cameras(index) for index in self.indices]
        self.scenes: list[Scene] = self._find_scenes()[: options.max_scenes]
        if not self.scenes:
            raise InputError(self._why_no_scene(splits))

    def __len__(self) -> int:
        return len(self.scenes)

    def set_epoch(self, epoch: int) -> None:
        """Random choices of the next samples belong to this epoch."""
        self._epoch.fill_(epoch)

    def scene(self, scene: int) -> Scene:
        """Whose views a sample of this scene shows."""
        return self.scenes[scene]

    def min_views(self, scene: int) -> int:
        """The fewest views that a sample of this scene can have."""
        return self.options.min_views

    def max_views(self, scene: int) -> int:
        """The most views that a sample of this scene can have."""
        index, rows = self.scene(scene)
        return min(self.options.num_views, self._num_cameras(index, rows))

    def __getitem__(self, item: int | tuple[int, int]) -> list[View]:
        """The views of a scene; `dataset[scene, num_views]` asks for a number of them, else as many as there can be."""
        scene, num_views = item if isinstance(item, tuple) else (item, None)
        fewest, most = self.min_views(scene), self.max_views(scene)
        num_views = most if num_views is None else num_views
        if not fewest <= num_views <= most:
            raise ValueError(f"scene {scene} was asked for {num_views} views; it can have {fewest} to {most}")
        rng = np.random.default_rng([self.options.seed, int(self._epoch), scene % len(self.scenes)])
        number, rows = self.scene(scene)
        agents = self._agents(number, rows, num_views, rng)
        index = self.indices[number]
        main = agents[0][0]
        views: list[View] = []
        for role, (row, cameras) in enumerate(agents):
            poses, intrinsics = index.lidar_from_camera(row, main), index.cv_intrinsics(row)
            key = index.key(row)
            for k in cameras:
                views.append(
                    {
                        **self._framed(key, k, intrinsics[k], poses[k], rng),
                        "agent": key.agent,
                        "agent_id": role,
                        "camera": f"camera{k}",
                        "instance": f"{key.agent}_{key.frame}_camera{k}",
                        "dataset": "OPV2V",
                        "is_metric_scale": True,
                        "label": str(index.key(main)),
                        "idx": (scene, len(views)),
                    }
                )
        return views

    def _framed(
        self,
        key: FrameKey,
        k: int,
        intrinsics: Float,
        pose: Float,
        rng: np.random.Generator,
    ) -> Framed:
        path = FramePaths(self.root, key).image(k)
        image = read_image(path)
        depth = None
        rendered = self.depth_kind.source == "rendered" if self.depth_kind is not None else None
        if self.depth is not None:
            depth_path = self.depth.path(key, k)
            depth = clean_depth(read_depth(depth_path))
            if depth.shape != image.shape[:2]:
                raise InputError(
                    f"{depth_path}: is {depth.shape[1]}x{depth.shape[0]} but its image {image.shape[1]}x{image.shape[0]}"
                )
        reach = self.options.mask_reach
        return make_view(image, depth, intrinsics, pose, self.resolution, self.augmentation, rng, reach, rendered)

    # What there is

    def _usable_cameras(self, index: SplitIndex) -> NDArray[np.bool_]:
        """(F, 4): cameras with pose, image and, where depth is asked for, a depth map, of frames that are not excluded."""
        images = np.stack([(index.bits & bit) != 0 for bit in CAMERA], axis=-1)
        readable = ((index.bits & YAML) != 0) & (index.error == "")
        usable = images & readable[:, None] & np.isfinite(index.cords[:, :, 0])
        kept = np.ones(len(index), dtype=bool)
        if self.options.exclude is not None:
            excluded = read_exclude(Path(self.options.exclude))
            kept = np.array([not excluded.contains(index.key(row)) for row in range(len(index))], dtype=bool)
        usable &= kept[:, None]
        faults = {
            "have no readable YAML": kept & ~readable,
            "lack an image": kept & readable & ~images.all(axis=1),
        }
        if self.depth is not None:
            depth = self._depth_there(index, usable)
            faults["lack a depth map"] = kept & (usable & ~depth).any(axis=1)
            usable &= depth
        found = [f"{int(rows.sum())} {fault}" for fault, rows in faults.items() if rows.any()]
        if found:
            warnings.warn(
                f"{self.root}/{index.split}: of {len(index)} agent-frames {', '.join(found)}; such views are left out, "
                "`./invoke check-data` names them all",
                stacklevel=4,
            )
        return usable

    def _depth_there(self, index: SplitIndex, usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        names: dict[Path, set[str]] = {}
        there = np.zeros_like(usable)
        assert self.depth is not None
        for row, k in np.argwhere(usable):
            path = self.depth.path(index.key(row), int(k))
            if path.parent not in names:
                names[path.parent] = {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
            there[row, k] = path.name in names[path.parent]
        return there

    def _num_cameras(self, index: int, rows: Sequence[int]) -> int:
        return int(self._cameras[index][list(rows)].sum())

    def _why_no_scene(self, splits: list[str]) -> str:
        frames = sum(map(len, self.indices))
        usable = sum(int(c.any(axis=1).sum()) for c in self._cameras)
        most, fewest = self.options.num_views, self.options.min_views
        return (
            f"{self.root}: no scene to train on in {', '.join(splits)}: {usable} of {frames} agent-frames are usable, and "
            f"none meets num_views={most} (at least {fewest}); `./invoke check-data` says what is wrong"
        )

    # What differs

    def _find_scenes(self) -> list[Scene]:
        raise NotImplementedError

    def _agents(
        self, index: int, rows: tuple[int, ...], num_views: int, rng: np.random.Generator
    ) -> list[tuple[int, list[int]]]:
        """The rows and their cameras that make the sample, the main agent first."""
        raise NotImplementedError

    def _pick(self, index: int, row: int, count: int, rng: np.random.Generator) -> list[int]:
        """`count` of a row's usable cameras: the first, or random ones in training; in camera order."""
        cameras = np.flatnonzero(self._cameras[index][row])
        if self.augmentation is not None and count < len(cameras):
            cameras = rng.permutation(cameras)
        return sorted(int(k) for k in cameras[:count])


class OPV2VDataset(OPV2VScenes):
    """A scene is one vehicle at one timestamp. Options: `SceneOptions`; num_views is 4 at the most."""

    def __init__(self, root: str | Path, depth_root: str | Path | None = None, **options: Any) -> None:
        super().__init__(root, depth_root, SceneOptions(**options))

    def _find_scenes(self) -> list[Scene]:
        return [
            (number, (int(row),))
            for number, cameras in enumerate(self._cameras)
            for row in np.flatnonzero(cameras.sum(axis=1) >= self.options.min_views)
        ]

    def _agents(
        self, index: int, rows: tuple[int, ...], num_views: int, rng: np.random.Generator
    ) -> list[tuple[int, list[int]]]:
        return [(rows[0], self._pick(index, rows[0], num_views, rng))]


class OPV2VCoopDataset(OPV2VScenes):
    """A scene is one timestamp with all vehicles that were there, whatever the scenario's other timestamps hold.

    Options: `CoopOptions`.
    """

    def __init__(self, root: str | Path, depth_root: str | Path | None = None, **options: Any) -> None:
        self.coop = CoopOptions(**options)
        self._num_coop, self._vehicles = sys.maxsize, []
        super().__init__(root, depth_root, self.coop)
        share = self.coop.coop_single_share
        if share:
            self._num_coop, self._vehicles = len(self.scenes), self._find_vehicles()
            num_single = round(self._num_coop * share / (1 - share))
            self.scenes += [self._vehicles[i % len(self._vehicles)] for i in range(num_single)]

    def scene(self, scene: int) -> Scene:
        if scene < self._num_coop:
            return self.scenes[scene]
        place = scene - self._num_coop + int(self._epoch) * (len(self.scenes) - self._num_coop)
        return self._vehicles[place % len(self._vehicles)]

    def min_views(self, scene: int) -> int:
        return self.options.min_views if scene < self._num_coop else NUM_CAMERAS

    def _find_vehicles(self) -> list[Scene]:
        """All vehicles of the scenes that have four cameras, shuffled, so that each epoch's are of all scenarios."""
        found = [(n, (row,)) for n, rows in self.scenes for row in rows if self._num_cameras(n, [row]) == NUM_CAMERAS]
        if not found or self.options.num_views < NUM_CAMERAS:
            raise InputError(f"{self.root}: coop_single_share: no vehicle can show {NUM_CAMERAS} views; set it to 0")
        return [found[i] for i in np.random.default_rng(self.options.seed).permutation(len(found))]

    def _find_scenes(self) -> list[Scene]:
        scenes = []
        for number, (index, cameras) in enumerate(zip(self.indices, self._cameras, strict=True)):
            timestamps: dict[tuple[str, str], list[int]] = {}
            for row in np.flatnonzero(cameras.any(axis=1)):
                timestamps.setdefault((str(index.scenario[row]), str(index.frame[row])), []).append(int(row))
            for _, rows in sorted(timestamps.items()):
                enough = len(rows) >= self.coop.coop_min_agents and self._num_cameras(number, rows) >= self.coop.min_views
                if enough:
                    scenes.append((number, tuple(sorted(rows, key=lambda r, i=index: agent_order(str(i.agent[r]))))))
        return scenes

    def _agents(
        self, index: int, rows: tuple[int, ...], num_views: int, rng: np.random.Generator
    ) -> list[tuple[int, list[int]]]:
        main = self._main_agent(index, rows, rng)
        others = [row for row in rows if row != main]
        if self.augmentation is not None:
            others = [others[i] for i in rng.permutation(len(others))]
        counts: dict[int, int] = {}
        left = num_views
        for position, row in enumerate([main, *others]):
            # Whole vehicles first, but leave one view for each further agent that the scene must have.
            owed = max(0, min(self.coop.coop_min_agents, len(rows)) - position - 1)
            counts[row] = min(self._num_cameras(index, [row]), left - owed)
            left -= counts[row]
            if left == 0:
                break
        order = [main, *(row for row in rows if row != main and row in counts)]
        return [(row, self._pick(index, row, counts[row], rng)) for row in order if counts[row] > 0]

    def _main_agent(self, index: int, rows: tuple[int, ...], rng: np.random.Generator) -> int:
        names, wanted = self.indices[index].agent, self.coop.coop_main_agent
        for row in rows:
            if wanted is not None and str(names[row]) == str(wanted):
                return row
        vehicles = [row for row in rows if not is_rsu(str(names[row]))] or list(rows)
        return vehicles[int(rng.integers(len(vehicles)))] if self.coop.coop_main_agent_policy == "random" else vehicles[0]


def _refuse_tests_only(root: Path) -> None:
    for folder in (root, root.resolve().parent):
        if (folder / TESTS_ONLY).exists():
            raise InputError(
                f"{root}: is test data ({folder / TESTS_ONLY}) and must never get into training; give the real data's root "
                "(`./invoke link-data`), or dataset=opv2v_ft_smoke to debug"
            )
