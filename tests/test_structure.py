"""The house: which room may import which (imports run one way), no circles, no import that does or loads too much."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mapanything"
# A room may import itself, what everybody may, and what is named here.
EVERYBODY = {"errors", "environment", "files", "arrays", "processes"}
MAY_IMPORT = {
    "cli": set(),
    "errors": set(),
    "environment": set(),
    "files": set(),
    "arrays": set(),
    "processes": set(),
    "geometry": set(),
    "opv2v": {"geometry"},
    "datasets": {"geometry", "opv2v"},
    "results": {"geometry"},
    "pictures": {"geometry", "opv2v", "results"},
    "viewer": {"geometry", "opv2v", "results", "pictures"},
    "utils": {"geometry", "opv2v", "results", "pictures"},
    "models": {"geometry"},
    "train": {"geometry", "opv2v", "datasets", "models"},
    "memory": {"geometry", "opv2v", "datasets", "models", "train"},
    "inference": {"geometry", "opv2v", "datasets", "models", "results"},
    "evaluation": {"geometry", "opv2v", "datasets", "models", "inference", "results", "pictures"},
    "tools": {
        "cli",
        "geometry",
        "opv2v",
        "datasets",
        "models",
        "train",
        "memory",
        "inference",
        "evaluation",
        "results",
        "pictures",
        "viewer",
        "utils",
    },
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """Modules of this package that a file imports."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names}
    return {name for name in names if name in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    room = name.split(".")[1] if "." in name else ""
    if not room:
        return
    for other in imported(MODULES[name]):
        target = other.split(".")[1] if "." in other else ""
        assert target in {room, "", *EVERYBODY} | MAY_IMPORT[room], f"{name} imports {other}"


def test_no_circle():
    graph = {name: imported(path) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("file", ["tasks.py", "dev/cli.py", *(f"mapanything/cli/{p.name}" for p in PACKAGE.glob("cli/*.py"))])
def test_tasks_and_tables_import_none_of_it(file):
    """`./invoke --list` answers at once, and a table can be read without the environment."""
    nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert all(
        name.startswith("mapanything.cli") or (file == "tasks.py" and name.split(".")[0] in ("invoke", "dev"))
        for name in others
    ), others


@pytest.mark.parametrize("name", ["opv2v.check.run", "opv2v.index", "pictures.render", "tools.check_opv2v", "tools.viz"])
def test_heavy_libraries_load_only_where_they_are_used(name):
    code = f"import sys, mapanything.{name}; print([m for m in ('torch', 'open3d', 'matplotlib.pyplot') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n" and done.stderr == ""


OURS = [path for top in ("mapanything", "dev", "tests") for path in sorted((ROOT / top).rglob("*.py"))] + [ROOT / "tasks.py"]


def test_files_are_small():
    """Below 480 lines, so that one is read at a sitting."""
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in OURS}
    assert not {name: lines for name, lines in lengths.items() if lines >= 480}


NO_OPENING = r"(What|That|Of|Whether|How|Where|When|Who|Which|Why|From|As|If|For|At|In|To|By|With|Without|Because)\b"


def test_docstrings_open_with_a_verb_or_a_complete_noun():
    """A sentence that opens with another word is the end of one that the reader does not see."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{path.relative_to(ROOT)}:{node.body[0].lineno}: {text.splitlines()[0][:60]}"
        for path in OURS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds) and (text := ast.get_docstring(node)) and re.match(NO_OPENING, text)
    ]
    assert not found, "\n".join(found)
