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
from pathlib import Path
from typing import Any, TypeVar

import torch

from mapanything.errors import InputError
from mapanything.inference.predict import predict_scene, reconstruct
from mapanything.inference.select import Scene, SceneKey, depth_layout, load_scene
from mapanything.models.mapanything import MapAnything
from mapanything.processes import holding_ctrl_c
from mapanything.results.export import Settings, scene_folder, write_scene

READERS, WRITERS = 3, 3
Report = Callable[[SceneKey, str], None]  # a scene is done; what is wrong with it, '' if nothing
Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Job:
    """What every process needs to know."""

    root: Path
    depth_root: Path | None
    out: Path
    checkpoint: Path
    amp_dtype: str
    settings: Settings


def run(job: Job, keys: Sequence[SceneKey], devices: Sequence[str], report: Report) -> None:
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
        run_here(job, keys, devices[0], report)
    else:
        _run_in_processes(job, keys, devices, report)


def run_here(job: Job, keys: Sequence[SceneKey], device: str, report: Report) -> None:
    """As `run`, on one device, in this process."""
    if not keys:
        return
    model = MapAnything.from_pretrained(job.checkpoint, device=device)
    depth = depth_layout(job.depth_root)
    inputs, size = job.settings.inputs, job.settings.resolution
    need_depth = "depth" in inputs

    def read(key: SceneKey) -> Scene:
        return load_scene(job.root, depth, key, size, need_depth)

    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(WRITERS) as writers:
        writing: deque[tuple[SceneKey, Future[None]]] = deque()

        def finish(most: int) -> None:
            while len(writing) > most:
                key, done = writing.popleft()
                done.result()
                report(key, "")

        try:
            for key, reading in ahead(readers, read, keys, READERS + 1):
                try:
                    scene = reading.result()
                    predicted = reconstruct(_predict(model, scene, job))
                except InputError as error:
                    report(key, str(error))
                    continue
                folder = scene_folder(job.out, key)
                work = writers.submit(write_scene, folder, key, predicted, scene.lidar_from_view0, job.settings)
                writing.append((key, work))
                finish(WRITERS)
            finish(0)
        except BaseException:
            for pool in (readers, writers):
                pool.shutdown(wait=False, cancel_futures=True)
            raise


def _predict(model: MapAnything, scene: Scene, job: Job) -> Any:
    try:
        use_amp = job.amp_dtype != "fp32"
        return predict_scene(model, scene.views, job.settings.inputs, use_amp=use_amp, amp_dtype=job.amp_dtype)
    except torch.OutOfMemoryError as error:
        width, height = job.settings.resolution
        raise InputError(
            f"{len(scene.views)} views of {width}x{height} do not fit into the GPU's memory; give fewer "
            "(--num-views, --agents), a smaller --resolution, or --device cpu"
        ) from error


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """(item, its future) in order, up to `count` of them begun and not yet taken."""
    begun: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        begun.append((item, pool.submit(function, item)))
        if len(begun) == count:
            yield begun.popleft()
    while begun:
        yield begun.popleft()


# Several devices

_Message = tuple[int, SceneKey | None, str]  # process, scene (None: the process has ended), what is wrong


def _run_in_processes(job: Job, keys: Sequence[SceneKey], devices: Sequence[str], report: Report) -> None:
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


def _child(job: Job, keys: list[SceneKey], device: str, number: int, messages: Any) -> None:
    parent = multiprocessing.parent_process()

    def report(key: SceneKey, problem: str) -> None:
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt  # nobody is there to tell any more
        messages.put((number, key, problem))

    try:
        run_here(job, keys, device, report)
        messages.put((number, None, ""))
    except InputError as error:
        messages.put((number, None, str(error)))
    except KeyboardInterrupt:
        pass
