"""Coloured point clouds as files: .pcd (Open3D, CloudCompare, PCL), .ply (those and MeshLab), .glb (browsers, Blender).

All three are written here, and .ply and .glb read; `opv2v.pcd` reads .pcd. They hold the same float32 coordinates, byte for
byte the same for the same cloud. A cloud in OPV2V's axes is left-handed; PCD and PLY have no word for that and viewers show it
mirrored, as they do OPV2V's own clouds.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapanything.errors import InputError
from mapanything.geometry.carla import CV_FROM_UE, UE_FROM_CV
from mapanything.geometry.colors import linear_from_srgb, srgb_from_linear

Points = NDArray[np.float32]  # (N, 3)
Colours = NDArray[np.uint8]  # (N, 3) RGB

# OpenCV axes of the LiDAR's frame -> the axes of a cloud.
CLOUD_FROM_CV: dict[str, NDArray[np.float64]] = {"opv2v": UE_FROM_CV, "opencv": np.eye(4)}
# glTF is right-handed, y up, and looks along -z.
_GLTF_FROM_CV = np.diag([1.0, -1.0, -1.0, 1.0])
_GLTF_FROM: dict[str, NDArray[np.float64]] = {"opv2v": _GLTF_FROM_CV @ CV_FROM_UE, "opencv": _GLTF_FROM_CV}
MAX_PLY_HEADER = 65536
_KINDS = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
PLY_TYPES = dict(zip(["char", "uchar", "short", "ushort", "int", "uint", "float", "double"], _KINDS, strict=True)) | dict(
    zip(["int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"], _KINDS, strict=True)
)
_LINEAR = np.rint(65535 * linear_from_srgb(np.arange(256) / 255)).astype(np.uint16)  # of an sRGB byte


# Every encoder takes points, colours, the axes (of `CLOUD_FROM_CV`) and a comment for the file's header.


def encode_pcd(points: Points, colours: Colours, axes: str = "opv2v", about: str = "") -> bytes:
    """Encodes PCD v0.7, binary: x y z rgb, the colour packed into a float's bits as PCL and Open3D do."""
    table = np.empty((len(points), 4), dtype="<f4")
    table[:, :3] = points
    red, green, blue = colours.astype("<u4").T
    table.view("<u4")[:, 3] = red << 16 | green << 8 | blue
    header = (
        f"# .PCD v0.7 - Point Cloud Data file format\n# {_line(about)}\n"
        "VERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
        f"WIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA binary\n"
    )
    return header.encode("ascii", "replace") + table.tobytes()


def encode_ply(points: Points, colours: Colours, axes: str = "opv2v", about: str = "") -> bytes:
    """Encodes PLY 1.0, binary little endian: x y z as floats, red green blue as bytes."""
    table = np.empty(len(points), dtype=[("point", "<f4", 3), ("colour", "u1", 3)])
    table["point"], table["colour"] = points, colours
    names = [("float", "x y z"), ("uchar", "red green blue")]
    properties = "".join(f"property {kind} {name}\n" for kind, group in names for name in group.split())
    header = (
        f"ply\nformat binary_little_endian 1.0\ncomment {_line(about)}\nelement vertex {len(points)}\n{properties}end_header\n"
    )
    return header.encode("ascii", "replace") + table.tobytes()


def encode_glb(points: Points, colours: Colours, axes: str = "opv2v", about: str = "") -> bytes:
    """Encodes a glTF 2.0 binary file with one primitive of points.

    The coordinates are the cloud's own; the node's matrix turns them (and, from OPV2V's axes, mirrors them) into glTF's, so
    that a viewer shows them upright and the right way round. Colours are linear there, hence 16 bits of them.
    """
    node: dict[str, Any] = {"name": "points", "matrix": _GLTF_FROM[axes].T.ravel().tolist()}  # column by column
    content: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "mapanything-opv2v", "extras": {"about": about}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
    }
    binary = b""
    if len(points):  # glTF knows no empty accessor; an empty cloud is a node without mesh
        node["mesh"] = 0
        binary = points.astype("<f4", copy=False).tobytes()
        size = len(binary)
        linear = np.full((len(points), 4), 65535, dtype="<u2")
        linear[:, :3] = _LINEAR[colours]
        binary += linear.tobytes()
        content |= {
            "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "material": 0, "mode": 0}]}],
            "materials": [{"extensions": {"KHR_materials_unlit": {}}, "pbrMetallicRoughness": {"metallicFactor": 0}}],
            "extensionsUsed": ["KHR_materials_unlit"],
            "accessors": [
                {
                    "bufferView": 0,
                    "componentType": 5126,
                    "count": len(points),
                    "type": "VEC3",
                    "min": [float(x.min()) for x in points.T],  # column by column: twenty times as fast as axis=0
                    "max": [float(x.max()) for x in points.T],
                },
                {"bufferView": 1, "componentType": 5123, "normalized": True, "count": len(points), "type": "VEC4"},
            ],
            "bufferViews": [
                {"buffer": 0, "byteOffset": 0, "byteLength": size, "target": 34962},
                {"buffer": 0, "byteOffset": size, "byteLength": len(binary) - size, "target": 34962},
            ],
            "buffers": [{"byteLength": len(binary)}],
        }
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    if binary:
        chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _line(text: str) -> str:
    """One line, whatever a folder may be called: a line end would end the comment."""
    return " ".join(text.split())


ENCODERS: dict[str, Callable[[Points, Colours, str, str], bytes]] = {"pcd": encode_pcd, "ply": encode_ply, "glb": encode_glb}


def decode_ply(data: bytes, path: Path) -> tuple[Points, Colours | None]:
    """Points and colours, if any, of a PLY file's bytes, any program's; `path` only names it in errors."""
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
            texts = body.split(None, count * len(fields))[: count * len(fields)]
            numbers = np.array(texts, dtype=np.float64).reshape(count, len(fields))
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


def decode_glb(data: bytes, path: Path) -> tuple[Points, Colours | None]:
    """Points and colours of `encode_glb`'s bytes; `path` only names the file in errors."""
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
    return points, np.rint(srgb_from_linear(linear) * 255).astype(np.uint8)
