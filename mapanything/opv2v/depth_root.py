"""Depth roots: `depth.json` beside the maps says what they are, one kind of map in one root.

    {"format": 1, "source": "lidar", "method": "visible", "parameters": {"jump": 0.3}, "version": 1}

Whoever writes maps calls `claim` first, whoever believes them calls `look`. A root without the file (made before it existed,
or by others) is told by its maps: a LiDAR's dots, OPV2V-H's whole metres, or a renderer's surfaces.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mapanything.errors import InputError
from mapanything.files import read_json, write_atomic
from mapanything.opv2v.depth import is_dense, read_depth
from mapanything.opv2v.layout import DepthLayout
from mapanything.opv2v.png import png_info, read_bytes

NAME = "depth.json"
FORMAT = 1
SOURCES = {
    "lidar": "LiDAR maps",
    "fused": "LiDAR maps of several vehicles",
    "rendered": "rendered maps",
    "opv2v-h": "OPV2V-H maps in whole metres",
}
PLAIN = "z-buffer"  # the method that knows nothing of visibility: what stands before the surface leaves gaps
MAX_BYTES = 1 << 16
MAX_PARAMETERS = 64
EXAMPLES = 4  # maps that are looked at

Value = bool | int | float | str
_TEXT = re.compile(r"[\w .,:=+/()-]{1,80}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class DepthRoot:
    """The kind of the maps under a root.

    Attributes:
        source: a key of `SOURCES`.
        method: how the maps were made of it: `PLAIN`, "visible", "ray casting"...
        parameters: that decide the maps' values. version: of the method; another one gives other maps.
    """

    source: str
    method: str
    parameters: dict[str, Value] = field(default_factory=dict)
    version: int = 1

    @property
    def is_lidar(self) -> bool:
        return self.source in ("lidar", "fused")

    @property
    def is_plain(self) -> bool:
        """LiDAR maps with labels of what the camera cannot see."""
        return self.is_lidar and self.method == PLAIN

    def __str__(self) -> str:
        if self.is_plain:
            return f"plain {SOURCES[self.source]}, made without visibility"
        details = "".join(f", {name} {value}" for name, value in sorted(self.parameters.items()))
        return f"{SOURCES[self.source]} ({self.method}{details})"

    def to_dict(self) -> dict[str, Any]:
        """The content of depth.json, and of manifests and records."""
        return {"format": FORMAT, **asdict(self)}


def read(root: Path) -> DepthRoot | None:
    """Reads depth.json; None where there is none.

    Raises:
        InputError: it can't be read, or is no such record.
    """
    path = root / NAME
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"over {MAX_BYTES >> 10} KB")
        return _parse(read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: does not say what the maps are ({reason}); restore it, or make the maps again") from error


def _parse(data: Any) -> DepthRoot:
    if not isinstance(data, dict):
        raise ValueError("no mapping")
    if data.get("format") != FORMAT:
        raise ValueError(f"not format {FORMAT}")
    source, method, parameters, version = (data.get(key) for key in ("source", "method", "parameters", "version"))
    if not isinstance(source, str) or source not in SOURCES:
        raise ValueError(f"source is none of {', '.join(SOURCES)}")
    if not isinstance(method, str) or not _TEXT.match(method):
        raise ValueError("method is no plain word")
    if not isinstance(parameters, dict) or len(parameters) > MAX_PARAMETERS:
        raise ValueError("parameters is no short mapping")
    for name, value in parameters.items():
        number = isinstance(value, (int, float)) and abs(value) < 1e15  # NaN: false
        if not _TEXT.match(name) or not (number or (isinstance(value, str) and _TEXT.match(value))):
            raise ValueError("a parameter is neither a number nor a plain word")
    if not isinstance(version, int) or isinstance(version, bool):
        raise ValueError("version is no whole number")
    return DepthRoot(source, method, parameters, version)


def write(root: Path, kind: DepthRoot) -> None:
    """Writes depth.json, whole or not at all."""
    write_atomic(root / NAME, (json.dumps(kind.to_dict(), indent=1, sort_keys=True) + "\n").encode())


def maps_of(layout: DepthLayout) -> Iterator[Path]:
    """The maps under a root, .npy and .png, by their names; pictures in colour are none."""
    parts = re.split(r"({\w+})", str(Path(layout.pattern).with_suffix("")))
    stem = re.sub(r"\*+", "*", "".join("*" if part.startswith("{") else glob.escape(part) for part in parts))
    for suffix in (".npy", ".png"):
        for name in glob.iglob(os.path.join(glob.escape(str(layout.root)), stem + suffix)):
            if os.path.isfile(name) and (suffix == ".npy" or _is_grey(Path(name))):
                yield Path(name)


def _is_grey(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return png_info(file.read(64), path).colour_type == 0
    except (OSError, InputError):
        return False


def recognise(layout: DepthLayout) -> DepthRoot | None:
    """Tells what a root without depth.json holds, by some of its maps; None where no map can be read."""
    for path in islice(maps_of(layout), EXAMPLES):
        try:
            if path.suffix == ".png" and png_info(read_bytes(path), path).bit_depth == 8:
                return DepthRoot("opv2v-h", "8 bit")
            depth = read_depth(path)
        except InputError:
            continue
        if (depth > 0).any():
            return DepthRoot("rendered", "method unknown") if is_dense(depth) else DepthRoot("lidar", PLAIN)
    return None


def look(layout: DepthLayout) -> DepthRoot | None:
    """Reads what a root says its maps are, else looks at them; None where neither tells.

    Raises:
        InputError: depth.json is broken, or says something else than the maps do.
    """
    said, seen = read(layout.root), recognise(layout)
    if said is None or seen is None:
        return said or seen
    if said.source == "rendered" and seen.is_lidar:
        raise InputError(
            f"{layout.root}: {NAME} says {said}, but the maps are a LiDAR's; give the depth root that holds one kind of maps"
        )
    return said


def claim(layout: DepthLayout, kind: DepthRoot, replace: bool = False) -> int:
    """Makes a root one of `kind` before maps are written into it. Returns how many maps of another kind were removed.

    Args:
        replace: maps of another kind are removed, where a LiDAR can make them again: only for a run that makes all of them.

    Raises:
        InputError: it holds maps of another kind, or can't be written.
    """
    there = look(layout) if layout.root.is_dir() else None
    if there is None or there == kind:
        write(layout.root, kind)
        return 0
    if not there.is_lidar or not kind.is_lidar:
        raise InputError(f"{layout.root}: holds {there}, and would get {kind}; give another --depth-root")
    if not replace:
        raise InputError(
            f"{layout.root}: holds {there}, and would get {kind}; give another --depth-root, or make all maps anew: "
            "--overwrite without --split, --scenario, --agent and --frame"
        )
    removed = 0
    # The maps first: whenever this is stopped, what is left is what depth.json says.
    for path in list(maps_of(layout)):
        path.unlink(missing_ok=True)
        removed += 1
    write(layout.root, kind)
    return removed
