"""Broken files of every sort through the readers: an InputError in one line or a sound value, never anything else.

Property-based: valid files are cut, patched and spliced at random. test_file_bombs.py has what that does not find.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapanything.arrays import npy_header
from mapanything.errors import InputError
from mapanything.opv2v.check.content import Context, FrameFiles, check_timestamp
from mapanything.opv2v.depth import read_depth
from mapanything.opv2v.exclude import read_exclude
from mapanything.opv2v.frame import Frame, read_frame
from mapanything.opv2v.layout import COMPLETE, FrameKey
from mapanything.opv2v.pcd import decode_pcd, parse_header
from mapanything.opv2v.png import check_png, decode_rgb
from mapanything.opv2v.yaml_file import read_yaml
from tests.helpers.file_bytes import POINTS, npy_bytes, pcd_bytes, png_bytes

pytestmark = pytest.mark.faults
PATH = Path("somewhere/000069.file")
EXAMPLES = settings(max_examples=150, derandomize=True)

YAML_TEXT = b"""\
camera0:
  cords: [1.5, -2.0, 1.25, 0.1, 90.5, -0.25]
  extrinsic: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
  intrinsic:
  - - 33.5
    - 0.0
    - 40.0
  - [0.0, 33.5, 30.0]
  - [0.0, 0.0, 1.0]
ego_speed: 30.25
lidar_pose:
- 1.0
- -2.0
- 3.0
- 0.0
- 90.0
- -1e-05
plan_trajectory: [[1.0, 2.0, 30.0]]
true_ego_pos: [1.0, 2.0, 3.0, 0.0, 90.0, 0.0]
vehicles:
  7:
    angle: [0.0, 1.0, 0.0]
    center: [0.0, 0.0, 0.75]
    extent: [2.0, 1.0, 0.75]
    location: [10.0, 20.0, 0.1]
    speed: 12.5
"""


@st.composite
def broken(draw: st.DrawFn, *originals: bytes, tokens: tuple[bytes, ...] = ()) -> bytes:
    """One of the originals after one to four cuts, patches, insertions or swaps of a token."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 40))
        change = draw(st.sampled_from(["cut", "patch", "insert", "delete", "repeat", "token"]))
        if change == "cut":
            data = data[:at]
        elif change == "patch":
            data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 4 :]
        elif change == "insert":
            data = data[:at] + draw(st.binary(max_size=20)) + data[at:]
        elif change == "delete":
            data = data[:at] + data[at + length :]
        elif change == "repeat":
            data = data[:at] + data[at : at + length] * draw(st.integers(2, 5)) + data[at + length :]
        elif tokens:
            words = data.split(b" ")
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(tokens))
            data = b" ".join(words)
    return data


def sound_or_refused(read: Callable[[], Any]) -> Any:
    """The result of `read`, or None where it raised an InputError of one line that names the file."""
    try:
        return read()
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert "000069" in message
    return None


@pytest.fixture(scope="module")
def file() -> Iterator[Callable[[bytes, str], Path]]:
    with tempfile.TemporaryDirectory() as folder:

        def make(data: bytes, suffix: str) -> Path:
            path = Path(folder, f"000069{suffix}")
            path.write_bytes(data)
            return path

        yield make


YAML_TOKENS = (
    b"[",
    b"]",
    b"{",
    b"}",
    b"&a",
    b"*a",
    b"<<: *a",
    b"!!python/object:os.system",
    b"!!binary x",
    b".nan",
    b".inf",
    b"1e999",
    b"0x7fffffffffffffffffffffff",
    b"1:30",
    b"2021-13-99",
    b"~",
    b"true",
    b"- - - -",
    b"|",
    b"? ",
    b"\xff",
    b"\0",
    b"\t",
    b"%YAML 9",
    b"---",
    b"...",
    b"!!set",
    b"!!timestamp 1",
    b"!!int x",
    b"'",
    b'"',
)


@EXAMPLES
@given(data=broken(YAML_TEXT, tokens=YAML_TOKENS))
def test_yaml(data: bytes, file: Callable[[bytes, str], Path]) -> None:
    frame = sound_or_refused(lambda: read_frame(file(data, ".yaml")))
    if frame is not None:
        assert_sound(frame)


def assert_sound(frame: Frame) -> None:
    assert np.isfinite(frame.world_from_lidar).all()
    for camera in frame.cameras:
        assert camera.intrinsics.shape == (3, 3)
        assert np.isfinite(camera.camera_from_lidar).all()
    assert frame.plan_trajectory.shape[1:] == (3,)


@EXAMPLES
@given(data=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_anything_as_yaml(data: bytes, file: Callable[[bytes, str], Path]) -> None:
    value = sound_or_refused(lambda: read_yaml(file(data, ".yaml")))
    assert value is None or isinstance(value, dict)


PCD_TOKENS = (
    b"99999999999999999999",
    b"-1",
    b"0",
    b"4\n",
    b"nan",
    b"1e999",
    b"1e-400",
    b"ascii\n",
    b"binary\n",
    b"binary_compressed\n",
    b"x",
    b"\n",
    b"\r\n",
    b"#",
    b"65536",
    b"U",
    b"I",
    b"8",
    b"\xb2",
    b"1_0",
    b"\t",
    b'"',
)


@EXAMPLES
@given(data=broken(pcd_bytes("ascii"), pcd_bytes("binary"), pcd_bytes("binary_compressed"), tokens=PCD_TOKENS))
def test_pcd(data: bytes) -> None:
    header = sound_or_refused(lambda: parse_header(data, PATH))
    cloud = sound_or_refused(lambda: decode_pcd(data, PATH))
    if cloud is not None:
        assert header is not None
        assert cloud.points.shape == (header.num_points, 3)
        assert cloud.points.dtype == np.float32
        assert cloud.intensity is None or cloud.intensity.shape == (header.num_points,)


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_every_truncation_of_a_cloud_is_seen(encoding: str) -> None:
    whole = pcd_bytes(encoding)
    np.testing.assert_array_equal(decode_pcd(whole, PATH).points, POINTS)
    for end in range(len(whole) - 1):
        data = whole[:end]
        cloud = sound_or_refused(lambda data=data: decode_pcd(data, PATH))
        if cloud is not None:  # only digits of the very last number may go unnoticed
            assert encoding == "ascii"
            assert end > whole.rindex(b" ")
            np.testing.assert_array_equal(cloud.points, POINTS)


PNGS = (*(png_bytes(mode) for mode in ("sub", "RGB", "L", "P", "RGBA", "I;16")),)


@EXAMPLES
@given(data=broken(*PNGS))
def test_png(data: bytes) -> None:
    info = sound_or_refused(lambda: check_png(data, PATH))
    pixels = sound_or_refused(lambda: decode_rgb(data, PATH))
    if pixels is not None:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)
        assert info is None or pixels.shape[:2] == (info.height, info.width)


@EXAMPLES
@given(data=broken(*PNGS))
def test_depth_png(data: bytes, file: Callable[[bytes, str], Path]) -> None:
    depth = sound_or_refused(lambda: read_depth(file(data, ".png")))
    assert depth is None or (depth.ndim == 2 and depth.dtype == np.float32)


@pytest.mark.parametrize("mode", ["sub", "RGB"])
def test_every_truncation_of_an_image_is_seen(mode: str) -> None:
    whole = png_bytes(mode)
    for end in range(len(whole)):
        with pytest.raises(InputError):
            check_png(whole[:end], PATH)
        pixels = sound_or_refused(lambda end=end: decode_rgb(whole[:end], PATH))
        if pixels is not None:  # what closes the data may be missing, no pixel
            np.testing.assert_array_equal(pixels, decode_rgb(whole, PATH))


NPYS = tuple(
    npy_bytes(array)
    for array in (
        np.ones((6, 8), np.float32),
        np.ones((6, 8, 1), np.float64),
        np.ones((6, 8), ">f4"),
        np.asfortranarray(np.ones((6, 8), np.float16)),
        np.ones((6, 8), np.complex64),
        np.zeros((0, 8), np.uint16),
        np.array([["a", "b"]]),
        np.zeros(3, np.dtype([("x", "f4")])),
        np.array([[{}]], dtype=object),
    )
)


@EXAMPLES
@given(
    data=broken(*NPYS, tokens=(b"(99999999999,99999999999),", b"'|O',", b"'<V9',", b"(-1,8),", b"(((((", b"True,", b"'<M8',"))
)
def test_npy(data: bytes, file: Callable[[bytes, str], Path]) -> None:
    path = file(data, ".npy")
    header = sound_or_refused(lambda: npy_header(path))
    depth = sound_or_refused(lambda: read_depth(path))
    if depth is not None:
        assert header is not None
        assert depth.ndim == 2
        assert depth.dtype == np.float32


@EXAMPLES
@given(data=st.binary(max_size=60) | broken(b"train/a/641/000069  # why\n# note\nvalidate/b\n", tokens=(b"..", b"/", b"#")))
def test_exclude_file(data: bytes, file: Callable[[bytes, str], Path]) -> None:
    sound_or_refused(lambda: read_exclude(file(data, ".txt")))


@EXAMPLES
@given(
    yaml_data=broken(YAML_TEXT, tokens=YAML_TOKENS) | st.just(YAML_TEXT),
    pcd_data=broken(pcd_bytes("ascii"), pcd_bytes("binary"), tokens=PCD_TOKENS),
    png_data=broken(*PNGS),
)
def test_check_survives_any_content(yaml_data: bytes, pcd_data: bytes, png_data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        key = FrameKey("train", "scenario", "641", "000069")
        place = Path(folder, "train", "scenario", "641")
        place.mkdir(parents=True)
        for suffix, data in ((".yaml", yaml_data), (".pcd", pcd_data), ("_camera0.png", png_data)):
            (place / f"000069{suffix}").write_bytes(data)
        for deep in (False, True):
            for problem in check_timestamp(Context(Path(folder), None, deep), [FrameFiles(key, COMPLETE & 0b111, 0)]):
                assert folder not in problem.message
                assert problem.file.startswith("train/scenario/641/000069")
