"""Reading ahead and finishing behind: in order, never far ahead, and ended by what goes wrong."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from mapanything.errors import InputError
from mapanything.inference.stream import pipelined


def test_results_come_in_order_and_reading_stays_a_few_ahead():
    begun: list[int] = []
    taken: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        return item * 10

    def work(item: int, reading: Future[int]) -> int | None:
        taken.append(item)
        assert max(begun, default=0) <= len(taken) + 2  # two readers: the one that is worked on, and two more
        value = reading.result()
        return None if item == 3 else value + 1

    threads: set[str] = set()

    def finish(item: int, made: int) -> str:
        threads.add(threading.current_thread().name)
        return f"{item}:{made}"

    found = list(pipelined(range(6), read, work, finish, 2, 2))
    assert found == [(i, f"{i}:{10 * i + 1}") for i in (0, 1, 2, 4, 5)]
    assert threading.current_thread().name not in threads and taken == list(range(6))
    assert list(pipelined([], read, work, finish, 2, 2)) == []


@pytest.mark.parametrize("where", ["work", "finish"])
def test_what_goes_wrong_ends_it_and_no_further_item_is_begun(where: str):
    begun: list[int] = []

    def fail(at: str, item: int) -> int:
        if at == where and item == 2:
            raise InputError("the disk is full")
        return item

    results = pipelined(
        range(100),
        lambda item: begun.append(item) or item,
        lambda item, reading: fail("work", reading.result()),
        lambda item, made: fail("finish", made),
        1,
        1,
    )
    with pytest.raises(InputError, match="disk is full"):
        for _ in results:
            pass
    assert len(begun) < 10
