"""Citations lead somewhere: sections (§), files, dotted names and tasks that code, configs and documents name.

A section is cited as `docs/network.md §1.2`; further ones of a line are of the same document. A document's own need no name,
nor do those of a file that says which it means ("§ are sections of docs/network.md").
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

import tasks

ROOT = Path(__file__).parents[1]
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".in", ""}
# The group's scripts that README's table replaces, what a run writes, a key and a label.
NOT_OURS = {"scripts/tree.py", "depth/depth.py", "scripts/depth_ge.py", "depth_ge.py", "scripts/visualize_opv2v_pose.py"}
NOT_OURS |= {
    "pcd_with_boxes.py",
    "devided_pointclouds.py",
    "compare_pointclouds.py",
    "visualize.py",
    "summary.md",
    "mapanything/failed",
    "mapanything.torch",
}
TOP = ("mapanything", "configs", "docs", "tests", "dev", "docker", "requirements")


def _files() -> Iterator[str]:
    """The repository's files as they lie there: the image, where tests run too, has no git."""
    for folder, pattern in [(".", "*"), (".ci", "*"), ("data", "README.md"), *((top, "**/*") for top in TOP)]:
        for path in sorted((ROOT / folder).glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT).as_posix()


ALL = tuple(_files())
FILES = [
    name
    for name in ALL
    if (PurePosixPath(name).suffix in TEXT or name == ".env.example") and not name.startswith(("tests/fixtures/", "LICENSE"))
]


@cache
def prose(name: str) -> tuple[tuple[int, str], ...]:
    """The lines of a file that people read: of Python its comments and docstrings, in the package its other strings too."""
    text = (ROOT / name).read_text()
    if not name.endswith(".py"):
        return tuple(enumerate(text.splitlines(), 1))
    lines: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines.append((token.start[0], token.string))
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    firsts = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    own = [first.value for first in firsts if isinstance(first, ast.Expr)]
    strings = ast.walk(tree) if name.startswith("mapanything/") else own
    for node in strings:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines += [(node.lineno + n, line) for n, line in enumerate(node.value.splitlines())]
    return tuple(lines)


@cache
def sections(document: str) -> frozenset[str]:
    """The numbers of a document's headings, `1.2` of `### 1.2 Which inputs`."""
    return frozenset(re.findall(r"^#+ (\d+(?:\.\d+)*)[. ]", (ROOT / document).read_text(), re.MULTILINE))


def as_document(word: str, source: str) -> str | None:
    """A document that a file names: from the root, beside it, or in docs/."""
    places = (word, (PurePosixPath(source).parent / word).as_posix(), f"docs/{word}")
    return next((place for place in places if (ROOT / place).is_file()), None)


def dead_sections(name: str, lines: tuple[tuple[int, str], ...]) -> Iterator[str]:
    meant = re.search(r"§ are sections of (\S+\.md)", " ".join(line for _, line in lines))
    usual = meant[1] if meant else name if name.endswith(".md") else None
    for number, line in lines:
        document = usual
        for word, section in re.findall(r"([\w./-]+\.md)|§(\d+(?:\.\d+)*)", line):
            if word:
                document = as_document(word, name) or document
            elif document is None or section not in sections(document):
                yield f"{name}:{number}: §{section} of {document or 'no named document'}"


@cache
def is_there(word: str, folder: str) -> bool:
    """True where a file is meant: from the root, the citing file's folder or the package, or by the end of its path."""
    places = [word, f"{folder}/{word}", f"mapanything/{word}"]
    there = any(any(ROOT.glob(place)) if "*" in place else (ROOT / place).exists() for place in places)
    return there or any(other.endswith(f"/{word}") for other in ALL)


def dead_files(name: str, lines: tuple[tuple[int, str], ...]) -> Iterator[str]:
    top = "|".join(TOP)
    pattern = re.compile(rf"(?<![\w./:@${{}}<>-])(?:(?:{top})/[\w./*-]*\w|(?:[\w-]+/)*[\w-]+\.(?:py|md))(?![\w/{{<*])")
    for number, line in lines:
        for word in pattern.findall(line):
            if word not in NOT_OURS and not is_there(word, PurePosixPath(name).parent.as_posix()):
                yield f"{name}:{number}: {word}"


@cache
def defined(module: str) -> frozenset[str] | None:
    """The names that a module of the package binds; None: no such module."""
    place = ROOT.joinpath(*module.split("."))
    path = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    if not path.is_file():
        return None
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return frozenset(names)


def dead_names(name: str, lines: tuple[tuple[int, str], ...]) -> Iterator[str]:
    for number, line in lines:
        for word in re.findall(r"(?<![\w./-])mapanything(?:\.[A-Za-z_]\w*)+(?!\w)", line):
            parts = word.split(".")
            modules = [n for n in range(1, len(parts) + 1) if defined(".".join(parts[:n])) is not None]
            rest = parts[modules[-1] :]
            if (
                rest
                and not rest[0].isupper()
                and word not in NOT_OURS
                and (rest[0] not in (defined(".".join(parts[: modules[-1]])) or ()))
            ):
                yield f"{name}:{number}: {word}"


BARE = re.compile(rf"(?<![./\w-])invoke (?=(--list|TASK|{'|'.join(tasks.namespace.task_names)})\b)")


def bare_tasks(name: str, lines: tuple[tuple[int, str], ...]) -> Iterator[str]:
    """Tasks without the `./` that a fresh clone needs."""
    for number, line in lines:
        if BARE.search(line.replace("-m invoke ", "")):
            yield f"{name}:{number}: write ./invoke"


@pytest.mark.parametrize("kind", [dead_sections, dead_files, dead_names, bare_tasks])
def test_what_is_cited_is_there(kind) -> None:
    dead = [place for name in FILES for place in kind(name, prose(name))]
    assert not dead, "\n".join(["cited, but not there, or not so:", *dead])


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (dead_sections, "as in docs/network.md §1.9"),
        (dead_sections, "as in §1.2, whose document nobody knows"),
        (dead_sections, "docs/network.md §1.2 and §99"),
        (dead_files, "see train/lossses.py"),
        (dead_files, "configs/models/mapanything.yaml"),
        (dead_files, "docs/nowhere.md"),
        (dead_names, "mapanything.train.losses.Lose"),
        (bare_tasks, "run `invoke check-data` first"),
    ],
)
def test_a_dead_citation_is_found(kind, line: str) -> None:
    assert list(kind("mapanything/files.py", ((3, line),))) and not list(kind("mapanything/files.py", ((3, "nothing cited"),)))
