"""Batches arrive from loader processes as they were made."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data._utils.pin_memory import pin_memory

from mapanything.datasets.opv2v import OPV2VDataset
from mapanything.datasets.sampler import BudgetSampler
from mapanything.datasets.views import View
from mapanything.errors import InputError
from mapanything.train import batches, checkpoints, training
from mapanything.train.batches import Feed
from mapanything.train.packed import pack
from tests.helpers.training_runs import finish, same, settings, start

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
tensors = st.builds(
    lambda shape, dtype, seed: torch.from_numpy(np.random.default_rng(seed).integers(0, 2, shape)).to(dtype),
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
views = st.lists(st.dictionaries(st.text(max_size=3), tensors | st.text() | st.lists(st.integers()), max_size=5), max_size=4)


def assert_equal(ours: Sequence[Mapping], theirs: Sequence[Mapping]) -> None:
    assert [list(view) for view in ours] == [list(view) for view in theirs]
    for ours_of, theirs_of in zip(ours, theirs, strict=True):
        for key, value in ours_of.items():
            other = theirs_of[key]
            if isinstance(value, torch.Tensor):
                assert value.dtype == other.dtype and value.shape == other.shape and value.is_contiguous(), key
                assert torch.equal(value, other), key
            else:
                assert value == other and type(value) is type(other), key


@given(views)
def test_packed_is_what_was_given(batch: list[dict]):
    packed = pack(cast(list[View], batch))
    assert packed.content.is_shared()
    assert_equal(packed.unpack(), batch)
    assert all(t.data_ptr() % 64 == 0 for view in packed.unpack() for t in view.values() if torch.is_tensor(t) and t.numel())


def test_pinned_in_one_piece(monkeypatch):
    """Done by torch's loader where there is a GPU."""
    batch = [{"a": torch.arange(3), "b": "x"}, {"a": torch.ones(2, 2)}]
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pieces.append(tensor.clone()) or pieces[-1])
    pieces: list[torch.Tensor] = []
    pinned = pin_memory(pack(cast(list[View], batch)))
    assert len(pieces) == 1 and pinned.content is pieces[0]
    assert_equal(pinned.unpack(), batch)


def feed(data, workers: int) -> Feed:
    scenes = OPV2VDataset(data[0], depth_root=data[1], split="train", resolution=(42, 28))
    return Feed(scenes, BudgetSampler(scenes, 8), workers, pin=False, keep_workers=True)


def test_loader_processes_change_nothing(data):
    loaded, made = feed(data, 2), feed(data, 0)
    for epoch in (0, 1):
        for one in (loaded, made):
            one.sampler.set_epoch(epoch)
        for (batch, ours), (other, theirs) in zip(loaded.batches(), made.batches(), strict=True):
            assert batch == other and isinstance(ours, list) and isinstance(theirs, list)
            assert_equal(ours, theirs)


def test_batches_of_many_tensors_need_few_open_files(data):
    """torch's own way keeps a file open for each tensor that is under way: over a thousand for a few batches of 24 views."""
    before, few = resource.getrlimit(resource.RLIMIT_NOFILE), len(os.listdir("/proc/self/fd")) + 80
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        kept = [views for _, views in feed(data, 1).batches()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    loaded = [view for views in kept if isinstance(views, list) for view in views]
    assert sum(torch.is_tensor(value) for view in loaded for value in view.values()) > few


@pytest.mark.faults
@pytest.mark.parametrize("part", ["train", "validate"])
def test_a_signal_is_heard_while_no_batch_comes(tmp_path, data, part, monkeypatch, one_thread, caplog):
    """A server does not answer: its loader is waited for, and the state is saved all the same."""
    made = batches._Guarded.__getitem__
    monkeypatch.setattr(batches, "LOOK_S", 0.2)

    def hanging(self, item):
        if self._scenes.indices[0].split == part and multiprocessing.parent_process() is not None and item[0] == 0:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(1000)
        return made(self, item)

    monkeypatch.setattr(batches._Guarded, "__getitem__", hanging)
    assert training.main(settings(tmp_path, data, "machine.num_workers=2")) == 143
    monkeypatch.setattr(batches._Guarded, "__getitem__", made)
    caplog.clear()
    assert training.main(settings(tmp_path, data, "machine.num_workers=2")) == 0
    assert "not as it was" not in caplog.text
    undisturbed = tmp_path / "undisturbed"
    assert training.main(settings(undisturbed, data)) == 0
    assert same(undisturbed / checkpoints.FINAL, tmp_path / checkpoints.FINAL)


@pytest.mark.faults
def test_a_broken_file_ends_training_and_its_loaders(tmp_path, data, sample_root):
    (sample_root / ".tests-only").unlink(missing_ok=True)
    image = sorted((sample_root / "train").rglob("*_camera0.png"))[0]
    image.write_bytes(b"no picture")
    process = start(settings(tmp_path / "run", (sample_root, data[1]), "machine.num_workers=2"))
    code, output = finish(process, 60)
    assert code == 2 and "Traceback" not in output and "BytesIO" not in output, output
    assert [str(image) in line for line in output.splitlines() if "error" in line] == [True], output


def test_what_is_wrong_with_a_file_comes_through_loader_processes(data, sample_root, sample_depth_root):
    image = sorted(sample_root.rglob("*_camera0.png"))[0]
    image.write_bytes(b"no picture")
    (sample_root / ".tests-only").unlink(missing_ok=True)
    found = [views for _, views in feed((sample_root, sample_depth_root), 2).batches() if isinstance(views, InputError)]
    assert len(found) == 1 and str(image) in str(found[0])
