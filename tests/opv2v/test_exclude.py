"""The exclude file: what is written is read back, what is wrong is named by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mapanything.errors import InputError
from mapanything.opv2v.exclude import HEADER, Excluded, check_replaceable, read_exclude, write_exclude
from mapanything.opv2v.layout import FrameKey


def key(text: str) -> FrameKey:
    return FrameKey(*text.split("/"))


def read(tmp_path: Path, text: str | bytes) -> Excluded:
    path = tmp_path / "exclude.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_exclude(path)


def test_scenario_agent_and_frame_are_excluded_with_what_is_below(tmp_path: Path) -> None:
    excluded = read(tmp_path, "train/s1  # broken\ntrain/s2/641\ntrain/s3/-1/000069 # RSU\n")
    for text in ("train/s1/641/000069", "train/s1/9/000001", "train/s2/641/000069", "train/s3/-1/000069"):
        assert excluded.contains(key(text))
    for text in ("validate/s1/641/000069", "train/s2/6410/000069", "train/s3/-1/000071", "train/s/641/000069"):
        assert not excluded.contains(key(text))
    assert len(excluded) == 3


def test_comments_blank_lines_windows_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    excluded = read(tmp_path, b"\xef\xbb\xbf# note\r\n\r\n  train/s1\t# \xe5\x9d\x8f\r\n#train/s2\r\ntrain/s3#x")
    assert excluded.entries == {("train", "s1"), ("train", "s3#x")}


def test_both_names_of_culver_city_are_one(tmp_path: Path) -> None:
    excluded = read(tmp_path, "test_culvercity/s1\ntest_culver_city/s2\n")
    for split in ("test_culvercity", "test_culver_city"):
        assert excluded.contains(FrameKey(split, "s1", "1", "000001"))
        assert excluded.contains(FrameKey(split, "s2", "1", "000001"))


def test_nothing_is_excluded_by_an_empty_file(tmp_path: Path) -> None:
    assert not read(tmp_path, "").contains(key("train/s1/641/000069"))
    assert not Excluded().contains(key("train/s1/641/000069"))


INCOMPLETE = ("train", "train/", "train//641", "/train/s1", "s1/641", "train/s1/641/000069/x", "train/../641")
BAD_LINES = (*INCOMPLETE, "train\\s1", "train/s1/641/00x", "train/s1/641/000069.yaml", b"train/\xff")


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_lines_are_named(tmp_path: Path, line: str | bytes) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(InputError, match=r"exclude\.txt:3: "):
        read(tmp_path, b"# first\ntrain/s1\n" + raw + b"\n")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.txt: No such file"):
        read_exclude(tmp_path / "nothing.txt")


def test_written_is_read_back_and_the_same_bytes(tmp_path: Path) -> None:
    entries = [(("train", "s2", "641", "000069"), "missing-image"), (("train", "s 1"), "two\nlines")]
    for name, order in (("a", entries), ("b", entries[::-1])):
        write_exclude(tmp_path / name, order)
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()
    assert text.splitlines() == [HEADER, "train/s 1  # two lines", "train/s2/641/000069  # missing-image"]
    assert read_exclude(tmp_path / "a").entries == {parts for parts, _ in entries}


@pytest.mark.parametrize("name", ["s #1", "s\n1", "s\\1"])
def test_a_name_that_would_read_back_differently_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        write_exclude(tmp_path / "exclude.txt", [(("train", name), "")])
    assert not list(tmp_path.iterdir())


def test_only_own_files_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "exclude.txt"
    check_replaceable(path)
    write_exclude(path, [])
    check_replaceable(path)
    path.write_text("train/s1  # by hand\n")
    with pytest.raises(InputError, match="was not written by check-data"):
        check_replaceable(path)
