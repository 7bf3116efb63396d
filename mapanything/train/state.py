"""The state of a resumed run as plain values and whole tensors, whatever the strategy and the number of processes were.

Everything is known by its parameter's name, so a checkpoint of four ranks with DDP goes into two with FSDP. Random states
belong to a rank; with another number of ranks they are drawn anew.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from mapanything.train.distributed import Process


def model_state(model: nn.Module, writer: bool) -> dict[str, Tensor]:
    """Whole weights under their own names, aliases included. A collective call; only the writer's result holds anything."""
    whole: dict[int, Tensor] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in whole:
            full = _whole(tensor, writer)
            whole[id(tensor)] = full
        state[name] = whole[id(tensor)]
    return state if writer else {}


def optimizer_state(model: nn.Module, optimizer: Optimizer, writer: bool) -> dict[str, dict[str, Tensor]]:
    """AdamW's moments by parameter name. A collective call; only the writer's result holds anything."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = optimizer.state.get(parameter, {})
            state[names[id(parameter)]] = {key: _whole(value, writer) for key, value in moments.items()}
    return state if writer else {}


def load_optimizer(model: nn.Module, optimizer: Optimizer, state: dict[str, dict[str, Tensor]]) -> int:
    """Puts saved moments where their parameters are; how many parameters of the optimizer have none there."""
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    fresh = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            saved = state.get(names[id(parameter)])
            if not saved:
                fresh += 1
                continue
            optimizer.state[parameter] = {key: _placed(value, parameter) for key, value in saved.items()}
    return fresh


def _whole(tensor: Tensor, writer: bool) -> Tensor:
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor  # written from where it is, one after the other
    full = tensor.full_tensor()  # all ranks take part
    return full.cpu() if writer else full.new_empty(0)


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    if value.ndim == 0 or not isinstance(parameter, DTensor):
        return value.to(parameter.device, copy=True)
    whole = value.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


# Random numbers


def random_state(device: torch.device) -> dict[str, Any]:
    """This process's generators."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002, libraries may use it
    assert isinstance(keys, np.ndarray)
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Undoes what has been drawn since `random_state`."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_everything(seed: int) -> None:
    """Seeds this process's generators."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def gather_random_states(process: Process) -> list[dict[str, Any]] | None:
    """The states of all ranks, on rank 0; a collective call."""
    own = random_state(process.device)
    if process.control is None:
        return [own]
    states: list[Any] | None = [None] * process.world_size if process.rank == 0 else None
    dist.gather_object(own, states, dst=0, group=process.control)
    return states
