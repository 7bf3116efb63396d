"""Clouds with their colours from .pcd, .ply and .glb files, ours and other programs'. Coordinates come as stored.

A .glb is read only as `./invoke infer` writes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mapanything.errors import InputError
from mapanything.opv2v.pcd import decode_pcd, parse_header
from mapanything.results.clouds import decode_glb, decode_ply

SUFFIXES = (".pcd", ".ply", ".glb")


def read_cloud(path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Points (N, 3) as stored, and their colours (N, 3), or None where the file has none.

    OPV2V's own clouds hide an intensity in their colour's red byte; their colours come back as they are, dark red.

    Raises:
        InputError: missing, damaged, or of another kind.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: clouds are read from {', '.join(SUFFIXES)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    return {".pcd": _pcd, ".ply": decode_ply, ".glb": decode_glb}[suffix](data, path)


def _pcd(data: bytes, path: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Open3D is asked for colours only: what it can't read it takes for zeros or leaves out without an error."""
    header = parse_header(data, path)
    points = decode_pcd(data, path).points
    if not len(points) or not {"rgb", "rgba"} & {name for name, _, _ in header.fields}:
        return points, None
    if header.encoding == "binary" and header.fields[3:] == (("rgb", "<f4", 1),):  # as `./invoke infer` writes them
        packed = np.frombuffer(data, "<u4", 4 * header.num_points, header.offset).reshape(-1, 4)[:, 3]
        return points, np.stack([packed >> 16, packed >> 8, packed], axis=-1).astype(np.uint8)
    import open3d

    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        colors = np.asarray(open3d.io.read_point_cloud(path).colors)
    return points, np.rint(colors * 255).astype(np.uint8) if len(colors) == len(points) else None
