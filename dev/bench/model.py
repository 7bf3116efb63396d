"""The suite `bench model`: the full-size networks with random weights, time and memory by number of views.

On a CPU, processor seconds per thread (wall time of a shared machine says little) and peak memory, each case in a process
of its own. The reference runs in turns with ours and does what upstream does besides: its two dense geometric encoders run
on maps of zeros, and its `infer` takes fp16 for bf16 on a CPU. Upstream's own figures (2 cores of an AMD EPYC with
AVX512-BF16, torch 2.13; docs/network.md §12) stand beside it. On a GPU, passes a second, peak memory and the share of the
card's peak rate that is used (MFU), beside the published rates of V1.1 on an H200-class card.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dev.bench.timing import spread_of
from mapanything.errors import InputError
from mapanything.models.config import architectures
from mapanything.models.mapanything import MapAnything
from mapanything.train.throughput import peak_flops, training_flops

SIZE = (392, 518)  # height, width
GPU_SIZE = (518, 518)
GPU_VIEWS = (2, 4, 8, 16, 24, 50, 100)
PASSES_PER_S = {2: 25, 4: 15.2, 8: 7.4, 16: 3.3, 24: 1.97, 50: 0.69, 100: 0.228}  # published for V1.1
KERNELS = {  # of attention, by the operator that calls it
    "aten::_cudnn_attention_forward": "cuDNN",
    "aten::_flash_attention_forward": "flash",
    "aten::_efficient_attention_forward": "memory-efficient",
}


@dataclass(frozen=True)
class Case:
    """One thing to measure on a CPU, and what upstream needed for it."""

    model: str
    call: str  # forward or infer
    num_views: int
    precision: str
    upstream_s: float
    upstream_gib: float

    @property
    def name(self) -> str:
        views = f"{self.num_views} view{'s' if self.num_views > 1 else ''}"
        return f"{self.model} {self.call}, {views}, {self.precision}"


CASES = (
    Case("mapanything_v1", "forward", 1, "fp32", 11.5, 2.9),
    Case("mapanything_v1", "forward", 1, "bf16", 7.0, 2.9),
    Case("mapanything_v1", "forward", 2, "fp32", 22.3, 3.4),
    Case("mapanything_v1", "forward", 2, "bf16", 14.4, 3.4),
    Case("mapanything_v1", "infer", 1, "bf16", 47.2, 3.1),
    Case("mapanything", "forward", 1, "fp32", 20.6, 5.5),
    Case("mapanything", "forward", 1, "bf16", 12.8, 5.4),
    Case("mapanything", "forward", 2, "fp32", 42.5, 6.0),
    Case("mapanything", "forward", 2, "bf16", 24.3, 6.0),
    Case("mapanything", "infer", 1, "bf16", 68.6, 5.6),
)


@dataclass(frozen=True)
class Measured:
    """Processor seconds per thread of ours and of the reference, ours in wall seconds (the best of the repeats each), and ours
    in peak resident memory. `spread`: the least and the largest ratio of a repeat, where there were several."""

    cpu_s: float
    reference_s: float
    wall_s: float
    peak_gib: float
    spread: tuple[float, float] | None


def random_network(name: str, device: torch.device) -> MapAnything:
    """An official architecture with weights of about the right size; built without initialising twice."""
    with torch.device("meta"):
        model = MapAnything(architectures()[name]).eval()
    model.to_empty(device=device)
    block = torch.randn(1 << 20, device=device) * 0.02
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for start in range(0, len(flat), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)])
            if parameter.ndim == 1:
                parameter.add_(1)
        for buffer in model.buffers():
            buffer.zero_()
    return model


def views_of(num_views: int, size: tuple[int, int], device: torch.device) -> list[dict[str, Any]]:
    """Noise as images."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, *size)
    return [
        {"img": torch.randn(shape, generator=generator).to(device), "data_norm_type": ["dinov2"]} for _ in range(num_views)
    ]


def run_case(case: Case, repeats: int) -> Measured:
    """Measures one case in this process; of each side the best of `repeats`."""
    device = torch.device("cpu")
    model = random_network(case.model, device)
    views = views_of(case.num_views, SIZE, device)

    def call(precision: str) -> None:
        if case.call == "infer":
            model.infer(views, amp_dtype=precision)
            return
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            model(views)

    def reference() -> None:
        with torch.inference_mode():
            zeros = torch.zeros(1, 3, *SIZE, device=device)
            for _ in views:
                model.ray_dirs_encoder(zeros)
                model.depth_encoder(zeros[:, :1])
        call("fp16" if case.call == "infer" else case.precision)

    model.infer(views_of(1, (28, 28), device))
    ours, theirs = [seconds(lambda: call(case.precision))], []
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB -> GiB
    for repeat in range(repeats):
        if repeat:
            ours.append(seconds(lambda: call(case.precision)))
        theirs.append(seconds(reference)[0])
    ratios = [other / own for (own, _), other in zip(ours, theirs, strict=True)]
    cpu, wall = min(ours)
    return Measured(cpu, min(theirs), wall, peak_gib, spread_of(ratios))


def seconds(call: Callable[[], None]) -> tuple[float, float]:
    """Processor seconds per thread, and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return (time.process_time() - cpu) / torch.get_num_threads(), time.perf_counter() - wall


def measure_cpu(repeats: int) -> Iterator[tuple[Case, Measured]]:
    """Every case in a fresh process, so that each has a peak memory of its own."""
    for number, case in enumerate(CASES):
        code = f"from dev.bench.model import main; main({number}, {repeats})"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["killed; is there enough memory?"])[-1]
            raise InputError(f"bench model, {case.name}: {last}")
        yield case, Measured(**json.loads(result.stdout.splitlines()[-1]))


def main(number: int, repeats: int) -> None:
    """Measures one case: `measure_cpu` runs it in a process of its own."""
    print(json.dumps(asdict(run_case(CASES[number], repeats))))


@dataclass(frozen=True)
class GpuRow:
    """v1.1's `forward` in bf16 on a card."""

    card: str
    torch: str
    kernel: str
    num_views: int
    passes_per_s: float
    peak_gb: float
    mfu: float | None
    published: float


def measure_gpu(repeats: int) -> list[GpuRow]:
    """Passes a second of v1.1 as `infer` runs it, up to as many views as fit."""
    device = torch.device("cuda")
    model = random_network("mapanything", device).keep_bf16()
    flops = peak_flops(device)
    rows = []
    for num_views in GPU_VIEWS:
        views = views_of(num_views, GPU_SIZE, device)
        try:
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                model.predict(views, apply_mask=False)
            torch.cuda.reset_peak_memory_stats()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(repeats):
                model.predict(views, apply_mask=False)
            end.record()
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            break
        seconds = start.elapsed_time(end) / 1000 / repeats
        mfu = training_flops(model.config, num_views, GPU_SIZE) / 3 / seconds / flops if flops else None
        called = {event.key for event in profiler.key_averages()}
        kernel = next((kernel for operator, kernel in KERNELS.items() if operator in called), "plain")
        of_card = torch.cuda.get_device_name(), torch.__version__, kernel
        peak_gb = torch.cuda.max_memory_allocated() / 1e9
        rows.append(GpuRow(*of_card, num_views, 1 / seconds, peak_gb, mfu, PASSES_PER_S[num_views]))
    return rows
