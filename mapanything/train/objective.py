"""The network and its losses as one module: batch in, loss out. What DDP and FSDP wrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mapanything.datasets.views import View
from mapanything.errors import InputError
from mapanything.models.layers import compile_blocks
from mapanything.models.mapanything import MapAnything
from mapanything.models.outputs import Outputs
from mapanything.train.build import build
from mapanything.train.losses import Loss, LossOutput
from mapanything.train.optim import OptimConfig, freeze


class Objective(nn.Module):
    """The network and the losses of training and validation.

    Args:
        amp: compute encoder and transformer in bf16; heads and loss stay in float32.
        teacher: frozen, on the device; for losses that need one. No part of this module: neither wrapped nor saved.
    """

    def __init__(self, model: MapAnything, train: Loss, validate: Loss, amp: bool, teacher: MapAnything | None = None) -> None:
        super().__init__()
        self.model = model
        self.criteria = nn.ModuleDict({"for_train": train, "for_validate": validate})
        self.amp = amp
        self._teacher = (teacher,)

    def forward(self, views: Sequence[View], criterion: str = "train") -> tuple[Tensor, dict[str, Tensor], Outputs]:
        """Loss of a batch of V views (see `per_view`), its detached terms in the same unit, and what was predicted."""
        loss_of = cast(Loss, self.criteria[f"for_{criterion}"])
        (teacher,), target = self._teacher, None
        # No cache of bf16 weights: each is used once a pass, and the cache would hold copies of all of them until its end.
        with torch.autocast(views[0]["img"].device.type, torch.bfloat16, enabled=self.amp, cache_enabled=False):
            outputs = self.model.stacked(views)
            if teacher is not None and loss_of.needs_teacher:
                with torch.no_grad():
                    target = as_prediction(teacher.stacked(views))
        loss: LossOutput = loss_of(views, as_prediction(outputs), target)
        factor = per_view(len(views))
        terms = {name: value if name.endswith("_usable") else value * factor for name, value in loss.terms.items()}
        return loss.total * factor, terms, outputs


def build_objective(
    config: DictConfig,
    optim: OptimConfig,
    amp: bool,
    *,
    compiled: bool = False,
    teacher_on: torch.device | None = None,
    **weights: str | None,
) -> tuple[Objective, dict[str, int]]:
    """Builds what training wraps, from a composed configs/train.yaml; what does not learn is frozen.

    Args:
        teacher_on: where the teacher goes, if the loss needs one; None: it is left out, for planning.
        weights: `pretrained` and `dinov2` that count instead of the config's.

    Returns:
        Also the numbers of parameters, see `freeze`.

    Raises:
        InputError: a wrong entry, weights that cannot be loaded, no teacher where one is needed.
    """
    model: MapAnything = build(config.model, "model", **weights)
    train, validate = (build(config.loss[part], f"loss.{part}") for part in ("train", "validate"))
    counts = freeze(model, optim, model.config.geometric_inputs)
    if compiled:
        compile_blocks(model)
    needed = teacher_on is not None and (train.needs_teacher or validate.needs_teacher)
    teacher = _load_teacher(config).to(teacher_on) if needed else None
    return Objective(model, train, validate, amp, teacher), counts


def _load_teacher(config: DictConfig) -> MapAnything:
    path = config.teacher or config.model.pretrained
    if path is None:
        raise InputError("the loss distils from a teacher, and there is none: give teacher=CHECKPOINT")
    return build(config.model, "teacher", pretrained=str(path)).eval().requires_grad_(False)


def uses_bf16(amp: str | None, device_type: str) -> bool:
    """Tells whether `train_params.amp` means bf16 on a device: where it says nothing, on a GPU."""
    return amp == "bf16" or (amp is None and device_type == "cuda")


def per_view(num_views: int) -> float:
    """Terms are sums over views; many views must not mean long steps: 2/V for more than two (docs/network.md §8)."""
    return 2 / num_views if num_views > 2 else 1.0


def as_prediction(outputs: Outputs) -> dict[str, Tensor]:
    """Stacked outputs as the loss takes them: everything (B, V, …), the scene's scale too."""
    prediction = {field.name: getattr(outputs, field.name) for field in fields(outputs)}
    views = outputs.pts3d.shape[1]
    prediction["metric_scaling_factor"] = outputs.metric_scaling_factor[:, None].expand(-1, views, -1)
    return prediction


def to_device(views: Sequence[View], device: torch.device) -> list[View]:
    """Tensors on the device; copies from pinned memory run beside computing."""

    def moved(value: object) -> object:
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return [cast(View, {key: moved(value) for key, value in view.items()}) for view in views]
