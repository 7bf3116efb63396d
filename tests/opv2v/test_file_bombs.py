"""Small files that would take all memory, all stack or for ever, were they believed: each is refused in one line."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapanything.opv2v.depth import read_depth
from mapanything.opv2v.frame import read_frame
from mapanything.opv2v.pcd import read_pcd
from mapanything.opv2v.png import read_image
from tests.helpers.file_bytes import npy_bytes, png_of

pytestmark = pytest.mark.faults
# Each runs in its own process with 2 GB of address space and 20 s.
LIMITS = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))"


def refused_within_limits(reader: Callable[..., Any], path: Path, may_succeed: bool = False) -> None:
    module, name = reader.__module__, reader.__name__
    script = f"from pathlib import Path; import sys; from {module} import {name}; {LIMITS}; {name}(Path(sys.argv[1]))"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from mapanything.errors import run_command\nrun_command(lambda: exec({script!r}))",
            path,
        ],
        capture_output=True,
        text=True,
        timeout=20,
        env={"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 2 or (may_succeed and done.returncode == 0), done.stderr
    assert done.stderr.count("\n") == (done.returncode == 2), done.stderr


DEEP = 200_000
ALIASES = b"a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + b"".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n".encode() for i in range(1, 40)
)
MERGES = b"a0: &a0 {k0: 1, k1: 1}\n" + b"".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n  j{i}: 1\n".encode() for i in range(1, 40)
)
BAD_YAML = {
    "deep_flow": b"a: " + b"[" * DEEP,
    "deep_closed": b"a: " + b"[" * DEEP + b"]" * DEEP,
    "deep_block": b"- " * DEEP,
    "deep_lines": b"".join(b" " * i + b"- a:\n" for i in range(0, 3000, 2)),
    "deep_maps": b"".join(b" " * i + b"a:\n" for i in range(3000)),
    "deep_compact": b"".join(b"? " * 50 for _ in range(2000)),
    "aliases": ALIASES + b"lidar_pose: *a39\n",
    "aliased_camera": ALIASES + b"lidar_pose: [1, 1, 1, 1, 1, 1]\ncamera0: {cords: [*a39, 1, 1, 1, 1, 1]}\n",
    "aliased_number": ALIASES + b"lidar_pose: [1, 1, 1, 1, 1, *a39]\n",
    "merges": MERGES,
    "itself": b"lidar_pose: &a [*a, *a, *a, *a, *a, *a]\n",
    "itself_as_key": b"&a ? *a : 1\n",
    "huge": b"a: " + b"x" * (9 << 20),
    "many_digits": b"lidar_pose: [1, 1, 1, 1, 1, " + b"9" * 100_000 + b"]",
    "sexagesimal": b"lidar_pose: [1, 1, 1, 1, 1, 1" + b":59" * 100_000 + b"]",
    "many_keys": b"lidar_pose: 1\n" + b"".join(b"? [%d]\n: 1\n" % i for i in range(1000)),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_bombs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "000069.yaml"
    path.write_bytes(BAD_YAML[name])
    refused_within_limits(read_frame, path)


def _header(**changes: str) -> bytes:
    fixed = "VERSION 0.7,FIELDS x y z,SIZE 4 4 4,TYPE F F F,COUNT 1 1 1,WIDTH 20,HEIGHT 1,POINTS 20,DATA binary"
    fields = {line.split()[0]: line.partition(" ")[2] for line in fixed.split(",")} | changes
    return "".join(f"{key} {value}\n" for key, value in fields.items()).encode()


BAD_PCD = {
    "promised_binary": _header(WIDTH="99999999", POINTS="99999999") + b"\0" * 100,
    "promised_ascii": _header(WIDTH="99999999", POINTS="99999999", DATA="ascii") + b"1 2 3\n" * 9,
    "promised_compressed": _header(WIDTH="99999999", POINTS="99999999", DATA="binary_compressed")
    + struct.pack("<II", 40, 99999999 * 12)
    + b"\0" * 40,
    "compressed_bomb": _header(WIDTH="80000000", POINTS="80000000", DATA="binary_compressed")
    + struct.pack("<II", 4_000_002, 80_000_000 * 12)
    + b"\0\0"
    + b"\xe0\xff\x00" * 1_333_334,
    "overflowing": _header(WIDTH="4294967296", HEIGHT="4294967296", POINTS="0"),
    "wide_fields": _header(FIELDS="x y z w", SIZE="4 4 4 8", TYPE="F F F F", COUNT="1 1 1 65536", DATA="ascii")
    + b"1 2 3 4\n" * 20,
    "many_fields": _header(
        FIELDS="x y z" + " w" * 200_000,
        SIZE="4 4 4" + " 8" * 200_000,
        TYPE="F F F" + " F" * 200_000,
        COUNT="1 1 1" + " 65536" * 200_000,
    ),
    "no_line_end": b"FIELDS " + b"x " * 5_000_000,
    "comments": b"#\n" * 3_000_000,
    "one_long_line": _header(DATA="ascii") + b"1 " * 5_000_000,
    "quotes": _header(DATA="ascii") + b'"1 2 3\n' * 20,
    "words": _header(DATA="ascii") + b"one two three\n" * 20,
}


@pytest.mark.parametrize("name", BAD_PCD)
def test_pcd_bombs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "000069.pcd"
    path.write_bytes(BAD_PCD[name])
    refused_within_limits(read_pcd, path)


BAD_PNG = {
    "promised": png_of(10_000, 10_000, zlib.compress(b"\0" * 100)),
    "too_large": png_of(60_000, 60_000, zlib.compress(b"\0" * 100)),
    "bomb": png_of(100, 100, zlib.compress(b"\1" + b"\0" * 600_000_000, 9)),
    "promised_chunk": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 0x7FFFFFFF) + b"IHDR" + b"\0" * 40,
    "many_chunks": png_of(4, 4, b"")[:33]
    + (struct.pack(">I", 0) + b"tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))) * 500_000,
}


@pytest.mark.parametrize("name", BAD_PNG)
@pytest.mark.parametrize("reader", [read_image, read_depth])
def test_png_bombs(name: str, reader: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "000069.png"
    path.write_bytes(BAD_PNG[name])
    refused_within_limits(reader, path, may_succeed=name == "bomb")  # its first 100 rows are an image


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


BAD_NPY = {
    "promised": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 100000), }\n"),
    "overflowing": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }\n"),
    "digits": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 60_000 + ", 4), }\n"),
    "nested": _npy("(" * 60_000),
    "minus": _npy("-" * 60_000 + "1"),
    "objects": npy_bytes(np.array([[print]], dtype=object)),
    "version": b"\x93NUMPY\x09\x00" + b"\0" * 40,
    "long_header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFFF) + b" " * 1000,
}


@pytest.mark.parametrize("name", BAD_NPY)
def test_npy_bombs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "000069.npy"
    path.write_bytes(BAD_NPY[name])
    refused_within_limits(read_depth, path)
