"""Pixels of photos and arrays: whatever shows an image, as (h, w, 3) uint8 RGB.

EXIF orientation is applied; float arrays may be in 0..1 or 0..255; raw mosaics of a sensor become RGB.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from mapanything.errors import InputError
from mapanything.opv2v.png import pillow_words, read_bytes

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
BAYER_PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # EXIF: the values that swap width and height


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name; none is an InputError."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}; give a folder of images or a list of them") from error
    if not paths:
        raise InputError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def path_or_pixels(value: Any, place: str) -> Path | NDArray[np.uint8]:
    """An image in memory as (h, w, 3) uint8 RGB; a file stays a path, to be decoded when it is its turn."""
    if isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(value, Image.Image):
        try:
            return _upright(value)
        except OSError as error:
            raise InputError(f"{place}: img can't be decoded ({error})") from error
    array = to_numpy(value, f"{place}: img")
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(f"{place}: img has shape {array.shape}; give (height, width, 3) RGB, without a batch axis")
    if array.dtype == np.uint8:
        return np.require(array, requirements=["C", "W"])  # torch takes no read-only memory without a warning
    if array.dtype.kind not in "iuf":
        raise InputError(f"{place}: img holds {array.dtype}; give uint8, or floats in 0..1 or 0..255")
    lowest, highest = float(array.min()), float(array.max())
    if not np.isfinite([lowest, highest]).all():
        raise InputError(f"{place}: img has NaN or infinite values")
    if lowest < -0.1 or highest > 256:
        raise InputError(
            f"{place}: img ranges from {lowest:.3g} to {highest:.3g}; give 0..255 or 0..1, not an image that is normalised"
        )
    # A little above 1 is what a resize overshoots, not an image of 0..255 that is black.
    factor = 255 if array.dtype.kind == "f" and highest <= 1.5 else 1
    return np.clip(np.rint(array.astype(np.float32) * factor), 0, 255).astype(np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, bytes]]:
    """The image of a file and the file's bytes; what is wrong with the file is an InputError that names it."""
    data = read_bytes(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image, data
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: can't be decoded ({pillow_words(error)}); give a PNG or JPEG image") from error


def image_size(image: Path | NDArray[np.uint8], bayer: str | None) -> tuple[int, int]:
    """The size (w, h) of the upright image, from the file's header where that will do."""
    if not isinstance(image, Path):
        return image.shape[1], image.shape[0]
    with _opened(image) as (picture, data):
        # Asked for EXIF, Pillow decodes a whole PNG that has none: the chunk may come last.
        # A TIFF's size is that of the upright image already.
        has_exif = picture.format != "PNG" or any(word in data for word in (b"eXIf", b"exif", b"adobe"))
        may_turn = bayer is None and has_exif and picture.format != "TIFF"
        turned = may_turn and picture.getexif().get(_ORIENTATION) in _QUARTER_TURNS
        return (picture.height, picture.width) if turned else picture.size


def decode(path: Path, bayer: str | None = None) -> NDArray[np.uint8]:
    """A file's upright pixels (h, w, 3); with `bayer`, one of BAYER_PATTERNS, of a raw mosaic.

    Raises:
        InputError: names the file that is missing, corrupt, or no mosaic.
    """
    with _opened(path) as (picture, _):
        if bayer is None:
            return _upright(picture)
        raw = np.array(picture)
    if raw.ndim != 2 or raw.dtype not in (np.uint8, np.uint16) or min(raw.shape) < 2:
        raise InputError(f"{path}: is no raw mosaic of 8 or 16 bits in one channel; leave bayer_format out")
    return demosaic(raw if raw.dtype == np.uint8 else (raw >> 8).astype(np.uint8), bayer)


def _upright(picture: Image.Image) -> NDArray[np.uint8]:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255
        return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    return np.array(picture.convert("RGB"))


def demosaic(raw: NDArray[np.uint8], pattern: str) -> NDArray[np.uint8]:
    """A raw mosaic (h, w) to (h, w, 3) RGB; a colour that a pixel does not have is the mean of its nearest that do."""
    measured = np.zeros((3, *raw.shape), dtype=bool)
    for position, colour in enumerate(pattern):
        measured["RGB".index(colour), position // 2 :: 2, position % 2 :: 2] = True
    there = torch.from_numpy(measured).float()
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]).expand(3, 1, 3, 3)
    values = F.conv2d(there * torch.from_numpy(raw).float(), kernel, padding=1, groups=3)
    mean = values / F.conv2d(there, kernel, padding=1, groups=3)
    return np.where(measured, raw, mean.round().byte().numpy()).transpose(1, 2, 0).copy()


def to_numpy(value: Any, place: str) -> NDArray[Any]:
    """A tensor on any device, an array or nested lists, as an array; `place` names it in the error for anything else."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{place}: is no array ({error})") from error
