"""PCD files (v0.7): ascii, binary and binary_compressed, with the intensity that OPV2V hides in the colour.

OPV2V's clouds are ascii with FIELDS x y z rgb; intensity is the red byte (bits 16 to 23) of the packed colour, divided by
255. As a float the colour is tiny, often *subnormal*: a reader that flushes subnormals to zero, or goes through float16,
loses it. So it is recovered from float64 by scaling, or taken from the file's own bits.
"""

from __future__ import annotations

import io
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simdjson
from numpy.typing import NDArray

from mapanything.errors import InputError

MAX_POINTS = 100_000_000
_thread = threading.local()
_HEADER_KEYS = {"VERSION", "FIELDS", "COLUMNS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS"}
_DTYPES = {f"{t}{s}": f"<{t.lower()}{s}" for t in "IU" for s in (1, 2, 4, 8)} | {"F4": "<f4", "F8": "<f8"}


@dataclass(frozen=True, slots=True, eq=False)
class PointCloud:
    """A cloud as stored: OPV2V's are in the LiDAR's own frame, Unreal axes (x forward, y right, z up).

    Attributes:
        points: (N, 3) float32 metres.
        intensity: (N,) float32 in 0..1, or None where the file has neither rgb nor intensity.
    """

    points: NDArray[np.float32]
    intensity: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class PcdHeader:
    """A header, checked for consistency. `fields` are (name, dtype, count); `offset` is where the data begin."""

    fields: tuple[tuple[str, str, int], ...]
    num_points: int
    encoding: str
    offset: int

    @property
    def point_bytes(self) -> int:
        return sum(np.dtype(dtype).itemsize * count for _, dtype, count in self.fields)


def read_pcd(path: Path) -> PointCloud:
    """Reads a cloud.

    Raises:
        InputError: missing, truncated, not PCD, or without x y z.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    return decode_pcd(data, path)


def decode_pcd(data: bytes, path: Path) -> PointCloud:
    """The cloud in a PCD file's bytes; `path` only names the file in errors."""
    header = parse_header(data, path)
    columns = (_ascii_columns if header.encoding == "ascii" else _binary_columns)(data, header, path)
    points = np.stack([columns[axis].astype(np.float32, copy=False) for axis in "xyz"], axis=-1)
    if len(points) and not np.isfinite(points).all(axis=1).any():
        raise InputError(f"{path}: none of its {len(points)} points is finite: the LiDAR saw nothing; leave the frame out")
    return PointCloud(points, _intensity(columns))


def check_body(data: bytes, header: PcdHeader, path: Path) -> None:
    """Checks that the points are as many as the header promises, without reading a number; reading has the same rule.

    The last row of an ascii cloud may lack its line end, and zero bytes may follow the points: programs that write into
    mapped memory leave those, up to the end of a page.

    Raises:
        InputError: truncated, a row with too few or too many numbers, or more bytes than points.
    """
    if header.encoding == "ascii":
        _check_rows(data, header, path)
        return
    promised = header.offset + header.num_points * header.point_bytes
    if header.encoding == "binary_compressed":
        promised = header.offset + 8 + int.from_bytes(data[header.offset : header.offset + 4], "little")
    if len(data) < promised:
        raise InputError(f"{path}: truncated ({len(data)} of {promised} bytes); restore the file")
    if data.count(0, promised) != len(data) - promised:
        raise InputError(f"{path}: longer than its header says ({len(data)} of {promised} bytes); restore the file")


def _check_rows(data: bytes, header: PcdHeader, path: Path) -> None:
    rows, width = header.num_points, sum(count for _, _, count in header.fields)
    body = data[header.offset :].rstrip(b"\0")
    ends = body.count(b"\n") + (not body.endswith(b"\n"))
    last = body[body.rfind(b"\n", 0, -1) + 1 :]
    if (ends, body.count(b" "), len(last.split())) == (rows, rows * (width - 1), width):
        return  # as OPV2V writes them
    lines = [line for line in body.splitlines() if line.strip()]
    for number, line in enumerate(lines[:rows], 1):
        if (count := len(line.split())) != width:
            raise InputError(f"{path}: row {number} has {count} of {width} numbers; restore the file")
    if len(lines) != rows:
        raise InputError(f"{path}: has {len(lines)} of {rows} points; restore the file")


def parse_header(data: bytes, path: Path) -> PcdHeader:
    """Parses the header at the start of `data`; `path` only names the file in errors."""
    values: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in values:
        end = data.find(b"\n", position, position + 65536)
        if end < 0:
            raise InputError(f"{path}: is no PCD file (its header has no DATA line); restore the file")
        line = data[position:end]
        position = end + 1
        entries = line.decode("ascii", errors="replace").split("#", 1)[0].split()
        if entries:
            key = entries[0].upper()
            if key not in _HEADER_KEYS | {"DATA"}:
                raise InputError(f"{path}: is no PCD file (unknown header line {line[:40]!r}); restore the file")
            values["FIELDS" if key == "COLUMNS" else key] = entries[1:]
    return _checked_header(values, position, path)


def _checked_header(values: dict[str, list[str]], offset: int, path: Path) -> PcdHeader:
    def integers(key: str, default: list[int] | None = None) -> list[int]:
        if key not in values:
            if default is not None:
                return default
            raise InputError(f"{path}: PCD header has no {key}; restore the file")
        # isascii: int() takes any script's digits, and would take signs and underscores too
        if not all(re.fullmatch(r"[0-9]{1,18}", word) for word in values[key]):
            raise InputError(f"{path}: PCD header's {key} is no count: {' '.join(values[key])[:40]!r}; restore the file")
        return [int(word) for word in values[key]]

    names = values.get("FIELDS", [])
    sizes, types = integers("SIZE"), [word.upper() for word in values.get("TYPE", [])]
    counts = integers("COUNT", [1] * len(names))
    if not len(names) == len(sizes) == len(types) == len(counts) or len(names) > 256:
        raise InputError(f"{path}: PCD header's FIELDS, SIZE, TYPE and COUNT differ in length; restore the file")
    fields = []
    for name, size, kind, count in zip(names, sizes, types, counts, strict=True):
        if count == 0:
            continue  # padding of a driver's: a field without bytes
        dtype = _DTYPES.get(f"{kind}{size}")
        if dtype is None or count > 65536:
            raise InputError(f"{path}: PCD field {name[:40]!r} has no known type ({kind[:8]}{size} x {count})")
        fields.append((name.lower(), dtype, count))
    for axis in "xyz":
        if [f[2] for f in fields if f[0] == axis] != [1]:
            raise InputError(f"{path}: PCD has no field {axis}, or more than one; is it a LiDAR cloud?")
    width, height = (integers("WIDTH") or [0])[0], (integers("HEIGHT", [1]) or [1])[0]
    num_points = (integers("POINTS", [width * height]) or [0])[0]
    if num_points > MAX_POINTS:
        raise InputError(f"{path}: PCD header says {num_points} points, over {MAX_POINTS:,}: no frame has that many")
    if num_points != width * height:
        raise InputError(f"{path}: PCD header says {num_points} points but {width} x {height}; restore the file")
    encoding = " ".join(values["DATA"]).lower()
    if encoding not in ("ascii", "binary", "binary_compressed"):
        raise InputError(f"{path}: PCD DATA is '{encoding[:40]}', not ascii, binary or binary_compressed")
    return PcdHeader(tuple(fields), num_points, encoding, offset)


def _ascii_columns(data: bytes, header: PcdHeader, path: Path) -> dict[str, NDArray]:
    data = data.rstrip(b"\0")
    if not data.endswith(b"\n"):
        data += b"\n"
    width = sum(count for _, _, count in header.fields)
    table = _plain_table(data, header, width)
    if table is None:
        _check_rows(data, header, path)
        table = _any_table(data[header.offset :], width, path)
    columns: dict[str, NDArray] = {}
    start = 0
    for name, dtype, count in header.fields:
        if name in ("rgb", "rgba"):
            columns.setdefault(name, _packed_colour(table[:, start], dtype))
        elif name in ("x", "y", "z", "intensity"):
            columns.setdefault(name, table[:, start])
        start += count
    return columns


def _plain_table(data: bytes, header: PcdHeader, width: int) -> NDArray[np.float64] | None:
    """The numbers (rows, width) of lines like OPV2V's, one space between two numbers; None where the text is any different.

    With commas for its white space such a text is JSON, whose fastest parser beats every table reader (Open3D's 6 times).
    It rounds each number to the nearest float64.
    """
    rows = header.num_points
    # From the header's last line end to the text's own: both make room for a bracket.
    text = np.frombuffer(data, dtype=np.uint8, offset=header.offset - 1).copy()
    gaps = np.flatnonzero(text <= ord(" "))[1:]
    if gaps.size != rows * width or rows == 0:
        return None
    is_end = (text[gaps] == ord("\n")).reshape(rows, width)
    if not (is_end[:, -1].all() and (text[gaps] == ord(" ")).sum() == rows * (width - 1)):
        return None  # as many numbers as due, but not in every line
    text[gaps] = ord(",")
    text[0], text[-1] = ord("["), ord("]")
    if not hasattr(_thread, "parser"):
        _thread.parser = simdjson.Parser()  # keeps its memory from cloud to cloud
    try:
        parsed: Any = _thread.parser.parse(text.data)
        values = np.frombuffer(parsed.as_buffer(of_type="d"))
    except (ValueError, TypeError, RuntimeError):
        return None  # a NaN, a leading "+", no number at all: the patient reader knows, or says what is wrong
    return values.reshape(rows, width) if values.size == rows * width else None


def _any_table(body: bytes, width: int, path: Path) -> NDArray[np.float64]:
    """The same for any white space and any spelling of a number, of rows that are known to be as many and as long as due."""
    if not body.strip():
        return np.empty((0, width))
    try:
        return np.loadtxt(io.BytesIO(body), dtype=np.float64, ndmin=2, comments=None)
    except (ValueError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: PCD data are not {width} numbers a line ({reason}); restore the file") from error


def _packed_colour(values: NDArray[np.float64], dtype: str) -> NDArray[np.uint32]:
    """The 32 bits of a colour that was written as text: as an integer, or as the float32 that has those bits."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if dtype[1] != "f":  # signed ones too: the same 32 bits
        return (np.clip(values, -(2**31), 2**32 - 1).astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)
    # Below 2^-125 neighbouring float32 differ by 2^-149, so value * 2^149 *is* the bit pattern; no subnormal is touched.
    small = np.abs(values) < 2.0**-125
    bits = np.rint(np.abs(np.where(small, values, 0.0)) * 2.0**149).astype(np.uint32)
    return np.where(small, bits, values.astype(np.float32).view(np.uint32))


def _binary_columns(data: bytes, header: PcdHeader, path: Path) -> dict[str, NDArray]:
    check_body(data, header, path)
    size = header.num_points * header.point_bytes
    if header.encoding == "binary":
        body = data[header.offset : header.offset + size]
        dtype = np.dtype([(f"f{i}", dt, (c,)) for i, (_, dt, c) in enumerate(header.fields)])
        table = np.frombuffer(body, dtype=dtype)
        raw = [(name, table[f"f{i}"]) for i, (name, _, _) in enumerate(header.fields)]
    else:
        body = _decompressed(data, header, size, path)
        raw, start = [], 0
        for name, dt, count in header.fields:  # column by column, unlike binary
            values = np.frombuffer(body, dtype=dt, count=header.num_points * count, offset=start)
            raw.append((name, values.reshape(header.num_points, count)))
            start += values.nbytes
    columns: dict[str, NDArray] = {}
    for name, values in raw:
        if name in ("rgb", "rgba") and values.dtype.itemsize == 4:
            columns.setdefault(name, np.ascontiguousarray(values[:, 0]).view(np.uint32))
        elif name in ("x", "y", "z", "intensity"):
            columns.setdefault(name, values[:, 0])
    return columns


def _decompressed(data: bytes, header: PcdHeader, size: int, path: Path) -> bytes:
    start = header.offset + 8
    if len(data) < start:
        raise InputError(f"{path}: truncated right after the header; restore the file")
    packed, unpacked = np.frombuffer(data, dtype="<u4", count=2, offset=header.offset).tolist()
    if unpacked != size:
        raise InputError(f"{path}: unpacks to {unpacked} bytes where {size} are due; restore the file")
    body = lzf_decompress(data[start : start + packed], unpacked)
    if body is None:
        raise InputError(f"{path}: its compressed data are corrupt; restore the file")
    return body


def lzf_decompress(data: bytes, size: int) -> bytes | None:
    """LZF (liblzf's format): literal runs of up to 32 bytes and back references. None where `data` is not `size` bytes."""
    out = bytearray()
    i, end = 0, len(data)
    while i < end and len(out) <= size:
        control = data[i]
        i += 1
        if control < 32:
            if i + control >= end:
                return None
            out += data[i : i + control + 1]
            i += control + 1
            continue
        length = control >> 5
        if length == 7:
            if i >= end:
                return None
            length += data[i]
            i += 1
        if i >= end:
            return None
        distance = ((control & 31) << 8 | data[i]) + 1
        i += 1
        length += 2
        start = len(out) - distance
        if start < 0:
            return None
        piece = out[start : start + length]
        if len(piece) < length:  # the reference runs into what it writes: a repeating pattern
            piece = (piece * (length // len(piece) + 1))[:length]
        out += piece
    return bytes(out) if len(out) == size else None


def _intensity(columns: dict[str, NDArray]) -> NDArray[np.float32] | None:
    if "intensity" in columns:
        return columns["intensity"].astype(np.float32)
    packed = columns.get("rgb", columns.get("rgba"))
    if packed is None or packed.dtype != np.uint32:
        return None
    return ((packed >> 16) & 0xFF).astype(np.float32) / np.float32(255)
