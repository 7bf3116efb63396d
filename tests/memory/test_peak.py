"""A peak's arithmetic: overhead, and batches that cannot be."""

from __future__ import annotations

import pytest

from mapanything.errors import InputError
from mapanything.memory.peak import GIB, Overhead, Peak, Shape


def test_overhead_is_stated_and_counts() -> None:
    peak = Peak("ddp", {"weights": 3 * GIB, "activations:encoder": GIB, "batch": 5, "backward": 7}, "backward")
    overhead = Overhead(driver_fraction=0, context_gib=1, nccl_gib=1, libraries_gib=0, fragmentation=0)
    assert overhead.bytes(peak, 24) == 2 * GIB and "1 for CUDA, 1 for NCCL" in str(overhead)
    assert overhead.bytes(Peak("single", peak.parts, "backward"), 24) == GIB
    assert Overhead(0, 0, 0, 0, 0.5).bytes(peak, 24) == round(0.5 * (GIB + 12))
    groups = {"weights": 3 * GIB, "gradients": 0, "optimizer": 0, "activations": GIB + 5, "temporary": 7, "static": 3 * GIB}
    assert peak.grouped == groups


@pytest.mark.parametrize("numbers", [(0, 1, 126, 98), (1, 1, 126, 100), (1, 1, 0, 98)])
def test_impossible_shapes_are_refused(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="give"):
        Shape(*numbers)
