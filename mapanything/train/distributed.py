"""Several processes, one run: how many there are, how they find each other, and what wraps the network.

A run is laid out once (`Layout`), before anything is started: what can't work here is an error that says what to set. The
processes are started by torch's elastic launcher (launch.py) or by torchrun.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from mapanything.errors import InputError
from mapanything.models.layers import Block

STRATEGIES, DEVICES = ("ddp", "fsdp"), ("cuda", "cpu")


@dataclass(frozen=True)
class Layout:
    """The processes of a run, and what each does in a step."""

    world_size: int  # processes on all nodes
    accumulation: int  # batches of each per step
    device: str
    strategy: str
    timeout: timedelta
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None
    note: str = ""  # what was changed, for the log

    @property
    def processes_here(self) -> int:
        """The number of processes on each node."""
        return self.world_size // self.nodes


def under_launcher() -> bool:
    """Tells whether torchrun, or our own launcher, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def lay_out(config: Mapping[str, Any], gpus: int | None = None) -> Layout:
    """Lays a run out on this machine.

    Args:
        config: configs/distributed. gpus: of this machine; None: count them.

    Raises:
        InputError: it can't be; says what to set.
    """
    wanted, device, nodes, batches = (config[key] for key in ("world_size", "device", "nodes", "accumulation"))
    if config["strategy"] not in STRATEGIES or device not in DEVICES:
        raise InputError(
            f"distributed: strategy={config['strategy']}, device={device}: give one of {', '.join(STRATEGIES)} and one of "
            f"{', '.join(DEVICES)}"
        )
    if not isinstance(wanted, int) or wanted < 1 or nodes < 1 or wanted % nodes or not 0 <= config["node_rank"] < nodes:
        raise InputError(
            f"distributed: world_size={wanted}, nodes={nodes}, node_rank={config['node_rank']}: world_size counts the "
            "processes of all nodes, as many on each; node_rank goes from 0 to nodes - 1"
        )
    if not isinstance(batches, int) or batches < 1:
        raise InputError(f"distributed.accumulation={batches}: give the number of batches per step, 1 or more")
    if nodes > 1 and not config["rendezvous"] and not under_launcher():
        raise InputError(f"distributed.nodes={nodes} needs distributed.rendezvous=HOST:PORT of node 0, the same on all nodes")
    timeout, places = _timeout(config["timeout_seconds"]), (nodes, config["node_rank"], config["rendezvous"])
    layout = Layout(wanted, batches, device, config["strategy"], timeout, *places)
    if under_launcher():
        world = _launched_processes()
        batches *= _accumulation(config, wanted, world)
        return replace(layout, world_size=world, accumulation=batches, note=_launcher_note(wanted, world, config))
    here = layout.processes_here
    if device == "cpu":
        return layout
    gpus = torch.cuda.device_count() if gpus is None else gpus
    if gpus == 0:
        raise InputError(
            "no GPU is visible here (`./invoke doctor` says why); distributed.device=cpu trains on the CPU, for tests"
        )
    if here <= gpus:
        return layout
    if not config["keep_global_batch"]:
        raise InputError(
            f"distributed.world_size={wanted} needs {here} GPUs on this node, {gpus} are visible: set distributed.world_size="
            f"{gpus * nodes} (a smaller global batch), or --keep-global-batch (distributed.keep_global_batch=true) to "
            f"accumulate gradients instead"
        )
    used = max(n for n in range(1, gpus + 1) if here % n == 0)
    batches *= here // used
    note = f"global batch kept: {used * nodes} processes with {batches} batches each per step, for {wanted} processes"
    if used < gpus:
        note += f"; {gpus - used} GPUs stay idle, as {here} is no multiple of more"
    return replace(layout, world_size=used * nodes, accumulation=batches, note=note)


def _launched_processes() -> int:
    """The number of processes that a launcher says there are. A cluster's shell may have set half of its variables.

    Raises:
        InputError: names the variable that is missing or no number.
    """
    alone = "torchrun sets it; without torchrun: env -u RANK -u WORLD_SIZE ..."
    if not os.environ.get("MASTER_ADDR"):
        raise InputError(f"MASTER_ADDR is not set where RANK and WORLD_SIZE say that a launcher runs: {alone}")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        value = os.environ.get(name, "0" if name == "LOCAL_RANK" else "")
        if not (value.isascii() and value.isdigit()):
            raise InputError(f"{name} is {value!r}, no number, where RANK and WORLD_SIZE say that a launcher runs: {alone}")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank >= world:
        raise InputError(f"RANK is {rank} of WORLD_SIZE={world} processes: it goes from 0 to {world - 1}; {alone}")
    return world


def _timeout(seconds: Any) -> timedelta:
    text = os.environ.get("TORCH_DIST_TIMEOUT", "7200") if seconds is None else str(seconds)
    try:
        return timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        raise InputError(f"TORCH_DIST_TIMEOUT (distributed.timeout_seconds) is {text!r}: give a number of seconds") from None


def _accumulation(config: Mapping[str, Any], wanted: int, world: int) -> int:
    if not config["keep_global_batch"] or wanted <= world:
        return 1
    if wanted % world:
        raise InputError(
            f"--keep-global-batch: world_size={wanted} is no multiple of the {world} processes that were started; start "
            f"{max(n for n in range(1, world + 1) if wanted % n == 0)}"
        )
    return wanted // world


def _launcher_note(wanted: int, world: int, config: Mapping[str, Any]) -> str:
    if world == wanted or os.environ.get(LAUNCHED) == "1":
        return os.environ.get(NOTE, "")
    kept = f"; {_accumulation(config, wanted, world)} times as many batches per step" if config["keep_global_batch"] else ""
    return f"torchrun started {world} processes; that counts, not distributed.world_size={wanted}{kept}"


LAUNCHED, NOTE = "MAPANYTHING_LAUNCHED", "MAPANYTHING_LAUNCH_NOTE"  # environment of our own launcher's processes


@dataclass
class Process:
    """This one of the run's processes. `control`: a group on the CPU for small decisions; None where it is the only one."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    store: Store | None = None

    def agree(self, *numbers: int) -> list[int]:
        """The largest of each number among all ranks; a collective call that does not touch the GPU."""
        if self.control is None:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control)
        return tensor.tolist()

    def total(self, numbers: torch.Tensor) -> torch.Tensor:
        """Sums a float64 CPU tensor over all ranks; a collective call."""
        if self.control is not None:
            dist.all_reduce(numbers, group=self.control)
        return numbers

    def share(self, value: Any) -> Any:
        """Rank 0's value; a collective call."""
        values = [value]
        if self.control is not None:
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def barrier(self) -> None:
        """Waits for all ranks; a collective call."""
        if self.control is not None:
            dist.barrier(group=self.control)


def join(layout: Layout) -> Process:
    """Takes this process's place in the run: its device, and the groups that it talks in."""
    if not under_launcher():
        return Process(0, 0, 1, _device(layout, 0))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = _device(layout, local_rank)
    store, rank, world_size = next(rendezvous("env://", timeout=layout.timeout))
    store.set_timeout(layout.timeout)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=layout.timeout,
        device_id=device if device.type == "cuda" else None,
    )
    control = dist.new_group(backend="gloo", timeout=layout.timeout)
    assert isinstance(control, dist.ProcessGroup)
    return Process(rank, local_rank, world_size, device, control, store)


def depart(process: Process) -> None:
    """Undoes `join`, once all ranks are done."""
    if process.control is not None:
        dist.destroy_process_group()


def _device(layout: Layout, local_rank: int) -> torch.device:
    if layout.device == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {local_rank} of this node has no GPU: {torch.cuda.device_count()} are visible; start no more processes"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def wrap(module: nn.Module, layout: Layout, process: Process) -> nn.Module:
    """The module, on its device, as the strategy has it. Parameters without gradient must have requires_grad False by now.

    FSDP2 divides every transformer block, and the rest as a whole; the optimizer must be made afterwards, as the parameters
    are others.
    """
    module.to(process.device)
    if process.control is None:
        return module
    if layout.strategy == "ddp":
        parallel = partial(DistributedDataParallel, module, static_graph=True, gradient_as_bucket_view=True)
        # Buffers never change. torch before 2.13 calls this option by another name.
        if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters:
            return parallel(forward_sync_buffers=False)
        return parallel(broadcast_buffers=False)
    for block in [part for part in module.modules() if isinstance(part, Block)]:
        fully_shard(block)
    fully_shard(module)
    return module


def without_sync(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """The context for forward and backward of a batch; gradients are exchanged in the last one of a step only."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    return nullcontext()


def bare(module: nn.Module) -> nn.Module:
    """The module without DistributedDataParallel around it; FSDP2 has nothing around it."""
    return module.module if isinstance(module, DistributedDataParallel) else module
