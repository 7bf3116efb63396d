"""The ledger against what is there, and against torch's own tracker."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from mapanything.memory.ledger import Ledger
from mapanything.memory.peak import Shape
from mapanything.memory.step import make_batch, make_fake, random_objective
from mapanything.train.stages import compose_config


def test_ledger_follows_storages_not_tensors() -> None:
    with FakeTensorMode():
        weight = torch.empty(1024, 256, requires_grad=True)  # 1 MiB
        ledger = Ledger([weight], [])
        with ledger:
            a = weight * 2
            b = a.view(-1)[:10]  # no memory of its own
            del a
            c = b + 1  # rounded up to 512 bytes
            held = ledger.alone.total
            del b
            d = weight.detach().clone()
            assert ledger.alone.total == max(held, 2**20 + 512)
            del c, d
    assert held == 2**20 + 512


@pytest.mark.parametrize(
    "checkpointing", [[], [f"model.{part}.gradient_checkpointing=true" for part in ("encoder", "multiview")]]
)  # their tracker allows no module two calls, as the heads get
def test_ledger_says_what_torchs_own_tracker_says(checkpointing: list[str]) -> None:
    with torch.device("meta"):
        model = random_objective(compose_config(["stage=stage2", "model=mapanything_tiny", *checkpointing])).model
    with FakeTensorMode():
        make_fake(model)
        views = make_batch(Shape(2, 1, 70, 56), "cpu")
        images = [view["img"] for view in views]

        def step() -> None:  # their tracker does not get on with a module that returns what needs no gradient
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model.stacked([{"img": image, "data_norm_type": ["dinov2"]} for image in images])
            (outputs.pts3d.sum() + outputs.conf.sum()).backward()
            model.zero_grad(set_to_none=True)

        everything = [*model.parameters(), *model.buffers()]
        with Ledger(everything, images) as ledger:
            step()
        tracker = MemTracker()
        tracker.track_external(model, *images)
        with tracker:
            step()
    theirs = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert sum(x.untyped_storage().nbytes() for x in everything) + ledger.alone.total == pytest.approx(theirs, rel=0.005)
