"""Parameters, quaternions and poses, building blocks of the reference network.

reference.py says how it is written; § are sections of docs/network.md.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 14
Views = list[dict[str, Any]]
Weights = dict[str, Tensor]


def weights(keys: dict[str, Sequence[int]], view_pos_table: Tensor) -> Weights:
    """Every parameter drawn from its own name (§11). keys: name -> shape; view_pos_table (1, C)."""
    values = {}
    for key, shape in keys.items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        r = torch.from_numpy(rng.standard_normal(size=tuple(shape), dtype=np.float32))
        if key.endswith("gamma"):
            value = 0.5 + 0.2 * r
        elif key.endswith("weight") and "norm" in key:
            value = 1 + 0.2 * r
        elif key.endswith("bias"):
            value = 0.1 * r
        elif key.endswith(("cls_token", "scale_token")):
            value = 0.5 * r
        elif key.endswith("pos_embed"):
            value = 0.3 * r
        else:
            value = r * 1.2 / math.sqrt(math.prod(shape) / shape[0])
            if key == "dpt_regressor_head.conv2.2.weight":
                value = value * 0.1
        values[key] = value
    values["info_sharing.view_pos_table"] = view_pos_table
    return values


# ---------------------------------------------------------------------------------------------- quaternions and poses (§9)


def quat_product(p: Tensor, q: Tensor) -> Tensor:
    """Hamilton product (4,) of p (4,) and q (4,)."""
    px, py, pz, pw = p
    qx, qy, qz, qw = q
    return torch.stack(
        [
            pw * qx + px * qw + py * qz - pz * qy,
            pw * qy - px * qz + py * qw + pz * qx,
            pw * qz + px * qy - py * qx + pz * qw,
            pw * qw - px * qx - py * qy - pz * qz,
        ]
    )


def quat_inverse(q: Tensor) -> Tensor:
    """Conjugate over squared norm, (4,)."""
    x, y, z, w = q
    return torch.stack([-x, -y, -z, w]) / (q * q).sum()


def matrix_from_quat(q: Tensor) -> Tensor:
    """Rotation (3, 3) of q (4,), which is normalised first."""
    x, y, z, w = q / q.norm()
    return torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]),
            torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]),
            torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]),
        ]
    )


def quat_from_matrix(m: Tensor) -> Tensor:
    """Quaternion (4,) with w ≥ 0 of a rotation (3, 3), from the largest of its four components."""
    squares = torch.stack(  # 4x², 4y², 4z², 4w²
        [
            1 + m[0, 0] - m[1, 1] - m[2, 2],
            1 - m[0, 0] + m[1, 1] - m[2, 2],
            1 - m[0, 0] - m[1, 1] + m[2, 2],
            1 + m[0, 0] + m[1, 1] + m[2, 2],
        ]
    )
    xy, xz, yz = m[1, 0] + m[0, 1], m[2, 0] + m[0, 2], m[2, 1] + m[1, 2]  # 4xy, ...
    xw, yw, zw = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]  # 4xw, ...
    largest = int(squares.argmax())
    products = [
        [squares[0], xy, xz, xw],
        [xy, squares[1], yz, yw],
        [xz, yz, squares[2], zw],
        [xw, yw, zw, squares[3]],
    ][largest]  # 4 · largest · (x, y, z, w)
    q = torch.stack(products) / (2 * squares[largest].sqrt())
    return -q if q[3] < 0 else q


# --------------------------------------------------------------------------------------------------------- building blocks


def linear(p: Weights, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def layer_norm(p: Weights, name: str, x: Tensor) -> Tensor:
    """Over the last axis."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def conv(p: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """(c, h, w) -> (c', h', w'); padded so that stride 1 keeps the size."""
    weight = p[f"{name}.weight"]
    return F.conv2d(x[None], weight, p.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)[0]


def rows(x: Tensor) -> Tensor:
    """(c, h, w) -> (h·w, c), row-major."""
    return x.flatten(1).T


def attention(p: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Softmax attention among the tokens x (n, c)."""
    q, k, v = linear(p, f"{name}.qkv", x).chunk(3, dim=-1)
    out = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1)):  # (n, d) each
        out.append(torch.softmax(qh @ kh.T / math.sqrt(qh.shape[-1]), dim=-1) @ vh)
    return linear(p, f"{name}.proj", torch.cat(out, dim=-1))


def feed_forward(p: Weights, name: str, x: Tensor) -> Tensor:
    if f"{name}.w12.weight" in p:
        a, b = linear(p, f"{name}.w12", x).chunk(2, dim=-1)
        return linear(p, f"{name}.w3", a * torch.sigmoid(a) * b)
    return linear(p, f"{name}.fc2", gelu(linear(p, f"{name}.fc1", x)))


def block(p: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Pre-norm transformer block on x (n, c), with layer scale where there are gammas."""
    x = x + p.get(f"{name}.ls1.gamma", 1) * attention(p, f"{name}.attn", layer_norm(p, f"{name}.norm1", x), heads)
    return x + p.get(f"{name}.ls2.gamma", 1) * feed_forward(p, f"{name}.mlp", layer_norm(p, f"{name}.norm2", x))


def count(p: Weights, prefix: str) -> int:
    """The number of prefix.0., prefix.1., ... that there are."""
    return len({key[len(prefix) + 1 :].split(".")[0] for key in p if key.startswith(prefix + ".")})
