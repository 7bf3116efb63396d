"""Bytes of the synthetic data set's files, as CARLA, open3d, libpng and PyYAML wrote the real ones."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import yaml
from isal import isal_zlib
from numpy.typing import NDArray

from mapanything.opv2v.png import SIGNATURE

_IDAT_BYTES = 8192  # libpng's piece of image data, as in the real images
_SUB = 1


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """An RGB image (H, W, 3) as PNG with every row Sub-filtered, as OPV2V's images are."""
    height, width, _ = image.shape
    rows = np.empty((height, 1 + 3 * width), dtype=np.uint8)
    rows[:, 0] = _SUB
    pixels = image.reshape(height, -1)
    rows[:, 1:4] = pixels[:, :3]
    np.subtract(pixels[:, 3:], pixels[:, :-3], out=rows[:, 4:])
    data = isal_zlib.compress(rows.tobytes(), 1)
    pieces = [_chunk(b"IDAT", data[at : at + _IDAT_BYTES]) for at in range(0, len(data), _IDAT_BYTES)]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join([SIGNATURE, _chunk(b"IHDR", header), *pieces, _chunk(b"IEND", b"")])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join([struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))])


def encode_pcd(points: NDArray[np.float32], red: NDArray[np.uint8]) -> bytes:
    """A cloud (N, 3) with intensities 0..255 (N,) as ascii PCD: the intensity is the red byte of the packed colour.

    The colour's bits, read as a float, are a subnormal number; Python prints it exactly enough to come back.
    """
    table = np.empty((len(points), 4))
    table[:, :3] = points
    # By way of 256 Python floats: an array conversion might flush subnormals to zero, where a library asked for that.
    packed = [struct.unpack("<f", struct.pack("<I", value << 16))[0] for value in range(256)]
    columns = [*table[:, :3].T.tolist(), [packed[value] for value in red.tolist()]]
    values = [value for row in zip(*columns, strict=True) for value in row]
    head = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\n"
        f"COUNT 1 1 1 1\nWIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA ascii\n"
    )
    return (head + "%.10g %.10g %.10g %.10g\n" * len(points) % tuple(values)).encode("ascii")


def encode_yaml(data: dict[Any, Any]) -> bytes:
    """Block style with sorted keys, PyYAML's default in the real files; an object used twice gets an anchor."""
    return yaml.dump(data, Dumper=yaml.CSafeDumper, default_flow_style=False).encode("utf-8")
