"""PCD: every encoding gives the same cloud, intensity survives, and what is broken is said. Slow readers as references."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapanything.errors import InputError
from mapanything.opv2v.pcd import lzf_decompress, read_pcd

HEADER = """# .PCD v0.7 - Point Cloud Data file format
VERSION 0.7
FIELDS {fields}
SIZE {sizes}
TYPE {types}
COUNT {counts}
WIDTH {n}
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS {n}
DATA {encoding}
"""


def header(fields: str, sizes: str, types: str, n: int, encoding: str, counts: str | None = None) -> bytes:
    counts = counts or " ".join("1" for _ in fields.split())
    return HEADER.format(fields=fields, sizes=sizes, types=types, counts=counts, n=n, encoding=encoding).encode()


def lzf_literals(data: bytes) -> bytes:
    """LZF without a single back reference: valid, only not small."""
    return b"".join(bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32))


def rgb_of(red: int) -> float:
    """The float32 whose bits are 0x00RR0000: subnormal for red < 128."""
    return struct.unpack("<f", struct.pack("<I", red << 16))[0]


@pytest.fixture
def cloud() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 3)).astype(np.float32) * 40, rng.integers(0, 256, 300)


def write(path: Path, points: np.ndarray, red: np.ndarray, encoding: str) -> Path:
    head = header("x y z rgb", "4 4 4 4", "F F F F", len(points), encoding)
    packed = (red.astype(np.uint32) << 16).view(np.float32)
    if encoding == "ascii":
        rows = (f"{x:.10g} {y:.10g} {z:.10g} {rgb_of(int(r)):.10g}\n" for (x, y, z), r in zip(points, red, strict=True))
        body = "".join(rows).encode()
    elif encoding == "binary":
        body = np.column_stack([points, packed]).astype("<f4").tobytes()
    else:
        columns = np.concatenate([points.T.ravel(), packed]).astype("<f4").tobytes()
        squeezed = lzf_literals(columns)
        body = struct.pack("<II", len(squeezed), len(columns)) + squeezed
    path.write_bytes(head + body)
    return path


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_every_encoding_gives_the_same_bits(tmp_path, cloud, encoding):
    points, red = cloud
    read = read_pcd(write(tmp_path / "c.pcd", points, red, encoding))
    assert np.array_equal(read.points, points)
    assert read.intensity is not None and np.array_equal(read.intensity, red.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_intensity_survives_where_subnormals_are_flushed(tmp_path, cloud, encoding):
    torch = pytest.importorskip("torch")
    points, red = cloud
    path = write(tmp_path / "c.pcd", points, red, encoding)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        intensity = read_pcd(path).intensity
        assert intensity is not None and np.array_equal(intensity, red.astype(np.float32) / np.float32(255))
    finally:
        torch.set_flush_denormal(False)


def test_any_order_of_fields_and_extra_ones(tmp_path):
    head = header("intensity z ring y x", "4 8 2 4 4", "F F U F F", 2, "binary", "1 1 3 1 1")
    dtype = np.dtype([("i", "<f4"), ("z", "<f8"), ("r", "<u2", 3), ("y", "<f4"), ("x", "<f4")])
    table = np.array([(0.5, 3.0, (1, 2, 3), 2.0, 1.0), (0.25, 6.0, (4, 5, 6), 5.0, 4.0)], dtype=dtype)
    (tmp_path / "c.pcd").write_bytes(head + table.tobytes())
    read = read_pcd(tmp_path / "c.pcd")
    assert read.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read.intensity is not None and read.intensity.tolist() == [0.5, 0.25]


def test_ascii_of_other_writers(tmp_path):
    """Tabs, indented and trailing spaces, spelled-out NaN, Windows line ends, rgb as an integer."""
    body = b"  1\t2  3 8323072 \r\nnan nan nan 0\r\n4 5 6 16711680\r\n"
    (tmp_path / "c.pcd").write_bytes(header("x y z rgb", "4 4 4 4", "F F F U", 3, "ascii") + body)
    read = read_pcd(tmp_path / "c.pcd")
    assert read.points[[0, 2]].tolist() == [[1, 2, 3], [4, 5, 6]] and np.isnan(read.points[1]).all()
    assert read.intensity is not None and np.allclose(read.intensity, [127 / 255, 0, 1])


def test_a_cloud_without_colour_or_without_points(tmp_path):
    (tmp_path / "c.pcd").write_bytes(header("x y z", "4 4 4", "F F F", 1, "ascii") + b"1 2 3\n")
    assert read_pcd(tmp_path / "c.pcd").intensity is None
    for encoding in ("ascii", "binary"):
        (tmp_path / "c.pcd").write_bytes(header("x y z", "4 4 4", "F F F", 0, encoding))
        assert read_pcd(tmp_path / "c.pcd").points.shape == (0, 3)


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_a_file_cut_anywhere_is_said_to_be(tmp_path, cloud, encoding):
    points, red = cloud
    path = write(tmp_path / "c.pcd", points[:20], red[:20], encoding)
    data = path.read_bytes()
    # Nothing tells a number that was cut from a shorter one: the last of a text, whose line end may be missing.
    end = data.rfind(b" ") if encoding == "ascii" else len(data)
    for size in range(0, end, 3):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"c\.pcd"):
            read_pcd(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"FIELDS x y z rgb", b"FIELDS x y q rgb"),
        (b"SIZE 4 4 4 4", b"SIZE 4 4 4 3"),
        (b"SIZE 4 4 4 4", b"SIZE 4 4 4"),
        (b"POINTS 300", b"POINTS 301"),
        (b"POINTS 300", b"POINTS 99999999999999999999"),
        (b"WIDTH 300", b"WIDTH -300"),
        (b"DATA binary", b"DATA binary_squeezed"),
        (b"VERSION 0.7", b"PLY 0.7"),
    ],
)
def test_headers_that_contradict_themselves(tmp_path, cloud, old, new):
    points, red = cloud
    path = write(tmp_path / "c.pcd", points, red, "binary")
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(InputError, match=r"c\.pcd"):
        read_pcd(path)


def test_ascii_lines_that_are_no_numbers_or_too_short(tmp_path):
    head = header("x y z rgb", "4 4 4 4", "F F F F", 2, "ascii")
    for body in (b"1 2 3 0\n1 zwei 3 0\n", b"1 2 3 0\n1 2\n", b"1 2\n1 2 3 0\n"):
        (tmp_path / "c.pcd").write_bytes(head + body)
        with pytest.raises(InputError, match="numbers"):
            read_pcd(tmp_path / "c.pcd")


def slow_lzf(data: bytes) -> bytes:
    """One byte after the other, as the format's description reads."""
    out = bytearray()
    i = 0
    while i < len(data):
        control = data[i]
        i += 1
        if control < 32:
            for _ in range(control + 1):
                out.append(data[i])
                i += 1
        else:
            length = control >> 5
            if length == 7:
                length += data[i]
                i += 1
            reference = len(out) - ((control & 31) << 8) - data[i] - 1
            i += 1
            for _ in range(length + 2):
                out.append(out[reference])
                reference += 1
    return bytes(out)


@settings(max_examples=300)
@given(st.data())
def test_lzf_equals_the_slow_reader(data):
    stream, size = bytearray(), 0
    for _ in range(data.draw(st.integers(1, 12))):
        if size == 0 or data.draw(st.booleans()):
            literal = data.draw(st.binary(min_size=1, max_size=32))
            stream += bytes([len(literal) - 1]) + literal
            size += len(literal)
        else:
            distance = data.draw(st.integers(1, min(size, 8192))) - 1
            length = data.draw(st.integers(3, 264)) - 2
            head = [min(length, 7) << 5 | distance >> 8] + ([length - 7] if length >= 7 else [])
            stream += bytes([*head, distance & 255])
            size += length + 2
    assert lzf_decompress(bytes(stream), size) == slow_lzf(bytes(stream))
    assert lzf_decompress(bytes(stream), size + 1) is None


@given(st.binary(max_size=200), st.integers(0, 400))
def test_lzf_of_noise_never_fails_otherwise(data, size):
    out = lzf_decompress(data, size)
    assert out is None or len(out) == size


@pytest.mark.real
@pytest.mark.parametrize("name", ["rgb_binary", "rgb_binary_compressed", "xyzi_binary", "xyzi_ascii"])
def test_real_cloud_in_other_encodings(pcd_root: Path, name: str):
    expected = np.load(pcd_root / "opv2v_4288_000069_xyzi.npy")
    read = read_pcd(pcd_root / f"opv2v_4288_000069_{name}.pcd")
    # The ascii copy was written with ten digits after the point.
    assert np.abs(read.points - expected[:, :3]).max() <= (1e-10 if name == "xyzi_ascii" else 0)
    assert read.intensity is not None and np.array_equal(read.intensity, expected[:, 3])


@pytest.mark.real
def test_real_broken_header(pcd_root: Path):
    with pytest.raises(InputError, match="PCD"):
        read_pcd(pcd_root / "invalid_header.pcd")


def test_a_cloud_stays_as_it_is_when_another_is_read(tmp_path, cloud):
    points, red = cloud
    first = read_pcd(write(tmp_path / "a.pcd", points, red, "ascii"))
    read_pcd(write(tmp_path / "b.pcd", points + 1, red, "ascii"))
    assert np.array_equal(first.points, points)
