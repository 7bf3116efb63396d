"""The tasks: what they run, what they pass on, and that listing them loads nothing heavy."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from invoke import Collection, Context, Exit

import tasks

REPOSITORY = Path(__file__).parents[1]
ALL = Collection.from_module(tasks).tasks


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that tasks would run."""
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(tasks, "run", lambda *command: commands.append(command))
    monkeypatch.setattr(sys, "argv", ["invoke"])
    return commands


def test_listing_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "invoke", "--list"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "open3d", "numpy", "mapanything", "matplotlib"}
    assert "check-data" in done.stdout


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_task_and_option_is_explained(name: str) -> None:
    task = ALL[name]
    assert task.__doc__
    options = set(inspect.signature(task.body).parameters) - {"_"}
    assert {option.replace("-", "_") for option in task.help} == options


COMMANDS = {
    "bench": ("data",),
    "check-data": (),
    "demo": (),
    "doctor": (),
    "evaluate": (),
    "infer": (),
    "link-data": (),
    "lock": (),
    "make-depth": (),
    "make-sample": (),
    "plan-memory": (),
    "runs": (),
    "tree": (),
    "viewer": (),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_the_modules_own(name: str, ran: list[tuple[str, ...]]) -> None:
    """Every option of a task is one that its command line takes."""
    positional = COMMANDS[name]
    ALL[name](Context(), *positional)
    command = [sys.executable, *ran[0], "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken = set(re.findall(r"--[a-z][a-z-]*", done.stdout))
    assert {f"--{option}" for option in list(ALL[name].help) if option not in ALL[name].positional} <= taken


def test_every_option_of_viz_is_one_of_the_task() -> None:
    taken = set()
    for kind in ("pose", "cloud", "boxes", "compare", "depth", "frame", "sequence"):
        command = [sys.executable, "-m", "mapanything.tools.viz", kind, "--help"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        taken |= {option.replace("_", "-") for option in re.findall(r"(?<![\w-])--[a-z0-9_-]+", done.stdout)}
    task = ALL["viz"]
    assert {f"--{name}" for name in task.help if name not in task.positional} == taken - {"--help", "--dataset-root"}


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ([], ()),
        (["--frame", "000069"], ("--frame", "000069")),
        (["boxes", "--max-range", "60"], ("boxes", "--max-range", "60")),
        (["sequence", "pose", "--fps", "4", "--no-3d"], ("sequence", "pose", "--no-3d", "--fps", "4")),
        (["cloud", "a.pcd", "--", "b.pcd"], ("cloud", "{here}/a.pcd", "b.pcd")),
    ],
    ids=" ".join,
)
def test_words_of_viz_may_be_left_out(arguments: list[str], passed: tuple[str, ...], tmp_path: Path) -> None:
    code = "import sys, tasks\nfrom invoke import Program\ntasks.run = lambda *command: print(*command, sep='\\n')\n"
    code += "from invoke import Collection\nProgram(namespace=Collection.from_module(tasks)).run(sys.argv)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code, "viz", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["-m", "mapanything.tools.viz", *(word.format(here=tmp_path) for word in passed)]


def test_selection_and_flags_are_passed_on(ran: list[tuple[str, ...]]) -> None:
    tasks.check_data(Context(), split=["train", "validate"], agent=["-1"], jobs="3", deep=True, quick=False)
    expected = ("--split", "train,validate", "--agent=-1", "--jobs", "3", "--deep")
    assert ran == [("-m", "mapanything.tools.check_opv2v", *expected)]


@pytest.mark.parametrize("arguments", [["--split"], ["--split", "--agent", "641"], ["--agent", "641", "--frame"]])
def test_selection_without_a_value_does_not_mean_everything(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["invoke", "tree", *arguments])
    with pytest.raises(Exit, match="needs a value"):
        tasks.tree(Context())
    assert not ran


def test_every_option_that_may_be_repeated_needs_a_value(ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["invoke", "infer", "--agents", "--coop"])
    with pytest.raises(Exit, match="--agents needs a value"):
        tasks.infer(Context(), coop=True)
    monkeypatch.setattr(sys, "argv", ["invoke", "tree", "--", "--agent", "--x"])
    tasks.tree(Context())
    assert ran == [("-m", "mapanything.tools.tree", "--agent", "--x")]


def test_the_last_of_two_options_with_one_name_counts(ran: list[tuple[str, ...]]) -> None:
    @tasks.command("tools.x", tasks.path("root", "one"), tasks.flag("all", "b"), tasks.value("root", "two"))
    def example() -> None:
        """Does it."""

    assert example.name == "example" and example.__doc__ == "Does it."
    assert [argument.help for argument in example.get_arguments()] == ["two", "b"]
    example(Context(), root="~/as it is", all=True)
    assert ran == [("-m", "mapanything.tools.x", "--root", "~/as it is", "--all")]
    with pytest.raises(TypeError, match="unexpected keyword"):
        example(Context(), roots="x")


def test_paths_are_meant_from_where_it_was_called(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tasks.tree(Context(), root="here", depth_root="/there")
    monkeypatch.chdir(REPOSITORY)
    tasks.tree(Context(), root="here")
    command = ("-m", "mapanything.tools.tree", "--root")
    assert ran == [(*command, str(tmp_path / "here"), "--depth-root", "/there"), (*command, "here")]


def test_models_are_paths_from_where_it_was_called(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tasks.evaluate(Context(), models=["a=x.pth, b=/y.pth", "c=z"], depth_root="none")
    words = (f"a={tmp_path / 'x.pth'}", "b=/y.pth", f"c={tmp_path / 'z'}")
    assert ran == [("-m", "mapanything.tools.evaluate", "--models", *words, "--depth-root", "none")]


def test_test_passes_arguments_with_their_quotes(ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["invoke", "test", "--", "-k", "a or b"])
    tasks.test(Context())
    assert ran == [("-m", "pytest", "-n", "auto", "-k", "a or b")]


@pytest.mark.parametrize(("code", "expected"), [("3", 3), ("os.kill(os.getpid(), 15)", 143)])
def test_exit_code_is_the_commands(code: str, expected: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exit) as caught:
        tasks.run("-c", f"import os, sys; sys.exit({code})")
    assert caught.value.code == expected
    assert capfd.readouterr().err.startswith("$ python -c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tree", "--root", "nowhere"], "{here}/nowhere: no such folder"),
        (["train", "--stage", "first"], "give --stage 1, 2 or 3"),
        (["infer", "--agents", "--coop"], "--agents needs a value: the same as --agent"),
    ],
)
def test_failing_task_shows_no_traceback(arguments: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "invoke", "--search-root", str(REPOSITORY), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message.format(here=tmp_path) in done.stderr
