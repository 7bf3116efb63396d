"""Tests that need a card: its numbers, no waiting in forward, what memory is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mapanything.models.mapanything import MapAnything
from mapanything.tools import parity
from tests.helpers.networks import TINY, V1_1
from tests.models.test_network import AUGMENTED, everything, images, tiny

FIXTURE = Path(__file__).parents[1] / "fixtures" / "parity" / "network.pt"
pytestmark = pytest.mark.gpu


def test_a_card_computes_what_upstream_does():
    rows = parity.check_file(FIXTURE, torch.device("cuda"))
    assert [row for row in rows if not row.fine] == []


@pytest.mark.parametrize("prepare", [images, everything])
def test_forward_never_waits_for_the_card(prepare):
    model = tiny(**AUGMENTED).cuda()
    views = prepare(3, batch=2, device="cuda")
    model(views)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(views)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_hundred_views_at_once_with_default_memory_handling():
    """The bilinear doubling in v1.1's dense head would have more values than CUDA's operator can count."""
    model = MapAnything(replace(TINY, heads=V1_1.heads)).cuda().eval()
    prediction = model.predict(images(100, height=518, width=518))
    assert prediction.pts3d.shape == (1, 100, 518, 518, 3) and bool(prediction.pts3d.isfinite().all())


def test_weights_kept_in_bf16_change_no_bit():
    model = tiny().cuda()
    before = model.infer(images(3))
    after = model.keep_bf16().infer(images(3))
    for a, b in zip(before, after, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a if isinstance(a[key], torch.Tensor))


def test_positions_give_the_same_gradient_twice():
    """Deterministic by construction: CUDA's own bicubic resize adds gradients up in any order."""
    model = tiny().cuda().train()
    grads = []
    for _ in range(2):
        encoder = model.encoder.model
        total = (encoder.positions(20, 33) * torch.arange(96, device="cuda")).sum()
        grads.append(torch.autograd.grad(total, encoder.pos_embed)[0])
    assert torch.equal(*grads)


def test_global_switches_are_as_they_were():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    tiny().cuda().infer(images(2))  # views on the CPU, network on the card
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
