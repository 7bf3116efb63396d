"""ARCHITECTURE.md is true: its rooms import what it says, and in each of its ways a function leads to those indented below it.

A step is `file: name`: a function, a class, Class.method, or the entry of a configuration that names what Hydra builds.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_structure import EVERYBODY, MAY_IMPORT

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()


class Step(NamedTuple):
    """One line of a way."""

    depth: int
    file: str
    name: str

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py").replace("/", ".")


def ways() -> dict[str, list[Step]]:
    """The steps of each section that has some, by its title."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        steps = [
            Step(len(indent) // 2, file, name)
            for indent, file, name in re.findall(r"^( *)- `([\w./-]+): ([\w.]+)`", section, re.MULTILINE)
        ]
        if steps:
            found[section.partition("\n")[0]] = steps
    return found


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def definition(step: Step) -> ast.AST | None:
    """The function, class or constant of a step; None: it is not there."""
    place: ast.AST = tree(step.file)
    for part in step.name.split("."):
        inside = [node for node in ast.iter_child_nodes(place) if part in bound(node)]
        if not inside:
            return None
        place = inside[-1]
    return place


def bound(node: ast.AST) -> set[str]:
    """The names that a statement of a file or class gives something."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    return {target.id for target in node.targets if isinstance(target, ast.Name)} if isinstance(node, ast.Assign) else set()


def hands_on(module: str, step: Step) -> bool:
    """True where a name of a module is the step's: its own, or imported from there."""
    file = f"{module.replace('.', '/')}.py"
    imports = [node for node in tree(file).body if isinstance(node, ast.ImportFrom) and node.module == step.module]
    return file == step.file or any(alias.name == step.name for node in imports for alias in node.names)


def leads(above: Step, below: Step) -> bool:
    """True where the code of a step names the next: in its own file, by an import, or as `mapanything.MODULE` in a string."""
    if above.file.endswith(".yaml"):
        targets = re.findall(r"mapanything[\w.]+", (ROOT / above.file).read_text())
        return any(name == below.name and hands_on(module, below) for module, _, name in (t.rpartition(".") for t in targets))
    node = definition(above)
    assert node is not None
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    attributes = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    if below.file.endswith(".yaml"):  # configs/model/mapanything.yaml is what `config.model` holds
        return Path(below.file).parts[1] in attributes
    first, *_, last = below.name.split(".") if "." in below.name else (below.name, below.name)
    called = last if not last.startswith("__") and last != "forward" else first
    if above.file == below.file:
        return called in names | attributes
    texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    if last == "main" and any(below.module in (text, f"mapanything.{text}") for text in texts):
        return True
    for imported in ast.walk(tree(above.file)):
        if isinstance(imported, ast.ImportFrom):
            for alias in imported.names:
                here = alias.asname or alias.name
                if imported.module == below.module and alias.name == first:
                    return here in names if called == first else called in attributes
                if f"{imported.module}.{alias.name}" == below.module and here in names:
                    return called in attributes
    return False


def test_there_are_four_ways() -> None:
    assert len(ways()) == 4 and all(len(steps) > 5 for steps in ways().values())


@pytest.mark.parametrize("title", ways())
def test_every_step_of_a_way_is_there_and_leads_to_the_next(title: str) -> None:
    steps = ways()[title]
    missing = [str(s) for s in steps if not (ROOT / s.file).is_file() or (s.file.endswith(".py") and definition(s) is None)]
    assert not missing, f"not there: {missing}"
    assert steps[0].depth == 0 and all(b.depth <= a.depth + 1 for a, b in pairwise(steps))
    path: list[Step] = []
    wrong = []
    for step in steps:
        del path[step.depth :]
        if path and not leads(path[-1], step):
            wrong.append(f"{path[-1]} does not lead to {step}")
        path.append(step)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("above", "below"),
    [
        (("mapanything/tools/check_opv2v.py", "main"), ("mapanything/opv2v/check/content.py", "check_timestamp")),
        (("mapanything/train/losses.py", "Loss.forward"), ("mapanything/train/objective.py", "Objective.forward")),
        (("configs/model/mapanything.yaml", "_target_"), ("mapanything/models/mapanything.py", "MapAnything")),
    ],
)
def test_a_step_that_leads_elsewhere_is_found(above: tuple[str, str], below: tuple[str, str]) -> None:
    assert not leads(Step(0, *above), Step(1, *below))


def test_rooms_import_what_the_page_says() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
    said = {name: row[2] for row in rows[1:] for name in row[0].split(", ")}
    assert set(said) == set(MAY_IMPORT) | EVERYBODY
    for room, text in said.items():
        if room not in EVERYBODY:
            allowed = set(MAY_IMPORT) - EVERYBODY if text.startswith("all") else set(re.findall(r"\w+", text)) - {"nothing"}
            assert MAY_IMPORT[room] | {room} == allowed | {room}, room
