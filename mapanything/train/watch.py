"""Tells when to stop: a signal asks for it, or another process of the run is gone.

`Stop` notes SIGTERM, SIGINT and SIGHUP; training looks at it after every step. `Watch` is a thread beside training which ends
this process when the run cannot go on: in a collective operation that waits for a dead rank, no Python code runs any more,
and without it the other ranks would wait for TORCH_DIST_TIMEOUT. The rank that failed says why, once; the others say who.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch.distributed as dist

from mapanything.train.distributed import Process

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
INTERVAL_S = 0.5
GRACE_S = 45  # how long a step may take after a signal before its peers count as gone; the launcher kills after 60
FAILED = "mapanything/failed"  # key in the run's store: rank and reason


class Stop:
    """The first signal asks training to save and leave, a second one leaves at once."""

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            os._exit(128 + signum)
        self.signum = self.signum or signum


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a run ends, and its exit code."""

    code: int
    reason: str

    def encode(self) -> str:
        """Text for the run's store."""
        return f"{self.code} {self.reason}"

    @classmethod
    def decode(cls, data: bytes) -> Failure:
        """The failure of such a text."""
        code, _, reason = data.decode().partition(" ")
        return cls(int(code), reason)


class Watch:
    """Looks twice a second whether the run's other processes are alive.

    Call `alive` whenever a step is done, `fail` with the reason when this rank fails, `finish` before leaving.
    """

    def __init__(self, process: Process, stop: Stop) -> None:
        self._process, self._stop = process, stop
        self._parent = os.getppid()
        self._peers: dict[int, int] = {}  # rank -> pid, of this machine
        # A connection of this thread's own; torch's stubs leave `clone` out.
        self._store = process.store.clone() if process.store is not None else None  # pyright: ignore[reportAttributeAccessIssue]
        self._end = threading.Event()
        self._alive, self._stop_seen = time.monotonic(), 0.0
        self.busy = False  # something long and local is going on, such as writing a file: don't take it for death
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts to watch; a collective call."""
        if self._process.control is None:
            return
        here = (socket.gethostname(), os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else "")
        peers: list[Any] = [None] * self._process.world_size
        dist.all_gather_object(peers, (here, os.getpid()), group=self._process.control)
        self._peers = {rank: pid for rank, (place, pid) in enumerate(peers) if place == here and rank != self._process.rank}
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def alive(self) -> None:
        """Notes that training goes on."""
        self._alive = time.monotonic()

    def finish(self) -> None:
        """All ranks come here when all is done; afterwards they may leave one by one."""
        self._process.barrier()
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self._process.barrier()

    def fail(self, reason: str, code: int) -> Failure | None:
        """This rank has failed. Returns another rank's failure if that came first: then this one is its consequence."""
        self._end.set()
        if self._store is None:
            return None
        mine = Failure(code, f"rank {self._process.rank}: {reason}")
        first = self._find_failure()
        deadline = time.monotonic() + 3
        # A rank whose peer died fails at once, the peer's death is found a moment later.
        while first is None and _is_consequence(reason) and time.monotonic() < deadline:
            gone = self._find_dead()
            first = self._announce(gone) if gone else self._find_failure()
            time.sleep(0.1)
        first = first or self._announce(mine)
        return None if first == mine else first

    def _run(self) -> None:
        while not self._end.wait(INTERVAL_S):
            failure, gone = self._find_failure(), None
            if failure is None and (gone := self._find_dead()):
                failure = self._announce(gone)
            if failure is not None and not self._end.is_set():
                # Who died without a word can't say it as an error; who failed has.
                level = logging.ERROR if failure == gone else logging.WARNING
                leave(f"rank {self._process.rank} ends, because {failure.reason}", failure.code, level)
            if self._waits_too_long() and not self._end.is_set():
                number = self._stop.signum
                leave(f"signal {number}, but the step does not end ({GRACE_S} s); the last checkpoint counts", 128 + number)

    def _find_failure(self) -> Failure | None:
        assert self._store is not None
        try:
            return Failure.decode(self._store.get(FAILED)) if self._store.check([FAILED]) else None
        except RuntimeError:  # DistNetworkError: its server was in a process that is gone
            return Failure(1, "the run's first process or its host can't be reached any more")

    def _find_dead(self) -> Failure | None:
        if os.getppid() != self._parent:
            return Failure(1, "the launcher is gone (killed?)")
        for rank, pid in self._peers.items():
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                # One that failed by itself has said so before it left.
                return Failure(1, f"rank {rank} (process {pid}) was killed; out of memory? (see dmesg)")
            except PermissionError:
                pass
        return None

    def _announce(self, failure: Failure) -> Failure:
        """Makes a failure known to all, unless there is one already; the one that counts."""
        assert self._store is not None
        known = self._find_failure()
        if known is None:
            try:
                known = Failure.decode(self._store.compare_set(FAILED, "", failure.encode()))
            except RuntimeError:
                known = failure
        return known

    def _waits_too_long(self) -> bool:
        if not self._stop.signum:
            return False
        self._stop_seen = self._stop_seen or time.monotonic()
        return not self.busy and time.monotonic() - max(self._alive, self._stop_seen) > GRACE_S


def _is_consequence(reason: str) -> bool:
    """Tells whether an error looks like what a dead peer causes."""
    return any(word in reason for word in ("Connection", "connection", "NCCL", "gloo", "Gloo", "peer", "DistBackend"))


def leave(message: str, code: int, level: int = logging.ERROR) -> None:
    """Ends this process now, whatever its threads wait for."""
    log.log(level, message)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
