"""Coloured point clouds as files: .pcd (Open3D, CloudCompare, PCL), .ply (those and MeshLab), .glb (browsers, Blender).

All three hold the same float32 coordinates, byte for byte the same for the same cloud. A cloud in OPV2V's axes is
left-handed; PCD and PLY have no word for that and viewers show it mirrored, as they do OPV2V's own clouds.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mapanything.geometry.carla import CV_FROM_UE, UE_FROM_CV

Points = NDArray[np.float32]  # (N, 3)
Colours = NDArray[np.uint8]  # (N, 3) RGB

# OpenCV axes of the LiDAR's frame -> the axes of a cloud.
CLOUD_FROM_CV: dict[str, NDArray[np.float64]] = {"opv2v": UE_FROM_CV, "opencv": np.eye(4)}
# glTF is right-handed, y up, and looks along -z.
_GLTF_FROM_CV = np.diag([1.0, -1.0, -1.0, 1.0])
_GLTF_FROM: dict[str, NDArray[np.float64]] = {"opv2v": _GLTF_FROM_CV @ CV_FROM_UE, "opencv": _GLTF_FROM_CV}


# Every encoder takes points, colours, the axes (of `CLOUD_FROM_CV`) and a comment for the file's header.


def encode_pcd(points: Points, colours: Colours, axes: str = "opv2v", about: str = "") -> bytes:
    """PCD v0.7, binary: x y z rgb, the colour packed into a float's bits as PCL and Open3D do."""
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
    """PLY 1.0, binary little endian: x y z as floats, red green blue as bytes."""
    table = np.empty(len(points), dtype=[("point", "<f4", 3), ("colour", "u1", 3)])
    table["point"], table["colour"] = points, colours
    names = [("float", "x y z"), ("uchar", "red green blue")]
    properties = "".join(f"property {kind} {name}\n" for kind, group in names for name in group.split())
    header = (
        f"ply\nformat binary_little_endian 1.0\ncomment {_line(about)}\nelement vertex {len(points)}\n{properties}end_header\n"
    )
    return header.encode("ascii", "replace") + table.tobytes()


def encode_glb(points: Points, colours: Colours, axes: str = "opv2v", about: str = "") -> bytes:
    """glTF 2.0, binary: one primitive of points.

    The coordinates are the cloud's own; the node's matrix turns them (and, from OPV2V's axes, mirrors them) into glTF's, so
    that a viewer shows them upright and the right way round. Colours are linear there, hence 16 bits of them.
    """
    node = {"name": "points", "matrix": _GLTF_FROM[axes].T.ravel().tolist()}  # column by column
    content: dict[str, object] = {
        "asset": {"version": "2.0", "generator": "mapanything-opv2v", "extras": {"about": about}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
    }
    binary = b""
    if len(points):  # glTF knows no empty accessor; an empty cloud is a node without mesh
        node["mesh"] = 0  # type: ignore[assignment]
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
                    **{"bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3"},
                    # Column by column: twenty times as fast as axis=0.
                    **{"min": [float(x.min()) for x in points.T], "max": [float(x.max()) for x in points.T]},
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


def _linear() -> NDArray[np.uint16]:
    """(256,) sRGB byte -> linear light in 0..65535 (IEC 61966-2-1)."""
    s = np.arange(256) / 255
    return np.rint(65535 * np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)).astype(np.uint16)


_LINEAR = _linear()

ENCODERS: dict[str, Callable[[Points, Colours, str, str], bytes]] = {"pcd": encode_pcd, "ply": encode_ply, "glb": encode_glb}
