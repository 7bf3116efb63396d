"""Renews requirements/cuda.txt and requirements/cpu.txt from requirements/base.in, or says whether they are current.

Notable:
- cuda.txt is resolved first, for every Python that torch has wheels for. cpu.txt is the same resolution with torch's
  CPU wheel in it and cuda.txt as constraints, so that the two differ in torch and its CUDA packages only.
- uv does not read pip's settings, and where the CPU wheel is found differs from host to host: so pip fetches it, and uv
  takes its hash from what pip fetched. Only the wheel for Python 3.11 is locked.
- The head of each lock holds a digest of what it was made from; `--check` compares it and needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from mapanything.environment import requirement_lines
from mapanything.errors import InputError, run_command

FOLDER = Path(__file__).parents[1] / "requirements"
SOURCES = ("base.in", "excludes.txt")
UV = "uv==0.13.9"  # uv itself is no part of the lock: only this command needs it
PLATFORM = "sys_platform == 'linux' and platform_machine == 'x86_64'"
PYTHONS = {"cuda": "python_full_version < '3.14'", "cpu": "python_full_version < '3.12'"}
HEADER = "# {variant} lock, made by `invoke lock`: do not edit.\n# made from {digest}\n"


def sources_digest(folder: Path = FOLDER) -> str:
    """SHA-256 over the requirements themselves: comments, order and spaces do not make a lock outdated."""
    lines = [f"{name} {line}" for name in SOURCES for line in requirement_lines(folder / name)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def check(folder: Path = FOLDER) -> list[str]:
    """What is outdated, a sentence each; empty when both locks are current."""
    wanted = sources_digest(folder)
    problems = []
    for variant in PYTHONS:
        path = folder / f"{variant}.txt"
        found = re.search(r"^# made from (\w+)$", path.read_text("utf-8"), re.M) if path.is_file() else None
        if found is None:
            problems.append(f"requirements/{path.name} is missing or was not made by `invoke lock`: run it")
        elif found[1] != wanted:
            problems.append(f"requirements/{path.name} is older than base.in or excludes.txt: run `invoke lock`")
    return problems


def renew(folder: Path, *, upgrade: bool) -> None:
    """Writes both locks. Without `upgrade`, pins that still fit stay as they are."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        uv = install_uv(work)
        torch = next(line for line in requirement_lines(folder / "base.in") if line.startswith("torch=="))
        fetch_cpu_wheel(f"{torch}+cpu", work / "wheels")
        (work / "cpu-torch.txt").write_text(f"{torch}+cpu\n")
        current = folder / "cuda.txt"
        cuda = work / "cuda.txt"
        if current.is_file() and not upgrade:
            cuda.write_bytes(current.read_bytes())  # uv keeps the pins of an output file that is there
        resolve(uv, work, folder, "cuda", [])
        extra = ["--overrides", "cpu-torch.txt", "--find-links", "wheels", "--constraints", "cuda.txt"]
        resolve(uv, work, folder, "cpu", extra)
        for variant in PYTHONS:
            header = HEADER.format(variant=variant, digest=sources_digest(folder))
            (folder / f"{variant}.txt").write_text(header + (work / f"{variant}.txt").read_text("utf-8"), "utf-8")


def install_uv(work: Path) -> Path:
    """uv in the work folder, so that neither the environment nor the lock carries it."""
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(work / "uv"), UV], work)
    return work / "uv" / "bin" / "uv"


def fetch_cpu_wheel(requirement: str, target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--python-version", "3.11"]
    run([*pip, "--only-binary", ":all:", "--dest", str(target), requirement], target.parent)


def resolve(uv: Path, work: Path, folder: Path, variant: str, extra: list[str]) -> None:
    # uv reads `environments` from a project only, hence one in the work folder.
    environments = f'[tool.uv]\nenvironments = ["{PLATFORM} and {PYTHONS[variant]}"]\n'
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
    parser = argparse.ArgumentParser(prog="dev.lock", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the locks are current (no network)")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of keeping pins")
    arguments = parser.parse_args()
    if not arguments.check:
        renew(FOLDER, upgrade=arguments.upgrade)
    problems = check()
    for problem in problems:
        print(problem)
    if not problems:
        print("both locks are current")
    return 1 if problems else 0


if __name__ == "__main__":
    run_command(main)
