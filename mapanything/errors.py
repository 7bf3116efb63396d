"""Errors of what a user did or has: one line that says which file, what is wrong and what to do.

Everything a person can cause (a missing folder, a broken file, an unknown frame) is raised as `InputError`; the command
lines print it, and what the operating system refuses (`OSError`), as one line and leave with code 2. Any other exception
is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_OURS = {code: text for code, text in _CONTROLS.items() if chr(code) not in "\t\n\r"}  # lines and progress have the others


class InputError(ValueError):
    """Bad input. `str(error)` is one line for a person: place, problem, remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def printable(name: str) -> str:
    """A name as one piece of one line: control characters, which move a terminal's cursor or rename its window, as `\\x1b`."""
    return name.translate(_CONTROLS)


class _Shown:
    """A stream for people: whatever names are in what is written, they do not control the terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(text.translate(_OURS))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command line's `main` and leaves the process with its exit code.

    0 done, 1 the command's own verdict is bad, 2 bad input (one line on stderr), 130 interrupted by Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be no text, terminals no UTF-8
    # What a notebook's or another program's Matplotlib was told is not meant for ours: it has one look and needs no window.
    os.environ.pop("MPLBACKEND", None)
    os.environ["MATPLOTLIBRC"] = os.devnull
    sys.stdout, sys.stderr = _Shown(sys.stdout), _Shown(sys.stderr)  # all else is the stream's own
    try:
        code = main() or 0
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader (head, less) has left: not an error. Give stdout away so that the interpreter's exit is quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        # No permission, no space, a server gone: whatever was being done, the machine said no, and says to which file.
        if error.errno is None:
            raise
        print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror}", file=sys.stderr)
        code = 2
    sys.exit(code)
