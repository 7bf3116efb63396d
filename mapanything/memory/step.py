"""A training step, traced before any GPU is asked, or measured on one.

The module that training wraps (`Objective`: network, autocast, loss) does forward and backward on fake tensors, and the ledger
notes when every storage is made and let go. So the largest sum is that of the code as it is, layer by layer, and not of a
formula: nothing is fitted or interpolated. Fake tensors stand on the CPU, since a CPU build of torch has no CUDA to pretend;
`as_on_cuda` puts right where that matters.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_

from mapanything.errors import InputError
from mapanything.memory.ledger import Ledger
from mapanything.memory.peak import Shape, Trace
from mapanything.models.layers import Attention, Block
from mapanything.models.mapanything import MapAnything
from mapanything.train.distributed import Layout, Process, wrap
from mapanything.train.objective import Objective, build_objective, uses_bf16
from mapanything.train.optim import OptimConfig, make_optimizer


def make_batch(shape: Shape, device: torch.device | str) -> list[dict[str, Any]]:
    """A batch as `datasets.views.collate` gives it, its numbers plausible: plain walls, cameras looking the same way."""
    b, height, width = shape.batch, shape.height, shape.width
    with torch.device(device):
        rays = F.normalize(torch.rand(b, height, width, 3) + 0.5, dim=-1)
        depth = 5 + torch.rand(b, height, width, 1)
        eye = torch.eye(4).expand(b, 4, 4)
        return [
            {
                "img": torch.rand(b, 3, height, width),
                "data_norm_type": ["dinov2"] * b,
                "camera_intrinsics": torch.eye(3).expand(b, 3, 3).clone(),
                "camera_pose": eye.clone(),
                "camera_pose_quats": eye[:, 3].clone(),
                "camera_pose_trans": torch.rand(b, 3),
                "ray_directions_cam": rays.clone(),
                "depth_along_ray": depth.clone(),
                "pts3d_cam": rays * depth,
                "pts3d": rays * depth,
                "valid_mask": torch.ones(b, height, width, dtype=torch.bool),
                "non_ambiguous_mask": torch.ones(b, height, width, dtype=torch.bool),
                "is_synthetic": torch.ones(b, dtype=torch.bool),
                "is_metric_scale": torch.ones(b, dtype=torch.bool),
                "agent_id": torch.full((b,), view // 4),
            }
            for view in range(shape.views)
        ]


def random_objective(config: DictConfig, amp: bool | None = None) -> Objective:
    """Builds what training wraps, with random weights wherever the config has its weights from.

    Args:
        config: configs/train.yaml, composed.
        amp: bf16 autocast; None: as on a GPU with this config.
    """
    amp = uses_bf16(config.train_params.amp, "cuda") if amp is None else amp
    objective, _ = build_objective(config, OptimConfig.of(config.train_params), amp, pretrained=None, dinov2=None)
    return objective.train()


def trace_step(config: DictConfig, shape: Shape, *, cuda: bool = True, amp: bool | None = None) -> Trace:
    """Traces forward and backward of one batch.

    Args:
        config: configs/train.yaml, composed: network, loss, what learns, precision. Where the weights come from and where
            the data lies does not matter.
        cuda: as CUDA's kernels do it. False: as the CPU's do, to be compared with a real step on a CPU.
        amp: see `random_objective`.

    Raises:
        InputError: as training would.
    """
    with torch.device("meta"):  # drawing start weights looks at numbers, and a fake tensor has none
        objective = random_objective(config, amp)
    with FakeTensorMode():
        make_fake(objective)
        if cuda:
            as_on_cuda(objective)
        views = make_batch(shape, "cpu")
        tensors = [x for view in views for x in view.values() if isinstance(x, Tensor)]
        for number, view in enumerate(views):
            view["agent_id"] = number // 4  # not a tensor: the network looks at the numbers of those that are on the CPU
        parameters = list(objective.parameters())
        everything = [*parameters, *objective.buffers()]
        ledger = Ledger(everything, tensors)
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(ledger.gradient)
        with ledger, labels(objective.model, ledger):
            run_step(objective, views, lambda: setattr(ledger, "phase", "backward"))
        blocks = [block for block in objective.modules() if isinstance(block, Block)]
        sizes = [_bytes(block.parameters()) for block in blocks]
        trained_sizes = [_bytes(block.parameters(), trained=True) for block in blocks]
        weights, trained = _bytes(everything), _bytes(parameters, trained=True)
        return Trace(
            shape,
            weights=weights,
            trained=trained,
            block=max(sizes),
            block_trained=max(trained_sizes),
            rest=weights - sum(sizes),
            rest_trained=trained - sum(trained_sizes),
            alone=ledger.alone,
            shared=ledger.shared,
        )


def run_step(objective: nn.Module, views: list[Any], between: Callable[[], None] = lambda: None) -> None:
    """Forward and backward as train/loop.py does them; its names live as long as there."""
    loss, _terms, _outputs = objective(views)
    between()
    loss.backward()


def make_fake(module: nn.Module) -> None:
    """Puts tensors on the CPU in the place of those on the meta device; under `FakeTensorMode` they have no bytes either."""
    for part in module.modules():
        for name, tensor in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(torch.empty(tensor.shape, dtype=tensor.dtype), tensor.requires_grad))
        for name, tensor in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(tensor.shape, dtype=tensor.dtype))


def as_on_cuda(module: nn.Module) -> None:
    """Makes a network of fake tensors on the CPU compute as one on a GPU does.

    Attention: the CPU's kernel keeps other things for backward than CUDA's flash attention, which takes bf16. Layer norm:
    CUDA's autocast computes it in float32. Both autocast lists agree on everything else that the network calls inside.
    """
    for part in module.modules():
        if isinstance(part, Attention):
            part.kernel = _flash_attention
        elif isinstance(part, nn.LayerNorm):
            part.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs) if _autocast() else None)


def _flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if _autocast():
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    if q.dtype == torch.float32:  # flash attention has no float32 kernel; the memory-efficient one keeps as much
        return F.scaled_dot_product_attention(q, k, v)
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu")


PARTS = {
    "encoder": "encoder",
    "info_sharing": "multi-view",
    "dense_head": "dense head",
    "pose_head": "pose head",
    "scale_head": "scale head",
}


@contextmanager
def labels(model: MapAnything, ledger: Ledger) -> Iterator[None]:
    """Tells the ledger which part of the network is computing; what is in none of them is geometry and loss."""
    handles = []
    for name, label in PARTS.items():
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: setattr(ledger, "part", label)))
        handles.append(module.register_forward_hook(lambda *_: setattr(ledger, "part", "loss")))
    yield
    for handle in handles:
        handle.remove()


@dataclass(frozen=True)
class StepMemory:
    """Memory of real steps on a GPU, bytes. tensors: the most that torch's tensors took at once. reserved: what its allocator
    held for them. others: what was taken on the card besides: CUDA's context, NCCL, libraries, other programs."""

    tensors: int
    reserved: int
    others: int


def measure_step(config: DictConfig, shape: Shape, strategy: str, steps: int = 3) -> StepMemory:
    """Runs the step that `trace_step` traces, with clipping and update, on this machine's first GPU, as a run of one process.

    `strategy` ddp or fsdp wraps the network as training does. The first step does not count: the optimizer's state is made
    at its end. Nor do DDP's first three: in the third it puts its buckets in order, and NCCL may hold those of before a while.

    Raises:
        InputError: no GPU, or too little memory on it.
    """
    if not torch.cuda.is_available():
        raise InputError("--measure: no GPU is visible here (`./invoke doctor` says why)")
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    gc.collect()  # a network of before may still hang in a circle of references, and would count
    torch.cuda.empty_cache()
    with ExitStack() as stack:
        process = Process(0, 0, 1, device)
        if strategy != "single":
            store = dist.HashStore()  # type: ignore[attr-defined]  # documented, but not among the names that it exports
            dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=device)
            stack.callback(dist.destroy_process_group)
            process.control = dist.group.WORLD
        try:
            with device:
                objective = random_objective(config)
            module = wrap(objective, Layout(1, 1, "cuda", strategy, timedelta(minutes=10)), process)
            optimizer = make_optimizer(objective.model, OptimConfig.of(config.train_params))
            trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
            views = make_batch(shape, device)
            uncounted = 3 if strategy == "ddp" else 1
            for step in range(uncounted + steps - 1):
                if step == uncounted:
                    torch.cuda.reset_peak_memory_stats(device)
                run_step(module, views)
                clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        except torch.OutOfMemoryError as error:
            raise InputError(f"--measure: {shape} does not fit on this GPU ({str(error).split('.')[0]})") from error
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.max_memory_reserved(device)
        others = total - free - torch.cuda.memory_reserved(device)
        return StepMemory(torch.cuda.max_memory_allocated(device), reserved, others)


def _bytes(tensors: Iterable[Tensor], trained: bool = False) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.requires_grad or not trained)
