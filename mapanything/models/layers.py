"""Parts of the encoder and the multi-view transformer: pre-norm transformer blocks with fused attention.

Attention is `scaled_dot_product_attention`, which never builds the matrix of scores; no norm of queries and keys, no
dropout, no position term. Attribute names are those of DINOv2's checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

LayerNorm = functools.partial(nn.LayerNorm, eps=1e-6)  # everywhere in the network


class Attention(nn.Module):
    """Self-attention over (B, N, C).

    Attributes:
        kernel: what computes it from queries, keys and values (B, heads, N, C / heads). Memory planning, which may have no
            GPU, puts a GPU's in its place.
    """

    kernel: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = self.kernel(q, k, v)  # (B, heads, N, C / heads)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """silu(a) · b of one linear layer's two halves, then a linear layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


FFN = {"mlp": Mlp, "swiglu": SwiGLU}


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x + γ₁·attention(norm(x)), then x + γ₂·ffn(norm(x)); (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, num_heads: int, ffn: str, ffn_dim: int, layer_scale: float | None) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = LayerNorm(dim)
        self.mlp = FFN[ffn](dim, ffn_dim)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


def run(module: Callable[..., Tensor], *args: Tensor, checkpointing: bool) -> Tensor:
    """`module(*args)`; with `checkpointing`, what it computes inside is not kept for the backward pass but computed again."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=False)  # nothing in it is random
    return module(*args)


@contextmanager
def fp32(device: torch.device) -> Iterator[None]:
    """Autocast off: the fusion of the inputs and the heads compute in float32."""
    available = torch.amp.is_autocast_available(device.type)  # not so for the meta device
    with torch.autocast(device.type, enabled=False) if available else nullcontext():
        yield


@contextmanager
def fast_kernels(device: torch.device) -> Iterator[None]:
    """Speeds a GPU's inference up: TF32 for the parts in float32, and on Hopper cuDNN's attention first. Undone on leaving."""
    if device.type != "cuda":
        yield
        return
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        with sdpa_kernel(order, set_priority=True) if hopper else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def compile_blocks(model: nn.Module) -> int:
    """Compiles every transformer block of a network in place, for any number of views and patches; how many there are.

    Blocks of one kind share their code, so compiling takes seconds, not minutes. The first call of each kind pays for it.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.compile(dynamic=True)
    return len(blocks)
