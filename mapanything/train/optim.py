"""The optimizer: which weights learn, at which rate, and how the rate moves.

A weight that the config leaves without work (encoders of inputs that are never offered) or that is frozen has requires_grad
False: it gets no gradient buffer and no optimizer state, and no rank waits for a gradient that never comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import AdamW

from mapanything.errors import InputError
from mapanything.models.config import GeometricInputsConfig


@dataclass(frozen=True)
class OptimConfig:
    """Entries of configs/train_params; see default.yaml."""

    lr: float
    epochs: int
    min_lr_fraction: float = 1e-3
    warmup_fraction: float = 0.1
    submodule_lr: Mapping[str, float] = field(default_factory=dict)
    train_only: Sequence[str] | None = None
    weight_decay: float = 0.05
    betas: Sequence[float] = (0.9, 0.95)

    @classmethod
    def of(cls, train_params: Mapping[str, Any]) -> Self:
        """Reads its own among all entries of configs/train_params."""
        return cls(**{f.name: train_params[f.name] for f in fields(cls) if f.name in train_params})

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.epochs < 1 or not 0 <= self.warmup_fraction < 1 or not 0 <= self.min_lr_fraction <= 1:
            raise InputError(
                f"train_params: lr={self.lr}, epochs={self.epochs}, warmup_fraction={self.warmup_fraction}, min_lr_fraction="
                f"{self.min_lr_fraction}: need lr > 0, epochs >= 1 and fractions from 0 to 1 (warm-up below 1)"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas) or self.weight_decay < 0:
            given = f"betas={list(self.betas)}, weight_decay={self.weight_decay}"
            raise InputError(f"train_params: {given}: give two numbers in [0, 1), and one of 0 or more")

    def factor(self, epoch: float) -> float:
        """The factor of all rates at a fractional epoch: a linear warm-up, then half a cosine."""
        warmup = self.warmup_fraction * self.epochs
        if epoch < warmup:
            return epoch / warmup
        progress = min(1.0, (epoch - warmup) / (self.epochs - warmup))
        return self.min_lr_fraction + (1 - self.min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    def rate(self, name: str) -> float:
        """The highest rate of a parameter; 0: it is frozen."""
        if self.train_only is not None and not name.startswith(tuple(self.train_only)):
            return 0.0
        return float(next((lr for prefix, lr in self.submodule_lr.items() if name.startswith(prefix)), self.lr))


def unused_parts(inputs: GeometricInputsConfig) -> tuple[str, ...]:
    """Beginnings of the names of parameters that get no gradient, because the network never gets to see their input."""
    off = inputs.overall_prob <= 0 or inputs.dropout_prob >= 1
    parts = {
        ("ray_dirs_encoder.",): inputs.ray_dirs_prob,
        ("depth_encoder.", "depth_scale_encoder."): inputs.depth_prob,
        ("cam_rot_encoder.", "cam_trans_encoder.", "cam_trans_scale_encoder."): inputs.cam_prob,
    }
    return tuple(name for names, probability in parts.items() if off or probability <= 0 for name in names)


def freeze(model: nn.Module, config: OptimConfig, inputs: GeometricInputsConfig) -> dict[str, int]:
    """Sets requires_grad of every parameter; call it before the model is wrapped.

    Returns:
        Numbers of parameters: `trained`, `frozen` by the config, `unused`.

    Raises:
        InputError: a prefix that no parameter has, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in [*config.submodule_lr, *(config.train_only or ())]:
        if not any(name.startswith(prefix) for name in names):
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            hint = " (vehicle_id is there with model.vehicle_id.num_roles=N)" if prefix.startswith("vehicle_id") else ""
            raise InputError(f"train_params: no parameter's name starts with '{prefix}'{hint}; there are {parts}")
    unused = unused_parts(inputs)
    count = {"trained": 0, "frozen": 0, "unused": 0}
    for name, parameter in model.named_parameters():
        kind = "unused" if unused and name.startswith(unused) else "trained" if config.rate(name) > 0 else "frozen"
        parameter.requires_grad_(kind == "trained")
        count[kind] += parameter.numel()
    if not count["trained"]:
        raise InputError("train_params: nothing is left to train; check train_only and submodule_lr")
    return count


def make_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over what `freeze` left to learn. Vectors and biases are not decayed.

    Each group has `name` and `base_lr`, its highest rate; `set_rates` sets `lr`.
    """
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(".bias")
            groups.setdefault((config.rate(name), decayed), []).append(parameter)
    return AdamW(
        [
            {"params": parameters, "weight_decay": config.weight_decay if decayed else 0.0, "lr": rate, "base_lr": rate}
            for (rate, decayed), parameters in groups.items()
        ],
        betas=(float(config.betas[0]), float(config.betas[1])),
        fused=True,
    )


def set_rates(optimizer: AdamW, config: OptimConfig, epoch: float) -> float:
    """Sets the groups' rates for a fractional epoch; returns the highest."""
    factor = config.factor(epoch)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
