"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mapanything import files
from mapanything.errors import InputError
from mapanything.files import flush, open_atomic, umask, write_atomic


def test_file_is_whole_and_everybodys(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for data in (b"first", b"second"):
        write_atomic(path, data)
        assert path.read_bytes() == data and os.listdir(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def test_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with open_atomic(path) as file:
            file.write(b"half")
            assert Path(file.name).parent == tmp_path and path.read_bytes() == b"old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("durable", [True, False])
def test_full_disk_is_one_line(durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync" if durable else "replace", full)
    with pytest.raises(InputError, match=r"file: can.t be written .No space left on device.; free space"):
        write_atomic(tmp_path / "file", b"data", durable)
    assert not os.listdir(tmp_path)


def test_only_what_is_durable_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(files.os, "fsync", flushed.append)
    write_atomic(tmp_path / "a", b"", durable=False)
    assert not flushed
    write_atomic(tmp_path / "a", b"")
    flush(tmp_path)
    assert len(flushed) == 2


def test_a_file_system_without_modes_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    write_atomic(tmp_path / "x", b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"
    monkeypatch.setattr(os, "fsync", refuse)  # what fails to be written still does
    with pytest.raises(InputError, match="can't be written"):
        write_atomic(tmp_path / "y", b"lost")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
