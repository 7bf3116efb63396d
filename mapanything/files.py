"""Writing files so that a killed process or a full disk never leaves half a file under its final name; the cache's place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mapanything.errors import InputError

# The machine's doing, not the program's: the disk is full, read-only, not ours, broken.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
TEMPORARY = ".tmp-"  # such files belong to killed runs; `open_atomic` is the only writer of the prefix


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Writes aside, flushes to the disk, renames; arguments and errors as `open_atomic`."""
    with open_atomic(path, durable) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomic(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file beside its place, to be written and read, that gets its name when the block ends well. `file.name` is its path.

    Args:
        durable: off, it is not flushed to the disk: for many small files that can be generated again.

    Raises:
        InputError: the folder is not writable or the disk is full; the old file, if any, is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w+b", prefix=TEMPORARY, dir=path.parent, delete=False) as file:
            temporary = file.name
            yield file
            file.flush()
            with contextlib.suppress(OSError):  # SMB, WSL drives and object stores know no modes
                os.fchmod(file.fileno(), 0o666 & ~umask())  # what tempfile makes is the owner's alone
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror or error}); free space or fix permissions") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def read_json(path: Path) -> Any:
    """Reads a JSON file of any origin.

    Raises:
        OSError, ValueError: it can't be read; is no JSON, or nested deeper than anything of ours.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def flush(path: Path) -> None:
    """Makes sure that a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_temporaries(folder: Path, older_than_s: float = 3600.0) -> None:
    """Removes what killed runs left in a folder; younger files may belong to a run that is still going on."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # as its run gives one its name, it is gone
                if entry.name.startswith(TEMPORARY) and time.time() - entry.stat().st_mtime > older_than_s:
                    os.unlink(entry.path)


@contextlib.contextmanager
def writing_alone(folder: Path, option: str) -> Iterator[None]:
    """Makes a folder and keeps others of us from writing into it meanwhile; however the process ends, it is free again.

    Args:
        option: that gave the folder, for messages.

    Raises:
        InputError: another run is writing there; it can't be made.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give another {option}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{folder}: can't be made or opened ({error.strerror}); give another {option}") from error
    try:
        # Of the folder itself, so that no file is left in it. Some network file systems can't: then nobody is kept out.
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = f"{folder}: another run is writing here; wait for it, stop it, or give another {option}"
            raise InputError(text) from error
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def cache_dir() -> Path:
    """The folder for what can be made again: MAPANYTHING_CACHE, else the user's cache folder."""
    own = os.environ.get("MAPANYTHING_CACHE")
    if own:
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mapanything-opv2v"
    except RuntimeError:  # no home: a user that exists as a number only, as in containers
        return Path(tempfile.gettempdir()) / f"mapanything-opv2v-{os.getuid()}"


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
