"""Parts of the encoder and the multi-view transformer: pre-norm transformer blocks with fused attention.

Attention is `scaled_dot_product_attention`, which never builds the matrix of scores; no norm of queries and keys, no
dropout, no position term. Attribute names are those of DINOv2's checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

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

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        # Taken apart along this axis, the gradients of the three come together in the order that `qkv` has them: no copy.
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, c // self.num_heads).unbind(2)
        x = self.kernel(*(y.transpose(1, 2) for y in (q, k, v)))  # (B, heads, N, C / heads)
        return scaled(x.transpose(1, 2).reshape(b, n, c), self.proj, scale)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    @property
    def last(self) -> nn.Linear:
        return self.fc2

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return activated(self.fc1(x), self.fc2, scale, gated=False)


class SwiGLU(nn.Module):
    """silu(a) · b of one linear layer's two halves, then a linear layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    @property
    def last(self) -> nn.Linear:
        return self.w3

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return activated(self.w12(x), self.w3, scale, gated=True)


FFN = {"mlp": Mlp, "swiglu": SwiGLU}


class LayerScale(nn.Module):
    """A learned factor per channel, which `times` applies."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))


def times(linear: nn.Linear, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights and bias of `scale` · linear(x): they are fewer than the numbers of the tokens, and nothing more is kept."""
    if scale is None:
        return linear.weight, linear.bias
    return linear.weight * scale[:, None], linear.bias * scale


def scaled(x: Tensor, linear: nn.Linear, scale: Tensor | None) -> Tensor:
    """`scale` · linear(x). In fp16, where a product of small weights may be 0, the factor comes last."""
    if x.dtype == torch.float16 and scale is not None:
        return linear(x) * scale
    return F.linear(x, *times(linear, scale))


def activated(hidden: Tensor, linear: nn.Linear, scale: Tensor | None, gated: bool) -> Tensor:
    """`scaled` of gelu(hidden) or, `gated`, of silu(a) · b of its two halves; what they give is not kept for backward."""
    if not torch.is_grad_enabled() or (hidden.dtype == torch.float16 and scale is not None):
        return scaled(_gate(hidden) if gated else F.gelu(hidden), linear, scale)
    weight, bias = times(linear, scale)
    return Activated.apply(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype), gated)


def _gate(hidden: Tensor) -> Tensor:
    a, b = hidden.chunk(2, dim=-1)
    return F.silu(a) * b


class Activated(torch.autograd.Function):
    """An activation and the linear layer behind it. Backward computes the activation again: a fifth of a block's memory."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, gated: bool) -> Tensor:
        ctx.gated = gated
        ctx.save_for_backward(hidden, weight)
        return F.linear(_gate(hidden) if gated else F.gelu(hidden), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        (hidden, weight), (grad,) = ctx.saved_tensors, grads
        _, learns, biased, _ = ctx.needs_input_grad
        grad_x = grad @ weight
        if ctx.gated:
            a, b = hidden.chunk(2, dim=-1)
            gate = F.silu(a)
            x, grad_hidden = gate * b, torch.empty_like(hidden)
            grad_a, grad_b = grad_hidden.chunk(2, dim=-1)  # written in place, side by side
            torch.mul(grad_x, gate, out=grad_b)
            torch.ops.aten.silu_backward.grad_input(grad_x * b, a, grad_input=grad_a)
        else:
            x, grad_hidden = F.gelu(hidden), torch.ops.aten.gelu_backward(grad_x, hidden)
        rows = grad.flatten(0, -2)
        return grad_hidden, rows.T @ x.flatten(0, -2) if learns else None, rows.sum(0) if biased else None, None


class Block(nn.Module):
    """x + γ₁·attention(norm(x)), then x + γ₂·ffn(norm(x)); (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, num_heads: int, ffn: str, ffn_dim: int, layer_scale: float | None) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.ls1 = None if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = LayerNorm(dim)
        self.mlp = FFN[ffn](dim, ffn_dim)
        self.ls2 = None if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), None if self.ls1 is None else self.ls1.gamma)
        return x + self.mlp(self.norm2(x), None if self.ls2 is None else self.ls2.gamma)

    @torch.no_grad()
    def fold_scales(self) -> None:
        """Multiplies both factors into the weights before them, for good."""
        for scale, linear in ((self.ls1, self.attn.proj), (self.ls2, self.mlp.last)):
            if scale is not None:
                linear.weight.mul_(scale.gamma[:, None])
                linear.bias.mul_(scale.gamma)
        self.ls1 = self.ls2 = None


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
def fast_kernels(device: torch.device, exact: bool = False) -> Iterator[None]:
    """Speeds a GPU's inference up: TF32 for the parts in float32, and on Hopper cuDNN's attention first. Undone on leaving.

    With `exact`, float32 is float32: by torch's default, convolutions would be TF32.
    """
    if device.type != "cuda":
        yield
        return
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
        with sdpa_kernel(order, set_priority=True) if hopper else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def keep_bf16(*parts: nn.Module) -> None:
    """Turns the weights that bf16 autocast converts in every pass into bf16 for good: the same results, half their memory.

    For inference: what is rounded away is lost.
    """
    for part in parts:
        for module in part.modules():
            if isinstance(module, Block):
                module.fold_scales()
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(torch.bfloat16)


def compile_blocks(model: nn.Module) -> int:
    """Compiles every transformer block of a network in place, for any number of views and patches; how many there are.

    Blocks of one kind share their code, so compiling takes seconds, not minutes. The first call of each kind pays for it.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.compile(dynamic=True)
    return len(blocks)
