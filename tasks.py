"""Every task is one command line, `python -m ...`, which is printed before it runs and can be typed as well.

Its options are those of the command's table in mapanything/cli or dev/cli.py. Nothing else is imported but Invoke, so that
`./invoke --list` answers at once. Relative paths in options are meant from where Invoke was called; everything runs in the
repository's root. What follows `--` goes to the command as it is. A task ends with its command's exit code: 0 done, 1 the
verdict is bad, 2 bad input.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.parser.argument import Argument
from invoke.tasks import Task

from dev import cli as dev
from mapanything.cli import data, network, pictures
from mapanything.cli.options import ROOT, Command, with_dashes, word

# Invoke knows dashes only, and has read the command line already: it starts over with them.
by_invoke = Path(sys.argv[0]).parts[-2:] == ("invoke", "__main__.py") or Path(sys.argv[0]).name in ("invoke", "inv")
if by_invoke and (dashed := with_dashes(sys.argv[1:])) != sys.argv[1:]:
    os.execv(sys.executable, [sys.executable, "-m", "invoke", *dashed])


def run(*command: str) -> None:
    """Runs a command in the repository's root with this interpreter; its exit code becomes Invoke's."""
    sys.stdout.flush()
    print(f"$ {shlex.join(['python', *command])}", file=sys.stderr, flush=True)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    # A scheduler's or container's stop signal reaches Invoke only. Ctrl-C reaches both, so it is just waited out.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    signal.signal(signal.SIGINT, lambda *_: None)
    code = process.wait()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if code < 0:
        likely = "; most likely out of memory: the kernel's log says so" if code == -signal.SIGKILL else ""
        # 128 + n, as a shell says it.
        raise Exit(f"error: ended by signal {-code} ({signal.Signals(-code).name}){likely}", code=128 - code)
    if code:
        raise Exit(code=code)


def typed() -> tuple[list[str], list[str]]:
    """The command line up to `--` and what follows it, as it was typed (Invoke's `Context.remainder` loses the quotes)."""
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    return sys.argv[:end], sys.argv[end + 1 :]


def words_after(task_name: str) -> int:
    """Counts the words that, before any option, follow a task's name on the command line."""
    words = typed()[0]
    rest = words[words.index(task_name) + 1 :] if task_name in words else []
    return next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))


class TableTask(Task):
    """A task with the options of a table. `act` gets the values that were given, by key."""

    def __init__(self, command: Command, act: Callable[[SimpleNamespace], None] | None = None) -> None:
        self.options = command.task_options()

        def body(_: Context, **given: str | bool | list[str] | None) -> None:
            self.check_several()
            if act is None:
                run("-m", command.module, *self.words(given), *typed()[1])
            else:
                act(SimpleNamespace(**{option.key: given.get(option.key) for option in self.options}))

        body.__doc__ = command.help
        super().__init__(body, name=command.name, positional=())

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """The arguments that Invoke parses."""
        words = [option for option in self.options if option.kind == "word"]
        # Invoke insists on a word whose default is None, so one that may lack has another unless it is there.
        lacking = {option.name for option in words[words_after(self.name) :] if option.may_lack}
        return [
            Argument(
                names=option.names,
                kind={"flag": bool, "several": list}.get(option.kind, str),
                default=False if option.kind == "flag" else "" if option.name in lacking else None,
                help=option.help,
                positional=option in words,
                attr_name=option.key if option.key != option.name else None,
            )
            for option in [*words, *(option for option in self.options if option not in words)]
        ]

    def words(self, given: dict[str, str | bool | list[str] | None]) -> list[str]:
        """The command line's words for the options that are given."""
        found = []
        for option in self.options:
            value = given.get(option.key)
            if value is True:
                found.append(f"--{option.name}")
            for text in value if isinstance(value, list) else [value] if isinstance(value, str) and value else []:
                text = option.locate(text)
                if option.kind == "word":
                    found.append(text)
                else:  # `--agent=-1`: a value that starts with a dash would be read as an option
                    found += [f"--{option.name}={text}"] if text.startswith("-") else [f"--{option.name}", text]
        return found

    def check_several(self) -> None:
        """Invoke lets an option that may be repeated pass without a value, and everything would be taken."""
        named = {f"--{name}": option for option in self.options if option.kind == "several" for name in option.names}
        for given, following in pairwise([*typed()[0], "--"]):
            if given in named and following.startswith("--"):
                raise Exit(f"{given} needs a value: {named[given].help}", code=2)


def need_dev() -> None:
    """Installs the extra `dev`, hash-locked, where this environment has not got it yet."""
    installed, lock = Path(sys.prefix, "dev.txt"), ROOT / "requirements" / "dev.txt"
    if not installed.is_file() or installed.read_bytes() != lock.read_bytes():
        run("-m", "dev.extra")


def explain(given: SimpleNamespace) -> None:
    run("-m", "invoke", "--help", given.name)


def train(given: SimpleNamespace) -> None:
    chosen = network.STAGES if given.all else (str(given.stage),)
    if given.all == bool(given.stage) or not set(chosen) <= set(network.STAGES) or (given.resume and given.fresh):
        raise Exit("give --stage 1, 2 or 3, or --all; and --resume or --fresh, not both", code=2)
    settings = {
        "resume": "true" if given.resume else "false" if given.fresh else None,
        "distributed.nodes": given.nodes,
        "distributed.node_rank": given.node_rank,
        "distributed.rendezvous": given.rendezvous,
        "distributed.keep_global_batch": "true" if given.keep_global_batch else None,
    }
    common = [
        f"machine={given.machine or 'default'}",
        *(f"{key}={text}" for key, text in settings.items() if text is not None),
    ]
    overrides = [stages_and_override(text) for text in given.o or ()]  # before anything runs
    for stage in chosen:
        # In a chain, a start that is told for all is the first stage's: the others have the one before.
        of_stage = [
            text
            for stages, text in overrides
            if (stage in stages if stages else stage == chosen[0] or not text.startswith("model.pretrained="))
        ]
        words = ["-m", network.TRAIN.module, f"stage=stage{stage}", *common, *of_stage]
        if given.dry_run:
            print(shlex.join(["python", *words]))
        else:
            run(*words)


def stages_and_override(text: str) -> tuple[list[str], str]:
    """`2,3:KEY=VALUE` -> (["2", "3"], "KEY=VALUE"); no stages are named where it is for all."""
    stages, colon, override = text.partition(":")
    if not colon or "=" in stages:
        return [], text
    named = stages.split(",")
    if not set(named) <= set(network.STAGES) or "=" not in override:
        raise Exit(f"-o {text}: give KEY=VALUE, or the stages that it is for as 2:KEY=VALUE or 2,3:KEY=VALUE", code=2)
    return named, override


def test(given: SimpleNamespace) -> None:
    need_dev()
    chosen = ["-k", given.match] if given.match else []
    faults = ["-m", "faults", "--faults", "10000"] if given.faults else []
    run("-m", "pytest", "-n", given.jobs or "auto", *chosen, *faults, *typed()[1])


def lint(given: SimpleNamespace) -> None:
    need_dev()
    run("-m", "ruff", "check", *(["--fix"] if given.fix else []))
    run("-m", "ruff", "format", *([] if given.fix else ["--check"]))
    run("-m", "pyright", "--pythonpath", sys.executable)
    run("-m", "dev.lock", "--check")
    run("-m", "dev.lint", *(["--all"] if given.all else []))


HELP = Command(
    "help", "invoke", "Explains a task and its options (as does `./invoke --help TASK`).", (word("name", "the task"),)
)
ACTS = {HELP: explain, network.TRAIN: train, dev.TEST: test, dev.LINT: lint}  # what is more than its command line
TABLES = [value for room in (data, network, pictures, dev) for value in vars(room).values() if isinstance(value, Command)]
namespace = Collection(*(TableTask(command, ACTS.get(command)) for command in [HELP, *TABLES]))
