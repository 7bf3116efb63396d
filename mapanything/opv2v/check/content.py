"""Checks the files of an agent-frame: their headers (standard), their content (deep). Every file is read once.

A problem is named where it arises and nowhere else: what depends on a file that is known to be wrong is not checked.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapanything.arrays import npy_header
from mapanything.errors import InputError
from mapanything.geometry import carla
from mapanything.geometry.camera import project
from mapanything.geometry.rigid import invert, rotation_error, transform
from mapanything.geometry.zbuffer import MIN_DEPTH
from mapanything.opv2v.check.hidden import Labels, count_hidden, other_vehicles
from mapanything.opv2v.check.report import Problem
from mapanything.opv2v.depth import MAX_DEPTH, read_depth
from mapanything.opv2v.frame import Camera, Frame, read_frame
from mapanything.opv2v.layout import CAMERA, PCD, YAML, DepthLayout, FrameKey, FramePaths
from mapanything.opv2v.pcd import PointCloud, check_body, decode_pcd, parse_header
from mapanything.opv2v.png import PngInfo, check_png, decode_rgb, read_bytes

MAX_FILE_BYTES = 1 << 30  # a hundred times the largest real file: never read what can't be one
MAX_BLIND_PIXELS = 16_000_000  # decoded where no intrinsics say how large an image should be
POSE_TOLERANCE = 1e-6  # metres and matrix entries; the released data agree to 1.1e-13
RANGE = (0.5, 200.0)  # metres; OPV2V's points lie at 1.75 to 119.96
MIN_COMMON_PIXELS = 50
MAX_DEPTH_DEVIATION = 0.03  # of depth / LiDAR from 1: the median's, and the median of all (that one grows with pixels)
OPV2V_FOCAL_LENGTH = 335.0  # pixels
COMPARED_POINTS = 2000  # about 300 to 500 of them fall into one camera
MIN_VEHICLES = 3  # to judge a cloud by the vehicles it hits
MIN_HIT_SHARE = 0.8  # real clouds hit every listed vehicle; rotated by 5° or mirrored ones 15 to 75 %
BOX_MARGIN = 0.1  # metres
FEW_POINTS = 8  # every eighth point
SAME_PLACE = 1e-3  # metres between two agents' entries of one vehicle; 0 in the released data


@dataclass(frozen=True, slots=True)
class Context:
    """The data to look at, and how deep."""

    root: Path
    depth: DepthLayout | None
    deep: bool


@dataclass(frozen=True, slots=True)
class FrameFiles:
    """An agent-frame, and the bits of the files and depth maps that are there."""

    key: FrameKey
    bits: int
    depth_bits: int


class _Findings:
    """Collects the problems of one agent-frame."""

    def __init__(self, key: FrameKey) -> None:
        self.key = key
        self.problems: list[Problem] = []

    def add(self, kind: str, message: str, path: Path | None = None, root: Path | None = None) -> None:
        file = os.path.relpath(path, root) if path and root else ""
        key = self.key
        self.problems.append(Problem(key.split, key.scenario, key.agent, key.frame, file, kind, message))

    def add_error(self, kind: str, error: InputError, path: Path, root: Path) -> None:
        """An error's message without the file's name: the problem carries that, relative to the root."""
        name = " ".join(f"{path}:".split())
        # Pillow calls broken images OSError too, but without an errno.
        unreadable = getattr(error.__cause__, "errno", None) is not None
        self.add("unreadable" if unreadable else kind, str(error).removeprefix(name).strip(), path, root)


def check_timestamp(context: Context, agents: Iterable[FrameFiles], labels: Labels | None = None) -> list[Problem]:
    """The problems in what all agents have at one timestamp; deep, depth labels are counted into `labels`."""
    found = {files: _Findings(files.key) for files in agents}
    frames: dict[FrameKey, Frame] = {}
    right: dict[FrameKey, Frame] = {}
    for files, findings in found.items():
        with _naming(files.key):
            frame = _check_yaml(FramePaths(context.root, files.key), files, findings)
        if frame is not None:
            frames[files.key] = frame
            if not findings.problems:
                right[files.key] = frame
    for files, findings in found.items():
        with _naming(files.key):
            _check_files(context, files, frames.get(files.key), right, findings, labels)
    problems = [problem for findings in found.values() for problem in findings.problems]
    return problems + (_vehicles_differ(frames) if context.deep else [])


@contextlib.contextmanager
def _naming(key: FrameKey) -> Iterator[None]:
    """Lets a bug of ours say which frame shows it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while checking {key}")
        raise


def _check_files(
    context: Context,
    files: FrameFiles,
    frame: Frame | None,
    right: Mapping[FrameKey, Frame],
    findings: _Findings,
    labels: Labels | None,
) -> None:
    """Everything but the YAML. `right`: the frames of this timestamp whose poses are."""
    paths = FramePaths(context.root, files.key)
    poses_are_right = files.key in right
    cameras = {camera.index: camera for camera in frame.cameras} if frame else {}
    cloud = _check_cloud(context, paths, findings) if files.bits & PCD else None
    if frame is None or not poses_are_right:
        cloud = None  # there is nothing to hold it against
    elif cloud is not None and not _hits_vehicles(frame, cloud.points):
        findings.add("cloud-misplaced", _miss_message(frame, cloud.points), paths.pcd, context.root)
        cloud = None
    for k, bit in enumerate(CAMERA):
        camera = cameras.get(k)
        info = _check_image(context, paths.image(k), camera, findings) if files.bits & bit else None
        if files.depth_bits & bit and context.depth is not None:
            # Where image and intrinsics differ, that is a problem of its own: a depth map may fit either.
            sizes = {camera.image_size} if camera else set()
            sizes |= {(info.width, info.height)} if info else set()
            path = context.depth.path(files.key, k)
            depth = _check_depth(context, path, sizes, camera, cloud, findings)
            if labels is None or depth is None or camera is None or not poses_are_right:
                continue
            if camera.image_size == (depth.shape[1], depth.shape[0]):
                name = os.path.relpath(path, context.depth.root)
                labels.add(count_hidden(depth, camera, other_vehicles(right, files.key), name))


def _check_yaml(paths: FramePaths, files: FrameFiles, findings: _Findings) -> Frame | None:
    if not files.bits & YAML:
        return None
    path, root = paths.yaml, paths.root
    try:
        frame = read_frame(path)
    except InputError as error:
        findings.add_error("corrupt-yaml", error, path, root)
        return None
    missing = sorted(set(range(len(CAMERA))) - {camera.index for camera in frame.cameras})
    if missing:
        findings.add("missing-camera", f"has no {', '.join(f'camera{k}' for k in missing)}", path, root)
    _check_extrinsics([camera for camera in frame.cameras if camera.extrinsic is not None], path, root, findings)
    return frame


def _check_extrinsics(cameras: list[Camera], path: Path, root: Path, findings: _Findings) -> None:
    if not cameras:
        return
    stored = np.array([camera.extrinsic for camera in cameras])
    computed = np.array([camera.camera_from_lidar for camera in cameras])
    errors = np.abs(carla.cv_from_ue(stored) - computed).max(axis=(1, 2))
    if errors.max() <= POSE_TOLERANCE:
        return  # equal to a rigid transformation, so it is one
    bad = [camera.name for camera, matrix in zip(cameras, stored, strict=True) if not _is_rigid(matrix)]
    if bad:
        findings.add("bad-rotation", f"extrinsic of {', '.join(bad)} is no rotation and translation", path, root)
    off = {camera.name: error for camera, error in zip(cameras, errors, strict=True) if camera.name not in bad}
    off = {name: error for name, error in off.items() if error > POSE_TOLERANCE}
    if off:
        message = f"{', '.join(off)}: extrinsic is off by up to {max(off.values()):.3g} from cords and lidar_pose"
        findings.add("extrinsic-differs", message, path, root)


def _is_rigid(matrix: NDArray[np.float64]) -> bool:
    return rotation_error(matrix) <= POSE_TOLERANCE and np.array_equal(matrix[3], [0, 0, 0, 1])


def _read(path: Path) -> bytes:
    size = os.stat(path).st_size
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path}: has {size >> 20} MB, no frame's file is that large; restore the file")
    return read_bytes(path)


def _check_cloud(context: Context, paths: FramePaths, findings: _Findings) -> PointCloud | None:
    """The cloud where it was decoded and is right."""
    path, root = paths.pcd, context.root
    try:
        data = _read(path)
        header = parse_header(data, path)
        cloud = decode_pcd(data, path) if context.deep else check_body(data, header, path)
    except (InputError, OSError) as error:
        findings.add_error("corrupt-cloud", _as_input_error(error, path), path, root)
        return None
    if header.num_points == 0:
        findings.add("empty-cloud", "holds no point", path, root)
        return None
    if cloud is None:
        return None
    points = cloud.points
    finite = np.asarray(np.isfinite(points).all(axis=1))
    if not finite.all():
        message = f"{np.count_nonzero(~finite)} of {len(finite)} points are NaN or infinite, as where no echo came"
        findings.add("no-echo", message, path, root)
        points = points[finite]
    squared = np.einsum("ij,ij->i", points, points)
    outside = np.count_nonzero((squared < RANGE[0] ** 2) | (squared > RANGE[1] ** 2))
    if outside:
        findings.add("bad-points", f"{outside} points lie outside {RANGE[0]:g} to {RANGE[1]:g} m", path, root)
        return None
    return PointCloud(points, None)


def _as_input_error(error: InputError | OSError, path: Path) -> InputError:
    if isinstance(error, InputError):
        return error
    wrapped = InputError(f"{path}: {error.strerror or error}")
    wrapped.__cause__ = error
    return wrapped


def _check_image(context: Context, path: Path, camera: Camera | None, findings: _Findings) -> PngInfo | None:
    root = context.root
    try:
        data = _read(path)
        info = check_png(data, path)
        if camera is not None and (info.width, info.height) != camera.image_size:
            width, height = camera.image_size
            message = f"is {info.width}x{info.height} where the intrinsics stand for {width}x{height}"
            findings.add("image-size", message, path, root)
        elif context.deep and (camera is not None or info.width * info.height <= MAX_BLIND_PIXELS):
            pixels = decode_rgb(data, path)
            # A coarse grid tells nearly every image apart from a blank one.
            if (pixels[::64, ::64] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():
                findings.add("blank-image", f"every pixel is {pixels[0, 0].tolist()}", path, root)
    except (InputError, OSError) as error:
        findings.add_error("corrupt-image", _as_input_error(error, path), path, root)
        return None
    return info


def _check_depth(
    context: Context,
    path: Path,
    sizes: set[tuple[int, int]],
    camera: Camera | None,
    cloud: PointCloud | None,
    findings: _Findings,
) -> NDArray[np.float32] | None:
    """The map where it was decoded and its values are right."""
    assert context.depth is not None
    root = context.depth.root
    depth: NDArray[np.float32] | None = None
    try:
        if os.stat(path).st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: has over {MAX_FILE_BYTES >> 20} MB, no depth map is that large; make it again")
        if context.deep:
            depth = read_depth(path)
            height, width = depth.shape
        elif path.suffix == ".png":
            info = check_png(read_bytes(path), path)
            height, width = info.height, info.width
        else:
            shape, dtype, *_ = npy_header(path)
            shape = shape[:2] if len(shape) == 3 and shape[-1] == 1 else shape
            if len(shape) != 2 or dtype.kind not in "fiu":
                raise InputError(f"{path}: holds {dtype} of shape {shape}; a depth map is (H, W) of numbers")
            height, width = shape
    except (InputError, OSError) as error:
        findings.add_error("corrupt-depth", _as_input_error(error, path), path, root)
        return None
    if sizes and (width, height) not in sizes:
        image = " or ".join(f"{w}x{h}" for w, h in sorted(sizes))
        findings.add("depth-size", f"is {width}x{height} where the image is {image}", path, root)
    elif depth is not None and _depth_values_are_right(depth, path, root, findings):
        if camera is not None and cloud is not None and camera.image_size == (width, height):
            message = _depth_differs(depth, camera, cloud)
            if message:
                findings.add("depth-differs", message, path, root)
        return depth
    return None


def _depth_values_are_right(depth: NDArray[np.float32], path: Path, root: Path, findings: _Findings) -> bool:
    low, high = (depth.min(), depth.max()) if depth.size else (0, 0)
    if low == high == 0:
        findings.add("blank-depth", "no pixel is known", path, root)
        return False
    if low >= 0 and high <= MAX_DEPTH:  # NaN compares false
        return True
    finite = np.isfinite(depth)
    counts = {
        "NaN or infinite": np.count_nonzero(~finite),
        "negative": np.count_nonzero(depth[finite] < 0),
        f"beyond {MAX_DEPTH:g} m": np.count_nonzero(depth[finite] > MAX_DEPTH),
    }
    message = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    findings.add("bad-depth", f"of {depth.size} pixels {message}", path, root)
    return False


def _depth_differs(depth: NDArray[np.float32], camera: Camera, cloud: PointCloud) -> str:
    """Says what is wrong, or "". Occlusion, sky and moving parts touch few pixels: the median does not see them."""
    height, width = depth.shape
    points = carla.cv_points(cloud.points[:: max(1, len(cloud.points) // COMPARED_POINTS)])
    uv, measured = project(transform(camera.camera_from_lidar, points), camera.cv_intrinsics)
    column, row = np.floor(uv + 0.5).T
    inside = (measured >= MIN_DEPTH) & (column >= 0) & (column < width) & (row >= 0) & (row < height)  # NaN: false
    # Not through the z-buffer: so few points share hardly a pixel.
    stored = depth[row[inside].astype(np.int64), column[inside].astype(np.int64)]
    known = (stored > 0) & (stored < MAX_DEPTH)
    if np.count_nonzero(known) < MIN_COMMON_PIXELS:
        return ""
    ratio = stored[known] / measured[inside][known]
    off, factor = np.median(np.abs(ratio - 1)), np.median(ratio)
    # A pixel of a small image covers metres of road, so that its depth and a point's differ without either being wrong.
    coarseness = max(1.0, OPV2V_FOCAL_LENGTH / camera.intrinsics[0, 0])
    if abs(factor - 1) <= MAX_DEPTH_DEVIATION and off <= MAX_DEPTH_DEVIATION * coarseness:
        return ""
    return f"off by {off:.1%} in the median ({factor:.3g} times the LiDAR's) at {len(ratio)} pixels"


def _hits_vehicles(frame: Frame, points: NDArray[np.float32]) -> bool:
    """True if the cloud holds points of enough listed vehicles: a vehicle is listed because the LiDAR hit it."""
    if len(frame.vehicles) < MIN_VEHICLES:
        return True
    allowed = max(1, int(len(frame.vehicles) * (1 - MIN_HIT_SHARE)))
    return _count_misses(frame, points, stop_after=allowed) <= allowed


def _miss_message(frame: Frame, points: NDArray[np.float32]) -> str:
    misses = _count_misses(frame, points, stop_after=len(frame.vehicles))
    return f"has no point in {misses} of the {len(frame.vehicles)} vehicles that its YAML lists as hit"


def _count_misses(frame: Frame, points: NDArray[np.float32], stop_after: int) -> int:
    """Vehicles without a point, counted until there are more than `stop_after`."""
    lidar_from_world = invert(frame.world_from_lidar)
    points = np.asfortranarray(points)  # x, y and z each in a row of memory
    few = np.asfortranarray(points[::FEW_POINTS])  # most vehicles are near enough to be found among these
    misses = 0
    for vehicle in frame.vehicles:
        lidar_from_box = lidar_from_world @ vehicle.world_from_box
        half_size = vehicle.half_size + BOX_MARGIN
        misses += not (_is_hit(lidar_from_box, half_size, few) or _is_hit(lidar_from_box, half_size, points))
        if misses > stop_after:
            break
    return misses


def _is_hit(lidar_from_box: NDArray[np.float64], half_size: NDArray[np.float64], points: NDArray[np.float32]) -> bool:
    """True if a point (UE axes) lies in a box (OpenCV axes)."""
    x, _, z = lidar_from_box[:3, 3].astype(np.float32)  # OpenCV: x is right, z is forward
    reach = np.float32(np.linalg.norm(half_size))
    near = np.flatnonzero(np.abs(points[:, 0] - z) <= reach)
    near = near[np.abs(points[near, 1] - x) <= reach]
    local = (carla.cv_points(points[near]) - lidar_from_box[:3, 3]) @ lidar_from_box[:3, :3]
    return bool((np.abs(local) <= half_size).all(axis=1).any())


def _vehicles_differ(frames: dict[FrameKey, Frame]) -> list[Problem]:
    """Agents are synchronous: a vehicle that two of them list is at one place. Names the agent that the others outvote,
    or both where there is no majority."""
    conflicts: dict[tuple[FrameKey, FrameKey], str] = {}
    places = {key: {v.id: v.world_from_box[:3, 3] for v in frame.vehicles} for key, frame in frames.items()}
    for a, b in combinations(places, 2):
        common = places[a].keys() & places[b].keys()
        gaps = {vehicle: float(np.abs(places[a][vehicle] - places[b][vehicle]).max()) for vehicle in common}
        far = {vehicle: gap for vehicle, gap in gaps.items() if gap > SAME_PLACE}
        if far:
            worst = max(far, key=lambda vehicle: far[vehicle])
            conflicts[a, b] = f"{len(far)} of {len(common)} common vehicles differ, {worst} by {far[worst]:.3g} m"
    problems = []
    while conflicts:
        (worst_key, count), *others = Counter(key for pair in conflicts for key in pair).most_common()
        guilty = [worst_key] if count > 1 and (not others or others[0][1] < count) else list(next(iter(conflicts)))
        for key in guilty:
            pair = next(pair for pair in conflicts if key in pair)
            other = pair[0] if pair[1] == key else pair[1]
            message = f"against agent {other.agent}: {conflicts[pair]}"
            file = f"{key.split}/{key.scenario}/{key.agent}/{key.frame}.yaml"
            problems.append(Problem(*_parts(key), file, "vehicle-differs", message))
        conflicts = {pair: text for pair, text in conflicts.items() if not set(guilty) & set(pair)}
    return problems


def _parts(key: FrameKey) -> tuple[str, str, str, str]:
    return key.split, key.scenario, key.agent, key.frame
