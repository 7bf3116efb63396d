"""Runs whose processes are killed at random moments: while they step, save, validate, or anything else.

The processes are forked from one that has torch loaded, so that one is there in a fraction of a second; each writes down what
it does just now, so that a kill can be aimed and it is known what it hit.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mapanything.train import checkpoints, training
from mapanything.train.loop import Trainer
from mapanything.train.run import Run

PHASES = ("other", "step", "save", "validation")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mapanything.train.training", "mapanything.train.loop"])


@dataclass
class KilledRun:
    """A run of `ranks` processes and how it went: what the kills hit, and how many times it came to its end.

    Attributes:
        victims: "all" or "one" of the processes is killed.
    """

    folder: Path
    arguments: list[str]
    ranks: int
    victims: str
    rng: random.Random = field(default_factory=random.Random)
    hit: Counter[str] = field(default_factory=Counter)

    def until_killed(self) -> bool:
        """Starts or resumes it and kills it somewhere; False: it was at its end before."""
        aim = self.rng.choice(PHASES[1:] if self.victims == "one" else PHASES)
        with self._processes() as (processes, phases):
            victim = self.rng.randrange(self.ranks)
            self._wait(processes[victim], phases[victim], aim)
            chosen = [processes[victim]] if self.victims == "one" else processes
            alive = all(process.is_alive() for process in processes)
            for process in chosen:
                process.kill()
            codes = self._join(processes, 60)
            if not alive or codes[victim] != -9:
                # Another of them may still have been leaving when it was killed.
                assert {0} <= set(codes) <= {0, -9} and (self.folder / checkpoints.FINAL).exists(), f"{codes}: {self.said()}"
                return False
            self.hit[PHASES[phases[victim].value]] += 1
            assert 0 not in codes or (self.folder / checkpoints.FINAL).exists(), f"{codes}: {self.said()}"
        return True

    def to_the_end(self) -> None:
        with self._processes() as (processes, _):
            codes = self._join(processes, 300)
        assert set(codes) == {0}, f"{codes}: {self.said()}"

    def assert_whole(self) -> None:
        """Every checkpoint with its final name loads, and so does what the next start would take."""
        if not self.folder.exists():
            return
        for path in self.folder.glob("checkpoint-*.pth"):
            assert checkpoints.find_damage(path) is None, path
            checkpoints.read(path)
        _, notes = checkpoints.find_resumable(self.folder)
        assert not notes

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.parent.glob(f"{self.folder.name}.out-*")))

    def _wait(self, process: BaseProcess, phase: Any, aim: str) -> None:
        """Waits until the process has been at what is aimed at several times, and a moment longer."""
        if aim == "other":
            process.join(self.rng.uniform(0, 4))
            return
        number, times, before = PHASES.index(aim), self.rng.randint(1, 4), 0
        while process.is_alive() and times:
            now = phase.value
            times -= now == number != before
            before = now
            time.sleep(0.001)
        process.join(self.rng.uniform(0, 0.05))

    @contextmanager
    def _processes(self) -> Iterator[tuple[list[BaseProcess], list[Any]]]:
        phases = [CONTEXT.RawValue("i", 0) for _ in range(self.ranks)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in range(self.ranks):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.ranks, "MASTER_PORT": port}
            variables |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
            log = self.folder.with_name(f"{self.folder.name}.out-{rank}")
            given = {name: str(value) for name, value in variables.items()} if self.ranks > 1 else {}
            processes.append(CONTEXT.Process(target=_train, args=(self.arguments, given, phases[rank], log)))
        try:
            for process in processes:
                process.start()
            yield processes, phases
        finally:
            for process in processes:
                process.kill()
                process.join()

    @staticmethod
    def _join(processes: list[BaseProcess], seconds: float) -> list[int | None]:
        deadline = time.monotonic() + seconds
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
        return [process.exitcode for process in processes]


def _train(arguments: list[str], variables: dict[str, str], phase: Any, log: Path) -> None:
    os.environ |= variables
    torch.set_num_threads(1)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = sys.stderr = os.fdopen(handle, "w")  # not pytest's
    _mark(Trainer, "_step", "step", phase)
    _mark(Trainer, "_validation_losses", "validation", phase)
    _mark(Run, "save", "save", phase)
    _mark(Run, "write_weights", "save", phase)
    os._exit(training.main(arguments))


def _mark(owner: type, name: str, what: str, phase: Any) -> None:
    method = getattr(owner, name)

    @functools.wraps(method)
    def marked(*arguments: Any) -> Any:
        before, phase.value = phase.value, PHASES.index(what)
        try:
            return method(*arguments)
        finally:
            phase.value = before

    setattr(owner, name, marked)
