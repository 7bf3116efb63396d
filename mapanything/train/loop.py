"""The training loop: steps, validation after every epoch, and a checkpoint whenever there is something to lose.

A step: every rank fetches its batches, all agree whether to go on (a signal, a broken file, a checkpoint that is due), then
forward, backward, update. Saves happen between steps only, where the state is one that all ranks share; so a resumed run
does exactly what an undisturbed one would have done.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from mapanything.datasets.sampler import Batch
from mapanything.errors import InputError
from mapanything.train import logs
from mapanything.train.batches import Feed, Views, scene_names
from mapanything.train.checkpoints import BEST, FINAL, PREVIOUS
from mapanything.train.distributed import bare, without_sync
from mapanything.train.losses import SparseNotice
from mapanything.train.meter import Meter, Sums, TrainingError
from mapanything.train.objective import Objective, to_device
from mapanything.train.optim import set_rates
from mapanything.train.run import Run
from mapanything.train.throughput import training_flops
from mapanything.train.watch import Stop, Watch

log = logging.getLogger(__name__)

Step = tuple[list[Batch], list[Views | InputError | None]]


class Trainer:
    """Trains a `Run` to its end, or to a signal."""

    def __init__(self, run: Run, stop: Stop, watch: Watch) -> None:
        self.run, self.stop, self.watch = run, stop, watch
        self.meter = Meter()
        self.meter.sums = Sums(**run.position.sums)
        if run.process.rank:
            self.meter.sums.forget_shares()  # they are all ranks', and rank 0 has them
        self.curves = logs.Curves(run.folder, run.epoch) if run.process.rank == 0 else None
        self.notice = SparseNotice()
        self.saved = time.monotonic()

    def train(self) -> int:
        """0 when all epochs are done; 128 + number of the signal that asked to stop."""
        run = self.run
        (self.stop.signum,) = run.process.agree(self.stop.signum)
        if self.stop.signum:  # while everything was loaded: there is nothing new to save
            return self._stopped()
        self._rehearse()
        while run.position.epoch < run.params.epochs:
            if not (self._epoch() and self._validate()):
                return self._stopped()
        run.write_weights(FINAL)
        if run.process.rank == 0:
            (run.folder / PREVIOUS).unlink(missing_ok=True)  # the final weights are proven now
            logs.write_status(run.folder, state="finished", epoch=float(run.position.epoch))
            log.info("finished: %s", run.folder / FINAL)
        self._close()
        return 0

    def _rehearse(self) -> None:
        """Forward and backward of the largest batch there can be, before anything counts.

        What does not fit into memory is known at once. And DDP settles the order in which it adds up gradients in its first
        pass: after this one, the first step of a resumed run adds up as it would have in the middle of a run.
        """
        run = self.run
        views = to_device(run.train_feed.largest(), run.process.device)
        batch, count = views[0]["img"].shape[0], len(views)
        try:
            with without_sync(run.module, last=True):
                run.module(views)[0].backward()
        except torch.OutOfMemoryError as error:
            raise out_of_memory(batch, count, error) from error
        run.optimizer.zero_grad(set_to_none=True)
        if run.process.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(run.process.device) / 1e9
            log.info("largest batch (%d × %d views) takes %.1f GB, the optimizer's state comes on top", batch, count, peak)
        run.restore_random_state()

    # An epoch

    def _epoch(self) -> bool:
        """Trains for the rest of this epoch; False: asked to stop."""
        run, sampler = self.run, self.run.train_feed.sampler
        sampler.set_epoch(run.position.epoch)
        run.train_feed.scenes.set_epoch(run.position.epoch)
        run.module.train()
        clock = time.perf_counter()
        waited = run.train_feed.waited_s
        steps = self._steps(run.train_feed)
        for batches, parts in steps:
            if not self._may_go_on(parts):
                steps.close()
                return False
            norm, flops = self._step(batches, parts)
            sampler.finish_step()
            now, waited_now = time.perf_counter(), run.train_feed.waited_s
            self.meter.add_step(norm, now - clock, waited_now - waited, flops)
            clock, waited = now, waited_now
            self.watch.alive()
            if self.meter.sums.steps % run.params.print_every == 0:
                self._report()
        self._check_numbers()
        return True

    def _steps(self, feed: Feed) -> Generator[Step, None, None]:
        batches: list[Batch] = []
        parts: list[Views | InputError | None] = []
        for batch, views in feed.batches(self._asked_to_stop):
            batches.append(batch)
            parts.append(views)
            if batch.last or views is None:
                yield batches, parts
                batches, parts = [], []

    def _asked_to_stop(self) -> bool:
        return self.stop.signum != 0

    def _may_go_on(self, parts: list[Views | InputError | None]) -> bool:
        """Agrees with all ranks before a step; saves where a checkpoint is due. False: asked to stop, and saved."""
        run = self.run
        error = next((part for part in parts if isinstance(part, InputError)), None)
        due = time.monotonic() - self.saved > 60 * run.params.save_every_minutes
        stop, due_somewhere, broken = run.process.agree(self.stop.signum, int(due), int(error is not None))
        self.stop.signum = stop
        if stop or due_somewhere or broken:
            self._save()
        if error is not None:
            raise error
        if broken:
            self._wait_for_the_culprit()
        return not stop

    def _step(self, batches: list[Batch], parts: list[Any]) -> tuple[Tensor, float]:
        """One update of the weights; the gradient's norm on the device, and the FLOPs that were needed."""
        run = self.run
        set_rates(
            run.optimizer, run.optim, run.position.epoch + batches[0].samples_before / run.train_feed.sampler.num_samples
        )
        flops = 0.0
        for batch, part in zip(batches, parts, strict=True):
            views = to_device(part, run.process.device)
            try:
                with without_sync(run.module, batch.last):
                    loss, terms, _ = run.module(views)
                    (loss * (batch.weight / len(batches))).backward()
            except torch.OutOfMemoryError as error:
                raise out_of_memory(len(batch.items), batch.num_views, error) from error
            what = f"epoch {run.position.epoch + 1}, {scene_names(run.train_feed.scenes, batch)} with {batch.num_views} views"
            self.meter.add_batch(loss, terms, batch.num_samples, batch.num_views, what)
            if run.peak_flops:
                flops += len(batch.items) * training_flops(run.model.config, batch.num_views, run.train_feed.scenes.resolution)
        clip = run.params.clip_grad_norm
        norm = clip_grad_norm_(run.trained, math.inf if clip is None else clip)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm, flops

    # Numbers

    def _check_numbers(self) -> None:
        """Reads the device; all ranks together. Raises where a loss or gradient is no number."""
        bad, bad_gradient = self.meter.read()
        any_bad, any_gradient = self.run.process.agree(int(bad is not None), int(bad_gradient))
        if bad is not None:
            raise TrainingError(
                f"the loss is not finite ({bad}); the last checkpoint is from before. A lower train_params.lr may help, or a "
                "look at the pictures of the last validation"
            )
        if any_bad:
            self._wait_for_the_culprit()
        if any_gradient:
            raise TrainingError(
                f"the gradient is not finite (epoch {self.run.epoch:.2f}); the last checkpoint is from before. Try a lower "
                "train_params.lr, or train_params.amp=fp32"
            )

    def _wait_for_the_culprit(self) -> NoReturn:
        """Waits for the rank that is about to say why it ends: its end ends this one."""
        time.sleep(60)
        raise TrainingError("another rank has failed without saying why")

    def _report(self) -> None:
        self._check_numbers()
        run, sums = self.run, self.meter.sums
        if self.curves is None:
            return
        recent = self.meter.recent
        self.notice(recent)
        recent = {name: value for name, value in recent.items() if not name.endswith("_usable")}
        speed = self._speed(sums)
        rate = max(group["lr"] for group in run.optimizer.param_groups)
        terms = " ".join(f"{name} {value:.3g}" for name, value in recent.items() if name not in ("loss", "gradient_norm"))
        steps_left = run.train_feed.sampler.steps_left
        left = logs.duration(steps_left * sums.seconds / max(1, sums.steps))
        place = f"epoch {run.position.epoch + 1}/{run.params.epochs}  step {sums.steps}/{sums.steps + steps_left}"
        learning = f"loss {recent['loss']:.4g}  ({terms})  lr {rate:.2g}  gradient {recent['gradient_norm']:.3g}"
        log.info("%s  %s  %s  %s left of the epoch", place, learning, self._speed_in_words(speed), left)
        self.curves.scalars("train", recent | {"lr": rate}, run.epoch)
        self.curves.scalars("speed", speed, run.epoch)
        logs.write_status(run.folder, state="running", epoch=run.epoch, epochs=run.params.epochs)

    def _speed(self, sums: Sums) -> dict[str, float]:
        run, seconds = self.run, max(sums.seconds, 1e-9)
        steps = max(sums.steps, 1)
        # Views are counted on this rank; the others have as many, up to one scene a step.
        speed = {
            "step_seconds": seconds / steps,
            "data_seconds": sums.waited / steps,
            "views_per_second": sums.views * run.process.world_size / seconds,
        }
        if run.process.device.type == "cuda":
            speed["peak_gb"] = torch.cuda.max_memory_allocated(run.process.device) / 1e9
        if run.peak_flops and sums.flops:
            speed["mfu"] = sums.flops / seconds / run.peak_flops
        return speed

    @staticmethod
    def _speed_in_words(speed: dict[str, float]) -> str:
        words = (
            f"{speed['step_seconds']:.3g} s/step (data {speed['data_seconds']:.2g})  {speed['views_per_second']:.1f} views/s"
        )
        words += f"  {speed['peak_gb']:.1f} GB" if "peak_gb" in speed else ""
        return words + (f"  MFU {100 * speed['mfu']:.0f} %" if "mfu" in speed else "")

    # The end of an epoch

    def _validate(self) -> bool:
        """Validation, log line, best and last checkpoint; False: asked to stop, and saved as before validation."""
        run = self.run
        result: dict[str, float] = {}
        if run.validate_feed is not None:
            start = time.perf_counter()
            found = self._validation_losses(run.validate_feed)
            if found is None:
                return False
            result = {f"validate_{name}": value for name, value in found.items()}
            result["validate_seconds"] = time.perf_counter() - start
        epoch = run.position.epoch = run.position.epoch + 1
        joined = self.meter.sums.joined(run.process.total)
        loss = result.get("validate_loss")
        best = loss is None or not math.isfinite(best_before := run.position.best) or loss < best_before
        if best:
            run.position.best = math.inf if loss is None else loss
            run.position.best_epoch = epoch
            run.write_weights(BEST)
        if run.process.rank == 0:
            self._log_epoch(epoch, joined, result, best)
        self.meter.sums = Sums()
        self._save()
        return True

    def _log_epoch(self, epoch: int, sums: Sums, result: dict[str, float], best: bool) -> None:
        run = self.run
        means = {f"train_{name}": value for name, value in sums.means().items()}
        speed = self._speed(self.meter.sums)
        speed["views_per_second"] = sums.views / max(sums.seconds, 1e-9)
        entry: dict[str, Any] = {"epoch": epoch, "steps": sums.steps, "scenes": round(sums.scenes), "seconds": sums.seconds}
        entry |= {"lr": max(group["lr"] for group in run.optimizer.param_groups), "world_size": run.process.world_size}
        entry |= means | result | {"best": best} | speed
        logs.forget_epochs(run.folder, epoch - 1)
        logs.append_log(run.folder, entry)
        if self.curves is not None:
            self.curves.scalars("epoch", {k: float(v) for k, v in (means | result).items()}, epoch)
        losses = f"loss {means.get('train_loss', math.nan):.4g}"
        losses += f", validation {result['validate_loss']:.4g}" if "validate_loss" in result else ""
        losses += " (best)" if best and result else ""
        took = logs.duration(sums.seconds)
        log.info("epoch %d/%d done in %s: %s  %s", epoch, run.params.epochs, took, losses, self._speed_in_words(speed))
        status = {"epoch": float(epoch), "epochs": run.params.epochs, "best_epoch": run.position.best_epoch}
        best_loss = run.position.best if math.isfinite(run.position.best) else None
        logs.write_status(run.folder, state="running", best=best_loss, **status)

    def _validation_losses(self, feed: Feed) -> dict[str, float] | None:
        """Mean loss and terms over all validation scenes; None: asked to stop, and saved.

        Draws no random number of training's.
        """
        run, device = self.run, self.run.process.device
        objective = bare(run.module)
        assert isinstance(objective, Objective)
        run.module.eval()
        meter, drawn, error, stop, broken = Meter(), 0, None, 0, 0
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(run.params.seed)
            for batch, part in feed.batches(self._asked_to_stop):
                error = part if isinstance(part, InputError) else None
                stop, broken = run.process.agree(self.stop.signum, int(error is not None))
                if stop or broken or not isinstance(part, list):  # what has not come at all was asked to stop
                    break
                views = to_device(part, device)
                loss, terms, outputs = objective(views, "validate")
                meter.add_batch(loss, terms, batch.num_samples, batch.num_views, "validation")
                if self.curves is not None:
                    for sample in range(min(batch.num_samples, run.params.pictures - drawn)):
                        self._draw(views, outputs, sample, drawn)
                        drawn += 1
                self.watch.alive()
        if stop or broken:  # saved out here: with training's random numbers
            self.stop.signum = stop
            self._save()
            if stop:
                return None
            if error is not None:
                raise error
            self._wait_for_the_culprit()
        meter.read()
        return {k: v for k, v in meter.sums.joined(run.process.total).means().items() if not k.endswith("_usable")}

    def _draw(self, views: Views, outputs: Any, sample: int, number: int) -> None:
        from mapanything.train.previews import draw

        epoch = self.run.position.epoch + 1
        picture = draw(views, outputs, sample)
        assert self.curves is not None
        self.curves.image(f"validation/{number}", picture, epoch)
        logs.attempt(lambda: self.run.save_picture(picture, f"epoch{epoch:03d}_{number}.png"), "picture")

    # Saving

    def _save(self) -> None:
        self._check_numbers()  # never a poisoned state
        self.watch.busy = True
        seconds = self.run.save(self.meter.sums.joined(self.run.process.total))
        self.watch.busy = False
        self.watch.alive()
        self.saved = time.monotonic()
        log.info("saved epoch %.3f in %.1f s", self.run.epoch, seconds)

    def _stopped(self) -> int:
        if self.run.process.rank == 0:
            logs.write_status(self.run.folder, state="stopped", epoch=self.run.epoch)
            log.info("stopped by signal %d at epoch %.3f; the same command resumes", self.stop.signum, self.run.epoch)
        self._close()
        return 128 + self.stop.signum

    def _close(self) -> None:
        if self.curves is not None:
            self.curves.close()


def out_of_memory(batch: int, views: int, error: BaseException) -> TrainingError:
    """The error that says what to set for less memory."""
    return TrainingError(
        f"out of GPU memory with {batch} × {views} views ({str(error).split('.')[0]}): lower "
        "train_params.max_num_of_imgs_per_gpu or dataset.num_views, or set model.encoder.gradient_checkpointing=true "
        "model.multiview.gradient_checkpointing=true model.heads.gradient_checkpointing=true"
    )
