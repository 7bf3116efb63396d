"""Checkpoints on disk: whatever happens while one is written, a good one is there.

    checkpoint-last.pth      all that a resumed run needs; checkpoint-previous.pth: the one before it, while the run lasts
    checkpoint-best.pth      weights only, of the best validation; checkpoint-final.pth: weights only, of the end

Notable:
- A file is written beside its place, flushed to the disk, read back and compared by checksum, and only then renamed. The
  checksums are the CRC-32 that a zip archive, which is what torch writes, has for each of its entries; so there is no second
  file that could be lost or belong to another checkpoint.
- What a killed run leaves (`*.tmp-*`, `*.corrupt`) is never read, and is removed when the next run starts.
- Files are read with `weights_only=True`: plain Python values and tensors.
"""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from mapanything.errors import InputError
from mapanything.files import flush

LAST, PREVIOUS, BEST, FINAL = (f"checkpoint-{name}.pth" for name in ("last", "previous", "best", "final"))
FORMAT = 1  # of what `state` in state.py puts together


class _Destination:
    """A file that remembers why writing to it failed; torch says only that it did."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def write(path: Path, content: dict[str, Any], keep_previous: bool = False) -> int:
    """Writes a checkpoint so that at every moment either the old or the new one is there, whole.

    Args:
        keep_previous: what was there becomes PREVIOUS, instead of being replaced.

    Returns:
        Bytes written.

    Raises:
        InputError: no space, no permission, or the disk does not give back what was written; the old one is untouched.
    """
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            destination = _Destination(file)
            try:
                torch.save(content, cast(BinaryIO, destination))  # torch needs `write` and `flush`
            except Exception as error:  # torch's zip writer hides the reason
                if destination.error is not None:
                    raise destination.error from error
                raise
            file.flush()
            os.fsync(file.fileno())
        problem = find_damage(aside)
        if problem:
            raise OSError(errno.EIO, f"what was written can't be read back: {problem}")
        if keep_previous and path.exists():
            _keep(path)
        os.replace(aside, path)
        flush(path.parent)
        return path.stat().st_size
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise InputError(_why_not(path, error)) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _keep(path: Path) -> None:
    """PREVIOUS becomes another name of `path`, which stays where it is: there is no moment without it."""
    link = path.with_name(f"{PREVIOUS}.tmp-{os.getpid()}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
        os.replace(link, path.with_name(PREVIOUS))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        os.replace(path, path.with_name(PREVIOUS))  # no hard links on this file system


def _why_not(path: Path, error: OSError) -> str:
    kept = [path.parent / name for name in (LAST, PREVIOUS) if (path.parent / name).exists()]
    remedy = "repair that"
    if error.errno == errno.ENOSPC:
        needed = f", a checkpoint takes {_size(kept[0].stat().st_size)}" if kept else ""
        remedy = f"the disk is full ({_size(shutil.disk_usage(path.parent).free)} free{needed}): free space"
    rest = f"{kept[0].name} is whole; {remedy} and start again, nothing else is lost" if kept else f"{remedy} and start again"
    return f"{path}: can't be written ({error.strerror}); {rest}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def find_damage(path: Path) -> str | None:
    """The fault of a checkpoint file, None if its checksums are right. Reads all of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"the checksum of {broken} in it is wrong"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # the archive's own headers have no checksum
    except MemoryError:
        raise
    except Exception as error:  # what damage makes zipfile and torch raise can be anything
        words = " ".join(str(error).split())[:200] or type(error).__name__
        return f"it is damaged or was not written to its end ({words})"
    return None


def read(path: Path, map_location: str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint that `find_damage` has found nothing in. Mapped: memory is used as it is looked at."""
    content = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    if not isinstance(content, dict) or "model" not in content:
        raise InputError(f"{path}: holds no run to resume; start afresh, or give another output_dir")
    return content


def find_resumable(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and what is to be said about those that are not.

    A damaged file is renamed to `*.corrupt`, once a whole one is found.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        problem = find_damage(path)
        if problem is not None:
            damaged.append((path, problem))
            continue
        for broken, _ in damaged:
            os.replace(broken, broken.with_name(f"{broken.name}.corrupt"))
        return path, [f"{broken}: {what}; set aside as {broken.name}.corrupt" for broken, what in damaged]
    if damaged:
        raise InputError(
            f"{'; '.join(f'{path}: {what}' for path, what in damaged)}; no whole checkpoint is left here: resume=false "
            "(./invoke train --fresh) puts all this aside and starts afresh"
        )
    return None, []


def clean(folder: Path) -> list[str]:
    """Removes what a killed run left behind; the names of what was removed. Only for who holds the run's lock."""
    leftovers = [path for pattern in ("checkpoint-*.tmp-*", "*.corrupt", "*.part") for path in folder.glob(pattern)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return sorted(path.name for path in leftovers)
