"""Renews the locks in requirements/ from base.in and dev.in, says whether they are current, or whether an index has it all.

Notable:
- cuda13.txt is resolved first, for every Python that torch has wheels for. cpu.txt is the same resolution with torch's CPU
  wheels in it, cuda12.txt with the newest torch whose wheel on PyPI is built for CUDA 12: both have cuda13.txt as
  constraints, so that the three differ in torch and its CUDA packages only.
- dev.txt is the extra `dev`, for any of them: what base.in and dev.in need together with cuda13.txt's pins, less its packages.
- uv does not read pip's settings, and where the CPU wheel is found differs from host to host: so pip fetches the one for
  this lock's oldest Python. The hashes of all of them stand here (`CPU_WHEELS`), and what is fetched has to have its own.
- The head of each lock holds a digest of what it was made from; `--check` compares it and needs no network.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from dev.cli import LOCK
from mapanything.environment import requirement_lines
from mapanything.errors import InputError, run_command

FOLDER = Path(__file__).parents[1] / "requirements"
SOURCES = ("base.in", "dev.in", "excludes.txt")
UV = "uv==0.13.9"  # uv itself is no part of the lock: only this command needs it
ENVIRONMENTS = "sys_platform == 'linux' and platform_machine == 'x86_64' and python_full_version < '3.14'"
VARIANTS = ("cuda13", "cuda12", "cpu")
LOCKS = (*VARIANTS, "dev")
CUDA12_TORCH = "torch==2.10.0"  # CUDA 12.8: runs with drivers from 525 on
OWN = re.compile(r"torch|triton|nvidia-|cuda-")  # what differs between the locks
# SHA-256 of torch's CPU wheels for Linux on x86-64 by Python, as PyTorch's own index gives them. Of another torch in
# base.in: its `torch-VERSION+cpu-cp3NN-cp3NN-manylinux_2_28_x86_64.whl`.
CPU_TORCH = "torch==2.13.0+cpu"
CPU_WHEELS = {
    "3.11": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "3.12": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "3.13": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
}
HEADER = "# {variant} lock, made by `./invoke lock`: do not edit.\n# made from {digest}\n"


def sources_digest(folder: Path = FOLDER) -> str:
    """SHA-256 over the requirements themselves: comments, order and spaces do not make a lock outdated."""
    lines = [f"{name} {line}" for name in SOURCES for line in requirement_lines(folder / name)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def check(folder: Path = FOLDER) -> list[str]:
    """Sentences on what is outdated, one each; empty when all locks are current."""
    wanted = sources_digest(folder)
    problems = []
    for variant in LOCKS:
        path = folder / f"{variant}.txt"
        found = re.search(r"^# made from (\w+)$", path.read_text("utf-8"), re.M) if path.is_file() else None
        if found is None:
            problems.append(f"requirements/{path.name} is missing or was not made by `./invoke lock`: run it")
        elif found[1] != wanted:
            problems.append(f"requirements/{path.name} is older than base.in, dev.in or excludes.txt: run `./invoke lock`")
    return problems


def renew(folder: Path, *, upgrade: bool) -> None:
    """Writes the locks. Without `upgrade`, pins that still fit stay as they are."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        uv = install_uv(work)
        torch = next(line for line in requirement_lines(folder / "base.in") if line.startswith("torch=="))
        if f"{torch}+cpu" != CPU_TORCH:
            raise InputError(
                f"requirements/base.in asks for {torch}: write the hashes of its CPU wheels into dev/lock.py first"
            )
        fetch_cpu_wheel(work / "wheels")
        for variant in LOCKS:
            current = folder / f"{variant}.txt"
            if current.is_file() and not upgrade and variant != "cpu":
                (work / current.name).write_bytes(current.read_bytes())  # uv keeps the pins of an output file that is there
        resolve(uv, work, folder, "cuda13", [])
        shared = [line for line in requirement_lines(work / "cuda13.txt") if not OWN.match(line)]
        (work / "shared.txt").write_text("\n".join(shared) + "\n")
        for variant, own in (("cuda12", CUDA12_TORCH), ("cpu", CPU_TORCH)):
            (work / "own.txt").write_text(f"{own}\n")
            resolve(
                uv, work, folder, variant, ["--overrides", "own.txt", "--find-links", "wheels", "--constraints", "shared.txt"]
            )
        constraints = ["--constraints", "cuda13.txt", str(folder / "dev.in")]
        resolve(uv, work, folder, "dev", constraints)
        for variant in LOCKS:
            text = (work / f"{variant}.txt").read_text("utf-8")
            if variant == "cpu":
                text = with_cpu_hashes(text)
            elif variant == "dev":
                text = without(text, (work / "cuda13.txt").read_text("utf-8"))
            (folder / f"{variant}.txt").write_text(
                HEADER.format(variant=variant, digest=sources_digest(folder)) + text, "utf-8"
            )


def with_cpu_hashes(text: str) -> str:
    """The CPU lock with the wheels of all Pythons, where uv saw but the one that was fetched."""
    found = re.search(rf"^{re.escape(CPU_TORCH)} .*\n((?:    --hash=.*\n)+)", text, re.M)
    if found is None or found[1].strip() != f"--hash=sha256:{CPU_WHEELS['3.11']}":
        raise InputError(
            f"the wheel of {CPU_TORCH} that pip found is not PyTorch's own: its hash is not the one in dev/lock.py"
        )
    hashes = " \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted(CPU_WHEELS.values()))
    return text[: found.start(1)] + hashes + "\n" + text[found.end(1) :]


def without(text: str, other: str) -> str:
    """A lock without the packages of another."""
    blocks = [re.split(r"^(?=[a-z0-9])", lock, flags=re.M) for lock in (text, other)]
    names = {block.split("==")[0] for block in blocks[1]}
    return "".join(block for block in blocks[0] if block.split("==")[0] not in names)


def dry_run(folder: Path = FOLDER) -> None:
    """Resolves the locks that need nothing but PyPI for every Python, as an installation would, and downloads nothing.

    Raises:
        InputError: a pin or a hash that the index does not have.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        uv = install_uv(work)
        for variant in ("cuda13", "cuda12"):
            for python in CPU_WHEELS:
                lock = ["--require-hashes", "--no-deps", "-r", str(folder / f"{variant}.txt")]
                place = [
                    "--target",
                    str(work / "target"),
                    "--python-version",
                    python,
                    "--python-platform",
                    "x86_64-manylinux_2_35",
                ]
                run([str(uv), "pip", "install", "--dry-run", "--quiet", *place, *lock], work)
                print(f"{variant}, Python {python}: every pin is there")


def install_uv(work: Path) -> Path:
    """uv in the work folder, so that neither the environment nor the lock carries it."""
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(work / "uv"), UV], work)
    return work / "uv" / "bin" / "uv"


def fetch_cpu_wheel(target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--python-version", min(CPU_WHEELS)]
    run([*pip, "--only-binary", ":all:", "--dest", str(target), CPU_TORCH], target.parent)


def resolve(uv: Path, work: Path, folder: Path, variant: str, extra: list[str]) -> None:
    # uv reads `environments` from a project only, hence one in the work folder.
    environments = f'[tool.uv]\nenvironments = ["{ENVIRONMENTS}"]\n'
    (work / "pyproject.toml").write_text(f'[project]\nname = "locks"\nversion = "0"\n{environments}')
    options = ["--universal", "--generate-hashes", "--python-version", "3.11", "--fork-strategy", "fewest", "--quiet"]
    options += ["--no-header", "--no-emit-index-url", "--no-annotate", "--output-file", f"{variant}.txt"]
    sources = ["--excludes", str(folder / "excludes.txt"), str(folder / "base.in")]
    run([str(uv), "pip", "compile", *options, *extra, *sources], work)


def run(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        print(done.stderr, file=sys.stderr)
        raise InputError(f"{Path(command[0]).name} {command[1]} {command[2]} failed, the locks are as before: {last}")


def main() -> int:
    arguments = LOCK.parse()
    if arguments.dry_run:
        dry_run()
    elif not arguments.check:
        renew(FOLDER, upgrade=arguments.upgrade)
    problems = check()
    for problem in problems:
        print(problem)
    if not problems:
        print(f"all {len(LOCKS)} locks are current")
    return 1 if problems else 0


if __name__ == "__main__":
    run_command(main)
