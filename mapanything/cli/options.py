"""An option, declared once; a command of options; and the command line that argparse makes of it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mapanything.cli.types import length, odd, port, positive, whole

ROOT = Path(__file__).parents[2]  # of the repository
NUMBERS = (int, positive, whole, length, odd, port)


def with_dashes(words: Iterable[str]) -> list[str]:
    """A command line with options as they are declared: `--depth_root=a_b` is `--depth-root=a_b`.

    What follows a bare `--` stays as it is.
    """
    found = list(words)
    end = found.index("--") if "--" in found else len(found)
    return [re.sub(r"^--[A-Za-z][^=]*", lambda name: name[0].replace("_", "-"), word) for word in found[:end]] + found[end:]


def from_caller(path: str) -> str:
    """A path that was given relative to where a task was called, as it is from the repository's root."""
    path = os.path.expanduser(path)
    return path if Path.cwd() == ROOT else os.path.abspath(path)


@dataclass(frozen=True)
class Option:
    """One option, under the name that is typed (with dashes; underscores are taken for them everywhere).

    Attributes:
        help: a phrase without the default, which is added to it.
        default: its value where it is not given.
        otherwise: the default in words, where it is no value or not worth typing.
        kind: "value", "flag", "several" (may be repeated) or "word" (has no name on the command line).
        nargs: as argparse has it; of a word, "?" and "*" mean that it may be left out.
        also: other names that the notes and older scripts use.
        either: options with the same text here exclude each other.
        group: the title in a tool's `--help` that it stands under.
        locate: makes a text that holds paths independent of where a task was called.
    """

    name: str
    help: str
    default: Any = None
    otherwise: str = ""
    kind: str = "value"
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    nargs: str | None = None
    required: bool = False
    also: tuple[str, ...] = ()
    either: str = ""
    group: str = ""
    locate: Callable[[str], str] = str

    @property
    def key(self) -> str:
        """The name of its value in Python."""
        return self.name.replace("-", "_")

    @property
    def names(self) -> tuple[str, ...]:
        return self.name, *self.also

    @property
    def may_lack(self) -> bool:
        return self.nargs in ("?", "*")

    @property
    def text(self) -> str:
        """The help with the default."""
        return self._with(self._default())

    @property
    def task_text(self) -> str:
        """The same for Invoke, which does not list choices itself."""
        if not self.choices or self.metavar:
            return self.text
        return self._with(f"{', '.join(self.choices[:-1])} or {self.choices[-1]}", self._default())

    def _default(self) -> str:
        default = self.otherwise or ("" if self.default is None or self.kind == "flag" else str(self.default))
        return f"default: {default}" if default else ""

    def _with(self, *notes: str) -> str:
        noted = "; ".join(filter(None, notes))
        return f"{self.help} ({noted})" if noted else self.help

    def add_to(self, container: Any) -> None:
        """Declares it to a parser of argparse, or to a group of one."""
        names = [f"--{name}" for name in self.names] if self.kind != "word" else [self.key]
        if len(self.name) == 1:
            names.append(f"-{self.name}")
        settings: dict[str, Any] = {"help": self.text.replace("%", "%%")}
        if self.kind == "flag":
            settings["action"] = "store_true"
        else:
            metavar = self.metavar or ("N" if self.type in NUMBERS else None)
            settings |= {"type": self.type, "choices": self.choices, "metavar": metavar, "default": self.default}
            if self.kind == "several":
                settings |= {"action": "extend" if self.nargs else "append", "default": []}
            if self.nargs:
                settings["nargs"] = self.nargs
            if self.required:
                settings["required"] = True
        container.add_argument(*names, **settings)


flag = partial(Option, kind="flag", default=False)
several = partial(Option, kind="several", metavar="NAME")
word = partial(Option, kind="word")
folder = partial(Option, type=Path, metavar="DIR", locate=from_caller)
file = partial(Option, type=Path, metavar="FILE", locate=from_caller)


def group(title: str, *options: Option) -> tuple[Option, ...]:
    """Options under a title of their own in a tool's `--help`."""
    return tuple(replace(option, group=title) for option in options)


def options(*declared: Option) -> tuple[Option, ...]:
    """Options in order; of those with one name the last one counts, at the first one's place."""
    return tuple({option.name: option for option in declared}.values())


@dataclass(frozen=True)
class Command:
    """A command line: `python -m MODULE [OPTIONS]`, and the task of this name where there is one.

    Attributes:
        help: one sentence that says what it does, for `--help` and `./invoke --list`.
        kinds: commands of its own, each with its own options, by their first word.
        without: what it does without that word.
    """

    name: str
    module: str
    help: str
    options: tuple[Option, ...] = ()
    kinds: tuple[Command, ...] = ()
    without: str = ""
    epilog: str | None = None

    def parse(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """The values of a command line, by `Option.key`; `kind` is the word that names one of `kinds`.

        Leaves the process with code 2 and a line on stderr where it is wrong.
        """
        return self.parser().parse_args(with_dashes(sys.argv[1:] if words is None else words))

    def task_options(self) -> tuple[Option, ...]:
        """The options of a task of this name: its own and those of its kinds, each once, with the kinds that have it."""
        if not self.kinds:
            return tuple(replace(option, help=option.task_text, default=None, otherwise="") for option in self.options)
        kind = word("kind", f"{', '.join(kind.name for kind in self.kinds)}; left out: {self.without}", nargs="?")
        having: dict[str, list[tuple[str, Option]]] = {"what": []}
        for command in self.kinds:
            for option in command.options:
                having.setdefault("what" if option.kind == "word" else option.name, []).append((command.name, option))
        return (kind, *(self._merged(name, found) for name, found in having.items()))

    def _merged(self, name: str, found: list[tuple[str, Option]]) -> Option:
        kinds: dict[str, list[str]] = {}
        for kind, option in found:
            kinds.setdefault(option.task_text, []).append(kind)
        texts = [f"{', '.join(names)}: {text}" for text, names in kinds.items()]
        if len(found) == len(self.kinds):  # what holds of most needs no names
            usual = max(kinds, key=lambda text: len(kinds[text]))
            texts = [usual, *(text for text in texts if not text.endswith(f": {usual}"))]
        return replace(found[0][1], name=name, help="; ".join(texts), default=None, otherwise="", choices=None)

    def parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"python -m {self.module}", description=self.help, epilog=self.epilog)
        _declare(parser, self.options)
        if self.kinds:
            commands = parser.add_subparsers(dest="kind", metavar="KIND")
            for kind in self.kinds:
                _declare(commands.add_parser(kind.name, help=kind.help, description=kind.help), kind.options)
        return parser


def tool(name: str, help: str, *declared: Option, module: str = "", epilog: str | None = None) -> Command:
    """A command of `mapanything.tools`, whose module has the name of the task where nothing else is said."""
    return Command(name, module or f"mapanything.tools.{name.replace('-', '_')}", help, options(*declared), epilog=epilog)


def _declare(parser: argparse.ArgumentParser, declared: Iterable[Option]) -> None:
    places: dict[tuple[str, str], Any] = {("", ""): parser}
    for option in declared:
        titled, exclusive = (option.group, ""), (option.group, option.either)
        if titled not in places:
            places[titled] = parser.add_argument_group(option.group)
        if exclusive not in places:
            places[exclusive] = places[titled].add_mutually_exclusive_group()
        option.add_to(places[exclusive])
