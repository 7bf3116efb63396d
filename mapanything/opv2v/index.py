"""The poses and cameras of a split's YAML files, in arrays: parsed once, cached, checked against the tree at each start.

Parsing a frame's YAML costs milliseconds, and a data set has tens of thousands. The index holds every pose and camera
matrix of a split in a few arrays. It is right for the tree as it is *now*: each frame's row carries the size and time of
its YAML and what files stand beside it; rows that no longer match are parsed again, the others are taken over.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapanything.errors import InputError
from mapanything.files import cache_dir, write_atomic
from mapanything.geometry import carla
from mapanything.geometry.rigid import invert
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.layout import NUM_CAMERAS, YAML, FrameKey, Selection, scan
from mapanything.processes import holding_ctrl_c

VERSION = 1  # of the cache file; a change of what parsing means must raise it
_INLINE = 64  # up to so many files, starting processes costs more than it saves


@dataclass(eq=False)
class SplitIndex:
    """Every agent-frame of one split, in the order of `layout.scan`. F frames, 4 cameras.

    Attributes:
        root, split: where it was read.
        scenario, agent, frame: (F,) names.
        bits: (F,) uint8, which files are there (layout.YAML, PCD, CAMERA).
        stamp: (F, 2) int64, size and mtime_ns of the YAML; -1 where there is none.
        lidar_pose: (F, 6), cords: (F, 4, 6), intrinsics: (F, 4, 3, 3): as stored, NaN where a camera is missing.
        error: (F,) why the YAML can't be used, '' where it can.
    """

    root: str
    split: str
    scenario: NDArray[np.str_]
    agent: NDArray[np.str_]
    frame: NDArray[np.str_]
    bits: NDArray[np.uint8]
    stamp: NDArray[np.int64]
    lidar_pose: NDArray[np.float64]
    cords: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    error: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.frame)

    def key(self, row: int) -> FrameKey:
        return FrameKey(self.split, str(self.scenario[row]), str(self.agent[row]), str(self.frame[row]))

    def world_from_lidar(self, row: int) -> NDArray[np.float64]:
        """(4, 4), OpenCV."""
        return carla.cv_pose(self.lidar_pose[row])

    def lidar_from_camera(self, row: int, main_row: int) -> NDArray[np.float64]:
        """(4 cameras, 4, 4), OpenCV: poses of `row`'s cameras in the LiDAR frame of `main_row`, same timestamp."""
        return invert(self.world_from_lidar(main_row)) @ carla.cv_pose(self.cords[row])

    def cv_intrinsics(self, row: int) -> NDArray[np.float64]:
        """(4 cameras, 3, 3), pixel centres at integer coordinates."""
        return carla.cv_intrinsics(self.intrinsics[row])


_NAMES = ("scenario", "agent", "frame")
_VALUES = ("lidar_pose", "cords", "intrinsics", "error")
_ARRAYS = tuple(f.name for f in fields(SplitIndex))[2:]


def load_index(root: Path, split: str, jobs: int = 0, progress: bool = False) -> SplitIndex:
    """The index of a split, from the cache where the cache is right, else (partly) parsed and cached.

    Args:
        jobs: processes for parsing; 0: all cores.
        progress: show a bar on stderr while parsing.

    Raises:
        InputError: no such root or split. Broken frames do not raise: see `SplitIndex.error`.
    """
    tree = _scan_tree(root, split)
    file = _cache_file(root, split)
    old = _read_cache(file, str(root), split)
    if old is not None and _same_tree(old, tree) and not (old.error != "").any():
        return old
    index = _parse_missing(tree, old, jobs, progress)
    _write_cache(file, index)
    return index


def _scan_tree(root: Path, split: str) -> SplitIndex:
    """The split as the folders show it now, nothing parsed."""
    names: list[tuple[str, str, str]] = []
    bits, stamps = [], []
    for folder in scan(root, Selection(splits=(split,))):
        for frame, frame_bits in folder.frames.items():
            stamp = (-1, -1)
            if frame_bits & YAML:
                try:
                    status = os.stat(folder.path / f"{frame}.yaml")
                    stamp = (status.st_size, status.st_mtime_ns)
                except OSError:
                    frame_bits &= ~YAML  # a dangling link, or gone since the scan
            names.append((folder.scenario, folder.agent, frame))
            bits.append(frame_bits)
            stamps.append(stamp)
    n = len(names)
    columns = np.array(names, dtype=np.str_).reshape(n, 3)
    return SplitIndex(
        root=str(root),
        split=split,
        scenario=columns[:, 0].copy(),
        agent=columns[:, 1].copy(),
        frame=columns[:, 2].copy(),
        bits=np.array(bits, dtype=np.uint8),
        stamp=np.array(stamps, dtype=np.int64).reshape(n, 2),
        lidar_pose=np.full((n, 6), np.nan),
        cords=np.full((n, NUM_CAMERAS, 6), np.nan),
        intrinsics=np.full((n, NUM_CAMERAS, 3, 3), np.nan),
        error=np.zeros(n, dtype="U1"),
    )


def _same_tree(a: SplitIndex, b: SplitIndex) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in (*_NAMES, "bits", "stamp"))


def _parse_missing(tree: SplitIndex, old: SplitIndex | None, jobs: int, progress: bool) -> SplitIndex:
    known: dict[tuple[object, ...], int] = {}
    if old is not None:
        # What failed is tried again: new permissions or a disk that is back change neither size nor time.
        known = {identity: row for row, identity in enumerate(_identities(old)) if not old.error[row]}
    sources = [known.get(identity, -1) for identity in _identities(tree)]
    errors = [""] * len(sources)
    if old is not None:
        rows = np.flatnonzero(np.array(sources, dtype=np.int64) >= 0)
        for name in _VALUES[:3]:
            getattr(tree, name)[rows] = getattr(old, name)[np.array(sources, dtype=np.int64)[rows]]
    todo = [row for row, source in enumerate(sources) if source < 0 and tree.bits[row] & YAML]
    paths = [Path(tree.root, str(tree.key(row)) + ".yaml") for row in todo]
    for row, parsed in zip(todo, _parse_all(paths, jobs, progress, tree.split), strict=True):
        tree.lidar_pose[row], tree.cords[row], tree.intrinsics[row], errors[row] = parsed
    tree.error = np.array(errors, dtype=np.str_) if errors else tree.error
    return tree


def _identities(index: SplitIndex) -> Iterator[tuple[object, ...]]:
    columns = (index.scenario, index.agent, index.frame, index.stamp[:, 0], index.stamp[:, 1])
    return zip(*(column.tolist() for column in columns), strict=True)


_Parsed = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], str]


def _parse_all(paths: list[Path], jobs: int, progress: bool, split: str) -> Iterator[_Parsed]:
    from tqdm import tqdm

    bar = tqdm(total=len(paths), desc=f"index {split}", unit="frame", disable=not progress or len(paths) <= _INLINE)
    jobs = jobs or len(os.sched_getaffinity(0))
    with bar:
        if jobs == 1 or len(paths) <= _INLINE:
            for path in paths:
                yield _parse(path)
                bar.update()
            return
        with ProcessPoolExecutor(jobs) as pool:
            try:
                with holding_ctrl_c():
                    results = pool.map(_parse, paths, chunksize=32)
                for parsed in results:
                    yield parsed
                    bar.update()
            except BrokenProcessPool as error:
                raise InputError(
                    "a process that parsed YAML was killed (out of memory?); close programs, run again"
                ) from error


def _parse(path: Path) -> _Parsed:
    lidar_pose, cords = np.full(6, np.nan), np.full((NUM_CAMERAS, 6), np.nan)
    intrinsics = np.full((NUM_CAMERAS, 3, 3), np.nan)
    try:
        frame = read_frame(path)
    except InputError as error:
        return lidar_pose, cords, intrinsics, str(error)
    for camera in frame.cameras:
        cords[camera.index], intrinsics[camera.index] = camera.cords, camera.intrinsics
    return frame.lidar_pose, cords, intrinsics, ""


def _cache_file(root: Path, split: str) -> Path:
    name = blake2b(os.fsencode(f"{root.resolve()}\0{split}"), digest_size=12).hexdigest()
    return cache_dir() / f"index-{name}.npz"


def _read_cache(file: Path, root: str, split: str) -> SplitIndex | None:
    """The cached index, or None where there is none or it can't be used: it is only a cache."""
    try:
        with np.load(file, allow_pickle=False) as data:
            if int(data["version"]) != VERSION:
                return None
            index = SplitIndex(root, split, **{name: data[name] for name in _ARRAYS})
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        if not isinstance(error, FileNotFoundError):
            _warn(f"index cache {file} can't be read ({error}); it is made again")
        return None
    except Exception as error:  # zipfile raises its own kinds for damaged archives
        _warn(f"index cache {file} is damaged ({error}); it is made again")
        return None
    return index if len({len(getattr(index, name)) for name in _ARRAYS}) == 1 else None


def _write_cache(file: Path, index: SplitIndex) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, version=VERSION, **{name: getattr(index, name) for name in _ARRAYS})
    try:
        write_atomic(file, buffer.getvalue())
    except InputError as error:  # a read-only home only costs time
        _warn(f"index is not cached: {error}")


def _warn(message: str) -> None:
    import warnings

    warnings.warn(message, stacklevel=3)
