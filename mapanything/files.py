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


def check_writable(folder: Path, option: str) -> Path:
    """The folder, or of those above it the nearest that is there, in which it can be made.

    Args:
        option: that gave the folder, for messages.

    Raises:
        InputError: it is no folder, or nothing can be written there.
    """
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give another {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: is not writable; give another {option} or fix its permissions")
    return folder


class Lock:
    """Keeps others of us from writing into a folder until it is released, or the process ends, however it ends."""

    def __init__(self, folder: Path, option: str, name: str = "") -> None:
        """
        Args:
            option: that gave the folder, for messages.
            name: of a file there that says who holds it; without one the folder itself is locked, and no file left in it.

        Raises:
            InputError: another process holds it.
            OSError: there is no such folder, or it can't be opened.
        """
        flags = os.O_RDWR | os.O_CREAT if name else os.O_RDONLY | os.O_DIRECTORY
        handle = os.open(folder / name, flags | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = f" ({os.read(handle, 200).decode(errors='replace').strip() or 'it does not say who'})" if name else ""
            os.close(handle)
            text = f"{folder}: another run is writing here{holder}; wait for it, stop it, or give another {option}"
            raise InputError(text) from None
        except OSError:
            pass  # some network file systems can't: then nobody is kept out
        if name:
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {os.uname().nodename}".encode())
        self._handle: int | None = handle

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def is_locked(folder: Path, name: str) -> bool:
    """True while some process holds the `Lock` of this name."""
    try:
        handle = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def writing_alone(folder: Path, option: str) -> Iterator[None]:
    """Makes a folder and keeps others of us out meanwhile.

    Raises:
        InputError: another run is writing there; it can't be made.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is no folder; give another {option}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder, option)
    except OSError as error:
        raise InputError(f"{folder}: can't be made or opened ({error.strerror}); give another {option}") from error
    try:
        yield
    finally:
        lock.release()


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
