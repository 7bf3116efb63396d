"""Any number of scenes through the network and onto the disk, in constant memory.

Threads read ahead and write behind, so that the network waits for neither; with several devices each has a process of its
own and every n-th scene. A few scenes are in memory at a time, however many there are.
"""

from __future__ import annotations

import multiprocessing
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mapanything.errors import InputError
from mapanything.inference.predict import reconstruct_scene
from mapanything.inference.select import SceneSample, depth_layout, load_scene
from mapanything.models.mapanything import MapAnything
from mapanything.processes import holding_ctrl_c
from mapanything.results.export import write_scene
from mapanything.results.reconstruction import Reconstruction
from mapanything.results.record import SceneKey, Settings, scene_folder

READERS, WRITERS = 3, 3
Report = Callable[[SceneKey, str], None]  # a scene is done; what is wrong with it, '' if nothing
Item = TypeVar("Item")
Read = TypeVar("Read")
Made = TypeVar("Made")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class InferenceJob:
    """Everything that a process needs to know."""

    root: Path
    depth_root: Path | None
    out: Path
    checkpoint: Path
    amp_dtype: str
    settings: Settings


def infer_scenes(job: InferenceJob, keys: Sequence[SceneKey], devices: Sequence[str], report: Report) -> None:
    """Makes the files of all scenes.

    Args:
        devices: names for torch, one process each; with one it is this process.
        report: told of each scene as it is done. One that can't be read, or is too large for the device or the network, is
            reported and the others are made.

    Raises:
        InputError: what stops the whole run: the checkpoint, the disk, a process that was killed.
    """
    devices = devices[: max(1, len(keys))]
    if len(devices) == 1:
        infer_here(job, keys, devices[0], report)
    else:
        _run_in_processes(job, keys, devices, report)


def infer_here(job: InferenceJob, keys: Sequence[SceneKey], device: str, report: Report) -> None:
    """Does as `infer_scenes`, on one device, in this process."""
    if not keys:
        return
    model = MapAnything.from_pretrained(job.checkpoint, device=device)
    if job.amp_dtype == "bf16":
        model.keep_bf16()
    depth = depth_layout(job.depth_root)
    inputs, size = job.settings.inputs, job.settings.resolution
    need_depth = "depth" in inputs

    def read(key: SceneKey) -> SceneSample:
        return load_scene(job.root, depth, key, size, need_depth)

    def predict(key: SceneKey, reading: Future[SceneSample]) -> tuple[Reconstruction, NDArray[np.float64]] | None:
        try:
            scene = reading.result()
            return reconstruct_scene(model, scene.views, inputs, job.amp_dtype), scene.lidar_from_view0
        except InputError as error:
            report(key, str(error))
            return None

    def write(key: SceneKey, made: tuple[Reconstruction, NDArray[np.float64]]) -> None:
        write_scene(scene_folder(job.out, key), key, *made, job.settings)

    for key, _ in pipelined(keys, read, predict, write, READERS, WRITERS):
        report(key, "")


def pipelined(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    work: Callable[[Item, Future[Read]], Made | None],
    finish: Callable[[Item, Made], Result],
    num_readers: int,
    num_finishers: int,
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, what `finish` returned) in order: threads read ahead and finish behind, `work` happens here.

    Args:
        work: None leaves the item out.
    """
    with ThreadPoolExecutor(num_readers) as readers, ThreadPoolExecutor(num_finishers) as finishers:
        reading: deque[tuple[Item, Future[Read]]] = deque()
        finishing: deque[tuple[Item, Future[Result]]] = deque()
        waiting = iter(items)
        try:
            while True:
                reading.extend((item, readers.submit(read, item)) for item in islice(waiting, num_readers + 1 - len(reading)))
                while len(finishing) > (num_finishers if reading else 0):
                    item, done = finishing.popleft()
                    yield item, done.result()
                if not reading:
                    return
                item, future = reading.popleft()
                made = work(item, future)
                if made is not None:
                    finishing.append((item, finishers.submit(finish, item, made)))
        except BaseException:
            for pool in (readers, finishers):
                pool.shutdown(wait=False, cancel_futures=True)
            raise


# Several devices

_Message = tuple[int, SceneKey | None, str]  # process, scene (None: the process has ended), what is wrong


def _run_in_processes(job: InferenceJob, keys: Sequence[SceneKey], devices: Sequence[str], report: Report) -> None:
    context = multiprocessing.get_context("spawn")  # a forked process can't use CUDA
    messages: Any = context.Queue()
    processes = [
        context.Process(target=_child, args=(job, list(keys[i :: len(devices)]), device, i, messages), daemon=True)
        for i, device in enumerate(devices)
    ]
    try:
        with holding_ctrl_c():  # a terminal sends it to all: the parent ends them and says so once
            for process in processes:
                process.start()
        running = set(range(len(processes)))
        while running:
            try:
                number, key, problem = messages.get(timeout=1)
            except queue.Empty:
                _check_alive(processes, running, devices, messages)
                continue
            if key is not None:
                report(key, problem)
            elif problem:
                raise InputError(problem)
            else:
                running.discard(number)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()


def _check_alive(processes: Sequence[Any], running: set[int], devices: Sequence[str], messages: Any) -> None:
    for number in running:
        code = processes[number].exitcode
        if code is None or not messages.empty():  # what it still said comes first
            continue
        if code < 0:
            raise InputError(
                f"the process for {devices[number]} was killed (signal {-code}; out of memory?); what it wrote is whole, run "
                "the same command again to go on"
            )
        raise RuntimeError(f"the process for {devices[number]} failed; its traceback is above")


def _child(job: InferenceJob, keys: list[SceneKey], device: str, number: int, messages: Any) -> None:
    parent = multiprocessing.parent_process()

    def report(key: SceneKey, problem: str) -> None:
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt  # nobody is there to tell any more
        messages.put((number, key, problem))

    try:
        infer_here(job, keys, device, report)
        messages.put((number, None, ""))
    except InputError as error:
        messages.put((number, None, str(error)))
    except KeyboardInterrupt:
        pass
