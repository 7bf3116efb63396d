"""The bootstrap (./invoke) with a stand-in for Python, the locks, and what no tracked file may contain."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dev import lock
from mapanything.errors import InputError

REPOSITORY = Path(__file__).parents[1]
REQUIREMENTS = REPOSITORY / "requirements"

# Stands for Python: `-m venv` makes a folder with the same stand-in, pip writes down what it was asked for.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *'import ensurepip'*) exit 0 ;;
    *platform*) echo "${FAKE_MACHINE:-x86_64}${PYTHONPATH:+ with $PYTHONPATH}" ;;
    *print*) echo "$FAKE_VERSION" ;;
    *'import numpy, torch'*) exit "${FAKE_IMPORT:-0}" ;;
    -c*) exit 0 ;;
    '-m venv'*)
        target=${*: -1}
        mkdir -p "$target/bin" "$target/lib/python$FAKE_VERSION/site-packages"
        cp "$0" "$target/bin/python"
        echo venv >>"$FAKE_LOG" ;;
    *'pip install'*)
        echo "pip ${*: -1} $(basename "$(dirname "$(dirname "$0")")")" >>"$FAKE_LOG"
        sleep "${FAKE_PIP_S:-0}"
        if [[ -n ${FAKE_PIP_ERROR:-} ]]; then echo "ERROR: $FAKE_PIP_ERROR" >&2; exit 1; fi ;;
    '-m invoke'*) echo "tasks: $*${PYTHONPATH:+ $PYTHONPATH}" ;;
esac
"""
LDCONFIG = "#!/bin/sh\necho libEGL.so.1 libGL.so.1 libusb-1.0.so.0\n"


@dataclass
class Clone:
    """A fresh clone with a small lock, and a stand-in for Python."""

    path: Path
    log: Path
    environment: dict[str, str]

    def call(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.path / "invoke"), *arguments]
        environment = self.environment | variables
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        command = [str(self.path / "invoke"), "--list"]
        environment = self.environment | variables
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def done(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def set_lock(self, *lines: str, variant: str = "cpu") -> None:
        text = "".join(f"{line} \\\n    --hash=sha256:0\n" for line in ("setuptools==1", *lines))
        (self.path / "requirements" / f"{variant}.txt").write_text(text)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    path, tools = tmp_path / "a clone", tmp_path / "bin"
    (path / "requirements").mkdir(parents=True)
    tools.mkdir()
    shutil.copy(REPOSITORY / "invoke", path / "invoke")
    for name, text in {"fakepython": PYTHON, "ldconfig": LDCONFIG}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "MAPANYTHING_TORCH": "cpu",
        "MAPANYTHING_PYTHON": str(tools / "fakepython"),
        "FAKE_LOG": str(tmp_path / "log"),
        "FAKE_VERSION": "3.11",
    }
    made = Clone(path, tmp_path / "log", environment)
    made.set_lock("torch==2.13.0+cpu")
    made.set_lock("torch==2.13.0", variant="cuda13")
    made.set_lock("torch==2.10.0", variant="cuda12")
    return made


def test_first_call_installs_and_second_does_not(clone: Clone) -> None:
    first = clone.call("--list")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("tasks: -m invoke --search-root")
    assert "making .venv from requirements/cpu.txt" in first.stderr
    made = clone.done()
    assert [line.split()[0] for line in made] == ["venv", "pip", "pip"]
    second = clone.call("doctor", "--json")
    assert clone.done() == made
    assert second.stderr == ""
    assert second.stdout.endswith("doctor --json\n")


def test_arguments_arrive_as_they_are(clone: Clone) -> None:
    (clone.path / "a b").mkdir()
    assert clone.call("tree", "--root", "a b", "$(touch x)", "*").stdout.endswith("tree --root a b $(touch x) *\n")
    assert not (clone.path / "x").exists()


def test_changed_lock_makes_it_again(clone: Clone) -> None:
    clone.call("--list")
    clone.set_lock("torch==2.13.0+cpu", "numpy==2")
    assert "making .venv" in clone.call("--list").stderr
    assert clone.done().count("venv") == 2


def test_changed_variant_makes_it_again(clone: Clone) -> None:
    clone.call("--list")
    assert "requirements/cuda13.txt" in clone.call("--list", MAPANYTHING_TORCH="cuda").stderr
    assert clone.call("--list", MAPANYTHING_TORCH="cuda13").stderr == ""  # the same by its other name
    assert "requirements/cuda12.txt" in clone.call("--list", MAPANYTHING_TORCH="cuda12").stderr


def test_vanished_python_makes_it_again(clone: Clone) -> None:
    clone.call("--list")
    python = clone.path / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    assert clone.call("--list").returncode == 0
    assert clone.done().count("venv") == 2


def test_killed_call_is_repaired(clone: Clone) -> None:
    call = clone.start(FAKE_PIP_S="30")
    while len(clone.done()) < 2:
        time.sleep(0.01)
    os.killpg(call.pid, 9)
    call.communicate()
    assert not (clone.path / ".venv").exists()
    again = clone.call("--list")
    assert again.returncode == 0, again.stderr
    assert clone.done().count("venv") == 2


def test_failed_install_says_so_and_is_tried_again(clone: Clone) -> None:
    failed = clone.call("--list", FAKE_PIP_ERROR="disk full")
    assert failed.returncode == 2
    assert "ERROR: disk full" in failed.stderr
    assert "pip failed" in failed.stderr.splitlines()[-1]
    assert clone.call("--list").returncode == 0


@pytest.mark.parametrize("fault", [{"FAKE_PIP_ERROR": "no network"}, {"FAKE_IMPORT": "1"}])
def test_the_old_environment_stays_until_the_new_one_works(clone: Clone, fault: dict[str, str]) -> None:
    clone.call("--list")
    before = (clone.path / "requirements/cpu.txt").read_text()
    clone.set_lock("torch==2.13.0+cpu", "numpy==2")
    without = clone.call("doctor", **fault)
    assert (without.returncode, without.stdout) == (0, f"tasks: -m invoke --search-root {clone.path} doctor\n")
    assert "going on with the .venv that was made before" in without.stderr.splitlines()[-1]
    (clone.path / "requirements/cpu.txt").write_text(before)
    again = clone.call("doctor", **fault)
    assert (again.returncode, again.stderr) == (0, "")  # nothing was lost
    clone.set_lock("torch==2.13.0+cpu", "numpy==2")
    assert "done" in clone.call("doctor").stderr
    assert clone.call("doctor", **fault).stderr == ""
    assert sorted(path.name for path in clone.path.glob(".venv*")) == [".venv", ".venv.lock"]


def test_what_is_running_keeps_its_environment(clone: Clone) -> None:
    clone.call("--list")
    clone.set_lock("torch==2.13.0+cpu", "numpy==2")
    for program, folder in ((".venv/bin/python", clone.path), (str(clone.path / ".venv/bin/python"), Path("/"))):
        running = subprocess.Popen(["bash", "-c", f'exec -a "{program}" sleep 30'], cwd=folder)
        try:
            deadline = time.monotonic() + 10
            while program not in Path(f"/proc/{running.pid}/cmdline").read_text() and time.monotonic() < deadline:
                time.sleep(0.01)
            called = clone.call("--list")
        finally:
            running.kill()
            running.wait()
        assert called.returncode == 0 and clone.done().count("venv") == 1
        assert f".venv is in use (process {running.pid}: 30)" in called.stderr
    assert "done" in clone.call("--list").stderr


def test_a_call_killed_as_environments_change_places_is_finished(clone: Clone) -> None:
    clone.call("--list")
    made = clone.done()
    (clone.path / ".venv").rename(clone.path / ".venv.new")  # the old one is aside, the new one not yet in its place
    (clone.path / ".venv.old").mkdir()
    called = clone.call("--list")
    assert (called.returncode, called.stderr, clone.done()) == (0, "", made)
    assert not (clone.path / ".venv.old").exists() and (clone.path / ".venv/bin/python").is_file()


def test_another_kind_of_processor_is_refused_before_anything_is_made(clone: Clone) -> None:
    called = clone.call("--list", FAKE_MACHINE="aarch64")
    assert called.returncode == 2 and clone.done() == [] and not (clone.path / ".venv.new").exists()
    assert called.stderr == "invoke: x86_64 is needed, this is aarch64: there are no wheels of the locked packages for it\n"


def test_another_project_s_packages_are_not_taken(clone: Clone) -> None:
    assert clone.call("--list", PYTHONPATH="/other/project").returncode == 2  # asked there alone what machine this is
    clone.call("--list")
    assert clone.call("--list", PYTHONPATH="/other/project").stdout.endswith(" --list\n")


def test_missing_cpu_wheel_names_the_remedy(clone: Clone) -> None:
    failed = clone.call("--list", FAKE_PIP_ERROR="No matching distribution found for torch==2.13.0+cpu")
    assert failed.returncode == 2
    line = next(line for line in failed.stderr.splitlines() if "PIP_EXTRA_INDEX_URL" in line)
    assert "torch==2.13.0+cpu" in line
    assert "PIP_FIND_LINKS" in line


def test_two_calls_at_once_install_once(clone: Clone) -> None:
    calls = [clone.start(FAKE_PIP_S="0.3") for _ in range(3)]
    for call in calls:
        out, err = call.communicate(timeout=60)
        assert call.returncode == 0, err
        assert out.startswith("tasks:")
    assert clone.done().count("venv") == 1


@pytest.mark.parametrize("python", ["3.12", "3.13"])
def test_without_a_card_no_python_gets_cuda(clone: Clone, python: str) -> None:
    problem = {"FAKE_PIP_ERROR": "No matching distribution found for torch==2.13.0+cpu"}
    refused = clone.call("--list", FAKE_VERSION=python, **problem)
    line = refused.stderr.splitlines()[-2]
    assert refused.returncode == 2
    assert f"no wheel for torch==2.13.0+cpu and Python {python}: set PIP_EXTRA_INDEX_URL" in line
    assert "requirements/cpu.txt" in clone.call("--list", FAKE_VERSION=python).stderr
    assert clone.call("--list", FAKE_VERSION=python).stderr == ""
    assert not any("cuda" in line for line in clone.done())


def test_wrong_variable_is_refused(clone: Clone) -> None:
    refused = clone.call("--list", MAPANYTHING_TORCH="gpu")
    assert (refused.returncode, refused.stderr) == (
        2,
        "invoke: MAPANYTHING_TORCH is 'gpu'; it must be cpu, cuda12 or cuda13\n",
    )
    refused = clone.call("--list", MAPANYTHING_PYTHON="no-such-python")
    assert refused.returncode == 2
    assert "is no Python 3.11 to 3.13" in refused.stderr


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="has a real driver")
@pytest.mark.parametrize(
    ("answer", "variant", "said"),
    [
        ("580.95.05", "cuda13", ""),
        ("610.10", "cuda13", ""),
        ("579.99", "cuda12", "NVIDIA driver 579.99: installing torch for CUDA 12"),
        ("525.60.13", "cuda12", "NVIDIA driver 525.60.13: installing torch for CUDA 12"),
        ("470.256.02", "cpu", "470.256.02 is too old for CUDA 12"),
        ("no devices", "cpu", ""),
    ],
)
def test_driver_chooses_the_variant(clone: Clone, tmp_path: Path, answer: str, variant: str, said: str) -> None:
    smi = tmp_path / "bin/nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho {answer}\n")
    smi.chmod(0o755)
    first = clone.call("--list", MAPANYTHING_TORCH="")
    assert f"requirements/{variant}.txt" in first.stderr
    assert said in first.stderr and ("NVIDIA driver" in first.stderr) == bool(said)
    assert clone.call("--list", MAPANYTHING_TORCH="").stderr == ""


@pytest.mark.parametrize("is_root", [True, False])
def test_missing_libraries(clone: Clone, tmp_path: Path, is_root: bool) -> None:
    if is_root and os.geteuid() != 0:
        pytest.skip("needs root")
    for name, text in {"ldconfig": "echo libGL.so.1", "apt-get": 'echo "apt $*" >>"$FAKE_LOG"'}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    if not is_root:
        # EUID is the shell's own: a copy of the script stands for a call without rights.
        script = clone.path / "invoke"
        script.write_text(script.read_text().replace("((EUID != 0))", "true"))
    called = clone.call("--list")
    assert called.returncode == 0, called.stderr
    if is_root:
        assert any(line.startswith("apt install") and line.endswith("libegl1 libusb-1.0-0") for line in clone.done())
    else:
        assert "sudo apt-get update && sudo apt-get install -y libegl1 libusb-1.0-0" in called.stderr
        assert not any(line.startswith("apt") for line in clone.done())


def pins(variant: str) -> dict[str, str]:
    lines = lock.requirement_lines(REQUIREMENTS / f"{variant}.txt")
    return dict(line.split(";")[0].strip().split("==") for line in lines)


@pytest.mark.parametrize("variant", lock.VARIANTS)
def test_everything_is_pinned_and_hashed(variant: str) -> None:
    text = (REQUIREMENTS / f"{variant}.txt").read_text()
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.M).strip())
    for entry in entries:
        assert re.match(r"[a-z0-9][a-z0-9._-]*==[^\s;]+ ", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert not re.search(r"https?:|--(find-links|index|extra)|file:", text)


@pytest.mark.parametrize(
    ("variant", "torch", "some"),
    [
        ("cuda13", "2.13.0", {"nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "nvidia-nvjitlink", "cuda-toolkit"}),
        ("cuda12", "2.10.0", {"nvidia-cublas-cu12", "nvidia-cudnn-cu12", "nvidia-nccl-cu12", "nvidia-cuda-runtime-cu12"}),
    ],
)
def test_cuda_packages_are_pinned_one_by_one(variant: str, torch: str, some: set[str]) -> None:
    found = pins(variant)
    assert found["torch"] == torch
    assert some <= {name for name in found if name.startswith(("nvidia-", "cuda-"))}


def test_variants_differ_in_torch_and_cuda_only() -> None:
    cuda13, cuda12, cpu = (pins(variant) for variant in lock.VARIANTS)
    assert cpu["torch"] == cuda13["torch"] + "+cpu"
    shared = {name: version for name, version in cuda13.items() if not lock.OWN.match(name)}
    assert {name: version for name, version in cuda12.items() if not lock.OWN.match(name)} == shared
    assert cpu == shared | {"torch": cpu["torch"]}


def test_cpu_wheel_is_locked_for_every_python() -> None:
    """No Python that the project supports needs the CUDA build on a host without a card."""
    text = (REQUIREMENTS / "cpu.txt").read_text()
    entry = text[text.index("\ntorch==") :].split("\ntqdm")[0]
    assert set(re.findall(r"sha256:(\w+)", entry)) == set(lock.CPU_WHEELS.values())
    assert list(lock.CPU_WHEELS) == ["3.11", "3.12", "3.13"] and "python_full_version < '3.14'" in entry


def test_a_cpu_wheel_that_is_not_pytorchs_is_not_locked() -> None:
    entry = f"{lock.CPU_TORCH} ; sys_platform == 'linux' \\\n    --hash=sha256:{'0' * 64}\ntqdm==1 \\\n    --hash=sha256:1\n"
    with pytest.raises(InputError, match="not PyTorch's own"):
        lock.with_cpu_hashes(entry)
    text = lock.with_cpu_hashes(entry.replace("0" * 64, lock.CPU_WHEELS["3.11"]))
    assert all(digest in text for digest in lock.CPU_WHEELS.values()) and text.endswith("tqdm==1 \\\n    --hash=sha256:1\n")


def test_locks_are_current_and_outdated_ones_are_named(tmp_path: Path) -> None:
    assert lock.check() == []
    for path in REQUIREMENTS.iterdir():
        shutil.copy(path, tmp_path)
    source = tmp_path / "base.in"
    source.write_text("# a comment changes nothing\n\n" + source.read_text())
    assert lock.check(tmp_path) == []
    source.write_text(source.read_text() + "scipy\n")
    (tmp_path / "cpu.txt").unlink()
    assert [problem.split(" ")[0] for problem in lock.check(tmp_path)] == [
        "requirements/cuda13.txt",
        "requirements/cuda12.txt",
        "requirements/cpu.txt",
        "requirements/dev.txt",
    ]


def test_every_import_is_asked_for() -> None:
    """Every import is in base.in itself (dev/ and tests: or in dev.in), not there by luck because something else needs it."""
    asked, for_dev = (
        {re.split(r"[=<>\[]", line)[0] for line in lock.requirement_lines(REQUIREMENTS / name)}
        for name in ("base.in", "dev.in")
    )
    names = {"PIL": "pillow", "yaml": "pyyaml", "open3d": "open3d-cpu", "simdjson": "pysimdjson", "hydra": "hydra-core"}
    names |= {"omegaconf": "hydra-core", "msgspec": "viser"}  # whose configurations and messages are theirs
    asked.add("rerun")  # asked for by its one user, with a line that says how to get it
    known = set(sys.stdlib_module_names) | {path.stem for path in [*REPOSITORY.glob("*"), *REPOSITORY.glob("tests/**/*.py")]}
    missing = set()
    folders = {".": asked, "mapanything": asked, "dev": asked | for_dev, "tests": asked | for_dev}
    paths = [(path, of) for of in folders for path in REPOSITORY.glob("*.py" if of == "." else f"{of}/**/*.py")]
    for path, of in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {module.split(".")[0] for module in modules} - known
            missing |= {f"{path.name}: {top}" for top in tops if names.get(top, top) not in folders[of]}
    assert missing == set()


def test_package_has_no_side_effects() -> None:
    code = "import sys, mapanything; print(mapanything.__version__, {'torch', 'open3d', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+ set\(\)\n", done.stdout)


def test_no_tracked_file_names_a_home_directory() -> None:
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    home = re.compile(r"/(?:home|Users)/\w|/root/")
    found = []
    for name in filter(None, listed.split("\0")):
        path = REPOSITORY / name
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {match[0]}" for match in home.finditer(text)]
    assert found == []
