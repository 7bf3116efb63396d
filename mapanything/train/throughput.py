"""The speed of training against what the GPU could do: model FLOPs utilisation.

The FLOPs of a step are counted on tensors without data, once per number of views: three forward passes (backward is two);
what gradient checkpointing computes twice does not count as useful. Frozen parts need less; then it says more than it was.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mapanything.models.config import ModelConfig
from mapanything.models.mapanything import MapAnything

# Dense bf16 with fp32 accumulation, FLOP/s, from the vendors' data sheets; the first name that is part of the GPU's.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A40": 149.7e12,
    "RTX A6000": 154.8e12,
    "RTX 4090": 165.2e12,
    "RTX 3090 Ti": 80e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of a GPU, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for known, value in PEAKS.items() if known in name), None)


@functools.lru_cache(maxsize=64)
def training_flops(config: ModelConfig, num_views: int, resolution: tuple[int, int]) -> float:
    """FLOPs of one training step of one scene; resolution as (W, H)."""
    with torch.device("meta"):
        model = MapAnything(config)
        view: dict[str, Any] = {"img": torch.zeros(1, 3, resolution[1], resolution[0]), "data_norm_type": ["dinov2"]}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.stacked([view] * num_views)
    return 3.0 * counter.get_total_flops()
