"""The suite `bench train`: the training step, and what a step pays besides computing: for data, loss and checkpoints.

The step is training's own (memory/step.py runs it), forward, backward, clipping and update. On a GPU it
is that of the full networks in all three stages; on a CPU, where nobody trains those, `mapanything_tiny` with small images
stands in for them, on one thread (threads that wait for each other would measure what else the machine does, and loaders
need cores too); its seconds say nothing about a card. The ratios compare like with like: the same tensors, dtype and threads
on both sides, in turns.

    step, batch in memory   an epoch's steps through the loader, against as many on a batch that is there already
    loss, V views           forward and backward, against the same terms called view by view and, for poses, pair by pair
    checkpoint              written, flushed, read back and renamed, against torch.save and nothing else

Both losses must agree, else the suite fails.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from dev.bench.data import copies, own_cache, small_sample, threads
from dev.bench.timing import Figure, compare
from mapanything.datasets.sampler import BudgetSampler
from mapanything.geometry.rigid import quat_inverse, quat_multiply, rotate
from mapanything.memory.peak import Shape
from mapanything.memory.step import make_batch, random_objective, run_step
from mapanything.models.config import ModelConfig
from mapanything.train import checkpoints
from mapanything.train.batches import Feed
from mapanything.train.build import build
from mapanything.train.loss_terms import Poses, Rotations, robust, robust_rotation
from mapanything.train.losses import Geometry, Loss, Scene, Stacked, Term
from mapanything.train.objective import to_device
from mapanything.train.optim import OptimConfig, make_optimizer
from mapanything.train.stages import STAGES, compose_config
from mapanything.train.throughput import peak_flops, training_flops

GPU_MODELS, CPU_MODEL = ("mapanything_v1", "mapanything"), "mapanything_tiny"
CPU_SIZE = (168, 126)  # (W, H)
LOSS_SIZE = {"cuda": (448, 252), "cpu": (224, 126)}  # stage 2's, and a quarter of it
LOSS_VIEWS = (8, 24)
PIPELINE_STEPS = {"cuda": 72, "cpu": 16}
CHECKPOINT_BYTES = 128 * 2**20


@dataclass(frozen=True)
class StepRow:
    """A training step; `seconds` is the median. peak_gb: of torch's tensors, on a GPU. mfu: where the card's rate is known."""

    name: str
    shape: str
    seconds: float
    views_per_s: float
    peak_gb: float | None
    mfu: float | None


class Step:
    """One update after another, of random weights: what train/loop.py does between two batches, without its log."""

    def __init__(self, config: DictConfig, device: torch.device) -> None:
        self.device = device
        with device:
            self.objective = random_objective(config, amp=device.type == "cuda")
        self.optimizer = make_optimizer(self.objective.model, OptimConfig.of(config.train_params))
        self.trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        self.clip = config.train_params.clip_grad_norm

    def __call__(self, views: list[Any]) -> None:
        run_step(self.objective, to_device(views, self.device))
        clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        wait(self.device)

    @property
    def model_config(self) -> ModelConfig:
        return self.objective.model.config


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_steps(rounds: int) -> Iterator[StepRow | str]:
    """Every stage of every network; in words where one does not fit on the card."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for model in GPU_MODELS if device.type == "cuda" else (CPU_MODEL,):
        for stage in STAGES:
            config = stage_config(stage, model, device)
            try:
                with threads(1):
                    row = measure_step(f"{model}, stage {stage}", config, device, rounds)
            except torch.OutOfMemoryError:
                yield f"{model}, stage {stage}: {shape_of(config)} does not fit into {gigabytes(device):.0f} GB"
            else:
                yield row


def stage_config(stage: int, model: str, device: torch.device, *more: str) -> DictConfig:
    size = () if device.type == "cuda" else (f"dataset.resolution=[{CPU_SIZE[0]},{CPU_SIZE[1]}]",)
    return compose_config([f"stage=stage{stage}", f"model={model}", "model.pretrained=null", *size, *more])


def shape_of(config: DictConfig) -> Shape:
    """The most views that a scene of this stage has, as often as the budget of images allows."""
    views = int(config.dataset.num_views)
    return Shape(views, max(1, config.train_params.max_num_of_imgs_per_gpu // views), *config.dataset.resolution)


def gigabytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[1] / 1e9


def measure_step(name: str, config: DictConfig, device: torch.device, rounds: int) -> StepRow:
    """The first step does not count: it makes the optimizer's state and finds its kernels."""
    shape, step = shape_of(config), Step(config, device)
    views = make_batch(shape, device)
    step(views)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step(views)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    peak_gb = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    flops, mfu = peak_flops(device), None
    if flops:
        needed = shape.batch * training_flops(step.model_config, shape.views, (shape.width, shape.height))
        mfu = needed / seconds / flops
    return StepRow(name, str(shape), seconds, shape.images / seconds, peak_gb, mfu)


def measure(rounds: int) -> tuple[list[Figure], dict[str, str]]:
    """The ratios, and facts about them: the network, and how much of the time through the loader was waiting for it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = GPU_MODELS[-1] if device.type == "cuda" else CPU_MODEL
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, threads(1):
        work = Path(folder)
        loaded, waited = pipeline(work, model, device, rounds)
        figures = [loaded, *(loss(views, device, rounds) for views in LOSS_VIEWS), checkpoint(work, rounds)]
    return figures, {"network": f"{model} on {device.type}", "waiting for data": f"{waited:.1%}"}


# Data


def pipeline(work: Path, model: str, device: torch.device, rounds: int) -> tuple[Figure, float]:
    """Stage 1 through its loader: an epoch of distinct frames, links to one; workers stay from epoch to epoch.

    Also the share of that time in which the step waited: all there is to lose where loaders have cores of their own.
    """
    steps = PIPELINE_STEPS[device.type]
    images, depth = copies(small_sample(work), work, steps)
    places = (f"machine.opv2v_images_root={images}", f"machine.opv2v_depth_root={depth}")
    config = stage_config(1, model, device, *places)
    workers = min(int(config.machine.num_workers), len(os.sched_getaffinity(0)))
    with own_cache(work / "cache"):
        scenes = build(config.dataset.train, "dataset.train")
        sampler = BudgetSampler(scenes, config.train_params.max_num_of_imgs_per_gpu)
        feed = Feed(scenes, sampler, workers, pin=device.type == "cuda", keep_workers=True)
        step = Step(config, device)
        ready = to_device(feed.largest(), device)
        seconds: list[float] = []  # of every epoch

        def through_the_loader() -> None:
            start = time.perf_counter()
            sampler.set_epoch(len(seconds))
            scenes.set_epoch(len(seconds))
            for _, views in feed.batches():
                if not isinstance(views, list):
                    raise views or RuntimeError("no batch came")
                step(views)
            seconds.append(time.perf_counter() - start)

        def from_memory() -> None:
            for _ in range(steps):
                step(ready)

        name = f"{steps} steps, {workers} loaders"
        figure = compare(name, through_the_loader, "the batch in memory", from_memory, 0.95, min(rounds, 5))
        return figure, feed.waited_s / sum(seconds)


# Loss


def loss(num_views: int, device: torch.device, rounds: int) -> Figure:
    """v1.1's own loss, with poses relative to every other view."""
    config = compose_config(["loss=overall_loss_highpm_plus_rel_pose"])
    ours: Loss = build(config.loss.train, "loss.train")
    theirs = Loss({name: one_by_one(term) for name, term in ours.terms.items()}, ours.to_view0)
    batch = make_batch(Shape(num_views, 1, *LOSS_SIZE[device.type]), device)
    prediction = guess(batch)

    def both_ways(criterion: Loss) -> Callable[[], Tensor]:
        def call() -> Tensor:
            for leaf in prediction.values():
                leaf.grad = None
            total = criterion(batch, prediction).total
            total.backward()
            wait(device)
            return total.detach()

        return call

    calls = both_ways(ours), both_ways(theirs)
    torch.testing.assert_close(calls[0](), calls[1](), msg=lambda why: f"both losses should be the same: {why}")
    return compare(f"loss, {num_views} views", calls[0], "view by view, pair by pair", calls[1], 1, min(rounds, 5))


def guess(batch: list[Any]) -> dict[str, Tensor]:
    """A prediction (B, V, ...) that is wrong everywhere by a little; every tensor wants a gradient."""
    truth, rng = Stacked(batch), torch.Generator(batch[0]["img"].device).manual_seed(0)
    keys = ("pts3d", "pts3d_cam", "depth_along_ray", "ray_directions_cam", "camera_pose_trans", "camera_pose_quats")
    names = ("pts3d", "pts3d_cam", "depth_along_ray", "ray_directions", "cam_trans", "cam_quats")

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=rng, device=like.device)

    values = {name: truth[key] + 0.1 * noise(truth[key]) for name, key in zip(names, keys, strict=True)}
    pixels = truth["valid_mask"]
    values |= {"conf": 1 + noise(pixels).exp(), "non_ambiguous_mask_logits": noise(pixels)}
    values["metric_scaling_factor"] = torch.full((*pixels.shape[:2], 1), 2.0, device=pixels.device)
    return {name: value.requires_grad_() for name, value in values.items()}


def one_by_one(term: Any) -> Term:
    """The same term as a loop."""

    def pairs(scene: Scene) -> Tensor:
        rows = range(scene.labels.shape[1])
        return torch.stack([term.weight * torch.stack([one_pair(term, scene, i, j) for j in rows]).mean() for i in rows])

    def views(scene: Scene) -> Tensor:
        return torch.cat([term(one_view(scene, view)).reshape(-1) for view in range(scene.labels.shape[1])]).sum()

    if isinstance(term, Poses):
        return pairs
    return term if type(term).__name__ == "MetricScale" else views  # the scale is the scene's, there is nothing to loop over


def one_pair(term: Poses, scene: Scene, i: int, j: int) -> Tensor:
    """(B,) View j as view i sees it; of a view with itself its pose in the scene. Every view of `make_batch` has labels."""
    sides = []
    for side in (scene.pred, scene.true):
        (here, there), (origin, place) = ((x[:, i], x[:, j]) for x in (side.quats, side.trans))
        if isinstance(term, Rotations):
            sides.append(there if i == j else quat_multiply(quat_inverse(here), there))
        else:
            sides.append(place if i == j else rotate(quat_inverse(here), place - origin))
    return (robust_rotation if isinstance(term, Rotations) else robust)(*sides)


def one_view(scene: Scene, view: int) -> Scene:
    """The part of a scene that a dense term sees of one view."""

    def of(side: Geometry) -> Geometry:
        return Geometry(*(getattr(side, field.name)[:, view : view + 1] for field in fields(side)))

    names = ("conf", "non_ambiguous_mask_logits")
    prediction = Stacked({name: scene.prediction[name][:, view : view + 1] for name in names})
    batch = Stacked({"non_ambiguous_mask": scene.batch["non_ambiguous_mask"][:, view : view + 1]})
    masks = {name: getattr(scene, name)[:, view : view + 1] for name in ("valid", "labels", "synthetic")}
    return replace(scene, true=of(scene.true), pred=of(scene.pred), batch=batch, prediction=prediction, **masks)


# Checkpoints


def checkpoint(work: Path, rounds: int) -> Figure:
    """Random numbers as weights. Each side replaces its file of the round before."""
    parts = 16
    rng = torch.Generator().manual_seed(0)
    content = {"model": {str(n): torch.randn(CHECKPOINT_BYTES // 4 // parts, generator=rng) for n in range(parts)}}
    ours, theirs = work / checkpoints.LAST, work / "plain.pth"
    return compare(
        f"checkpoint, {CHECKPOINT_BYTES / 2**20:.0f} MiB",
        lambda: checkpoints.write(ours, content, keep_previous=True),
        "torch.save, neither flushed nor read back",
        lambda: torch.save(content, theirs),
        0.25,
        min(rounds, 5),
    )
