"""How much GPU memory a training step takes, before any GPU is asked: the step runs on tensors that have a shape but no bytes.

The module that training wraps (`Objective`: network, autocast, loss) does forward and backward on fake tensors, and a ledger
notes when every storage is made and let go. So the largest sum is that of the code as it is, layer by layer, and not of a
formula: nothing is fitted or interpolated. On top come what is there throughout (weights, gradients, the optimizer's state,
divided as the strategy divides them), what CUDA's attention kernel takes for itself, and what no trace can see
(`Overhead`). `measure` runs the same step on a GPU.

torch's own tracker (torch.distributed._tools.mem_tracker) says the same within 0.5 % (tests/train/test_memory.py), but takes
some thirty times as long (torch 2.13: 38 s for a step of v1.1 with 10 views, against 1.3 s), and sees one strategy at a time.
Fake tensors stand on the CPU, since a CPU build of torch has no CUDA to pretend; `cuda_kernels` puts right where that matters.

All sizes are bytes; what is printed is GiB (2**30), as nvidia-smi, torch and "24 GB" on a card's box count.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

from mapanything.errors import InputError
from mapanything.models.config import PATCH
from mapanything.models.layers import Block
from mapanything.models.mapanything import MapAnything
from mapanything.train.build import build
from mapanything.train.distributed import Plan, Process, wrap
from mapanything.train.objective import Objective
from mapanything.train.optim import OptimConfig, freeze, make_optimizer

GIB = 2**30
ALLOCATION = 512  # CUDA's caching allocator rounds every tensor up to a multiple of this
STRATEGIES = ("single", "ddp", "fsdp")  # single: one process, nothing around the network


@dataclass(frozen=True, order=True)
class Shape:
    """A batch: `batch` scenes of `views` images of width × height pixels."""

    views: int
    batch: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if min(self.views, self.batch) < 1:
            raise InputError(f"{self.batch} × {self.views} views: give 1 or more of each")
        if min(self.width, self.height) < PATCH or self.width % PATCH or self.height % PATCH:
            raise InputError(f"resolution {self.width} {self.height}: give width and height, both multiples of {PATCH}")

    @property
    def images(self) -> int:
        return self.views * self.batch

    def __str__(self) -> str:
        return f"{self.batch} × {self.views} views, {self.width}×{self.height}"


@dataclass(frozen=True)
class Overhead:
    """What a card needs beyond torch's tensors. Assumed from experience, not computed; `measure` shows a card's own."""

    driver_fraction: float = 0.013  # an RTX 3090 of 24 GiB offers 23.69 GiB
    context_gib: float = 0.5  # CUDA's context with the kernels that are loaded
    nccl_gib: float = 0.3  # buffers for talking to the other GPUs
    libraries_gib: float = 0.4  # workspaces of cuBLAS and cuDNN
    fragmentation: float = 0.05  # of all that comes and goes: free memory between blocks that is too small to use

    def bytes(self, peak: Peak, gpu_gib: float) -> int:
        """For a step with this peak, on a card that is sold with `gpu_gib`."""
        fixed = self.driver_fraction * gpu_gib + self.context_gib + self.libraries_gib
        fixed += self.nccl_gib if peak.strategy != "single" else 0.0
        return round(fixed * GIB + self.fragmentation * peak.moving)


@dataclass(frozen=True)
class Peak:
    """The moment of a step at which most memory is taken, and by what.

    parts: bytes of `weights`, `gradients`, `optimizer`, `batch`, `fsdp` (gathered weights, gradients on their way),
        `activations:PART` (what forward keeps), `bf16 weights` (autocast's copies), `backward` (gradients of activations and
        what checkpointing computes again), `kernel` (inside the operator that runs at that moment).
    during: forward or backward.
    """

    strategy: str
    parts: Mapping[str, int]
    during: str

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def moving(self) -> int:
        """Bytes that come and go within a step."""
        return self.total - self.grouped["static"]

    @property
    def grouped(self) -> dict[str, int]:
        """Bytes of `weights`, `gradients`, `optimizer`, `activations`, `temporary`, and of the first three as `static`."""
        groups = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "temporary"), 0)
        for name, size in self.parts.items():
            kept = "activations" if name.startswith("activations:") or name == "batch" else "temporary"
            groups[name if name in groups else kept] += size
        return groups | {"static": groups["weights"] + groups["gradients"] + groups["optimizer"]}

    def fits(self, gpu_gib: float, overhead: Overhead) -> bool:
        return self.total + overhead.bytes(self, gpu_gib) <= gpu_gib * GIB


@dataclass(frozen=True)
class Trace:
    """What a traced step found. Bytes throughout.

    weights, trained: of all parameters and buffers, and of those that learn. block, block_trained: of the largest transformer
    block, which FSDP gathers at a time. rest, rest_trained: of what is in no block.
    alone: what comes and goes at its most, with gradients that backward makes and the update lets go. shared: the same without
    gradients, which DDP and FSDP hold elsewhere.
    """

    shape: Shape
    weights: int
    trained: int
    block: int
    block_trained: int
    rest: int
    rest_trained: int
    alone: Snapshot
    shared: Snapshot

    def peak(self, strategy: str, world_size: int = 1) -> Peak:
        """The same step as part of a run of `world_size` processes."""
        if strategy not in STRATEGIES or world_size < 1:
            raise InputError(
                f"strategy {strategy}, world size {world_size}: give one of {', '.join(STRATEGIES)}, and 1 or more"
            )
        moving = self.alone if strategy == "single" else self.shared
        # AdamW's two moments. DDP's buckets hold the gradients from the first step on: they are there in forward, too.
        static = {"weights": self.weights, "gradients": self.trained, "optimizer": 2 * self.trained}
        if strategy == "single":
            del static["gradients"]  # they are in `alone`
        if strategy == "fsdp":
            static = {name: -(-size // world_size) for name, size in static.items()} | {"fsdp": self._gathered()}
        return Peak(strategy, static | moving.parts, moving.during)

    def _gathered(self) -> int:
        """What FSDP2 has whole at its busiest.

        Weights: what is in no block, from forward's start to backward's end; of the blocks the one that computes, the buffer
        that it came in, and the one that is fetched meanwhile. Gradients, whole until they are divided: those outside the
        blocks, and of a block those just made and the copy that is on its way.
        """
        return self.rest + 3 * self.block + self.rest_trained + 2 * self.block_trained


@dataclass
class Snapshot:
    """Bytes by part at a peak."""

    total: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    during: str = ""


class Ledger(TorchDispatchMode):
    """Notes every storage that is made while it is on, and when it is let go.

    Attributes:
        part: whose activations forward is making.
        phase: forward or backward.
        alone, shared: the largest sums, with and without gradients of parameters.
    """

    def __init__(self, parameters: Sequence[Tensor], batch: Sequence[Tensor]) -> None:
        super().__init__()
        self.part, self.phase = "loss", "forward"
        self.alone, self.shared = Snapshot(), Snapshot()
        self._live: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._parts: dict[str, int] = {}
        self._total = 0
        self._weights = {tensor.untyped_storage()._cdata for tensor in parameters}
        for tensor in batch:
            self._note(tensor, "batch")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].fake_device  # asked more often than all else together
        out = func(*args, **(kwargs or {}))
        made = self._part_of(func, args)
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._note(tensor, made)
        self._compare(hidden_bytes(func, args))
        return out

    def gradient(self, parameter: Tensor) -> None:
        """Backward has added up a parameter's gradient."""
        assert parameter.grad is not None
        self._move(parameter.grad, "gradients")

    def _part_of(self, func: Any, args: tuple[Any, ...]) -> str:
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._weights:
            return "bf16 weights"
        return f"activations:{self.part}" if self.phase == "forward" else "backward"

    def _note(self, tensor: Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or key in self._weights:
            return
        size = -(-storage.nbytes() // ALLOCATION) * ALLOCATION
        self._live[key] = (weakref.ref(storage, partial(self._forget, key)), part, size)
        self._add(part, size)

    def _forget(self, key: int, _: Any) -> None:
        _, part, size = self._live.pop(key)
        self._add(part, -size)

    def _move(self, tensor: Tensor, part: str) -> None:
        key = tensor.untyped_storage()._cdata
        if key in self._live:
            reference, before, size = self._live[key]
            self._live[key] = (reference, part, size)
            self._add(before, -size)
            self._add(part, size)

    def _add(self, part: str, size: int) -> None:
        self._parts[part] = self._parts.get(part, 0) + size
        self._total += size

    def _compare(self, hidden: int) -> None:
        if self._total + hidden > self.alone.total:
            self.alone = self._snapshot(hidden, self._parts)
        gradients = self._parts.get("gradients", 0)
        if self._total - gradients + hidden > self.shared.total:
            self.shared = self._snapshot(hidden, {name: n for name, n in self._parts.items() if name != "gradients"})

    def _snapshot(self, hidden: int, parts: Mapping[str, int]) -> Snapshot:
        parts = {name: size for name, size in (parts | {"kernel": hidden}).items() if size}
        return Snapshot(sum(parts.values()), parts, self.phase)


def hidden_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """What a CUDA kernel allocates inside and no tensor shows.

    Flash attention's backward pass adds the queries' gradient up in float32, with a float32 per row beside it, rows in 128s.
    """
    if func is not torch.ops.aten._scaled_dot_product_flash_attention_backward.default:
        return 0
    b, heads, n, dim = args[1].shape
    return 4 * b * heads * (-(-n // 128) * 128) * (-(-dim // 32) * 32 + 1)


# The step


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


def make_objective(config: DictConfig, amp: bool | None = None) -> Objective:
    """What training wraps, from a composed configs/train.yaml: random weights, what does not learn frozen.

    Args:
        amp: bf16 autocast; None: as on a GPU with this config.
    """
    params = config.train_params
    model = build(config.model, "model", pretrained=None, dinov2=None)
    losses = [build(config.loss[part], f"loss.{part}") for part in ("train", "validate")]
    freeze(model, optim_config(config), model.config.geometric_inputs)
    return Objective(model, losses[0], losses[1], params.amp != "fp32" if amp is None else amp).train()


def optim_config(config: DictConfig) -> OptimConfig:
    names = OptimConfig.__dataclass_fields__
    return OptimConfig(**{name: value for name, value in config.train_params.items() if name in names})


def trace(config: DictConfig, shape: Shape, *, cuda: bool = True, amp: bool | None = None) -> Trace:
    """Traces forward and backward of one batch.

    Args:
        config: configs/train.yaml, composed: network, loss, what learns, precision. Where the weights come from and where
            the data lies does not matter.
        cuda: as CUDA's kernels do it. False: as the CPU's do, to be compared with a real step on a CPU.
        amp: see `make_objective`.

    Raises:
        InputError: as training would.
    """
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        # Looks at its numbers, and there are none.
        with patch("torch.nn.init.trunc_normal_", lambda tensor, *_, **__: tensor):
            objective = make_objective(config, amp)
        stack.enter_context(cuda_kernels() if cuda else nullcontext())
        views = make_batch(shape, "cpu")
        parameters = list(objective.parameters())
        everything = [*parameters, *objective.buffers()]
        ledger = Ledger(everything, [x for view in views for x in view.values() if isinstance(x, Tensor)])
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(ledger.gradient)
        with ledger, labels(objective.model, ledger):
            run_step(objective, views, lambda: setattr(ledger, "phase", "backward"))
        blocks = [block for block in objective.modules() if isinstance(block, Block)]
        sizes = [(_bytes(block.parameters()), _bytes(block.parameters(), trained=True)) for block in blocks]
        weights, trained = _bytes(everything), _bytes(parameters, trained=True)
        return Trace(
            shape,
            weights,
            trained,
            max(size for size, _ in sizes),
            max(size for _, size in sizes),
            weights - sum(size for size, _ in sizes),
            trained - sum(size for _, size in sizes),
            ledger.alone,
            ledger.shared,
        )


def run_step(objective: nn.Module, views: list[dict[str, Any]], between: Callable[[], None] = lambda: None) -> None:
    """Forward and backward as train/loop.py does them; its names live as long as there."""
    loss, _terms, _outputs = objective(views)
    between()
    loss.backward()


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Fake tensors on the CPU go the way of tensors on a GPU.

    Attention: the CPU's kernel keeps other things for backward than CUDA's flash attention, which takes bf16. Layer norm:
    CUDA's autocast computes it in float32. Both autocast lists agree on everything else that the network calls inside.
    Vehicle roles on a GPU are not checked, as reading them would mean waiting for it.
    """
    attention, layer_norm = F.scaled_dot_product_attention, F.layer_norm

    def flash(q: Tensor, k: Tensor, v: Tensor, *args: Any, **options: Any) -> Tensor:
        if args or options:
            raise NotImplementedError("plan-memory knows attention without mask, dropout and scale only")
        if torch.is_autocast_enabled("cpu"):
            q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
        if q.dtype == torch.float32:  # flash attention has no float32 kernel; the memory-efficient one keeps as much
            return attention(q, k, v)
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]

    def norm(x: Tensor, *args: Any, **options: Any) -> Tensor:
        return layer_norm(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **options)

    def roles(views: Sequence[Mapping[str, Any]], *_: Any) -> Tensor:
        return torch.stack([view["agent_id"] for view in views], 1)

    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", flash))
        stack.enter_context(patch.object(F, "layer_norm", norm))
        stack.enter_context(patch("mapanything.models.mapanything.gather_roles", roles))
        yield


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
class Measured:
    """Of real steps on a GPU, bytes. tensors: the most that torch's tensors took at once. reserved: what its allocator held
    for them. others: what was taken on the card besides: CUDA's context, NCCL, libraries, other programs."""

    tensors: int
    reserved: int
    others: int


def measure(config: DictConfig, shape: Shape, strategy: str, steps: int = 3) -> Measured:
    """Runs the step that `trace` traces, with clipping and update, on this machine's first GPU, as a run of one process.

    `strategy` ddp or fsdp wraps the network as training does. The first step does not count: the optimizer's state is made
    at its end.

    Raises:
        InputError: no GPU, or too little memory on it.
    """
    if not torch.cuda.is_available():
        raise InputError("--measure: no GPU is visible here (`./invoke doctor` says why)")
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    with ExitStack() as stack:
        process = Process(0, 0, 1, device)
        if strategy != "single":
            dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
            stack.callback(dist.destroy_process_group)
            process.control = dist.group.WORLD
        try:
            with device:
                objective = make_objective(config)
            module = wrap(objective, Plan(1, 1, "cuda", strategy, timedelta(minutes=10)), process)
            optimizer = make_optimizer(objective.model, optim_config(config))
            trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
            views = make_batch(shape, device)
            for step in range(steps):
                if step == 1:
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
        return Measured(torch.cuda.max_memory_allocated(device), reserved, others)


def _bytes(tensors: Any, trained: bool = False) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.requires_grad or not trained)
