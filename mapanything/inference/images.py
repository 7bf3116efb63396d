"""Photos, or un-batched views, to what `MapAnything.infer` takes: all views of one size, cameras moved with their pixels.

The size follows from the mean of the views' width / height. An image is resized to cover it (Lanczos when shrinking, bicubic
when enlarging) and cropped in the middle. What changes the pixels changes depth and camera too, by the `Framing` that
training uses; K is scaled by the ratio of the whole-pixel sizes, so that a point stays on its image content.
Of files only the headers are read first, for the common size, then they are decoded a few at a time: a folder of large photos
never lies in memory at once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mapanything.datasets.views import Framing, normalise
from mapanything.errors import InputError
from mapanything.geometry.rigid import rotation_error
from mapanything.inference.pixels import BAYER_PATTERNS, decode, image_size, images_in, path_or_pixels, to_numpy

# Width / height -> (width, height), all multiples of 14.
MAPPING_518 = {
    1.0: (518, 518),
    1.321: (518, 392),
    1.542: (518, 336),
    1.762: (518, 294),
    2.056: (518, 252),
    3.083: (518, 168),
    0.757: (392, 518),
    0.649: (336, 518),
    0.567: (294, 518),
    0.486: (252, 518),
}
RESIZE_MODES = ("fixed_mapping", "longest_side", "square", "fixed_size")
KNOWN = ("depth_z", "ray_directions", "intrinsics", "camera_poses", "is_metric_scale")
VIEW_KEYS = ("img", "data_norm_type", *KNOWN, "true_shape", "idx", "instance", "agent_id")


def load_images(
    folder_or_list: str | Path | Sequence[str | Path],
    resize_mode: str = "fixed_mapping",
    size: int | Sequence[int] | None = None,
    norm_type: str = "dinov2",
    patch_size: int = 14,
    resolution_set: int = 518,
    stride: int = 1,
    bayer_format: str | bool | None = None,
) -> list[dict[str, Any]]:
    """Images as views for `infer`.

    Args:
        folder_or_list: a folder, whose images are taken sorted by name, or the paths themselves.
        resize_mode, size, norm_type, patch_size, resolution_set: see `preprocess_inputs`.
        stride: take every so-many-th image.
        bayer_format: the files are raw mosaics; what the sensor's first two rows begin with: RGGB (True means that), BGGR,
            GRBG or GBRG.

    Returns:
        A dictionary per image: img (1, 3, H, W) float32 normalised, data_norm_type [norm_type], true_shape (1, 2) int32
        (H, W), idx, instance (idx as text).

    Raises:
        InputError: no images, a file that can't be read as one, or options that contradict.
    """
    paths = images_in(Path(folder_or_list)) if isinstance(folder_or_list, (str, Path)) else [Path(p) for p in folder_or_list]
    if not isinstance(stride, int) or stride < 1:
        raise InputError(f"stride={stride}: take every image (1), every second (2) and so on")
    pattern = ("RGGB" if bayer_format is True else bayer_format or "").upper()
    if pattern and pattern not in BAYER_PATTERNS:
        raise InputError(f"bayer_format={bayer_format!r}: give one of {', '.join(BAYER_PATTERNS)}")
    views = [{"img": path, "idx": i, "instance": str(i)} for i, path in enumerate(paths[::stride])]
    if not views:
        raise InputError("load_images: the list is empty; give at least one image")
    places = [str(view["img"]) for view in views]
    return _prepare(views, places, norm_type, pattern or None, resize_mode, size, patch_size, resolution_set)


def preprocess_inputs(
    views: Sequence[Mapping[str, Any]],
    resize_mode: str = "fixed_mapping",
    size: int | Sequence[int] | None = None,
    norm_type: str = "dinov2",
    patch_size: int = 14,
    resolution_set: int = 518,
) -> list[dict[str, Any]]:
    """Un-batched views of any size as views for `infer`, all of one size.

    Args:
        views: a dictionary per view, values as NumPy arrays, tensors or lists; absent or None: not known.
            img: (h, w, 3) RGB in 0..255 (integer or float) or 0..1 (float); or a PIL image or a path, which are turned
                upright as their EXIF entry says (the geometry is that of the upright image).
            depth_z: (h, w) or (h, w, 1) z-depth; not finite or not positive = unknown. intrinsics: (3, 3), pixel centres at
            integer coordinates; or ray_directions (h, w, 3), any length, to which a pinhole camera is fitted.
            camera_poses: (4, 4) camera-to-world, OpenCV, or (quaternion xyzw (4,), translation (3,)). is_metric_scale: bool.
            agent_id: role of the vehicle, 0 = main. idx, instance: handed on as they are.
        resize_mode: fixed_mapping (nearest of ten aspects of `resolution_set`), longest_side or square (of `size` pixels),
            fixed_size (`size` = (width, height)); sizes are rounded down to whole patches, the shorter side of longest_side
            to the nearest.

    Returns:
        A dictionary per view: img (1, 3, H, W) float32 normalised, data_norm_type [norm_type], true_shape (1, 2) int32; where
        they were given depth_z (1, H, W) float32, 0 = unknown, intrinsics (1, 3, 3), camera_poses (1, 4, 4) or ((1, 4),
        (1, 3)), is_metric_scale (1,) bool, agent_id (1,), idx, instance.

    Raises:
        InputError: names the view and the key that is wrong, or the option.
    """
    if not views:
        raise InputError("preprocess_inputs: no views; give at least one")
    places = [f"view {i}" for i in range(len(views))]
    return _prepare(views, places, norm_type, None, resize_mode, size, patch_size, resolution_set)


def target_size(
    ratio: float, resize_mode: str, size: int | Sequence[int] | None, patch_size: int, resolution_set: int
) -> tuple[int, int]:
    """The size (W, H), multiples of `patch_size`, for views of the mean width / height `ratio`; see `preprocess_inputs`."""
    if resize_mode not in RESIZE_MODES:
        raise InputError(f"resize_mode={resize_mode!r}: give one of {', '.join(RESIZE_MODES)}")
    if not isinstance(patch_size, int) or patch_size < 1:
        raise InputError(f"patch_size={patch_size}: give a positive whole number")
    if resize_mode == "fixed_mapping":
        if resolution_set != 518:
            raise InputError(f"resolution_set={resolution_set}: there is 518; for other sizes use longest_side or fixed_size")
        if 14 % patch_size:
            raise InputError(f"patch_size={patch_size}: the sizes of 518 are multiples of 14; use longest_side or fixed_size")
        return MAPPING_518[min(MAPPING_518, key=lambda key: abs(key - ratio))]
    wanted = 2 if resize_mode == "fixed_size" else 1
    sizes = (size,) if isinstance(size, int) else tuple(size or ())
    if len(sizes) != wanted or any(not isinstance(n, int) or isinstance(n, bool) or n < patch_size for n in sizes):
        form = "(width, height)" if wanted == 2 else "one number of pixels"
        raise InputError(f"size={size}: resize_mode={resize_mode} needs {form}, whole and not below {patch_size}")
    patches = [n // patch_size for n in sizes]
    if resize_mode == "square":
        patches *= 2
    elif resize_mode == "longest_side":
        short = max(1, round(patches[0] * min(ratio, 1 / ratio)))
        patches = [patches[0], short] if ratio >= 1 else [short, patches[0]]
    return patches[0] * patch_size, patches[1] * patch_size


# One view


def _prepare(
    views: Sequence[Mapping[str, Any]], places: list[str], norm_type: str, bayer: str | None, *sizing: Any
) -> list[dict[str, Any]]:
    """The views, all of the size that `target_size` has for `sizing`."""
    if norm_type != "dinov2":
        raise InputError(f"norm_type={norm_type!r}: MapAnything's image encoder takes dinov2")
    for view, place in zip(views, places, strict=True):
        _check_keys(view, place, norm_type)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # decoding releases the interpreter's lock
        images = list(pool.map(lambda view, place: path_or_pixels(view["img"], place), views, places))
        sizes = list(pool.map(lambda image: image_size(image, bayer), images))
        target = target_size(sum(w / h for w, h in sizes) / len(sizes), *sizing)
        common = (repeat(target), repeat(norm_type), repeat(bayer))
        return list(pool.map(_prepare_view, views, places, images, sizes, *common))


def _prepare_view(
    view: Mapping[str, Any],
    place: str,
    image: Path | NDArray[np.uint8],
    source: tuple[int, int],
    target: tuple[int, int],
    norm_type: str,
    bayer: str | None,
) -> dict[str, Any]:
    width, height = target
    k = _camera(view, place, source)
    framing = centred(source, target, with_camera=k is not None)
    pixels = decode(image, bayer) if isinstance(image, Path) else image
    out: dict[str, Any] = {
        "img": normalise(framing.image(pixels).float())[None],
        "data_norm_type": [norm_type],
        "true_shape": torch.tensor([[height, width]], dtype=torch.int32),
    }
    if view.get("depth_z") is not None:
        if k is None:
            raise InputError(f"{place}: depth_z needs intrinsics or ray_directions of the same view")
        depth = _numbers(view["depth_z"], f"{place}: depth_z", finite=False)
        if depth.shape not in ((source[1], source[0]), (source[1], source[0], 1)):
            raise InputError(f"{place}: depth_z has shape {depth.shape}; the image's is ({source[1]}, {source[0]})")
        depth = depth.reshape(source[1], source[0]).astype(np.float32)
        known = np.isfinite(depth) & (depth > 0)
        out["depth_z"] = torch.from_numpy(framing.depth(np.where(known, depth, np.float32(0))))[None]
    if k is not None:
        out["intrinsics"] = torch.from_numpy(framing.intrinsics(k)).float()[None]
    if view.get("camera_poses") is not None:
        out["camera_poses"] = _pose(view["camera_poses"], f"{place}: camera_poses")
    for key, kinds, kind in (("is_metric_scale", "biu", bool), ("agent_id", "iu", int)):
        if view.get(key) is not None:
            value = to_numpy(view[key], f"{place}: {key}")
            if value.size != 1 or value.dtype.kind not in kinds:
                raise InputError(f"{place}: {key} must be one {'bool' if kind is bool else 'whole number'}")
            out[key] = torch.tensor([kind(value.item())])
    return out | {key: view[key] for key in ("idx", "instance") if view.get(key) is not None}


def centred(source: tuple[int, int], target: tuple[int, int], with_camera: bool = False) -> Framing:
    """The framing of an image (w, h) that covers `target` (W, H) and is cropped in the middle, wherever the principal point.

    An odd margin is halved down, for a view with a camera to the nearest even pixel: the origin of MapAnything does so, and
    the same pixels give the same prediction.
    """
    cover = Framing.cover(source, target, np.diag([1.0, 1.0, 1.0]))
    margins = [resized - wanted for resized, wanted in zip(cover.resized, target, strict=True)]
    left, top = (round(m / 2) if with_camera else m // 2 for m in margins)
    return replace(cover, left=left, top=top)


def _check_keys(view: Mapping[str, Any], place: str, norm_type: str) -> None:
    if not isinstance(view, Mapping):
        raise InputError(f"{place}: is {type(view).__name__}; give a dictionary with img")
    unknown = [str(key) for key in view if key not in VIEW_KEYS]
    if unknown:
        raise InputError(f"{place}: unknown key {', '.join(unknown)}; there are {', '.join(VIEW_KEYS)}")
    if view.get("img") is None:
        raise InputError(f"{place}: img is missing")
    if view.get("intrinsics") is not None and view.get("ray_directions") is not None:
        raise InputError(f"{place}: give intrinsics or ray_directions, not both")
    given = view.get("data_norm_type")
    if given is not None and given not in (norm_type, [norm_type]):
        raise InputError(f"{place}: data_norm_type is {given!r}, but img is normalised here, for {norm_type!r}")


def _camera(view: Mapping[str, Any], place: str, source: tuple[int, int]) -> NDArray[np.float64] | None:
    """The camera matrix (3, 3) of the image as given."""
    if view.get("ray_directions") is not None:
        return intrinsics_from_rays(_numbers(view["ray_directions"], f"{place}: ray_directions"), source, place)
    if view.get("intrinsics") is None:
        return None
    k = _numbers(view["intrinsics"], f"{place}: intrinsics")
    if k.shape != (3, 3):
        raise InputError(f"{place}: intrinsics has shape {k.shape}; give (3, 3), without a batch axis")
    if k[0, 0] <= 0 or k[1, 1] <= 0 or not np.allclose([*k[2], k[1, 0]], [0, 0, 1, 0], atol=1e-6):
        raise InputError(f"{place}: intrinsics is no camera matrix [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels")
    return k


def intrinsics_from_rays(directions: NDArray[np.float64], source: tuple[int, int], place: str) -> NDArray[np.float64]:
    """The pinhole camera (3, 3) that fits ray directions (h, w, 3) best, by least squares over about 50 x 50 of them."""
    width, height = source
    if directions.shape != (height, width, 3):
        raise InputError(f"{place}: ray_directions has shape {directions.shape}; the image's is ({height}, {width}, 3)")
    rows, columns = np.arange(0, height, max(1, height // 50)), np.arange(0, width, max(1, width // 50))
    grid = directions[np.ix_(rows, columns)]
    if not (grid[..., 2] > 0).all():
        raise InputError(f"{place}: ray_directions must look forward (z > 0); wider cameras can't be a pinhole")
    k = np.eye(3)
    pixels = np.meshgrid(columns, rows)
    worst = 0.0
    for axis, pixel in enumerate(pixels):
        slope = (grid[..., axis] / grid[..., 2]).ravel()
        design = np.stack([slope, np.ones_like(slope)], axis=-1)
        (focal, centre), _, rank, _ = np.linalg.lstsq(design, pixel.ravel().astype(np.float64), rcond=None)
        if rank < 2 or focal <= 0:
            raise InputError(f"{place}: ray_directions do not spread over the image as a camera's do")
        k[axis, axis], k[axis, 2] = focal, centre
        worst = max(worst, float(np.abs(design @ [focal, centre] - pixel.ravel()).max()))
    if worst > 1:
        warnings.warn(f"{place}: ray_directions are off a pinhole camera's by up to {worst:.1f} px", stacklevel=2)
    return k


def _pose(value: Any, place: str) -> Tensor | tuple[Tensor, Tensor]:
    if isinstance(value, (tuple, list)) and len(value) == 2:
        quat, trans = (_numbers(part, place) for part in value)
        if quat.shape != (4,) or trans.shape != (3,):
            raise InputError(
                f"{place}: shapes {quat.shape} and {trans.shape}; give a quaternion xyzw (4,) and translation (3,)"
            )
        if not np.linalg.norm(quat) > 1e-6:
            raise InputError(f"{place}: the quaternion is zero")
        return torch.from_numpy(quat).float()[None], torch.from_numpy(trans).float()[None]
    pose = _numbers(value, place)
    if pose.shape != (4, 4):
        raise InputError(
            f"{place}: has shape {pose.shape}; give (4, 4) camera-to-world, or (quaternion (4,), translation (3,))"
        )
    if not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6) or rotation_error(pose) > 1e-2:
        raise InputError(f"{place}: is no rigid transformation [R t; 0 0 0 1]")
    return torch.from_numpy(pose).float()[None]


def _numbers(value: Any, place: str, finite: bool = True) -> NDArray[np.float64]:
    array = to_numpy(value, place)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{place}: holds {array.dtype}, no numbers")
    if finite and not np.isfinite(array).all():
        raise InputError(f"{place}: has NaN or infinite values")
    return array.astype(np.float64)
