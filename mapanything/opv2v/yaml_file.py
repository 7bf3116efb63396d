"""Reads a frame's YAML: safe, fast (libyaml), bounded. What a hostile or broken file can do is one clear line.

libyaml's composer recurses in C without a limit: 100,000 nested brackets end the process by a segmentation fault. So a
file whose bytes could nest deeply is walked event by event first, which does not recurse.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mapanything.errors import InputError

MAX_BYTES = 8 << 20  # real frames have 9 to 36 KB
MAX_DEPTH = 64  # real frames nest 4 deep


class _Loader(yaml.CSafeLoader):
    """Safe loading of plain values; numbers like 1e-6 are floats (YAML 1.1 makes them strings); no merge keys.

    Merge keys (`<<`) are copied when they are resolved, so that a small file could grow without end.
    """


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":merge", ":timestamp", ":value"))]
    for first, pairs in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+\Z")


def _tuple(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
for _first in "-+.0123456789":
    _Loader.yaml_implicit_resolvers.setdefault(_first, []).insert(0, ("tag:yaml.org,2002:float", _FLOAT))


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: missing, unreadable, empty, not YAML, too large, nested too deep, or no mapping.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: over {MAX_BYTES >> 20} MB, no frame is that large; restore the file")
    if not data.strip(b"\0\t\r\n "):
        raise InputError(f"{path}: is empty; restore the file")
    try:
        if _may_nest_deeply(data):
            _check_depth(path, data)
        value = yaml.load(data, _Loader)  # noqa: S506 (a CSafeLoader)
    except InputError:
        raise
    except yaml.constructor.ConstructorError as error:
        tag = re.search(r"'tag:yaml.org,2002:(python/[\w./:]*)", error.problem or "")
        if tag is None:
            raise InputError(f"{path}: is no valid YAML ({_reason(error)}); restore the file") from error
        objects = f"{path}: holds Python objects (tag {tag[1]})"
        raise InputError(f"{objects}, which are never made: write plain numbers, e.g. with `.tolist()`") from error
    except (yaml.YAMLError, ValueError, ArithmeticError, TypeError, AttributeError, LookupError) as error:
        # A constructor may fail on a value that only looks like a number or date: broken input too, not a bug of ours.
        raise InputError(f"{path}: is no valid YAML ({_reason(error)}); restore the file") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {kind_of(value)} where a mapping is due; restore the file")
    return value


def kind_of(value: Any) -> str:
    """A value's kind in YAML's words. A list is never printed: through aliases a small file can hold one of 9^39 items."""
    if isinstance(value, str):
        return repr(value[:40])
    kinds = {type(None): "null", bool: "true or false", list: "a list", dict: "a mapping", int: "a number", float: "a number"}
    return kinds.get(type(value), "no plain value")


def _may_nest_deeply(data: bytes) -> bool:
    """A level is opened by a bracket or lies further right in its line than the one around it; a cheap upper bound."""
    brackets = data.count(b"[") + data.count(b"{")
    return brackets > 400 or max(map(len, data.split(b"\n"))) > 400


def _check_depth(path: Path, data: bytes) -> None:
    depth = 0
    for event in yaml.parse(data, yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise InputError(f"{path}: nests over {MAX_DEPTH} levels deep, no frame does; restore the file")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error) or type(error).__name__
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)[:200]
