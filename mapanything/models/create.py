"""The network that `model=…` in a Hydra config builds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mapanything.errors import InputError
from mapanything.models.config import ModelConfig
from mapanything.models.mapanything import MapAnything
from mapanything.models.weights.build import load_dinov2
from mapanything.models.weights.identify import name_of

log = logging.getLogger(__name__)


def create_model(pretrained: str | Path | None = None, dinov2: str | Path | None = None, **config: Any) -> MapAnything:
    """A network to train.

    Args:
        pretrained: a checkpoint (see `read_checkpoint`). The network is then the one that it holds, whatever widths and depths
            the config has; its switches are the config's: gradient checkpointing, the nine numbers of the geometric inputs,
            vehicle ID. None: random weights.
        dinov2: a file of DINOv2's repository to start from instead (see `load_dinov2`); the rest is random.
        config: ModelConfig's sections.

    Raises:
        InputError: a wrong entry, or a checkpoint that cannot be loaded.
    """
    if pretrained is not None and dinov2 is not None:
        raise InputError("model.pretrained and model.dinov2 are both given; a checkpoint brings its own encoder: give one")
    wanted = ModelConfig.from_dict(config)
    if pretrained is None:
        model = MapAnything(wanted)
        if dinov2 is not None:
            load_dinov2(model, wanted, dinov2)
        return model
    switches: dict[str, Any] = {
        part: {"gradient_checkpointing": getattr(wanted, part).gradient_checkpointing}
        for part in ("encoder", "multiview", "heads")
    }
    geometric = wanted.geometric_inputs
    switches["geometric_inputs"] = {name: getattr(geometric, name) for name in geometric.probabilities()}
    switches["vehicle_id"] = wanted.vehicle_id.to_dict()
    model = MapAnything.from_pretrained(pretrained, overrides=switches)
    found, asked = (name_of(c) or "another network" for c in (model.config, wanted))
    if found == asked:
        log.info("%s: model=%s", pretrained, found)
    else:
        log.warning("%s: holds %s; the config's model=%s gives way, its switches stay", pretrained, found, asked)
    return model.train()
