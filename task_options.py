"""What tasks.py is written with: options that are declared once, as what Invoke reads is made from that, and running commands.

Relative paths in options are meant from where Invoke was called; commands run in the repository's root.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, update_wrapper
from inspect import Parameter, Signature
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from invoke import Exit, Task, task

ROOT = Path(__file__).resolve().parent


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
    if code:
        raise Exit(code=128 - code if code < 0 else code)  # killed by signal n: 128 + n, as a shell says it


Given = str | bool | list[str] | None


def called_path(path: str) -> str:
    """A path that was given relative to where Invoke was called, as it is from the repository's root."""
    path = os.path.expanduser(path)
    return path if Path.cwd() == ROOT else os.path.abspath(path)


def typed() -> tuple[list[str], list[str]]:
    """The command line up to `--` and what follows it, as it was typed (Invoke's `Context.remainder` loses the quotes)."""
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    return sys.argv[:end], sys.argv[end + 1 :]


def as_value(name: str, value: Given) -> list[str]:
    """`--name value`; nothing where no value was given. Several values are joined by commas."""
    if value is None or value is False or value == []:
        return []
    if value is True:
        return [f"--{name}"]
    text = ",".join(value) if isinstance(value, list) else str(value)
    # `--agent=-1`: a value that starts with a dash would be read as an option.
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def as_path(name: str, value: Given, but: str | None = None) -> list[str]:
    """As `as_value`, for a path that was given relative to where Invoke was called; the word `but` is none."""
    return as_value(name, called_path(value) if isinstance(value, str) and value != but else value)


def as_repeated(name: str, value: Iterable[str]) -> list[str]:
    return [word for entry in value for word in as_value(name, entry)]


def as_named_paths(name: str, value: Iterable[str]) -> list[str]:
    """`--name NAME=PATH...`; the paths are meant from where Invoke was called."""
    words = []
    for word in (word for text in value for word in re.split(r"[,\s]\s*(?=[\w.+-]+=)", text.strip())):
        key, equals, path = word.partition("=")
        words.append(f"{key}={called_path(path)}" if equals and path else word)
    return [f"--{name}", *words] if words else []


def as_word(_: str, value: str) -> list[str]:
    """A word, as a path where it is a file's name; nothing where none was given."""
    return [called_path(value) if Path(value).suffix else value] if value else []


@dataclass(frozen=True)
class Option:
    """One option of a task, under the name that is typed. A flag's default is False; `several` may be given repeatedly."""

    name: str
    help: str
    default: Given = None
    several: bool = False
    positional: bool = False
    words: Callable[[str, Any], list[str]] = as_value  # its arguments of the command

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")


value = Option
flag = partial(Option, default=False)
path = partial(Option, words=as_path)
several = partial(Option, several=True)


def position(name: str, help: str, may_lack: tuple[str, int] | None = None) -> Option:
    """A word without a name; a file's name is a path. may_lack: the task and the number, from 1, of one that may be left out.

    Invoke knows no such thing, and insists on a word whose default is None. So it is told None only where there is one.
    """
    default = None if may_lack is None or may_lack[1] <= words_after(may_lack[0]) else ""
    return Option(name, help, default, positional=True, words=as_word)


def words_after(task_name: str) -> int:
    """How many words, before any option, follow a task's name on the command line."""
    words = typed()[0]
    rest = words[words.index(task_name) + 1 :] if task_name in words else []
    return next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))


def with_options(*options: Option) -> Callable[[Callable[[SimpleNamespace], None]], Task]:
    """Makes a task of a documented function, which gets the values by name, and all of them as arguments in `words`.

    Of options that have the same name, the last one counts, at the first one's place.
    """
    options = tuple({option.name: option for option in options}.values())
    parameters = [Parameter(option.key, Parameter.POSITIONAL_OR_KEYWORD, default=option.default) for option in options]
    signature = Signature([Parameter("_", Parameter.POSITIONAL_ONLY), *parameters])

    def make(function: Callable[[SimpleNamespace], None]) -> Task:
        def body(*args: object, **named: object) -> None:
            bound = signature.bind(*args, **named)
            bound.apply_defaults()
            check_several(options)
            given = bound.arguments | {option.key: bound.arguments[option.key] or [] for option in options if option.several}
            words = [word for option in options for word in option.words(option.name, given[option.key])]
            function(SimpleNamespace(**given | {"words": words}))

        body.__signature__ = signature  # this is where Invoke learns the options
        return task(
            update_wrapper(body, function),
            help={option.name: option.help for option in options},
            positional=[option.key for option in options if option.positional],
            iterable=[option.key for option in options if option.several],
            auto_shortflags=False,
        )

    return make


def check_several(options: Iterable[Option]) -> None:
    """Invoke lets an option that may be repeated pass without a value, and everything would be taken."""
    named = {f"--{option.name}": option for option in options if option.several}
    for word, following in pairwise([*typed()[0], "--"]):
        if word in named and following.startswith("--"):
            raise Exit(f"{word} needs a value: {named[word].help}", code=2)
