"""The search for what fits, on traces out of thin air: what is advised, and how far one can go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from mapanything.memory.ledger import Snapshot
from mapanything.memory.peak import GIB, Shape, Trace
from mapanything.memory.search import MOST, WAYS, Search
from mapanything.train.stages import compose_config

STAGE_3 = [Shape(10, 1, 448, 252), Shape(6, 2, 448, 252), Shape(4, 3, 448, 252)]


@dataclass
class Made:
    """Traces out of thin air: GiB by images, for what is checkpointed and learned."""

    fixed: float = 4.0
    per_image: float = 1.0

    def __call__(self, overrides: Sequence[str], shape: Shape) -> Trace:
        saving = 1 + sum(entry.endswith("gradient_checkpointing=true") for entry in overrides)
        learned = 0.2 if "train_params=heads_only" in overrides else 0.5 if "train_params=frozen_encoder" in overrides else 1
        size = round((self.fixed * learned + self.per_image * shape.images * learned / saving) * GIB)
        snapshot = Snapshot(size, {"activations:encoder": size}, "forward")
        return Trace(shape, GIB, round(GIB * learned), 0, 0, 0, 0, snapshot, snapshot)


def search(tracer, gpu_gib: float = 24, world_size: int = 5) -> Search:
    return Search(3, gpu_gib, world_size, (), compose_config(["stage=stage3"]), STAGE_3, STAGE_3, tracer)


def test_advice_prefers_recomputing_then_dividing_then_freezing() -> None:
    def advice(gpu_gib: float) -> list[tuple[str, str, str]]:
        return [(way.learns, way.checkpointing, strategy) for way, strategy in search(Made(), gpu_gib).advised()]

    assert advice(40) == [("everything", "none", "ddp")]
    assert advice(17) == [("everything", "encoder", "ddp")]
    assert advice(12) == [("everything", "encoder, multi-view", "fsdp")]
    assert advice(8)[0][0] == "all but the encoder"
    assert advice(5.4)[0][0] == "heads only"
    assert advice(3) == []
    tight = advice(13.3)
    assert tight[0] == ("everything", "encoder, multi-view, heads", "ddp") and len(tight) == 2


@pytest.mark.parametrize(("fixed", "each"), [(2, 0.5), (14, 1), (2, 0.05), (2, 9), (25, 1), (17.5, 0.01), (0, 3)])
def test_limit_is_the_largest_that_fits(fixed: float, each: float) -> None:
    traced: list[Shape] = []
    made = Made(fixed, each)
    asked = search(lambda overrides, shape: traced.append(shape) or made(overrides, shape), world_size=1)

    def shape(n: int) -> Shape:
        return Shape(n, 1, 448, 252)

    found = asked.largest(shape, WAYS[0], "single", 10)
    assert len(traced) <= 6
    assert found == max((n for n in range(1, MOST + 1) if asked.fits(WAYS[0], shape(n), "single")), default=0)
