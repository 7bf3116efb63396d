"""A run that was interrupted, anywhere and however, ends bit-equal to one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from mapanything.train import checkpoints, training
from mapanything.train.loop import Trainer
from tests.helpers.killed_runs import PHASES, KilledRun
from tests.helpers.process_table import children
from tests.helpers.training_runs import finish, log_of, same, settings, start

pytestmark = pytest.mark.usefixtures("one_thread")


# Random inputs besides the images, vehicle IDs drawn anew, several numbers of views: whatever has a random state.
RANDOM = [
    "stage=stage3",
    "model.pretrained=null",
    "distributed.world_size=1",
    "train_params.epochs=3",
    "model.vehicle_id.num_roles=3",
    *(f"model.geometric_inputs.{name}_prob=0.5" for name in ("dropout", "ray_dirs", "depth", "cam", "sparse_depth")),
    "model.geometric_inputs.overall_prob=0.9",
    "model.geometric_inputs.sparsification_removal_percent=0.5",
    "train_params.max_num_of_imgs_per_gpu=6",
]


def without_times(folder: Path) -> list[dict]:
    return [{k: v for k, v in entry.items() if "second" not in k} for entry in log_of(folder)]


@pytest.mark.faults
def test_stopped_after_every_step(tmp_path, data, monkeypatch):
    arguments = settings(tmp_path / "undisturbed", data, *RANDOM)
    assert training.main(arguments) == 0
    step = Trainer._step

    def stop_after(self, *values):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *values)

    monkeypatch.setattr(Trainer, "_step", stop_after)
    arguments = settings(tmp_path / "stopped", data, *RANDOM)
    codes = []
    while not codes or codes[-1] == 143:
        codes.append(training.main(arguments))
        assert len(codes) < 20
    assert codes[-1] == 0 and len(codes) > 5
    for name in (checkpoints.FINAL, checkpoints.BEST):
        assert same(tmp_path / "undisturbed" / name, tmp_path / "stopped" / name)
    assert [entry["train_loss"] for entry in log_of(tmp_path / "stopped")] == pytest.approx(
        [entry["train_loss"] for entry in log_of(tmp_path / "undisturbed")], rel=1e-12
    )
    first, second = (
        torch.load(tmp_path / name / checkpoints.LAST, weights_only=True)["optimizer"] for name in ("undisturbed", "stopped")
    )
    assert all(torch.equal(first[name][key], second[name][key]) for name in first for key in first[name])


@pytest.mark.faults
def test_a_broken_file_of_validation(tmp_path, sample_root, sample_depth_root, monkeypatch):
    """Validation draws numbers of its own; what is saved when it can't go on are training's."""
    for folder in (sample_root, sample_depth_root, sample_root.parent):
        (folder / ".tests-only").unlink(missing_ok=True)
    data = sample_root, sample_depth_root
    assert training.main(settings(tmp_path / "undisturbed", data, *RANDOM)) == 0
    victim = min((sample_depth_root / "validate").rglob("*_depth.npy"))
    content, step = victim.read_bytes(), Trainer._step

    def break_it(self, *values):
        victim.write_bytes(content[:100])
        return step(self, *values)

    monkeypatch.setattr(Trainer, "_step", break_it)
    assert training.main(settings(tmp_path / "broken", data, *RANDOM)) == 2
    monkeypatch.undo()
    victim.write_bytes(content)
    assert training.main(settings(tmp_path / "broken", data, *RANDOM)) == 0
    assert same(tmp_path / "undisturbed" / checkpoints.FINAL, tmp_path / "broken" / checkpoints.FINAL)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("ranks", "victims", "few", "many"),
    [
        pytest.param(1, "all", 4, 30, id="the only process"),
        pytest.param(2, "all", 1, 14, id="all ranks", marks=pytest.mark.faults(long=True)),
        pytest.param(2, "one", 1, 14, id="one rank", marks=pytest.mark.faults(long=True)),
    ],
)
def test_killed_at_random_moments(tmp_path, data, request, ranks, victims, few, many):
    """SIGKILL while it steps, saves (before every step), validates, starts; again and again until it comes to its end.

    Then the next run, till there were enough kills. Whatever a kill left must load, and every end must be the undisturbed one.
    """
    kills = many if request.config.getoption("--faults") else few
    more = [*RANDOM, f"distributed.world_size={ranks}"]
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    undisturbed = KilledRun(tmp_path / "undisturbed", settings(tmp_path / "undisturbed", data, *more), ranks, victims)
    undisturbed.to_the_end()
    out = tmp_path / "killed"
    arguments = settings(out, data, *more, "train_params.save_every_minutes=0")
    run = KilledRun(out, arguments, ranks, victims, random.Random(seed))
    while run.hit.total() < kills:
        ended = not run.until_killed()
        run.assert_whole()
        if run.hit.total() == kills and not ended:
            run.to_the_end()
            ended = True
        if ended:
            for name in (checkpoints.FINAL, checkpoints.BEST):
                assert same(undisturbed.folder / name, out / name), dict(run.hit)
            assert [entry["epoch"] for entry in log_of(out)] == [1, 2, 3]
            assert not list(out.glob("*.tmp*"))
            shutil.rmtree(out)
    print(f"killed while: {dict(run.hit)}")
    if kills == many:
        assert all(run.hit[phase] for phase in PHASES[1:]), dict(run.hit)


@pytest.mark.faults
def test_two_processes_stopped_killed_and_killed_in_part(tmp_path, data):
    two = ["distributed.world_size=2", "train_params.epochs=4", "train_params.save_every_minutes=0"]
    undisturbed = start(settings(tmp_path / "undisturbed", data, *two))
    out = tmp_path / "disturbed"
    for how in ("stop", "all", "one"):
        process = start(settings(out, data, *two))
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "step 2/2" in line:
                break
        ranks = children(process.pid)
        for pid in {"stop": [process.pid], "all": [process.pid, *ranks], "one": ranks[-1:]}[how]:
            os.kill(pid, signal.SIGTERM if how == "stop" else signal.SIGKILL)
        lines.append(process.stdout.read())
        assert process.wait(60) == {"stop": 143, "all": -9}.get(how, process.returncode) != 0, "".join(lines)
    code, output = finish(start(settings(out, data, *two)))
    assert code == 0, output
    code, output = finish(undisturbed)
    assert code == 0, output
    assert same(tmp_path / "undisturbed" / checkpoints.FINAL, out / checkpoints.FINAL)


@pytest.mark.faults
def test_killed_in_validation(tmp_path, data, undisturbed, monkeypatch):
    evaluate = Trainer._validation_losses

    def stop_in_it(self, feed):
        if self.run.position.epoch == 1:
            self.stop.signum = signal.SIGTERM
        return evaluate(self, feed)

    monkeypatch.setattr(Trainer, "_validation_losses", stop_in_it)
    assert training.main(settings(tmp_path / "stopped", data)) == 143
    monkeypatch.undo()
    assert len(log_of(tmp_path / "stopped")) == 1
    assert training.main(settings(tmp_path / "stopped", data)) == 0
    assert same(undisturbed / checkpoints.FINAL, tmp_path / "stopped" / checkpoints.FINAL)
    assert len(log_of(tmp_path / "stopped")) == 2


@pytest.mark.faults
def test_damaged_last_falls_back_and_says_so(tmp_path, data, undisturbed, capsys):
    out = tmp_path / "run"
    assert training.main(settings(out, data, "train_params.epochs=1")) == 0
    # A damaged last checkpoint, one before it, and what a killed run leaves.
    os.replace(out / checkpoints.LAST, out / checkpoints.PREVIOUS)
    content = (out / checkpoints.PREVIOUS).read_bytes()
    (out / checkpoints.LAST).write_bytes(content[: len(content) // 3])
    (out / f"{checkpoints.LAST}.tmp-1").write_bytes(b"half")
    capsys.readouterr()
    assert training.main(settings(out, data)) == 0
    said = capsys.readouterr().out
    assert f"{checkpoints.LAST}: it is damaged" in said and f"resuming {out / checkpoints.PREVIOUS}" in said
    assert "removed what a killed run left" in said and not list(out.glob("*.tmp*"))


def test_another_run_is_not_resumed(tmp_path, data, capfd):
    assert training.main(settings(tmp_path, data, "train_params.epochs=1")) == 0
    for change, message in [
        ("model.multiview.depth=6", "model.multiview.depth: 4 -> 6"),
        ("dataset=opv2v_coop_ft", "stage: 1 -> 2"),
        ("loss=overall_loss_highpm_plus_rel_pose", "loss.train"),
        ("train_params.seed=3", "train_params.seed: 0 -> 3"),
    ]:
        capfd.readouterr()
        assert training.main(settings(tmp_path, data, change)) == 2
        error = capfd.readouterr().err
        assert "holds another run" in error and message in error and error.count("\n") == 1


def test_more_parameters_learn_after_a_while(tmp_path, data, capsys):
    assert training.main(settings(tmp_path, data, "train_params.epochs=1", "+train_params.submodule_lr.encoder=0")) == 0
    assert training.main(settings(tmp_path, data, "train_params.epochs=2")) == 0
    assert "parameters learn now that did not before" in capsys.readouterr().out
