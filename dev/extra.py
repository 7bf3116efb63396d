"""Installs the extra `dev` (tests, linters, types) into the environment that runs it, hash-locked, where it is not there."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mapanything.errors import InputError, run_command

LOCK = Path(__file__).parents[1] / "requirements" / "dev.txt"
INSTALLED = Path(sys.prefix, "dev.txt")  # the lock that the extra was last installed from


def is_current() -> bool:
    return INSTALLED.is_file() and INSTALLED.read_bytes() == LOCK.read_bytes()


def check_environment() -> None:
    """Raises InputError where nothing can be installed: in the users' image, outside of a virtual environment."""
    if importlib.util.find_spec("pip") is None:
        raise InputError("this image leaves out pip and the tools of developers; `docker compose run --rm test` has them")
    if sys.prefix == sys.base_prefix:
        raise InputError(f"{sys.prefix}: is no virtual environment, nothing is installed there; run ./invoke, which makes one")


def install() -> None:
    """Runs pip. Raises InputError: it fails."""
    print(f"dev: installing {LOCK.name} into {sys.prefix}", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    if subprocess.run([*pip, "-r", str(LOCK)], env=os.environ | {"PIP_USER": "0"}).returncode:
        raise InputError(f"pip could not install {LOCK}, see above; the next call tries again")
    shutil.copyfile(LOCK, INSTALLED)


def main() -> int:
    if not is_current():
        check_environment()
        with open(Path(sys.prefix, ".dev.lock"), "w") as lock:  # one at a time; the second finds it done
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_current():
                install()
    return 0


if __name__ == "__main__":
    run_command(main)
