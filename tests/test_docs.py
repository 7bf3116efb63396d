"""The documents are true: every command is taken by what it calls, the quick ones run, every link leads somewhere.

Commands are lines of code blocks, and code within a sentence, that start as in `STARTS`. A word in capitals (FILE, DIR) is a
value like any other; commands with `TASK`, `COMMAND` or an ellipsis in them stand for many and are not looked at.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from invoke.program import Program

import tasks
from mapanything.cli.options import with_dashes
from mapanything.cli.pictures import VIZ
from mapanything.errors import InputError
from mapanything.models.config import architecture
from mapanything.tools.doctor import DRIVERS
from mapanything.train.stages import compose_config

ROOT = Path(__file__).parents[1]
SAMPLE = Path(__file__).parent / "fixtures" / "sample_opv2v"
README, CHINESE, GUIDE = ROOT / "README.md", ROOT / "README.zh.md", ROOT / "docs" / "opv2v_unified_notes.md"
PAGES = [ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS = [README, CHINESE, ROOT / "data" / "README.md", *PAGES, *sorted((ROOT / "docs").glob("*.md"))]
STARTS = (
    "./invoke ",
    "python -m mapanything",
    "python mapanything/",
    ".venv/bin/python -m mapanything",
    "docker compose ",
)
STANDS_FOR_MANY = ("TASK", "COMMAND", "...", "…")
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

# Documents


@cache
def blocks(document: Path) -> tuple[list[str], str]:
    """The lines of a document's code blocks (fenced, or indented after an empty line), and its text without them."""
    code, text = [], []
    fence: str | None = None
    before, in_code = "", False
    for line in document.read_text().splitlines():
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else line.strip("` ")
        elif fence is not None:
            code.append(line if fence != "python" else "")
        else:
            in_code = line.startswith("    ") and (in_code or not before.strip())
            (code if in_code else text).append(line)
        before = line
    return code, "\n".join(text)


@cache
def commands(document: Path) -> list[str]:
    code, text = blocks(document)
    lines = "\n".join(code).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`([^`\n]+)`", text)
    found = [" ".join(piece.split()) for line in [*lines, *spans] for piece in line.split("&&")]
    found = [re.sub(r"^([A-Z_]+=\S+ )+| #.*", "", line) for line in found]
    return [line for line in found if line.startswith(STARTS) and not any(word in line for word in STANDS_FOR_MANY)]


ALL = list(dict.fromkeys(command for document in DOCUMENTS for command in commands(document)))

# Commands


def python_commands(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words after `python -m` that a documented command runs. Fails where a task, option or service is not there."""
    if words[:2] == ["docker", "compose"]:
        return compose_commands(words[2:], monkeypatch)
    if words[0].endswith("python"):
        script = Path(words[1])
        if script.suffix == ".py":
            return [[".".join(script.with_suffix("").parts), *words[2:]]]
        return [words[2:]]
    words = with_dashes(words)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(ROOT)
    ran: list[list[str]] = []
    code: object = None
    monkeypatch.setattr(tasks, "run", lambda *command: ran.append(list(command[1:])))
    try:
        Program(name="invoke", namespace=tasks.namespace).run(words)
    except SystemExit as end:  # also after --list and the like
        code = end.code
    assert not code, f"{shlex.join(words)}: invoke refuses it"
    return ran


def compose_commands(words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    action, *rest = words
    assert action in {"build", "run", "up", "down"}
    named = [number for number, word in enumerate(rest) if not word.startswith("-")]
    if not named:
        assert action == "down"
        return []
    service, given = rest[named[0]], rest[named[0] + 1 :]
    assert service in SERVICES, f"{service} is no service"
    if action != "run":
        return []
    entry = SERVICES[service]["entrypoint"]
    called = [*entry[entry.index("entrypoint") + 1 :], *(given or SERVICES[service].get("command", []))]
    called = called[1:] if called[0] == "./invoke" else called
    return [] if called[0] == "bash" else python_commands(["./invoke", *called], monkeypatch)


class Accepted(Exception):
    """The arguments were parsed; nothing else is to happen."""


def accept(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a tool's command line does not take these arguments, or the configuration does not take an override."""
    if module.split(".")[0] not in ("mapanything", "dev"):
        assert module in {"pytest", "ruff", "invoke"}
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *positional: object, **named: object) -> None:
        parse(self, *positional, **named)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit if "--help" in arguments else Accepted):
        importlib.import_module("dev.bench.__main__" if module == "dev.bench" else module).main()
    if module == "mapanything.train.training":
        compose_config([word for word in arguments if not word.startswith("--")])
    if module == "mapanything.tools.plan_memory":
        compose_config([value for word, value in pairwise(arguments) if word == "-o"])


def test_documents_have_commands() -> None:
    assert len(ALL) > 80
    assert len(commands(README)) > 30


@pytest.mark.parametrize("command", ALL)
def test_every_command_is_taken(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    for module, *arguments in python_commands(words, monkeypatch):
        if len(words) > 2:  # `./invoke infer` alone, within a sentence, is a task's name
            accept(module, arguments, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "./invoke train --stages 3",
        "./invoke chek-data",
        "python -m mapanything.tools.viz pose --max_height 60",
        "python -m mapanything.train.training stage=stage9",
        "./invoke train --stage 3 -o dataset.num_view=10",
        "docker compose run --rm vis",
        "docker compose run --rm viz pose --no-such-option",
    ],
)
def test_a_wrong_command_is_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, InputError, SystemExit)):
        test_every_command_is_taken(command, monkeypatch)


QUICK = re.compile(
    r"(\S*invoke|docker compose run --rm|docker compose run --rm dev \./invoke) (tree|check-data|make-depth|runs|viz)\b"
    r"|\S*python (-m mapanything\.tools\.(viz|check_opv2v|tree)\b|mapanything/datasets/opv2v\.py --root)"
)
# What is not there: a display, what infer wrote, files and folders of one's own.
NEEDS_MORE = ("--window", "--prediction", "--pred", ".pcd", "DIR", "--help")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data/` as the documents have it: the tests' sample under the names of examples, depth yet to be made."""
    place = tmp_path_factory.mktemp("docs")
    (place / "data" / "opv2v_depth").mkdir(parents=True)
    root = Path(shutil.copytree(SAMPLE / "opv2v_images", place / "data" / "opv2v_images"))
    (root / ".generated-sample.json").unlink()
    (scenario,) = (root / "train").iterdir()
    scenario = scenario.rename(scenario.with_name("2021_08_16_22_26_54"))
    for path in scenario.glob("*/*"):
        path.rename(path.with_name(path.name.replace("001040", "000069").replace("001042", "000070")))
    (place / "experiments").mkdir()
    return place


@pytest.mark.parametrize("command", [c for c in ALL if QUICK.match(c) and not any(word in c for word in NEEDS_MORE)])
def test_quick_commands_run(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, *arguments in python_commands(shlex.split(command), monkeypatch):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        if module.endswith("make_depth") and (place / "data/opv2v_depth/.tests-only").exists():
            shutil.rmtree(place / "data/opv2v_depth")  # rendered maps; from here on the LiDAR's
        capsys.readouterr()
        assert importlib.import_module(module).main() == 0
        out = capsys.readouterr().out
        if module.endswith("viz"):
            drawn = re.findall(r"\S+\.(?:png|mp4)", out)
            assert drawn and all(Path(name).exists() for name in drawn)


def test_completion_line_works() -> None:
    """The line of both READMEs, sourced, completes task names and options."""
    lines = {
        line.strip() for document in (README, CHINESE) for line in blocks(document)[0] if "--print-completion-script" in line
    }
    assert len(lines) == 1
    script = f"""{lines.pop()}
        COMP_WORDS=(./invoke check-data --de); _complete_invoke ./invoke --de; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(./invoke chec); _complete_invoke ./invoke chec; echo "${{COMPREPLY[@]}}"
        complete -p invoke"""
    environment = os.environ | {"MAPANYTHING_VENV": sys.prefix}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    options, tasks, registered = done.stdout.splitlines()
    assert "--deep" in options and "--depth-root" in options
    assert tasks == "check-data"
    assert "-F _complete_invoke invoke" in registered


# Links


def links(document: Path) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", blocks(document)[1])


def anchors(document: Path) -> set[str]:
    """The names GitHub gives to headings."""
    found = set()
    for title in headings(document):
        kept = [c for c in title.lower() if c in " -_" or unicodedata.category(c)[0] in "LNM"]
        found.add("".join(kept).replace(" ", "-"))
    return found


def headings(document: Path) -> list[str]:
    return [line.lstrip("# ") for line in blocks(document)[1].splitlines() if re.match(r"#+ ", line)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.is_relative_to(ROOT) and target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("start", [README, CHINESE, GUIDE], ids=lambda path: path.name)
def test_every_document_and_picture_can_be_reached(start: Path) -> None:
    seen: set[Path] = set()
    new = {start}
    while new:
        document = new.pop()
        seen.add(document)
        if document.suffix == ".md":
            near = ((document.parent / link.partition("#")[0]).resolve() for link in links(document) if "://" not in link)
            new |= set(near) - seen
    docs = ROOT / "docs"
    assert {*docs.glob("*.md"), *docs.glob("pictures/*")} <= seen


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert pictures and all(path.suffix == ".png" and path.stat().st_size <= 400_000 for path in pictures)


@pytest.mark.parametrize("document", [*(ROOT / "docs").glob("*.md")], ids=lambda path: path.name)
def test_a_guide_opens_with_an_english_summary(document: Path) -> None:
    if not re.search(r"[\u4e00-\u9fff]", document.read_text()):
        return  # all of it is
    assert headings(document)[1] == "In English"
    summary = document.read_text().partition("## In English\n")[2].partition("\n---\n")[0]
    assert "**The trap:**" in summary and not re.search(r"[\u4e00-\u9fff]", summary)
    assert document.name == "conventions.md" or re.search(r"^    \S", summary, re.MULTILINE), "no command"


# Facts that stand elsewhere too


def tables(document: Path) -> list[list[list[str]]]:
    found: list[list[list[str]]] = [[]]
    for line in blocks(document)[1].splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_both_readmes_say_the_same() -> None:
    assert commands(README) == commands(CHINESE)
    assert len(headings(README)) == len(headings(CHINESE))
    shapes = [[[len(row) for row in table] for table in tables(document)] for document in (README, CHINESE)]
    assert shapes[0] == shapes[1]
    cells = [[cell for table in tables(document) for row in table for cell in row] for document in (README, CHINESE)]
    for english, chinese in zip(*cells, strict=True):
        numbers = [sorted(re.findall(r"\d+(?:[.-]\d+)*", cell)) for cell in (english, chinese)]
        assert numbers[0] == numbers[1], (english, chinese)
    both = [[link for link in links(document) if not link.startswith("README")] for document in (README, CHINESE)]
    assert sorted(both[0]) == sorted(both[1])


@pytest.mark.parametrize("document", [README, CHINESE], ids=lambda path: path.name)
def test_readme_names_every_task_and_kind_of_picture(document: Path) -> None:
    named = {name for row in tables(document)[0][2:] for name in re.findall(r"`([\w-]+)`", row[0])}
    assert named == set(tasks.namespace.task_names)
    (viz,) = [row[1] for row in tables(document)[0] if row[0] == "`viz`"]
    assert set(re.findall(r"`(\w+)`", viz)) == {kind.name for kind in VIZ.kinds}


@pytest.mark.parametrize("document", [README, CHINESE], ids=lambda path: path.name)
def test_readme_tells_stages_and_driver_as_they_are(document: Path) -> None:
    stages = [row for table in tables(document) for row in table if row[0] in ("1", "2", "3")]
    for row in stages:
        config = compose_config([f"stage=stage{row[0]}"])
        train = config.train_params
        rate = f"{train.lr:.0e}".replace("e-0", "e-")
        assert row[3] == f"{train.max_num_of_imgs_per_gpu} / {rate} / {train.epochs}"
        assert row[4] == str(config.distributed.world_size)
        assert row[5] == f"`{Path(config.output_dir).name}`"
        width, height = config.dataset.resolution
        assert f"{width}×{height}" in row[1] and str(config.dataset.num_views) in row[1]
    assert len(stages) == 3
    (driver,) = [table for table in tables(document) if "NVIDIA" in table[0][0]]
    for row, (cuda, oldest) in zip(driver[2:4], DRIVERS.items(), strict=True):
        assert row[0].startswith(f"{oldest} ")
        locked = re.search(r"^torch==(\d+\.\d+)", (ROOT / "requirements" / f"cuda{cuda}.txt").read_text(), re.MULTILINE)
        assert locked is not None and f"torch {locked[1]}" in row[1] and f"CUDA {cuda}" in row[1]


def test_readme_figures_are_those_of_the_benchmarks() -> None:
    measured = (ROOT / "docs" / "benchmarks.md").read_text().replace(" – ", "–")
    figures = tables(README)[-2][2:]
    for row in figures:
        assert row[3] in measured, row
        assert row[1].removesuffix(" ms").removesuffix(" s") in measured, row


def test_the_network_page_has_the_sizes_of_the_configs() -> None:
    (table,) = [table for table in tables(ROOT / "docs" / "network.md") if table[0][1] == "`mapanything` (v1.1)"]
    rows = {row[0]: row[1:] for row in table}
    for column, config in enumerate((architecture("mapanything"), architecture("mapanything_v1"))):
        encoder, multiview = config.encoder, config.multiview
        said = {
            "C_e, heads, feed-forward": (encoder.dim, encoder.num_heads, encoder.ffn_dim),
            "transformer C, blocks, heads": (multiview.dim, multiview.depth, multiview.num_heads),
            "its feed-forward": (multiview.ffn_dim,),
            "blocks tapped for the dense head": (*multiview.taps, multiview.depth - 1),
        }
        for name, numbers in said.items():
            assert tuple(map(int, re.findall(r"\d+", rows[name][column]))) == numbers, name


FROM_ELSEWHERE = ("could not select device driver", "bind source path does not exist", "address already in use", "Bus error")


@cache
def messages() -> str:
    """Every text in the code, values left out; and the scripts."""
    texts = [(ROOT / name).read_text() for name in ("invoke", "docker/entrypoint", "docker-compose.yml")]
    for path in (ROOT / "mapanything").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
    return "\n".join(texts)


def test_symptoms_are_what_the_code_says() -> None:
    document = ROOT / "docs" / "troubleshooting.md"
    symptoms = [span for t in tables(document) if t[0][0] == "现象" for row in t for span in re.findall(r"`([^`]+)`", row[0])]
    assert len(symptoms) > 40
    for symptom in symptoms:
        if not symptom.startswith(FROM_ELSEWHERE):
            for part in re.split(r"…|\d+|torch==|\(No space.*\)|driver\b|cuda:|--device|^\.|[()]", symptom):
                assert part.strip() in messages(), f"{symptom}: '{part}' is nowhere in the code"
