"""Arrays as files: .npy, checked before its numbers are believed, and depths as 16-bit PNG."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapanything.errors import InputError

PNG_SCALE = 256.0  # steps of a 16-bit PNG per metre, as KITTI's: 4 mm apart, up to 255.996 m


class NpyHeader(NamedTuple):
    """The header of a .npy file; `offset` is where the data begin, `order` "C" or "F" (columns first)."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    order: Literal["C", "F"]


def npy_header(path: Path) -> NpyHeader:
    """The header of a .npy file that is as long as it promises.

    Raises:
        InputError: no .npy file, Python objects in it, or shorter or longer than promised.
    """
    try:
        with open(path, "rb") as file:
            header = _parse_npy_header(file, path)
            size = file.seek(0, io.SEEK_END)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    promised = header.offset + int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
    if size != promised:
        state = "truncated" if size < promised else "longer than its header says"
        raise InputError(f"{path}: {state} ({size} of {promised} bytes); make it again or restore it")
    return header


def _parse_npy_header(file: io.BufferedReader, path: Path) -> NpyHeader:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except (
        *(ValueError, KeyError, SyntaxError, EOFError, TypeError, UnicodeError, RecursionError, MemoryError),
        tokenize.TokenError,  # NumPy retries a header that does not parse as one of Python 2, token by token
    ) as error:
        raise InputError(f"{path}: is no .npy array ({' '.join(str(error).split())[:80]}); make it again") from error
    if dtype.hasobject or any(n < 0 for n in shape):
        raise InputError(f"{path}: is no plain .npy array of numbers; make it again")
    return NpyHeader(shape, dtype, file.tell(), "F" if fortran else "C")


def read_npy(path: Path) -> NDArray[Any]:
    """Reads an array as it is stored. Raises InputError as `npy_header`, or where the file shrinks meanwhile."""
    shape, dtype, offset, order = npy_header(path)
    count = int(np.prod(shape, dtype=object))
    try:
        values = np.fromfile(path, dtype, count=count, offset=offset)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if values.size != count:
        raise InputError(f"{path}: became shorter while it was read; make it again or restore it")
    return np.ascontiguousarray(values.reshape(shape, order=order))


def npy_bytes(array: NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def depth_png_bytes(depth: NDArray[np.float32]) -> bytes:
    """The bytes of a 16-bit PNG of depths (H, W), 1/256 m a step. Beyond 255.996 m becomes unknown (0), never wrong."""
    steps = np.rint(depth.astype(np.float64) * PNG_SCALE)
    steps[(steps > 65535) | (steps < 0) | ~np.isfinite(steps)] = 0
    buffer = io.BytesIO()
    Image.fromarray(steps.astype(np.uint16)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
