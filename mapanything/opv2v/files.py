"""Writing files so that a killed process or a full disk never leaves half a file under its final name; the cache's place."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

from mapanything.errors import InputError

TEMPORARY = ".tmp-"  # such files belong to killed runs; `write_atomic` is the only writer of the prefix


def write_atomic(path: Path, data: bytes) -> None:
    """Writes aside, flushes to the disk, renames.

    Raises:
        InputError: the folder is not writable or the disk is full; the old file, if any, is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror or error}); free space or fix permissions") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def remove_stale_temporaries(folder: Path, older_than_s: float = 3600.0) -> None:
    """Removes what killed runs left in a folder; younger files may belong to a run that is still going on."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY) and time.time() - entry.stat().st_mtime > older_than_s:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def cache_dir() -> Path:
    """Where what can be made again is kept: MAPANYTHING_CACHE, else the user's cache folder."""
    own = os.environ.get("MAPANYTHING_CACHE")
    if own:
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mapanything-opv2v"
    except RuntimeError:  # no home: a user that exists as a number only, as in containers
        return Path(tempfile.gettempdir()) / f"mapanything-opv2v-{os.getuid()}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
