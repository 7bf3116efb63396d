"""A run from start to end: it learns, its folder holds what it should, and what goes wrong is one clear line."""

from __future__ import annotations

import errno
import json
import os
import signal

import numpy as np
import pytest
import torch

from mapanything.errors import InputError
from mapanything.files import Lock, is_locked
from mapanything.models.mapanything import MapAnything
from mapanything.train import checkpoints, logs, runs, training
from mapanything.train.loop import Trainer
from mapanything.train.stages import compose_config
from mapanything.train.watch import Stop
from tests.helpers.process_table import children
from tests.helpers.training_runs import log_of, same, settings, start, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_learns_and_writes_its_folder(tmp_path, data, capsys):
    out = tmp_path / "runs" / "one"
    arguments = settings(out, data, "train_params.epochs=6", "train_params.lr=3e-3", "train_params.pictures=1")
    assert training.main(arguments) == 0
    entries = log_of(out)
    assert [entry["epoch"] for entry in entries] == list(range(1, 7))
    assert entries[-1]["train_loss"] < 0.8 * entries[0]["train_loss"]
    assert entries[-1]["validate_loss"] < 0.9 * entries[0]["validate_loss"]
    for name in ("data_seconds", "step_seconds", "views_per_second", "lr", "scenes", "steps", "train_pts3d", "validate_mask"):
        assert name in entries[0], name
    assert entries[0]["scenes"] == 4
    best = min(entries, key=lambda entry: entry["validate_loss"])
    assert torch.load(out / checkpoints.BEST, weights_only=True)["epoch"] == best["epoch"]
    assert same(out / checkpoints.LAST, out / checkpoints.FINAL) and not (out / checkpoints.PREVIOUS).exists()
    network = MapAnything.from_pretrained(out / checkpoints.BEST)
    assert network.config.encoder.dim == 24 and "dense_head.0.scratch.layer_rn.0.weight" in weights(out / checkpoints.BEST)
    console = (out / "console.log").read_text()
    assert "epoch 6/6 done" in console and console.count("step 1/4") == 6 and console.split()[-1].endswith(checkpoints.FINAL)
    assert "step 1/4" in capsys.readouterr().out
    assert (out / "pictures" / "epoch006_0.png").stat().st_size > 1000
    assert list(out.glob("events.out.tfevents*"))
    manifest = json.loads((out / "manifest.json").read_text())["starts"]
    assert len(manifest) == 1 and manifest[0]["stage"] == 1 and manifest[0]["data"]["train"]["scenes"] == 4
    assert manifest[0]["data"]["train"]["depth"]["source"] == "rendered"
    assert len(manifest[0]["environment"]["code_sha256"]) == 64
    assert compose_config([]).keys() >= {"dataset"} and "max_num_of_imgs_per_gpu: 4" in (out / "config.yaml").read_text()
    (found,) = runs.find_runs(tmp_path / "runs")
    assert found["run"] == "one" and found["state"] == "finished" and found["epoch"] == 6
    assert found["best"] == best["validate_loss"] and found["best_epoch"] == best["epoch"]


def test_finished_run_is_not_run_again_and_more_epochs_go_on(tmp_path, data, capsys):
    out = tmp_path / "run"
    assert training.main(settings(out, data, "train_params.epochs=1")) == 0
    before = (out / checkpoints.FINAL).stat().st_mtime_ns
    assert training.main(settings(out, data, "train_params.epochs=1")) == 0
    assert (out / checkpoints.FINAL).stat().st_mtime_ns == before and "all 1 epochs are done" in capsys.readouterr().out
    assert training.main(settings(out, data, "train_params.epochs=2")) == 0
    assert [entry["epoch"] for entry in log_of(out)] == [1, 2]
    assert "train_params.epochs: 1 -> 2" in capsys.readouterr().out


def test_fresh_puts_the_old_run_aside(tmp_path, data):
    out = tmp_path / "run"
    for _ in range(3):
        assert training.main(settings(out, data, "train_params.epochs=1", "resume=false")) == 0
    assert sorted(p.name for p in out.glob("previous-*")) == ["previous-1", "previous-2"]
    assert same(out / checkpoints.FINAL, out / "previous-1" / checkpoints.FINAL)
    assert len(log_of(out)) == 1 == len(log_of(out / "previous-2"))
    assert [run["run"] for run in runs.find_runs(out)] == [".", "previous-1", "previous-2"]


def test_all_parts_of_the_chain(tmp_path, data):
    """Stages 1, 2 and 3 as the task runs them, each from the one before."""
    small = [value for value in settings(tmp_path, data) if not value.startswith("output_dir")]
    common = [*small, f"machine.root_experiments_dir={tmp_path}", "train_params.epochs=1", "distributed.world_size=1"]
    with pytest.raises(InputError, match=r"run `./invoke train --stage 1` first"):
        training.main(["stage=stage2", *common])
    assert not list(tmp_path.iterdir())
    assert training.main(["stage=stage1", *common, "model.pretrained=null"]) == 0
    assert training.main(["stage=stage2", *common]) == 0
    assert training.main(["stage=stage3", *common]) == 0
    found = {run["run"]: run for run in runs.find_runs(tmp_path)}
    assert {name: run["stage"] for name, run in found.items()} == {
        "opv2v_ft_stage1": 1,
        "opv2v_coop_stage2_full": 2,
        "opv2v_coop_stage3_varviews": 3,
    }
    console = (tmp_path / "opv2v_coop_stage3_varviews" / "console.log").read_text()
    assert "opv2v_coop_stage2_full/checkpoint-best.pth" in console and "(4 to 8 views)" in console


def test_learns_from_a_teacher(tmp_path, data, undisturbed, capfd):
    arguments = settings(tmp_path, data, "+loss/option=distillation", "train_params.epochs=1")
    assert training.main(arguments) == 2 and "give teacher=CHECKPOINT" in capfd.readouterr().err
    teacher = undisturbed / checkpoints.BEST
    assert training.main([*arguments, f"teacher={teacher}"]) == 0
    plain = {name for entry in log_of(undisturbed) for name in entry}
    assert {name for name in log_of(tmp_path)[0] if name.startswith("train_")} - plain
    assert weights(tmp_path / checkpoints.FINAL).keys() == weights(teacher).keys()


# What goes wrong


def test_loss_that_is_no_number(tmp_path, data, capfd):
    out = tmp_path / "run"
    arguments = settings(
        out, data, "train_params.lr=1e30", "train_params.clip_grad_norm=null", "train_params.warmup_fraction=0"
    )
    assert training.main(arguments) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "is not finite" in error and "Traceback" not in error
    assert "is not finite" in (out / "console.log").read_text()
    (run,) = runs.find_runs(tmp_path)
    assert run["state"] == "failed" and "is not finite" in run["reason"]
    for path in out.glob("checkpoint-*.pth"):
        assert all(torch.isfinite(tensor).all() for tensor in weights(path).values())


@pytest.mark.faults
def test_broken_file_of_the_data_set(tmp_path, sample_root, sample_depth_root, undisturbed, capfd, monkeypatch):
    for folder in (sample_root, sample_depth_root):
        (folder / ".tests-only").unlink(missing_ok=True)
    (tmp_path / "sample" / ".tests-only").unlink(missing_ok=True)
    out, data = tmp_path / "run", (sample_root, sample_depth_root)
    # From the first step on a file is broken; repaired, the run ends as if nothing had been.
    victim = sorted((sample_depth_root / "train").rglob("*_depth.npy"))[5]
    content, step = victim.read_bytes(), Trainer._step

    def break_it(self, *arguments):
        if self.run.position.epoch == 0:
            victim.write_bytes(content[:100])
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", break_it)
    capfd.readouterr()
    assert training.main(settings(out, data)) == 2
    error = capfd.readouterr().err
    assert str(victim) in error and error.count("\n") == 1
    monkeypatch.undo()
    victim.write_bytes(content)
    assert checkpoints.find_damage(out / checkpoints.LAST) is None
    assert training.main(settings(out, data)) == 0
    assert same(out / checkpoints.FINAL, undisturbed / checkpoints.FINAL)


@pytest.mark.faults
def test_full_disk_while_training(tmp_path, data, undisturbed, capfd, monkeypatch):
    out = tmp_path / "run"
    write = checkpoints._Destination.write

    def full(self, block):
        if (out / checkpoints.LAST).exists():
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.error
        return write(self, block)

    monkeypatch.setattr(checkpoints._Destination, "write", full)
    assert training.main(settings(out, data)) == 2
    error = capfd.readouterr().err
    assert "No space left on device" in error and f"{checkpoints.LAST} is whole" in error and "Traceback" not in error
    monkeypatch.undo()
    assert training.main(settings(out, data)) == 0
    assert same(out / checkpoints.FINAL, undisturbed / checkpoints.FINAL)


@pytest.mark.faults
def test_folder_that_cannot_be_written(tmp_path, data):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be made"):
        training.main(settings(tmp_path / "file" / "run", data))


@pytest.mark.faults
def test_second_run_in_one_folder(tmp_path, data):
    lock = Lock(tmp_path, "output_dir", logs.LOCK)
    assert is_locked(tmp_path, logs.LOCK)
    with pytest.raises(InputError, match=rf"another run is writing here \(process {os.getpid()} on"):
        training.main(settings(tmp_path, data))
    lock.release()
    assert not is_locked(tmp_path, logs.LOCK)
    assert not list(tmp_path.glob("checkpoint*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train_params.amp=fp16", "amp=fp16"),
        ("+train_params.foo=1", "train_params.foo: no such entry"),
        ("train_params.lr=fast", "no number"),
        ("model.encoder.num_heads=7", "no multiple"),
        ("+model.encoder.foo=7", "encoder.foo"),
        ("dataset.resolution=[40,40]", "multiples of 14"),
        ("resume=true", "to resume"),
        ("+dataset.train.nonsense=1", "nonsense"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, data, capfd, change, message):
    assert training.main(settings(tmp_path, data, change)) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1


def test_error_of_ours_keeps_its_traceback(tmp_path, data, capfd, monkeypatch):
    monkeypatch.setattr(Trainer, "_step", lambda *_: 1 / 0)
    assert training.main(settings(tmp_path, data)) == 1
    assert "Traceback" in (error := capfd.readouterr().err) and "ZeroDivisionError" in error


def test_config_is_shown(capsys):
    assert training.main(["--cfg", "stage=stage3"]) == 0
    assert "coop_max_num_views: null" in capsys.readouterr().out


# Signals


@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals_save_and_leave(tmp_path, data, number, code, monkeypatch):
    step = Trainer._step

    def signalled(self, *arguments):
        if self.meter.sums.steps == 2:
            os.kill(os.getpid(), number)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", signalled)
    before = signal.getsignal(number)
    assert training.main(settings(tmp_path, data)) == code
    assert signal.getsignal(number) == before
    saved = torch.load(tmp_path / checkpoints.LAST, weights_only=True)
    assert saved["position"]["epoch"] == 0 and saved["sampler"]["done"][-1][-1] == 3
    assert runs.describe(tmp_path, "x")["state"] == "stopped"


@pytest.mark.faults
def test_loader_processes_leave_signals_to_training(tmp_path, data):
    """A signal to the whole process group (Ctrl-C, a scheduler) must not take the loaders away before the state is saved."""
    process = start(settings(tmp_path, data, "machine.num_workers=2", "train_params.epochs=100"))
    assert process.stdout is not None
    for line in process.stdout:
        if "step 3/4" in line:
            break
    loaders = children(process.pid)
    assert len(loaders) >= 2
    for pid in [process.pid, *loaders]:
        os.kill(pid, signal.SIGTERM)
    output = process.stdout.read()
    assert process.wait(60) == 143, output
    assert "Traceback" not in output and (tmp_path / checkpoints.LAST).exists()


def test_stop_keeps_the_first_signal():
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signum == signal.SIGTERM


def test_numbers_of_idle_shards_do_not_count():
    from mapanything.train.meter import Meter

    meter = Meter()
    meter.add_batch(torch.tensor(2.0), {"a": torch.tensor(1.0)}, scenes=3, views=4, what="one")
    meter.add_batch(torch.tensor(100.0), {"a": torch.tensor(50.0)}, scenes=0, views=4, what="idle")
    meter.add_batch(torch.tensor(np.inf), {"a": torch.tensor(np.nan)}, scenes=1, views=2, what="bad")
    bad, gradient = meter.read()
    assert bad == "bad: loss, a" and not gradient
    assert meter.sums.scenes == 4 and meter.sums.views == 14
