"""A run's folder, and what is written into it besides checkpoints.

    console.log     what the console showed, of all runs in this folder      config.yaml     the resolved config
    log.txt         a JSON line per epoch                                    manifest.json   code, lock and data, host, command
    status.json     how far it is and how it goes (`./invoke runs`)            events.*        TensorBoard
    pictures/       images, predicted and true depth after each validation

One run at a time: the first process of a run holds a lock on `.lock` for as long as it lives.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mapanything.errors import InputError
from mapanything.files import DISK_ERRORS, read_json

log = logging.getLogger(__name__)

LOCK, LOG, STATUS, CONSOLE = ".lock", "log.txt", "status.json", "console.log"


def make_folder(folder: Path) -> None:
    """Makes a run's folder.

    Raises:
        InputError: it can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output_dir {folder}: can't be made ({error.strerror}); give another or fix permissions") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"output_dir {folder}: can't be written to; give another or fix permissions")


def put_aside(folder: Path) -> Path | None:
    """Moves a former run's files into `previous-N` in the same folder, for a fresh start; None where there are none."""
    stay = (LOCK, CONSOLE)  # the one is held, the other goes on
    files = [path for path in folder.iterdir() if path.name not in stay and not re.fullmatch(r"previous-\d+", path.name)]
    if not files:
        return None
    number = 1 + max((int(p.name.split("-")[1]) for p in folder.glob("previous-*") if p.name[9:].isdigit()), default=0)
    target = folder / f"previous-{number}"
    target.mkdir()
    for path in files:
        os.rename(path, target / path.name)
    return target


# The console


class _Formatter(logging.Formatter):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        who = "" if self._rank == 0 else f"[rank {self._rank}] "
        text = f"{datetime.fromtimestamp(record.created):%m-%d %H:%M:%S} {who}{level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _File(logging.FileHandler):
    """Does without what it can't write: a full disk is said by what training can't do without, not by every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class Console:
    """Log lines to the terminal and console.log: all of rank 0's, the others' warnings. Takes its handlers away on exit."""

    def __init__(self, folder: Path, rank: int) -> None:
        level = logging.INFO if rank == 0 else logging.WARNING
        progress, errors = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
        progress.addFilter(lambda record: record.levelno < logging.ERROR)
        errors.addFilter(lambda record: record.levelno >= logging.ERROR)
        self._handlers: list[logging.Handler] = [progress, errors]
        try:
            self._handlers.append(_File(folder / CONSOLE, encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{folder / CONSOLE}: can't be written ({error.strerror}); fix permissions") from error
        for handler in self._handlers:
            handler.setFormatter(_Formatter(rank))
            handler.setLevel(level)

    def __enter__(self) -> Console:
        root = logging.getLogger()
        self._level = root.level
        root.setLevel(logging.INFO)
        for handler in self._handlers:
            root.addHandler(handler)
        logging.captureWarnings(True)
        # TensorBoard's thread dies of a full disk; `attempt` says so, in one line, when the next figure is written.
        self._excepthook = threading.excepthook
        threading.excepthook = self._thread_failed
        return self

    def _thread_failed(self, args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in DISK_ERRORS):
            self._excepthook(args)

    def __exit__(self, *_: object) -> None:
        logging.captureWarnings(False)
        threading.excepthook = self._excepthook
        root = logging.getLogger()
        root.setLevel(self._level)
        for handler in self._handlers:
            root.removeHandler(handler)
            handler.close()


# Files


def write_text(path: Path, text: str) -> None:
    """Writes a small file, or replaces it as a whole."""
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def attempt(action: Callable[[], None], what: str) -> None:
    """Does what a run can do without: a failure is said and training goes on."""
    try:
        action()
    except OSError as error:
        log.warning("%s: %s; training goes on", what, error)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The epochs of log.txt; what is none (a line that a full disk cut off) is left out."""
    lines = []
    try:
        text = (folder / LOG).read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and type(entry.get("epoch")) is int:
            lines.append(entry)
    return lines


def append_log(folder: Path, entry: Mapping[str, Any]) -> None:
    """Adds a line to log.txt."""
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def forget_epochs(folder: Path, done: int) -> None:
    """Takes the lines of epochs from `done` (0-based) on out of log.txt: a resumed run comes there again."""
    entries = read_log(folder)
    kept = [entry for entry in entries if entry["epoch"] <= done]
    if len(kept) != len(entries):
        write_text(folder / LOG, "".join(json.dumps(entry) + "\n" for entry in kept))


def write_status(folder: Path, **values: Any) -> None:
    """Writes what `./invoke runs` shows; entries that are not given stay as they are."""
    status = read_status(folder) | values | {"time": datetime.now().isoformat(timespec="seconds")}
    attempt(lambda: write_text(folder / STATUS, json.dumps(status, indent=1) + "\n"), str(folder / STATUS))


def read_status(folder: Path) -> dict[str, Any]:
    """The entries of status.json; none where it can't be read."""
    try:
        status = read_json(folder / STATUS)
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def write_manifest(folder: Path, config: DictConfig, manifest: Mapping[str, Any]) -> None:
    """config.yaml, and manifest.json: one entry for every time that the run was started or resumed."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    path = folder / "manifest.json"
    try:
        starts = list(read_json(path)["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        starts = []
    started = {"started": datetime.now().isoformat(timespec="seconds"), **manifest}
    write_text(path, json.dumps({"starts": [*starts, started]}, indent=1) + "\n")


class Curves:
    """TensorBoard's events. The axis is 1000 × the epoch, whatever a step was; a resumed run replaces what it does again."""

    def __init__(self, folder: Path, epoch: float) -> None:
        from torch.utils.tensorboard import SummaryWriter  # half a second, and only one process needs it

        self._writer: SummaryWriter | None = None

        def open_it() -> None:
            self._writer = SummaryWriter(str(folder), purge_step=round(1000 * epoch), flush_secs=30)

        attempt(open_it, "TensorBoard")

    def scalars(self, group: str, values: Mapping[str, float], epoch: float) -> None:
        """Adds a point to the curve `group`/name of each value."""
        writer = self._writer
        if writer is None:
            return

        def add() -> None:
            for name, value in values.items():
                writer.add_scalar(f"{group}/{name}", value, round(1000 * epoch))

        attempt(add, "TensorBoard")

    def image(self, name: str, pixels: Any, epoch: float) -> None:
        """Adds a picture; pixels (H, W, 3) uint8."""
        writer = self._writer
        if writer is not None:
            attempt(lambda: writer.add_image(name, pixels, round(1000 * epoch), dataformats="HWC"), "TensorBoard")

    def close(self) -> None:
        if self._writer is not None:
            attempt(self._writer.close, "TensorBoard")


def duration(seconds: float) -> str:
    """3:07 or 12:03:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
