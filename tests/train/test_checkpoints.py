"""Files that survive: kills at every point of a save, damage, full disks, leftovers."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from mapanything.errors import InputError
from mapanything.train import checkpoints
from mapanything.train.checkpoints import LAST, PREVIOUS, clean, find_damage, find_resumable, read, write

pytestmark = pytest.mark.faults


def content(value: float, size: int = 1000) -> dict:
    return {"model": {"a": torch.full((size,), float(value)), "b": torch.arange(3)}, "epoch": 1, "name": "x", "none": None}


def value(path: Path) -> float:
    return float(read(path)["model"]["a"][0])


def test_last_and_previous(tmp_path):
    for number in (1.0, 2.0, 3.0):
        write(tmp_path / LAST, content(number), keep_previous=True)
    assert value(tmp_path / LAST) == 3 and value(tmp_path / PREVIOUS) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert find_resumable(tmp_path) == (tmp_path / LAST, [])


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "not supported")

    monkeypatch.setattr(os, "link", refuse)
    for number in (1.0, 2.0):
        write(tmp_path / LAST, content(number), keep_previous=True)
    assert value(tmp_path / LAST) == 2 and value(tmp_path / PREVIOUS) == 1


POINTS = [
    "write 1",
    "write 4",
    "os.fsync 1",
    "checkpoints.find_damage 1",
    "os.link 1",
    "os.replace 1",
    "os.replace 2",
    "os.fsync 2",
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_point_of_a_save(tmp_path, point):
    """The n-th call of something in a save kills the process: the old or the new checkpoint is whole."""
    write(tmp_path / LAST, content(1), keep_previous=True)
    write(tmp_path / LAST, content(2), keep_previous=True)
    name, count = point.split()
    pid = os.fork()
    if pid == 0:
        calls = 0

        def deadly(call):
            def called(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == int(count):
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return called

        if name == "write":
            checkpoints._Destination.write = deadly(checkpoints._Destination.write)
        else:
            module, function = (checkpoints if name.startswith("checkpoints") else os), name.split(".")[1]
            setattr(module, function, deadly(getattr(module, function)))
        write(tmp_path / LAST, content(3), keep_previous=True)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "the point was never reached"
    path, notes = find_resumable(tmp_path)
    assert path == tmp_path / LAST and not notes and value(tmp_path / LAST) in (2, 3)
    clean(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {LAST, PREVIOUS}
    write(tmp_path / LAST, content(4), keep_previous=True)
    assert value(tmp_path / LAST) == 4 and value(tmp_path / PREVIOUS) in (2, 3)


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = bytearray()
    elif how == "zeros":
        data = bytearray(len(data))
    else:
        data[data.find(torch.full((4,), 2.0).numpy().tobytes()) + 8] ^= 1  # a single bit of a weight
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "empty", "zeros", "one bit"])
def test_damage_is_found_and_the_previous_one_taken(tmp_path, how):
    write(tmp_path / LAST, content(1), keep_previous=True)
    write(tmp_path / LAST, content(2), keep_previous=True)
    damaged(tmp_path / LAST, how)
    path, notes = find_resumable(tmp_path)
    assert path == tmp_path / PREVIOUS and value(tmp_path / PREVIOUS) == 1
    assert len(notes) == 1 and LAST in notes[0] and "set aside" in notes[0]
    assert clean(tmp_path) == [f"{LAST}.corrupt"]


def test_nothing_whole_is_left(tmp_path):
    write(tmp_path / LAST, content(1))
    damaged(tmp_path / LAST, "truncated")
    for _ in range(2):  # and it does not start afresh the second time
        with pytest.raises(InputError, match="no whole checkpoint is left"):
            find_resumable(tmp_path)


def test_every_single_bit_counts(tmp_path):
    """Whatever bit of the file changes: damage is found, or the content is the same."""
    path = tmp_path / "file.pth"
    write(path, content(1, size=20))
    data, expected = path.read_bytes(), read(path)
    for place in range(0, len(data), 5):
        broken = bytearray(data)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(broken)
        if find_damage(path) is None:
            again = read(path)
            assert all(torch.equal(again["model"][k], expected["model"][k]) for k in expected["model"]), place


def test_leftovers_are_no_checkpoints(tmp_path):
    for name in (f"{LAST}.tmp-123", f"{LAST}.corrupt", f"{PREVIOUS}.tmp-9", "status.json.part"):
        (tmp_path / name).write_bytes(b"half")
    assert find_resumable(tmp_path) == (None, [])
    assert len(clean(tmp_path)) == 4 and not list(tmp_path.iterdir())


def test_file_too_large_for_the_disk(tmp_path):
    write(tmp_path / LAST, content(1), keep_previous=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(InputError, match=f"can't be written .*{LAST} is whole") as caught:
            write(tmp_path / LAST, content(2, size=100_000), keep_previous=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [LAST] and value(tmp_path / LAST) == 1


@pytest.mark.parametrize("where", ["_Destination.write", "fsync"])
def test_full_disk(tmp_path, monkeypatch, where):
    """ENOSPC comes while writing, or, on file systems that allocate late, when flushing."""
    write(tmp_path / LAST, content(1), keep_previous=True)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:

        class Full:
            def __init__(self, file):
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            write = full

        opened = Path.open

        def open_(self, *arguments, **options):
            file = opened(self, *arguments, **options)
            return Full(file) if "tmp-" in self.name else file

        monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(InputError, match=r"No space left on device.*checkpoint-last.pth is whole; the disk is full"):
        write(tmp_path / LAST, content(2), keep_previous=True)
    assert [p.name for p in tmp_path.iterdir()] == [LAST] and value(tmp_path / LAST) == 1


def test_disk_that_gives_back_something_else(tmp_path, monkeypatch):
    write(tmp_path / LAST, content(1), keep_previous=True)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(checkpoints, "find_damage", lambda path: "the checksum of data/0 in it is wrong")
    with pytest.raises(InputError, match="can't be read back: the checksum"):
        write(tmp_path / LAST, content(2), keep_previous=True)
    assert value(tmp_path / LAST) == 1
