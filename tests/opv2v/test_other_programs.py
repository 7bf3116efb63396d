"""Files as programs in the field write them: read to the same values, or refused by their true reason, by every task alike."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mapanything.errors import InputError
from mapanything.opv2v.depth import read_depth
from mapanything.opv2v.frame import parse_frame
from mapanything.opv2v.pcd import check_body, decode_pcd, parse_header
from mapanything.opv2v.yaml_file import read_yaml
from tests.conftest import SAMPLE
from tests.helpers.file_bytes import POINTS, pcd_bytes

PATH = Path("c.pcd")
REAL_FRAME = next(path for path in sorted((SAMPLE / "opv2v_images").rglob("*.yaml")) if path.stem.isdigit())


def both(data: bytes) -> str:
    """The refusal of a cloud, the same whether its numbers are read (deep, make-depth) or not (standard); "" where none."""
    said = []
    for look in (lambda: check_body(data, parse_header(data, PATH), PATH), lambda: decode_pcd(data, PATH)):
        try:
            look()
            said.append("")
        except InputError as error:
            said.append(str(error))
    assert said[0] == said[1]
    return said[0]


GOOD = decode_pcd(pcd_bytes("binary"), PATH)


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("more", [0, 1, 4096])
def test_zero_bytes_behind_the_points_are_no_points(encoding: str, more: int) -> None:
    data = pcd_bytes(encoding) + bytes(more)
    assert both(data) == ""
    assert np.array_equal(decode_pcd(data, PATH).points, POINTS)


@pytest.mark.parametrize("encoding", ["binary", "binary_compressed"])
def test_other_bytes_behind_the_points_are_named(encoding: str) -> None:
    assert "longer than its header says" in both(pcd_bytes(encoding) + b"\0more")


def test_the_last_line_needs_no_end() -> None:
    data = pcd_bytes("ascii")
    assert both(data[:-1]) == ""
    assert np.array_equal(decode_pcd(data[:-1], PATH).points, decode_pcd(data, PATH).points)


@pytest.mark.parametrize(("cut", "said"), [(-1, "row 20 has 2 of 4 numbers"), (4, "row 5 has 2 of 4 numbers")])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_row_that_was_cut_is_named(cut: int, said: str, end: bytes) -> None:
    *lines, _ = pcd_bytes("ascii").split(b"\n")
    row = cut if cut < 0 else len(lines) - 20 + cut
    lines[row] = b" ".join(lines[row].split()[:2])
    refusal = both(b"\n".join(lines) + end)
    assert said in refusal and "usecols" not in refusal


def test_rows_that_are_missing_or_too_many_are_counted() -> None:
    *lines, _ = pcd_bytes("ascii").split(b"\n")
    assert "has 19 of 20 points" in both(b"\n".join(lines[:-1]) + b"\n")
    assert "has 21 of 20 points" in both(b"\n".join([*lines, lines[-1]]) + b"\n")
    assert both(b"\n\n".join(lines) + b"\n") == ""  # blank lines are none


def test_fields_without_bytes_are_passed_over() -> None:
    data = pcd_bytes("binary").replace(b"FIELDS x y z rgb", b"FIELDS x _ y z _ rgb")
    data = data.replace(b"SIZE 4 4 4 4", b"SIZE 4 1 4 4 1 4").replace(b"TYPE F F F F", b"TYPE F U F F U F")
    data = data.replace(b"COUNT 1 1 1 1", b"COUNT 1 0 1 1 0 1")
    cloud = decode_pcd(data, PATH)
    assert np.array_equal(cloud.points, POINTS)
    assert cloud.intensity is not None and np.array_equal(cloud.intensity, GOOD.intensity)  # type: ignore[arg-type] # has one
    with pytest.raises(InputError, match="no field y"):
        decode_pcd(data.replace(b"COUNT 1 0 1 1 0 1", b"COUNT 1 0 0 1 0 1"), PATH)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_a_signed_colour_has_the_same_bits(encoding: str) -> None:
    bits = (np.arange(20, dtype=np.uint32) * 9 << 16) | np.uint32(0xFF000000)  # opaque: negative as int32
    head = pcd_bytes("ascii").partition(b"DATA")[0].replace(b"TYPE F F F F", b"TYPE F F F I").replace(b"rgb", b"rgba")
    head += f"DATA {encoding}\n".encode()
    if encoding == "ascii":
        body = "".join(f"{x:g} {y:g} {z:g} {c}\n" for (x, y, z), c in zip(POINTS, bits.view(np.int32))).encode()
    else:
        body = np.column_stack([POINTS.view(np.int32), bits.view(np.int32)]).astype("<i4").tobytes()
    intensity = decode_pcd(head + body, PATH).intensity
    assert intensity is not None and np.allclose(intensity * 255, np.arange(20) * 9)


def test_points_without_an_echo_are_kept_as_such_and_none_at_all_is_refused() -> None:
    points = POINTS.copy()
    points[3:9] = np.nan
    head = b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 20\nHEIGHT 1\nDATA binary\n"
    assert np.isfinite(decode_pcd(head + points.tobytes(), PATH).points).all(axis=1).sum() == 14
    with pytest.raises(InputError, match="none of its 20 points is finite"):
        decode_pcd(head + np.full_like(points, np.nan).tobytes(), PATH)


def test_more_points_than_any_frame_has_are_said_to_be() -> None:
    count = str(10**17).encode()
    data = pcd_bytes("ascii").replace(b"WIDTH 20", b"WIDTH " + count).replace(b"POINTS 20", b"POINTS " + count)
    with pytest.raises(InputError, match=r"says 10{17} points, over 100,000,000: no frame has that many"):
        parse_header(data, PATH)


# YAML


def frame_text(change: Callable[[dict[Any, Any]], Any]) -> dict[Any, Any]:
    data = copy.deepcopy(read_yaml(REAL_FRAME))
    change(data)
    return data


def same_frame(data: dict[Any, Any]) -> bool:
    ours, theirs = parse_frame(data, REAL_FRAME), parse_frame(read_yaml(REAL_FRAME), REAL_FRAME)
    return np.array_equal(ours.lidar_pose, theirs.lidar_pose) and [v.id for v in ours.vehicles] == [
        v.id for v in theirs.vehicles
    ]


def test_numbers_in_quotes_are_numbers() -> None:
    assert same_frame(frame_text(lambda d: d.update(lidar_pose=[f" {v!r}" for v in d["lidar_pose"]])))


def test_ids_as_text_are_ids_and_two_of_one_are_refused() -> None:
    def as_text(data: dict[Any, Any]) -> None:
        data["vehicles"] = {str(key): value for key, value in data["vehicles"].items()}

    assert same_frame(frame_text(as_text))
    for key in ("veh_301", True, 1.5):
        with pytest.raises(InputError, match="is no vehicle"):
            parse_frame(frame_text(lambda d, key=key: d["vehicles"].update({key: next(iter(d["vehicles"].values()))})), PATH)

    def twice(data: dict[Any, Any]) -> None:
        number, value = next(iter(data["vehicles"].items()))
        data["vehicles"][str(number)] = value

    with pytest.raises(InputError, match="is no vehicle"):
        parse_frame(frame_text(twice), PATH)


def test_null_is_as_if_absent() -> None:
    assert np.isnan(parse_frame(frame_text(lambda d: d.update(ego_speed=None)), PATH).ego_speed_kmh)
    vehicle = frame_text(lambda d: [v.update(speed=None) for v in d["vehicles"].values()])
    assert np.isnan([v.speed_kmh for v in parse_frame(vehicle, PATH).vehicles]).all()


@pytest.mark.parametrize(("value", "word"), [(None, "missing"), ([], "a list"), ({}, "a mapping"), (True, "true or false")])
def test_no_python_type_is_named(value: Any, word: str) -> None:
    def change(data: dict[Any, Any]) -> None:
        if value is None:
            data["lidar_pose"] = None
        else:
            data["lidar_pose"][0] = value

    with pytest.raises(InputError, match=word) as error:
        parse_frame(frame_text(change), PATH)
    assert not any(name in str(error.value) for name in ("NoneType", "bool", "dict", "'list'"))


def test_python_objects_are_named_and_never_made(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(yaml.dump({"lidar_pose": [np.float64(1.5)] * 6}))
    with pytest.raises(InputError, match=r"holds Python objects \(tag python/object/apply.*tolist") as error:
        read_yaml(path)
    assert "restore" not in str(error.value)
    path.write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(InputError, match="Python objects"):
        read_yaml(path)
    path.write_text(yaml.dump({"lidar_pose": (1, 2, 3)}))
    assert read_yaml(path) == {"lidar_pose": [1, 2, 3]}
    path.write_text("a: !unknown 3\n")
    with pytest.raises(InputError, match="is no valid YAML"):
        read_yaml(path)


# Depth


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1)])
def test_column_major_arrays_are_read_to_the_last_bit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(15, dtype=np.float32).reshape(shape) / 7
    np.save(tmp_path / "c.npy", values)
    np.save(tmp_path / "f.npy", np.asfortranarray(values))
    assert b"'fortran_order': True" in (tmp_path / "f.npy").read_bytes()[:128]
    assert np.array_equal(read_depth(tmp_path / "f.npy"), read_depth(tmp_path / "c.npy"))
    assert read_depth(tmp_path / "f.npy").flags["C_CONTIGUOUS"]


def test_a_compressed_cloud_that_ends_in_its_sizes_is_truncated() -> None:
    data = pcd_bytes("binary_compressed")
    offset = parse_header(data, PATH).offset
    assert struct.unpack("<I", data[offset + 4 : offset + 8])[0] == 320
    assert "truncated" in both(data[: offset + 4]) and "truncated" in both(data[: offset + 9])
