"""Several processes: the plan, the same gradients however they are divided, and an end in seconds when one of them fails."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mapanything.errors import InputError
from mapanything.train import checkpoints, distributed, training
from mapanything.train.distributed import lay_out
from tests.helpers.process_table import children, is_running, variables
from tests.helpers.training_runs import finish, log_of, run, same, settings, start, weights

DEFAULTS = {
    "world_size": 1,
    "device": "cuda",
    "strategy": "ddp",
    "accumulation": 1,
    "keep_global_batch": False,
    "timeout_seconds": None,
    "nodes": 1,
    "node_rank": 0,
    "rendezvous": None,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("option", ["forward_sync_buffers", "broadcast_buffers"])
def test_buffers_stay_as_they_are_on_every_torch(monkeypatch, option):
    """torch 2.13 renamed the option; its DDP is asked which one it takes."""
    given = {}

    class New(torch.nn.Module):
        def __init__(self, module, static_graph, gradient_as_bucket_view, forward_sync_buffers=None):
            given["forward_sync_buffers"] = forward_sync_buffers

    class Old(torch.nn.Module):
        def __init__(self, module, static_graph, gradient_as_bucket_view, broadcast_buffers=True):
            given["broadcast_buffers"] = broadcast_buffers

    stand_in = New if option == "forward_sync_buffers" else Old
    group: Any = object()
    monkeypatch.setattr(distributed, "DistributedDataParallel", stand_in)
    process = distributed.Process(0, 0, 2, torch.device("cpu"), control=group)
    distributed.wrap(torch.nn.Linear(1, 1), lay_out(DEFAULTS | {"device": "cpu"}), process)
    assert given == {option: False}


# The plan


@pytest.mark.parametrize(
    ("values", "gpus", "world_size", "accumulation"),
    [
        ({"world_size": 4}, 4, 4, 1),
        ({"world_size": 4}, 8, 4, 1),
        ({"world_size": 4, "keep_global_batch": True}, 2, 2, 2),
        ({"world_size": 5, "keep_global_batch": True}, 4, 1, 5),
        ({"world_size": 6, "keep_global_batch": True, "accumulation": 2}, 4, 3, 4),
        ({"world_size": 8, "nodes": 2, "rendezvous": "a:1", "keep_global_batch": True}, 2, 4, 2),
        ({"world_size": 3, "device": "cpu"}, 0, 3, 1),
    ],
)
def test_plan(values, gpus, world_size, accumulation):
    layout = lay_out(DEFAULTS | values, gpus)
    assert (layout.world_size, layout.accumulation) == (world_size, accumulation)
    assert bool(layout.note) == (world_size != values["world_size"])


@pytest.mark.parametrize(
    ("values", "gpus", "message"),
    [
        (
            {"world_size": 5},
            2,
            r"needs 5 GPUs on this node, 2 are visible: set distributed.world_size=2 .*--keep-global-batch",
        ),
        ({"world_size": 8, "nodes": 2, "rendezvous": "a:1"}, 2, r"needs 4 GPUs on this node.*distributed.world_size=4 "),
        ({}, 0, "no GPU is visible here .*distributed.device=cpu"),
        ({"strategy": "zero"}, 1, "strategy=zero"),
        ({"world_size": 3, "nodes": 2}, 4, "world_size=3, nodes=2"),
        ({"world_size": 2, "nodes": 2}, 1, "needs distributed.rendezvous"),
        ({"timeout_seconds": "soon"}, 1, "'soon': give a number"),
        ({"accumulation": 0}, 1, "accumulation=0"),
    ],
)
def test_plans_that_cannot_be(values, gpus, message):
    with pytest.raises(InputError, match=message):
        lay_out(DEFAULTS | values, gpus)


def test_timeout_of_slow_clusters(monkeypatch):
    assert lay_out(DEFAULTS, 1).timeout.total_seconds() == 7200
    monkeypatch.setenv("TORCH_DIST_TIMEOUT", "600")
    assert lay_out(DEFAULTS, 1).timeout.total_seconds() == 600
    assert lay_out(DEFAULTS | {"timeout_seconds": 30}, 1).timeout.total_seconds() == 30


def test_under_torchrun_its_number_counts(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    layout = lay_out(DEFAULTS | {"world_size": 4}, 0)
    assert (layout.world_size, layout.accumulation) == (2, 1) and "torchrun started 2" in layout.note
    assert lay_out(DEFAULTS | {"world_size": 4, "keep_global_batch": True}, 0).accumulation == 2
    with pytest.raises(InputError, match="no multiple of the 2"):
        lay_out(DEFAULTS | {"world_size": 5, "keep_global_batch": True}, 0)


# The same steps, however they are divided


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": None}, "MASTER_PORT is '', no number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', no number"),
        ({"RANK": "-1"}, "RANK is '-1', no number"),
        ({"RANK": "3"}, "RANK is 3 of WORLD_SIZE=3 processes"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is '', no number"),
    ],
)
def test_half_of_a_launcher_is_one_line(changed, said, monkeypatch):
    """Shells inside a cluster's job have some of these variables."""
    whole = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in (whole | changed).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"{said}.*env -u RANK -u WORLD_SIZE"):
        lay_out(DEFAULTS, 0)


def losses(folder: Path, name: str = "train_loss") -> list[float]:
    return [entry[name] for entry in log_of(folder)]


def test_one_process_ddp_fsdp_and_torchrun_agree(tmp_path, data):
    """One process that accumulates, two with DDP, two with FSDP2 and two under torchrun see the same steps."""
    stage = ["stage=stage3", "model.pretrained=null", "dataset.num_views=6", "train_params.max_num_of_imgs_per_gpu=6"]
    stage += ["train_params.epochs=5", "distributed.world_size=2"]
    one, ddp, fsdp, under = (settings(tmp_path / name, data, *stage) for name in ("one", "ddp", "fsdp", "under"))
    others = [start(ddp), start([*fsdp, "distributed.strategy=fsdp"])]
    assert training.main([*one, "distributed.world_size=1", "distributed.accumulation=2"]) == 0
    for process in others:
        code, output = finish(process)
        assert code == 0, output
    torchrun = ["--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    command = [*torchrun, "-m", "mapanything.train.training", *under]
    code, output = finish(start(command, module="torch.distributed.run", GLOO_SOCKET_IFNAME="lo"))
    assert code == 0, output
    reference = losses(tmp_path / "one")
    assert len(reference) == 5 and reference[-1] < reference[0]
    for name in ("ddp", "fsdp", "under"):
        assert losses(tmp_path / name) == pytest.approx(reference, rel=2e-3), name
        assert losses(tmp_path / name, "validate_loss") == pytest.approx(losses(tmp_path / "one", "validate_loss"), rel=2e-3)
    assert losses(tmp_path / "ddp")[0] == pytest.approx(reference[0], rel=1e-5)
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=1e-4)
    assert same(tmp_path / "ddp" / checkpoints.FINAL, tmp_path / "under" / checkpoints.FINAL)
    assert weights(tmp_path / "fsdp" / checkpoints.FINAL).keys() == weights(tmp_path / "ddp" / checkpoints.FINAL).keys()
    assert [entry["scenes"] for entry in log_of(tmp_path / "ddp")] == [2] * 5


def test_accumulation_without_exchanging_gradients_in_between(tmp_path, data):
    """A step of four batches: of one process, or two of each of two, which exchange gradients after the second only."""
    common = ["train_params.epochs=4", "distributed.accumulation=2", "distributed.world_size=2"]
    strategies = [settings(tmp_path / name, data, *common, f"distributed.strategy={name}") for name in ("ddp", "fsdp")]
    others = [start(arguments) for arguments in strategies]
    alone = ["distributed.world_size=1", "distributed.accumulation=4"]
    assert training.main(settings(tmp_path / "one", data, *common, *alone)) == 0
    for process in others:
        code, output = finish(process)
        assert code == 0, output
    for name in ("ddp", "fsdp"):
        assert [entry["steps"] for entry in log_of(tmp_path / name)] == [1] * 4
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-3), name
        assert losses(tmp_path / name)[:2] == pytest.approx(losses(tmp_path / "one")[:2], rel=1e-5), name


def test_resume_with_other_processes_and_strategy(tmp_path, data):
    """One process, then two with FSDP, then one again, each for an epoch."""
    out = tmp_path / "run"
    assert training.main(settings(out, data, "train_params.epochs=1")) == 0
    code, output = run(settings(out, data, "train_params.epochs=2", "distributed.world_size=2", "distributed.strategy=fsdp"))
    assert code == 0, output
    assert "not the same bits" in output and "world_size: 1 -> 2" in output and "strategy: ddp -> fsdp" in output
    assert training.main(settings(out, data, "train_params.epochs=3")) == 0
    values = losses(out)
    assert len(values) == 3 and values[2] < values[0]
    optimizer = torch.load(out / checkpoints.LAST, weights_only=True)["optimizer"]
    # Four scenes: four steps alone, two for two processes, four alone.
    assert {float(moments["step"]) for moments in optimizer.values()} == {10.0}


def test_two_nodes_on_one_host(tmp_path, data):
    """Two launchers, as on two hosts, train one run."""
    common = ["distributed.nodes=2", "distributed.world_size=2", f"distributed.rendezvous=127.0.0.1:{free_port()}"]
    nodes = [
        start(settings(tmp_path, data, *common, f"distributed.node_rank={rank}"), GLOO_SOCKET_IFNAME="lo") for rank in (0, 1)
    ]
    ends = [finish(node) for node in nodes]
    assert [code for code, _ in ends] == [0, 0], ends
    assert len(log_of(tmp_path)) == 2 and log_of(tmp_path)[0]["world_size"] == 2
    assert "epoch 2/2 done" in ends[0][1] and "epoch" not in ends[1][1]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# One fails


def wait_for(process, text: str) -> str:
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"'{text}' never came:\n{seen}")


@pytest.mark.faults
def test_a_killed_rank_ends_all_in_seconds_with_its_reason(tmp_path, data):
    process = start(settings(tmp_path, data, "train_params.epochs=200", "distributed.world_size=2"))
    wait_for(process, "step 2/2")
    ranks = children(process.pid)
    assert len(ranks) == 2
    victim = next(p for p in ranks if b"RANK=1\0" in variables(p))
    os.kill(victim, signal.SIGKILL)
    begin = time.monotonic()
    assert process.stdout is not None
    output = process.stdout.read()
    code = process.wait(30)
    assert time.monotonic() - begin < 60  # its peers alone would wait for TORCH_DIST_TIMEOUT, two hours
    assert code not in (0, 143) and "rank 1 (process" in output and "was killed" in output, output
    assert "Traceback" not in output
    assert not any(map(is_running, ranks))


@pytest.mark.faults
def test_workers_do_not_outlive_their_launcher(tmp_path, data):
    process = start(settings(tmp_path, data, "train_params.epochs=200", "distributed.world_size=2"))
    wait_for(process, "step 2/2")
    ranks = children(process.pid)
    process.kill()
    deadline = time.monotonic() + 15
    while any(map(is_running, ranks)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(is_running, ranks))
    process.wait()


FAILING = """
import os, sys
from mapanything.train import training
from mapanything.train.loop import Trainer
from mapanything.train.meter import TrainingError
step = Trainer._step
def fail(self, *arguments):
    if os.environ.get("RANK") == "1" and self.run.position.epoch == 1:
        {what}
    return step(self, *arguments)
Trainer._step = fail
sys.exit(training.main(sys.argv[1:]))
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("what", "reason", "traceback"),
    [
        ("raise ZeroDivisionError('in rank 1')", "ZeroDivisionError: in rank 1", True),
        ("raise TrainingError('the loss of rank 1 is bad')", "the loss of rank 1 is bad", False),
    ],
)
def test_a_failing_rank_says_why_and_the_others_end(tmp_path, data, what, reason, traceback):
    script = tmp_path / "failing.py"
    script.write_text(FAILING.format(what=what))
    torchrun = ["--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}", str(script)]
    begin = time.monotonic()
    arguments = settings(tmp_path / "run", data, "distributed.world_size=2")
    code, output = finish(start([*torchrun, *arguments], module="torch.distributed.run", GLOO_SOCKET_IFNAME="lo"))
    assert code != 0 and time.monotonic() - begin < 60
    console = (tmp_path / "run" / "console.log").read_text()
    assert f"[rank 1] error: {reason}" in console, output
    assert console.count("Traceback") == traceback, console
    assert (tmp_path / "run" / checkpoints.LAST).exists()


def test_one_line_for_what_all_ranks_see(tmp_path, data):
    code, output = run(settings(tmp_path, data, "distributed.world_size=2", "dataset.train.split=nowhere"))
    assert code == 2, output
    assert output.count("error: ") == 1 and "Traceback" not in output, output
