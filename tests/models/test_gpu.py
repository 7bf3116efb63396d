"""Tests that need a card: its numbers, no waiting in forward, what memory is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mapanything.tools import parity
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


def test_global_switches_are_as_they_were():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    tiny().cuda().infer(images(2))  # views on the CPU, network on the card
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
