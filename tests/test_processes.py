"""Ctrl-C while worker processes start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from mapanything.processes import holding_ctrl_c


def test_it_is_answered_after_the_workers_have_started() -> None:
    done: list[str] = []

    def start() -> None:
        with holding_ctrl_c():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("workers started")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_it_goes_to_the_handler_that_was_there() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        with holding_ctrl_c():
            os.kill(os.getpid(), signal.SIGINT)
            assert not heard
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_it_is_the_main_threads() -> None:
    def start() -> None:
        with holding_ctrl_c():
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[object] = []
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def interrupted() -> str:
    """Runs in a worker: what a Ctrl-C does to it."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)
    return "went on"


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_workers_never_see_it(how: str) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context(how)) as pool:
        with holding_ctrl_c():
            future = pool.submit(interrupted)
        assert future.result() == "went on"
