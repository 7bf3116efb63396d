"""A run: everything that training needs, built from its config, or put back as a checkpoint had it."""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from mapanything.datasets.sampler import BudgetSampler
from mapanything.environment import fingerprint
from mapanything.errors import InputError
from mapanything.train import batches, logs, stages, state
from mapanything.train.build import build
from mapanything.train.checkpoints import FORMAT, LAST, clean, find_resumable, read, write
from mapanything.train.distributed import Layout, Process, wrap
from mapanything.train.objective import build_objective, uses_bf16
from mapanything.train.optim import OptimConfig, make_optimizer
from mapanything.train.throughput import peak_flops

log = logging.getLogger(__name__)

# Settings that a resumed run may have otherwise and still compute the same bits.
HARMLESS = tuple(f"train_params.{name}:" for name in ("print_every", "save_every_minutes", "pictures", "validate"))


@dataclass(frozen=True)
class Params:
    """Entries of configs/train_params that are not the optimizer's (`OptimConfig`)."""

    epochs: int
    max_num_of_imgs_per_gpu: int
    clip_grad_norm: float | None
    amp: str | None
    compile: bool
    deterministic: bool
    seed: int
    print_every: int
    save_every_minutes: float
    validate: bool
    pictures: int

    def __post_init__(self) -> None:
        if self.amp not in (None, "bf16", "fp32"):
            raise InputError(f"train_params.amp={self.amp}: give bf16, fp32 or null")
        if self.max_num_of_imgs_per_gpu < 1 or self.print_every < 1 or self.seed < 0 or self.save_every_minutes < 0:
            raise InputError(
                "train_params: max_num_of_imgs_per_gpu and print_every are 1 or more, seed and save_every_minutes 0 or more"
            )


@dataclass
class Position:
    """The place that a run has reached; `sums` are those of the epoch that is not finished."""

    epoch: int = 0  # finished ones
    best: float = math.inf
    best_epoch: int = 0
    sums: dict[str, Any] = field(default_factory=dict)


class Run:
    """Built by every rank of a run together.

    Args:
        config: composed and resolved; its output_dir is there, and rank 0 holds the lock on it.

    Raises:
        InputError: anything that a person can put right.
    """

    def __init__(self, config: DictConfig, layout: Layout, process: Process) -> None:
        self.config, self.layout, self.process = config, layout, process
        self.folder = Path(config.output_dir).expanduser()
        self.params, self.optim = _read_params(config)
        self.position = Position()
        checkpoint = self._find_checkpoint()
        saved = read(checkpoint) if checkpoint is not None else None
        if saved is not None:
            stages.check_same_run(saved["identity"], config, self.folder)
        else:
            stages.check_start(config)
        self._set_backends()
        self.train_feed = self._feed("train", shuffle=True)
        self.validate_feed = self._feed("validate", shuffle=False) if self.params.validate else None
        feeds = {"train": self.train_feed, "validate": self.validate_feed}
        self.data = {part: batches.data_facts(feed.scenes) for part, feed in feeds.items() if feed is not None}
        self.module = self._build(checkpoint)
        self.optimizer = make_optimizer(self.model, self.optim)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.peak_flops = peak_flops(process.device)
        self._random: dict[str, Any] | None = None
        if saved is not None:
            assert checkpoint is not None
            self._restore(saved, checkpoint)
        if process.rank == 0:
            self._describe(saved)

    @property
    def epoch(self) -> float:
        """Fractional: finished scenes count."""
        sampler = self.train_feed.sampler
        if sampler.epoch != self.position.epoch or not sampler.steps_left:
            return float(self.position.epoch) + (sampler.epoch == self.position.epoch)
        return self.position.epoch + next(sampler.batches()).samples_before / sampler.num_samples

    # Building

    def _find_checkpoint(self) -> Path | None:
        """Rank 0 tidies the folder and chooses; all get the same answer, or the same error."""
        found: tuple[str | None, str | None] = (None, None)
        if self.process.rank == 0:
            try:
                found = self._choose(), None
            except InputError as error:
                found = None, str(error)
        name, problem = self.process.share(found)
        if problem is not None:
            raise InputError(problem)
        if name is None:
            return None
        if not (self.folder / name).exists():
            raise InputError(
                f"{self.folder / name}: is on rank 0's host but not on {os.uname().nodename}: output_dir has to be on a file "
                "system that all nodes share"
            )
        return self.folder / name

    def _choose(self) -> str | None:
        resume = self.config.resume
        if resume is False:
            aside = logs.put_aside(self.folder)
            if aside is not None:
                log.info("what was in %s is in %s now", self.folder, aside)
            return None
        path, notes = find_resumable(self.folder)
        for note in notes:
            log.warning("%s", note)
        if path is None and resume is True:
            raise InputError(f"{self.folder}: no {LAST} to resume; leave --resume (resume=true) away to start")
        removed = clean(self.folder)
        if removed:
            log.info("removed what a killed run left: %s", ", ".join(removed))
        return path.name if path is not None else None

    def _set_backends(self) -> None:
        deterministic = self.params.deterministic
        # No cudnn.benchmark: it makes no step faster that we measured, but tries every algorithm at every new number of views
        # (docs/benchmarks.md: up to 23 s, and 47 GB of workspaces where a step needs 18).
        torch.backends.cudnn.allow_tf32 = self.params.amp != "fp32"  # float32 that was asked for is float32
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic, warn_only=True)

    def _feed(self, part: str, shuffle: bool) -> batches.Feed:
        scenes = build(self.config.dataset[part], f"dataset.{part}")
        sampler = BudgetSampler(
            scenes,
            self.params.max_num_of_imgs_per_gpu,
            world_size=self.process.world_size,
            rank=self.process.rank,
            accumulation=self.layout.accumulation if shuffle else 1,
            seed=self.params.seed,
            shuffle=shuffle,
        )
        cuda = self.process.device.type == "cuda"
        return batches.Feed(scenes, sampler, int(self.config.machine.num_workers), pin=cuda, keep_workers=shuffle)

    def _build(self, checkpoint: Path | None) -> torch.nn.Module:
        state.seed_everything(self.params.seed)  # the same weights on all ranks
        amp, device = uses_bf16(self.params.amp, self.process.device.type), self.process.device
        weights: dict[str, str | None] = {} if checkpoint is None else {"pretrained": str(checkpoint)}
        objective, self.parameters = build_objective(
            self.config, self.optim, amp, compiled=self.params.compile, teacher_on=device, **weights
        )
        self.model = objective.model
        module = wrap(objective, self.layout, self.process)
        state.seed_everything(self.params.seed + 1 + self.process.rank)  # other draws on each
        return module

    # Saving and restoring

    def _restore(self, saved: dict[str, Any], checkpoint: Path) -> None:
        if saved["data"]["train"]["scenes_sha256"] != self.data["train"]["scenes_sha256"]:
            raise InputError(
                f"{self.folder} holds a run on other scenes ({saved['data']['train']['scenes']} in "
                f"{saved['data']['train']['root']}, now {self.data['train']['scenes']} in {self.data['train']['root']}): give "
                "another output_dir, the same data, or resume=false (./invoke train --fresh)"
            )
        fresh = state.load_optimizer(self.model, self.optimizer, saved["optimizer"])
        self.train_feed.sampler.load_state_dict(saved["sampler"])
        self.position = Position(**saved["position"])
        configs = (saved["config"], stages.plain(self.config))
        before, now = (stages.flatten({"train_params": config["train_params"]}) for config in configs)
        notes = [note for note in stages.differences(before, now) if not note.startswith(HARMLESS)]
        notes += stages.differences(saved["layout"], self._layout())
        if saved["data"]["train"].get("depth", self.data["train"]["depth"]) != self.data["train"]["depth"]:
            notes.append("the depth maps")
        if saved["fingerprint"]["code_sha256"] != fingerprint()["code_sha256"]:
            notes.append("the code")
        if fresh and any(saved["optimizer"].values()):  # none before the first step
            notes.append(f"{fresh} parameters learn now that did not before")
        if saved["layout"]["world_size"] == self.process.world_size:
            self._random = saved["random"][self.process.rank]
        log.info("resuming %s at epoch %.3f", checkpoint, self.epoch)
        if notes:
            log.info("not as it was, so not the same bits: %s", "; ".join(dict.fromkeys(notes)))

    def restore_random_state(self) -> None:
        """Puts the random generators where the checkpoint had them, or where a fresh start with this seed has them."""
        if self._random is not None:
            state.set_random_state(self._random, self.process.device)
        else:
            done = round(1000 * self.epoch)
            state.seed_everything(self.params.seed + 1 + self.process.rank + 1_000_003 * done)

    def save(self, sums: Any) -> float:
        """Writes checkpoint-last; a collective call. Seconds it took.

        Raises:
            InputError: it could not be written; on all ranks.
        """
        start = time.perf_counter()
        writer = self.process.rank == 0
        self.position.sums = sums.as_dict()
        content = {  # the model first: FSDP has its parameters divided again afterwards
            "model": state.model_state(self.model, writer),
            "optimizer": state.optimizer_state(self.model, self.optimizer, writer),
            "random": state.gather_random_states(self.process),
        }
        if writer:
            content |= self._about() | {
                "sampler": self.train_feed.sampler.state_dict(),
                "position": asdict(self.position),
                "identity": stages.identity(self.config),
                "config": stages.plain(self.config),
                "layout": self._layout(),
                "data": self.data,
            }
        self._written(lambda: write(self.folder / LAST, content, keep_previous=True))
        return time.perf_counter() - start

    def write_weights(self, name: str) -> None:
        """Writes a file of weights alone; a collective call."""
        content: dict[str, Any] = {"model": state.model_state(self.model, self.process.rank == 0)}
        content |= self._about() | {"epoch": self.position.epoch, "validate_loss": self.position.best}
        self._written(lambda: write(self.folder / name, content))

    def save_picture(self, pixels: np.ndarray, name: str) -> None:
        """Writes pixels (H, W, 3) uint8 as a PNG into the run's pictures."""
        from PIL import Image

        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name)

    def _layout(self) -> dict[str, Any]:
        """The settings that decide in which order sums over scenes are made."""
        accumulation, strategy = self.layout.accumulation, self.layout.strategy
        return {"world_size": self.process.world_size, "accumulation": accumulation, "strategy": strategy}

    def _about(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model_config": self.model.config.to_dict(),
            "stage": stages.stage_of(self.config),
            "fingerprint": dict(fingerprint()),
        }

    def _written(self, action: Callable[[], object]) -> None:
        problem = None
        if self.process.rank == 0:
            try:
                action()
            except InputError as error:
                problem = str(error)
        problem = self.process.share(problem)
        if problem is not None:
            raise InputError(problem)

    def _describe(self, saved: dict[str, Any] | None) -> None:
        """Manifest, config and the first lines of the log."""
        cuda = self.process.device.type == "cuda"
        gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if cuda else []
        manifest = {
            "stage": stages.stage_of(self.config),
            "command": shlex.join(["python", "-m", "mapanything.train.training", *sys.argv[1:]]),
            "resumed_at_epoch": self.epoch if saved is not None else None,
            "environment": dict(fingerprint()),
            "torch": torch.__version__,
            "gpus": gpus,
            "world_size": self.process.world_size,
            "accumulation": self.layout.accumulation,
            "data": self.data,
        }
        logs.write_manifest(self.folder, self.config, manifest)
        logs.forget_epochs(self.folder, self.position.epoch)
        status = {"stage": manifest["stage"], "epoch": self.epoch, "epochs": self.params.epochs}
        logs.write_status(self.folder, state="running", reason=None, **status)
        counts = ", ".join(f"{count / 1e6:.3g} M {kind}" for kind, count in self.parameters.items() if count)
        sampler = self.train_feed.sampler
        scenes = f"{len(self.train_feed.scenes)} scenes ({sampler.min_views.min()} to {sampler.max_views.max()} views)"
        validation = len(self.validate_feed.scenes) if self.validate_feed is not None else 0
        processes = f"{self.process.world_size} {'GPUs' if cuda else 'CPU processes'} × {sampler.budget} images"
        steps = f"{processes}, {self.layout.accumulation} batches each per step"
        place = f"stage {manifest['stage']} into {self.folder}"
        log.info("%s: %s, %d in validation; %s; parameters: %s", place, scenes, validation, steps, counts)
        log.info("depth labels: %s", self.train_feed.scenes.depth_kind or "of a kind that nobody knows")
        if self.layout.note:
            log.info("%s", self.layout.note)


def _read_params(config: DictConfig) -> tuple[Params, OptimConfig]:
    values = stages.plain(config)["train_params"]
    own = {f.name for f in fields(Params)}
    known = own | {f.name for f in fields(OptimConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"train_params.{unknown[0]}: no such entry; there are {', '.join(sorted(known))}")
    try:
        return Params(**{k: values[k] for k in own}), OptimConfig.of(values)
    except (TypeError, KeyError) as error:
        raise InputError(f"train_params: a number is missing or no number ({error})") from error
