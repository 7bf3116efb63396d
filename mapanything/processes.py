"""Starting worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread


@contextmanager
def holding_ctrl_c() -> Iterator[None]:
    """Keeps Ctrl-C from workers that are started in here: it is this process's to answer, they would only show tracebacks.

    The signal is blocked in this thread, which the workers inherit for good. One that comes meanwhile (another thread may
    take it) is remembered and answered at the end of the block: ignoring it instead would lose it.
    """
    if current_thread() is not main_thread():  # handlers belong to the main thread
        yield
        return
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if held:
        signal.raise_signal(signal.SIGINT)
