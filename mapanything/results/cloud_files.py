"""Clouds with their colours from .pcd, .ply and .glb files, ours and other programs'. Coordinates come as stored.

Open3D is asked for a PCD's colours only: what it can't read it takes for zeros or leaves out without an error. A .glb is
read only as `./invoke infer` writes it.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.errors import InputError
from mapanything.opv2v.pcd import decode_pcd, parse_header

SUFFIXES = (".pcd", ".ply", ".glb")
MAX_PLY_HEADER = 65536
PLY_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
             "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
             "float32": "f4", "float64": "f8"}  # fmt: skip


def read_cloud(path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Points (N, 3) as stored, and their colours (N, 3), or None where the file has none.

    OPV2V's own clouds hide an intensity in their colour's red byte; their colours come back as they are, dark red.

    Raises:
        InputError: missing, damaged, or of another kind.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: clouds are read from {', '.join(SUFFIXES)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    return {".pcd": _pcd, ".ply": _ply, ".glb": _glb}[path.suffix.lower()](data, path)


def _pcd(data: bytes, path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    header = parse_header(data, path)
    points = decode_pcd(data, path).points  # checks what Open3D would pass over
    if not len(points) or not {"rgb", "rgba"} & {name for name, _, _ in header.fields}:
        return points, None
    if header.encoding == "binary" and header.fields[3:] == (("rgb", "<f4", 1),):  # as `./invoke infer` writes them
        packed = np.frombuffer(data, "<u4", 4 * header.num_points, header.offset).reshape(-1, 4)[:, 3]
        return points, np.stack([packed >> 16, packed >> 8, packed], axis=-1).astype(np.uint8)
    return points, _pcd_colors(path, len(points))


def _ply(data: bytes, path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    end = data.find(b"end_header", 0, MAX_PLY_HEADER)
    if not data.startswith(b"ply") or end < 0:
        raise InputError(f"{path}: is no PLY file; make it again")
    order, fields, count = _ply_header(data[:end], path)
    body = data[data.index(b"\n", end) + 1 :] if b"\n" in data[end:] else b""
    try:
        if order:
            table = np.frombuffer(body, np.dtype([(name, order + kind) for name, kind in fields]), count)
            columns = {name: table[name] for name in table.dtype.names or ()}
        else:
            words = body.split(None, count * len(fields))[: count * len(fields)]
            numbers = np.array(words, dtype=np.float64).reshape(count, len(fields))
            columns = {name: numbers[:, i] for i, (name, _) in enumerate(fields)}
    except ValueError as error:
        raise InputError(f"{path}: does not hold the {count} points its header promises; make it again") from error
    points = np.stack([columns[axis] for axis in "xyz"], axis=-1).astype(np.float32)
    if not {"red", "green", "blue"} <= columns.keys():
        return points, None
    colors = np.stack([columns[name] for name in ("red", "green", "blue")], axis=-1)
    whole = dict(fields)["red"] == "u1"
    return points, colors.astype(np.uint8) if whole else np.rint(np.clip(colors, 0, 1) * 255).astype(np.uint8)


def _ply_header(header: bytes, path: Path) -> tuple[str, list[tuple[str, str]], int]:
    """Byte order ("" for ascii), the vertices' fields with their types, and how many vertices there are."""
    lines = [line.split() for line in header.decode("ascii", "replace").split("\n")]
    orders = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
    order = next((orders.get(line[1]) for line in lines if line[:1] == ["format"] and len(line) > 1), None)
    start = next((i for i, line in enumerate(lines) if line[:1] == ["element"]), len(lines))
    element, fields = [*lines, []][start], []
    for line in lines[start + 1 :]:
        if line[:1] == ["element"]:
            break
        if line[:1] == ["property"]:
            fields.append((line[-1], PLY_TYPES.get(line[1], "") if len(line) == 3 else ""))
    count = int(element[2]) if len(element) == 3 and re.fullmatch("[0-9]{1,9}", element[2]) else -1
    names = [name for name, _ in fields]
    known = all(kind for _, kind in fields) and len(set(names)) == len(names) and {"x", "y", "z"} <= set(names)
    if order is None or element[1:2] != ["vertex"] or count < 0 or not known:
        raise InputError(f"{path}: is no PLY file of points (vertices with x, y and z first); save the cloud anew")
    return order, fields, count


def _pcd_colors(path: Path, count: int) -> NDArray[np.uint8] | None:
    import open3d

    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        cloud = open3d.io.read_point_cloud(str(path))
    return np.rint(np.asarray(cloud.colors) * 255).astype(np.uint8) if len(cloud.colors) == count else None


def _glb(data: bytes, path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """One primitive of points: float32 coordinates, then 16-bit linear RGBA (results/clouds.py)."""
    wrong = InputError(f"{path}: is no cloud of `./invoke infer`; make it again")
    try:
        magic, version, length, size, kind = struct.unpack_from("<4sIII4s", data)
        if (magic, version, length, kind) != (b"glTF", 2, len(data), b"JSON"):
            raise wrong
        content: dict[str, Any] = json.loads(data[20 : 20 + size])
        if "meshes" not in content:  # an empty cloud
            return np.zeros((0, 3), np.float32), None
        count = content["accessors"][0]["count"]
        if type(count) is not int or count < 0:
            raise ValueError(count)
        points = np.frombuffer(data, "<f4", 3 * count, 28 + size).reshape(-1, 3)
        linear = np.frombuffer(data, "<u2", 4 * count, 28 + size + points.nbytes).reshape(-1, 4)[:, :3] / 65535
    except (struct.error, ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
        raise wrong from error
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return points, np.rint(srgb * 255).astype(np.uint8)
