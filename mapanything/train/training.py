"""Trains the network:

    python -m mapanything.train.training [GROUP=NAME] [KEY=VALUE] ...      e.g. stage=stage1 machine=local3090

composes configs/train.yaml with Hydra's overrides. With distributed.world_size > 1 it starts its own processes; under torchrun
it joins. `--cfg` prints the config and does nothing.

Exit code: 0 trained to the end, 1 training failed (console.log of the run says why), 2 bad input, 128 + n after signal n:
saved, and the same command resumes.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mapanything.errors import InputError, run_command
from mapanything.files import DISK_ERRORS, Lock
from mapanything.train import logs
from mapanything.train.batches import end_loaders, lost_loader
from mapanything.train.checkpoints import FINAL, LAST, PREVIOUS
from mapanything.train.distributed import Layout, Process, depart, join, lay_out, under_launcher
from mapanything.train.loop import Trainer
from mapanything.train.meter import TrainingError
from mapanything.train.run import Run
from mapanything.train.stages import check_start, compose_config
from mapanything.train.watch import Stop, Watch, leave

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mapanything.train.training",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="groups: machine, dataset, model, loss, train_params, distributed, stage (the folders of configs/)",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")
    parser.add_argument("--cfg", action="store_true", help="print the composed config and leave")
    options = parser.parse_args(arguments)
    # Numbers of views come and go, and with them sizes of blocks: without this a card of 24 GB fills up with gaps.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    config = compose_config(options.overrides)
    if options.cfg:
        print(OmegaConf.to_yaml(config, resolve=True), end="")
        return 0
    layout = lay_out(config.distributed)
    if not under_launcher():
        check(config)
    if under_launcher() or layout.world_size == 1:
        return work(config, layout)
    from mapanything.train.launch import launch

    return launch(layout, options.overrides)


def check(config: DictConfig) -> None:
    """Checks what can be known before any process is started; each checks it again for itself.

    Raises:
        InputError: see `Run`.
    """
    folder = Path(config.output_dir).expanduser()
    if config.resume is False or not any((folder / name).exists() for name in (LAST, PREVIOUS)):
        check_start(config)
    logs.make_folder(folder)
    Lock(folder, "output_dir", logs.LOCK).release()


def work(config: DictConfig, layout: Layout) -> int:
    """This process's part of a run; its exit code."""
    with Stop() as stop:
        process = join(layout)
        folder = Path(config.output_dir).expanduser()
        logs.make_folder(folder)
        lock = None
        watch = Watch(process, stop)
        watch.start()
        with warnings.catch_warnings():
            if process.rank:
                warnings.simplefilter("ignore")  # rank 0 says the same
            # Of a 1x1 kernel's weight, whose two last strides mean nothing: DDP takes any other number for another layout.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            try:
                problem = None
                if process.rank == 0:
                    try:
                        lock = Lock(folder, "output_dir", logs.LOCK)
                    except InputError as error:
                        problem = str(error)
                problem = process.share(problem)
                if problem is not None:
                    raise InputError(problem)
                with logs.Console(folder, process.rank):
                    return _train(config, layout, process, stop, watch)
            finally:
                if lock is not None:
                    lock.release()


def _train(config: DictConfig, layout: Layout, process: Process, stop: Stop, watch: Watch) -> int:
    try:
        run = Run(config, layout, process)
        code = 0
        if run.position.epoch >= run.params.epochs and (run.folder / FINAL).exists():
            log.info("%s: all %d epochs are done; give more train_params.epochs, or --fresh", run.folder, run.params.epochs)
            logs.write_status(run.folder, state="finished")
        else:
            try:
                code = Trainer(run, stop, watch).train()
            finally:
                end_loaders()
        watch.finish()
        depart(process)
        return code
    except BaseException as error:
        return _fail(error, config, process, watch)


def _fail(error: BaseException, config: DictConfig, process: Process, watch: Watch) -> int:
    """Says why, in one place, and sees to it that the other ranks end too."""
    lost = lost_loader(error)
    refused = isinstance(error, OSError) and error.errno in DISK_ERRORS
    known = isinstance(error, (InputError, TrainingError)) or lost is not None or refused
    reason = lost or (str(error) if known else f"{type(error).__name__}: {error}")
    code = 2 if isinstance(error, InputError) or refused else 1
    first = watch.fail(" ".join(reason.split()), code)
    if first is not None and first.reason.partition(": ")[2] != " ".join(reason.split()):
        leave(f"rank {process.rank} ends, because {first.reason}", first.code, logging.WARNING)
    # A problem that all ranks see (a full disk) is said by the first of them.
    if first is None:
        log.error("%s%s", reason, "" if known else "\n" + "".join(traceback.format_exception(error)).rstrip())
        folder = Path(config.output_dir).expanduser()
        logs.write_status(folder, state="failed", reason=" ".join(reason.split()))
    if process.control is not None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the groups' threads may wait for ranks that are gone
    return code


if __name__ == "__main__":
    run_command(main)
