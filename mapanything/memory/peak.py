"""The most memory that a training step takes at once, part by part, and what a card needs beyond it.

On top of what comes and goes within a step (step.py) stand what is there throughout (weights, gradients, the optimizer's
state, divided as the strategy divides them) and what no trace can see (`Overhead`). All sizes are bytes; what is printed is
GiB (2**30), as nvidia-smi, torch and "24 GB" on a card's box count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mapanything.errors import InputError
from mapanything.memory.ledger import Snapshot
from mapanything.models.config import PATCH

GIB = 2**30
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
    """The memory that a card needs beyond torch's tensors. Assumed, not computed; `step.measure_step` shows a card's own."""

    driver_fraction: float = 0.013  # an RTX 3090 of 24 GiB offers 23.69 GiB
    context_gib: float = 0.5  # CUDA's context with the kernels that are loaded
    nccl_gib: float = 0.3  # buffers for talking to the other GPUs
    libraries_gib: float = 0.4  # workspaces of cuBLAS and cuDNN
    fragmentation: float = 0.05  # of all that comes and goes: free memory between blocks that is too small to use

    def __str__(self) -> str:
        return (
            f"Overhead: {self.driver_fraction:.1%} of the card for its driver, {self.context_gib:g} for CUDA, "
            f"{self.nccl_gib:g} for NCCL, {self.libraries_gib:g} for cuBLAS and cuDNN, {self.fragmentation:.0%} of what comes "
            "and goes for fragmentation."
        )

    def bytes(self, peak: Peak, gpu_gib: float) -> int:
        """Bytes of it for a step with this peak, on a card that is sold with `gpu_gib`."""
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

    @staticmethod
    def group_of(part: str) -> str:
        """The one of `weights`, `gradients`, `optimizer`, `activations`, `temporary` that a part belongs to."""
        if part in ("weights", "gradients", "optimizer"):
            return part
        return "activations" if part.startswith("activations:") or part == "batch" else "temporary"

    @property
    def grouped(self) -> dict[str, int]:
        """Bytes of each group, and of the first three as `static`."""
        groups: dict[str, int] = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "temporary"), 0)
        for name, size in self.parts.items():
            groups[self.group_of(name)] += size
        return groups | {"static": groups["weights"] + groups["gradients"] + groups["optimizer"]}


@dataclass(frozen=True)
class Trace:
    """The findings of a traced step. Bytes throughout.

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
        """The peak of the same step as part of a run of `world_size` processes."""
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
        """Bytes that FSDP2 has whole at its busiest.

        Weights: what is in no block, from forward's start to backward's end; of the blocks the one that computes, the buffer
        that it came in, and the one that is fetched meanwhile. Gradients, whole until they are divided: those outside the
        blocks, and of a block those just made and the copy that is on its way.
        """
        return self.rest + 3 * self.block + self.rest_trained + 2 * self.block_trained
