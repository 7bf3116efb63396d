"""Builds small valid files, byte by byte, for the tests of what happens when they are not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

POINTS = np.arange(60, dtype=np.float32).reshape(20, 3) / 4
COLOUR = (np.arange(20, dtype=np.uint32) * 9 << 16).view(np.float32)


def pcd_bytes(encoding: str) -> bytes:
    head = "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH 20\nHEIGHT 1\n"
    head += f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 20\nDATA {encoding}\n"
    table = np.column_stack([POINTS, COLOUR])
    if encoding == "ascii":
        return head.encode() + "".join(" ".join(f"{v:.9g}" for v in row) + "\n" for row in table).encode()
    if encoding == "binary":
        return head.encode() + table.tobytes()
    plain = table.T.tobytes()
    packed = b"".join(bytes([len(part) - 1]) + part for part in (plain[i : i + 32] for i in range(0, len(plain), 32)))
    return head.encode() + struct.pack("<II", len(packed), len(plain)) + packed


def png_bytes(mode: str, interlaced: bool = False) -> bytes:
    pixels = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
    if mode == "sub":
        difference = pixels.astype(np.int16).copy()
        difference[:, 1:] -= pixels[:, :-1].astype(np.int16)
        rows = np.concatenate([np.ones((12, 1), np.uint8), difference.astype(np.uint8).reshape(12, -1)], axis=1)
        return png_of(16, 12, zlib.compress(rows.tobytes()))
    buffer = io.BytesIO()
    image = (
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    )
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def png_of(width: int, height: int, packed: bytes, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
