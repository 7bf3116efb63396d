"""The tasks and the option tables: each option is documented, works in both spellings, and is what the tools take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.program import Program

import tasks
from dev import cli as dev
from mapanything.cli import data, network, pictures
from mapanything.cli.options import Command, Option, flag, folder, options, with_dashes

REPOSITORY = Path(__file__).parents[1]
ALL: dict[str, tasks.TableTask] = tasks.namespace.tasks
TABLES = {
    command.name: command
    for module in (data, network, pictures, dev)
    for command in vars(module).values()
    if isinstance(command, Command)
}
TOOLS = [command for command in TABLES.values() if command.module not in ("pytest", "mapanything.train.training")]
OPTIONS = [(command, option) for command in TOOLS for kind in (command, *command.kinds) for option in kind.options]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that tasks would run."""
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(tasks, "run", lambda *command: commands.append(command))
    monkeypatch.setattr(sys, "argv", ["invoke"])
    return commands


@pytest.fixture
def call(ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, ...]]:
    """Runs a command line of Invoke; what it would run, after `python -m`."""

    def call(*words: str) -> tuple[str, ...]:
        monkeypatch.setattr(sys, "argv", ["invoke", *words])
        with pytest.raises(SystemExit) as end:
            raise SystemExit(Program(namespace=tasks.namespace).run(["invoke", *words], exit=False))
        assert not end.value.code
        return ran.pop()[1:]

    return call


def test_listing_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "invoke", "--list"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not {name.split(".")[0] for name in loaded} & {"torch", "open3d", "numpy", "matplotlib"}
    assert {name for name in loaded if name.startswith("mapanything.")} == {
        "mapanything.cli",
        *(f"mapanything.cli.{name}" for name in ("options", "types", "data", "network", "pictures")),
    }
    assert "check-data" in done.stdout


def test_every_table_is_a_task() -> None:
    assert set(ALL) == {*TABLES, "help"}


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_task_and_option_is_explained(name: str) -> None:
    assert ALL[name].__doc__
    for argument in ALL[name].get_arguments():
        assert argument.help and "None" not in argument.help, argument.name


@pytest.mark.parametrize("command", TOOLS, ids=lambda command: command.name)
def test_help_of_a_tool_names_every_option(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (command, *command.kinds):
        with pytest.raises(SystemExit) as end:
            command.parse([*([kind.name] if kind is not command else []), "--help"])
        assert end.value.code == 0
        said = " ".join(capsys.readouterr().out.split())
        assert kind.help.split(": `")[0] in said
        for option in kind.options:
            assert option.kind == "word" or f"--{option.name}" in said


@pytest.mark.parametrize("command", TOOLS, ids=lambda command: command.name)
def test_a_tool_parses_by_its_table(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `main` asks its own table, and nobody else, what its command line means."""
    import importlib

    class Asked(Exception):
        pass

    def parse(self: Command, words: object = None) -> None:
        raise Asked(self.name)

    monkeypatch.setattr(Command, "parse", parse)
    module = importlib.import_module(f"{command.module}.__main__" if command is dev.BENCH else command.module)
    with pytest.raises(Asked, match=f"^{command.name}$"):
        module.main()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--depth_root", "a_b", "--x"], ["--depth-root", "a_b", "--x"]),
        (["infer", "--save_pred_dir=a_b/c_d"], ["infer", "--save-pred-dir=a_b/c_d"]),
        (["-o", "model.a_b=c_d", "--", "--tests_only"], ["-o", "model.a_b=c_d", "--", "--tests_only"]),
        (["--agent=-1_0", "-1_0", "--"], ["--agent=-1_0", "-1_0", "--"]),
    ],
)
def test_underscores_are_dashes_in_names_of_options(words: list[str], expected: list[str]) -> None:
    assert with_dashes(words) == expected


def test_both_spellings_mean_the_same_in_tools() -> None:
    spelt = [("--depth-root", "--frame-of", "--main-agent"), ("--depth_root", "--frame_of", "--main_agent")]
    parsed = [network.INFER.parse([a, "x", f"{b}=opencv", c, "7"]) for a, b, c in spelt]
    assert parsed[0] == parsed[1] and (parsed[1].depth_root, parsed[1].frame_of) == (Path("x"), "opencv")
    assert network.PLAN_MEMORY.parse(["-o", "a_b=1", "--o", "c"]).o == ["a_b=1", "c"]
    assert pictures.VIZ.parse(["boxes", "--max_range", "9", "--no_gui"]).max_range == 9
    for command, option in OPTIONS:
        assert "_" not in "".join(option.names), f"{command.name} --{option.name}"


def test_underscores_work_in_tasks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "invoke", "--search-root", str(REPOSITORY), "check-data", "--root", "no_where"]
    for name in ("--depth_root=x", "--depth-root=x"):
        done = subprocess.run([*command, name, "--write_exclude", "a_b"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert f"--root {tmp_path}/no_where --depth-root {tmp_path}/x --write-exclude {tmp_path}/a_b\n" in done.stderr


def test_choices_and_defaults_are_the_rooms_own() -> None:
    """The tables stand alone; what they repeat of the rooms is the same there."""
    from mapanything.opv2v import layout
    from mapanything.opv2v.sample.writer import SampleOptions
    from mapanything.pictures import picture, video, viewpoints
    from mapanything.results.clouds import CLOUD_FROM_CV, ENCODERS
    from mapanything.tools import make_sample

    assert data.DEPTH_PATTERN == layout.DEPTH_PATTERN and set(data.SPLITS.split(", ")) <= set(layout.SPLITS)
    assert (pictures.VIEWS, pictures.LAYERS, pictures.MOVING) == (viewpoints.VIEWS, picture.HIDEABLE, video.SUFFIXES)
    given = {option.name: option for option in network.INFER.options}
    assert given["frame-of"].choices == tuple(CLOUD_FROM_CV) and ", ".join(ENCODERS) in given["cloud"].help
    assert make_sample.sample_options(data.MAKE_SAMPLE.parse(["--output", "x"])) == SampleOptions()


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ([], ()),
        (["--frame", "000069"], ("--frame", "000069")),
        (["boxes", "--max-range", "60"], ("boxes", "--max-range", "60")),
        (["sequence", "pose", "--fps", "4", "--no-3d"], ("sequence", "pose", "--no-3d", "--fps", "4")),
        (["cloud", "a.pcd", "--sequence", "x"], ("cloud", "{here}/a.pcd", "--scenario", "x")),
        (["cloud", "a.pcd", "--", "b.pcd"], ("cloud", "{here}/a.pcd", "b.pcd")),
    ],
    ids=" ".join,
)
def test_words_of_viz_may_be_left_out(
    arguments: list[str], passed: tuple[str, ...], call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("viz", *arguments) == ("mapanything.tools.viz", *(word.format(here=tmp_path) for word in passed))


def test_a_word_that_has_to_be_there_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["invoke", "help"])
    with pytest.raises(SystemExit):
        Program(namespace=tasks.namespace).run(["invoke", "help"])
    assert "did not receive required positional arguments: 'name'" in capsys.readouterr().err


def test_selection_and_flags_are_passed_on(ran: list[tuple[str, ...]]) -> None:
    ALL["check-data"](Context(), split=["train", "validate"], agent=["-1"], jobs="3", deep=True, quick=False)
    expected = ("--split", "train", "--split", "validate", "--agent=-1", "--jobs", "3", "--deep")
    assert ran == [("-m", "mapanything.tools.check_opv2v", *expected)]


@pytest.mark.parametrize("words", [["--split"], ["--split", "--agent", "641"], ["--agent", "641", "--sequence"]])
def test_selection_without_a_value_does_not_mean_everything(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["invoke", "tree", *words])
    with pytest.raises(Exit, match="needs a value"):
        ALL["tree"](Context())
    monkeypatch.setattr(sys, "argv", ["invoke", "tree", "--", *words])
    ALL["tree"](Context())
    assert ran == [("-m", "mapanything.tools.tree", *words)]


def test_the_last_of_two_options_with_one_name_counts() -> None:
    declared = options(folder("root", "one"), flag("all", "b"), Option("root", "two"))
    assert [option.help for option in declared] == ["two", "b"]


def test_paths_are_meant_from_where_it_was_called(call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    here = ("mapanything.tools.tree", "--root", str(tmp_path / "here"), "--depth-root", "/there")
    assert call("tree", "--root", "here", "--depth-root", "/there") == here
    models = ("--models", f"a={tmp_path / 'x.pth'},b=/y.pth", "--models", f"c={tmp_path / 'z'}")
    given = ("--models", "a=x.pth, b=/y.pth", "--models", "c=z", "--depth-root", "none")
    assert call("evaluate", *given) == ("mapanything.tools.evaluate", *models, "--depth-root", "none")
    monkeypatch.chdir(REPOSITORY)
    assert call("tree", "--root", "here") == ("mapanything.tools.tree", "--root", "here")


def test_test_passes_arguments_with_their_quotes(call) -> None:
    assert call("test", "--", "-k", "a or b") == ("pytest", "-n", "auto", "-k", "a or b")


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("3", 3, ""),
        ("os.kill(os.getpid(), 15)", 143, "error: ended by signal 15 (SIGTERM)"),
        ("os.kill(os.getpid(), 9)", 137, "error: ended by signal 9 (SIGKILL); most likely out of memory"),
    ],
)
def test_exit_code_is_the_commands(code: str, expected: int, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exit) as caught:
        tasks.run("-c", f"import os, sys; sys.exit({code})")
    assert caught.value.code == expected
    assert (caught.value.message or "").startswith(said) and bool(caught.value.message) == bool(said)
    assert capfd.readouterr().err.startswith("$ python -c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tree", "--root", "nowhere"], "{here}/nowhere: no such folder"),
        (["train", "--stage", "first"], "give --stage 1, 2 or 3"),
        (["infer", "--agents", "--coop"], "--agents needs a value: only this vehicle"),
    ],
)
def test_failing_task_shows_no_traceback(arguments: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "invoke", "--search-root", str(REPOSITORY), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message.format(here=tmp_path) in done.stderr
