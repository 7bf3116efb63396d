"""A batch as loader processes hand it over: all its numbers in one piece of shared memory.

torch sends every tensor by itself, through a socket and with a file that both sides keep open: a third to half of a
millisecond each, and ten views have 150. One piece is also pinned at once, and a batch of many views does not run into the
limit of open files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mapanything.datasets.views import View

_ALIGNMENT = 64  # bytes; no dtype needs more, and no two tensors share a cache line


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a tensor in the piece."""

    start: int
    dtype: torch.dtype
    shape: torch.Size

    def of(self, content: Tensor) -> Tensor:
        stop = self.start + self.shape.numel() * self.dtype.itemsize
        return content[self.start : stop].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class Packed:
    """Views whose tensors lie in `content` (bytes,) uint8; what is no tensor stays where it was."""

    content: Tensor
    views: list[dict[str, Any]]

    def pin_memory(self) -> Packed:
        """Called by torch's loader."""
        return Packed(self.content.pin_memory(), self.views)

    def unpack(self) -> list[View]:
        """The views, without a copy: `content` lives as long as any of their tensors."""
        filled = ({k: v.of(self.content) if isinstance(v, _Place) else v for k, v in view.items()} for view in self.views)
        return [cast(View, view) for view in filled]


def pack(views: list[View]) -> Packed:
    """A batch of `datasets.views.collate` in shared memory."""
    size = 0
    places: list[dict[str, Any]] = []
    for view in views:
        places.append({})
        for key, value in view.items():
            if isinstance(value, Tensor):
                places[-1][key] = _Place(size, value.dtype, value.shape)
                size += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
            else:
                places[-1][key] = value
    # Shared from the start: torch would copy it there when it is sent. Its own collating does the same.
    content = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
    for view, placed in zip(views, places, strict=True):
        for key, value in view.items():
            if isinstance(value, Tensor):
                placed[key].of(content).copy_(value)
    return Packed(content, places)
