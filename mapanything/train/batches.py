"""Batches of a data set: loaders whose workers leave signals to training, and errors that keep their one line."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mapanything.datasets.sampler import Batch, BudgetSampler
from mapanything.datasets.scenes import OPV2VScenes
from mapanything.datasets.views import View, collate
from mapanything.errors import InputError
from mapanything.train.packed import Packed, pack

log = logging.getLogger(__name__)

Views = list[View]
LOOK_S = 5  # how often training that waits for a batch looks whether it is to stop


class _Guarded(Dataset):
    """Hands an InputError on as a value: torch would wrap it in a worker's traceback."""

    def __init__(self, scenes: OPV2VScenes) -> None:
        self._scenes = scenes

    def __getitem__(self, item: tuple[int, int]) -> Views | InputError:
        try:
            return self._scenes[item]
        except InputError as error:
            return error
        except OSError as error:  # a disk or server that went away
            return InputError(f"{error.filename or 'data'}: {error.strerror or error}")


def _collate(samples: list[Views | InputError]) -> Views | InputError:
    views: list[Views] = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        views.append(sample)
    return collate(views)


def _pack(samples: list[Views | InputError]) -> Packed | InputError:
    views = _collate(samples)
    if isinstance(views, InputError):
        return views
    try:
        return pack(views)
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        return InputError(
            "/dev/shm is too small for the batches of the loader processes: set SHM_SIZE (compose) or --shm-size (docker), "
            f"or fewer machine.num_workers ({str(error).rpartition(': ')[2]})"
        )


def _ignore_signals(_: int) -> None:
    # They reach the whole process group; training decides when to stop, and its workers must live until it has saved.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def lost_loader(error: BaseException) -> str | None:
    """The line to say where the error is torch's about a loader process that is gone; None for other errors.

    torch raises it wherever training is at that moment, in the middle of a step too: nothing can be saved then.
    """
    found = re.match(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)", str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    return (
        f"a loader process ({found[1]}) was killed; out of memory? (see dmesg) The last checkpoint counts: the same command "
        "goes on from there, with a smaller machine.num_workers it needs less memory"
    )


def end_loaders() -> None:
    """Ends the loader processes that are left when training leaves.

    torch would wait five seconds for each that hangs. Python would end them at its own end, with a SIGTERM, which they leave
    to training, and wait for them without end.
    """
    main = threading.current_thread() is threading.main_thread()
    # torch's handler takes a loader that ends for an accident.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
    loaders = [child for child in multiprocessing.active_children() if child.daemon]
    for loader in loaders:
        loader.kill()
    deadline = time.monotonic() + 5  # for all: one that waits for a disk can't even be killed
    for loader in loaders:
        loader.join(max(0.0, deadline - time.monotonic()))
    if main:
        signal.signal(signal.SIGCHLD, before)


class Feed:
    """A data set's batches for one rank, in the sampler's order.

    waited_s: how long training has waited for data, in all.
    """

    def __init__(self, scenes: OPV2VScenes, sampler: BudgetSampler, num_workers: int, pin: bool, keep_workers: bool) -> None:
        self.scenes, self.sampler = scenes, sampler
        self.waited_s = 0.0
        self._loader = DataLoader(
            _Guarded(scenes),
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=_pack if num_workers else _collate,
            pin_memory=pin,
            persistent_workers=keep_workers and num_workers > 0,
            prefetch_factor=2 if num_workers else None,
            timeout=LOOK_S if num_workers else 0,
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # else every start of an epoch, or a resume in it, would draw from training's
        )

    def batches(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[tuple[Batch, Views | InputError | None]]:
        """Yields what is left of the sampler's epoch.

        An InputError is a batch that can't be made; None, the last one then, has not come when `stopped` is true.
        """
        batches, loaded = self.sampler.batches(), iter(self._loader)
        for batch in batches:
            start = time.perf_counter()
            views = self._next(loaded, stopped)
            self.waited_s += time.perf_counter() - start
            yield batch, views
            if views is None:
                return

    @staticmethod
    def _next(loaded: Iterator[Any], stopped: Callable[[], bool]) -> Views | InputError | None:
        begin = said = time.monotonic()
        while True:
            try:
                views = next(loaded)
                return views.unpack() if isinstance(views, Packed) else views
            except RuntimeError as error:
                pinning = getattr(loaded, "_pin_memory_thread", None)  # without it nothing will ever come
                if not str(error).startswith("DataLoader timed out") or (pinning is not None and not pinning.is_alive()):
                    raise
            if stopped():
                end_loaders()
                return None
            if time.monotonic() - said > 60:
                said = time.monotonic()
                log.warning("no batch for %.0f s: does the disk or server answer that holds the data?", said - begin)

    def largest(self) -> Views:
        """A batch as large as any can be: one of the scenes with most views, as often as the budget allows."""
        scene = int(self.sampler.max_views.argmax())
        views = int(self.sampler.max_views[scene])
        return collate([self.scenes[scene, views]] * max(1, self.sampler.budget // views))


def scene_names(scenes: OPV2VScenes, batch: Batch) -> str:
    """The scenes of a batch, for a message."""
    keys = []
    for scene, _ in batch.items:
        index, rows = scenes.scene(scene)
        keys.append(str(scenes.indices[index].key(rows[0])))
    return ", ".join(keys)


def data_facts(scenes: OPV2VScenes) -> dict[str, Any]:
    """The data that a run saw: its roots, and a digest over the names of all agent-frames of all scenes."""
    digest = hashlib.sha256()
    for index, rows in scenes.scenes:
        digest.update(" ".join(str(scenes.indices[index].key(row)) for row in rows).encode() + b"\n")
    return {
        "root": str(scenes.root),
        "depth_root": str(scenes.depth.root) if scenes.depth is not None else None,
        "depth": scenes.depth_kind.to_dict() if scenes.depth_kind is not None else None,
        "scenes": len(scenes),
        "scenes_sha256": digest.hexdigest(),
    }
