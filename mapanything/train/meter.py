"""Numbers of a run. They stay on the device until somebody reads them: once every print interval, and before a save."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


class TrainingError(RuntimeError):
    """Training can't go on; one line says why. No bad input and no bug."""


@dataclass
class Sums:
    """An epoch's sums, of all ranks together once they are `joined`. Plain numbers, saved with a checkpoint."""

    terms: dict[str, float] = field(default_factory=dict)  # name -> sum over scenes
    scenes: float = 0.0
    views: float = 0.0
    steps: int = 0
    seconds: float = 0.0  # of this rank
    waited: float = 0.0  # of these, for data
    flops: float = 0.0

    def means(self) -> dict[str, float]:
        """The terms' means over scenes."""
        return {name: value / max(self.scenes, 1.0) for name, value in self.terms.items()}

    def forget_shares(self) -> None:
        """Sets to 0 what `joined` adds up. The terms' names stay: all ranks have the same."""
        self.terms = dict.fromkeys(self.terms, 0.0)
        self.scenes = self.views = self.flops = 0.0

    def joined(self, total: Callable[[Tensor], Tensor]) -> Sums:
        """Sums over ranks; `total` adds up a float64 vector. A collective call. Times are not added."""
        names = list(self.terms)
        numbers = torch.tensor([self.scenes, self.views, self.flops, *self.terms.values()], dtype=torch.float64)
        scenes, views, flops, *terms = total(numbers).tolist()
        return replace(self, terms=dict(zip(names, terms, strict=True)), scenes=scenes, views=views, flops=flops)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Entry:
    """Numbers of one batch; `values` on the device: loss, then its terms."""

    values: Tensor
    names: tuple[str, ...]
    scenes: int
    views: int
    what: str


class Meter:
    """The steps since numbers were last read, and the epoch's sums.

    Losses are weighed by scenes, so idle shards count nothing.
    """

    def __init__(self) -> None:
        self.sums = Sums()
        self.recent: dict[str, float] = {}  # means of the last interval, this rank's
        self._entries: list[_Entry] = []
        self._norms: list[Tensor] = []

    def add_batch(self, loss: Tensor, terms: dict[str, Tensor], scenes: int, views: int, what: str) -> None:
        """Notes a batch of so many scenes with so many views each; `what` names it in messages."""
        values = torch.stack([loss.detach(), *terms.values()])
        self._entries.append(_Entry(values, ("loss", *terms), scenes, views, what))

    def add_step(self, gradient_norm: Tensor, seconds: float, waited: float, flops: float) -> None:
        """Notes a step: its gradient's norm, its time, the part of it that was spent waiting for data, and its FLOPs."""
        self._norms.append(gradient_norm)
        self.sums.steps += 1
        self.sums.seconds += seconds
        self.sums.waited += waited
        self.sums.flops += flops

    def read(self) -> tuple[str | None, bool]:
        """Reads what is waiting, into `sums` and `recent`. Waits for the device.

        Returns:
            The first batch whose loss is no number, in words, if any; whether a gradient was none.
        """
        entries, norms = self._entries, self._norms
        self._entries, self._norms = [], []
        bad, interval = None, Sums()
        for entry, values in zip(entries, _read([entry.values for entry in entries]), strict=True):
            if not math.isfinite(values[0]) and bad is None:
                wrong = [name for name, value in zip(entry.names, values, strict=True) if not math.isfinite(value)]
                bad = f"{entry.what}: {', '.join(wrong)}"
            for sums in (self.sums, interval):
                for name, value in zip(entry.names, values, strict=True):
                    sums.terms[name] = sums.terms.get(name, 0.0) + value * entry.scenes
                sums.scenes += entry.scenes
                sums.views += entry.scenes * entry.views
        lengths = [norm for (norm,) in _read([norm.reshape(1) for norm in norms])]
        if interval.scenes:
            self.recent = interval.means()
        if lengths:
            self.recent["gradient_norm"] = sum(lengths) / len(lengths)
        return bad, not all(map(math.isfinite, lengths))


def _read(tensors: list[Tensor]) -> list[list[float]]:
    """Tensors (n,) of one device as numbers, in one transfer."""
    if not tensors:
        return []
    flat = torch.cat(tensors).double().cpu().tolist()
    numbers, start = [], 0
    for tensor in tensors:
        numbers.append(flat[start : start + len(tensor)])
        start += len(tensor)
    return numbers
