"""The command line of the check: verdicts, reports, the exclude file, and how it ends when it is stopped."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mapanything.errors import InputError
from mapanything.opv2v.exclude import read_exclude
from mapanything.opv2v.layout import FrameKey, scan
from mapanything.tools.check_opv2v import main
from tests.helpers.process_table import children, is_running

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _terminate() -> object:
    """`main` takes over SIGTERM; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def keys_of(root: Path) -> list[FrameKey]:
    return [folder.key(frame) for folder in scan(root) for frame in folder.frames]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mapanything.tools.check_opv2v", *map(str, arguments)]


def run(*arguments: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, cwd=cwd, env=environment, timeout=60, check=False
    )


def test_a_good_data_set(sample_root: Path, sample_depth_root: Path) -> None:
    done = run("--root", sample_root, "--depth_root", sample_depth_root, "--deep")
    frames = len(keys_of(sample_root))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    _, kind, hidden, _ = done.stdout.splitlines()
    assert kind == "depth: rendered maps (ray casting)" and hidden.startswith("depth labels behind annotated vehicles: 0.")
    assert done.stdout.splitlines()[-1].startswith(f"{frames} agent-frames, ")
    assert done.stdout.rstrip().endswith("no problem")


def test_problems_are_the_exit_code(sample_root: Path) -> None:
    next(sample_root.glob("*/*/*/*_camera1.png")).unlink()
    done = run("--root", sample_root, "--quick")
    assert done.returncode == 1
    assert "missing-image: 1" in done.stdout
    assert done.stdout.rstrip().endswith(": 1 problem")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--root", "{root}/train"], "one level too low"),
        (["--root", "{root}/.."], "one level too high"),
        (["--root", "{root}/nothing"], "no such folder"),
        (["--root", "{root}", "--depth-root", "{root}/train"], "one level too low"),
        (["--root", "{root}", "--split", "trian"], "'trian'"),
        (["--root", "{root}", "--split", "train,test_culver_city"], "test_culver_city"),
        (["--root", "{root}", "--scenario", "2020"], "no scenario '2020'"),
        (["--root", "{root}", "--agent=-1"], "no agent '-1'"),
        (["--root", "{root}", "--frame", "69"], "no frame '69'"),
        (["--root", "{root}", "--report", "report.txt"], ".json or .csv"),
        (["--root", "{root}", "--report", "{root}/train/x.json/y.json"], None),
        (["--root", "{root}", "--report", "/dev/null/x.json"], "/dev/null"),
        (["--root", "{root}", "--write-exclude", "{root}"], "is a folder; name a file"),
        (["--root", "{root}", "--write-exclude", "{notes}"], "not written by check-data"),
        (["--root", "{root}", "--depth-root", "{root}", "--depth-pattern", "{{frame}}.npy"], "must use"),
    ],
)
def test_bad_input_is_one_line_and_code_2(sample_root: Path, tmp_path: Path, arguments: list[str], says: str | None) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("by hand\n")
    done = run(*(argument.format(root=sample_root, notes=notes) for argument in arguments))
    if says is None:  # folders are made
        assert done.returncode == 0
        return
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert notes.read_text() == "by hand\n"


def break_some(root: Path) -> None:
    keys = keys_of(root)
    folder = root / keys[0].split / keys[0].scenario / keys[0].agent
    (folder / f"{keys[0].frame}_camera0.png").unlink()
    (folder / f"{keys[0].frame}.pcd").write_bytes(b"")
    (folder / f"{keys[1].frame}.yaml").write_text("[")


def test_reports_have_everything_and_are_equal_for_any_number_of_processes(
    sample_root: Path, sample_depth_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_some(sample_root)
    texts = set()
    for jobs in (1, 2, 3):
        given = ["--root", str(sample_root), "--depth-root", str(sample_depth_root), "--deep", "--jobs", str(jobs)]
        assert main([*given, "--report", str(tmp_path / "r.json")]) == 1
        assert main([*given, "--report", str(tmp_path / "r.csv")]) == 1
        texts.add(((tmp_path / "r.json").read_text(), (tmp_path / "r.csv").read_text()))
    (texts_once,) = texts
    report = json.loads(texts_once[0])
    rows = list(csv.DictReader(texts_once[1].splitlines()))
    assert [{name: problem[name] for name in rows[0]} for problem in report["problems"]] == rows
    assert {row["kind"]: row["file"].split("/")[-1][6:] for row in rows} == {
        "missing-image": "_camera0.png",
        "empty-cloud": ".pcd",
        "corrupt-yaml": ".yaml",
    }
    assert report["verdict"] == "bad"
    assert {kind: count["count"] for kind, count in report["counts"].items()} == dict.fromkeys(report["counts"], 1)
    assert report["checked"]["agent_frames"] == len(keys_of(sample_root))
    assert report["options"]["root"] == str(sample_root)
    assert "numpy" in report["versions"]
    assert "corrupt-yaml: 1" in capsys.readouterr().out


def test_a_moved_data_set_gives_the_same_problems(sample_root: Path, tmp_path: Path) -> None:
    break_some(sample_root)
    other = shutil.copytree(sample_root, tmp_path / "elsewhere")
    found = []
    for number, root in enumerate((sample_root, other)):
        main(["--root", str(root), "--report", str(tmp_path / f"{number}.json")])
        found.append(json.loads((tmp_path / f"{number}.json").read_text())["problems"])
    assert found[0] == found[1]


def test_exclude_file_is_the_smallest_that_covers_all(sample_root: Path, tmp_path: Path) -> None:
    keys = keys_of(sample_root)
    first = keys[0]
    scenario = [key for key in keys if key.scenario == first.scenario]
    agents = sorted({key.agent for key in scenario})
    file = tmp_path / "exclude.txt"

    def excluded() -> list[str]:
        main(["--root", str(sample_root), "--write-exclude", str(file)])
        return [line.split("  #")[0] for line in file.read_text().splitlines()[1:]]

    def unlink(key: FrameKey) -> None:
        (sample_root / f"{key}.pcd").unlink()

    assert excluded() == []
    unlink(first)
    assert excluded() == [str(first)]
    for key in scenario:
        if key.agent == first.agent and key != first:
            unlink(key)
    agent = "/".join(str(first).split("/")[:3])
    assert excluded() == [agent]
    assert "missing-cloud" in file.read_text()
    one_frame = next(key for key in scenario if key.agent == agents[1])
    unlink(one_frame)
    assert excluded() == [agent, str(one_frame)]
    main(["--root", str(sample_root), "--agent", first.agent, "--write-exclude", str(file)])
    assert agent in file.read_text()  # a narrowed check knows nothing of the other agents
    for key in scenario:
        (sample_root / f"{key}.pcd").unlink(missing_ok=True)
    assert excluded() == [f"{first.split}/{first.scenario}"]
    entries = read_exclude(file)
    assert [key for key in keys if entries.contains(key)] == scenario


def test_differing_frames_exclude_nothing_and_known_defects_do(sample_root: Path, tmp_path: Path) -> None:
    key = keys_of(sample_root)[0]
    for path in (sample_root / key.split / key.scenario / key.agent).glob(f"{key.frame}*"):
        path.unlink()
    os.rename(sample_root / key.split / key.scenario, sample_root / key.split / "2021_09_09_13_20_58")
    file = tmp_path / "exclude.txt"
    assert main(["--root", str(sample_root), "--write-exclude", str(file)]) == 1
    assert file.read_text().splitlines()[1:] == [f"{key.split}/2021_09_09_13_20_58  # known-defect"]


def test_default_roots_are_the_mounts(sample_root: Path, sample_depth_root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "opv2v_images").symlink_to(sample_root)
    (tmp_path / "data" / "opv2v_depth").mkdir()  # a mount point with nothing mounted
    assert "no depth maps" in run("--quick", cwd=tmp_path).stdout
    (tmp_path / "data" / "opv2v_depth").rmdir()
    (tmp_path / "data" / "opv2v_depth").symlink_to(sample_depth_root)
    done = run("--quick", cwd=tmp_path)
    assert (done.returncode, "depth maps in data/opv2v_depth" in done.stdout) == (0, True)
    shutil.rmtree(sample_root)
    done = run(cwd=tmp_path)
    assert done.returncode == 2
    assert "data/opv2v_images: is a link to" in done.stderr


def test_progress_goes_to_stderr_when_asked(sample_root: Path) -> None:
    done = run("--root", sample_root, "--progress", "--deep")
    assert "frame" in done.stderr
    assert "frame/s" not in done.stdout


def skeleton(root: Path, scenarios: int, agents: int, frames: int) -> int:
    for scenario in range(scenarios):
        for agent in range(agents):
            folder = root / "train" / f"2021_08_{scenario + 1:02d}_00_00_00" / str(1000 + agent)
            folder.mkdir(parents=True)
            for frame in range(frames):
                for suffix in (".yaml", ".pcd", *(f"_camera{k}.png" for k in range(4))):
                    os.close(os.open(folder / f"{2 * frame:06d}{suffix}", os.O_CREAT | os.O_WRONLY))
    return scenarios * agents * frames


def test_a_skeleton_is_quick_and_the_console_short(tmp_path: Path) -> None:
    count = skeleton(tmp_path / "root", scenarios=12, agents=3, frames=50)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("--root", tmp_path / "root", "--quick", "--report", tmp_path / "r.csv")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of its own, however busy the machine
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) < 80
    assert f"… and {count - 8} more (also in 4 other scenarios): --report FILE lists all" in done.stdout
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 6 * count + 1
    assert seconds < 20 * count / 36_000 + 5  # what the full data set may take, and starting Python


def test_unprintable_names_do_no_harm(sample_root: Path) -> None:
    os.mkdir(os.path.join(os.fsencode(sample_root), b"train", b"sc\xff\nena"))
    os.mkdir(os.path.join(os.fsencode(sample_root), b"train", b"sc\xff\nena", b"\xe4"))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"}
    arguments = command("--root", sample_root, "--report", sample_root / "r.json")
    done = subprocess.run(arguments, capture_output=True, cwd=REPOSITORY, env=environment, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr
    assert json.loads((sample_root / "r.json").read_text())["problems"]


@pytest.fixture
def large_root(sample_root: Path, tmp_path: Path) -> Path:
    """Enough frames, links to a few files, to be still at work when a signal arrives."""
    key = keys_of(sample_root)[0]
    folder = sample_root / key.split / key.scenario / key.agent
    target = tmp_path / "large" / "train" / "s" / "641"
    target.mkdir(parents=True)
    for frame in range(4000):
        for path in folder.glob(f"{key.frame}*"):
            os.symlink(path, target / path.name.replace(key.frame, f"{frame:06d}"))
    return tmp_path / "large"


def start_with_workers(root: Path) -> tuple[subprocess.Popen[str], list[int]]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    arguments = command("--root", root, "--deep", "--jobs", 2)
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    for _ in range(600):
        if len(workers := children(process.pid)) == 2:
            return process, workers
        time.sleep(0.05)
    process.kill()
    raise AssertionError("no worker processes")


def assert_gone(pids: list[int]) -> None:
    for _ in range(100):
        if not any(map(is_running, pids)):
            return
        time.sleep(0.05)
    raise AssertionError("a worker process stayed behind")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_cleanly(large_root: Path, number: signal.Signals) -> None:
    process, workers = start_with_workers(large_root)
    time.sleep(0.3)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches all of them
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "interrupted\n"
    assert_gone(workers)


@pytest.mark.faults
def test_a_killed_worker_is_one_line(large_root: Path) -> None:
    process, workers = start_with_workers(large_root)
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors.startswith("error: a worker process was killed")
    assert errors.count("\n") == 1
    assert_gone(workers)


@pytest.mark.faults
def test_a_worker_that_is_ended_before_it_has_begun_says_nothing(sample_root: Path) -> None:
    """The pool ends the others when one is killed; this process's own SIGTERM handler is not theirs."""
    code = "import os, signal, sys\nfrom mapanything.opv2v.check import run\nfrom mapanything.tools.check_opv2v import main\n"
    code += "start = run._start_worker\n"
    code += "run._start_worker = lambda: (os.kill(os.getpid(), signal.SIGTERM), start())\n"
    code += f"sys.exit(main(['--root', {str(sample_root)!r}, '--deep', '--jobs', '2']))"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "KeyboardInterrupt" not in done.stderr and "a worker process was killed" in done.stderr, done.stderr


@pytest.mark.faults
def test_workers_end_with_a_killed_parent(large_root: Path) -> None:
    process, workers = start_with_workers(large_root)
    process.kill()
    process.wait(timeout=20)
    assert_gone(workers)


def test_bad_numbers_of_jobs(sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--root", str(sample_root), "--jobs", "0"])
    assert caught.value.code == 2
    assert "--jobs" in capsys.readouterr().err


def test_input_errors_are_raised_for_callers(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        main(["--root", str(tmp_path)])
