"""Lists training runs by what they left in their folders: stage, epoch, best validation loss, and how each one is.

A state is what a run said last, checked against its lock: running, finished, stopped (resumes with the same command), failed
(with the reason) or killed (it ended without a word; resumes too).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mapanything.errors import InputError
from mapanything.files import is_locked
from mapanything.train.logs import LOCK, LOG, STATUS, read_log, read_status


def find_runs(root: Path) -> list[dict[str, Any]]:
    """Lists the runs below a folder, by name; such as were put aside by --fresh too.

    Raises:
        InputError: no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; runs are written to machine.root_experiments_dir (experiments)")
    folders = {path.parent for name in (STATUS, LOG) for path in root.glob(f"**/{name}")}
    return [describe(folder, str(folder.relative_to(root))) for folder in sorted(folders)]


def describe(folder: Path, name: str) -> dict[str, Any]:
    status, entries = read_status(folder), read_log(folder)
    state = status.get("state", "?")
    if is_locked(folder, LOCK):
        state = "running"
    elif state == "running":
        state = "killed"
    validated = [entry for entry in entries if _number(entry.get("validate_loss")) is not None]
    best = min(validated, key=lambda entry: entry["validate_loss"], default={})
    return {
        "run": name,
        "stage": status.get("stage"),
        "epoch": _number(status.get("epoch")),
        "epochs": _number(status.get("epochs")),
        "best": best.get("validate_loss"),
        "best_epoch": best.get("epoch"),
        "state": state,
        "reason": status.get("reason") if state == "failed" else None,
        "time": status.get("time"),
    }


def _number(value: Any) -> float | None:
    """The number, or None for what a damaged file may hold instead."""
    return value if isinstance(value, int | float) and abs(value) < 1e300 else None
