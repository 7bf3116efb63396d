"""Vehicle ID: tells the multi-view transformer which views were taken from one vehicle.

The official networks see all images as one set and cannot know which cameras are bolted together. Each role (0 the main
agent, 1… the others in order) has an embedding that is added to the patch features of its views. It starts at zero, so an
old checkpoint gives its old output bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mapanything.errors import InputError
from mapanything.models.config import VehicleIdConfig


class VehicleId(nn.Module):
    """(B, V) roles -> (B, V, 1, C), what to add to the patches of each view."""

    def __init__(self, config: VehicleIdConfig, dim: int) -> None:
        super().__init__()
        self.shuffle = config.shuffle
        self.embedding = nn.Parameter(torch.zeros(config.num_roles, dim))

    def forward(self, roles: Tensor) -> Tensor:
        if self.training and self.shuffle:
            roles = shuffled(roles, len(self.embedding))
        # A product with one-hot rows, not an index: a role that has no embedding gets none, and nothing waits for the GPU.
        one_hot = (roles[..., None] == torch.arange(len(self.embedding), device=roles.device)).to(self.embedding.dtype)
        return (one_hot @ self.embedding)[:, :, None]


def shuffled(roles: Tensor, num_roles: int) -> Tensor:
    """Roles (B, V) with the numbers of each sample's vehicles drawn anew from 1…num_roles-1; the main agent stays 0.

    The order of the others comes from the data, so without this a number could come to mean a direction or a place.
    """
    if num_roles < 3:
        return roles
    others = torch.rand(len(roles), num_roles - 1, device=roles.device).argsort(1) + 1
    table = torch.cat([torch.zeros_like(others[:, :1]), others], 1)  # (B, roles): old number -> new one
    known = (roles > 0) & (roles < num_roles)
    return torch.where(known, table.gather(1, roles.clamp(0, num_roles - 1)), roles)


def gather_roles(views: Sequence[Mapping[str, Any]], num_roles: int, device: torch.device) -> Tensor | None:
    """`agent_id` of all views as (B, V), None where no view has one. Views without one count as the main agent's."""
    if all(view.get("agent_id") is None for view in views):
        return None
    batch = views[0]["img"].shape[0]
    columns = []
    for number, view in enumerate(views):
        role = view.get("agent_id")
        if isinstance(role, Tensor) and role.device.type != "cpu":
            columns.append(role.long().expand(batch))
            continue
        role = torch.as_tensor(0 if role is None else role).long()
        if role.numel() and not 0 <= int(role.min()) <= int(role.max()) < num_roles:
            raise InputError(
                f"view {number}, key agent_id: {role.tolist()}, but the model has embeddings for roles 0 to {num_roles - 1}; "
                "give model.vehicle_id.num_roles the most vehicles of a scene"
            )
        columns.append(role.to(device, non_blocking=True).expand(batch))
    return torch.stack(columns, 1)
